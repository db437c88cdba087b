"""What a ledger does, whatever database it lies in: subclassed for SQLite in ``tests/unit``, for the servers here.

A subclass of ``LedgerContract`` needs a fixture ``url``, the URL of an empty database; ``ledger`` is open on it.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import strategies as st
from sqlalchemy import insert, select

import zenray.metadata
from zenray.errors import MetadataError, NotFoundError, RunLostError
from zenray.metadata import schema
from zenray.metadata.records import (
    ArtifactRecord,
    AttemptRecord,
    CacheEntry,
    Claim,
    ClaimEnd,
    CodeRecord,
    RunRecord,
    RunState,
    StepInput,
    StepInputs,
    StepOutput,
    StepOutputs,
    StepRunRecord,
)
from zenray.metadata.rows import Batch, BatchWriter
from zenray.metadata.writer import LedgerWriter
from zenray.model import Manifest, Status, StoredFile
from zenray.recovery import mark_lost_runs
from zenray.waiting import RETRY_S

RUN = "20261124-001530-a1b2c3"
STORE = "file:///store"
PACKAGE_PARENT = str(Path(zenray.metadata.__file__).parents[2])


def a_digest(number):
    return f"{number:064x}"


def a_run(run_id=RUN, **changes):
    return replace(RunRecord(run_id, "delays", Status.RUNNING, started_at=100.0), **changes)


def a_step(name="train", **changes):
    return replace(StepRunRecord(RUN, name, "train", Status.RUNNING, position=0, started_at=101.0), **changes)


def an_artifact(number, *, store=STORE, created_at=102.0, type_name="builtins.int"):
    digest = a_digest(number)
    file = StoredFile("value.json", 2, digest, b"42")
    return ArtifactRecord(Manifest(type_name, "json", 1, (file,), {"rows": 1}, digest, producer=RUN), store, created_at)


def an_entry(number, *digests, store=STORE, created_at=103.0):
    outputs = tuple((f"output_{i}", a_digest(d)) for i, d in enumerate(digests))
    return CacheEntry(a_digest(number), store, RUN, "train", outputs, created_at)


def outputs_of(name, *numbers):
    return StepOutputs(RUN, name, tuple(StepOutput(RUN, name, "output", i, a_digest(n)) for i, n in enumerate(numbers)))


def begin(ledger, run_id=RUN, *, owner="test", ttl_s=600):
    """Record a run that goes on, with an owner whose lease lasts, and return its fence."""
    return ledger.create_run(a_run(run_id), owner=owner, ttl_s=ttl_s)


def write(ledger, *changes, run_id=RUN, fence=None):
    """Write as the owner of a run, or with the fence of an older one; afterwards nobody has the lease."""
    if fence is None:
        fence = ledger.find_run(run_id).fence
    with LedgerWriter(ledger, run_id, fence, ttl_s=60, delay_s=0) as writer:
        writer.record(*changes)


class RunsContract:
    def test_a_run_is_found_as_it_was_recorded(self, ledger):
        run = a_run(
            parameters={"lr": 0.1, "names": ["a", None]},
            stack="local",
            user="ada",
            host="laptop",
            versions={"python": "3.11.7"},
            git_revision="abc",
            source_file="/home/ada/flights.py",
            outputs={"model": a_digest(1)},
            error={"kind": "user", "message": "no"},
            ended_at=200.5,
        )
        ledger.create_run(run)
        assert ledger.find_run(RUN) == run

    def test_a_second_run_with_the_same_id_is_refused(self, ledger):
        ledger.create_run(a_run())
        with pytest.raises(MetadataError):
            ledger.create_run(a_run(pipeline="other"))
        assert ledger.find_run(RUN).pipeline == "delays"

    def test_what_json_cannot_express_is_recorded_as_its_repr(self, ledger):
        cycle = {}
        cycle["self"] = cycle
        parameters = {"when": complex(1, 2), "keys": {(1, 2): 3}}
        ledger.create_run(a_run(parameters={"when": complex(1, 2)}))
        ledger.create_run(a_run("other", parameters=parameters))
        ledger.create_run(a_run("cyclic", parameters=cycle))
        assert ledger.find_run(RUN).parameters == {"when": "(1+2j)"}
        assert ledger.find_run("other").parameters == {"when": "(1+2j)", "keys": "{(1, 2): 3}"}
        assert ledger.find_run("cyclic").parameters == {"self": "{'self': {...}}"}

    def test_a_path_that_is_not_unicode_does_not_lose_the_run(self, ledger):
        ledger.create_run(a_run(source_file="/tmp/\udcff.py"))
        assert ledger.find_run(RUN).source_file == "/tmp/\\udcff.py"

    def test_a_run_is_found_by_a_beginning_that_only_it_has(self, ledger):
        ledger.create_run(a_run("20261124-a"))
        ledger.create_run(a_run("20261125-b"))
        assert ledger.find_run("20261125").run_id == "20261125-b"

    def test_the_beginning_of_two_runs_names_both(self, ledger):
        ledger.create_run(a_run("20261124-a"))
        ledger.create_run(a_run("20261125-b"))
        with pytest.raises(NotFoundError, match=r"20261124-a, 20261125-b"):
            ledger.find_run("2026112")

    def test_an_exact_id_wins_over_a_beginning(self, ledger):
        ledger.create_run(a_run("2026"))
        ledger.create_run(a_run("20261"))
        assert ledger.find_run("2026").run_id == "2026"

    @pytest.mark.parametrize("asked", ["2026112x", "%", "2026_124-a", ""])
    def test_an_unknown_run_names_the_known_ones(self, ledger, asked):
        ledger.create_run(a_run("20261124-a"))
        with pytest.raises(NotFoundError, match="20261124-a"):
            ledger.find_run(asked)

    def test_runs_are_listed_newest_first_and_can_be_paged(self, ledger):
        for number in range(5):
            ledger.create_run(a_run(f"run-{number}", started_at=float(number)))
        first = ledger.list_runs(limit=2)
        assert [r.run_id for r in first] == ["run-4", "run-3"]
        assert [r.run_id for r in ledger.list_runs(before=first[-1].started_at)] == ["run-2", "run-1", "run-0"]

    def test_runs_are_listed_by_pipeline_and_status(self, ledger):
        ledger.create_run(a_run("one"))
        ledger.create_run(a_run("two", pipeline="other"))
        ledger.create_run(a_run("three", pipeline="other", status=Status.FAILED))
        assert [r.run_id for r in ledger.list_runs("other", status=Status.FAILED)] == ["three"]
        assert {r.run_id for r in ledger.list_runs("other")} == {"two", "three"}

    def test_pipelines_are_counted(self, ledger):
        ledger.create_run(a_run("one", started_at=1.0))
        ledger.create_run(a_run("two", started_at=2.0))
        ledger.create_run(a_run("three", pipeline="a"))
        assert [(p.name, p.run_count, p.last_started_at) for p in ledger.pipelines()] == [
            ("a", 1, 100.0),
            ("delays", 2, 2.0),
        ]

    def test_names_that_differ_in_case_are_different(self, ledger):
        ledger.create_run(a_run())
        write(ledger, a_step("train"), a_step("Train", position=1))
        assert [s.name for s in ledger.step_runs(RUN)] == ["train", "Train"]

    def test_a_run_is_finished_by_its_owner_only(self, ledger):
        old = begin(ledger, owner="old")
        new = ledger.acquire_lease(RUN, "new", ttl_s=60, is_owner_dead=True)
        with pytest.raises(RunLostError):
            write(ledger, RunState(RUN, Status.FAILED, ended_at=5.0), fence=old)
        assert ledger.find_run(RUN).status is Status.RUNNING
        write(ledger, RunState(RUN, Status.SUCCEEDED, ended_at=6.0, outputs=["x"]), fence=new)
        run = ledger.find_run(RUN)
        assert (run.status, run.ended_at, run.outputs) == (Status.SUCCEEDED, 6.0, ["x"])

    def test_a_run_that_goes_on_has_no_end_and_no_error(self, ledger):
        ledger.create_run(a_run(status=Status.FAILED, ended_at=5.0, error={"kind": "user"}))
        write(ledger, RunState(RUN, Status.RUNNING))
        run = ledger.find_run(RUN)
        assert (run.status, run.ended_at, run.error) == (Status.RUNNING, None, None)

    def test_deleting_a_run_keeps_its_artifacts_and_cache_entries(self, ledger):
        ledger.create_run(a_run())
        edge = StepInputs(RUN, "train", (StepInput(RUN, "train", "data", 0, a_digest(1)),))
        attempt = AttemptRecord(RUN, "train", 1, Status.SUCCEEDED)
        write(ledger, a_step(), attempt, an_artifact(1), edge, outputs_of("train", 1), an_entry(9, 1))
        ledger.delete_run(RUN)
        ledger.delete_run(RUN)
        assert ledger.list_runs() == ()
        assert ledger.step_runs(RUN) == ledger.attempts(RUN) == ledger.inputs(RUN) == ledger.outputs(RUN) == ()
        assert list(ledger.find_cache_entries([a_digest(9)], STORE)) == [a_digest(9)]


class StepRunsContract:
    def test_a_step_run_is_found_as_it_was_recorded(self, ledger):
        ledger.create_run(a_run())
        step = a_step(
            module="flights",
            cache_key=a_digest(3),
            key_parts={"code": a_digest(4), "arguments": {"lr": a_digest(5)}, "salt": ""},
            code_digest=a_digest(4),
            cache_source=("earlier", "train_2"),
            parameters={"lr": "0.1"},
            resources={"num_cpus": 2},
            ended_at=105.25,
            error={"kind": "user", "type": "ValueError", "message": "nö", "traceback": "…"},
            cause="ingest",
            reason="code changed",
            tags={"gpu": True},
            metadata={"loss": 0.5},
        )
        write(ledger, step)
        assert ledger.step_run(RUN, "train") == step
        assert ledger.step_runs(RUN) == (step,)

    def test_step_runs_are_in_the_order_of_creation(self, ledger):
        ledger.create_run(a_run())
        write(ledger, a_step("b", position=1), a_step("a", position=2), a_step("c", position=0))
        assert [s.name for s in ledger.step_runs(RUN)] == ["c", "b", "a"]

    def test_an_unknown_step_names_the_known_ones(self, ledger):
        ledger.create_run(a_run())
        write(ledger, a_step("train"))
        with pytest.raises(NotFoundError, match="did you mean 'train'"):
            ledger.step_run(RUN, "tran")

    def test_step_runs_are_counted_by_status(self, ledger):
        ledger.create_run(a_run())
        steps = [a_step(f"s{i}", status=Status.CACHED if i else Status.FAILED) for i in range(3)]
        write(ledger, *steps)
        assert ledger.step_counts([RUN, "none"]) == {RUN: {Status.FAILED: 1, Status.CACHED: 2}, "none": {}}

    def test_earlier_runs_of_a_step_come_newest_first(self, ledger):
        ledger.create_run(a_run())
        steps = [a_step(f"train_{i}", started_at=float(i), module="m") for i in range(4)]
        write(ledger, *steps, a_step("other", step="other", started_at=1.5), a_step("twin", module="n", started_at=0.5))
        found = ledger.previous_step_runs("train", before=3.0, module="m", limit=2)
        assert [s.name for s in found] == ["train_2", "train_1"]
        assert [s.name for s in ledger.previous_step_runs("train", before=1.0)] == ["twin", "train_0"]

    def test_attempts_are_found_in_their_order(self, ledger):
        ledger.create_run(a_run())
        first = AttemptRecord(RUN, "train", 1, Status.FAILED, "node:1", 1.0, 2.0, {"kind": "worker"}, "file:///l", 9, 1)
        second = AttemptRecord(RUN, "train", 2, Status.RUNNING)
        write(ledger, a_step(), second, first)
        assert ledger.attempts(RUN, "train") == ledger.attempts(RUN) == (first, second)

    def test_inputs_and_outputs_replace_those_recorded_before(self, ledger):
        ledger.create_run(a_run())
        edges = tuple(StepInput(RUN, "train", "data", i, a_digest(i), "ingest") for i in range(3))
        write(ledger, a_step(), StepInputs(RUN, "train", edges), outputs_of("train", 1, 2, 3))
        assert ledger.inputs(RUN, "train") == edges
        write(ledger, StepInputs(RUN, "train", edges[:1]), outputs_of("train", 7))
        assert ledger.inputs(RUN) == edges[:1]
        assert [o.digest for o in ledger.outputs(RUN, "train")] == [a_digest(7)]

    def test_an_artifact_knows_who_made_and_who_uses_it(self, ledger):
        ledger.create_run(a_run())
        use = StepInput(RUN, "train", "data", 0, a_digest(1), "ingest")
        write(ledger, a_step("ingest"), a_step(), outputs_of("ingest", 1), StepInputs(RUN, "train", (use,)))
        assert [o.name for o in ledger.producers(a_digest(1))] == ["ingest"]
        assert ledger.consumers(a_digest(1)) == (use,)
        assert ledger.consumers(a_digest(2)) == ()

    def test_code_is_found_by_its_digest(self, ledger):
        ledger.create_run(a_run())
        part = {"kind": "function", "name": "clean", "digest": a_digest(2), "file": "f.py", "line": 3}
        write(ledger, CodeRecord(a_digest(1), (part,)))
        assert ledger.code_parts(a_digest(1)) == (part,)
        assert ledger.code_parts(a_digest(2)) == ()


class ArtifactsContract:
    def test_an_artifact_is_found_by_the_beginning_of_its_digest(self, ledger):
        ledger.create_run(a_run())
        record = replace(an_artifact(1), manifest=replace(an_artifact(1).manifest, digest="ab" * 32))
        write(ledger, record, an_artifact(2))
        assert ledger.artifact("abab") == record
        with pytest.raises(NotFoundError):
            ledger.artifact("abac")
        with pytest.raises(NotFoundError):
            ledger.artifact("")

    def test_the_beginning_of_two_digests_names_both(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1), an_artifact(2))
        with pytest.raises(NotFoundError, match=f"{a_digest(1)}, {a_digest(2)}"):
            ledger.artifact("00")

    def test_the_copies_of_two_stores_are_one_artifact(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1, created_at=1.0), an_artifact(1, store="s3://b", created_at=2.0))
        assert ledger.artifact(a_digest(1)).store == "s3://b"
        assert ledger.artifact(a_digest(1), store=STORE).store == STORE

    def test_whoever_wrote_an_artifact_first_stays_named(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1, created_at=1.0))
        write(ledger, an_artifact(1, created_at=2.0))
        assert ledger.artifact(a_digest(1)).created_at == 1.0

    def test_artifacts_are_listed_newest_first(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1, created_at=1.0), an_artifact(2, created_at=2.0, type_name="pyarrow.Table"))
        assert [a.digest for a in ledger.list_artifacts()] == [a_digest(2), a_digest(1)]
        assert [a.digest for a in ledger.list_artifacts(before=2.0)] == [a_digest(1)]
        assert [a.digest for a in ledger.list_artifacts(type_name="pyarrow.Table", store=STORE)] == [a_digest(2)]
        assert ledger.artifacts([a_digest(1), a_digest(9)], store=STORE) == {
            a_digest(1): an_artifact(1, created_at=1.0)
        }

    def test_only_what_nothing_refers_to_can_be_deleted(self, ledger):
        ledger.create_run(a_run())
        edge = StepInputs(RUN, "train", (StepInput(RUN, "train", "data", 0, a_digest(2)),))
        artifacts = [an_artifact(n) for n in range(1, 6)]
        write(ledger, a_step(), *artifacts, outputs_of("train", 1), edge, an_entry(9, 3))
        assert [a.digest for a in ledger.unreferenced_artifacts(STORE, before=200.0)] == [a_digest(4), a_digest(5)]
        assert ledger.unreferenced_artifacts(STORE, before=102.0) == ()
        everything = [a_digest(n) for n in range(1, 6)]
        assert ledger.delete_artifacts(everything, store=STORE) == {a_digest(4), a_digest(5)}
        assert {a.digest for a in ledger.list_artifacts()} == set(everything[:3])

    def test_artifacts_of_a_deleted_run_become_free_once_the_cache_lets_go(self, ledger):
        ledger.create_run(a_run())
        write(ledger, a_step(), an_artifact(1), outputs_of("train", 1), an_entry(9, 1))
        ledger.delete_run(RUN)
        assert ledger.delete_artifacts([a_digest(1)], store=STORE) == set()
        assert ledger.delete_cache_entries(keys=[a_digest(9)]) == 1
        assert ledger.delete_artifacts([a_digest(1)], store=STORE) == {a_digest(1)}

    def test_a_cache_entry_holds_the_artifacts_of_its_own_store_only(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1), an_entry(9, 1, store="s3://b"))
        assert [a.digest for a in ledger.unreferenced_artifacts(STORE, before=200.0)] == [a_digest(1)]
        assert ledger.delete_artifacts([a_digest(1)], store=STORE) == {a_digest(1)}

    def test_what_a_collection_will_free_is_foretold(self, ledger):
        ledger.create_run(a_run())
        artifacts = [an_artifact(n) for n in range(1, 4)]
        write(ledger, a_step(), *artifacts, outputs_of("train", 1), an_entry(9, 1, 2), an_entry(8, 3))
        assert ledger.users([a_digest(1), a_digest(2)]) == {a_digest(1): {RUN}, a_digest(2): set()}

        def foretold(freed, without):
            found = ledger.unreferenced_artifacts(STORE, before=200.0, freed=freed, without=without)
            return {a.digest for a in found}

        assert foretold([a_digest(1)], []) == set()
        assert foretold([], [a_digest(9)]) == {a_digest(2)}
        assert foretold([a_digest(1)], [a_digest(9)]) == {a_digest(1), a_digest(2)}


class CacheContract:
    def test_an_entry_comes_with_its_manifests_in_order(self, ledger):
        ledger.create_run(a_run())
        entry = an_entry(9, 2, 1)
        write(ledger, an_artifact(1), an_artifact(2), entry)
        found = ledger.find_cache_entries([a_digest(9), a_digest(8)], STORE)
        assert found == {a_digest(9): (entry, (an_artifact(2).manifest, an_artifact(1).manifest))}

    def test_thousands_of_keys_are_found_at_once(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1), *(an_entry(n, 1) for n in range(100, 1700)))
        found = ledger.find_cache_entries([a_digest(n) for n in range(50, 2000)], STORE)
        assert set(found) == {a_digest(n) for n in range(100, 1700)}

    def test_an_entry_without_outputs_is_a_hit(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_entry(9))
        assert ledger.find_cache_entries([a_digest(9)], STORE) == {a_digest(9): (an_entry(9), ())}

    def test_an_entry_whose_artifact_is_forgotten_is_no_hit(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1), an_entry(9, 1, 2))
        assert ledger.find_cache_entries([a_digest(9)], STORE) == {}

    def test_an_entry_of_another_store_is_no_hit(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1), an_entry(9, 1))
        assert ledger.find_cache_entries([a_digest(9)], "s3://elsewhere") == {}

    def test_the_newest_entry_of_a_key_replaces_the_older(self, ledger):
        ledger.create_run(a_run())
        write(ledger, an_artifact(1), an_artifact(2), an_entry(9, 1, 2))
        write(ledger, an_entry(9, 2))
        (entry, manifests) = ledger.find_cache_entries([a_digest(9)], STORE)[a_digest(9)]
        assert entry == an_entry(9, 2)
        assert [m.digest for m in manifests] == [a_digest(2)]

    def test_entries_are_deleted_by_what_is_given(self, ledger):
        ledger.create_run(a_run())
        entries = [an_entry(7, 1), an_entry(8, 2), an_entry(9, 1, created_at=1.0), an_entry(6, 1, store="s3://b")]
        write(ledger, an_artifact(1), an_artifact(2), *entries)
        assert ledger.delete_cache_entries(before=50.0) == 1
        assert ledger.delete_cache_entries(keys=[a_digest(8), a_digest(6)], store=STORE) == 1
        assert ledger.delete_cache_entries(keys=[a_digest(8), a_digest(7)]) == 1
        assert ledger.delete_cache_entries(store="s3://b") == 1
        with pytest.raises(MetadataError, match="give keys"):
            ledger.delete_cache_entries()


class LeasesContract:
    def test_each_owner_gets_a_higher_fence(self, ledger):
        assert begin(ledger, owner="one", ttl_s=0) == 1
        assert ledger.acquire_lease(RUN, "two", ttl_s=60) == 2
        assert ledger.acquire_lease(RUN, "two", ttl_s=60) == 3

    def test_a_living_owner_keeps_its_run(self, ledger):
        fence = begin(ledger, owner="one")
        with pytest.raises(RunLostError, match="'one'"):
            ledger.acquire_lease(RUN, "two", ttl_s=60)
        write(ledger, a_step(), fence=fence)
        assert [s.name for s in ledger.step_runs(RUN)] == ["train"]

    def test_the_lease_of_a_finished_run_holds_nobody_up(self, ledger):
        ledger.create_run(a_run(status=Status.FAILED), owner="one", ttl_s=600)
        assert ledger.acquire_lease(RUN, "two", ttl_s=60) == 2

    def test_an_outdated_fence_neither_renews_nor_ends_the_lease(self, ledger):
        old = begin(ledger, owner="one", ttl_s=0)
        ledger.acquire_lease(RUN, "two", ttl_s=60)
        until = ledger.find_run(RUN).lease_until
        with pytest.raises(RunLostError, match="'two'"):
            write(ledger, a_step(), fence=old)
        assert ledger.find_run(RUN).lease_until == until

    def test_who_takes_a_run_over_is_not_asked_to_stop(self, ledger):
        begin(ledger, ttl_s=0)
        ledger.ask_to_stop(RUN, "ann@host")
        ledger.acquire_lease(RUN, "two", ttl_s=60)
        assert ledger.find_run(RUN).stop_asked_by == ""

    def test_a_lease_on_no_run_is_not_found(self, ledger):
        with pytest.raises(NotFoundError):
            ledger.acquire_lease("none", "one", ttl_s=60)

    def test_only_unfinished_runs_expire(self, ledger):
        for run_id, ttl_s in (("expired", -1), ("owned", 60), ("finished", -1)):
            begin(ledger, run_id, ttl_s=ttl_s)
        write(ledger, RunState("finished", Status.SUCCEEDED, ended_at=1.0), run_id="finished")
        ledger.create_run(a_run("new"))
        found = {run.run_id: has_ended for run, has_ended in ledger.unfinished_runs()}
        assert found == {"expired": True, "owned": False, "new": False}

    def test_a_run_is_recorded_together_with_its_lease(self, ledger):
        assert ledger.create_run(a_run(), owner="one", ttl_s=60) == 1
        assert (ledger.find_run(RUN).owner, ledger.find_run(RUN).fence) == ("one", 1)
        with pytest.raises(RunLostError, match=r"'one', whose lease lasts (60|59) s more"):
            ledger.acquire_lease(RUN, "two", ttl_s=60)
        write(ledger, a_step(), fence=1)
        assert ledger.acquire_lease(RUN, "two", ttl_s=60) == 2

    def test_a_lost_run_fails_with_all_that_was_unfinished(self, ledger):
        ledger.create_run(a_run())
        states = [Status.RUNNING, Status.WAITING, Status.SUCCEEDED]
        write(ledger, *(a_step(s.value, status=s) for s in states), AttemptRecord(RUN, "running", 1, Status.RUNNING))
        fence = ledger.acquire_lease(RUN, "host:1", ttl_s=60)
        assert not ledger.mark_lost(RUN)
        write(ledger, a_step("last", status=Status.SUCCEEDED), fence=fence)
        assert ledger.mark_lost(RUN)
        run = ledger.find_run(RUN)
        assert (run.status, run.error["kind"]) == (Status.FAILED, "driver lost")
        assert abs(run.ended_at - time.time()) < 600  # seconds since 1970, in no time zone
        assert {s.name: s.status for s in ledger.step_runs(RUN)} == {
            "running": Status.FAILED,
            "waiting": Status.SKIPPED,
            "succeeded": Status.SUCCEEDED,
            "last": Status.SUCCEEDED,
        }
        assert ledger.step_run(RUN, "running").error["kind"] == "driver lost"
        assert ledger.attempts(RUN)[0].status is Status.FAILED
        assert not ledger.mark_lost(RUN)
        with pytest.raises(RunLostError, match="given up for lost"):
            write(ledger, a_step("late"), fence=fence)

    def test_a_run_of_a_dead_owner_is_lost_at_once(self, ledger):
        begin(ledger, owner="host:1")
        assert ledger.mark_lost(RUN, is_owner_dead=True)


SKEWED = """
import json, sys, time
right = time.time
time.time = lambda: right() + float(sys.argv[2])  # the clock of a machine that is off
from zenray.errors import RunLostError
from zenray.metadata.ledger import Ledger
from zenray.metadata.records import RunRecord
from zenray.model import Status
from zenray.recovery import mark_lost_runs

