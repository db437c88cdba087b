"""Runs whose process is gone: found and marked, so that none stays ``running`` with nobody working on it.

Runs in: driver.
"""

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zenray.model import Status

if TYPE_CHECKING:  # SQLAlchemy costs 0.3 s: who has a ledger has paid for it
    from zenray.metadata.ledger import Ledger
    from zenray.metadata.records import RunRecord

UNOWNED_S = 60.0  # between a run's first row and its lease lie milliseconds


def mark_lost_runs(ledger: "Ledger") -> list[str]:
    """Mark the unfinished runs whose process is gone, as far as that can be known; returns their ids.

    Of a process on this host it is known. A lease decides on another host's alone: a step that keeps the interpreter
    to itself, or a laptop that sleeps, lets it run out while the process lives. In a ledger that may only be read
    none is marked.
    """
    if ledger.database.is_read_only:
        return []
    now = time.time()
    unfinished = [r for s in (Status.RUNNING, Status.WAITING) for r in ledger.list_runs(status=s, limit=10_000)]
    return [r.run_id for r in unfinished if _is_lost(r, now) and _mark(ledger, r, now)]


def _mark(ledger: "Ledger", run: "RunRecord", now: float) -> bool:
    is_known_dead = not run.owner or _is_here(run.owner)
    return ledger.mark_lost(run.run_id, now=now, is_owner_dead=is_known_dead)


def _is_lost(run: "RunRecord", now: float) -> bool:
    if not run.owner:  # its process has not taken the lease yet, or died before it could
        return now - run.started_at > UNOWNED_S
    if _is_here(run.owner):
        return is_owner_dead(run.owner)
    return run.lease_until is not None and run.lease_until < now


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
