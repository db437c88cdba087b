"""The record of what ran: runs, step runs, artifacts, code and cache entries, found, listed and deleted.

Runs in: driver.
"""

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Select,
    Table,
    bindparam,
    delete,
    func,
    or_,
    select,
)

from zenray.errors import MetadataError, NotFoundError, suggest
from zenray.metadata import claims, leases, rows, schema
from zenray.metadata.clock import now_s
from zenray.metadata.database import Database
from zenray.metadata.records import (
    ArtifactRecord,
    AttemptRecord,
    CacheEntry,
    Claims,
    PipelineRecord,
    RunRecord,
    StepInput,
    StepOutput,
    StepRunRecord,
)
from zenray.metadata.schema import (
    artifacts,
    attempts,
    cache_entries,
    code,
    runs,
    step_inputs,
    step_outputs,
    step_runs,
)
from zenray.model import Json, Manifest, Status

_CHUNK = 500  # values in one IN (...): every database takes as many
_ARTIFACT = select(artifacts.c.digest, artifacts.c.manifest, artifacts.c.store, artifacts.c.created_at)
_KEYS: BindParameter[str] = bindparam("keys", expanding=True)
_ENTRIES = select(cache_entries).where(cache_entries.c.key.in_(_KEYS), cache_entries.c.store == bindparam("store"))
_MANIFESTS = _ARTIFACT.where(artifacts.c.digest.in_(_KEYS), artifacts.c.store == bindparam("store"))


