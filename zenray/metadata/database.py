"""A SQL database as the metadata store uses it: a connection per thread, explicit transactions, own errors.

Runs in: driver.
"""

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Executable, Table, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from zenray.errors import MetadataError
from zenray.masking import masked_url, secrets_of
from zenray.metadata import migration, readonly
from zenray.metadata.failures import READ_ONLY, is_busy, is_transient, translate, words
from zenray.waiting import RETRY_S, Server, Waiter

T = TypeVar("T")
CONNECT_S = 5
_READS_MAX = 20  # of a file that changes under them
SILENCE_S = 20.0  # shorter than a run's lease
_DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb")
_EXAMPLES = (
    "'sqlite:////path/ledger.db', 'postgresql+psycopg://user@host/database' or 'mysql+pymysql://user@host/database'"
)
_QUOTING = "signs such as '@', '/', ':' and '%' in a user or password must be quoted ('%40' for '@'); "
# SQLite: take the write lock at once, so that a transaction waits for its turn at its beginning, and never
# fails half way because another process wrote in between.
_BEGIN = {"sqlite": "BEGIN IMMEDIATE"}
# A dead network is noticed also by a connection that only waits.
_LIBPQ = {"connect_timeout": CONNECT_S, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2}
_LIBPQ |= {"tcp_user_timeout": round(SILENCE_S * 1000)}
_CONNECT_ARGUMENTS = {"psycopg": _LIBPQ, "psycopg2": _LIBPQ, "pymysql": {"connect_timeout": CONNECT_S}}