with Ledger(sys.argv[1]) as ledger:
    ledger.create_run(RunRecord("skewed", "p", Status.RUNNING, time.time()), owner="there:1:1", ttl_s=60)
    held = ledger.claim({"a" * 64: "train", "b" * 64: "train"}, store="s", run_id="skewed").held
    try:
        ledger.acquire_lease("live", "me", ttl_s=60)
    except RunLostError as exc:
        print(exc, file=sys.stderr)
    print(json.dumps({"held": {k[0]: c.run_id for k, c in held.items()}, "lost": mark_lost_runs(ledger)}))
"""


class ClocksContract:
    @pytest.mark.parametrize("skew_s", [300, -300])
    def test_a_machine_whose_clock_is_off_takes_over_what_has_ended_and_nothing_else(self, ledger, url, skew_s):
        for run_id, key, ttl_s in (("live", "a", 60), ("ended", "b", -3600)):
            ledger.create_run(a_run(run_id), owner="here:1:1", ttl_s=ttl_s)
            ledger.claim({key * 64: "train"}, store="s", run_id=run_id)
        done = subprocess.run(
            [sys.executable, "-c", SKEWED, url, str(skew_s)],
            env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "'live' is being worked on by 'here:1:1', whose lease lasts" in done.stderr
        assert json.loads(done.stdout) == {"held": {"a": "live"}, "lost": ["ended"]}
        assert {r.run_id: has_ended for r, has_ended in ledger.unfinished_runs()} == {"live": False, "skewed": False}
        assert ledger.claim({"b" * 64: "test"}, store="s", run_id="live").held["b" * 64].run_id == "skewed"

    def test_a_run_elsewhere_that_waits_for_the_database_is_not_given_up_for_lost(self, ledger):
        for run_id, ended_s in (("waits", 60), ("gone", 2 * RETRY_S)):
            ledger.create_run(a_run(run_id), owner="elsewhere:1:1", ttl_s=-ended_s)
        assert mark_lost_runs(ledger) == ["gone"]

    def test_whoever_works_on_a_run_learns_that_it_is_to_stop(self, ledger):
        fence, told = begin(ledger), []
        with LedgerWriter(ledger, RUN, fence, ttl_s=0.6, on_stop=told.append) as writer:
            writer.record(a_step())
            writer.flush()
            assert told == []
            assert ledger.ask_to_stop(RUN, "ann@host")
            assert ledger.ask_to_stop(RUN, "bob@host")
            give_up_at = time.monotonic() + 30
            while not told and time.monotonic() < give_up_at:
                time.sleep(0.05)
            writer.record(a_step("next"))
            writer.flush()
        assert told == ["ann@host"]
        assert ledger.find_run(RUN).stop_asked_by == "ann@host"
        write(ledger, RunState(RUN, Status.CANCELLED, ended_at=1.0))
        assert not ledger.ask_to_stop(RUN, "cid@host")
        with pytest.raises(NotFoundError):
            ledger.ask_to_stop("none", "ann@host")


RACE = """
import sys, time
from zenray.metadata.ledger import Ledger

