"""Who computes a key just now: of all runs that share a ledger and a store exactly one holds a key's claim.

Runs in: driver.

A claim is as good as its run's lease: once that run is finished, deleted, or its lease has ended, whoever asks
next takes the claim over. So a claim needs no renewal, and a dead process holds nobody up for long.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, or_, select, update

from zenray.errors import MetadataError
from zenray.metadata.clock import now_s
from zenray.metadata.database import Database
from zenray.metadata.leases import UNFINISHED
from zenray.metadata.records import Claim, Claims
from zenray.metadata.schema import cache_entries, claims, runs

_CHUNK = 500  # keys in one transaction: other processes wait for it
_ROUNDS_MAX = 20
_KEYS: BindParameter[str] = bindparam("keys", expanding=True)
_IS_LIVE = runs.c.status.in_(UNFINISHED) & or_(runs.c.lease_until.is_(None), runs.c.lease_until > now_s())
_IS_ENTRY = (cache_entries.c.key == claims.c.key) & (cache_entries.c.store == claims.c.store)
_HOLDERS = (
    select(
        claims.c.key,
        claims.c.run_id,
        claims.c.name,
        _IS_LIVE.label("is_live"),
        cache_entries.c.key.is_not(None).label("is_recorded"),
    )
    .select_from(claims.outerjoin(runs, runs.c.run_id == claims.c.run_id).outerjoin(cache_entries, _IS_ENTRY))
    .where(claims.c.key.in_(_KEYS), claims.c.store == bindparam("store"))
)
_TAKE_OVER = (
    update(claims)
    .where(claims.c.key == bindparam("_key"), claims.c.store == bindparam("_store"))
    .where(claims.c.run_id == bindparam("_holder"))
    .values(run_id=bindparam("run_id"), name=bindparam("name"), claimed_at=bindparam("claimed_at"))
)


def claim(database: Database, keys: Mapping[str, str], *, store: str, run_id: str) -> Claims:
    """Claim keys for a run and return what came of it; see ``Ledger.claim``."""
    wanted = sorted(keys)  # in one order everywhere, so that two processes never wait for each other
    held: dict[str, Claim] = {}
    recorded: set[str] = set()
    for start in range(0, len(wanted), _CHUNK):
        chunk = {key: keys[key] for key in wanted[start : start + _CHUNK]}
        found = database.write(partial(_claim, database, chunk, store, run_id))
        held.update(found.held)
        recorded.update(found.recorded)
    return Claims(held, frozenset(recorded))


def _claim(database: Database, keys: Mapping[str, str], store: str, run_id: str, connection: Connection) -> Claims:
    """Claim what is free, take over what a dead run left, and return the rest with its holders.

    Each round sees what others have committed meanwhile: a claim that was let go, or taken over, between two
    statements is met again in the next.
    """
    held: dict[str, Claim] = {}
    recorded: set[str] = set()
    missing = dict(keys)
    insert = database.upsert(claims, is_first_kept=True)
    for _ in range(_ROUNDS_MAX):
        ours = {"store": store, "run_id": run_id, "claimed_at": time.time()}
        connection.execute(insert, [{"key": key, "name": name} | ours for key, name in missing.items()])
        found = connection.execute(_HOLDERS, {"keys": list(missing), "store": store}).all()
        dead = []
        for row in found:
            if row.run_id != run_id and not row.is_live:
                dead.append(_take_over(row, missing[row.key], ours))
            else:
                if row.run_id != run_id:
                    held[row.key] = Claim(row.key, store, row.run_id, row.name)
                elif row.is_recorded:
                    recorded.add(row.key)
                del missing[row.key]
        if not missing:
            return Claims(held, frozenset(recorded))
        if dead:
            connection.execute(_TAKE_OVER, dead)
    raise MetadataError(
        f"{len(missing)} keys could not be claimed for run {run_id!r}: other runs take and release them all the time; "
        "run again"
    )


def _take_over(row: Any, name: str, ours: Mapping[str, Any]) -> dict[str, Any]:
    where = {"_key": row.key, "_store": ours["store"], "_holder": row.run_id}
    return where | {"run_id": ours["run_id"], "name": name, "claimed_at": ours["claimed_at"]}
