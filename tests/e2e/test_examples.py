"""The README's example on its real data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "flight_delays.py"


def submit(cwd: Path, home: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "zenray", *words],
        cwd=cwd,
        env=os.environ | {"ZENRAY_HOME": str(home), "ZENRAY_STACK": "inline"},
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_flight_delays_predicts_plausibly_and_follows_an_edited_helper(tmp_path: Path) -> None:
    script = tmp_path / "flight_delays.py"
    script.write_text(EXAMPLE.read_text())
    home = tmp_path / "home"
    shown = submit(tmp_path, home, "submit", "flight_delays.py", "-p", "max_iter=10")
    auc = re.search(r"AUC (0\.\d+)", shown)
    assert auc is not None
    assert 0.68 < float(auc.group(1)) < 0.9  # weather and time alone say something, and cannot say all
    again = submit(tmp_path, home, "submit", "flight_delays.py", "-p", "max_iter=10")
    assert "all 7 steps were cached" in again
    script.write_text(EXAMPLE.read_text().replace("LATE_MINUTES)", "LATE_MINUTES + 5)  # stricter"))
    edited = submit(tmp_path, home, "submit", "flight_delays.py", "-p", "max_iter=10")
    assert "3 cached" in edited
    assert "is_late" in submit(tmp_path, home, "run", "explain", "latest", "features")
