"""Threads for work that waits for servers: the end of the process does not wait for them.

Runs in: anywhere.
"""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Up to so many daemon threads, started as they are needed.

    The standard library's pool joins its threads when the interpreter ends. One that is in the middle of a request to a
    server that says nothing would keep a run that was cancelled from ending for minutes.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._started = 0
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[Any] = SimpleQueue()
        weakref.finalize(self, _end, self._work, count).atexit = False

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Call a function in one of the threads, as soon as one is free."""
        future: Future[T] = Future()
        self._work.put((future, function, arguments))
        with self._lock:
            if not self._idle.acquire(blocking=False) and self._started < self._count:
                name = f"{self._name}_{self._started}"
                self._started += 1
                threading.Thread(target=_run, args=(self._work, self._idle), name=name, daemon=True).start()
        return future


def _run(work: "SimpleQueue[Any]", idle: threading.Semaphore) -> None:
    while True:
        try:
            item = work.get_nowait()
        except Empty:
            idle.release()
            item = work.get()
        if item is None:
            return
        future, function, arguments = item
        if future.set_running_or_notify_cancel():
            try:
                result = function(*arguments)
            except BaseException as exc:  # noqa: BLE001 - whoever waits for the result gets it
                future.set_exception(exc)
            else:
                future.set_result(result)
                del result
        del item, future, function, arguments  # what they hold may be large, and the next work may be long in coming


def _end(work: "SimpleQueue[Any]", count: int) -> None:
    for _ in range(count):
        work.put(None)
