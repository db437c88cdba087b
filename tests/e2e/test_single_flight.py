"""Several processes that need the same results at the same time: each is computed once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "import sys; from zenray.cli import main; sys.exit(main())"]
FLOW = """
import os
import time
from pathlib import Path

from zenray import pipeline, step


def count(name):
    with open(os.environ["COUNTS"], "a") as file:
        file.write(name + "\\n")


@step
def slow(n: int) -> int:
    count(f"slow {n}")
    time.sleep(float(os.environ["SLEEP"]))
    if os.environ.get("FAILS"):
        raise ValueError("no good")
    return n


@step
def add(a: int, b: int) -> int:
    count(f"add {a} {b}")
    return a + b


@step
def own(total: int, who: str) -> str:
    count(f"own {who}")
    return f"{who}: {total}"


@pipeline
def shared(who: str):
    total = slow(0)
    for n in range(1, 6):
        total = add(total, slow(n))
    return own(total, who)


@pipeline
def one():
    return slow(1)


@step
def runs_one_with_its_own_key() -> int:
    return len(itself().steps) if os.environ.pop("FIRST", "") else 0


@pipeline
def itself():
    return runs_one_with_its_own_key()


@pipeline
def ready():
    return slow(3)


@pipeline
def idle():
    slow(2).load()
    ready = slow(3)
    count("idle")
    time.sleep(20)
    return ready
"""


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "flow.py").write_text(FLOW)
        (folder / "counts").write_text("")
        self.environment = os.environ | {
            "ZENRAY_HOME": str(folder / "home"),
            "ZENRAY_STACK": "inline",
            "COUNTS": str(folder / "counts"),
            "SLEEP": "0.2",
        }

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, "submit", *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def counts(self) -> list[str]:
        return (self.folder / "counts").read_text().splitlines()

    def wait_for(self, line: str) -> None:
        until = time.monotonic() + 60
        while line not in self.counts():
            assert time.monotonic() < until, f"{line!r} did not come"
            time.sleep(0.02)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def test_what_several_runs_need_is_computed_once(project):
    running = [project.start("flow.py:shared", "-p", f"who=p{i}") for i in range(3)]
    for code, stderr in map(ended, running):
        assert code == 0, stderr
    done = project.counts()
    assert sorted(done) == sorted(set(done))
    assert sum(line.startswith("own") for line in done) == 3
    assert len(done) == 6 + 5 + 3


def test_who_waits_says_for_whom_and_takes_the_result(project):
    first = project.start("flow.py:one", SLEEP="8")  # longer than a driver takes to start on a busy machine
    project.wait_for("slow 1")
    second = project.start("flow.py:one")
    assert ended(first)[0] == 0
    code, stderr = ended(second)
    assert code == 0
    assert "waits for run" in stderr
    assert "cached" in stderr
    assert project.counts() == ["slow 1"]


def test_a_dead_holder_loses_its_claim(project):
    first = project.start("flow.py:one", SLEEP="60")
    project.wait_for("slow 1")
    second = project.start("flow.py:one")
    time.sleep(1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    code, stderr = ended(second)
    assert code == 0, stderr
    assert project.counts() == ["slow 1", "slow 1"]


def test_a_holder_that_fails_leaves_the_work_to_the_next(project):
    first = project.start("flow.py:one", SLEEP="2", FAILS="1")
    project.wait_for("slow 1")
    second = project.start("flow.py:one")
    assert ended(first)[0] == 1
    assert ended(second)[0] == 0
    assert project.counts() == ["slow 1", "slow 1"]


def test_a_run_that_waits_can_be_stopped(project):
    first = project.start("flow.py:one", SLEEP="5")
    project.wait_for("slow 1")
    second = project.start("flow.py:one")
    time.sleep(2)
    second.send_signal(signal.SIGINT)
    assert ended(second)[0] == 130
    assert ended(first)[0] == 0


def test_a_run_without_cache_waits_for_nobody(project):
    first = project.start("flow.py:one", SLEEP="5")
    project.wait_for("slow 1")
    assert ended(project.start("flow.py:one", "--no-cache"))[0] == 0
    assert first.poll() is None
    assert ended(first)[0] == 0


def test_the_same_project_in_another_folder_finds_the_results(project, tmp_path):
    assert ended(project.start("flow.py:shared", "-p", "who=me"))[0] == 0
    other = tmp_path / "other" / "place"
    other.mkdir(parents=True)
    moved = Project(other)
    moved.environment["ZENRAY_HOME"] = project.environment["ZENRAY_HOME"]
    code, stderr = ended(moved.start("flow.py:shared", "-p", "who=me"))
    assert code == 0
    assert "all 12 steps were cached" in stderr


def test_a_run_in_a_step_does_not_wait_for_the_run_around_it(project):
    code, stderr = ended(project.start("flow.py:itself", FIRST="1"))
    assert code == 0, stderr
    assert stderr.count("succeeded in") == 2


def test_nothing_is_claimed_before_it_starts(project):
    first = project.start("flow.py:idle")
    project.wait_for("idle")
    second = project.start("flow.py:ready")
    code, stderr = ended(second)
    assert code == 0, stderr
    assert "waits for" not in stderr
    assert first.poll() is None
    first.kill()
    first.communicate()