class Ledger:
    """The metadata store at a SQLAlchemy URL; opened, and where need be created, on first use.

    Safe to use from many threads and processes. Every method is one transaction. While a run goes on its step
    runs are written by a ``LedgerWriter``. Raises MetadataError where the database cannot be used; a server that
    goes away while it is used is waited for. ``options`` are those of ``Database``.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.database = Database(url, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        self.database.close()

    # --- runs ---

    def create_run(self, run: RunRecord, *, owner: str = "", ttl_s: float = 0.0) -> int:
        """Record a new run, which ``owner`` has a lease on, and return its fence; MetadataError where the id is taken.

        Without an owner it waits for one that calls ``acquire_lease``, and is never lost.
        """
        statement = runs.insert().values(rows.run_to_row(run))
        if owner:
            statement = statement.values(owner=owner, fence=1, lease_until=now_s() + ttl_s)
        tries = 0

        def create(connection: Connection) -> None:
            nonlocal tries
            tries += 1
            mine = select(runs.c.run_id).where(runs.c.run_id == run.run_id, runs.c.started_at == run.started_at)
            if tries > 1 and connection.execute(mine).first():
                return  # the first try was committed, and only the answer was lost
            connection.execute(statement)

        self.database.write(create)
        return 1 if owner else run.fence

    def find_run(self, run_id: str) -> RunRecord:
        """Return a run by its id or the beginning of it; NotFoundError where that is no run, or several."""
        found = self.database.read(select(runs).where(runs.c.run_id == run_id))
        if not found and run_id:
            query = select(runs).where(runs.c.run_id.startswith(run_id, autoescape=True))
            found = self.database.read(query.order_by(runs.c.started_at.desc()).limit(9))
        _only_one(len(found), "run", run_id, (r.run_id for r in found), self._recent_run_ids)
        return rows.run_from_row(found[0])

    def list_runs(
        self,
        pipeline: str | None = None,
        *,
        status: Status | None = None,
        before: float | None = None,
        limit: int = 100,
    ) -> tuple[RunRecord, ...]:
        """Return runs, newest first; ``before`` is the start of the last one seen, to go on from there."""
        query = select(runs).order_by(runs.c.started_at.desc(), runs.c.run_id.desc()).limit(limit)
        if pipeline is not None:
            query = query.where(runs.c.pipeline == pipeline)
        if status is not None:
            query = query.where(runs.c.status == status.value)
        if before is not None:
            query = query.where(runs.c.started_at < before)
        return tuple(rows.readable(rows.run_from_row, self.database.read(query)))

    def pipelines(self) -> tuple[PipelineRecord, ...]:
        """Return all pipelines that have runs, by name."""
        query = select(runs.c.pipeline, func.count(), func.max(runs.c.started_at)).group_by(runs.c.pipeline)
        return tuple(PipelineRecord(*row) for row in self.database.read(query.order_by(runs.c.pipeline)))

    def delete_run(self, run_id: str) -> None:
        """Delete a run with its step runs, attempts and claims; artifacts and cache entries stay. Idempotent."""

        def forget(connection: Connection) -> None:
            connection.execute(delete(runs).where(runs.c.run_id == run_id))
            connection.execute(delete(schema.claims).where(schema.claims.c.run_id == run_id))

        self.database.write(forget)

    # --- leases ---

    def acquire_lease(self, run_id: str, owner: str, *, ttl_s: float, is_owner_dead: bool = False) -> int:
        """Become the owner of a run and return the fence that its writes must carry.

        RunLostError where another owner's lease lasts, unless the caller knows that this owner is dead.
        Whoever owned the run before can write nothing more, and whom it was asked to stop for is forgotten.
        """
        return leases.acquire(self.database, run_id, owner, ttl_s=ttl_s, is_owner_dead=is_owner_dead)

    def unfinished_runs(self, *, grace_s: float = 0.0) -> tuple[tuple[RunRecord, bool], ...]:
        """Return the unfinished runs, oldest first, each with whether its lease ended ``grace_s`` ago or before."""
        unfinished = runs.c.status.in_([s.value for s in Status if not s.is_finished])
        has_ended = (runs.c.lease_until + grace_s <= now_s()).label("has_ended")
        found = self.database.read(select(runs, has_ended).where(unfinished).order_by(runs.c.started_at))
        return tuple(rows.readable(lambda row: (rows.run_from_row(row), bool(row.has_ended)), found))

    def mark_lost(self, run_id: str, *, is_owner_dead: bool = False) -> bool:
        """Fail an unfinished run whose lease has ended, or whose owner the caller knows to be dead.

        Running step runs fail with kind ``driver lost``, waiting ones are skipped. An owner that lives after all
        finds its fence outdated. Returns False, and changes nothing, where the run is finished or still owned.
        """
        return leases.mark_lost(self.database, run_id, is_owner_dead=is_owner_dead)

    def ask_to_stop(self, run_id: str, by: str) -> bool:
        """Let the owner of a run know, within seconds, that ``by`` wants it to end; False where it has ended."""
        return leases.ask_to_stop(self.database, run_id, by)

    def ledger_id(self) -> str:
        """Return what tells this ledger from any other; made when first asked for."""
        query = select(schema.identity.c.ledger_id)
        found = self.database.read(query)
        if not found:
            row = {"name": "ledger", "ledger_id": secrets.token_hex(16)}
            insert = self.database.upsert(schema.identity, is_first_kept=True)
            self.database.write(lambda connection: connection.execute(insert, row))
            found = self.database.read(query)
        return str(found[0].ledger_id)

    # --- claims ---

    def claim(self, keys: Mapping[str, str], *, store: str, run_id: str) -> Claims:
        """Claim keys (each with the name of the step run that would compute it), and return who holds the others.

        A key that nobody else holds is ours, also where it was before; of these, those with a cache entry are named
        too: whoever held the key before may have committed it after it was looked up. A claim ends with a
        ``ClaimEnd`` that the run's writer commits, and with its run; that of a run which is
        finished, deleted or has lost its lease is taken over. One transaction for each 500 keys.
        """
        return claims.claim(self.database, keys, store=store, run_id=run_id)

    # --- step runs ---

    def step_runs(self, run_id: str) -> tuple[StepRunRecord, ...]:
        """Return the step runs of a run in the order they were created."""
        query = select(step_runs).where(step_runs.c.run_id == run_id)
        found = self.database.read(query.order_by(step_runs.c.position, step_runs.c.name))
        return tuple(rows.readable(rows.step_from_row, found))

    def step_run(self, run_id: str, name: str) -> StepRunRecord:
        """Return one step run; NotFoundError lists those that are there."""
        found = self.database.read(select(step_runs).where(step_runs.c.run_id == run_id, step_runs.c.name == name))
        if not found:
            names = self.database.read(select(step_runs.c.name).where(step_runs.c.run_id == run_id))
            raise NotFoundError(f"run {run_id!r} has no step {name!r}: {suggest(name, (row.name for row in names))}")
        return rows.step_from_row(found[0])

    def step_counts(self, run_ids: Sequence[str]) -> dict[str, dict[Status, int]]:
        """Return for each run how many of its step runs have which status."""
        counts: dict[str, dict[Status, int]] = {run_id: {} for run_id in run_ids}
        query = (
            select(step_runs.c.run_id, step_runs.c.status, func.count())
            .where(step_runs.c.run_id.in_(_KEYS))
            .group_by(step_runs.c.run_id, step_runs.c.status)
        )
        for run_id, status, count in self._read_in_chunks(query, run_ids):
            counts[run_id][Status(status)] = count
        return counts

    def previous_step_runs(
        self, step: str, *, before: float, module: str | None = None, limit: int = 20
    ) -> tuple[StepRunRecord, ...]:
        """Return the step runs of a definition that started before a time, newest first."""
        query = select(step_runs).where(step_runs.c.step == step, step_runs.c.started_at < before)
        if module is not None:
            query = query.where(step_runs.c.module == module)
        found = self.database.read(query.order_by(step_runs.c.started_at.desc()).limit(limit))
        return tuple(rows.readable(rows.step_from_row, found))

    def attempts(self, run_id: str, name: str | None = None) -> tuple[AttemptRecord, ...]:
        """Return the attempts of a step run, or of all step runs of a run, by name and number."""
        query = _of_run(attempts, run_id, name).order_by(attempts.c.name, attempts.c.number)
        return tuple(rows.readable(rows.attempt_from_row, self.database.read(query)))

    def inputs(self, run_id: str, name: str | None = None) -> tuple[StepInput, ...]:
        """Return the inputs of a step run, or of all step runs of a run, by name, argument and position."""
        order = step_inputs.c.name, step_inputs.c.argument, step_inputs.c.position
        query = _of_run(step_inputs, run_id, name).order_by(*order)
        return tuple(StepInput(*row) for row in self.database.read(query))

    def outputs(self, run_id: str, name: str | None = None) -> tuple[StepOutput, ...]:
        """Return the outputs of a step run, or of all step runs of a run, by name, position and output."""
        order = step_outputs.c.name, step_outputs.c.position, step_outputs.c.output
        query = _of_run(step_outputs, run_id, name).order_by(*order)
        return tuple(StepOutput(*row) for row in self.database.read(query))

    def producers(self, digest: str) -> tuple[StepOutput, ...]:
        """Return the outputs that are this artifact: who made it."""
        return tuple(
            StepOutput(*row) for row in self.database.read(select(step_outputs).where(step_outputs.c.digest == digest))
        )

    def consumers(self, digest: str) -> tuple[StepInput, ...]:
        """Return the inputs that are this artifact: who uses it."""
        return tuple(
            StepInput(*row) for row in self.database.read(select(step_inputs).where(step_inputs.c.digest == digest))
        )

    def users(self, digests: Iterable[str]) -> dict[str, set[str]]:
        """Return for each artifact the runs that made or took it."""
        found: dict[str, set[str]] = {digest: set() for digest in digests}
        for t in (step_outputs, step_inputs):
            query = select(t.c.digest, t.c.run_id).where(t.c.digest.in_(_KEYS)).distinct()
            for digest, run_id in self._read_in_chunks(query, tuple(found)):
                found[digest].add(run_id)
        return found

    def code_parts(self, digest: str) -> tuple[Mapping[str, Json], ...]:
        """Return what a code digest is made of; empty where it is not recorded."""
        found = self.database.read(select(code.c.parts).where(code.c.digest == digest))
        return tuple(rows.from_json(found[0].parts)) if found else ()

    # --- artifacts and cache ---

    def artifact(self, digest: str, *, store: str | None = None) -> ArtifactRecord:
        """Return an artifact by its digest or the beginning of it; of several stores' copies the newest."""
        query = _ARTIFACT.order_by(artifacts.c.created_at.desc())
        if store is not None:
            query = query.where(artifacts.c.store == store)
        # Digests are hexadecimal, so "g" ends the range; unlike LIKE this uses the index everywhere.
        in_range = (artifacts.c.digest >= digest) & (artifacts.c.digest < digest + "g")
        read = self.database.read(query.where(in_range).limit(9)) if digest else ()
        found = [rows.artifact_from_row(row) for row in read]
        _only_one(len({a.digest for a in found}), "artifact", digest, (a.digest for a in found))
        return found[0]

    def artifacts(self, digests: Iterable[str], *, store: str | None = None) -> dict[str, ArtifactRecord]:
        """Return those of the given artifacts that a store has, by digest; of any store, the newest copies."""
        query = _ARTIFACT.where(artifacts.c.digest.in_(_KEYS)).order_by(artifacts.c.created_at)
        if store is not None:
            query = query.where(artifacts.c.store == store)
        return {
            record.digest: record
            for record in rows.readable(rows.artifact_from_row, self._read_in_chunks(query, tuple(digests)))
        }

    def recorded(self, digests: Iterable[str], *, store: str | None = None) -> set[str]:
        """Return those of the given artifacts that are recorded for a store, or for any, be the record damaged."""
        query = select(artifacts.c.digest).where(artifacts.c.digest.in_(_KEYS))
        if store is not None:
            query = query.where(artifacts.c.store == store)
        return {row.digest for row in self._read_in_chunks(query, tuple(digests))}

    def list_artifacts(
        self,
        *,
        store: str | None = None,
        type_name: str | None = None,
        before: float | None = None,
        limit: int = 100,
    ) -> tuple[ArtifactRecord, ...]:
        """Return artifacts, newest first; ``before`` is the creation of the last one seen."""
        query = _ARTIFACT.order_by(artifacts.c.created_at.desc(), artifacts.c.digest).limit(limit)
        if store is not None:
            query = query.where(artifacts.c.store == store)
        if type_name is not None:
            query = query.where(artifacts.c.type_name == type_name)
        if before is not None:
            query = query.where(artifacts.c.created_at < before)
        return tuple(rows.readable(rows.artifact_from_row, self.database.read(query)))

    def find_cache_entries(self, keys: Sequence[str], store: str) -> dict[str, tuple[CacheEntry, tuple[Manifest, ...]]]:
        """Return what is recorded for keys in a store, with the manifests of the outputs in their order.

        Two queries for each 500 keys. An entry with an output that the ledger does not know is left out.
        """
        found = self._read_in_chunks(_ENTRIES, keys, store=store)
        entries = list(rows.readable(_entry, found))
        digests = list({digest for entry in entries for _, digest in entry.outputs})
        records = rows.readable(rows.artifact_from_row, self._read_in_chunks(_MANIFESTS, digests, store=store))
        manifests = {record.digest: record.manifest for record in records}
        return {
            entry.key: (entry, tuple(manifests[digest] for _, digest in entry.outputs))
            for entry in entries
            if all(digest in manifests for _, digest in entry.outputs)
        }

    def cache_entries(self, store: str, *, before: float | None = None) -> tuple[CacheEntry, ...]:
        """Return the cache entries of a store; those created before a time where one is given."""
        query = select(cache_entries).where(cache_entries.c.store == store)
        if before is not None:
            query = query.where(cache_entries.c.created_at < before)
        return tuple(rows.readable(_entry, self.database.read(query)))

    def add_copies(self, records: Sequence[ArtifactRecord], entries: Sequence[CacheEntry]) -> None:
        """Record artifacts that were copied from another store, and cache entries for them; what is there stays."""
        batch = rows.Batch()
        for store in {e.store for e in entries}:
            mine = [e for e in entries if e.store == store]
            known = self.find_cache_entries([e.key for e in mine], store)
            for entry in mine:
                if entry.key not in known:
                    batch.add(entry)
        for record in records:
            batch.add(record)
        self.database.write(lambda c: rows.BatchWriter(self.database, c.dialect).write(c, batch))

    def delete_cache_entries(
        self,
        *,
        keys: Collection[str] | None = None,
        before: float | None = None,
        store: str | None = None,
    ) -> int:
        """Delete the cache entries that fit all that is given, and return how many those were.

        ``before`` is a time of creation.
        """
        if keys is None and before is None and store is None:
            raise MetadataError("which cache entries to delete was not said: give keys, before or store")
        query = select(cache_entries.c.key, cache_entries.c.store)
        if before is not None:
            query = query.where(cache_entries.c.created_at < before)
        if store is not None:
            query = query.where(cache_entries.c.store == store)
        wanted = None if keys is None else set(keys)

        def forget(connection: Connection) -> int:
            doomed = [
                {"_key": row.key, "_store": row.store}
                for row in connection.execute(query)
                if wanted is None or row.key in wanted
            ]
            if doomed:
                is_doomed = cache_entries.c.key == bindparam("_key"), cache_entries.c.store == bindparam("_store")
                connection.execute(delete(cache_entries).where(*is_doomed), doomed)
            return len(doomed)

        return self.database.write(forget)

    # --- what may be deleted ---

    def unreferenced_artifacts(
        self, store: str, *, before: float, freed: Collection[str] = (), without: Collection[str] = ()
    ) -> tuple[ArtifactRecord, ...]:
        """Return a store's artifacts that no run and no cache entry of the store names, older than a time.

        ``freed`` are digests that count as named by no run, and ``without`` keys of entries that count as deleted: so
        a collection is foretold.
        """
        query = _ARTIFACT.where(artifacts.c.store == store, artifacts.c.created_at < before, ~_is_in_a_run())
        found = {record.digest: record for record in rows.readable(rows.artifact_from_row, self.database.read(query))}
        found |= {d: r for d, r in self.artifacts(freed, store=store).items() if r.created_at < before}
        cached = {d for e in self.cache_entries(store) if e.key not in without for _, d in e.outputs}
        return tuple(record for digest, record in found.items() if digest not in cached)

    def delete_artifacts(self, digests: Collection[str], *, store: str) -> set[str]:
        """Forget artifacts of a store that no run and no cache entry of the store names, and return their digests.

        Delete the bytes of these, and of no others, afterwards: what a run has come to use meanwhile stays.
        """

        def forget(connection: Connection) -> set[str]:
            deleted: set[str] = set()
            of_entries = select(cache_entries.c.outputs).where(cache_entries.c.store == store)
            cached = _of_entries(connection.execute(of_entries))
            for chunk in _chunks([digest for digest in digests if digest not in cached]):
                mine = artifacts.c.digest.in_(chunk), artifacts.c.store == store
                found = connection.execute(select(artifacts.c.digest).where(*mine, ~_is_in_a_run()))
                free = [row.digest for row in found]
                connection.execute(delete(artifacts).where(artifacts.c.digest.in_(free), artifacts.c.store == store))
                deleted.update(free)
            return deleted

        return self.database.write(forget)

    def _recent_run_ids(self) -> list[str]:
        query = select(runs.c.run_id).order_by(runs.c.started_at.desc()).limit(5)
        return [row.run_id for row in self.database.read(query)]

    def _read_in_chunks(self, query: Select[Any], keys: Sequence[str], **parameters: str) -> Iterator[Any]:
        for chunk in _chunks(keys):
            yield from self.database.read(query, {"keys": chunk, **parameters})


