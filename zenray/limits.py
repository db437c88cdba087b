"""Ends a step that takes too long: first by an exception in it, then, where its process is the step's own, by force.

And lets the interrupt of one that is cancelled get through to it.

Runs in: worker.
"""

import faulthandler
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zenray.errors import StepTimedOut

GRACE_S = 5.0  # for what the step does about the exception, and for code that no exception can get into
CANCELLED_LOG_S = 3.0  # how long a step that was cancelled waits for its log to be sent
_WAKES, _WAKE_S = 10, 0.05  # a wake that comes just before the sleep does not end it

ENDED_MARK = b"Timeout ("  # what faulthandler's dump_traceback_later() writes before the stacks


def can_limit() -> bool:
    """Say whether a step that runs in this thread can be interrupted: signals reach the main thread only."""
    return threading.current_thread() is threading.main_thread()


def let_interrupts_wake() -> None:
    """Let an interrupt that another thread asks for, as Ray's does, end a ``sleep`` of this thread too.

    By itself that is a flag, which is looked at when the main thread runs Python again. A step could be what had asked
    for Python's wakeups last: call it before each.
    """
    if can_limit():
        signal.set_wakeup_fd(_alarm(), warn_on_full_buffer=False)


@functools.cache
def _alarm() -> int:
    """Return where Python writes the numbers of signals; SIGURG wakes without being a second interrupt."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.signal(signal.SIGURG, lambda *_: None)
    threading.Thread(target=_wake, args=(read_fd,), name="zenray-interrupts", daemon=True).start()
    return write_fd


def _wake(read_fd: int) -> None:
    ident = threading.main_thread().ident or 0
    while True:
        if signal.SIGINT in os.read(read_fd, 1024):
            for _ in range(_WAKES):
                signal.pthread_kill(ident, signal.SIGURG)
                time.sleep(_WAKE_S)


@dataclass(slots=True)
class Limit:
    """How long a block may last; ``is_reached`` once it was told, whatever it has made of that."""

    seconds: float | None
    is_reached: bool = False


@contextmanager
def time_limit(limit: Limit, *, step_name: str, is_own_process: bool) -> Iterator[None]:
    """Raise StepTimedOut in the block once it has lasted as long as it may; by SIGALRM, which also ends a ``sleep``.

    A block that goes on regardless for GRACE_S more ends its process where that is the step's own. A thread of C code
    does that, with the stack to stderr, as the block may hold the interpreter's lock. A block of another thread than
    the main one is not limited.
    """
    seconds = limit.seconds
    if seconds is None or not can_limit():
        yield
        return

    is_over = False

    def ring(number: int, frame: Any) -> None:
        if is_over:
            return  # it came a moment late, and must not keep what follows the block from being done
        limit.is_reached = True
        raise StepTimedOut(f"step {step_name!r} took longer than its limit of {seconds:g} s")

    if is_own_process:
        faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True, file=sys.stderr)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))  # zero would switch it off
            yield
        finally:
            is_over = True
    finally:  # also where it rang in the line above
        if is_own_process:
            faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
