"""Runs logged to a real MLflow server, on the inline launcher and on Ray, and with the server gone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import pytest

import zenray
from tests.servers.trackers import MlflowServer
from tests.trackers.conftest import Tracking
from zenray import pipeline, step
from zenray.errors import StepFailed
from zenray.model import Status


@step
def train(lr: float) -> tuple[Annotated[float, "auc"], Annotated[int, "rounds"], Annotated[str, "model"]]:
    zenray.log_metadata(loss=0.25, note="text is not a number", curve=[1, 2])
    return lr * 2, 7, "weights"


@step
def good(auc: float) -> bool:
    return auc > 0.5


@pipeline
def learning(lr: float = 0.3) -> None:
    auc, _, _ = train(lr)
    good(auc)


@step(cache=False)
def looping(n: int) -> int:
    for epoch in range(n):
        zenray.log_metadata(loss=1 / (epoch + 1), epoch=epoch)
    return n


@pipeline
def loops(n: int = 4) -> None:
    looping(n)


@step(cache=False)
def native(n: int) -> int:
    mlflow = zenray.context().tracker
    mlflow.log_metric("inner", n, step=1)
    mlflow.log_metric("inner", n + 1, step=2)
    return n


@pipeline
def natively(n: int = 3) -> None:
    native(n)


@step(cache=False)
def broken(n: int) -> int:
    zenray.context().tracker.log_metric("before", n)
    raise ValueError("no")


@pipeline
def breaking() -> None:
    broken(1)


@step(cache=False)
def numbered(n: int) -> int:
    return n


@step(cache=False)
def lose(server_pid: int) -> int:
    os.killpg(server_pid, signal.SIGKILL)
    return server_pid


@pipeline
def losing(server_pid: int, count: int = 5) -> None:
    for i in range(count):
        numbered(i).load()
    wait_for(numbered(count).load())
    lose(server_pid).load()
    for i in range(count):
        numbered(i)


def wait_for(_: int) -> None:
    time.sleep(0.5)


@pytest.fixture
def client(mlflow_server: MlflowServer) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=mlflow_server.url)


@pytest.fixture
def tracking(mlflow_server: MlflowServer, request: pytest.FixtureRequest) -> Tracking:
    return Tracking({"flavor": "mlflow", "tracking_uri": mlflow_server.url, "experiment": request.node.name})


def only_run(client: Any, experiment: str) -> Any:
    (found,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return found


def test_a_run_is_logged_with_parameters_tags_numbers_and_status(tracking: Tracking, client: Any) -> None:
    run, seen = tracking.run(learning, lr=0.4)
    logged = only_run(client, tracking.options["experiment"])
    assert logged.info.run_name == run.run_id
    assert logged.info.status == "FINISHED"
    assert logged.data.params == {"lr": "0.4"}
    assert logged.data.metrics == {"train.auc": 0.8, "train.rounds": 7, "train.loss": 0.25, "good.output": 1}
    assert logged.data.tags["zenray.run_id"] == run.run_id
    assert logged.data.tags["zenray.stack"] == "inline"
    assert logged.data.tags["zenray.pipeline"] == "learning"
    assert (seen.notes, seen.remarks) == ([], [])


@pytest.mark.parametrize("stack", ["inline", "local"])
def test_a_number_logged_in_a_loop_is_a_series_in_mlflow_and_the_last_in_the_record(
    tracking: Tracking, client: Any, stack: str, request: pytest.FixtureRequest
) -> None:
    if stack == "local":
        request.getfixturevalue("cluster")
    run, seen = Tracking(tracking.options, stack=stack).run(loops)
    logged = only_run(client, tracking.options["experiment"])
    history = client.get_metric_history(logged.info.run_id, "looping.loss")
    assert [(m.step, m.value) for m in history] == [(i, 1 / (i + 1)) for i in range(4)]
    assert logged.data.metrics == {"looping.loss": 0.25, "looping.epoch": 3, "looping.output": 4}
    assert run.steps["looping"].metadata == {"loss": 0.25, "epoch": 3}
    assert (seen.notes, seen.remarks) == ([], [])


def test_cached_steps_log_their_outputs_too(tracking: Tracking, client: Any) -> None:
    tracking.run(learning)
    again, seen = tracking.run(learning)
    assert {s.status for s in again.steps.values()} == {Status.CACHED}
    experiment = client.get_experiment_by_name(tracking.options["experiment"]).experiment_id
    (logged,) = client.search_runs([experiment], f"tags.`zenray.run_id` = '{again.run_id}'")
    assert logged.data.metrics == {"train.auc": 0.6, "train.rounds": 7, "good.output": 1}
    assert seen.remarks == []


def test_a_step_logs_to_the_same_run_through_mlflow_itself(tracking: Tracking, client: Any) -> None:
    import mlflow

    tracking.run(natively)
    logged = only_run(client, tracking.options["experiment"])
    history = client.get_metric_history(logged.info.run_id, "inner")
    assert [(m.step, m.value) for m in history] == [(1, 3), (2, 4)]
    assert logged.data.metrics["native.output"] == 3
    assert logged.info.status == "FINISHED"
    assert mlflow.active_run() is None


def test_the_experiment_is_called_like_the_pipeline_by_default(mlflow_server: MlflowServer, client: Any) -> None:
    Tracking({"flavor": "mlflow", "tracking_uri": mlflow_server.url}).run(natively)
    assert only_run(client, "natively").data.metrics["native.output"] == 3


def test_a_failed_run_is_failed_in_mlflow_too(tracking: Tracking, client: Any) -> None:
    with pytest.raises(StepFailed, match="no"):
        tracking.run(breaking)
    logged = only_run(client, tracking.options["experiment"])
    assert logged.info.status == "FAILED"
    assert logged.data.metrics == {"before": 1}


def test_a_server_that_dies_fails_no_run_is_warned_of_once_and_counted_and_told_the_end_by_the_next_run(
    tracking: Tracking, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    server = MlflowServer(tmp_path).start()
    options = {"flavor": "mlflow", "tracking_uri": server.url, "experiment": "away"}
    try:
        run, seen = Tracking(options).run(losing, server_pid=server.pid)
        assert run.status is Status.SUCCEEDED
        assert len(seen.notes) == 1
        assert "the experiment tracker fails, and the run goes on without it" in seen.notes[0]
        (remark,) = seen.remarks
        assert remark.endswith("of 12 values were not logged")
        server.stop()
        server.start()
        client = MlflowClient(tracking_uri=server.url)
        assert statuses(client, "away") == {run.run_id: "RUNNING"}
        following, _ = Tracking(options).run(learning)
        assert statuses(client, "away") == {run.run_id: "FINISHED", following.run_id: "FINISHED"}
        place = client.get_experiment_by_name("away").experiment_id
        (ended_at,) = [r.info.end_time for r in client.search_runs([place]) if r.info.run_name == run.run_id]
        assert run.record.ended_at is not None
        assert ended_at == int(run.record.ended_at * 1000)
    finally:
        server.stop()


def test_a_server_that_was_never_there_fails_no_run(mlflow_server: MlflowServer) -> None:
    run, seen = Tracking({"flavor": "mlflow", "tracking_uri": "http://user:secret@127.0.0.1:9"}).run(learning)
    assert run.status is Status.SUCCEEDED
    assert len(seen.notes) == 1
    assert "secret" not in seen.notes[0]
    assert seen.remarks == ["tracker: 4 of 4 values were not logged"]


ENDLESS = """
import sys, time
from pathlib import Path

