"""Timeouts on Ray: of code that can be interrupted, and of code that only the end of its process stops."""

import subprocess
import sys
from pathlib import Path

import pytest

import zenray

FLOW = """
import os, time
from pathlib import Path
from zenray import pipeline, step

@step(timeout=1)
def sleeps() -> None:
    time.sleep(600)

@step(timeout=1)
def holds_the_lock() -> None:
    sum(range(10**14))  # in C, with the interpreter's lock held: no line of Python runs, and no handler of a signal

@step(timeout=1, retries=1)
def ignores() -> None:
    while True:
        try:
            time.sleep(600)
        except TimeoutError:
            pass

@step(timeout=60)
def quick() -> int:
    return 1

@step(timeout=0.5)
def crashes() -> int:
    n = len(list(Path(".").glob("crashed-*")))
    Path(f"crashed-{n}").write_text("")
    if n < 2:
        os._exit(3)
    return n

@pipeline
def late() -> None:
    sleeps(), holds_the_lock(), ignores(), quick(), crashes()
"""


def test_a_step_is_ended_when_its_time_is_up_whatever_it_does(
    cluster_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(cluster_home))
    monkeypatch.setenv("ZENRAY_STACK", "local")
    (tmp_path / "late.py").write_text(FLOW)
    words = [sys.executable, "-m", "zenray", "submit", "late.py"]
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    steps = zenray.get_pipeline("late").runs[-1].steps
    found = {n: [(str(a.status), (a.error or {}).get("kind")) for a in s.attempts] for n, s in steps.items()}
    assert found == {
        "sleeps": [("failed", "timeout")],
        "holds_the_lock": [("failed", "timeout")],
        "ignores": [("failed", "timeout")] * 2,
        "quick": [("succeeded", None)],
        "crashes": [("failed", "worker"), ("failed", "worker"), ("succeeded", None)],
    }
    error = steps["holds_the_lock"].record.error
    assert error is not None
    assert "longer than its timeout or deadline and did not end when it was told" in error["message"]
    assert "holds_the_lock" in steps["holds_the_lock"].logs  # the stack, as it was then
