import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from zenray import artifacts, garbage
from zenray.materializer import registry
from zenray.metadata import schema
from zenray.metadata.records import (
    ArtifactRecord,
    CacheEntry,
    RunRecord,
    RunState,
    StepInput,
    StepInputs,
    StepOutput,
    StepOutputs,
    StepRunRecord,
)
from zenray.metadata.writer import LedgerWriter
from zenray.model import Manifest, Status
from zenray.stack import Stack
from zenray.store import manifest_name, object_name
from zenray.views import Books

LARGE = 10_000  # bytes: more than a manifest takes in
DAY_S = 86_400.0


@pytest.fixture
def books(tmp_path: Path) -> Books:
    stack = Stack("test", "inline", str(tmp_path / "store"), f"sqlite:///{tmp_path / 'ledger.db'}")
    return Books(stack)


def save(books: Books, value: object, *, age_s: float = 2 * DAY_S) -> Manifest:
    """Store a value as a step would have done it some time ago."""
    manifest = artifacts.save(value, books.store, table=registry.table(), producer="run/step")
    objects = [object_name(f.digest) for f in manifest.files if f.data is None]
    for name in [manifest_name(manifest.digest), *objects] if objects else []:
        make_old(books, name, age_s)
    return manifest


def make_old(books: Books, name: str, age_s: float = 2 * DAY_S) -> None:
    then = time.time() - age_s
    os.utime(books.store.local_path(name), (then, then))


def record(
    books: Books, run_id: str, *made: Manifest, took=(), age_s=2 * DAY_S, is_cached=True, is_finished=True
) -> None:
    """Record a run with one step that gave and took artifacts."""
    at = time.time() - age_s
    ledger = books.ledger
    fence = ledger.create_run(RunRecord(run_id, "demo", Status.RUNNING, at, stack="test"), owner="test", ttl_s=60)
    changes = [
        *(ArtifactRecord(m, books.store.uri, at) for m in made),
        StepRunRecord(run_id, "s", "s", Status.SUCCEEDED, 0, started_at=at, ended_at=at),
        StepInputs(run_id, "s", tuple(StepInput(run_id, "s", "x", i, m.digest) for i, m in enumerate(took))),
        StepOutputs(run_id, "s", tuple(StepOutput(run_id, "s", f"o{i}", i, m.digest) for i, m in enumerate(made))),
    ]
    if is_cached:
        outputs = tuple((f"o{i}", m.digest) for i, m in enumerate(made))
        changes.append(CacheEntry(f"key-{run_id}", books.store.uri, run_id, "s", outputs, at))
    if is_finished:
        changes.append(RunState(run_id, Status.SUCCEEDED, ended_at=at))
    with LedgerWriter(ledger, run_id, fence, ttl_s=60) as writer:
        writer.record(*changes)


def is_whole(books: Books, manifest: Manifest) -> bool:
    return artifacts.exists(manifest, books.store) and artifacts.read_manifest(manifest.digest, books.store) is not None


def test_what_a_run_or_a_cache_entry_refers_to_stays(books):
    kept = save(books, b"a" * LARGE)
    cached = save(books, b"b" * LARGE)
    record(books, "run-1", kept, is_cached=False)
    record(books, "run-2", cached)
    books.ledger.delete_run("run-2")
    report = garbage.collect(books, is_dry=False)
    assert (report.artifacts, report.objects, report.size_bytes) == (0, 0, 0)
    assert is_whole(books, kept)
    assert is_whole(books, cached)


def test_what_nothing_refers_to_goes_with_its_bytes(books):
    lost = save(books, b"a" * LARGE)
    record(books, "run-1", lost, is_cached=False)
    books.ledger.delete_run("run-1")
    report = garbage.collect(books, is_dry=False)
    assert (report.artifacts, report.objects) == (1, 1)
    assert report.size_bytes > LARGE
    assert not books.store.has_named(manifest_name(lost.digest))
    assert not artifacts.exists(lost, books.store)
    assert not list(books.store.names("objects"))
    assert not list(books.store.names("tmp"))


