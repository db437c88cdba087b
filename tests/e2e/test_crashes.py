import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("crashing.py")
PROCESSES = 2


def test_a_driver_may_be_killed_at_every_point_where_it_changes_something(tmp_path: Path) -> None:
    """From the creation of the database to the last record: whole artifacts, no run left open, nothing runs twice."""
    running = [
        subprocess.Popen(
            [sys.executable, PROGRAM, tmp_path / f"home{first}", str(first), str(PROCESSES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for first in range(1, PROCESSES + 1)
    ]
    points = 0
    for process in running:
        shown, _ = process.communicate(timeout=600)
        assert process.returncode == 0, shown[-3000:]
        points += int(shown.splitlines()[-1].split()[0])
    assert points > 60  # fewer mean that the hooks no longer see what happens
