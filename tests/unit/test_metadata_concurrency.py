"""The ledger under many processes, crashes and broken databases: nothing half written, nothing swallowed."""

import random
import signal
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.database.contract import a_digest, an_artifact
from tests.database.processes import CREATE, WRITE_200, WRITE_FOR_EVER, start
from zenray.errors import MetadataError, RunLostError, StoreError
from zenray.metadata.ledger import Ledger
from zenray.metadata.records import CacheEntry, RunRecord, RunState, StepOutput, StepOutputs, StepRunRecord
from zenray.metadata.writer import LedgerWriter
from zenray.model import Status

FENCE = 1  # the first owner's


def begin(ledger):
    """Record a run with a short lease, so that it is seen when a writer renews it."""
    assert ledger.create_run(RunRecord("run", "p", Status.RUNNING, 1.0), owner="me", ttl_s=0.6) == FENCE


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def ledger(path):
    with Ledger(f"sqlite:///{path}") as opened:
        begin(opened)
        yield opened


def a_step(name="train", status=Status.RUNNING):
    return StepRunRecord("run", name, "train", status, position=0)


def names(ledger):
    return [step.name for step in ledger.step_runs("run")]


def locked(path):
    """Return a connection that holds the database's write lock until it is closed."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def test_four_processes_write_to_one_file_without_an_error(path):
    url = f"sqlite:///{path}"
    processes = [start(WRITE_200, url, f"run-{i}") for i in range(4)]
    errors = [p.communicate(timeout=120)[1] for p in processes]
    assert errors == [""] * 4
    with Ledger(url) as ledger:
        for i in range(4):
            assert len(ledger.step_runs(f"run-{i}")) == len(ledger.attempts(f"run-{i}")) == 200
            assert len(ledger.find_cache_entries([f"run-{i}-{n}" for n in range(200)], "s")) == 200


def test_four_processes_create_one_database_at_once(path):
    url = f"sqlite:///{path}"
    processes = [start(CREATE, url, f"run-{i}") for i in range(4)]
    assert [p.communicate(timeout=60)[1] for p in processes] == [""] * 4
    with Ledger(url) as ledger:
        assert len(ledger.list_runs()) == 4


def test_threads_share_a_ledger(path):
    with Ledger(f"sqlite:///{path}") as ledger:
        failures = []

        def create(number):
            try:
                for i in range(10):
                    ledger.create_run(RunRecord(f"run-{number}-{i}", "p", Status.RUNNING, 1.0))
            except MetadataError as exc:
                failures.append(exc)

        threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(ledger.list_runs()) == 80


def test_a_killed_writer_leaves_no_cache_entry_without_what_it_names(path):
    url = f"sqlite:///{path}"
    chance = random.Random(1)
    for number in range(8):
        process = start(WRITE_FOR_EVER, url, f"run-{number}")
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with Ledger(url) as ledger:
        counts = []
        for number in range(8):
            run_id = f"run-{number}"
            steps = {s.name for s in ledger.step_runs(run_id)}
            digests = [o.digest for o in ledger.outputs(run_id)]
            assert {o.name for o in ledger.outputs(run_id)} == {a.name for a in ledger.attempts(run_id)} == steps
            assert (
                set(ledger.find_cache_entries(digests, "s"))
                == set(digests)
                == set(ledger.artifacts(digests, store="s"))
            )
            counts.append(len(steps))
        assert sum(counts) > 0
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    query = "SELECT count(*) FROM cache_entries LEFT JOIN step_runs USING (run_id, name) WHERE step_runs.step IS NULL"
    assert connection.execute(query).fetchone() == (0,)
    connection.close()


def test_what_was_recorded_is_there_after_flush(ledger):
    with LedgerWriter(ledger, "run", FENCE, delay_s=60) as writer:
        writer.record(a_step())
        writer.flush(timeout_s=30)
        assert names(ledger) == ["train"]


def test_what_was_recorded_is_there_after_close_and_the_last_state_wins(ledger):
    with LedgerWriter(ledger, "run", FENCE, delay_s=60) as writer:
        for status in (Status.WAITING, Status.RUNNING, Status.SUCCEEDED):
            writer.record(a_step(status=status))
        writer.record(RunState("run", Status.SUCCEEDED, ended_at=2.0))
    assert ledger.step_run("run", "train").status is Status.SUCCEEDED
    assert ledger.find_run("run").status is Status.SUCCEEDED


def test_records_are_committed_without_a_flush(ledger):
    writer = LedgerWriter(ledger, "run", FENCE)
    writer.record(a_step())
    give_up_at = time.monotonic() + 30
    while not names(ledger) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert names(ledger) == ["train"]
    writer.close()


def test_what_waits_for_a_commit_is_called_after_it_in_order_or_at_once_where_nothing_is_left(ledger):
    seen = []
    with LedgerWriter(ledger, "run", ledger.acquire_lease("run", "me", ttl_s=60), delay_s=60) as writer:
        for name in ("a", "b"):
            writer.record(a_step(name))
            writer.after_commit(lambda name=name: seen.append((name, names(ledger))))
        assert seen == []
        writer.flush()
        assert seen == [("a", ["a", "b"]), ("b", ["a", "b"])]
        writer.after_commit(lambda: seen.append("now"))
        assert seen[-1] == "now"


def test_a_closed_writer_takes_nothing_more(ledger):
    writer = LedgerWriter(ledger, "run", FENCE)
    writer.close()
    writer.close()
    with pytest.raises(MetadataError, match="closed"):
        writer.record(a_step())


def test_a_closed_writer_holds_no_lease(ledger):
    LedgerWriter(ledger, "run", FENCE, ttl_s=600).close()
    assert [has_ended for _, has_ended in ledger.unfinished_runs()] == [True]
    assert ledger.acquire_lease("run", "you", ttl_s=60) == 2


def test_an_idle_writer_renews_its_lease(ledger):
    with LedgerWriter(ledger, "run", FENCE, ttl_s=0.6):
        first = ledger.find_run("run").lease_until
        give_up_at = time.monotonic() + 30
        while ledger.find_run("run").lease_until < first + 1.0 and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert ledger.find_run("run").lease_until >= first + 1.0


def test_what_comes_before_a_commit_may_take_longer_than_the_lease(ledger):
    seen, may_go_on = [], threading.Event()

    def prepare(manifests):
        seen.extend(m.digest for m in manifests)
        assert may_go_on.wait(30)

    first = ledger.find_run("run").lease_until
    with LedgerWriter(ledger, "run", FENCE, ttl_s=0.6, before_commit=prepare) as writer:
        writer.record(a_step(), an_artifact(1), an_artifact(2), an_artifact(1))
        give_up_at = time.monotonic() + 30
        while ledger.find_run("run").lease_until < first + 1.2 and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert ledger.find_run("run").lease_until >= first + 1.2
        assert names(ledger) == []
        may_go_on.set()
    assert names(ledger) == ["train"]
    assert seen == [a_digest(1), a_digest(2)]


def test_an_artifact_is_not_committed_where_what_comes_before_fails(ledger):
    def refuse(manifests):
        raise StoreError("the disk is full")

    writer = LedgerWriter(ledger, "run", FENCE, before_commit=refuse)
    writer.record(a_step("before"))
    writer.flush()
    writer.record(a_step("after"), an_artifact(1))
    for use in (writer.flush, writer.close):
        with pytest.raises(StoreError, match="the disk is full"):
            use()
    assert names(ledger) == ["before"]
    assert ledger.list_artifacts() == ()


def test_an_older_owner_writes_nothing_more_and_learns_it(ledger):
    old = LedgerWriter(ledger, "run", FENCE)
    old.record(a_step("before"))
    old.flush()
    with LedgerWriter(ledger, "run", ledger.acquire_lease("run", "new", ttl_s=60, is_owner_dead=True)) as new:
        old.record(a_step("after"), CacheEntry("key", "s", "run", "after", (), 1.0))
        with pytest.raises(RunLostError, match="'new'"):
            old.flush()
        with pytest.raises(RunLostError):
            old.record(a_step("much later"))
        with pytest.raises(RunLostError):
            old.check()
        with pytest.raises(RunLostError):
            old.close()
        new.record(a_step("mine"))
    assert names(ledger) == ["before", "mine"]
    assert ledger.find_cache_entries(["key"], "s") == {}


def test_an_idle_owner_of_a_lost_run_learns_it(ledger):
    writer = LedgerWriter(ledger, "run", FENCE, ttl_s=0.3)
    assert ledger.mark_lost("run", is_owner_dead=True)
    give_up_at = time.monotonic() + 30
    with pytest.raises(RunLostError):  # noqa: PT012 - it comes from the background
        while time.monotonic() < give_up_at:
            writer.check()
            time.sleep(0.02)
    with pytest.raises(RunLostError):
        writer.close()
    assert ledger.find_run("run").status is Status.FAILED


def test_a_deleted_run_stops_its_writer(ledger):
    writer = LedgerWriter(ledger, "run", FENCE)
    ledger.delete_run("run")
    with pytest.raises(RunLostError, match="deleted"):  # noqa: PT012 - the first renewal may find it out before
        writer.record(a_step())
        writer.flush()
    with pytest.raises(RunLostError):
        writer.close()


def test_a_database_that_is_locked_for_a_while_is_waited_for(path):
    with Ledger(f"sqlite:///{path}", busy_timeout_s=0.05) as ledger:
        begin(ledger)
        with LedgerWriter(ledger, "run", FENCE, delay_s=0) as writer:
            writer.flush()
            holder = locked(path)
            writer.record(a_step())
            with pytest.raises(MetadataError, match="1 records of run 'run' were not written"):
                writer.flush(timeout_s=0.5)
            holder.close()
            writer.flush(timeout_s=60)
        assert names(ledger) == ["train"]


def test_a_database_that_stays_locked_is_reported(path):
    with Ledger(f"sqlite:///{path}", busy_timeout_s=0.05, retry_s=0.3) as ledger:
        begin(ledger)
        writer = LedgerWriter(ledger, "run", FENCE, delay_s=0)
        writer.flush()
        holder = locked(path)
        with pytest.raises(MetadataError, match="SQLITE_BUSY"):  # noqa: PT012 - the first renewal may find it out before
            writer.record(a_step())
            writer.flush(timeout_s=60)
        with pytest.raises(MetadataError, match="SQLITE_BUSY"):
            writer.close()
        holder.close()


def test_a_file_damaged_under_a_writer_is_reported(ledger, path):
    ledger.database.server.retry_s = 0.2
    writer = LedgerWriter(ledger, "run", FENCE, delay_s=0)
    writer.flush()
    ledger.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(b"SQLite format 3\0" + b"damaged" * 5000)
    with pytest.raises(MetadataError, match=r"ledger\.db"):  # noqa: PT012 - some writes may still reach the old pages
        writer.record(a_step())
        writer.flush(timeout_s=60)
    with pytest.raises(MetadataError):
        writer.close()


def test_a_file_system_without_room_is_reported(path):
    code = """
