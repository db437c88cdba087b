"""Runs whose process is gone: found and marked, so that none stays ``running`` with nobody working on it.

Runs in: driver.
"""

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from zenray.errors import NotFoundError

if TYPE_CHECKING:  # SQLAlchemy costs 0.3 s: who has a ledger has paid for it
    from zenray.metadata.ledger import Ledger


def mark_lost_runs(ledger: "Ledger") -> list[str]:
    """Mark the unfinished runs whose process is gone, as far as that can be known; returns their ids.

    Of a process on this host it is known. A lease decides on another host's alone: a step that keeps the interpreter
    to itself, or a laptop that sleeps, lets it run out while the process lives. Nor can a lease be renewed while the
    database is away, or cut off from there: so it must have ended as long ago as a process waits for the database. What
    the run had claimed others take over before. In a ledger that may only be read none is marked.
    """
    if ledger.database.is_read_only:
        return []
    lost = []
    for run, has_ended in ledger.unfinished_runs(grace_s=ledger.database.server.retry_s):
        is_here = _is_here(run.owner)
        if (is_owner_dead(run.owner) if is_here else has_ended) and ledger.mark_lost(run.run_id, is_owner_dead=is_here):
            lost.append(run.run_id)
    return lost


def how_ended(ledger: "Ledger", run_id: str) -> tuple[str, float] | None:
    """Return a run's status and when it ended (epoch s); None where it goes on, or is not of this ledger.

    A run whose process is gone is marked first.
    """
    try:
        found = ledger.find_run(run_id)
        if not found.status.is_finished:
            mark_lost_runs(ledger)
            found = ledger.find_run(run_id)
    except NotFoundError:
        return None
    if not found.status.is_finished or found.ended_at is None:
        return None
    return str(found.status), found.ended_at


def _is_here(owner: str) -> bool:
    host, _, rest = owner.partition(":")
    return host == socket.gethostname() and rest.partition(":")[0].isdecimal()


def is_owner_dead(owner: str) -> bool:
    """Say whether the owner of a run (``host:pid:start``) is known to be dead; never of another host's.

    The start time tells a process from a later one of the same number; without ``/proc`` only the number counts.
    """
    if not _is_here(owner):
        return False
    pid, _, start = owner.partition(":")[2].partition(":")
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return True
        return fields[0] == "Z" or fields[19] != start
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
