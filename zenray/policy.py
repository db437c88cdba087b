"""What becomes of a step run whose attempt has failed: another attempt, and after which pause, or its end.

Runs in: driver.
"""

import random
from dataclasses import replace
from pathlib import Path

from zenray.journal import StepState
from zenray.limits import GRACE_S
from zenray.materializer import type_name
from zenray.model import AttemptResult, Failure

LOST_WORKER_RETRIES = 3  # free of charge: the step did nothing wrong
MAX_PAUSE_S = 3600.0
_TIMED_OUT = ("zenray.errors.StepTimedOut", "builtins.TimeoutError", "builtins.OSError", "builtins.Exception")


def limit_of(state: StepState, now: float) -> float | None:
    """Return how long the attempt that is launched now may take: its timeout, or what is left until its deadline."""
    settings = state.step.settings
    left = [] if settings.timeout_s is None else [settings.timeout_s]
    if settings.deadline_s is not None:
        left.append(max(0.0, (state.begun_at or now) + settings.deadline_s - now))
    return min(left, default=None)


def explained(state: StepState, failure: Failure, now: float) -> Failure:
    """Return the failure as what it was: a process that is lost after its step's time was up was ended for that."""
    if failure.kind != "worker" or state.limit_s is None or now - state.launched_at < state.limit_s + GRACE_S:
        return failure
    message = (
        f"step {state.name!r} took longer than its limit of {state.limit_s:g} s and did not end when it was told, so "
        "its process was ended"
    )
    return replace(failure, kind="timeout", type_name="StepTimedOut", message=message, bases=_TIMED_OUT)


def with_left_log(state: StepState, result: AttemptResult) -> AttemptResult:
    """Return a result that knows of the log that a lost process has left, where that lies on this machine's disk."""
    if result.worker:
        return result
    try:
        size = Path(state.log_path).stat().st_size
    except OSError:  # it has printed nothing, or it ran elsewhere
        return result
    return replace(result, log_uri=state.log_path, log_bytes=size)


def pause_s(state: StepState, failure: Failure, now: float) -> float | None:
    """Return how long to wait before the next attempt, or None where there is none; counts lost workers.

    The pause doubles with each attempt, and is up to a quarter longer at random, so that many step runs do not come
    back to one server at the same moment.
    """
    settings = state.step.settings
    if failure.kind == "worker":
        state.lost_workers += 1
        return 0.0 if state.lost_workers <= LOST_WORKER_RETRIES else None
    tries = state.attempt - state.lost_workers
    if failure.kind not in ("user", "timeout") or tries > settings.retries:
        return None
    # A class of the main script has the script's name in a worker, unless it travelled as a pickle.
    wanted = {name for c in settings.retry_on for name in (type_name(c), f"{c.__module__}.{c.__qualname__}")}
    if not wanted.intersection(failure.bases):
        return None
    pause: float = min(settings.retry_delay_s * 2.0 ** (tries - 1), MAX_PAUSE_S) * random.uniform(1, 1.25)
    if settings.deadline_s is not None and now + pause >= (state.begun_at or now) + settings.deadline_s:
        return None
    return pause
