"""The state of a database's tables: made where they are missing, upgraded where they are old, refused where newer.

Runs in: driver.

Alembic is slow to import and is needed for an upgrade only: a new database is created from ``schema`` and
stamped with the newest revision, an existing one is checked by one SELECT.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, inspect, select

from zenray.errors import MetadataError
from zenray.metadata.schema import HEAD, REVISIONS, VERSION_TABLE, metadata

_UNVERSIONED = ""  # the version table is there and empty: older than the first revision
_SERVER_LOCK = {
    "postgresql": "SELECT pg_advisory_lock(8246012)",
    "mysql": "SELECT GET_LOCK('zenray.metadata', 60)",
    "mariadb": "SELECT GET_LOCK('zenray.metadata', 60)",
}
_PAGE_BYTES_MIN = 512  # of any database: https://www.sqlite.org/fileformat.html
_version = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True))


def prepare(engine: Engine, *, name: str, is_upgrade_allowed: bool = False) -> None:
    """Make sure that the database has the tables this code needs; ``name`` is its URL without the password.

    Any number of processes may do so at once. An older SQLite file is copied and then upgraded; elsewhere an
    upgrade needs ``is_upgrade_allowed``. Raises MetadataError where the tables are those of a newer version.
    """
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, Path(str(engine.url.database)), name)
        return
    with engine.connect() as connection:
        if _revision(connection, name) == HEAD:
            return
        connection.exec_driver_sql(_SERVER_LOCK[engine.dialect.name])  # until the connection is closed
        revision = _revision(connection, name)
        if revision == _UNVERSIONED:
            _refuse_unstamped(connection, name)
        if revision is None:
            _refuse_foreign(connection, name)
            _create(connection)
        elif revision != HEAD and not is_upgrade_allowed:
            raise MetadataError(
                f"{name!r} has the tables of an older ZenRay (revision {revision!r}, needed is {HEAD!r}): "
                "end the runs that use it, make a backup, then run `python -m zenray.metadata upgrade URL`"
            )
        elif revision != HEAD:
            _upgrade(connection)


def check(engine: Engine, *, name: str) -> None:
    """Raise MetadataError unless the tables of a database that may only be read are those this code needs."""
    with engine.connect() as connection:
        revision = _revision(connection, name)
    if revision != HEAD:
        raise MetadataError(
            f"{name!r} may only be read, and has no tables of this ZenRay (revision {revision!r}, needed is {HEAD!r}); "
            "copy the file into a folder of yours: an older one is upgraded there"
        )


def _prepare_sqlite(engine: Engine, path: Path, name: str) -> None:
    if _is_database(path, name):
        with engine.connect() as connection:
            is_current = _revision(connection, name) == HEAD
            if is_current and connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal":
                return
    else:
        _make_directory(path.parent)
    with _file_lock(path.with_name(path.name + ".lock")), engine.connect() as connection:
        revision = _revision(connection, name)
        if revision is None:
            _refuse_foreign(connection, name)
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        if revision is None:
            _create(connection)
        elif revision != HEAD:
            if revision == _UNVERSIONED:
                _refuse_unstamped(connection, name)
            backup = path.with_name(f"{path.name}.{revision or 'empty'}-{time.strftime('%Y%m%dT%H%M%S')}.bak")
            connection.exec_driver_sql("VACUUM INTO ?", (str(backup),))
            # Alembic rebuilds a table to change it: with enforcement on, dropping the old one would cascade.
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            _upgrade(connection)


def _is_database(path: Path, name: str) -> bool:
    """Say whether there is one; refuse a file too short to be, because SQLite takes it for an empty database.

    The file is never opened here: closing it would drop the locks of this process's other connections to it
    (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
    """
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise MetadataError(
            f"cannot read {name!r} ({exc.strerror}): it must be a file you may read; "
            "check its path and permissions, or keep state elsewhere with ZENRAY_HOME"
        ) from exc
    if 0 < size_bytes < _PAGE_BYTES_MIN:
        raise MetadataError(f"{name!r} is not a SQLite database, and was not changed: use another path for the ledger")
    return True


def _revision(connection: Connection, name: str) -> str | None:
    """Return the revision of the tables, None where there is no version table; refuse an unknown one."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision = connection.execute(select(_version.c.version_num)).scalar() or _UNVERSIONED
    if revision != _UNVERSIONED and revision not in REVISIONS:
        raise MetadataError(
            f"{name!r} has tables of revision {revision!r}, and this ZenRay knows {', '.join(REVISIONS)}: they were "
            "made by a newer ZenRay (use that one) or by another program (use another database)"
        )
    return str(revision)


def _refuse_foreign(connection: Connection, name: str) -> None:
    """Raise where there are tables that are not ours: on a server those with our names, in a file any."""
    found = set(inspect(connection).get_table_names())
    if connection.dialect.name != "sqlite":
        found &= set(metadata.tables)
    if found:
        raise MetadataError(
            f"{name!r} belongs to another program: it has tables ({', '.join(sorted(found)[:5])}) and no "
            f"{VERSION_TABLE}; use another database"
        )


def _refuse_unstamped(connection: Connection, name: str) -> None:
    """Raise where the version table says that there is nothing yet, and there are tables."""
    found = set(inspect(connection).get_table_names()) & set(metadata.tables)
    if found:
        raise MetadataError(
            f"{name!r} is damaged: it has tables ({', '.join(sorted(found)[:5])}), and its {VERSION_TABLE} is empty; "
            "nothing was changed: restore it from a backup, or move it away to begin a new one"
        )


def _create(connection: Connection) -> None:
    """Create and stamp the tables; all or nothing, except on MySQL, where every DDL statement commits."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")
    metadata.create_all(connection, checkfirst=False)
    _version.create(connection)
    connection.execute(_version.insert(), {"version_num": HEAD})
    connection.exec_driver_sql("COMMIT")


def _upgrade(connection: Connection) -> None:
    from alembic import command  # costs 0.2 s and is needed once in the life of a database
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")
    command.upgrade(config, HEAD)
    connection.exec_driver_sql("COMMIT")


def _make_directory(path: Path) -> None:
    """Create a directory and its parents, readable by the user only: parameters may be confidential."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        for part in reversed(missing):
            part.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise MetadataError(
            f"cannot create the directory {str(path)!r} for the metadata store ({exc.strerror}): "
            "check its permissions, or keep state elsewhere with ZENRAY_HOME"
        ) from exc


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file: SQLite's own locks do not cover the switch to a write-ahead log."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise MetadataError(
            f"cannot write beside the metadata store, at {str(path)!r} ({exc.strerror}): "
            "check the permissions of the directory, or keep state elsewhere with ZENRAY_HOME"
        ) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
