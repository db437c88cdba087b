"""PostgreSQL connections that notice when the server has fallen silent.

Runs in: driver.

psycopg waits for an answer without limit. Neither ``statement_timeout`` nor ``tcp_user_timeout`` helps where a
router or proxy keeps the connection open and forwards nothing: so the wait itself has an end.
"""

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from psycopg import Connection, OperationalError, waiting

T = TypeVar("T")


def connector(silence_s: float) -> Callable[..., Connection[Any]]:
    """Return a ``connect`` whose connections break where nothing comes, or can be sent, for so many seconds."""

    class ImpatientConnection(Connection[Any]):
        def wait(self, gen: Generator[Any, Any, T], interval: float = 0.1, *args: Any, **options: Any) -> T:
            try:
                return waiting.wait(_limited(gen, silence_s), self.pgconn.socket, interval, *args, **options)
            except (_SilentServer, KeyboardInterrupt, SystemExit):
                # Its state is unknown, and the next wait would be as long. psycopg's own way with Ctrl-C is to ask the
                # server for 5 s to cancel the query: for one that is away that is too long.
                self.close()
                raise

    return ImpatientConnection.connect


class _SilentServer(OperationalError):
    """Raised in place of waiting for ever."""


def _limited(waiting: Generator[Any, Any, T], silence_s: float) -> Generator[Any, Any, T]:
    """Pass on what psycopg waits for; it is sent 0, every 0.1 s (not yet in 3.2.0), while the socket is not ready."""
    give_up_at = time.monotonic() + silence_s
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if ready:
                give_up_at = time.monotonic() + silence_s
            elif time.monotonic() > give_up_at:
                raise _SilentServer(f"the server has not answered for {silence_s:g} s")
            wanted = waiting.send(ready)
    except StopIteration as end:
        value: T = end.value
        return value
