"""The thread that feeds a tracker, with trackers that are slow, dead, or come back."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import zenray
from zenray import checks, pipeline, step
from zenray.errors import ConfigError
from zenray.metadata.ledger import Ledger
from zenray.model import Status
from zenray.profile import active_stack
from zenray.runner import RunObserver, RunRequest, run
from zenray.store import open_store
from zenray.trackers import Point, TrackedRun, attached, open_tracker
from zenray.trackers.reporting import GRACE_S, Reporter


@dataclass
class Recorder:
    """A tracker in memory; ``trouble`` is called first in every call."""

    trouble: Callable[[], object] = lambda: None
    values: dict[str, float] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)

    def start(self, run: TrackedRun) -> None:
        self.trouble()
        self.calls.append(run)

    def log(self, points: Sequence[Point]) -> None:
        self.trouble()
        self.points += points
        self.values |= {point.name: point.value for point in points}

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
    remarks: list[str] = field(default_factory=list)

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_remark(self, text: str) -> None:
        if text:
            self.remarks.append(text)


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


def test_a_number_that_is_logged_in_a_loop_is_a_series_in_order(tmp_path: Path) -> None:
    began = time.time()
    tracker = Recorder()
    (state,) = finished_states(tmp_path, 1)
    state.metadata, state.series = (
        {"loss": 0.1, "note": "x"},
        {"loss": [(i, 1 / (i + 1), began + i) for i in range(1200)]},
    )
    seen = Seen()
    store = open_store(str(tmp_path / "store"))
    reporter = Reporter(tracker, TrackedRun("run-1", "counting"), store=store, observer=seen)
    reporter.on_step(state)
    assert reporter.close(Status.SUCCEEDED) == ""
    series = [p for p in tracker.points if p.name == "numbers.loss"]
    assert series == [Point("numbers.loss", 1 / (i + 1), i, began + i) for i in range(1200)]
    assert [p.index for p in tracker.points if p.name == "numbers.output_0"] == [0]


def test_a_tracker_that_fails_is_warned_of_once_and_what_it_misses_is_counted(tmp_path: Path) -> None:
    def dead() -> None:
        raise ConnectionError("http://user:se/cr@t@host refused\nmore")

    remark, seen = report(Recorder(dead), tmp_path, count=3)
    (note,) = seen.notes
    assert "ConnectionError: http://***@host refused" in note
    assert "more" not in note
    assert remark == "tracker: 15 of 15 values were not logged"


def test_a_client_that_tries_to_end_the_process_is_warned_of_once_like_any_other(tmp_path: Path) -> None:
    remark, seen = report(Recorder(lambda: sys.exit("not logged in")), tmp_path)
    (note,) = seen.notes
    assert "SystemExit: not logged in" in note
    assert remark == "tracker: 5 of 5 values were not logged"


FACTORIES = """
import sys
from pathlib import Path

from zenray.errors import ConfigError


def gives_nothing(options):
    return None


def ends_the_process(options):
    sys.exit("please log in")


def fails(options):
    raise RuntimeError("http://user:secret@host is away")


def refuses(options):
    raise ConfigError("experiment_tracker: no such option")


class EndsTheProcess:
    def __init__(self, options):
        pass

    def start(self, run):
        pass

    def check(self):
        pass

    def attach(self, run_id):
        return self

    def log(self, *_):
        raise SystemExit(3)

    end = detach = log
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package whose trackers are broken in several ways."""
    folder = tmp_path / "place"
    info = folder / "broken_trackers-1.dist-info"
    info.mkdir(parents=True)
    (folder / "broken_trackers.py").write_text(FACTORIES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-trackers\nVersion: 1\n")
    names = ("gives_nothing", "ends_the_process", "fails", "refuses", "EndsTheProcess")
    points = "".join(f"{name} = broken_trackers:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[zenray.trackers]\n{points}")
    monkeypatch.syspath_prepend(str(folder))


@step(cache=False)
def asking(n: int) -> int:
    assert zenray.context().tracker is not None
    return n


@pipeline
def asked() -> None:
    asking(1)


def run_with(flavor: str, pipeline: Any, **parameters: Any) -> Seen:
    seen = Seen()
    stack = replace(active_stack("inline"), experiment_tracker={"flavor": flavor})
    run_id = run(RunRequest(pipeline.name, pipeline.function, parameters, stack), seen)
    with Ledger(stack.metadata_store) as ledger:
        assert ledger.find_run(run_id).status is Status.SUCCEEDED
    return seen


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("flavor", "why"),
    [
        ("gives_nothing", "it gave an object of type 'NoneType', which is no zenray.trackers.Tracker"),
        ("ends_the_process", "SystemExit: please log in"),
        ("fails", "RuntimeError: http://***@host is away"),
    ],
)
def test_a_tracker_that_its_package_cannot_open_fails_no_run_but_the_check_of_its_stack(flavor: str, why: str) -> None:
    seen = run_with(flavor, counting, count=2)
    (note,) = seen.notes
    assert f"the run goes on without it: experiment_tracker: flavor {flavor!r}" in note
    assert why in note
    assert seen.remarks == ["tracker: 10 of 10 values were not logged"]
    stack = replace(active_stack("inline"), experiment_tracker={"flavor": flavor})
    with pytest.raises(ConfigError, match="cannot be opened"):
        checks.validate(stack)
    assert why in {f.component: f.text for f in checks.probe(stack)}["experiment_tracker"]


@pytest.mark.usefixtures("factories")
def test_a_tracker_that_ends_the_process_when_it_logs_fails_neither_step_nor_run() -> None:
    seen = run_with("EndsTheProcess", asked)
    assert [n for n in seen.notes if "SystemExit: 3" in n and "the run goes on without it" in n]
    assert [n for n in seen.notes if "the experiment tracker could not be closed: SystemExit: 3" in n]
    assert seen.remarks == ["tracker: 1 of 1 values were not logged"]


@pytest.mark.usefixtures("factories")
def test_a_tracker_that_refuses_its_options_refuses_the_run() -> None:
    with pytest.raises(ConfigError, match="experiment_tracker: no such option"):
        run_with("refuses", counting, count=1)


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


def test_what_a_client_says_of_its_login_is_neither_shown_nor_recorded() -> None:
    login = "mu:mp8899xx"

    class Client(Recorder):
        def attach(self, run_id: str) -> Any:
            raise OSError(f"http://{login}@127.0.0.1:1/api does not answer")

    with pytest.raises(ConfigError, match=r"OSError: .*does not answer; check the stack's") as caught:
        attached(Client(), "run", {"tracking_uri": f"http://{login}@127.0.0.1:1"})
    assert "mp8899xx" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
