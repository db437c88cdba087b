"""Records to rows and back: what each change writes to which table, and how a batch of changes is written.

Runs in: driver.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Connection, Delete, Dialect, Row, Table, bindparam, delete, update

from zenray.errors import MetadataError, shown
from zenray.metadata import schema
from zenray.metadata.database import Database
from zenray.metadata.records import (
    ArtifactRecord,
    AttemptRecord,
    CacheEntry,
    Change,
    ClaimEnd,
    CodeRecord,
    RunRecord,
    RunState,
    StepInputs,
    StepOutputs,
    StepRunRecord,
)
from zenray.model import Json, Manifest, Status

Values = dict[str, Any]
T = TypeVar("T")
_log = logging.getLogger(__name__)
_MAX_TEXT = 10_000  # characters of what JSON cannot express


def _plain(value: object) -> Json:
    return dict(value) if isinstance(value, Mapping) else shown(value, limit=_MAX_TEXT)


_encode = json.JSONEncoder(default=_plain, separators=(",", ":")).encode


def to_json(value: Json) -> str:
    """Return JSON text; what JSON cannot express becomes its ``repr``, so that a record is never refused for it."""
    if not value and isinstance(value, Mapping):
        return "{}"
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError):  # keys that are not text, a cycle, or an int of 5000 digits
        if isinstance(value, Mapping):
            return _encode({str(k): shown(v, limit=_MAX_TEXT) for k, v in value.items()})
        return _encode(shown(value, limit=_MAX_TEXT))


def _to_json_or_null(value: Json) -> str | None:
    return None if value is None else to_json(value)


def from_json(text: str | None) -> Any:
    """Return what ``to_json`` wrote."""
    if text == "{}":
        return {}
    return None if text is None else json.loads(text)


def run_to_row(run: RunRecord) -> Values:
    """Return the row of a run."""
    return {
        "run_id": run.run_id,
        "pipeline": run.pipeline,
        "status": run.status.value,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "parameters": to_json(run.parameters),
        "stack": run.stack,
        "error": _to_json_or_null(run.error),
        "user": run.user,
        "host": run.host,
        "versions": to_json(run.versions),
        "git_revision": run.git_revision,
        "source_file": run.source_file.encode(errors="backslashreplace").decode(),  # a path need not be Unicode
        "outputs": _to_json_or_null(run.outputs),
        "fence": run.fence,
        "owner": run.owner,
        "lease_until": run.lease_until,
        "stop_asked_by": run.stop_asked_by,
    }


def run_from_row(row: Row[Any]) -> RunRecord:
    """Return the run of a row of ``runs``; MetadataError where it is damaged."""
    values = dict(row._mapping)
    values.pop("has_ended", None)  # what ``Ledger.unfinished_runs`` asks for besides
    with _reading("runs", f"run {values['run_id']!r}"):
        for name in ("parameters", "error", "versions", "outputs"):
            values[name] = from_json(values[name])
        return RunRecord(**values | {"status": Status(values["status"]), "started_at": float(values["started_at"])})


def _step_to_row(step: StepRunRecord) -> Values:
    source_run_id, source_name = step.cache_source or ("", "")
    return {
        "run_id": step.run_id,
        "name": step.name,
        "step": step.step,
        "module": step.module,
        "status": step.status.value,
        "position": step.position,
        "cache_key": step.cache_key,
        "key_parts": to_json(step.key_parts),
        "code_digest": step.code_digest,
        "source_run_id": source_run_id,
        "source_name": source_name,
        "parameters": to_json(step.parameters),
        "resources": to_json(step.resources),
        "started_at": step.started_at,
        "ended_at": step.ended_at,
        "error": _to_json_or_null(step.error),
        "cause": step.cause,
        "reason": step.reason,
        "tags": to_json(step.tags),
        "metadata": to_json(step.metadata),
    }


def step_from_row(row: Row[Any]) -> StepRunRecord:
    """Return the step run of a row of ``step_runs``; MetadataError where it is damaged."""
    values = dict(row._mapping)
    with _reading("step_runs", f"step {values['name']!r} of run {values['run_id']!r}"):
        for name in ("key_parts", "parameters", "resources", "error", "tags", "metadata"):
            values[name] = from_json(values[name])
        source = values.pop("source_run_id"), values.pop("source_name")
        values |= {"status": Status(values["status"]), "cache_source": source if source[0] else None}
        return StepRunRecord(**values)


def _attempt_to_row(attempt: AttemptRecord) -> Values:
    return {
        "run_id": attempt.run_id,
        "name": attempt.name,
        "number": attempt.number,
        "status": attempt.status.value,
        "worker": attempt.worker,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "error": _to_json_or_null(attempt.error),
        "log_uri": attempt.log_uri,
        "log_bytes": attempt.log_bytes,
        "fence": attempt.fence,
    }


def attempt_from_row(row: Row[Any]) -> AttemptRecord:
    """Return the attempt of a row of ``attempts``; MetadataError where it is damaged."""
    values = dict(row._mapping)
    with _reading("attempts", f"attempt {values['number']} of step {values['name']!r} of run {values['run_id']!r}"):
        return AttemptRecord(**values | {"status": Status(values["status"]), "error": from_json(values["error"])})


def _artifact_to_row(artifact: ArtifactRecord) -> Values:
    manifest = artifact.manifest
    return {
        "digest": manifest.digest,
        "store": artifact.store,
        "type_name": manifest.type_name,
        "materializer": manifest.materializer,
        "size_bytes": manifest.size_bytes,
        "created_at": artifact.created_at,
        "is_pickle": manifest.is_pickle,
        "manifest": to_json(manifest.to_json()),
    }


def artifact_from_row(row: Row[Any]) -> ArtifactRecord:
    """Return the artifact of a row (digest, manifest, store, created_at); MetadataError where it is damaged."""
    digest, manifest, store, created_at = tuple(row)
    with _reading("artifacts", f"artifact {digest!r}"):
        return ArtifactRecord(Manifest.from_json(json.loads(manifest)), store, float(created_at))


def outputs_of_entry(row: Row[Any]) -> tuple[tuple[str, str], ...]:
    """Return the outputs of a cache entry: (name, digest); MetadataError where it is damaged."""
    with _reading("cache_entries", "a cache entry"):
        return tuple((name, digest) for name, digest in from_json(row.outputs))


def readable(parse: Callable[[Row[Any]], T], found: Iterable[Row[Any]]) -> Iterator[T]:
    """Give what rows stand for; a damaged one is reported, and does not take the others along."""
    for row in found:
        try:
            record = parse(row)
        except MetadataError as exc:
            _log.warning("%s", exc)
        else:
            yield record


@contextmanager
def _reading(table: str, what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as exc:
        raise MetadataError(
            f"the record of {what} is damaged (table {table!r}: {type(exc).__name__}: {exc}); restore the metadata "
            f"store from a backup, or delete that row: nothing else is lost by that"
        ) from exc


class Batch:
    """Changes that are written together; the result is that of writing them one by one, in order.

    Of several rows with one primary key only the one that would remain is written: the last, or, for what is
    named by its content (code, artifacts), the first.
    """

    def __init__(self) -> None:
        self.states: dict[str, Values] = {}
        self.codes: dict[str, Values] = {}
        self.steps: dict[tuple[str, str], Values] = {}
        self.attempts: dict[tuple[str, str, int], Values] = {}
        self.artifacts: dict[tuple[str, str], Values] = {}
        self.manifests: list[Manifest] = []  # of these
        self.inputs: dict[tuple[str, str], list[Values]] = {}
        self.outputs: dict[tuple[str, str], list[Values]] = {}
        self.entries: dict[tuple[str, str], Values] = {}
        self.claim_ends: dict[tuple[str, str, str], Values] = {}
        self.ended_runs: dict[str, Values] = {}  # their claims end with them

    def add(self, change: Change) -> None:
        """Take a change into the batch."""
        match change:
            case StepRunRecord():
                self.steps[change.run_id, change.name] = _step_to_row(change)
            case AttemptRecord():
                self.attempts[change.run_id, change.name, change.number] = _attempt_to_row(change)
            case ArtifactRecord():
                if (change.digest, change.store) not in self.artifacts:
                    self.manifests.append(change.manifest)
                    self.artifacts[change.digest, change.store] = _artifact_to_row(change)
            case StepInputs():
                self.inputs[change.run_id, change.name] = [
                    {"run_id": i.run_id, "name": i.name, "argument": i.argument, "position": i.position}
                    | {"digest": i.digest, "producer": i.producer}
                    for i in change.inputs
                ]
            case StepOutputs():
                self.outputs[change.run_id, change.name] = [
                    {"run_id": o.run_id, "name": o.name, "output": o.output, "position": o.position, "digest": o.digest}
                    for o in change.outputs
                ]
            case CacheEntry():
                self.entries[change.key, change.store] = {
                    "key": change.key,
                    "store": change.store,
                    "run_id": change.run_id,
                    "name": change.name,
                    "outputs": to_json(change.outputs),
                    "created_at": change.created_at,
                }
            case CodeRecord():
                self.codes.setdefault(change.digest, {"digest": change.digest, "parts": to_json(change.parts)})
            case ClaimEnd():
                self.claim_ends[change.key, change.store, change.run_id] = {
                    "_key": change.key,
                    "_store": change.store,
                    "_run_id": change.run_id,
                }
            case RunState():
                self.states[change.run_id] = {
                    "_run_id": change.run_id,
                    "status": change.status.value,
                    "ended_at": change.ended_at,
                    "error": _to_json_or_null(change.error),
                    "outputs": _to_json_or_null(change.outputs),
                }
                if change.status.is_finished:
                    self.ended_runs[change.run_id] = {"_run_id": change.run_id}


class BatchWriter:
    """Writes batches to one database, with statements that are compiled once."""

    def __init__(self, database: Database, dialect: Dialect) -> None:
        def prepare(statement: Any) -> _Prepared:
            return _Prepared(statement, dialect)

        self._states = prepare(
            update(schema.runs)
            .where(schema.runs.c.run_id == bindparam("_run_id"))
            .values({n: bindparam(n) for n in ("status", "ended_at", "error", "outputs")})
        )
        self._codes = prepare(database.upsert(schema.code, is_first_kept=True))
        self._steps = prepare(database.upsert(schema.step_runs))
        self._attempts = prepare(database.upsert(schema.attempts))
        self._artifacts = prepare(database.upsert(schema.artifacts, is_first_kept=True))
        self._entries = prepare(database.upsert(schema.cache_entries))
        self._inputs = prepare(_delete_of_step(schema.step_inputs)), prepare(schema.step_inputs.insert())
        self._outputs = prepare(_delete_of_step(schema.step_outputs)), prepare(schema.step_outputs.insert())
        of_run = schema.claims.c.run_id == bindparam("_run_id")
        of_key = schema.claims.c.key == bindparam("_key"), schema.claims.c.store == bindparam("_store")
        self._claim_ends = prepare(delete(schema.claims).where(*of_key, of_run))
        self._ended_runs = prepare(delete(schema.claims).where(of_run))

    def write(self, connection: Connection, batch: Batch) -> None:
        """Write a batch inside the transaction that is open; a row comes after those it refers to."""
        self._states.execute(connection, batch.states.values())
        self._codes.execute(connection, batch.codes.values())
        self._steps.execute(connection, batch.steps.values())
        self._attempts.execute(connection, batch.attempts.values())
        self._artifacts.execute(connection, batch.artifacts.values())
        self._entries.execute(connection, batch.entries.values())
        for (clear, insert), groups in ((self._inputs, batch.inputs), (self._outputs, batch.outputs)):
            clear.execute(connection, [{"_run_id": run_id, "_name": name} for run_id, name in groups])
            insert.execute(connection, [row for rows in groups.values() for row in rows])
        # In the order of the keys, as they were claimed: two processes then never wait for each other.
        self._claim_ends.execute(connection, [row for _, row in sorted(batch.claim_ends.items())])
        self._ended_runs.execute(connection, batch.ended_runs.values())


class _Prepared:
    """A statement as the driver's text: SQLAlchemy's work on every row's parameters would take half of the time."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._sql = str(compiled)
        self._names = compiled.positiontup  # None where the driver takes parameters by name

    def execute(self, connection: Connection, rows: Collection[Values]) -> None:
        """Run the statement for each row."""
        if not rows:
            return
        if self._names is None:
            connection.exec_driver_sql(self._sql, list(rows))
        else:
            pick = itemgetter(*self._names)
            values = [pick(row) for row in rows]
            connection.exec_driver_sql(self._sql, values if len(self._names) > 1 else [(value,) for value in values])


def _delete_of_step(table: Table) -> Delete:
    return delete(table).where(table.c.run_id == bindparam("_run_id"), table.c.name == bindparam("_name"))
