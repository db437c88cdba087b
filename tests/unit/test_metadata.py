"""The ledger on SQLite: what is recorded is found again, and a file that cannot be used says why."""

import os
import sqlite3
import stat
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from sqlalchemy import create_engine, inspect
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateTable

import zenray.metadata
from tests.database import contract
from tests.database.contract import RUN, a_run
from zenray.errors import MetadataError
from zenray.metadata import schema
from zenray.metadata.__main__ import main
from zenray.metadata.database import Database
from zenray.metadata.failures import translate
from zenray.metadata.ledger import Ledger
from zenray.metadata.rows import BatchWriter

PACKAGE_PARENT = str(Path(zenray.metadata.__file__).parents[2])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def url(path):
    return url_of(path)


def url_of(path):
    return f"sqlite:///{path}"


class TestLedger(contract.LedgerContract):
    pass


class TestClocks(contract.ClocksContract):
    pass


@pytest.fixture(scope="module")
def scratch():
    with Ledger("sqlite://") as ledger:
        yield ledger


@settings(max_examples=150, deadline=None)
@given(contract.recorded, contract.cuts)
def test_a_batch_has_the_effect_of_its_changes_one_by_one(scratch, recorded, cuts):
    contract.check_that_a_batch_has_the_effect_of_its_changes_one_by_one(scratch, recorded, cuts)


class TestOpening:
    def test_missing_directories_are_made_for_the_user_only(self, tmp_path):
        with Ledger(url_of(tmp_path / "a" / "b" / "ledger.db")) as ledger:
            assert ledger.list_runs() == ()
        assert [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("a", "a/b")] == [0o700, 0o700]

    def test_a_new_database_has_a_write_ahead_log_and_the_newest_revision(self, path):
        with Ledger(url_of(path)) as ledger:
            ledger.create_run(a_run())
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.HEAD,)]
        connection.close()

    def test_a_ledger_finds_what_an_earlier_one_wrote(self, path):
        with Ledger(url_of(path)) as ledger:
            ledger.create_run(a_run())
        with Ledger(url_of(path)) as ledger:
            assert ledger.find_run(RUN) == a_run()

    def test_a_closed_ledger_opens_again(self, path):
        ledger = Ledger(url_of(path))
        ledger.create_run(a_run())
        ledger.close()
        assert ledger.find_run(RUN) == a_run()
        ledger.close()

    def test_the_working_directory_does_not_matter_later(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        ledger = Ledger("sqlite:///ledger.db")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        ledger.create_run(a_run())
        ledger.close()
        assert (tmp_path / "ledger.db").exists()

    def test_a_database_without_a_path_is_private(self):
        with Ledger("sqlite://") as one, Ledger("sqlite://") as two:
            one.create_run(a_run())
            assert two.list_runs() == ()
            assert one.find_run(RUN) == a_run()

    @pytest.mark.parametrize("content", [b"x", b"not a database, but somebody's letter\n" * 200])
    def test_a_file_that_is_no_database_is_left_alone(self, path, content):
        path.write_bytes(content)
        ledger = Ledger(url_of(path))
        with pytest.raises(MetadataError, match=r"ledger\.db"):
            ledger.create_run(a_run())
        assert path.read_bytes() == content

    def test_a_database_of_another_program_is_left_alone(self, path):
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE runs (id)")
        connection.commit()
        connection.close()
        before = path.read_bytes()
        with pytest.raises(MetadataError, match="another program"):
            Ledger(url_of(path)).list_runs()
        assert path.read_bytes() == before

    def test_a_newer_database_is_left_alone(self, path):
        with Ledger(url_of(path)) as ledger:
            ledger.create_run(a_run())
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.close()
        with pytest.raises(MetadataError, match=r"'9999'.*0001.*newer ZenRay"):
            Ledger(url_of(path)).list_runs()

    def test_an_older_database_is_copied_and_upgraded(self, path):
        with sqlite3.connect(path) as connection:  # stamped, but before the first revision
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.close()
        with Ledger(url_of(path)) as ledger:
            ledger.create_run(a_run())
            assert ledger.find_run(RUN) == a_run()
        (backup,) = path.parent.glob("ledger.db.*.bak")
        connection = sqlite3.connect(backup)
        assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [
            ("alembic_version",)
        ]
        connection.close()

    def test_the_upgrade_command_tells_how_it_is_used(self, capsys):
        assert main([]) == 2
        assert "usage" in capsys.readouterr().err

    def test_the_upgrade_command_reports_what_is_wrong(self, path, capsys):
        path.write_text("no database")
        assert main(["upgrade", url_of(path)]) == 1
        assert "ledger.db" in capsys.readouterr().err

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(MetadataError, match="ZENRAY_HOME") as caught:
            Ledger(url_of(tmp_path / "file" / "ledger.db")).list_runs()
        assert str(tmp_path / "file") in str(caught.value)

    def test_a_directory_in_place_of_the_file_is_named(self, path):
        path.mkdir()
        with pytest.raises(MetadataError, match=r"ledger\.db"):
            Ledger(url_of(path)).list_runs()

    @pytest.mark.parametrize("url", ["", "nonsense", "nosuchdatabase://host/x", "mysql+pymysql://host:port/x"])
    def test_a_url_that_means_nothing_is_refused(self, url):
        with pytest.raises(MetadataError):
            Ledger(url).list_runs()

    @pytest.mark.parametrize("password", ["sec@ret", "@ret", "s%@ret/x"])
    def test_a_password_that_is_not_quoted_is_refused_and_not_shown(self, password):
        with pytest.raises(MetadataError, match="'%40' for '@'") as caught:
            Ledger(f"postgresql+psycopg://ada:{password}@127.0.0.1:1/zenray")
        assert "ret" not in "".join(traceback.format_exception(caught.value)).replace("/zenray", "")

    def test_secrets_among_the_options_of_a_url_are_not_shown(self):
        url = "postgresql+psycopg://ada@127.0.0.1:1/zenray?sslpassword=s3cret&sslmode=disable"
        with Ledger(url) as ledger, pytest.raises(MetadataError, match=r"sslmode=disable") as caught:
            ledger.list_runs()
        assert "s3cret" not in str(caught.value)

    def test_a_password_that_a_driver_repeats_is_masked(self):
        reason = sqlite3.OperationalError("no 'host=db password=hun*ter2 user=ada', nor hun%2Ater2 or hun*ter22")
        exc = OperationalError("", None, reason)
        error = translate(exc, what="open the metadata store", url="x", secrets=("hun*ter2",))
        assert "no 'host=db password=*** user=ada', nor *** or ***2" in str(error)

    @pytest.mark.parametrize("scheme", ["postgresql+psycopg", "mysql+pymysql"])
    def test_no_message_holds_the_password(self, scheme):
        with pytest.raises(MetadataError) as caught:  # the driver is missing, or nobody listens on port 1
            Ledger(f"{scheme}://ada:secret@127.0.0.1:1/zenray").list_runs()
        assert "ada" in str(caught.value)
        assert "secret" not in str(caught.value)


class TestImports:
    def run(self, code):
        environment = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)

    def test_records_cost_no_sqlalchemy(self):
        self.run("import sys, zenray.metadata.records; assert 'sqlalchemy' not in sys.modules")

    def test_a_new_database_costs_no_alembic(self, path):
        code = f"from zenray.metadata.ledger import Ledger; assert Ledger({url_of(path)!r}).list_runs() == ()"
        self.run(f"import sys; {code}; assert 'alembic' not in sys.modules")


