"""What a database's exceptions mean: the message a user reads, and whether trying again may help.

Runs in: driver.
"""

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from zenray.errors import MetadataError

_BUSY = "another process has kept it locked for too long: look for one that hangs (`lsof FILE`), then try again"
_DAMAGED = (
    "nothing was changed; restore the file from a backup, or move it away (with its -wal and -shm files) to begin "
    "a new one: artifacts are not lost by that"
)
_FORBIDDEN = "check the permissions of the file and of its directory, or keep state elsewhere with ZENRAY_HOME"
_IO = "the disk or file system gave an error: check it (`dmesg`, `df`), then run again"
_FULL = "free disk space, then run again"
_SERVER = "check that the database server can be reached and lets this user in"
_BUG = "this is a fault in ZenRay: please report it with this message"

# SQLite's result codes by the beginning of their names (https://www.sqlite.org/rescode.html), and what to do.
_ADVICE = {
    "SQLITE_BUSY": _BUSY,
    "SQLITE_LOCKED": _BUSY,
    "SQLITE_PROTOCOL": _BUSY,
    "SQLITE_FULL": _FULL,
    "SQLITE_READONLY": _FORBIDDEN,
    "SQLITE_CANTOPEN": _FORBIDDEN,
    "SQLITE_PERM": _FORBIDDEN,
    "SQLITE_NOTADB": _DAMAGED,
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_IOERR": _IO,
}
_TRANSIENT_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_IOERR")
# SQLSTATE classes: connection lost, transaction rolled back (deadlock, serialization), server shuts down.
_TRANSIENT_SQLSTATE = ("08", "40", "57P")
_TRANSIENT_MYSQL = (1205, 1213, 2002, 2003, 2006, 2013, 2055)  # lock wait, deadlock, server gone or not reached


def translate(exc: SQLAlchemyError, *, what: str, url: str) -> MetadataError:
    """Return the error to raise: what could not be done, where (``url`` must not hold a password), what to do."""
    reason = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    code = getattr(reason, "sqlite_errorname", "")
    text = str(reason).strip() or type(reason).__name__
    return MetadataError(f"cannot {what}: {url!r} says {text!r}{f' ({code})' if code else ''}; {_advice(exc, code)}")


def is_transient(error: MetadataError) -> bool:
    """Say whether the same statement may succeed later: locked, busy, server away, an I/O error."""
    exc = error.__cause__
    if not isinstance(exc, DBAPIError):
        return False
    reason = exc.orig
    sqlstate = getattr(reason, "sqlstate", None) or ""
    code = reason.args[0] if reason is not None and reason.args else None
    return (
        is_disconnect(exc)
        or getattr(reason, "sqlite_errorname", "").startswith(_TRANSIENT_SQLITE)
        or str(sqlstate).startswith(_TRANSIENT_SQLSTATE)
        or code in _TRANSIENT_MYSQL
        or "connection failed" in str(reason)  # psycopg gives no SQLSTATE where the server cannot be reached
    )


def is_disconnect(exc: SQLAlchemyError) -> bool:
    """Say whether the connection is gone, so that a new one may work."""
    return isinstance(exc, DBAPIError) and exc.connection_invalidated


def _advice(exc: SQLAlchemyError, code: str) -> str:
    for begin, advice in _ADVICE.items():
        if code.startswith(begin):
            return advice
    return _SERVER if isinstance(exc, DBAPIError) and not code and not isinstance(exc, IntegrityError) else _BUG
