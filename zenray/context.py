"""What a step can ask about itself while it runs, and the facts it leaves with its record.

Runs in: worker.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from zenray.errors import DefinitionError
from zenray.model import Json, Sample

MAX_SAMPLES = 1000  # of one name, for the tracker


class TrackerLink(Protocol):
    """How a step reaches the experiment tracker of its run."""

    def attach(self, run_id: str) -> Any:
        """Return the tracker's own client, set to the tracker's run of that run; slow the first time."""
        ...

    def detach(self) -> None:
        """Let go of what ``attach`` took hold of; harmless where nothing was."""
        ...


class StepContext:
    """The step that runs: its run's id, its name there, and the number of the attempt, which begins at 1.

    Where the step's function was called directly, outside of any run, ``run_id`` is empty and ``attempt`` 0.
    """

    def __init__(self, run_id: str, step_name: str, attempt: int, link: TrackerLink | None = None) -> None:
        self.run_id = run_id
        self.step_name = step_name
        self.attempt = attempt
        self.metadata: dict[str, Json] = {}
        self._link = link
        self._client: Any = None
        self._lock = threading.Lock()
        self._series: dict[str, _Series] = {}
        self._series_lock = threading.Lock()  # of its own: whoever waits for the client holds the other

    @property
    def tracker(self) -> Any:
        """The client of the stack's experiment tracker, or None without one.

        For MLflow the module ``mlflow`` with the run active, for Weights & Biases its run. The client is imported when
        first asked for. What is logged through it is the step's own business: it waits and fails as the client does.
        """
        with self._lock:
            if self._client is None and self._link is not None:
                self._client = self._link.attach(self.run_id)
            return self._client

    @property
    def series(self) -> dict[str, list[Sample]]:
        """The numbers that were logged more than once under a name, for the tracker; empty without one."""
        return {key: s.samples() for key, s in self._series.items() if s.count > 1}

    def keep(self, values: Mapping[str, Json]) -> None:
        """Keep facts with the record of this step run; see ``zenray.log_metadata``."""
        self.metadata.update(values)
        if self._link is not None:
            with self._series_lock:
                for key, value in values.items():
                    if isinstance(value, int | float):
                        self._series.setdefault(key, _Series()).add(value)

    def close(self) -> None:
        """Let go of the tracker where the step asked for it."""
        if self._client is not None and self._link is not None:
            self._client = None
            self._link.detach()

    def __repr__(self) -> str:
        return f"<step {self.step_name!r} of run {self.run_id!r}, attempt {self.attempt}>"


class _Series:
    """Numbers in the order they came; of a long series every other one goes, again and again."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[Sample] = []
        self._last: Sample = (0, 0, 0.0)
        self._stride = 1

    def add(self, value: float) -> None:
        """Add the next number."""
        self._last = (self.count, value, time.time())
        if self.count % self._stride == 0:
            self._kept.append(self._last)
        self.count += 1
        if len(self._kept) > MAX_SAMPLES:
            self._kept = self._kept[::2]
            self._stride *= 2

    def samples(self) -> list[Sample]:
        """Return what is kept, and the last one."""
        return [*self._kept, *([self._last] if self._kept[-1] != self._last else [])]


_current: ContextVar[StepContext | None] = ContextVar("_current", default=None)
_running: list[StepContext] = []  # of this process: for threads that a step starts, which have contexts of their own


@contextmanager
def entered(context: StepContext) -> Iterator[None]:
    """Make a context the one that ``zenray.context()`` returns here."""
    token = _current.set(context)
    _running.append(context)
    try:
        yield
    finally:
        _running.remove(context)
        _current.reset(token)


@contextmanager
def called_directly(step_name: str) -> Iterator[None]:
    """Give a step that is called as a function a context, so that it can be tested; in a step that step's stays."""
    if _found() is not None:
        yield
        return
    with entered(StepContext("", step_name, 0)):
        yield


def is_in_step() -> bool:
    """Say whether a step is running here, or, seen from a thread of unknown origin, in this process."""
    return _current.get() is not None or bool(_running)


def _found() -> StepContext | None:
    return _current.get() or (_running[0] if len(_running) == 1 else None)


def enclosing_runs() -> frozenset[str]:
    """Return the runs whose steps are being executed in this process: what is started now, they may wait for."""
    return frozenset(c.run_id for c in _running if c.run_id)


def context() -> StepContext:
    """Return the context of the step this is called in, at any depth and in threads that it started.

    Raises DefinitionError outside of a step.
    """
    found = _found()
    if found is None:
        raise DefinitionError("zenray.context() was called outside of a step; call it in a function marked @step")
    return found


def log_metadata(**values: Any) -> None:
    """Keep facts with the record of this step run: ``zenray.log_metadata(loss=0.3, note="from a checkpoint")``.

    Values are what JSON can hold: bool, int, float, str, None, lists and dicts with text keys; numbers of numpy and
    torch count as numbers. A key that is logged again is replaced. What counts is what the attempt that succeeded has
    logged. Metadata is no part of a cache key: a step that is found in the cache logs nothing. When the step has ended,
    its numbers go to the experiment tracker too, as ``step.key``: all that were logged under a key, in order, and of
    more than about a thousand evenly chosen ones.

    Raises DefinitionError for any other value, and outside of a step.
    """
    found = _found()
    if found is None:
        raise DefinitionError(
            f"zenray.log_metadata({', '.join(values)}) was called outside of a step; call it in a function marked @step"
        )
    found.keep({key: _json(value, key) for key, value in values.items()})


def _json(value: Any, key: str, depth: int = 0) -> Json:
    """Return a copy of a value in JSON's types."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth < 20:
        if isinstance(value, list | tuple):
            return [_json(v, f"{key}[{i}]", depth + 1) for i, v in enumerate(value)]
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return {k: _json(v, f"{key}.{k}", depth + 1) for k, v in value.items()}
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            return _json(value.item(), key, 20)
    for plain in (bool, int, float, str):  # an enum's member, say
        if isinstance(value, plain):
            return plain(value)
    raise DefinitionError(
        f"log_metadata: {key!r} is of type {type(value).__name__!r}, which JSON cannot hold; "
        "log numbers, texts, lists or dicts of them, and return anything larger as an output of the step"
    )