url, run_id, begin_at = sys.argv[1:]
keys = [f"{n:064x}" for n in range(300)]
with Ledger(url) as ledger:
    ledger.list_runs()
    time.sleep(max(0, float(begin_at) - time.time()))
    for start in range(0, 300, 20):
        part = dict.fromkeys(reversed(keys[start:start + 20]), run_id)
        held = ledger.claim(part, store="s", run_id=run_id).held
        print(*part.keys() - held.keys(), sep="\\n", flush=True)
        assert all(claim.run_id != run_id for claim in held.values())
    kept = ledger.claim(dict.fromkeys(keys, "again"), store="s", run_id=run_id).held
    assert not any(claim.run_id == run_id for claim in kept.values())
"""


class ClaimsContract:
    def test_a_key_has_one_holder_and_the_others_learn_whom(self, ledger):
        begin(ledger, "one")
        begin(ledger, "two")
        first, second, third = map(a_digest, (1, 2, 3))
        assert ledger.claim({first: "train", second: "test"}, store=STORE, run_id="one").held == {}
        held = ledger.claim({third: "c", second: "b"}, store=STORE, run_id="two").held
        assert held == {second: Claim(second, STORE, "one", "test")}
        assert ledger.claim({first: "again", third: "t"}, store=STORE, run_id="one").held == {
            third: Claim(third, STORE, "two", "c")
        }

    def test_claims_of_another_store_are_in_nobodys_way(self, ledger):
        begin(ledger, "one")
        begin(ledger, "two")
        assert ledger.claim({a_digest(1): "a"}, store=STORE, run_id="one").held == {}
        assert ledger.claim({a_digest(1): "a"}, store="s3://b", run_id="two").held == {}

    def test_thousands_of_keys_are_claimed_at_once(self, ledger):
        begin(ledger, "one")
        begin(ledger, "two")
        keys = {a_digest(n): f"step_{n}" for n in range(1200)}
        assert ledger.claim(dict(list(keys.items())[::2]), store=STORE, run_id="one").held == {}
        held = ledger.claim(keys, store=STORE, run_id="two").held
        assert {claim.name for claim in held.values()} == {f"step_{n}" for n in range(0, 1200, 2)}
        assert ledger.claim({}, store=STORE, run_id="two").held == {}

    def test_a_claim_ends_with_the_step_that_is_committed_with_it(self, ledger):
        fence = begin(ledger)
        begin(ledger, "two")
        ledger.claim({a_digest(1): "train"}, store=STORE, run_id="two")
        with LedgerWriter(ledger, RUN, fence, ttl_s=600) as writer:
            ledger.claim({a_digest(9): "train"}, store=STORE, run_id=RUN)
            ends = [ClaimEnd(a_digest(n), STORE, RUN) for n in (9, 1)]
            writer.record(a_step(), an_artifact(1), an_entry(9, 1), *ends)
            writer.flush()
            won = ledger.claim({a_digest(9): "train", a_digest(1): "train"}, store=STORE, run_id="two")
            assert won.held == {}
            assert won.recorded == {a_digest(9)}
            assert ledger.claim({a_digest(1): "train"}, store=STORE, run_id=RUN).held[a_digest(1)].run_id == "two"

    def test_the_claims_of_a_run_end_with_it(self, ledger):
        begin(ledger, "next")
        fences = {name: begin(ledger, name) for name in ("finished", "cancelled", "lost", "deleted")}
        for number, name in enumerate(fences):
            ledger.claim({a_digest(number): name}, store=STORE, run_id=name)
        write(ledger, RunState("finished", Status.SUCCEEDED, ended_at=1.0), run_id="finished")
        with LedgerWriter(ledger, "cancelled", fences["cancelled"]) as writer:
            writer.record(RunState("cancelled", Status.CANCELLED), RunState("cancelled", Status.RUNNING))
        ledger.mark_lost("lost", is_owner_dead=True)
        ledger.delete_run("deleted")
        assert ledger.database.read(select(schema.claims)) == []

    def test_a_run_that_is_gone_loses_its_claims_to_whoever_asks(self, ledger):
        begin(ledger, "heir")
        begin(ledger, "rival")
        ledger.create_run(a_run("finished", status=Status.FAILED), owner="me", ttl_s=600)
        ledger.create_run(a_run("expired"), owner="me", ttl_s=-1)
        ledger.create_run(a_run("unowned"))
        gone = ("finished", "expired", "never recorded")
        keys = {a_digest(n): name for n, name in enumerate((*gone, "unowned"))}
        for key, name in keys.items():
            assert ledger.claim({key: name}, store=STORE, run_id=name).held == {}
        held = ledger.claim(keys, store=STORE, run_id="heir").held
        assert {claim.run_id for claim in held.values()} == {"unowned"}
        assert {claim.run_id for claim in ledger.claim(keys, store=STORE, run_id="rival").held.values()} == {
            "heir",
            "unowned",
        }

    def test_of_several_processes_that_race_for_a_key_one_wins(self, ledger, url):
        ledger.create_run(a_run("dead"), owner="me", ttl_s=-1)
        ledger.claim({a_digest(n): "a" for n in range(0, 300, 3)}, store="s", run_id="dead")
        rivals = [f"rival-{n}" for n in range(4)]
        for rival in rivals:
            begin(ledger, rival)
        begin_at = str(time.time() + 1.5)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RACE, url, rival, begin_at],
                env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rival in rivals
        ]
        won = []
        for process in processes:
            output, errors = process.communicate(timeout=120)
            assert errors == ""
            won += output.split()
        assert sorted(won) == [a_digest(n) for n in range(300)]
        rows = ledger.database.read(select(schema.claims.c.run_id))
        assert len(rows) == 300
        assert {row.run_id for row in rows} <= set(rivals)


class LedgerContract(RunsContract, StepRunsContract, ArtifactsContract, CacheContract, LeasesContract, ClaimsContract):
    """All of it."""


names = st.sampled_from(["a", "b"])
numbers = st.integers(0, 2)
digests = numbers.map(a_digest)
changes = st.one_of(
    st.builds(RunState, st.just(RUN), st.sampled_from(Status), numbers.map(float)),
    st.builds(a_step, names, status=st.sampled_from(Status), position=numbers, parameters=st.just({"x": 1})),
    st.builds(AttemptRecord, st.just(RUN), names, numbers, st.sampled_from(Status), log_bytes=numbers),
    st.builds(an_artifact, numbers, store=st.sampled_from(["s", "t"]), created_at=numbers.map(float)),
    st.builds(outputs_of, names, numbers),
    st.builds(outputs_of, names),
    st.builds(
        lambda name, argument, digest: StepInputs(RUN, name, (StepInput(RUN, name, argument, 0, digest),)),
        names,
        names,
        digests,
    ),
    st.builds(CodeRecord, digests, st.tuples(st.fixed_dictionaries({"line": numbers}))),
    st.builds(ClaimEnd, digests, st.sampled_from(["s", "t"]), st.sampled_from([RUN, "other"])),
    st.builds(an_entry, numbers, numbers, store=st.sampled_from(["s", "t"]), created_at=numbers.map(float)),
)


def content_after(ledger, batches):
    """Return all rows of all tables once these batches were written to a database with one run and some claims."""
    database = ledger.database
    owners = [(key, store) for key in range(3) for store in "st"]
    with database.transaction() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
        for table, given_values in [
            (schema.runs, [{"run_id": RUN}]),
            (schema.claims, [{"key": a_digest(k), "store": s, "run_id": RUN if k else "other"} for k, s in owners]),
        ]:
            filler = {c.name: None if c.nullable else 0 if c.type.python_type in (float, int) else "0" for c in table.c}
            connection.execute(insert(table), [filler | values for values in given_values])
        writer = BatchWriter(database, connection.dialect)
        for changes_of_batch in [[a_step("a"), a_step("b")], *batches]:
            batch = Batch()
            for change in changes_of_batch:
                batch.add(change)
            writer.write(connection, batch)
    tables = schema.metadata.sorted_tables
    return {t.name: sorted(map(repr, database.read(select(t)))) for t in tables}


recorded = st.lists(changes, max_size=30)
cuts = st.lists(st.integers(0, 30), max_size=4)


def check_that_a_batch_has_the_effect_of_its_changes_one_by_one(ledger, recorded, cuts):
    edges = [0, *sorted(cuts), len(recorded)]
    batches = [recorded[start:end] for start, end in pairwise(edges)]
    assert content_after(ledger, batches) == content_after(ledger, [[change] for change in recorded])


def structure_of(inspector, table):
    columns = [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)]
    keys = inspector.get_pk_constraint(table), inspector.get_foreign_keys(table)
    return columns, keys, sorted(map(repr, inspector.get_indexes(table)))
