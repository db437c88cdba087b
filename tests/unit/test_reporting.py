"""The thread that feeds a tracker, with trackers that are slow, dead, or come back."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import zenray
from zenray import pipeline, step
from zenray.errors import ConfigError
from zenray.metadata.ledger import Ledger
from zenray.model import Status
from zenray.profile import active_stack
from zenray.runner import RunObserver, RunRequest, run
from zenray.store import open_store
from zenray.trackers import TrackedRun, open_tracker
from zenray.trackers.reporting import GRACE_S, Reporter


@dataclass
class Recorder:
    """A tracker in memory; ``trouble`` is called first in every call."""

    trouble: Callable[[], object] = lambda: None
    values: dict[str, float] = field(default_factory=dict)
    calls: list[Any] = field(default_factory=list)

    def start(self, run: TrackedRun) -> None:
        self.trouble()
        self.calls.append(run)

    def log(self, values: Mapping[str, float]) -> None:
        self.trouble()
        self.values.update(values)

    def end(self, status: str) -> None:
        self.trouble()
        self.calls.append(status)

    def attach(self, run_id: str) -> Any:
        return self

    def detach(self) -> None:
        self.calls.append("detached")


@dataclass
class Seen(RunObserver):
    notes: list[str] = field(default_factory=list)

    def on_note(self, text: str) -> None:
        self.notes.append(text)


@step(cache=False)
def numbers(n: int) -> tuple[int, float, bool, str, list[int]]:
    zenray.log_metadata(loss=0.5, huge=10**400, text="no", output_0=99)
    return n, 0.25, True, "no", [1]


@pipeline
def counting(count: int = 1) -> None:
    for i in range(count):
        numbers(i)


def report(tracker: Recorder, tmp_path: Path, *, count: int = 1, grace_s: float = GRACE_S) -> tuple[str, Seen]:
    """Run a pipeline without a tracker and tell a reporter of its steps as an engine would."""
    seen = Seen()
    store = open_store(str(tmp_path / "store"))
    states = finished_states(tmp_path, count)
    reporter = Reporter(tracker, TrackedRun("run-1", "counting", {"count": count}), store=store, observer=seen)
    for state in states:
        reporter.on_step(state)
    return reporter.close(Status.SUCCEEDED, grace_s=grace_s, first_grace_s=max(grace_s, 2.0)), seen


def finished_states(tmp_path: Path, count: int) -> list[Any]:
    class Collecting(RunObserver):
        def on_step(self, state: Any) -> None:
            if state.status.has_outputs:
                found.append(state)

    found: list[Any] = []
    stack = replace(active_stack("inline"), artifact_store=str(tmp_path / "store"))
    run(RunRequest("counting", counting.function, {"count": count}, stack), Collecting())
    return found


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))


def test_numbers_are_logged_by_step_and_name_and_nothing_else(tmp_path: Path) -> None:
    tracker = Recorder()
    remark, seen = report(tracker, tmp_path)
    assert tracker.values == {
        "numbers.output_0": 0,  # the output, not what the metadata calls like it
        "numbers.output_1": 0.25,
        "numbers.output_2": 1,
        "numbers.loss": 0.5,
    }
    assert tracker.calls == [TrackedRun("run-1", "counting", {"count": 1}), "succeeded"]
    assert seen.notes == []
    assert remark == "tracker: 1 of 5 values were not logged"  # no float can hold 10**400


def test_a_tracker_that_fails_is_warned_of_once_and_what_it_misses_is_counted(tmp_path: Path) -> None:
    def dead() -> None:
        raise ConnectionError("http://user:se/cr@t@host refused\nmore")

    remark, seen = report(Recorder(dead), tmp_path, count=3)
    (note,) = seen.notes
    assert "ConnectionError: http://***@host refused" in note
    assert "more" not in note
    assert remark == "tracker: 15 of 15 values were not logged"


def test_a_tracker_that_comes_back_gets_what_it_missed(tmp_path: Path) -> None:
    failures = iter([True])

    def flaky() -> None:
        if next(failures, False):
            raise ConnectionError("not yet")

    tracker = Recorder(flaky)
    states = finished_states(tmp_path, 4)
    seen = Seen()
    reporter = Reporter(
        tracker, TrackedRun("run-1", "counting"), store=open_store(str(tmp_path / "store")), observer=seen
    )
    for state in states:
        reporter.on_step(state)
    until = time.monotonic() + 30
    while len(tracker.values) < 16 and time.monotonic() < until:
        time.sleep(0.05)
    reporter.close(Status.FAILED)
    assert len(tracker.values) == 16
    assert tracker.calls[-1] == "failed"
    assert len(seen.notes) == 1


def test_a_run_does_not_wait_for_a_tracker_that_hangs(tmp_path: Path) -> None:
    gate = threading.Event()
    remark, seen = report(Recorder(lambda: gate.wait(60)), tmp_path, count=2, grace_s=0.1)
    assert remark == "tracker: 10 of 10 values were not logged"
    assert "it does not answer" in seen.notes[0]
    gate.set()


def test_an_unknown_flavor_is_refused_with_near_ones_before_the_run_is_recorded(tmp_path: Path) -> None:
    stack = replace(active_stack("inline"), experiment_tracker={"flavor": "mlfow", "api_key": "secret"})
    with pytest.raises(ConfigError, match=r"unknown flavor 'mlfow'; did you mean 'mlflow'\?"):
        run(RunRequest("counting", counting.function, {"count": 1}, stack), RunObserver())
    with Ledger(stack.metadata_store) as ledger:
        assert ledger.list_runs() == ()
    assert "secret" not in repr(stack)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavor": None}, "unknown flavor None"),
        ({"flavor": "mlflow", "tracking_url": "http://x"}, r"no option 'tracking_url'; did you mean 'tracking_uri'\?"),
        ({"flavor": "mlflow"}, "needs 'tracking_uri'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=message):
        open_tracker(options)