class Database:
    """A database by its SQLAlchemy URL; connects, and creates or upgrades its tables, on first use.

    ``sqlite://`` is a private database that is gone when this object is. Safe to use from many threads. A read
    is a statement of its own; what must hold together goes through ``write``.

    A server that was reached once may go away for ``retry_s``: reads and writes wait for it, and ``waiter`` is told.
    One that was never reached is an error within seconds, and a wrong password at once. A connection on which a server
    says nothing for ``silence_s`` is given up. SQLite waits ``busy_timeout_s`` for its lock; its file may be one that
    can only be read.
    """

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = 60.0,
        retry_s: float = RETRY_S,
        silence_s: float = SILENCE_S,
        waiter: Waiter | None = None,
    ) -> None:
        self._url = _parse(url)
        self._busy_timeout_s = busy_timeout_s
        self._silence_s = silence_s
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._local = threading.local()
        self._connections: list[tuple[threading.Thread, Connection]] = []
        self._upserts: dict[tuple[str, bool], Executable] = {}
        self._found: readonly.State | None = None  # how a file that may only be read was when it was opened
        if self._url.get_backend_name() == "sqlite":
            self._url = self._with_absolute_path(self._url)
        written = self._url.render_as_string(hide_password=False)
        self._secrets = secrets_of(written)
        self.name = masked_url(written)
        self.server = Server(f"the metadata store {self.name!r}", retry_s=retry_s, waiter=waiter)

    @property
    def dialect(self) -> str:
        """The kind of database: ``sqlite``, ``postgresql``, ``mysql`` or ``mariadb``."""
        return self._url.get_backend_name()

    @property
    def is_read_only(self) -> bool:
        """Say whether it is a file that this process may only read; of a server it is not known."""
        return self.dialect == "sqlite" and readonly.is_read_only(self._path)

    def check_writable(self) -> None:
        """Raise MetadataError where ``is_read_only``, before something is begun that would end half way."""
        if self.is_read_only:
            raise MetadataError(f"cannot write to the metadata store: {self.name!r} may only be read; {READ_ONLY}")

    @property
    def _path(self) -> Path:
        return Path(os.path.realpath(str(self._url.database)))

    def read(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Return all rows of a query."""
        return self._persist(lambda: self._read(statement, parameters))

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` as one transaction and return what it does; an exception undoes all of it.

        It may run more than once, also after a first commit whose confirmation was lost: it must not mind.
        """

        def attempt() -> T:
            with self.transaction() as connection:
                return work(connection)

        return self._persist(attempt)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run the block's writes as one, tried once; an exception undoes them all."""
        try:
            connection = self._connection()
            connection.exec_driver_sql(_BEGIN.get(self.dialect, "BEGIN"))
            yield connection
            connection.exec_driver_sql("COMMIT")
        except (SQLAlchemyError, UnicodeDecodeError) as exc:
            self.release()
            raise self._error(exc, "write to the metadata store") from exc
        except BaseException:
            self.release()
            raise

    def insert(self, table: Table) -> Any:
        """Return an INSERT of the dialect, which is the one that knows about conflicts."""
        backend = "mysql" if self.dialect == "mariadb" else self.dialect
        return import_module(f"sqlalchemy.dialects.{backend}").insert(table)

    def upsert(self, table: Table, *, is_first_kept: bool = False) -> Executable:
        """Return an INSERT that on an existing primary key overwrites the row, or leaves it alone.

        Always the same object for a table: making one costs as much as running it.
        """
        found = self._upserts.get((table.name, is_first_kept))
        if found is None:
            found = self._upserts[table.name, is_first_kept] = self._upsert(table, is_first_kept=is_first_kept)
        return found

    def _upsert(self, table: Table, *, is_first_kept: bool) -> Executable:
        statement = self.insert(table)
        keys = [c.name for c in table.primary_key]
        others = [c.name for c in table.columns if c.name not in keys]
        if self.dialect in ("mysql", "mariadb"):
            columns = keys[:1] if is_first_kept else others  # a key set to itself: the row stays as it is
            source = table.c if is_first_kept else statement.inserted
            result = statement.on_duplicate_key_update({name: source[name] for name in columns})
        elif is_first_kept:
            result = statement.on_conflict_do_nothing(index_elements=keys)
        else:
            values = {name: statement.excluded[name] for name in others}
            result = statement.on_conflict_do_update(index_elements=keys, set_=values)
        assert isinstance(result, Executable)
        return result

    def release(self) -> None:
        """Close this thread's connection, and with it what it had begun; the next use opens another."""
        connection: Connection | None = self._local.__dict__.pop("connection", None)
        if connection is not None:
            with self._lock:
                self._connections = [(t, c) for t, c in self._connections if c is not connection]
            _close(connection)

    def check_driver(self) -> None:
        """Raise MetadataError where the driver for the URL is not installed; connects to nothing."""
        self._create_engine(silence_s=None)

    def upgrade(self) -> None:
        """Bring the tables of an older ZenRay up to date, also where that is not done by itself."""
        with self._lock:
            self._open(is_upgrade_allowed=True)

    def close(self) -> None:
        """Close this thread's connection and let go of the others; the next use opens new ones.

        A connection that another thread is just using is closed by that thread's last reference to it: SQLite's
        would crash the process if it were closed under a statement.
        """
        self.release()
        with self._lock:
            self._close_dead_threads()
            self._connections = []
            self._local = threading.local()
            self._engine = None

    def _persist(self, work: Callable[[], T]) -> T:
        return self.persist(work, is_tried_again=self.dialect != "sqlite")  # which has waited by itself

    def persist(self, work: Callable[[], T], *, is_tried_again: bool = True) -> T:
        """Do a piece of work, again and again where the reason that it failed may pass."""
        with self.server.call() as call:
            while True:
                try:
                    result = work()
                except MetadataError as exc:
                    if not is_tried_again or not is_transient(exc):
                        raise
                    self.server.is_reached |= is_busy(exc)
                    if not call.pause(words(exc.__cause__, self._secrets)):
                        raise MetadataError(f"{exc}; it was tried{call.tried}") from exc.__cause__
                else:
                    call.answer()
                    return result

    def _read(self, statement: Executable, parameters: Mapping[str, Any] | None) -> Sequence[Any]:
        for _ in range(_READS_MAX):
            try:
                connection = self._connection()
                found = connection.execute(statement, parameters).all()
                if self._found is None or connection.info["found"] == readonly.state(self._path):
                    return found
            except (SQLAlchemyError, UnicodeDecodeError) as exc:
                self.release()
                if self._found is None or self._found == readonly.state(self._path):
                    raise self._error(exc, "read the metadata store") from exc
            self.close()  # the file has changed meanwhile
        raise MetadataError(f"cannot read {self.name!r}: it changes all the time; try again later")

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            with self._lock:
                engine = self._engine or self._open()
                self._close_dead_threads()
                connection = engine.connect()
                connection.info["found"] = self._found
                self._connections.append((threading.current_thread(), connection))
            self._local.connection = connection
        return connection

    def _close_dead_threads(self) -> None:
        for thread, connection in self._connections:
            if not thread.is_alive():
                _close(connection)
        self._connections = [(t, c) for t, c in self._connections if t.is_alive()]

    def _open(self, *, is_upgrade_allowed: bool = False) -> Engine:
        self._found = readonly.state(self._path) if self.is_read_only else None
        engine = self._create_engine(silence_s=None if is_upgrade_allowed else self._silence_s)
        try:
            if self._found is not None:
                migration.check(engine, name=self.name)
            else:
                migration.prepare(engine, name=self.name, is_upgrade_allowed=is_upgrade_allowed)
        except (SQLAlchemyError, UnicodeDecodeError) as exc:
            engine.dispose()
            raise self._error(exc, "open the metadata store") from exc
        self._engine = engine
        return engine

    def _create_engine(self, *, silence_s: float | None) -> Engine:
        """Return an engine; its connections break where a server says nothing for ``silence_s``; None: never."""
        driver = self._url.get_driver_name()
        arguments: dict[str, Any] = dict(_CONNECT_ARGUMENTS.get(driver, {}))
        if driver == "pymysql":
            arguments |= {"read_timeout": silence_s, "write_timeout": silence_s}
        if self.dialect == "sqlite":
            arguments = {"timeout": self._busy_timeout_s, "check_same_thread": False}
        try:
            engine = create_engine(
                self._url,
                **({"use_native_hstore": False} if driver == "psycopg" else {}),  # three round trips for nothing
                poolclass=NullPool,
                pool_reset_on_return=None,  # a connection that is let go is closed, which undoes what it had begun
                isolation_level="AUTOCOMMIT",
                connect_args={k: v for k, v in arguments.items() if k not in self._url.query},
                hide_parameters=True,
            )
        except ImportError as exc:
            raise MetadataError(
                f"the driver for {self.name!r} is not installed ({exc}): run `zenray integration install postgres` for "
                "postgresql+psycopg://..., `zenray integration install mysql` for mysql+pymysql://..."
            ) from exc
        except SQLAlchemyError as exc:
            raise self._error(exc, "open the metadata store") from exc
        if self._found is not None:
            open_file = partial(readonly.connect, self._path, self.name, self._found, timeout_s=self._busy_timeout_s)
            event.listen(engine, "do_connect", lambda *_: open_file())
        elif self.dialect == "sqlite":
            event.listen(engine, "connect", _set_pragmas)
        elif self.dialect in ("mysql", "mariadb"):
            event.listen(engine, "connect", _set_isolation)
        elif driver == "psycopg" and silence_s is not None:
            from zenray.metadata.postgresql import connector  # psycopg is optional

            connect = connector(silence_s)
            event.listen(engine, "do_connect", lambda dialect, record, words, names: connect(*words, **names))
        return engine

    def _error(self, exc: SQLAlchemyError | UnicodeDecodeError, what: str) -> MetadataError:
        return translate(exc, what=what, url=self.name, secrets=self._secrets)

    def _with_absolute_path(self, url: URL) -> URL:
        """Return the URL independent of the working directory; without a path, that of a temporary file.

        SQLite's own in-memory databases belong to one connection, and this class has one for each thread.
        """
        if url.database in (None, "", ":memory:"):
            folder = tempfile.mkdtemp(prefix="zenray-metadata-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            return url.set(database=str(Path(folder, "ledger.db")))
        return url.set(database=str(Path(str(url.database)).expanduser().absolute()))


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a ValueError repeats what it took for the port: it may be a password's end
        raise MetadataError(f"the metadata store's URL cannot be read; {_QUOTING}write it like {_EXAMPLES}") from None
    if parsed.host and "@" in f"{parsed.host}{parsed.database}":
        raise MetadataError(f"the metadata store's URL has more than one '@'; {_QUOTING}write it like {_EXAMPLES}")
    if parsed.get_backend_name() not in _DIALECTS:
        raise MetadataError(f"there is no metadata store on {parsed.get_backend_name()!r}; write it like {_EXAMPLES}")
    return parsed


def _set_isolation(connection: Any, _: object) -> None:
    """Let each statement see what others have committed, as on PostgreSQL; MySQL's default is the first read's view."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _set_pragmas(connection: Any, _: object) -> None:
    """Set what SQLite forgets with each connection.

    With a write-ahead log, synchronous=NORMAL loses no consistency: a power cut may undo the last commits, a
    killed process undoes none (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _close(connection: Connection) -> None:
    """Close a connection without the rollback that SQLAlchemy would wait for: its end undoes what it had begun."""
    with suppress(SQLAlchemyError):  # it may be gone already
        connection.invalidate()
        connection.close()
