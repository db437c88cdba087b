"""Servers that tests of several folders use: started when first asked for, one each, ended with the tests.

A server whose programs are not installed skips its tests on a laptop and fails them where CI is set.
"""

from collections.abc import Iterator

import pytest

from tests.servers import databases
from tests.servers.object_stores import ObjectStore, azurite
from tests.servers.starting import running
from zenray.metadata.ledger import Ledger


@pytest.fixture(scope="session")
def postgresql() -> Iterator[databases.PostgreSQL]:
    """A PostgreSQL server; whoever stops it starts it again."""
    yield from running(databases.postgresql())


@pytest.fixture(scope="session")
def mariadb() -> Iterator[databases.MariaDB]:
    """A MariaDB server."""
    yield from running(databases.mariadb())


@pytest.fixture(scope="session")
def postgresql_url(postgresql: databases.PostgreSQL) -> Iterator[str]:
    """The URL of a PostgreSQL database that the whole session shares."""
    with postgresql.database() as name:
        yield postgresql.url(name)


@pytest.fixture(scope="session")
def mariadb_url(mariadb: databases.MariaDB) -> Iterator[str]:
    """The URL of a MariaDB database that the whole session shares."""
    with mariadb.database() as name:
        yield mariadb.url(name)


@pytest.fixture
def fresh_postgresql_url(postgresql: databases.PostgreSQL) -> Iterator[str]:
    """The URL of a new, empty PostgreSQL database."""
    with postgresql.database() as name:
        yield postgresql.url(name)


@pytest.fixture
def fresh_mariadb_url(mariadb: databases.MariaDB) -> Iterator[str]:
    """The URL of a new, empty MariaDB database."""
    with mariadb.database() as name:
        yield mariadb.url(name)


@pytest.fixture(params=["postgresql", "mariadb"])
def server_url(request: pytest.FixtureRequest) -> str:
    """The URL of a new, empty database on each kind of server in turn."""
    return str(request.getfixturevalue(f"fresh_{request.param}_url"))


@pytest.fixture(scope="session")
def azure_server() -> Iterator[ObjectStore]:
    """An Azure Blob server with a container."""
    yield from running(azurite())


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger on the database of the test, whose module has the fixture ``url``."""
    with Ledger(url) as opened:
        yield opened
