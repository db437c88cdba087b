"""The tables of the metadata store and the list of schema revisions.

Runs in: driver.

After a change here, add a migration to ``migrations/versions`` and its revision to ``REVISIONS``: a test
compares what the migrations build with these tables.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.schema import SchemaItem

REVISIONS = ("0001", "0002")  # oldest first; the last one is what this code reads and writes
HEAD = REVISIONS[-1]
VERSION_TABLE = "alembic_version"

metadata = MetaData()

_RUN_ID = String(64)
_NAME = String(200)
_DIGEST = String(64)
_STORE = String(300)


class _MediumText(Text):
    """MySQL's text of up to 16 MiB (its TEXT ends at 64 KiB), without importing its dialect: that costs 7 ms."""

    __visit_name__ = "MEDIUMTEXT"


_TEXT = Text().with_variant(_MediumText(), "mysql", "mariadb")


def _table(name: str, *items: SchemaItem) -> Table:
    """Return a table whose names compare case by case on MySQL too, where ``Train`` equals ``train`` by default."""
    return Table(name, metadata, *items, mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin")


def _text(name: str, *, is_nullable: bool = False) -> Column[str]:
    return Column(name, _TEXT, nullable=is_nullable)


def _time(name: str) -> Column[float]:
    return Column(name, Double, nullable=True)


def _of_step_run() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["run_id", "name"], ["step_runs.run_id", "step_runs.name"], ondelete="CASCADE")


runs = _table(
    "runs",
    Column("run_id", _RUN_ID, primary_key=True),
    Column("pipeline", _NAME, nullable=False),
    Column("status", String(16), nullable=False),
    Column("started_at", Double, nullable=False),
    _time("ended_at"),
    _text("parameters"),
    _text("stack"),
    _text("error", is_nullable=True),
    _text("user"),
    _text("host"),
    _text("versions"),
    _text("git_revision"),
    _text("source_file"),
    _text("outputs", is_nullable=True),
    Column("fence", Integer, nullable=False),
    _text("owner"),
    _time("lease_until"),
    _text("stop_asked_by"),
    Index("runs_by_pipeline", "pipeline", "started_at"),
    Index("runs_by_start", "started_at"),
    Index("runs_by_status", "status", "lease_until"),
)

step_runs = _table(
    "step_runs",
    Column("run_id", _RUN_ID, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("step", _NAME, nullable=False),
    _text("module"),
    Column("status", String(16), nullable=False),
    Column("position", Integer, nullable=False),
    Column("cache_key", _DIGEST, nullable=False),
    _text("key_parts"),
    Column("code_digest", _DIGEST, nullable=False),
    _text("source_run_id"),
    _text("source_name"),
    _text("parameters"),
    _text("resources"),
    _time("started_at"),
    _time("ended_at"),
    _text("error", is_nullable=True),
    _text("cause"),
    _text("reason"),
    _text("tags"),
    _text("metadata"),
    ForeignKeyConstraint(["run_id"], ["runs.run_id"], ondelete="CASCADE"),
    Index("step_runs_by_step", "step", "started_at"),
)

attempts = _table(
    "attempts",
    Column("run_id", _RUN_ID, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("status", String(16), nullable=False),
    _text("worker"),
    _time("started_at"),
    _time("ended_at"),
    _text("error", is_nullable=True),
    _text("log_uri"),
    Column("log_bytes", BigInteger, nullable=False),
    Column("fence", Integer, nullable=False),
    _of_step_run(),
)

artifacts = _table(
    "artifacts",
    Column("digest", _DIGEST, primary_key=True),
    Column("store", _STORE, primary_key=True),
    _text("type_name"),
    _text("materializer"),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("is_pickle", Boolean, nullable=False),
    _text("manifest"),
    Index("artifacts_by_age", "created_at"),
)

step_inputs = _table(
    "step_inputs",
    Column("run_id", _RUN_ID, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("argument", _NAME, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("digest", _DIGEST, nullable=False),
    _text("producer"),
    _of_step_run(),
    Index("step_inputs_by_digest", "digest"),
)

step_outputs = _table(
    "step_outputs",
    Column("run_id", _RUN_ID, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("output", _NAME, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("digest", _DIGEST, nullable=False),
    _of_step_run(),
    Index("step_outputs_by_digest", "digest"),
)

code = _table("code", Column("digest", _DIGEST, primary_key=True), _text("parts"))

# An entry names its own outputs, because it outlives the run that made it. They are JSON, not rows: digests come in
# random order, and each row of a table and its index would dirty two more pages for every step.
cache_entries = _table(
    "cache_entries",
    Column("key", _DIGEST, primary_key=True),
    Column("store", _STORE, primary_key=True),
    Column("run_id", _RUN_ID, nullable=False),
    Column("name", _NAME, nullable=False),
    _text("outputs"),
    Column("created_at", Double, nullable=False),
    Index("cache_entries_by_age", "created_at"),
)

# One row: what tells this ledger from others that use the same artifact store.
identity = _table(
    "identity", Column("name", String(16), primary_key=True), Column("ledger_id", _DIGEST, nullable=False)
)

# Who computes a key just now. No foreign key: a claim of a deleted run is simply nobody's.
claims = _table(
    "claims",
    Column("key", _DIGEST, primary_key=True),
    Column("store", _STORE, primary_key=True),
    Column("run_id", _RUN_ID, nullable=False),
    Column("name", _NAME, nullable=False),
    Column("claimed_at", Double, nullable=False),
    Index("claims_by_run", "run_id"),
)