from tests.trackers.conftest import Tracking
from zenray import pipeline, step


@step(cache=False)
def endless(n: int) -> int:
    time.sleep(600)
    return n


@pipeline
def stuck(n: int = 1) -> None:
    endless(n)


Tracking({"flavor": "mlflow", "tracking_uri": sys.argv[1], "experiment": sys.argv[2]}).run(stuck)
"""


def statuses(client: Any, experiment: str) -> dict[str, str]:
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: run.info.status for run in found}


def kill_a_driver(tracking: Tracking, client: Any, folder: Path) -> str:
    """Kill a process whose run has begun in MLflow; returns the run's id."""
    (folder / "endless.py").write_text(ENDLESS)
    experiment = tracking.options["experiment"]
    driver = subprocess.Popen(
        [sys.executable, str(folder / "endless.py"), tracking.options["tracking_uri"], experiment],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while client.get_experiment_by_name(experiment) is None or not statuses(client, experiment):
            assert driver.poll() is None, driver.communicate()[1]
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.communicate()
    (run_id,) = statuses(client, experiment)
    return run_id


def test_a_run_whose_process_was_killed_is_ended_in_mlflow_by_the_next_run(
    tracking: Tracking, client: Any, tmp_path: Path
) -> None:
    lost = kill_a_driver(tracking, client, tmp_path)
    experiment = tracking.options["experiment"]
    place = client.get_experiment_by_name(experiment).experiment_id
    client.create_run(place, run_name="of another ledger", tags={"zenray.run_id": "20200101-000000-abcdef"})
    client.create_run(place, run_name="not ours")
    run, seen = tracking.run(learning)
    assert statuses(client, experiment) == {
        lost: "FAILED",
        run.run_id: "FINISHED",
        "of another ledger": "RUNNING",
        "not ours": "RUNNING",
    }
    assert (seen.notes, seen.remarks) == ([], [])


def test_doctor_ends_runs_that_are_over_in_every_experiment(tracking: Tracking, client: Any, tmp_path: Path) -> None:
    lost = kill_a_driver(tracking, client, tmp_path)
    (tmp_path / ".zenray").mkdir()
    options = {"flavor": "mlflow", "tracking_uri": tracking.options["tracking_uri"]}
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "tracked.yaml").write_text(
        json.dumps({"orchestrator": "inline", "experiment_tracker": options})
    )
    shown = [
        subprocess.run(
            [sys.executable, "-m", "zenray", "doctor"],
            cwd=tmp_path,
            env=os.environ | {"ZENRAY_STACK": "tracked"},
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        for _ in range(2)
    ]
    assert "1 runs that went on there and are over were ended there" in shown[0]
    assert "were ended there" not in shown[1]
    assert statuses(client, tracking.options["experiment"]) == {lost: "FAILED"}


@pytest.mark.usefixtures("cluster")
def test_steps_on_ray_log_to_the_same_run(tracking: Tracking, client: Any) -> None:
    run, seen = Tracking(tracking.options, stack="local").run(natively, n=8)
    logged = only_run(client, tracking.options["experiment"])
    assert logged.data.metrics == {"inner": 9, "native.output": 8}
    assert logged.info.status == "FINISHED"
    assert (seen.notes, seen.remarks) == ([], [])
    assert "127.0.0.1" not in repr(run.record)
