"""The one writer of a run's records: takes changes at once, and commits them in batches in the background.

Runs in: driver.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from typing import Self

from zenray.errors import MetadataError, StoreError, ZenRayError
from zenray.metadata import leases
from zenray.metadata.ledger import Ledger
from zenray.metadata.records import Change
from zenray.metadata.rows import Batch, BatchWriter
from zenray.model import Manifest
from zenray.threads import Threads

LOOK_S = 1.0  # how often an idle run looks whether it is to stop, and renews its lease where that is due
_PENDING_MAX = 100_000
FLUSH_LOOK_S = 0.1  # how often who waits for the end of writing looks whether that is still wanted
_BATCH_MAX = 2_000  # calls of record() in one transaction: other processes wait for it


class LedgerWriter:
    """Writes the changes of one run, in order, as the owner that ``fence`` makes it.

    A background thread commits what has come every ``delay_s``, and renews the lease. Each transaction first checks
    the fence: once another process has taken the run over, nothing more is written. What went wrong there is raised
    by the next call of any method, as RunLostError or MetadataError, and the changes after it are not written.

    ``before_commit`` is called with the artifacts of a batch, in a thread of its own, and may take its time: the batch
    is committed when it has returned, and the lease is kept meanwhile. What it raises counts as what went wrong.
    ``on_stop`` is called once when somebody has asked for the end of the run, with who that is.
    """

    def __init__(
        self,
        ledger: Ledger,
        run_id: str,
        fence: int,
        *,
        ttl_s: float = 30.0,
        delay_s: float = 0.1,
        before_commit: Callable[[Sequence[Manifest]], object] = lambda manifests: None,
        on_stop: Callable[[str], object] = lambda by: None,
    ) -> None:
        self._database = ledger.database
        self._run_id = run_id
        self._fence = fence
        self._ttl_s = ttl_s
        self._delay_s = delay_s
        self._before_commit, self._on_stop = before_commit, on_stop
        self._is_stop_told = False
        self._look_s = min(LOOK_S, ttl_s / 3)
        self._threads = Threads(1, "zenray-packs")
        self._renew_at = 0.0  # by the monotonic clock; at once, because the lease may be old
        self._batches: BatchWriter | None = None
        self._changed = threading.Condition()
        self._pending: list[tuple[Change, ...]] = []
        self._recorded = 0  # calls of record() so far
        self._committed = 0  # of these, how many are in the database
        self._flush_to = 0  # commit without delay up to here
        self._actions: deque[tuple[int, Callable[[], object]]] = deque()  # for when so many are committed
        self._is_closing = False
        self._error: ZenRayError | None = None
        self._thread = threading.Thread(target=self._run, name=f"zenray-ledger-{run_id}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except ZenRayError:
            if exc_type is None:  # else what the block raised counts, which may be this error already
                raise

    def record(self, *changes: Change) -> None:
        """Hand over changes that must be committed together; does not wait, unless 100,000 are pending."""
        with self._changed:
            self._raise_error()
            if self._is_closing:
                raise MetadataError(f"the records of run {self._run_id!r} are closed: nothing more can be written")
            while len(self._pending) >= _PENDING_MAX:
                self._changed.wait()
                self._raise_error()
            self._pending.append(changes)
            self._recorded += 1
            if len(self._pending) == 1:
                self._changed.notify_all()

    def after_commit(self, action: Callable[[], object]) -> None:
        """Call something quick once all that was recorded before is committed, in whatever thread; else never."""
        with self._changed:
            if self._committed < self._recorded:
                self._actions.append((self._recorded, action))
                return
        action()

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        with self._changed:
            self._raise_error()

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything recorded before is committed; MetadataError after ``timeout_s``.

        Where the ledger's waiter hurries, and the database is waited for, nothing more is written.
        """
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            target = self._recorded
            self._flush_to = max(self._flush_to, target)
            self._changed.notify_all()
            while self._committed < target:
                self._raise_error()
                if self._is_broken_off():
                    self._fail(MetadataError(f"{self._missing(target)}: the wait for it was broken off"))
                elif give_up_at is not None and time.monotonic() > give_up_at:
                    raise MetadataError(
                        f"{self._missing(target)} within {timeout_s} s: the database is slow or locked; try again"
                    )
                else:
                    self._changed.wait(FLUSH_LOOK_S)  # a hurry comes without a notice
            self._raise_error()

    def _missing(self, target: int) -> str:
        count = target - self._committed
        return f"{count} records of run {self._run_id!r} were not written to {self._database.name!r}"

    def close(self) -> None:
        """Commit everything, end the lease and the thread; raises what went wrong, each time it is called."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._is_closing = True
                self._changed.notify_all()
            self._thread.join(FLUSH_LOOK_S)
            while self._thread.is_alive() and not self._is_broken_off():
                self._thread.join(FLUSH_LOOK_S)
        self.check()

    def _is_broken_off(self) -> bool:
        """Say whether somebody hurries while the database is waited for."""
        server = self._database.server
        return server.waiter.is_hurried and server in server.waiter.waits_for

    def _raise_error(self) -> None:
        if self._error is not None:
            raise type(self._error)(str(self._error)) from self._error

    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                batch = Batch()
                for changes in taken:
                    for change in changes:
                        batch.add(change)
                if batch.manifests:
                    self._prepare(batch.manifests)
                self._commit(batch)
                self._note_commit(len(taken))
            with suppress(MetadataError):  # it runs out by itself
                self._database.persist(self._end_lease, is_tried_again=False)
        except ZenRayError as exc:
            self._fail(exc)
        except Exception as exc:  # noqa: BLE001 - a thread has no caller: it must surface at the next call
            error = MetadataError(f"records of run {self._run_id!r} could not be written: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._fail(error)
        finally:
            self._database.release()

    def _note_commit(self, count: int) -> None:
        with self._changed:
            self._committed += count
            while self._actions and self._actions[0][0] <= self._committed:
                self._actions.popleft()[1]()
            self._changed.notify_all()

    def _take(self) -> list[tuple[Change, ...]] | None:
        """Wait for what is to be committed next; empty where there is nothing for a while, None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._is_closing, self._look_s)
            if self._pending:  # let more come together, unless somebody waits for it
                self._changed.wait_for(self._is_urgent, self._delay_s)
            elif self._is_closing:
                return None
            taken, self._pending = self._pending[:_BATCH_MAX], self._pending[_BATCH_MAX:]
            self._changed.notify_all()
            return taken

    def _is_urgent(self) -> bool:
        return self._is_closing or self._flush_to > self._committed or len(self._pending) >= _BATCH_MAX

    def _prepare(self, manifests: Sequence[Manifest]) -> None:
        """Wait for what comes before the commit; not where somebody hurries, as the ledger itself has all there is."""
        prepared = self._threads.submit(self._before_commit, manifests)
        waiter = self._database.server.waiter
        while not wait([prepared], timeout=self._look_s).done:
            if waiter.is_hurried:
                return
            self._commit(Batch())
        error = prepared.exception()
        if error is not None and not (waiter.is_hurried and isinstance(error, StoreError)):
            raise error

    def _commit(self, batch: Batch) -> None:
        self._database.persist(partial(self._write, batch))

    def _write(self, batch: Batch) -> None:
        now = time.monotonic()
        with self._database.transaction() as connection:
            stop_asked_by = leases.check(connection, self._run_id, self._fence)
            self._batches = self._batches or BatchWriter(self._database, connection.dialect)
            self._batches.write(connection, batch)
            if now >= self._renew_at:
                leases.renew(connection, self._run_id, ttl_s=self._ttl_s)
        if now >= self._renew_at:
            self._renew_at = now + self._ttl_s / 3
        if stop_asked_by and not self._is_stop_told:
            self._is_stop_told = True
            self._on_stop(stop_asked_by)

    def _end_lease(self) -> None:
        with self._database.transaction() as connection:
            leases.end(connection, self._run_id, self._fence)

    def _fail(self, error: ZenRayError) -> None:
        with self._changed:
            self._error = error
            self._pending.clear()
            self._changed.notify_all()
