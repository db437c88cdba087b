"""A cluster that ends under a run ends the run, with an error of ours, long before Ray gives it up."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from zenray import local_cluster, views

FLOW = """
import time
from pathlib import Path
from zenray import pipeline, step

@step
def quick(n: int) -> int:
    return n

@step(retries=3)
def slow(n: int, path: str) -> int:
    Path(path).write_text("started")
    time.sleep(600)
    return n

@pipeline
def hanging(path: str):
    slow(quick(1), path)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "local")
    local_cluster.begin(num_cpus=2).wait_ready()
    yield tmp_path / "home"
    local_cluster.down()


def kill(name: str) -> None:
    info = local_cluster.find()
    assert info is not None
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == name and info.directory in " ".join(process.info["cmdline"] or ()):
            process.kill()


def begun(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Return a driver whose slow step has begun."""
    (folder / "flow.py").write_text(FLOW)
    started = folder / "started"
    command = [sys.executable, *words, "-p", f"path={started}"]
    driver = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 60
    while not started.exists():
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    return driver


def test_a_driver_that_is_told_to_end_says_so_without_a_stack_of_rays(home: Path, tmp_path: Path) -> None:
    driver = begun(tmp_path, "-m", "zenray", "submit", "flow.py")
    driver.send_signal(signal.SIGTERM)
    shown, _ = driver.communicate(timeout=40)
    assert driver.returncode == 130
    assert "cancelled: run" in shown
    assert "SIGTERM received" not in shown


@pytest.mark.parametrize("way", ["raylet", "gcs_server", "down"])
def test_a_run_whose_cluster_ends_fails_soon(home: Path, tmp_path: Path, way: str) -> None:
    driver = begun(tmp_path, "-m", "zenray", "submit", "flow.py")
    try:
        if way == "down":
            local_cluster.down()
        else:
            kill(way)
        shown, _ = driver.communicate(timeout=40)  # Ray waits for 60 s
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 1, shown
    assert "error: the local Ray cluster has ended while the run was going on" in shown
    assert "Traceback" not in shown
    assert "C++" not in shown
    run = views.get_run("latest")
    assert run.status == "failed"
    assert run.record.error is not None
    assert run.record.error["type"] == "ClusterError"
    assert {n: str(s.status) for n, s in run.steps.items()} == {"quick": "succeeded", "slow": "failed"}
