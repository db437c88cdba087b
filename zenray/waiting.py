"""Waiting for a server that has gone away: for how long, how often it is asked again, and what people see meanwhile.

Runs in: anywhere.
"""

import random
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from zenray.errors import ConfigError
from zenray.units import duration_s, seconds_text

RETRY_S = 1800.0  # how long a server that was reached before may be away: a stack's ``retry_s``
FIRST_S = 4.0  # and one that was never reached: most likely its address is wrong
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0
SOON_S = 1.0  # a pause that is left once another call of the server has been answered
AWAY_S = 3.0  # a fault that lasts so long is told
SILENT_S = 10.0  # and an answer that takes so long
HURRIED_S = 1.5  # a wait for those who do not want to wait
OFTEN_S = 60.0  # told again at least so often
TURN_S = 0.25
WHY = 100  # characters of the reason


class Waiter:
    """Who waits for servers: is told of it now and then, and can ask to wait no more."""

    def __init__(self, tell: Callable[[str], object] | None = None) -> None:
        self.tell = tell or _to_stderr
        self.is_hurried = False
        self.waits_for: set[Server] = set()  # those that it was told of

    def hurry(self) -> None:
        """Let whatever fails from now on be given up; safe in a signal handler."""
        self.is_hurried = True


def _to_stderr(text: str) -> None:
    """Tell whoever runs a command; in a step this is its log."""
    with suppress(OSError, ValueError):  # closed
        print(f"zenray: {text}", file=sys.stderr, flush=True)


def retry_s_of(value: Any, component: str) -> float:
    """Return a stack's option ``retry_s``; ConfigError where it is no duration."""
    found = duration_s(value)
    if found is None:
        raise ConfigError(f"{component}: 'retry_s' must be a number of seconds, such as 1800, got {value!r}")
    return found


class Server:
    """A server that may go away while any number of threads call it; the waiter is told once for all of them.

    ``name`` is how messages call it, such as ``the artifact store 's3://bucket'``. One that was never reached, by
    whomever, is given up after seconds. While nobody waits long this costs some microseconds a call, and a thread that
    ends when no call is under way.
    """

    def __init__(
        self, name: str, *, retry_s: float = RETRY_S, waiter: Waiter | None = None, is_reached: bool = False
    ) -> None:
        self.name, self.retry_s, self.is_reached = name, retry_s, is_reached
        self.waiter = waiter or Waiter()
        self.answers = 0
        self._calls: set[Call] = set()
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()
        self._told_at = 0.0  # when it was told last, while it is
        self._since = 0.0  # when the wait began that was told

    @contextmanager
    def call(self) -> "Iterator[Call]":
        """Watch over the block, which asks the server for one thing, again where ``Call.pause`` says so."""
        call = Call(self)
        with self._lock:
            self._calls.add(call)
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="zenray-waiting", daemon=True)
                self._watcher.start()
        try:
            yield call
        finally:
            with self._lock:
                self._calls.discard(call)
                self._end_wait(time.monotonic())  # it was given up, which the error tells

    def answered(self, call: "Call") -> None:
        """Note that the server is there; see ``Call.answer``."""
        now = time.monotonic()
        with self._lock:
            self.is_reached = True
            self.answers += 1
            call.began_at, call.why = now, ""
            is_over = self._end_wait(now)
        if is_over:
            self.waiter.tell(f"{self.name} answers again, after {seconds_text(now - self._since)}")

    def _end_wait(self, now: float) -> bool:
        """Say whether the wait that was told is over, and if so, note it."""
        if self not in self.waiter.waits_for or self._late(now):
            return False
        self.waiter.waits_for.discard(self)
        return True

    def _late(self, now: float) -> "list[Call]":
        """Return the calls that people should know of."""
        silent_s = HURRIED_S if self.waiter.is_hurried else SILENT_S
        return [c for c in self._calls if now - c.began_at > (AWAY_S if c.why else silent_s)]

    def _watch(self) -> None:
        while True:
            time.sleep(TURN_S)
            now = time.monotonic()
            with self._lock:
                if not self._calls:
                    self._watcher = None
                    return
                late = self._late(now)
                if not late:
                    continue
                oldest = min(late, key=lambda c: c.began_at)
                age = now - oldest.began_at
                if self in self.waiter.waits_for and now - self._told_at < min(age / 2, OFTEN_S):
                    continue
                self.waiter.waits_for.add(self)
                self._told_at, self._since = now, oldest.began_at
            self.waiter.tell(oldest.text(age))


class Call:
    """One call of a server, with its tries."""

    def __init__(self, server: Server) -> None:
        self.began_at = time.monotonic()
        self.why = ""  # its last try failed; empty while none has
        self._server = server
        self._failed_at = 0.0
        self._pause_s = FIRST_PAUSE_S

    @property
    def tried(self) -> str:
        """How long it was tried, for an error's message: ``for 30 min``, or empty where it was once."""
        return f" for {seconds_text(time.monotonic() - self._failed_at)}" if self._failed_at else ""

    def pause(self, why: str) -> bool:
        """Wait for another try; False where the time is up, which begins with the first failure, or somebody hurries.

        Pauses double from 0.05 s to 5 s, less up to half of it at random, so that many clients come apart.
        """
        now = time.monotonic()
        self._failed_at = self._failed_at or now
        self.why = textwrap.shorten(why, WHY) or "it failed"
        pause_s = self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        server = self._server
        if now + pause_s > (self._failed_at + server.retry_s if server.is_reached else self.began_at + FIRST_S):
            return False
        until, seen = now + pause_s, server.answers
        while (left_s := until - time.monotonic()) > 0 and not server.waiter.is_hurried:
            time.sleep(min(left_s, TURN_S))
            if server.answers != seen:  # somebody else's call has come through
                until = min(until, now + SOON_S)
        return not server.waiter.is_hurried

    def answer(self) -> None:
        """Note that the server has answered, if only with a refusal."""
        self._server.answered(self)

    def text(self, age_s: float) -> str:
        """Return what people are told after so many seconds."""
        if not self.why:
            return f"waiting for {self._server.name}, no answer yet: {seconds_text(age_s)}"
        limit = seconds_text(self._server.retry_s if self._server.is_reached else FIRST_S)
        return f"waiting for {self._server.name} ({self.why}): {seconds_text(age_s)} of at most {limit}"
