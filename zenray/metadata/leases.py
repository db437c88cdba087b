"""Who works on a run: a lease that must be renewed, and a fence, a number that grows with every owner.

Runs in: driver.

Every write of an owner carries its fence. Once another process has taken the run over the number in the
database is higher, and the write is refused, however late it comes. When a lease ends, the database's clock says.
"""

from typing import Any

from sqlalchemy import Connection, delete, select, update

from zenray.errors import NotFoundError, RunLostError
from zenray.metadata.clock import now_s
from zenray.metadata.database import Database
from zenray.metadata.rows import to_json
from zenray.metadata.schema import attempts, claims, runs, step_runs
from zenray.model import Status

UNFINISHED = (Status.WAITING.value, Status.RUNNING.value)
_CURRENT = select(
    runs.c.fence, runs.c.owner, runs.c.status, runs.c.stop_asked_by, runs.c.lease_until, now_s().label("now")
).with_for_update()


def acquire(database: Database, run_id: str, owner: str, *, ttl_s: float, is_owner_dead: bool = False) -> int:
    """Become the owner of a run and return the new fence; see ``Ledger.acquire_lease``."""

    def take(connection: Connection) -> int:
        row = _current(connection, run_id)
        left_s = (row.lease_until or 0.0) - row.now
        if row.status in UNFINISHED and left_s > 0 and row.owner != owner and not is_owner_dead:
            raise RunLostError(
                f"run {run_id!r} is being worked on by {row.owner!r}, whose lease lasts {left_s:.0f} s more: "
                "wait for it to end"
            )
        fence = int(row.fence) + 1
        taken = {"fence": fence, "owner": owner, "lease_until": now_s() + ttl_s, "stop_asked_by": ""}
        connection.execute(update(runs).where(runs.c.run_id == run_id).values(taken))
        return fence

    return database.write(take)


def check(connection: Connection, run_id: str, fence: int) -> str:
    """Lock the run's row and raise RunLostError unless its fence is still ``fence``; return who wants it to stop."""
    row = connection.execute(_CURRENT.where(runs.c.run_id == run_id)).one_or_none()
    if row is None:
        raise RunLostError(f"run {run_id!r} has been deleted while it was being worked on; start a new one")
    if row.fence != fence:
        taken = f"has been taken over by {row.owner!r}" if row.owner else "was given up for lost by another process"
        raise RunLostError(
            f"run {run_id!r} {taken} (fence {row.fence}, ours is {fence}): nothing more was written from here; "
            f"see `zenray run show {run_id}`"
        )
    return str(row.stop_asked_by)


def ask_to_stop(database: Database, run_id: str, by: str) -> bool:
    """Let the owner of a run know that it is to end; see ``Ledger.ask_to_stop``."""

    def ask(connection: Connection) -> bool:
        row = _current(connection, run_id)
        if row.status not in UNFINISHED:
            return False
        connection.execute(update(runs).where(runs.c.run_id == run_id), {"stop_asked_by": row.stop_asked_by or by})
        return True

    return database.write(ask)


def renew(connection: Connection, run_id: str, *, ttl_s: float) -> None:
    """Move the end of the lease, inside a transaction that has checked the fence; a finished run has none."""
    statement = update(runs).where(runs.c.run_id == run_id, runs.c.status.in_(UNFINISHED))
    connection.execute(statement.values(lease_until=now_s() + ttl_s))


def end(connection: Connection, run_id: str, fence: int) -> None:
    """Let the lease end now, if it is still ours."""
    statement = update(runs).where(runs.c.run_id == run_id, runs.c.fence == fence)
    connection.execute(statement.values(lease_until=now_s()))


def mark_lost(database: Database, run_id: str, *, is_owner_dead: bool = False) -> bool:
    """Fail a run that nobody works on; see ``Ledger.mark_lost``."""

    def fail(connection: Connection) -> bool:
        row = _current(connection, run_id)
        is_abandoned = is_owner_dead or (row.lease_until is not None and row.lease_until <= row.now)
        if row.status not in UNFINISHED or not is_abandoned:
            return False
        message = f"the process that worked on the run ({row.owner or 'unknown'}) ended without finishing it"
        error = to_json({"kind": "driver lost", "type": "RunLostError", "message": message, "traceback": ""})
        failed = {"status": Status.FAILED.value, "ended_at": row.now, "error": error}
        running = Status.RUNNING.value
        released = {"fence": row.fence + 1, "owner": "", "lease_until": None}
        connection.execute(
            update(runs).where(runs.c.run_id == run_id),
            failed | released,
        )
        for table in (step_runs, attempts):
            connection.execute(update(table).where(table.c.run_id == run_id, table.c.status == running), failed)
        connection.execute(
            update(step_runs).where(step_runs.c.run_id == run_id, step_runs.c.status == Status.WAITING.value),
            {"status": Status.SKIPPED.value, "reason": "driver lost"},
        )
        connection.execute(
            update(attempts).where(attempts.c.run_id == run_id, attempts.c.status == Status.WAITING.value), failed
        )
        connection.execute(delete(claims).where(claims.c.run_id == run_id))
        return True

    return database.write(fail)


def _current(connection: Connection, run_id: str) -> Any:
    row = connection.execute(_CURRENT.where(runs.c.run_id == run_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no run {run_id!r}; see `zenray run list`")
    return row
