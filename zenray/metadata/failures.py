"""What a database's exceptions mean: the message a user reads, and whether trying again may help.

Runs in: driver.
"""

from collections.abc import Collection

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from zenray.errors import MetadataError
from zenray.masking import without

_BUSY = "another process has kept it locked for too long: look for one that hangs (`lsof FILE`), then try again"
_DAMAGED = (
    "nothing was changed; restore the file from a backup, or move it away (with its -wal and -shm files) to begin "
    "a new one: artifacts are not lost by that"
)
_FORBIDDEN = "check the permissions of the file and of its directory, or keep state elsewhere with ZENRAY_HOME"
READ_ONLY = (
    "it can be listed, and what writes needs the permission to write the file and its directory; choose another "
    "stack, or keep state elsewhere with ZENRAY_HOME"
)
_IO = "the disk or file system gave an error: check it (`dmesg`, `df`), then run again"
_FULL = "free disk space, then run again"
_PROBABLY_FULL = f"the disk is probably full (`df` tells): {_FULL}"
_SERVER = "check that the database server can be reached and lets this user in"
_DENIED = "check user name, password and database in the URL of the metadata store, and what the server allows"
_CROWDED = "end other clients, or raise the server's max_connections, then run again"
_BUG = "this is a fault in ZenRay: please report it with this message"

# SQLite's result codes by the beginning of their names (https://www.sqlite.org/rescode.html), and what to do.
_ADVICE = {
    "SQLITE_BUSY": _BUSY,
    "SQLITE_LOCKED": _BUSY,
    "SQLITE_PROTOCOL": _BUSY,
    "SQLITE_FULL": _FULL,
    "SQLITE_READONLY": READ_ONLY,
    "SQLITE_CANTOPEN": _FORBIDDEN,
    "SQLITE_PERM": _FORBIDDEN,
    "SQLITE_NOTADB": _DAMAGED,
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_IOERR_SHMSIZE": _PROBABLY_FULL,  # the file beside it that readers need, too, could not grow
    "SQLITE_IOERR": _IO,
}
_TRANSIENT_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL", "SQLITE_IOERR")
# SQLSTATE classes: connection lost, transaction rolled back (deadlock, serialization), too many connections,
# server shuts down or starts.
_TRANSIENT_SQLSTATE = ("25006", "08", "40", "53300", "57P")
# Lock wait, deadlock, shutting down, killed, server gone, not reached or not resolved.
_TRANSIENT_MYSQL = (1053, 1205, 1213, 1927, 2002, 2003, 2005, 2006, 2013, 2055, 4031)
_CROWDED_MYSQL = (1040, 1203)
_DENIED_MYSQL = (1044, 1045, 1049, 1698)
# While it connects psycopg knows no SQLSTATE, only the server's words.
_CONNECTING = "connection failed", "connection timeout", "failed to resolve host"
_CROWDED_WORDS = "too many clients", "too many connections", "connection slots"
_STARTING_WORDS = "starting up", "shutting down", "in recovery mode", "not yet accepting connections"


def translate(
    exc: SQLAlchemyError | UnicodeDecodeError, *, what: str, url: str, secrets: Collection[str] = ()
) -> MetadataError:
    """Return the error to raise: what could not be done, where (``url`` must not hold a password), what to do.

    ``secrets`` are masked in the driver's words, which may repeat what it was given.
    """
    reason = _reason(exc)
    code, text = getattr(reason, "sqlite_errorname", ""), words(reason, secrets)
    return MetadataError(f"cannot {what}: {url!r} says {text!r}{f' ({code})' if code else ''}; {_advice(exc, code)}")


def words(exc: BaseException | None, secrets: Collection[str] = ()) -> str:
    """Return what the driver said, with secrets masked."""
    reason = _reason(exc)
    return without(str(reason).strip() or type(reason).__name__, secrets)


def _reason(exc: BaseException | None) -> BaseException | None:
    return exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc


def is_transient(error: MetadataError) -> bool:
    """Say whether the same statement may succeed later: locked, busy, server away, an I/O error."""
    exc = error.__cause__
    if not isinstance(exc, DBAPIError):
        return False
    reason = exc.orig
    sqlstate = getattr(reason, "sqlstate", None) or ""
    return (
        exc.connection_invalidated
        or is_busy(error)
        or getattr(reason, "sqlite_errorname", "").startswith(_TRANSIENT_SQLITE)
        or str(sqlstate).startswith(_TRANSIENT_SQLSTATE)
        or _number(exc) in _TRANSIENT_MYSQL
        or (any(word in str(reason) for word in _CONNECTING) and not _is_answer(str(reason)))
    )


def is_busy(error: MetadataError) -> bool:
    """Say whether a server that is there lets nobody in for the moment: all connections taken, or it just starts."""
    exc = error.__cause__
    return isinstance(exc, DBAPIError) and (
        _is_crowded(exc) or (_is_answer(str(exc.orig)) and any(word in str(exc.orig) for word in _STARTING_WORDS))
    )


def _is_answer(text: str) -> bool:
    """Say whether a connection was refused by a PostgreSQL server's own words, not by the network."""
    return "FATAL:" in text


def _is_crowded(exc: DBAPIError) -> bool:
    if _number(exc) in _CROWDED_MYSQL or getattr(exc.orig, "sqlstate", None) == "53300":
        return True
    return _is_answer(str(exc.orig)) and any(word in str(exc.orig) for word in _CROWDED_WORDS)


def _number(exc: DBAPIError) -> object:
    """Return the number that MySQL's drivers put first."""
    return exc.orig.args[0] if exc.orig is not None and exc.orig.args else None


def _advice(exc: SQLAlchemyError | UnicodeDecodeError, code: str) -> str:
    if isinstance(exc, UnicodeDecodeError) or "malformed database schema" in str(exc):
        return _DAMAGED  # SQLite gives text out as it is in the file
    for begin, advice in _ADVICE.items():
        if code.startswith(begin):
            return advice
    if not code and type(getattr(exc, "orig", None)).__module__ == "sqlite3":
        return _DAMAGED  # a text that is none
    if code or not isinstance(exc, DBAPIError) or isinstance(exc, IntegrityError):
        return _BUG
    if _is_crowded(exc):
        return _CROWDED
    if getattr(exc.orig, "sqlstate", None) == "53100":
        return _FULL
    return _DENIED if _is_answer(str(exc.orig)) or _number(exc) in _DENIED_MYSQL else _SERVER
