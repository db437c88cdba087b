"""Databases that go away, hang, fill up or refuse, under a ledger and under whole runs: nothing is lost."""

import os
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.database.contract import STORE, a_digest, a_run, an_artifact, an_entry, begin
from tests.database.processes import CREATE, WRITE_200, start
from tests.servers import databases
from tests.servers.proxy import fault_proxy
from zenray import pipeline, step
from zenray.errors import MetadataError
from zenray.metadata.ledger import Ledger
from zenray.metadata.records import StepOutput, StepOutputs, StepRunRecord
from zenray.metadata.writer import LedgerWriter
from zenray.model import Status
from zenray.runner import RunObserver
from zenray.stack import Stack
from zenray.submit import run_pipeline


@step
def add(n: int) -> int:
    return n + 1


@pipeline
def chain(count: int = 20):
    n = 0
    for _ in range(count):
        n = add(n)
    return n


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    return tmp_path


class Saboteur(RunObserver):
    """Does something once, as soon as a certain step has succeeded."""

    def __init__(self, faults):
        self.faults = {f"add_{n}": fault for n, fault in faults.items()}

    def on_step(self, state):
        if state.status is Status.SUCCEEDED:
            self.faults.pop(state.name, lambda: None)()


def run_chain(url, place, faults=None, **parameters):
    stack = Stack("faulty", "inline", str(place / "store"), url)
    return run_pipeline(chain, chain.bind((), parameters), stack=stack, observer=Saboteur(faults or {}))


def check_that_all_is_recorded(url, run, count=20):
    with Ledger(url) as ledger:
        assert ledger.find_run(run.run_id).status is Status.SUCCEEDED
        steps = ledger.step_runs(run.run_id)
        assert [s.status for s in steps] == [Status.SUCCEEDED] * count
        assert len(ledger.attempts(run.run_id)) == len(ledger.outputs(run.run_id)) == count
        assert len(ledger.find_cache_entries([s.cache_key for s in steps], str(run._books.store.uri))) == count


@contextmanager
def proxied(server):
    """Give a proxy and the URL of a new database behind it."""
    with server.database() as name, fault_proxy(server.port) as proxy:
        yield proxy, server.url(name, port=proxy.port)


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("is_crash", [False, True], ids=["shut down", "crashed"])
def test_a_run_survives_a_restart_of_its_database(server, place, is_crash):
    def restart():
        server.stop(is_crash=is_crash)
        threading.Timer(1.0, server.start).start()

    with server.database() as name:
        run = run_chain(server.url(name), place, {10: restart})
        check_that_all_is_recorded(server.url(name), run)
        again = run_chain(server.url(name), place)
        assert {s.status for s in again.steps.values()} == {Status.CACHED}


def test_a_run_survives_connections_that_are_reset_again_and_again(server, place):
    with proxied(server) as (proxy, url):
        run = run_chain(url, place, dict.fromkeys(range(3, 20, 2), proxy.reset))
        assert proxy.resets > 3
        check_that_all_is_recorded(url, run)


def test_a_run_survives_a_slow_network(postgresql, place):
    with proxied(postgresql) as (proxy, url):
        run_chain(url, place, count=1)  # the tables
        proxy.latency_s = 0.1  # there, and back again
        run = run_chain(url, place, count=2)
        proxy.heal()
        assert [s.status for s in run.steps.values()] == [Status.CACHED, Status.SUCCEEDED]


def results(run_id, numbers):
    for n in numbers:
        name = f"train_{n}"
        yield (
            StepRunRecord(run_id, name, "train", Status.SUCCEEDED, n, started_at=1.0, parameters={"x": "y" * 500}),
            an_artifact(n),
            StepOutputs(run_id, name, (StepOutput(run_id, name, "output", 0, a_digest(n)),)),
            an_entry(n, n),
        )


def test_a_batch_that_is_cut_in_the_middle_is_written_whole_or_not_at_all(server):
    with proxied(server) as (proxy, url), Ledger(url) as ledger, Ledger(server.url(url.rpartition("/")[2])) as witness:
        with LedgerWriter(ledger, "run", begin(ledger, "run"), delay_s=0.3) as writer:
            writer.flush()
            proxy.reset()
            proxy.resets, proxy.reset_after_bytes = 0, 60_000
            for changes in results("run", range(300)):
                writer.record(*changes)
            wait_until(lambda: proxy.resets >= 2)
            assert witness.step_runs("run") == witness.outputs("run") == ()
            proxy.heal()
            writer.flush(timeout_s=60)
        assert len(witness.step_runs("run")) == len(witness.outputs("run")) == 300
        assert len(witness.find_cache_entries([a_digest(n) for n in range(300)], STORE)) == 300


def wait_until(is_true):
    give_up_at = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_reads_and_claims_of_a_ledger_in_use_wait_for_its_server(server):
    with proxied(server) as (proxy, url), Ledger(url) as ledger:
        begin(ledger, "run")
        for use in (
            lambda: ledger.find_cache_entries([a_digest(1)], STORE),
            lambda: ledger.claim({a_digest(1): "a"}, store=STORE, run_id="run").held,
        ):
            proxy.is_refusing = True
            proxy.reset()
            healing = threading.Timer(1.0, proxy.heal)
            healing.start()
            assert use() == {}
            healing.join()


