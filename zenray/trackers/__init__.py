"""Experiment trackers: where the parameters, numbers and status of each run are logged, besides ZenRay's own records.

Runs in: anywhere.

A tracker is opened from the options of a stack's ``experiment_tracker``: ``flavor`` is "mlflow", "wandb", or the name
of an entry point in the group ``zenray.trackers``, whose object takes the options and returns a ``Tracker``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn, Protocol, runtime_checkable

from zenray.errors import ConfigError, ZenRayError, suggest
from zenray.masking import masked_text, secrets_of, without
from zenray.model import Json

ENTRY_POINT_GROUP = "zenray.trackers"
BUILT_IN = {"mlflow": "zenray.trackers.mlflow:MlflowTracker", "wandb": "zenray.trackers.wandb:WandbTracker"}


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run when it begins; tags name the pipeline, stack, user and git revision."""

    run_id: str
    pipeline: str
    parameters: Mapping[str, Json] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """A number under a name, ``step.output`` or ``step.key``.

    ``index`` counts from 0 what a step logged under the same key; ``logged_at`` is in seconds since the epoch.
    """

    name: str
    value: float
    index: int = 0
    logged_at: float = 0.0


@runtime_checkable
class Tracker(Protocol):
    """Logs one run; each run opens its own.

    ``start``, ``log`` and ``end`` are called in the driver, by one thread in the background, and may block or raise:
    the run does not wait for them. A call that raised is made again later. ``attach`` and ``detach`` are called around
    a step that asks for the tracker, in the worker, where the tracker was opened anew from the same options.
    """

    def start(self, run: TrackedRun) -> None:
        """Begin a run of the tracker."""
        ...

    def log(self, points: Sequence[Point]) -> None:
        """Log numbers; those of a series come in order, and no index of a name comes twice unless the call raised."""
        ...

    def end(self, status: str) -> None:
        """End the tracker's run: "succeeded", "failed" or "cancelled"."""
        ...

    def check(self) -> str:
        """Reach what the tracker logs to, for ``zenray stack check``, and say what answers there."""
        ...

    def attach(self, run_id: str) -> Any:
        """Return the native client for a step of a run that the driver has started, or is about to."""
        ...

    def detach(self) -> None:
        """Let go of what ``attach`` returned; the tracker's run goes on."""
        ...


Ended = Callable[[str], tuple[str, float] | None]  # of a run id: status and end (epoch s), None where it is not over


@runtime_checkable
class Sweeper(Protocol):
    """A tracker that can end runs it was not told the end of: their process was killed, or it was away itself."""

    def sweep(self, ended: Ended) -> int:
        """End each of the tracker's runs that goes on there and of which ``ended`` knows the end; returns how many."""
        ...


def open_tracker(options: Mapping[str, Any]) -> Tracker:
    """Return the tracker that options describe, without importing its client or reaching its server.

    Options are those of the stack's component and ``pipeline``, the name of the pipeline, which the runner adds.

    Raises ConfigError for an unknown flavor, an option that it does not have, and a package that is missing.
    """
    flavor = options.get("flavor")
    known = {name: EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in BUILT_IN.items()}
    known |= {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if not isinstance(flavor, str) or flavor not in known:
        raise ConfigError(
            f"experiment_tracker: unknown flavor {flavor!r}; {suggest(str(flavor), known)}; a package adds one through "
            f"an entry point of the group {ENTRY_POINT_GROUP!r}"
        )
    point = known[flavor]
    try:
        made = point.load()(options)
    except ZenRayError:
        raise
    except (Exception, SystemExit) as exc:
        text = masked_text(without(str(exc), secrets_of(options)))
        raise _broken(point, f"{type(exc).__name__}: {text}") from exc
    if not isinstance(made, Tracker):
        raise _broken(point, f"it gave an object of type {type(made).__name__!r}, which is no zenray.trackers.Tracker")
    return made


class _BrokenTracker(ConfigError):
    """Raised when it is not the stack that is wrong, but the package behind the flavor."""


def _broken(point: EntryPoint, why: str) -> _BrokenTracker:
    return _BrokenTracker(
        f"experiment_tracker: flavor {point.name!r} ({point.value}) cannot be opened: {why}; correct its options, or "
        "repair the package that offers it"
    )


def open_for_run(options: Mapping[str, Any]) -> Tracker:
    """Return the tracker that options describe; one whose package fails, fails when it is used, as a dead server does.

    Raises ConfigError for what is wrong in the stack, as ``open_tracker`` does.
    """
    try:
        return open_tracker(options)
    except _BrokenTracker as exc:
        return _Unusable(exc)


class _Unusable:
    """A tracker that fails in every call: a run warns of it and goes on."""

    def __init__(self, error: ConfigError) -> None:
        self._error = error

    def _fail(self, *_: object) -> NoReturn:
        raise self._error

    start = log = end = check = attach = detach = _fail


def attached(tracker: Tracker, run_id: str, options: Mapping[str, Any]) -> Any:
    """Return the native client for a step; what its own errors show of the login ends here.

    Raises ConfigError where it cannot be reached, without the client's exception, which may name a URL with a password
    and would be shown, stored and recorded with the step.
    """
    try:
        return tracker.attach(run_id)
    except ZenRayError:
        raise
    except Exception as exc:  # noqa: BLE001 - a foreign client can raise anything
        text = masked_text(without(str(exc), secrets_of(options)))
        error = ConfigError(
            f"the experiment tracker does not let the step in: {type(exc).__name__}: {text[:1000]}; check the stack's "
            "'experiment_tracker' with `zenray stack check`"
        )
    raise error


def check_options(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse options that a flavor does not have."""
    for name in options:
        if name not in (*known, "flavor", "pipeline"):
            raise ConfigError(
                f"experiment_tracker: flavor {options['flavor']!r} has no option {name!r}; {suggest(name, known)}"
            )


class WorkerTracker:
    """A worker's way to the tracker: opened when a step first asks for it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._tracker: Tracker | None = None

    def attach(self, run_id: str) -> Any:
        """Return the native client, set to the tracker's run."""
        if self._tracker is None:
            self._tracker = open_tracker(self._options)
        return attached(self._tracker, run_id, self._options)

    def detach(self) -> None:
        """Let go of the client."""
        if self._tracker is not None:
            self._tracker.detach()
