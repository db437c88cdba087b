"""Removes what no run and no cache entry needs: old runs where asked, artifacts, objects and what is half written.

Runs in: driver.

The order keeps every moment safe, also with other processes at work on the same store: first the ledger's rows (in a
transaction that spares whatever a run has come to use meanwhile), then the manifests of exactly these artifacts, then
the objects that no remaining manifest names, and packs last. A collection that ends early is finished by the next: a
manifest that the ledger does not record, left by it or by a run that was killed, is garbage too. Nothing younger than
the oldest unfinished run, or than the grace time, is touched: a run that writes an equal value anew marks the stored
bytes as used now. While runs are going on, artifacts are left alone altogether: a run that has looked one up, or has
written it again, records that only a moment later.

Where runs of another ledger use the store, artifacts and objects are left alone: what they need is recorded there only.
"""

import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zenray.artifacts import packed, put_manifest, read_manifest
from zenray.errors import CorruptedObjectError, StoreError
from zenray.metadata.records import ArtifactRecord, RunRecord
from zenray.model import Manifest, Status
from zenray.profile import usable_stacks
from zenray.settings import home
from zenray.store import Store, address_of, ledger_name, manifest_name
from zenray.views import Books

GRACE_S = 3600.0
ABANDONED_S = 86_400.0
_ALL = 1_000_000_000


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What was removed, or would be; ``waiting`` artifacts are kept until the unfinished runs have ended.

    The young ones would go too, were they older than the grace time, or than the oldest run that goes on.
    """

    is_dry: bool
    runs: int = 0
    cache_entries: int = 0
    artifacts: int = 0
    unrecorded: int = 0  # manifests of artifacts that no ledger records
    objects: int = 0
    logs: int = 0
    temporary_files: int = 0
    uploads: tuple[str, ...] = ()  # names that were begun to be uploaded, each with the time
    uploads_problem: str = ""  # why they were left alone
    problems: tuple[str, ...] = ()  # what could not be read, and was left alone with all that it may need
    size_bytes: int = 0
    unfinished_runs: int = 0
    waiting: int = 0
    other_ledgers: tuple[str, ...] = ()  # whose runs use the store too
    young_runs: int = 0
    young_artifacts: int = 0


def collect(
    books: Books,
    *,
    keep_runs: int | None = None,
    older_than_s: float | None = None,
    grace_s: float = GRACE_S,
    abandoned_s: float = ABANDONED_S,
    is_dry: bool = True,
) -> GarbageReport:
    """Remove what nothing refers to; runs, and cache entries of what no remaining run made or took, only where asked.

    Args:
        books: the ledger and the store.
        keep_runs: delete finished runs of each pipeline beyond its newest ones.
        older_than_s: delete finished runs that ended longer ago, and spare younger cache entries; with ``keep_runs``
            both must hold.
        grace_s: what is younger is never touched.
        abandoned_s: how old temporary files and unfinished uploads must be too: a large one takes hours.
        is_dry: only count.
    """
    return _Collection(books, grace_s=grace_s, abandoned_s=abandoned_s, is_dry=is_dry).run(keep_runs, older_than_s)


class _Collection:
    def __init__(self, books: Books, *, grace_s: float, abandoned_s: float, is_dry: bool) -> None:
        self._ledger, self._store, self._is_dry = books.ledger, books.store, is_dry
        self._stack = books.stack
        self._now = time.time()
        running = self._unfinished()
        self._horizon = min([self._now - grace_s, *(r.started_at for r in running)])
        self._abandoned = min(self._now - abandoned_s, self._horizon)
        self._size_bytes = self._young_runs = 0
        self._problems: list[str] = []

    def run(self, keep_runs: int | None, older_than_s: float | None) -> GarbageReport:
        if not self._is_dry:
            self._ledger.database.check_writable()
            self._check_store()
        runs = self._surplus_runs(keep_runs, older_than_s)
        run_ids = {r.run_id for r in runs}
        freed, keys = self._only_of(run_ids), set[str]()
        if keep_runs is not None or older_than_s is not None:
            keys = self._surplus_entries(run_ids, min(self._horizon, self._now - (older_than_s or 0)))
        logs = self._delete_logs(run_ids)
        entries = self._delete_runs(run_ids, keys)
        # Only now: a run that looked one of these entries up is unfinished, or has recorded it.
        unfinished = self._unfinished()
        unreferenced = self._unreferenced(freed, keys)
        doomed, orphans = {r.digest for r in unreferenced if r.created_at < self._horizon}, self._orphans()
        others = self._other_ledgers()
        uploads, problem = self._abort_uploads()
        is_free = not (unfinished or others)
        gone = self._delete_artifacts(doomed) if is_free else set()
        removed = [found for found in orphans if self._delete(found)] if is_free else []
        if is_free and not self._is_dry:
            self._restore([*doomed, *map(_digest_in, removed)])
        objects = 0 if others else self._delete_objects(gone | set(map(_digest_in, removed)), is_free=is_free)
        if is_free:
            self._delete_packs(gone)
        return GarbageReport(
            is_dry=self._is_dry,
            runs=len(runs),
            cache_entries=entries,
            artifacts=len(gone),
            unrecorded=len(removed),
            objects=objects,
            logs=logs,
            temporary_files=self._delete_temporary(),
            uploads=uploads,
            uploads_problem=problem,
            problems=tuple(self._problems),
            size_bytes=self._size_bytes,
            unfinished_runs=len(unfinished),
            waiting=len(doomed) + len(orphans) if unfinished else 0,
            other_ledgers=others,
            young_runs=self._young_runs,
            young_artifacts=sum(r.created_at >= self._horizon for r in unreferenced),
        )

    def _check_store(self) -> None:
        """Raise StoreError where files cannot be removed: the ledger must not forget what then stays for ever."""
        for folder in ("objects", "artifacts", "packs", "logs"):
            name = f"{folder}/gc-{os.getpid()}"
            self._store.put_named(name, b"")
            self._store.delete(name)

    # -- runs ------------------------------------------------------------------------------------------------------

    def _unfinished(self) -> list[RunRecord]:
        return [r for s in (Status.RUNNING, Status.WAITING) for r in self._ledger.list_runs(status=s, limit=_ALL)]

    def _surplus_runs(self, keep_runs: int | None, older_than_s: float | None) -> list[RunRecord]:
        if keep_runs is None and older_than_s is None:
            return []
        seen: dict[str, int] = {}
        surplus = []
        stacks = self._stacks()
        for run in self._ledger.list_runs(limit=_ALL):  # newest first
            if not run.status.is_finished or run.stack not in stacks:
                continue
            seen[run.pipeline] = seen.get(run.pipeline, 0) + 1
            is_beyond = keep_runs is None or seen[run.pipeline] > keep_runs
            is_old = older_than_s is None or (run.ended_at or run.started_at) < self._now - older_than_s
            if is_beyond and is_old and (run.ended_at or run.started_at) < self._horizon:
                surplus.append(run)
            elif is_beyond and is_old:
                self._young_runs += 1
        return surplus

    def _other_ledgers(self) -> tuple[str, ...]:
        """Return the other ledgers that the store knows of: what their runs need, nobody here can tell."""
        ours = ledger_name(self._ledger.ledger_id())
        names = [name for name, _, _ in self._store.names("ledgers") if name != ours]
        return tuple(f"{(self._store.get_named(name) or b'').decode(errors='replace')} ({name})" for name in names)

    def _stacks(self) -> set[str]:
        """Return the stacks whose runs are ours to delete: a ledger may serve others, with other stores."""
        ours = self._store.uri
        others = (s for s in usable_stacks() if address_of(s.artifact_store, s.artifact_store_options) == ours)
        return {self._stack.name} | {s.name for s in others}

    def _only_of(self, run_ids: set[str]) -> set[str]:
        """Return the artifacts that these runs refer to, and no other run."""
        ledger = self._ledger
        used = {o.digest for r in run_ids for o in ledger.outputs(r)} | {
            i.digest for r in run_ids for i in ledger.inputs(r)
        }
        return {digest for digest, users in ledger.users(used).items() if users <= run_ids}

    def _surplus_entries(self, run_ids: set[str], before: float) -> set[str]:
        """Return the keys of the cache entries with an output that no run names but these.

        An entry's run goes with these, or went before, or is one of another ledger. Its outputs must be as old as
        itself: a copy is as young as its artifacts, though the entry says when the value was computed.
        """
        entries = self._ledger.cache_entries(self._store.uri, before=before)
        users = self._ledger.users({digest for e in entries for _, digest in e.outputs})
        surplus = [e for e in entries if any(users[digest] <= run_ids for _, digest in e.outputs)]
        found = self._ledger.artifacts({digest for e in surplus for _, digest in e.outputs}, store=self._store.uri)
        young = {r.digest for r in found.values() if r.created_at >= before}
        return {e.key for e in surplus if young.isdisjoint(digest for _, digest in e.outputs)}

    def _delete_runs(self, run_ids: Collection[str], keys: Collection[str]) -> int:
        """Delete cache entries, then runs; returns how many entries."""
        if self._is_dry:
            return len(keys)
        uri = self._store.uri
        count = self._ledger.delete_cache_entries(keys=keys, before=self._horizon, store=uri) if keys else 0
        for run_id in run_ids:
            self._ledger.delete_run(run_id)
        return count

    def _delete_logs(self, run_ids: Collection[str]) -> int:
        if self._store.local_path("") is None and not self._is_dry:
            for run_id in run_ids:  # what was written here before it went to the store
                shutil.rmtree(home() / "logs" / run_id, ignore_errors=True)
        return sum(self._delete(found) for run_id in run_ids for found in list(self._store.names(f"logs/{run_id}")))

    # -- artifacts and objects -------------------------------------------------------------------------------------

    def _unreferenced(self, freed: set[str], keys: set[str]) -> Sequence[ArtifactRecord]:
        """Return the artifacts of this ledger that nothing refers to any more, or would not after a real run."""
        if not self._is_dry:  # what has come to be used again meanwhile stays
            freed, keys = set(), set()
        return self._ledger.unreferenced_artifacts(self._store.uri, before=self._now, freed=freed, without=keys)

    def _orphans(self) -> list[tuple[str, int, float]]:
        """Return the manifests in the store that the ledger does not record, for this store or another.

        Of another: a folder may be known by two paths, and then only one of them is the recorded one.
        """
        old = [f for f in self._store.names("artifacts") if f[2] < self._horizon]
        recorded = self._ledger.recorded([_digest_in(f) for f in old])
        return [f for f in old if _digest_in(f) not in recorded]

    def _delete_artifacts(self, doomed: Collection[str]) -> set[str]:
        """Forget artifacts, then remove their manifests; one whose manifest is in use again is kept."""
        digests = set(doomed)
        if not self._is_dry:
            digests = self._ledger.delete_artifacts(digests, store=self._store.uri)
        for found in list(self._store.names("artifacts")):
            if _digest_in(found) in digests:
                self._delete(found)
        return digests

    def _restore(self, digests: Iterable[str]) -> None:
        """Write the manifests back of artifacts that a run has recorded again while they were being removed."""
        for record in self._ledger.artifacts(digests, store=self._store.uri).values():
            if not record.manifest.is_inline:
                put_manifest(record.manifest, self._store)

    def _delete_packs(self, gone: set[str]) -> None:
        """Remove the packs of which no artifact is recorded any more."""
        for found in [f for f in self._store.names("packs") if f[2] < self._horizon]:
            try:
                digests = {m.digest for m in packed(found[0], self._store)} - gone
            except StoreError as exc:
                if not isinstance(exc, CorruptedObjectError) and self._store.local_path("") is None:
                    raise  # the server is away, or refuses us: the next would say the same, after a long wait
                self._problems.append(
                    f"{exc}. {found[0]} is the store's own copy of small artifacts, which the ledger has too: once "
                    "`zenray artifact verify` finds nothing wrong with those, the file can be deleted"
                )
                continue
            if not self._ledger.recorded(digests, store=self._store.uri):
                self._delete(found)

    def _delete_objects(self, gone: set[str], *, is_free: bool) -> int:
        """Remove the objects that no remaining manifest names; none where one of these cannot be read."""
        if not is_free and self._store.local_path("") is None:
            return 0  # an object store does not note that an object was written again
        objects = [o for o in self._store.names("objects") if o[2] < self._horizon]
        if not objects:
            return 0
        try:
            live = {f.digest for m in self._manifests(gone) for f in m.files if f.data is None}
        except CorruptedObjectError as exc:
            self._problems.append(f"objects were left alone: {exc}")
            return 0
        if self._store.local_path("") is None and self._unfinished():
            return 0  # a run that has begun meanwhile may have found one of them in its place
        return sum(self._delete(o) for o in objects if o[0].rpartition("/")[2] not in live)

    def _manifests(self, gone: set[str]) -> Iterator[Manifest]:
        """Give the manifests that remain: of the ledger's artifacts, and all that lie in the store."""
        seen = set(gone) if self._is_dry else set()  # what a real run finds recorded has been recorded again
        for record in self._ledger.list_artifacts(store=self._store.uri, limit=_ALL):
            if record.digest not in seen:
                seen.add(record.digest)
                yield record.manifest
        seen |= gone
        for name, _, _ in self._store.names("artifacts"):
            digest = Path(name).stem
            if digest in seen or name != manifest_name(digest):
                continue
            found = read_manifest(digest, self._store)
            if found is None and not self._is_dry:
                raise CorruptedObjectError(f"{name} vanished while it was read; run `zenray artifact gc` again")
            if found is not None:
                yield found

    def _delete_temporary(self) -> int:
        return sum(self._delete(f) for f in list(self._store.names("tmp")) if f[2] < self._abandoned)

    def _abort_uploads(self) -> tuple[tuple[str, ...], str]:
        """Abort uploads that nobody can be at any more; a store may not let us see them, which is no reason to stop."""
        try:
            found = self._store.abort_uploads(before=self._abandoned, is_dry=self._is_dry)
        except StoreError as exc:
            return (), str(exc)
        return tuple(f"{name}, begun {time.strftime('%F %R', time.localtime(at))}" for name, at in sorted(found)), ""

    def _delete(self, found: tuple[str, int, float]) -> bool:
        """Remove a file unless it was used since the horizon; counts its bytes."""
        name, size_bytes, changed_at = found
        if changed_at >= self._horizon:
            return False
        if not self._is_dry and not _remove(self._store, name, self._horizon):
            return False
        self._size_bytes += size_bytes
        return True


