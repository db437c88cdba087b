"""Feeds a tracker from a thread of its own: one that is slow or dead neither delays a run nor fails it.

Runs in: driver.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from zenray import artifacts
from zenray.errors import ZenRayError
from zenray.journal import Observer, StepState
from zenray.masking import masked_text
from zenray.model import Manifest, Sample, Status
from zenray.store import Store
from zenray.trackers import Ended, Point, Sweeper, TrackedRun, Tracker, attached

MAX_WAITING, MAX_WAITING_RUNS = 100_000, 10_000  # points, and step runs whose numbers are not read yet
MAX_BATCH = 500
MAX_PAUSE_S = 30.0  # between two tries while the tracker fails
GRACE_S, FIRST_GRACE_S, MAX_WAIT_S = 5.0, 15.0, 30.0  # at the end of a run: for a call, for the first, in all
NUMBERS = ("builtins.int", "builtins.float", "builtins.bool")


@dataclass(frozen=True, slots=True)
class _Finished:
    """A step run with numbers; they are read in the reporter's thread."""

    outputs: Mapping[str, Manifest]
    logged: Mapping[str, Sequence[Sample]]
    ended_at: float


class Reporter:
    """Logs one run: an observer that the engine calls, and the link to the tracker of steps in this process."""

    def __init__(
        self, tracker: Tracker, run: TrackedRun, *, store: Store, observer: Observer, ended: Ended | None = None
    ) -> None:
        self._tracker, self._run, self._ended = tracker, run, ended
        self._store, self._observer = store, observer
        self._condition = threading.Condition()
        self._news: deque[_Finished] = deque()
        self._pending: deque[Point] = deque()
        self._total = self._logged = self._calls = 0
        self._status: Status | None = None  # how the run ended
        self._is_started = self._has_warned = self._is_over = self._is_closed = False
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"zenray-tracker-{run.run_id}", daemon=True)
        self._thread.start()

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def on_step(self, state: StepState) -> None:
        """Take the numbers of a step run that has ended well; cheap, for it happens under the engine's lock."""
        self._observer.on_step(state)
        if not state.status.has_outputs:
            return
        names = (f"{state.name}.{o.name}" for o in state.step.outputs)
        outputs = {n: m for n, m in zip(names, state.outputs, strict=True) if m.type_name in NUMBERS}
        ended_at = state.ended_at or time.time()
        logged = _logged(state, ended_at)
        for name in outputs:  # where an output is called like a key of the metadata, the output counts
            logged.pop(name, None)
        if not outputs and not logged:
            return
        with self._condition:
            self._total += len(outputs) + sum(map(len, logged.values()))
            if len(self._news) < MAX_WAITING_RUNS:
                self._news.append(_Finished(outputs, logged, ended_at))
                self._condition.notify_all()

    def on_note(self, text: str) -> None:
        """Pass a warning on."""
        self._observer.on_note(text)

    # -- a step's thread, with the inline launcher ------------------------------------------------------------------

    def attach(self, run_id: str) -> Any:
        """Wait until the tracker's run has begun and return the native client."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_started or self._has_warned, timeout=60)
            if not self._is_started:
                raise ZenRayError("the experiment tracker of this run cannot be reached; see the run's warning")
        return attached(self._tracker, run_id, {})

    def detach(self) -> None:
        """Let go of the client."""
        self._tracker.detach()

    # -- the end of the run -----------------------------------------------------------------------------------------

    def close(self, status: Status, *, grace_s: float = GRACE_S, first_grace_s: float = FIRST_GRACE_S) -> str:
        """Give the tracker a moment for what is left; returns a line for the summary, empty where all was logged.

        Waits as long as the tracker gets on, and ``grace_s`` for one call; the first, which imports the client, has
        had ``first_grace_s`` since the run began.
        """
        until = time.monotonic() + MAX_WAIT_S
        first_grace_s -= time.monotonic() - self._began
        with self._condition:
            self._status = status
            self._condition.notify_all()
        while self._thread.is_alive() and time.monotonic() < until:
            before = self._calls
            self._thread.join(grace_s if self._is_started or self._has_warned else max(grace_s, first_grace_s))
            if self._calls == before:
                break
        if not self._is_over:
            self._warn("it does not answer")
        self._is_closed = True
        missing = self._total - self._logged
        return f"tracker: {missing:,} of {self._total:,} values were not logged" if missing else ""

    # -- the reporter's thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause_s = 0.0
        while not self._is_closed:
            status = None
            try:
                status = self._wait(pause_s)
                self._send(status)
                pause_s = 0.0
            except BaseException as exc:  # noqa: BLE001 - a foreign client may even try to end the process
                self._warn(_why(exc))
                pause_s = min(MAX_PAUSE_S, 2 * pause_s or 1.0)
            if status is not None:
                return

    def _wait(self, pause_s: float) -> Status | None:
        """Wait for news, or after a failure for a while, and take them in; returns how the run ended, once it has."""
        with self._condition:
            if pause_s:
                self._condition.wait_for(lambda: self._status is not None, timeout=pause_s)
            elif self._is_started and not self._pending:
                self._condition.wait_for(lambda: self._news or self._status is not None)
            news = [self._news.popleft() for _ in range(len(self._news))]
            status = self._status
        for finished in news:
            self._pending.extend(islice(_points(finished, self._store), max(0, MAX_WAITING - len(self._pending))))
        return status

    def _send(self, status: Status | None) -> None:
        if not self._is_started:
            self._tracker.start(self._run)
            with self._condition:
                self._is_started = True
                self._calls += 1
                self._condition.notify_all()
        while self._pending and not self._is_closed:
            some = list(islice(self._pending, MAX_BATCH))
            self._tracker.log(some)
            self._calls += 1
            self._logged += len(some)
            for _ in some:
                self._pending.popleft()
        if status is not None and not self._is_closed:
            self._tracker.end(str(status))
            self._calls += 1
            self._is_over = True
            self._sweep()

    def _sweep(self) -> None:
        """End the tracker's other runs that are over: their process, or the tracker, was away when they ended."""
        try:
            if self._ended is not None and isinstance(self._tracker, Sweeper):
                self._tracker.sweep(self._ended)
        except BaseException as exc:  # noqa: BLE001 - a foreign client may even try to end the process
            if not self._is_closed:
                self._observer.on_note(f"the experiment tracker could not end runs that are over: {_why(exc)}")

    def _warn(self, why: str) -> None:
        with self._condition:
            if self._has_warned or self._is_closed:
                return
            self._has_warned = True
            self._condition.notify_all()
        self._observer.on_note(f"the experiment tracker fails, and the run goes on without it: {why}")


def _why(exc: BaseException) -> str:
    if isinstance(exc, ZenRayError):
        return str(exc)
    return f"{type(exc).__name__}: {masked_text(str(exc).strip().partition(chr(10))[0])[:200]}"


def _logged(state: StepState, ended_at: float) -> dict[str, Sequence[Sample]]:
    """Return the numbers that a step run logged: one, or a series."""
    found: dict[str, Sequence[Sample]] = {}
    for key, value in state.metadata.items():
        if key in state.series:
            found[f"{state.name}.{key}"] = state.series[key]
        elif isinstance(value, int | float):
            found[f"{state.name}.{key}"] = ((0, value, ended_at),)
    return found


def _points(finished: _Finished, store: Store) -> Iterator[Point]:
    """Give a step run's numbers; what no float can hold, and an artifact that cannot be read, counts as not logged."""
    for name, samples in finished.logged.items():
        for index, value, logged_at in samples:
            with suppress(OverflowError):
                yield Point(name, float(value), index, logged_at)
    for name, manifest in finished.outputs.items():
        with suppress(OverflowError, ZenRayError):
            yield Point(name, float(artifacts.load(manifest, store)), 0, finished.ended_at)
