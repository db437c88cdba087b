"""Who computes a key, who a ledger is, and who wants a run to stop.

Runs in: driver.

Tables were made before that had some of it, and the revision 0001 all the same: what is there already stays.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"

_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_MYSQL: dict[str, Any] = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    """Add what is missing."""
    found = sa.inspect(op.get_bind())
    if not found.has_table("claims"):
        _create_claims()
    if not found.has_table("identity"):
        op.create_table(
            "identity",
            sa.Column("name", sa.String(length=16), nullable=False),
            sa.Column("ledger_id", sa.String(length=64), nullable=False),
            sa.PrimaryKeyConstraint("name"),
            **_MYSQL,
        )
    if "stop_asked_by" not in {column["name"] for column in found.get_columns("runs")}:
        # In three steps: MySQL gives a text no default.
        op.add_column("runs", sa.Column("stop_asked_by", _TEXT, nullable=True))
        op.execute("UPDATE runs SET stop_asked_by = ''")
        with op.batch_alter_table("runs") as runs:
            runs.alter_column("stop_asked_by", existing_type=_TEXT, nullable=False)


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("stop_asked_by")
    op.drop_table("identity")
    op.drop_table("claims")


def _create_claims() -> None:
    op.create_table(
        "claims",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("store", sa.String(length=300), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("claimed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", "store"),
        **_MYSQL,
    )
    op.create_index("claims_by_run", "claims", ["run_id"], unique=False)
