"""An artifact store that goes away while a run is at work: waited for, told, and no result of the run is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.drivers import driver, wait_for_file
from tests.servers.object_stores import ObjectStore
from tests.servers.proxy import FaultProxy
from zenray import artifacts, local_cluster
from zenray.store import open_store
from zenray.views import get_run

FLOW = """
import time
from pathlib import Path
from zenray import pipeline, step

@step
def train(size: int, folder: str) -> bytes:
    print("training")
    Path(folder, "trained").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return bytes(size)

@step
def score(model: bytes) -> int:
    return len(model)

@pipeline
def flow(folder: str, size: int = 100_000):
    return score(train(size, folder))
"""
WAITING = "[train] zenray: waiting for the artifact store 's3://"


class Project:
    """A pipeline and its stack behind the proxy; ``go`` lets the step return."""

    def __init__(self, folder: Path, s3: ObjectStore, proxy: FaultProxy) -> None:
        self.folder, self.s3, self.proxy = folder, s3, proxy
        (folder / "flow.py").write_text(FLOW)
        (folder / ".zenray").mkdir()  # a repository
        (folder / "stacks").mkdir()
        self.size = 100_000

    @property
    def words(self) -> list[str]:
        return ["submit", "flow.py", "--stack", "prod", "-p", f"folder={self.folder}", "-p", f"size={self.size}"]

    def stack(self, orchestrator: str = "local", **options: object) -> None:
        given = {"url": self.s3.uri, **self.s3.at(self.proxy.port), **options}
        lines = [f"orchestrator: {orchestrator}", "artifact_store:", *(f"  {k}: {v}" for k, v in given.items())]
        (self.folder / "stacks" / "prod.yaml").write_text("\n".join(lines))

    def break_it_when_trained(self, fault: Callable[[FaultProxy], object]) -> None:
        """Make a fault while the step is at work, and let the step return."""
        wait_for_file(self.folder / "trained")
        fault(self.proxy)
        (self.folder / "go").touch()

    def check_that_what_is_visible_is_whole(self) -> None:
        store = open_store(self.s3.uri, self.s3.options)
        for name, _, _ in store.names("artifacts/"):
            manifest = artifacts.read_manifest(name.rpartition("/")[2].removesuffix(".json"), store)
            assert manifest is not None
            artifacts.verify(manifest, store)

    def check_that_it_runs_now(self) -> None:
        self.proxy.heal()
        with driver(self.folder, *self.words) as again:
            assert again.end() == 0, again.shown
        assert get_run("latest", stack="prod").steps["train"].output.load() == bytes(self.size)
        self.check_that_what_is_visible_is_whole()


@pytest.fixture
def project(tmp_path: Path, s3: ObjectStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path, s3, proxy)
    made.stack()
    return made


@pytest.fixture
def cluster(project: Project) -> Iterator[None]:
    local_cluster.begin(num_cpus=2).wait_ready()
    yield
    local_cluster.down()


def answer_503(proxy: FaultProxy) -> None:
    proxy.http_status = 503


def refuse(proxy: FaultProxy) -> None:
    proxy.is_refusing = True
    proxy.reset()


def test_a_store_that_answers_503_for_20_s_costs_a_run_no_result_and_is_told(project: Project, cluster: None) -> None:
    with driver(project.folder, *project.words) as run:
        project.break_it_when_trained(answer_503)
        run.wait_for(WAITING)
        time.sleep(20)
        assert run.process.poll() is None
        project.proxy.heal()
        assert run.end() == 0
    assert run.shown.count("answers again, after 2") == 1
    assert "2 succeeded" in run.shown
    assert get_run("latest", stack="prod").steps["train"].attempts[0].number == 1
    project.check_that_what_is_visible_is_whole()


def test_a_store_that_stands_still_is_told_and_waited_for(project: Project, s3_server: ObjectStore) -> None:
    project.stack("inline")
    with driver(project.folder, *project.words) as run:
        try:
            project.break_it_when_trained(lambda _: os.kill(s3_server.pid, signal.SIGSTOP))
            run.wait_for("warning: waiting for the artifact store")
        finally:
            os.kill(s3_server.pid, signal.SIGCONT)
        assert run.end() == 0
    assert "no answer yet" in run.shown
    assert "answers again" in run.shown


def test_a_store_that_stays_away_fails_the_step_with_how_long_it_was_tried(project: Project, cluster: None) -> None:
    project.stack(retry_s=2)
    with driver(project.folder, *project.words) as run:
        project.break_it_when_trained(refuse)
        assert run.end() == 1
    assert "it did not answer properly for 1." in run.shown or "it did not answer properly for 2." in run.shown
    assert "check that it is up and reachable, and run again" in run.shown
    assert "1 failed, 1 skipped" in run.shown
    project.check_that_it_runs_now()


def test_a_driver_that_is_killed_while_its_worker_waits_leaves_nothing_half_visible(
    project: Project, cluster: None
) -> None:
    project.size = 60_000_000
    with driver(project.folder, *project.words) as run:
        project.break_it_when_trained(lambda proxy: setattr(proxy, "reset_after_bytes", 6_000_000))
        run.wait_for(WAITING)
        assert project.proxy.bytes_passed > 6_000_000
        run.process.send_signal(signal.SIGKILL)
        run.end()
    project.check_that_what_is_visible_is_whole()
    project.check_that_it_runs_now()


def hang(proxy: FaultProxy) -> None:
    proxy.is_hanging = True


@pytest.mark.parametrize(("orchestrator", "fault"), [("local", refuse), ("inline", refuse), ("inline", hang)])
def test_ctrl_c_ends_a_run_that_waits_for_its_store(
    project: Project, request: pytest.FixtureRequest, orchestrator: str, fault: Callable[[FaultProxy], None]
) -> None:
    project.stack(orchestrator)
    if orchestrator == "local":
        request.getfixturevalue("cluster")
    with driver(project.folder, *project.words) as run:
        project.break_it_when_trained(fault)
        run.wait_for("waiting for the artifact store")
        run.process.send_signal(signal.SIGINT)
        assert run.end(within_s=15) == 130  # a request to S3 has 30 s for its answer
    assert "2 cancelled" in run.shown
    assert get_run("latest", stack="prod").status == "cancelled"
    project.check_that_it_runs_now()


LOOKUP = """
import time
from pathlib import Path
from zenray import pipeline, step

@step(cache=False)
def gate(folder: str) -> int:
    Path(folder, "trained").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return 1

@step
def large(n: int) -> bytes:
    return bytes(100_000)

@pipeline
def flow(folder: str, size: int = 0):
    return large(gate(folder))
"""


@pytest.mark.parametrize("is_looked_up", [False, True], ids=["upload", "look-up"])
def test_run_stop_ends_a_run_that_waits_for_its_store(project: Project, cluster: None, is_looked_up: bool) -> None:
    project.stack()
    if is_looked_up:
        (project.folder / "flow.py").write_text(LOOKUP)
        (project.folder / "go").touch()
        with driver(project.folder, *project.words) as run:
            assert run.end() == 0
        (project.folder / "go").unlink()
        (project.folder / "trained").unlink()
    with driver(project.folder, *project.words) as run:
        project.break_it_when_trained(refuse)
        run.wait_for("waiting for the artifact store")
        words = [sys.executable, "-m", "zenray", "run", "stop", "latest", "--stack", "prod", "--timeout", "30"]
        done = subprocess.run(words, cwd=project.folder, text=True, capture_output=True, check=False, timeout=60)
        assert done.stdout.endswith("is cancelled\n"), done.stderr + run.shown
        assert run.end() == 130
    assert "with `zenray run stop`" in run.shown