def _is_in_a_run() -> ColumnElement[bool]:
    """Return the condition on a row of ``artifacts`` that a step run took or gave it."""
    return or_(
        *(select(t.c.digest).where(t.c.digest == artifacts.c.digest).exists() for t in (step_outputs, step_inputs))
    )


def _entry(row: Any) -> CacheEntry:
    return CacheEntry(row.key, row.store, row.run_id, row.name, rows.outputs_of_entry(row), float(row.created_at))


def _of_entries(found: Iterable[Any]) -> set[str]:
    """Return the digests that cache entries name; a damaged one is found by nobody, and holds nothing."""
    return {digest for outputs in rows.readable(rows.outputs_of_entry, found) for _, digest in outputs}


def _of_run(table: Table, run_id: str, name: str | None) -> Select[Any]:
    query = select(table).where(table.c.run_id == run_id)
    return query if name is None else query.where(table.c.name == name)


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def _only_one(count: int, kind: str, asked: str, found: Iterable[str], known: Any = None) -> None:
    if count == 0:
        advice = suggest(asked, known()) if known else f"`zenray {kind} list` shows what is there"
        raise NotFoundError(f"there is no {kind} {asked!r}: {advice}")
    if count > 1:
        raise NotFoundError(f"{asked!r} is the beginning of more than one {kind}: {', '.join(sorted(set(found)))}")