def test_a_dry_run_removes_nothing_and_counts_what_would_go(books):
    old, new = save(books, b"a" * LARGE), save(books, b"b" * LARGE)
    record(books, "run-1", old)
    record(books, "run-2", new, age_s=DAY_S)
    report = garbage.collect(books, keep_runs=1, is_dry=True)
    assert (report.is_dry, report.runs, report.artifacts, report.objects) == (True, 1, 1, 1)
    assert is_whole(books, old)
    assert books.ledger.find_run("run-1")
    assert books.ledger.find_cache_entries(["key-run-1"], books.store.uri)
    real = garbage.collect(books, keep_runs=1, is_dry=False)
    assert (real.runs, real.artifacts, real.objects, real.size_bytes) == (1, 1, 1, report.size_bytes)
    assert not artifacts.exists(old, books.store)
    assert is_whole(books, new)


def pack(books: Books, run_id: str, *values: object) -> tuple[str, list[Manifest]]:
    """Save small values as a run does, some time ago, and return the name of their pack too."""
    manifests = [artifacts.save(v, books.store, table=registry.table()) for v in values]
    artifacts.pack(manifests, books.store, run_id=run_id)
    ((name, _, _),) = books.store.names(f"packs/{run_id}")
    make_old(books, name)
    return name, manifests


def test_small_artifacts_lie_in_their_runs_pack_and_nowhere_else(books):
    name, manifests = pack(books, "run-1", 1, "two")
    assert artifacts.packed(name, books.store) == manifests
    assert [n for n, _, _ in books.store.names("")] == [name]


def test_a_pack_goes_when_the_last_of_its_artifacts_is_gone(books):
    name, (first, second) = pack(books, "run-1", 1, 2)
    record(books, "run-1", first, is_cached=False)
    record(books, "run-2", second, is_cached=False)
    books.ledger.delete_run("run-1")
    assert garbage.collect(books, is_dry=False).artifacts == 1
    assert books.store.has_named(name)
    books.ledger.delete_run("run-2")
    dry = garbage.collect(books, is_dry=True)
    assert books.store.has_named(name)
    real = garbage.collect(books, is_dry=False)
    assert (real.artifacts, real.size_bytes) == (1, dry.size_bytes)
    assert real.size_bytes > 0
    assert not books.store.has_named(name)


def test_a_pack_that_cannot_be_read_is_reported_and_holds_nothing_up(books):
    lost = save(books, b"a" * LARGE)
    record(books, "run-1", lost, is_cached=False)
    pack(books, "killed", 1)
    for name in ("packs/odd/torn.jsonl", "artifacts/ab/abc.json"):
        books.store.put_named(name, b"{torn")
        make_old(books, name)
    report = garbage.collect(books, keep_runs=0, is_dry=False)
    assert (report.artifacts, report.unrecorded, report.objects) == (1, 1, 1)
    assert [name for name, _, _ in books.store.names("")] == ["packs/odd/torn.jsonl"]
    (problem,) = report.problems
    assert "packs/odd/torn.jsonl" in problem
    assert problem in garbage.describe(report, "")
    assert "`zenray artifact verify`" in problem


def test_objects_stay_while_a_young_manifest_cannot_be_read(books):
    lost = save(books, b"a" * LARGE)
    record(books, "run-1", lost, is_cached=False)
    books.store.put_named(manifest_name("ab" * 32), b"{torn")
    report = garbage.collect(books, keep_runs=0, is_dry=False)
    assert (report.artifacts, report.objects) == (1, 0)
    assert "objects were left alone: the manifest of artifact abab" in report.problems[0]
    make_old(books, manifest_name("ab" * 32))
    assert garbage.collect(books, is_dry=False).objects == 1