import resource, signal
ledger = Ledger(url, retry_s=0.2)
fence = ledger.create_run(RunRecord(run_id, "p", Status.RUNNING, 1.0), owner="me", ttl_s=60)
writer = LedgerWriter(ledger, run_id, fence, delay_s=0)
writer.flush()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for position in range(5000):
        writer.record(*a_result(position))
    writer.flush()
except Exception as exc:
    print(type(exc).__name__, exc)
"""
    process = start(code, f"sqlite:///{path}", "run")
    output, errors = process.communicate(timeout=60)
    assert output.startswith("MetadataError cannot write to the metadata store"), errors
    with Ledger(f"sqlite:///{path}") as ledger:
        digests = [o.digest for o in ledger.outputs("run")]
        assert set(ledger.find_cache_entries(digests, "s")) == set(digests)


def test_a_record_that_the_tables_refuse_is_reported(ledger):
    writer = LedgerWriter(ledger, "run", FENCE, delay_s=0)
    orphan = StepOutputs("run", "nobody", (StepOutput("run", "nobody", "output", 0, "digest"),))
    writer.record(a_step(), orphan)
    with pytest.raises(MetadataError, match="FOREIGN KEY"):
        writer.flush()
    with pytest.raises(MetadataError):
        writer.close()
    assert names(ledger) == []


def test_a_value_that_is_no_record_is_reported(ledger):
    writer = LedgerWriter(ledger, "run", FENCE, delay_s=0)
    writer.record(StepRunRecord("run", "train", "train", "running", position=0))  # a text in place of a Status
    with pytest.raises(MetadataError, match="could not be written"):
        writer.flush()
    with suppress(MetadataError):
        writer.close()


def test_many_records_are_written_in_bounded_batches(ledger):
    with LedgerWriter(ledger, "run", FENCE) as writer:
        for number in range(5000):
            writer.record(a_step(f"train_{number}"))
    assert len(ledger.step_runs("run")) == 5000


def test_a_thread_that_ended_leaves_no_connection_open(ledger, path):
    for _ in range(5):
        thread = threading.Thread(target=ledger.list_runs)
        thread.start()
        thread.join()
    ledger.list_runs()
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs /proc")
    assert sum(f.exists() and f.readlink() == path for f in descriptors.iterdir()) <= 2