def _digest_in(found: tuple[str, int, float]) -> str:
    return Path(found[0]).stem


def _remove(store: Store, name: str, horizon: float) -> bool:
    """Remove a file; on a local disk it is moved aside first, and moved back where it was used a moment ago."""
    path = store.local_path(name)
    if path is None or name.startswith("tmp/"):
        store.delete(name)
        return True
    aside = store.local_path(f"tmp/gc-{os.getpid()}-{path.name}")
    assert aside is not None
    aside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    if aside.stat().st_mtime >= horizon:
        with suppress(FileNotFoundError):
            aside.rename(path)
        return False
    store.delete(f"tmp/{aside.name}")
    return True


def describe(report: GarbageReport, size: str) -> Sequence[str]:
    """Say for people what was removed; ``size`` is the bytes as text."""
    done = "would remove" if report.is_dry else "removed"
    counts = [
        (report.runs, "runs"),
        (report.cache_entries, "cache entries"),
        (report.artifacts, "artifacts"),
        (report.unrecorded, "manifests that no run recorded"),
        (report.objects, "objects"),
        (report.logs, "logs"),
        (report.temporary_files, "temporary files"),
        (len(report.uploads), "unfinished uploads"),
    ]
    lines = [f"{done} {', '.join(f'{n:,} {what}' for n, what in counts if n) or 'nothing'}; {size}"]
    lines += [f"  unfinished upload of {upload}" for upload in report.uploads if report.is_dry]
    if report.uploads_problem:
        lines.append(
            f"unfinished uploads, which are paid for until they are aborted, were left alone: {report.uploads_problem}"
        )
    lines += report.problems
    young = [(report.young_runs, "runs"), (report.young_artifacts, "artifacts")]
    if any(n for n, _ in young):
        kept = " and ".join(f"{n:,} {what}" for n, what in young if n)
        lines.append(f"{kept} are kept as they are younger than --grace, or than a run that goes on")
    if report.other_ledgers:
        lines.append(
            "artifacts and objects were left alone: runs of other ledgers use the store too, and what they need is not "
            "known here: "
            + "; ".join(report.other_ledgers)
            + ". Where such a ledger is gone, delete its file in the store and collect again"
        )
    if report.waiting:
        lines.append(f"{report.waiting:,} artifacts wait until {report.unfinished_runs} unfinished runs have ended")
    return lines