def test_the_pack_of_a_run_that_never_recorded_it_goes_when_it_is_old(books):
    name, _ = pack(books, "killed", 1)
    artifacts.pack([artifacts.save(2, books.store, table=registry.table())], books.store, run_id="young")
    garbage.collect(books, is_dry=False)
    assert not books.store.has_named(name)
    assert [n for n, _, _ in books.store.names("packs/young")]


def test_runs_are_deleted_only_when_asked(books):
    record(books, "run-1", save(books, b"a" * LARGE))
    assert garbage.collect(books, is_dry=False).runs == 0
    assert books.ledger.find_run("run-1").run_id == "run-1"


def test_older_than_deletes_only_runs_that_ended_longer_ago(books):
    old, new = save(books, b"a" * LARGE), save(books, b"b" * LARGE)
    record(books, "run-1", old, age_s=9 * DAY_S)
    record(books, "run-2", new, age_s=5 * DAY_S)
    report = garbage.collect(books, older_than_s=7 * DAY_S, is_dry=False)
    assert (report.runs, report.cache_entries, report.artifacts) == (1, 1, 1)
    assert [r.run_id for r in books.ledger.list_runs()] == ["run-2"]
    assert is_whole(books, new)


def test_what_a_kept_run_took_from_a_deleted_run_stays_and_stays_cached(books):
    shared = save(books, b"a" * LARGE)
    result = save(books, b"b" * LARGE)
    record(books, "run-1", shared)
    record(books, "run-2", result, took=[shared], age_s=DAY_S)
    garbage.collect(books, keep_runs=1, is_dry=False)
    assert is_whole(books, shared)
    assert books.ledger.find_cache_entries(["key-run-1"], books.store.uri)


def test_an_object_that_two_artifacts_share_outlives_the_first(books):
    as_bytes, as_array = save(books, b"a" * LARGE), save(books, bytearray(b"a" * LARGE))
    assert as_bytes.digest != as_array.digest
    assert {f.digest for f in as_bytes.files} == {f.digest for f in as_array.files}
    record(books, "run-1", as_bytes, is_cached=False)
    record(books, "run-2", as_array)
    books.ledger.delete_run("run-1")
    report = garbage.collect(books, is_dry=False)
    assert (report.artifacts, report.objects) == (1, 0)
    assert is_whole(books, as_array)


def test_an_artifact_that_only_another_ledger_knows_keeps_its_objects(books):
    foreign = save(books, b"f" * LARGE)
    books.store.put_named("ledgers/other", b"postgresql://db/team")
    report = garbage.collect(books, is_dry=False)
    assert (report.unrecorded, report.objects) == (0, 0)
    assert is_whole(books, foreign)


def test_what_a_killed_collection_or_run_left_goes_when_it_is_old_and_no_run_goes_on(books):
    forgotten, young = save(books, b"a" * LARGE), save(books, b"b" * LARGE, age_s=60)
    record(books, "run-1", forgotten, is_cached=False)
    books.ledger.delete_run("run-1")
    books.ledger.delete_artifacts([forgotten.digest], store=books.store.uri)
    record(books, "run-2", is_finished=False, age_s=10, is_cached=False)
    waits = garbage.collect(books, is_dry=False)
    assert (waits.unrecorded, waits.objects, waits.waiting) == (0, 0, 1)
    books.ledger.mark_lost("run-2", is_owner_dead=True)
    planned = garbage.collect(books, is_dry=True)
    assert is_whole(books, forgotten)
    done = garbage.collect(books, is_dry=False)
    assert (done.artifacts, done.unrecorded, done.objects) == (0, 1, 1) == (0, planned.unrecorded, planned.objects)
    assert not artifacts.exists(forgotten, books.store)
    assert is_whole(books, young)
    assert "removed 1 manifests that no run recorded, 1 objects" in garbage.describe(done, "")[0]