def test_a_server_that_stays_away_is_reported_with_the_cause(server):
    with proxied(server) as (proxy, url), Ledger(url, retry_s=0.5) as ledger:
        begin(ledger, "run")
        proxy.is_refusing = True
        proxy.reset()
        for use in (ledger.list_runs, lambda: ledger.claim({a_digest(1): "a"}, store=STORE, run_id="run")):
            with pytest.raises(
                MetadataError, match=r"cannot (read|write to) the metadata store.*can be reached"
            ) as caught:
                use()
            assert databases.PASSWORD not in str(caught.value)


def test_a_silent_server_is_given_up_and_the_records_are_written_once_it_speaks(server):
    with proxied(server) as (proxy, url), Ledger(url, silence_s=0.5) as ledger:
        with LedgerWriter(ledger, "run", begin(ledger, "run"), delay_s=0) as writer:
            writer.flush()
            proxy.is_hanging = True
            connections = proxy.connections
            writer.record(*next(results("run", [1])))
            wait_until(lambda: proxy.connections > connections)  # given up, and tried anew
            proxy.heal()
            writer.flush(timeout_s=60)
        assert [s.name for s in ledger.step_runs("run")] == ["train_1"]


def test_a_silent_server_is_reported_as_such(server):
    with proxied(server) as (proxy, url), Ledger(url, silence_s=0.3, retry_s=0) as ledger:
        ledger.list_runs()
        proxy.is_hanging = True
        with pytest.raises(MetadataError, match=r"not answered for 0\.3 s|timed out"):
            ledger.list_runs()
        proxy.heal()
        assert ledger.list_runs() == ()


def test_a_server_that_never_answers_is_an_error_at_the_first_use(server):
    with proxied(server) as (proxy, url):
        proxy.is_hanging = True
        with Ledger(url, silence_s=1) as ledger, pytest.raises(MetadataError, match="can be reached"):
            ledger.list_runs()


def test_a_wrong_password_is_refused_at_once_and_not_shown(server):
    with server.database() as name, fault_proxy(server.port) as proxy:
        url = server.url(name, port=proxy.port).replace("p%40ss", "s3cret")
        with Ledger(url) as ledger, pytest.raises(MetadataError, match="check user name, password") as caught:
            ledger.list_runs()
        assert proxy.connections == 1
        assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"


def test_a_server_without_free_connections_is_waited_for(place):
    options = "-c", "max_connections=3", "-c", "superuser_reserved_connections=0"
    with databases.postgresql(*options) as server, fault_proxy(server.port) as proxy, ExitStack() as guests:
        url = server.url(port=proxy.port)

        def crowd():
            proxy.reset()
            while True:
                try:
                    guests.enter_context(server.connect())
                except databases.psycopg.OperationalError:
                    break
            threading.Timer(1.0, guests.close).start()

        run = run_chain(url, place, {5: crowd})
        check_that_all_is_recorded(url, run)
        crowd()
        with Ledger(url, retry_s=0.2) as ledger, pytest.raises(MetadataError, match="max_connections"):
            ledger.list_runs()
        with Ledger(url) as ledger:
            assert len(ledger.list_runs()) == 1


def test_four_processes_write_to_one_database_without_an_error(server_url):
    processes = [start(WRITE_200, server_url, f"run-{i}") for i in range(4)]
    assert [p.communicate(timeout=120)[1] for p in processes] == [""] * 4
    with Ledger(server_url) as ledger:
        for i in range(4):
            assert len(ledger.step_runs(f"run-{i}")) == len(ledger.attempts(f"run-{i}")) == 200


def test_four_processes_create_one_database_at_once(server_url):
    processes = [start(CREATE, server_url, f"run-{i}") for i in range(4)]
    assert [p.communicate(timeout=60)[1] for p in processes] == [""] * 4
    with Ledger(server_url) as ledger:
        assert len(ledger.list_runs()) == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        assert "CI" not in os.environ, "the tests of a full disk have to run as root"
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_that_says_so_and_the_records_before_stay(small_disk):
    url = f"sqlite:///{small_disk}/ledger.db"
    with Ledger(url, retry_s=0.2) as ledger:
        writer = LedgerWriter(ledger, "run", begin(ledger, "run"), delay_s=0)
        for changes in results("run", range(10)):
            writer.record(*changes)
        writer.flush()
        with pytest.raises(MetadataError, match=r"SQLITE_FULL.*free disk space"):  # noqa: PT012 - when is unknown
            for changes in results("run", range(10, 5000)):
                writer.record(*changes)
            writer.flush()
        with pytest.raises(MetadataError, match="SQLITE_FULL"):
            writer.close()
        names = {s.name for s in ledger.step_runs("run")}
        assert names == {o.name for o in ledger.outputs("run")}
        assert len(names) >= 10


def test_a_ledger_on_a_disk_that_is_full_to_the_last_byte_says_so(small_disk):
    url = f"sqlite:///{small_disk}/ledger.db"
    with Ledger(url, retry_s=0.2) as ledger:
        ledger.create_run(a_run())
    with (small_disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(MetadataError, match=r"SQLITE_IOERR_SHMSIZE.*disk is probably full.*free disk space"):
        Ledger(url, retry_s=0.2).list_runs()


def test_a_file_system_that_is_read_only_is_an_error_that_says_so(small_disk):
    url = f"sqlite:///{small_disk}/ledger.db"
    with Ledger(url) as ledger:
        ledger.create_run(a_run())
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with Ledger(url) as ledger, pytest.raises(MetadataError, match=r"ledger\.db.*needs the permission to write"):
        ledger.create_run(a_run("next"))
