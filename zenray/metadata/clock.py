"""The database's own clock, in SQL: whether a lease lasts must not depend on the clock of the machine that asks.

Runs in: driver.

The clocks of machines that share a ledger may be minutes apart, and each would see another end of the same lease. So
leases are written and compared by this expression only, never by a time that a machine gives. A SQLite file belongs to
one machine.
"""

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now_s(FunctionElement[float]):  # noqa: N801 - written like a function of SQL
    """Seconds since 1970 when the statement runs, in no time zone; to the millisecond at least."""

    name = "now_s"
    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _of_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _of_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(now_s, "mysql")
@compiles(now_s, "mariadb")
def _of_mysql(*_: Any, **__: Any) -> str:
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"