def test_a_manifest_that_is_recorded_under_another_address_of_the_store_stays(books, tmp_path):
    kept = save(books, b"a" * LARGE)
    record(books, "run-1", kept)
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = Books(replace(books.stack, artifact_store=str(tmp_path / "moved")))
    assert garbage.collect(moved, is_dry=False).unrecorded == 0
    assert is_whole(moved, kept)


def test_a_record_that_is_damaged_holds_its_bytes(books):
    large = save(books, b"a" * LARGE)
    name, (small,) = pack(books, "run-1", 1)
    record(books, "run-1", large, small)
    with books.ledger.database.transaction() as connection:
        connection.execute(update(schema.artifacts).values(manifest="{broken"))
    report = garbage.collect(books, is_dry=False)
    assert (report.unrecorded, report.objects) == (0, 0)
    assert is_whole(books, large)
    assert books.store.has_named(name)


COLLECT = """
import sys
from zenray import garbage
from zenray.stack import Stack
from zenray.views import Books
folder = sys.argv[1]
books = Books(Stack("test", "inline", folder + "/store", "sqlite:///" + folder + "/ledger.db"))
garbage.collect(books, keep_runs=0, is_dry=False)
"""


@pytest.mark.parametrize("table", ["cache_entries", "runs", "artifacts"])
def test_a_collection_that_is_killed_once_a_table_is_empty_is_finished_by_the_next(books, tmp_path, table):
    small, *made = pack(books, "run-0", 1)[1] + [save(books, bytes([i]) * LARGE) for i in range(100)]
    record(books, "run-0", small, *made[:50])
    record(books, "run-1", *made[50:])
    process = subprocess.Popen([sys.executable, "-c", COLLECT, str(tmp_path)])
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        while connection.execute(f"SELECT count(*) FROM {table}").fetchone() != (0,):
            assert process.poll() is None
    process.kill()
    process.wait()
    for name, _, _ in list(books.store.names("")):
        make_old(books, name)
    garbage.collect(books, keep_runs=0, is_dry=False)
    tables = schema.runs, schema.cache_entries, schema.artifacts
    assert [row for t in tables for row in books.ledger.database.read(select(t))] == []
    assert [name for name, _, _ in books.store.names("")] == []


def test_objects_that_no_manifest_names_go_when_they_are_old(books):
    for content, age_s in ((b"old", 2 * DAY_S), (b"new", 60.0)):
        writer = books.store.create()
        writer.write(content)
        digest, _ = writer.commit()
        make_old(books, object_name(digest), age_s)
    assert garbage.collect(books, is_dry=False).objects == 1
    assert len(list(books.store.names("objects"))) == 1


def test_what_is_younger_than_the_grace_time_stays(books):
    young = save(books, b"a" * LARGE, age_s=600)
    record(books, "run-1", young, age_s=600, is_cached=False)
    books.ledger.delete_run("run-1")
    assert garbage.collect(books, is_dry=False).artifacts == 0
    assert is_whole(books, young)
    assert garbage.collect(books, grace_s=60, is_dry=False).artifacts == 1


def test_artifacts_wait_until_no_run_is_going_on(books):
    lost = save(books, b"a" * LARGE)
    record(books, "run-1", lost, is_cached=False)
    books.ledger.delete_run("run-1")
    record(books, "run-2", is_finished=False, age_s=10, is_cached=False)
    report = garbage.collect(books, grace_s=0, is_dry=False)
    assert (report.artifacts, report.waiting, report.unfinished_runs) == (0, 1, 1)
    assert is_whole(books, lost)


def test_an_object_that_was_written_again_a_moment_ago_stays(books):
    writer = books.store.create()
    writer.write(b"again" * LARGE)
    digest, size = writer.commit()
    make_old(books, object_name(digest))
    twin = books.store.create()
    twin.write(b"again" * LARGE)
    twin.commit()
    assert garbage.collect(books, is_dry=False).objects == 0
    assert books.store.has(digest, size)


def test_an_unfinished_run_is_never_deleted(books):
    record(books, "run-1", save(books, b"a" * LARGE), is_finished=False)
    assert garbage.collect(books, keep_runs=0, older_than_s=0, grace_s=0, is_dry=False).runs == 0


