"""Ends a run that somebody else, in any process, wants to end: as Ctrl-C would.

Runs in: driver.
"""

import ctypes
import signal
import threading
import time
from contextlib import suppress

from zenray.engine import Coordinator
from zenray.errors import RunCancelled


class StopRequest:
    """Is called with who wants the run of this thread to stop, in another thread, at any time."""

    def __init__(self) -> None:
        self._thread = threading.current_thread()
        self._lock = threading.Lock()
        self._coordinator: Coordinator | None = None
        self._is_inline = False
        self._by = ""

    def __call__(self, by: str) -> None:
        """Stop the run now, or when it begins."""
        with self._lock:
            self._by = by
            if self._coordinator is not None:
                self._stop(self._coordinator)

    def reaches(self, coordinator: Coordinator, *, is_inline: bool) -> None:
        """Say what a request has to stop; with ``is_inline`` steps run in this thread, and have to be interrupted."""
        with self._lock:
            self._coordinator, self._is_inline = coordinator, is_inline
            if self._by:
                coordinator.stop(self._reason)

    def over(self) -> None:
        """Let later requests stop nothing: the run is about to be closed; an interrupt that was just sent ends here."""
        with suppress(KeyboardInterrupt):
            with self._lock:
                self._coordinator = None
            time.sleep(0)  # lets an exception for this thread come up

    def explained(self, error: RunCancelled) -> RunCancelled:
        """Return the error a run ends with, with who stopped it where that was by request."""
        return RunCancelled(f"{error}: {self._reason}") if self._by else error

    @property
    def _reason(self) -> str:
        return f"{self._by} stopped it with `zenray run stop`"

    def _stop(self, coordinator: Coordinator) -> None:
        if not coordinator.stop(self._reason) or not self._is_inline:
            return
        ident = self._thread.ident or 0
        if self._thread is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.pthread_kill(ident, signal.SIGINT)  # interrupts a sleep too
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))
