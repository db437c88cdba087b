"""A database that goes away while a run is at work, as its user sees it: waited for, told, and nothing is claimed."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.databases import Server
from tests.servers.drivers import driver, wait_for_file
from tests.servers.proxy import FaultProxy, fault_proxy
from zenray import artifacts, local_cluster
from zenray.views import get_run

FLOW = """
import time
from pathlib import Path
from zenray import pipeline, step

@step
def train(folder: str) -> bytes:
    Path(folder, "trained").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    return bytes(100_000)

@step
def score(model: bytes) -> int:
    return len(model)

@pipeline
def flow(folder: str):
    return score(train(folder))
"""
WAITING = "warning: waiting for the metadata store "


class Project:
    """A pipeline and its stack, whose database lies behind a proxy; ``go`` lets the step return."""

    def __init__(self, folder: Path, server: Server, url: str, proxy: FaultProxy) -> None:
        self.folder, self.server, self.url, self.proxy = folder, server, url, proxy
        (folder / "flow.py").write_text(FLOW)
        (folder / ".zenray").mkdir()  # a repository
        (folder / "stacks").mkdir()
        self.words = "submit", "flow.py", "--stack", "prod", "-p", f"folder={folder}"

    def stack(self, orchestrator: str, retry_s: float = 600) -> None:
        (self.folder / "stacks" / "prod.yaml").write_text(
            f"orchestrator: {orchestrator}\nartifact_store: {self.folder}/store\n"
            f"metadata_store:\n  url: '{self.url}'\n  retry_s: {retry_s}\n"
        )

    def refuse_when_trained(self) -> None:
        wait_for_file(self.folder / "trained")
        self.proxy.is_refusing = True
        self.proxy.reset()
        (self.folder / "go").touch()

    def hang_when_trained(self) -> None:
        wait_for_file(self.folder / "trained")
        self.proxy.is_hanging = True
        (self.folder / "go").touch()

    def check_that_it_runs_now(self) -> None:
        self.proxy.heal()
        with driver(self.folder, *self.words) as again:
            assert again.end() == 0, again.shown
        run = get_run("latest", stack="prod")
        assert {n: str(s.status) for n, s in run.steps.items()} == {"train": "succeeded", "score": "succeeded"}


@pytest.fixture(params=["postgresql", "mariadb"])
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    server = request.getfixturevalue(request.param)
    with server.database() as name, fault_proxy(server.port) as proxy:
        yield Project(tmp_path, server, server.url(name, port=proxy.port), proxy)


@pytest.fixture
def cluster(project: Project) -> Iterator[None]:
    local_cluster.begin(num_cpus=2).wait_ready()
    yield
    local_cluster.down()


def test_a_crash_of_the_database_is_told_and_no_step_has_succeeded_before_it_is_recorded(
    project: Project, cluster: None
) -> None:
    project.stack("local")
    with driver(project.folder, *project.words) as run:
        wait_for_file(project.folder / "trained")
        project.server.stop(is_crash=True)
        try:
            (project.folder / "go").touch()
            run.wait_for(WAITING)
            assert "succeeded" not in run.shown
        finally:
            project.server.start()
        assert run.end() == 0
    assert "warning: the metadata store " in run.shown
    assert "answers again, after " in run.shown
    assert "2 succeeded" in run.shown
    assert {str(s.status) for s in get_run("latest", stack="prod").steps.values()} == {"succeeded"}


@pytest.mark.parametrize(
    ("project", "orchestrator"), [("postgresql", "local"), ("mariadb", "inline")], indirect=["project"]
)
def test_a_database_that_stays_away_fails_the_run_and_nothing_is_said_to_have_succeeded(
    project: Project, request: pytest.FixtureRequest, orchestrator: str
) -> None:
    project.stack(orchestrator, retry_s=2)
    if orchestrator == "local":
        request.getfixturevalue("cluster")
    with driver(project.folder, *project.words) as run:
        project.refuse_when_trained()
        assert run.end() == 1
    assert "succeeded" not in run.shown
    assert "train  failed" in run.shown
    assert "MetadataError: its end was not recorded" in run.shown
    assert "can be reached and lets this user in; it was tried for " in run.shown
    project.check_that_it_runs_now()


@pytest.mark.parametrize(
    ("project", "orchestrator", "fault"),
    [
        ("postgresql", "local", "refuses"),
        ("postgresql", "inline", "stands still"),
        ("mariadb", "inline", "refuses"),
        ("mariadb", "local", "stands still"),
    ],
    indirect=["project"],
)
def test_ctrl_c_ends_a_run_that_waits_for_its_database(
    project: Project, request: pytest.FixtureRequest, orchestrator: str, fault: str
) -> None:
    project.stack(orchestrator)
    if orchestrator == "local":
        request.getfixturevalue("cluster")
    with driver(project.folder, *project.words) as run:
        (project.refuse_when_trained if fault == "refuses" else project.hang_when_trained)()
        run.wait_for(WAITING)
        run.process.send_signal(signal.SIGINT)
        assert run.end(within_s=15) == 130  # a database has 20 s for its answer
    assert "was cancelled, and its end is lost: " in run.shown
    assert "succeeded" not in run.shown
    project.check_that_it_runs_now()


@pytest.mark.parametrize("project", ["postgresql"], indirect=True)
def test_a_driver_that_is_killed_while_it_waits_is_marked_lost_and_its_steps_run_again(
    project: Project, cluster: None
) -> None:
    project.stack("local")
    with driver(project.folder, *project.words) as run:
        project.refuse_when_trained()
        run.wait_for(WAITING)
        run.process.send_signal(signal.SIGKILL)
        run.end()
    project.proxy.heal()
    lost = get_run("latest", stack="prod")
    assert lost.record.status == "failed"
    assert {str(s.status) for s in lost.steps.values()} == {"failed", "skipped"}
    for name, _, _ in lost._books.store.names("artifacts/"):
        manifest = artifacts.read_manifest(name.rpartition("/")[2].removesuffix(".json"), lost._books.store)
        assert manifest is not None
        artifacts.verify(manifest, lost._books.store)
    project.check_that_it_runs_now()