class TestSchema:
    def scripts(self):
        config = Config()
        config.set_main_option("script_location", str(Path(zenray.metadata.__file__).with_name("migrations")))
        return ScriptDirectory.from_config(config)

    def test_the_revisions_are_those_of_the_migrations(self):
        assert tuple(s.revision for s in self.scripts().walk_revisions())[::-1] == schema.REVISIONS

    def test_the_migrations_build_the_tables_of_the_schema(self, path, tmp_path):
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.close()
        migrated, created = url_of(path), url_of(tmp_path / "created.db")
        structures = []
        for url in (migrated, created):
            with Ledger(url) as ledger:
                ledger.list_runs()
            engine = create_engine(url)
            with engine.connect() as connection:
                assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
                structures.append([contract.structure_of(inspect(connection), name) for name in schema.metadata.tables])
            engine.dispose()
        assert structures[0] == structures[1]

    @pytest.mark.parametrize("lacks", [(), ("stop",), ("stop", "claims", "identity")], ids=str)
    def test_a_database_of_the_first_revision_is_upgraded_with_all_that_is_in_it(self, path, lacks):
        with Ledger(url_of(path)) as ledger:
            ledger.create_run(a_run())
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '0001'")
            if "stop" in lacks:
                connection.execute("ALTER TABLE runs DROP COLUMN stop_asked_by")
            for table in {"claims", "identity"}.intersection(lacks):
                connection.execute(f"DROP TABLE {table}")
        connection.close()
        with Ledger(url_of(path)) as ledger:
            assert ledger.find_run(RUN) == a_run()
            assert ledger.ledger_id()
            assert ledger.ask_to_stop(RUN, "me")
        engine = create_engine(url_of(path))
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        engine.dispose()

    @pytest.mark.parametrize("dialect", [postgresql.dialect(), mysql.dialect(), sqlite.dialect()], ids=lambda d: d.name)
    def test_every_statement_exists_in_every_dialect(self, dialect):
        for table in schema.metadata.sorted_tables:
            assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        url = {"sqlite": "sqlite://", "mysql": "mysql+pymysql://", "postgresql": "postgresql+psycopg://"}[dialect.name]
        assert BatchWriter(Database(url), dialect)


def test_a_second_ledger_in_a_process_leaves_the_locks_of_the_first_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    first = Ledger(f"sqlite:///{path}")
    assert first.pipelines() == ()
    Ledger(f"sqlite:///{path}").pipelines()
    # The last connection to close removes the log. Another process must not believe that it is the last.
    code = f"from zenray.metadata.ledger import Ledger\nwith Ledger('sqlite:///{path}') as ledger: ledger.pipelines()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert path.with_name("ledger.db-wal").exists()
    assert first.pipelines() == ()
