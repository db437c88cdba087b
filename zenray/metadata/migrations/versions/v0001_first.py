"""The first tables.

Runs in: driver.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_MYSQL: dict[str, Any] = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    """Create all tables."""
    _create_runs()
    _create_edges()
    _create_artifacts()
    _create_cache()


def downgrade() -> None:
    """Drop all tables."""
    op.drop_table("step_outputs")
    op.drop_table("step_inputs")
    op.drop_table("attempts")
    op.drop_table("step_runs")
    op.drop_table("runs")
    op.drop_table("code")
    op.drop_table("cache_entries")
    op.drop_table("artifacts")


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("pipeline", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("parameters", _TEXT, nullable=False),
        sa.Column("stack", _TEXT, nullable=False),
        sa.Column("error", _TEXT, nullable=True),
        sa.Column("user", _TEXT, nullable=False),
        sa.Column("host", _TEXT, nullable=False),
        sa.Column("versions", _TEXT, nullable=False),
        sa.Column("git_revision", _TEXT, nullable=False),
        sa.Column("source_file", _TEXT, nullable=False),
        sa.Column("outputs", _TEXT, nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
        **_MYSQL,
    )
    op.create_index("runs_by_pipeline", "runs", ["pipeline", "started_at"], unique=False)
    op.create_index("runs_by_start", "runs", ["started_at"], unique=False)
    op.create_index("runs_by_status", "runs", ["status", "lease_until"], unique=False)
    op.create_table(
        "step_runs",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("step", sa.String(length=200), nullable=False),
        sa.Column("module", _TEXT, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("cache_key", sa.String(length=64), nullable=False),
        sa.Column("key_parts", _TEXT, nullable=False),
        sa.Column("code_digest", sa.String(length=64), nullable=False),
        sa.Column("source_run_id", _TEXT, nullable=False),
        sa.Column("source_name", _TEXT, nullable=False),
        sa.Column("parameters", _TEXT, nullable=False),
        sa.Column("resources", _TEXT, nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("error", _TEXT, nullable=True),
        sa.Column("cause", _TEXT, nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("tags", _TEXT, nullable=False),
        sa.Column("metadata", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name"),
        **_MYSQL,
    )
    op.create_index("step_runs_by_step", "step_runs", ["step", "started_at"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("worker", _TEXT, nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("error", _TEXT, nullable=True),
        sa.Column("log_uri", _TEXT, nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id", "name"], ["step_runs.run_id", "step_runs.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name", "number"),
        **_MYSQL,
    )


def _create_edges() -> None:
    op.create_table(
        "step_inputs",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("argument", sa.String(length=200), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("producer", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id", "name"], ["step_runs.run_id", "step_runs.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name", "argument", "position"),
        **_MYSQL,
    )
    op.create_index("step_inputs_by_digest", "step_inputs", ["digest"], unique=False)
    op.create_table(
        "step_outputs",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("output", sa.String(length=200), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["run_id", "name"], ["step_runs.run_id", "step_runs.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name", "output", "position"),
        **_MYSQL,
    )
    op.create_index("step_outputs_by_digest", "step_outputs", ["digest"], unique=False)


def _create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("store", sa.String(length=300), nullable=False),
        sa.Column("type_name", _TEXT, nullable=False),
        sa.Column("materializer", _TEXT, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("is_pickle", sa.Boolean(), nullable=False),
        sa.Column("manifest", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("digest", "store"),
        **_MYSQL,
    )
    op.create_index("artifacts_by_age", "artifacts", ["created_at"], unique=False)
    op.create_table(
        "code",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("parts", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("digest"),
        **_MYSQL,
    )


def _create_cache() -> None:
    op.create_table(
        "cache_entries",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("store", sa.String(length=300), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("outputs", _TEXT, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", "store"),
        **_MYSQL,
    )
    op.create_index("cache_entries_by_age", "cache_entries", ["created_at"], unique=False)
