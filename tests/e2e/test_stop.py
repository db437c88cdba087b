"""`zenray run stop`, from another process: whatever a run is doing, it ends and is recorded as cancelled."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zenray

FLOW = """
import time
from pathlib import Path
from zenray import pipeline, step

@step
def first() -> int:
    return 1

@step
def sleeps(n: int) -> None:
    Path("started").write_text("")
    time.sleep(600)

@step
def computes(n: int) -> None:
    Path("started").write_text("")
    while True:
        pass

@step
def after(n: None) -> None: ...

@pipeline
def sleeping():
    after(sleeps(first()))

@pipeline
def computing():
    after(computes(first()))

if __name__ == "__main__":
    import threading
    thread = threading.Thread(target=computing)
    thread.start()
    thread.join()
"""


def begin(folder: Path, *words: str, **environment: str) -> "subprocess.Popen[str]":
    (folder / "flow.py").write_text(FLOW)
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=os.environ | environment, text=True, stderr=subprocess.PIPE
    )
    give_up_at = time.monotonic() + 60
    while not (folder / "started").exists():
        assert process.poll() is None
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    return process


def stop(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "zenray", "run", "stop", *words]
    return subprocess.run(command, text=True, capture_output=True, check=False, timeout=100)


def check_stopped(process: "subprocess.Popen[str]", step: str) -> None:
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "with `zenray run stop`" in shown
    assert "Traceback" not in shown
    run = zenray.get_run("latest")
    statuses = {n: str(s.status) for n, s in run.steps.items()}
    assert statuses.pop("first") in ("succeeded", "cached")  # another test may have run the same
    assert statuses == {step: "cancelled", "after": "cancelled"}
    assert not run.steps[step].outputs


@pytest.fixture
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "inline")


@pytest.mark.parametrize(("pipeline", "step"), [("sleeping", "sleeps"), ("computing", "computes")])
@pytest.mark.usefixtures("_home")
def test_a_run_in_a_process_of_its_own_is_stopped(tmp_path: Path, pipeline: str, step: str) -> None:
    process = begin(tmp_path, "-m", "zenray", "submit", f"flow.py:{pipeline}")
    done = stop("latest")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("is cancelled\n")
    check_stopped(process, step)
    again = stop("latest")
    assert again.returncode == 0
    assert again.stdout.endswith("had ended before: cancelled\n")


@pytest.mark.usefixtures("_home")
def test_a_run_in_a_thread_is_stopped(tmp_path: Path) -> None:
    process = begin(tmp_path, "flow.py")
    assert stop("latest").stdout.endswith("is cancelled\n")
    _, shown = process.communicate(timeout=60)
    assert "with `zenray run stop`" in shown
    assert zenray.get_run("latest").status == "cancelled"


@pytest.mark.usefixtures("_home")
def test_a_run_whose_process_was_killed_has_ended(tmp_path: Path) -> None:
    process = begin(tmp_path, "-m", "zenray", "submit", "flow.py:sleeping")
    process.kill()
    process.communicate()
    done = stop("latest")
    assert done.returncode == 0
    assert done.stdout.endswith("had ended before: failed\n")


@pytest.mark.usefixtures("_home")
def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = stop("nosuch")
    assert done.returncode != 0
    assert "nosuch" in done.stderr
    assert "Traceback" not in done.stderr
