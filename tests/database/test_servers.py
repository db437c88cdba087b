"""The ledger on PostgreSQL and MariaDB: the same contract as on SQLite, and tables that match the migrations."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from sqlalchemy import create_engine, inspect, text

from tests.database import contract
from zenray.errors import MetadataError
from zenray.metadata import schema
from zenray.metadata.__main__ import main
from zenray.metadata.ledger import Ledger


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request):
    """The URL of a database on each server in turn, whose tables are there, and empty."""
    url = request.getfixturevalue(f"{request.param}_url")
    with Ledger(url) as ledger, ledger.database.transaction() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
    return url


class TestLedger(contract.LedgerContract):
    pass


class TestClocks(contract.ClocksContract):
    pass


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contract.recorded, contract.cuts)
def test_a_batch_has_the_effect_of_its_changes_one_by_one(ledger, recorded, cuts):
    contract.check_that_a_batch_has_the_effect_of_its_changes_one_by_one(ledger, recorded, cuts)


def execute(url, *statements):
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def structures(url):
    """Return how the tables are in a database, after checking that alembic would change nothing."""
    engine = create_engine(url)
    with engine.connect() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.metadata) == []
        found = [contract.structure_of(inspect(connection), name) for name in schema.metadata.tables]
    engine.dispose()
    return found


VERSION_TABLE = f"CREATE TABLE {schema.VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"


def test_the_migrations_build_the_tables_of_the_schema(server_url):
    with Ledger(server_url) as ledger:
        ledger.list_runs()
    created = structures(server_url)
    engine = create_engine(server_url)
    with engine.begin() as connection:
        schema.metadata.drop_all(connection)
        connection.execute(text(f"DELETE FROM {schema.VERSION_TABLE}"))
    engine.dispose()
    assert main(["upgrade", server_url]) == 0
    assert structures(server_url) == created


def test_an_older_database_is_upgraded_on_request_only(server_url, capsys):
    execute(server_url, VERSION_TABLE)
    with Ledger(server_url) as ledger, pytest.raises(MetadataError, match=r"python -m zenray\.metadata upgrade"):
        ledger.list_runs()
    assert main(["upgrade", server_url]) == 0
    assert "up to date" in capsys.readouterr().out
    with Ledger(server_url) as ledger:
        assert ledger.list_runs() == ()


def test_a_newer_database_is_refused_with_the_command_to_run(server_url):
    with Ledger(server_url) as ledger:
        ledger.create_run(contract.a_run())
    execute(server_url, f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    for use in (Ledger(server_url).list_runs, lambda: Ledger(server_url).create_run(contract.a_run("next"))):
        with pytest.raises(MetadataError, match=r"'9999'.*0001.*newer ZenRay"):
            use()


def test_tables_of_another_program_are_left_alone(server_url):
    execute(server_url, "CREATE TABLE runs (id INTEGER)")
    with pytest.raises(MetadataError, match="another program"):
        Ledger(server_url).list_runs()