def test_the_logs_of_a_deleted_run_go_with_it(books):
    record(books, "run-1", save(books, 1))
    for run_id in ("run-1", "run-10"):
        books.store.put_named(f"logs/{run_id}/s.1.log", b"text")
        make_old(books, f"logs/{run_id}/s.1.log")
    assert garbage.collect(books, keep_runs=0, is_dry=False).logs == 1
    assert [name for name, _, _ in books.store.names("logs")] == ["logs/run-10/s.1.log"]


def test_temporary_files_go_after_a_day(books):
    for name, age_s in (("tmp/old", 2 * DAY_S), ("tmp/new", DAY_S / 2)):
        books.store.put_named(name, b"x")
        make_old(books, name, age_s)
    assert garbage.collect(books, is_dry=False).temporary_files == 1
    assert [name for name, _, _ in books.store.names("tmp")] == ["tmp/new"]


def test_what_runs_of_another_ledger_may_need_is_left_alone(books):
    record(books, "run-1", save(books, b"x" * LARGE), age_s=9 * DAY_S)
    books.store.put_named("ledgers/other", b"postgresql://db/team")
    kept = garbage.collect(books, keep_runs=0, is_dry=False)
    assert (kept.runs, kept.artifacts, kept.objects) == (1, 0, 0)
    assert "postgresql://db/team" in "\n".join(garbage.describe(kept, "0 bytes"))
    books.store.delete("ledgers/other")
    assert garbage.collect(books, is_dry=False).artifacts == 1


def test_collecting_twice_finds_nothing_the_second_time(books):
    for i in range(3):
        record(books, f"run-{i}", save(books, bytes([i]) * LARGE), age_s=(9 - i) * DAY_S)
    assert garbage.collect(books, keep_runs=1, is_dry=False).artifacts == 2
    again = garbage.collect(books, keep_runs=1, is_dry=False)
    assert (again.runs, again.cache_entries, again.artifacts, again.objects, again.size_bytes) == (0, 0, 0, 0, 0)


PIPELINE = """
from zenray import pipeline, step

@step
def make(i: int) -> bytes:
    return bytes([i]) * 10_000

@step
def double(data: bytes) -> bytes:
    return data * 2

@pipeline
def demo(n: int):
    return [double(make(i)) for i in range(n)]
"""


def test_a_collector_that_never_rests_takes_nothing_from_the_runs_beside_it(books, tmp_path):
    """Runs make, lose and make again the same bytes, while everything beyond the newest run is removed at once."""
    (tmp_path / "demo_runs.py").write_text(PIPELINE)
    code = """
import sys
from zenray.progress import PlainView
from zenray.runner import RunObserver
from zenray.stack import Stack
from zenray.submit import load_pipeline, run_pipeline
folder = sys.argv[1]
stack = Stack("test", "inline", folder + "/store", "sqlite:///" + folder + "/ledger.db")
demo = load_pipeline(folder + "/demo_runs.py")
for turn in range(12):
    run = run_pipeline(demo, {"n": 3 + turn % 3}, stack=stack, observer=RunObserver(), use_cache=turn % 2 == 0)
    for step in run.steps.values():
        assert step.status.has_outputs
"""
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    removed = 0
    while worker.poll() is None:
        removed += garbage.collect(books, keep_runs=1, grace_s=0, is_dry=False).runs
    assert worker.returncode == 0
    assert removed > 0
    newest = books.ledger.list_runs(limit=1)[0]
    outputs = books.ledger.outputs(newest.run_id)
    assert len(outputs) == 10  # the last turn makes and doubles five
    found = books.ledger.artifacts({o.digest for o in outputs}, store=books.store.uri)
    for output in outputs:
        manifest = found[output.digest].manifest
        artifacts.verify(manifest, books.store)
        assert is_whole(books, manifest)
