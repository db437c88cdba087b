"""What becomes of a step run whose attempt has failed: another attempt, and after which pause, or its end.

Runs in: driver.
"""

import random
from dataclasses import replace
from pathlib import Path

from zenray.journal import StepState
from zenray.limits import ENDED_MARK, GRACE_S
from zenray.materializer import type_name
from zenray.model import AttemptResult, Failure

LOST_WORKER_RETRIES = 3  # free of charge: the step did nothing wrong
MAX_PAUSE_S = 3600.0
_TAIL_BYTES = 1 << 18  # of a log: the stacks of many threads
_TIMED_OUT = ("zenray.errors.StepTimedOut", "builtins.TimeoutError", "builtins.OSError", "builtins.Exception")


def deadline_at(state: StepState) -> float | None:
    """Return when the last attempt has to end, in epoch seconds."""
    settings = state.step.settings
    if settings.deadline_s is None or state.begun_at is None:
        return None
    return state.begun_at + settings.deadline_s


def explained(state: StepState, failure: Failure, now: float) -> Failure:
    """Return the failure as what it was: a process may have crashed because its step's time was up."""
    is_crash = failure.type_name == "WorkerCrashedError" and state.step.settings.is_limited
    if not is_crash or not _was_ended(state, now):
        return failure
    message = (
        f"step {state.name!r} took longer than its timeout or deadline and did not end when it was told, so its "
        "process was ended"
    )
    return replace(failure, kind="timeout", type_name="StepTimedOut", message=message, bases=_TIMED_OUT)


def _was_ended(state: StepState, now: float) -> bool:
    """Look for what the end by force leaves in the step's log; where that is elsewhere, only the time tells."""
    path = Path(state.log_path)
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return ENDED_MARK in log.read()
    except OSError:
        timeout_s = state.step.settings.timeout_s
        ends = (None if timeout_s is None else state.launched_at + timeout_s, deadline_at(state))
        return now >= min(end for end in ends if end is not None) + GRACE_S


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
    if not _may_retry(state, failure):
        return None
    tries = state.attempt - state.lost_workers
    pause: float = min(settings.retry_delay_s * 2.0 ** (tries - 1), MAX_PAUSE_S) * random.uniform(1, 1.25)
    until = deadline_at(state)
    return None if until is not None and now + pause >= until else pause


def final(state: StepState, failure: Failure) -> Failure:
    """Return the failure that a step run ends with, with why there is no further attempt where that is not plain."""
    settings, why = state.step.settings, ""
    if failure.kind == "worker":
        why = f" ({state.lost_workers} times)"
    elif settings.deadline_s is not None and _may_retry(state, failure):
        left = settings.retries - (state.attempt - state.lost_workers) + 1
        why = f" (no further attempt, of {left} that are left: the deadline of {settings.deadline_s:g} s is reached)"
    return replace(failure, message=failure.message + why)


def _may_retry(state: StepState, failure: Failure) -> bool:
    """Say whether the retries that the step asks for allow another attempt."""
    settings = state.step.settings
    if failure.kind not in ("user", "timeout") or state.attempt - state.lost_workers > settings.retries:
        return False
    # A class of the main script has the script's name in a worker, unless it travelled as a pickle.
    wanted = {name for c in settings.retry_on for name in (type_name(c), f"{c.__module__}.{c.__qualname__}")}
    return bool(wanted.intersection(failure.bases))
