"""What the tests of trackers share: a server, and runs on a stack with a tracker."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.servers.starting import running
from tests.servers.trackers import MlflowServer
from zenray import Pipeline, Run, local_cluster
from zenray.journal import StepState
from zenray.model import Status
from zenray.profile import active_stack
from zenray.runner import RunObserver, RunRequest, run
from zenray.stack import Stack
from zenray.views import Books


@dataclass
class Seen(RunObserver):
    """What a user is shown of a run."""

    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    status: Status | None = None

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_remark(self, text: str) -> None:
        if text:
            self.remarks.append(text)

    def on_end(self, status: Status, states: Mapping[str, StepState], error: BaseException | None) -> None:
        self.status = status


def tracked_stack(name: str, options: Mapping[str, Any]) -> Stack:
    return replace(active_stack(name), experiment_tracker=options)


@dataclass
class Tracking:
    """Runs pipelines on a stack with a tracker."""

    options: Mapping[str, Any]
    stack: str = "inline"

    def run(self, pipeline: Pipeline[Any], **parameters: Any) -> tuple[Run, Seen]:
        seen = Seen()
        stack = tracked_stack(self.stack, self.options)
        bound = pipeline.bind((), parameters)
        run_id = run(RunRequest(pipeline.name, pipeline.function, bound, stack), seen)
        books = Books(stack)
        return Run(books.ledger.find_run(run_id), books), seen


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server; whoever stops it starts it again."""
    yield from running(MlflowServer.running(tmp_path_factory.mktemp("mlflow")))


@pytest.fixture(scope="session")
def cluster_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ZENRAY_HOME with a Ray cluster, which this process itself joins."""
    import ray

    home = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENRAY_HOME", str(home))
        local_cluster.begin(num_cpus=2).wait_ready()
    yield home
    ray.shutdown()  # a driver whose cluster goes away ends its process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENRAY_HOME", str(home))
        local_cluster.down()


@pytest.fixture
def cluster(cluster_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the cluster of the session."""
    monkeypatch.setenv("ZENRAY_HOME", str(cluster_home))
