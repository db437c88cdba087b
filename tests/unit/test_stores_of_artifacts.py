"""Artifacts written under another stack: read, handed over and copied."""

import json
from dataclasses import replace

import pytest
from sqlalchemy import update

import zenray
from zenray import garbage, pipeline, profile, step
from zenray.metadata import schema
from zenray.profile import active_stack
from zenray.store import object_name
from zenray.submit import run_pipeline
from zenray.views import Books


@step
def rows(n: int) -> list[int]:
    return list(range(n))


@step
def total(values: list[int]) -> int:
    return sum(values)


@pipeline
def both(n: int = 2000):
    return total(rows(n))


@pytest.fixture(autouse=True)
def stacks(tmp_path, monkeypatch):
    """Two stacks with a store each and one ledger, and one that shares neither."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "first")
    ledger = f"sqlite:///{tmp_path}/shared.db"
    for name, metadata_store in (("first", ledger), ("second", ledger), ("apart", f"sqlite:///{tmp_path}/apart.db")):
        profile.save(
            name,
            {"orchestrator": "inline", "artifact_store": f"{tmp_path}/{name}", "metadata_store": metadata_store},
            profile=None,
        )


def test_what_was_written_under_another_stack_is_read_with_the_run(monkeypatch):
    run_id = both().run_id
    monkeypatch.setenv("ZENRAY_STACK", "second")
    found = zenray.get_run(run_id).steps["rows"].output
    assert found.load() == list(range(2000))
    assert found.store.uri == Books(active_stack("first")).store.uri


def test_an_artifact_of_another_store_is_brought_along_when_a_step_takes_it(monkeypatch):
    made = both().steps["rows"].output
    monkeypatch.setenv("ZENRAY_STACK", "second")

    @pipeline
    def again():
        return total(made)

    assert again().steps["total"].output.load() == sum(range(2000))
    assert made.digest in {r.digest for r in Books().ledger.list_artifacts(store=Books().store.uri)}


def test_a_store_that_is_reached_by_two_paths_is_one(tmp_path, cli):
    both()
    (tmp_path / "link").symlink_to(tmp_path)
    linked = {"artifact_store": f"{tmp_path}/link/first", "metadata_store": f"sqlite:///{tmp_path}/link/shared.db"}
    profile.save("linked", {"orchestrator": "inline", **linked}, profile=None)
    again = run_pipeline(both, {"n": 2000}, stack=active_stack("linked"))
    assert {s.status for s in again.steps.values()} == {"cached"}
    assert "share the store" in cli("artifact", "copy", "--all", "--to", "linked", code=2)


@pytest.mark.parametrize("target", ["second", "apart"])
def test_copied_artifacts_bring_their_cache_entries(cli, target, tmp_path):
    both()
    assert "2 cache entries" in cli("artifact", "copy", "--all", "--to", target)
    assert "0 bytes copied" in cli("artifact", "copy", "--all", "--to", target)
    again = run_pipeline(both, {"n": 2000}, stack=active_stack(target))
    assert {s.status for s in again.steps.values()} == {"cached"}
    cli("artifact", "verify", "--stack", target)


def test_a_copy_that_fails_has_recorded_what_it_copied(cli, tmp_path):
    first, second = (
        run_pipeline(both, {"n": n}, stack=active_stack("first")).steps["rows"].output for n in (3000, 2000)
    )
    (lost,) = [f for f in first.manifest.files if f.data is None]
    first.store.delete(object_name(lost.digest))
    cli("artifact", "copy", second.digest, first.digest, "--to", "apart", code=1)
    apart = Books(active_stack("apart"))
    assert [r.digest for r in apart.ledger.list_artifacts()] == [second.digest]
    assert garbage.collect(apart, is_dry=False, grace_s=0).unrecorded == 0


def test_a_run_or_single_artifacts_are_copied(cli):
    run = both()
    assert "2 artifacts" in cli("artifact", "copy", "--run", run.run_id, "--to", "second")
    digest = run.steps["rows"].output.digest
    assert "1 artifacts" in cli("artifact", "copy", digest[:12], "--to", "apart")
    assert [a["digest"] for a in json.loads(cli("artifact", "list", "--json", "--stack", "apart"))] == [digest]


def test_a_store_without_artifacts_points_to_those_that_have_some(cli, tmp_path):
    assert "there are no artifacts\n" in cli("artifact", "list", "--stack", "second")
    both()
    assert f"the ledger has some of other stores: {tmp_path}/first" in cli("artifact", "list", "--stack", "second")
    assert "there are no artifacts\n" in cli("artifact", "list", "--type", "Missing")


def test_a_copy_within_one_store_or_of_nothing_named_is_refused(cli):
    both()
    assert "share the store" in cli("artifact", "copy", "--all", "--to", "first", code=2)
    assert "say which artifacts" in cli("artifact", "copy", "--to", "second", code=2)


@pytest.fixture
def cli():
    """Run the command line in this process."""
    from typer.testing import CliRunner

    from zenray.cli import app

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_gc_of_one_stack_leaves_the_runs_of_another_that_shares_its_ledger(cli):
    run = both()
    assert "would remove nothing" in cli("artifact", "gc", "--keep-runs", "0", "--grace", "0s", "--stack", "second")
    assert "removed 1 runs" in cli("artifact", "gc", "--keep-runs", "0", "--grace", "0s", "--yes", "--stack", "first")
    assert run.run_id not in {r.run_id for r in zenray.list_runs()}


def collect(stack, **options):
    """Foretell a collection, do it, compare what both say, and return the report."""
    books = Books(active_stack(stack))
    planned = garbage.collect(books, grace_s=0, abandoned_s=0, is_dry=True, **options)
    done = garbage.collect(books, grace_s=0, abandoned_s=0, is_dry=False, **options)
    assert replace(planned, is_dry=False) == done
    return done


@pytest.mark.parametrize("target", ["second", "apart"])
def test_copies_go_once_no_run_needs_them_as_it_was_foretold(cli, target):
    for n in (2000, 3000):
        both(n=n)
    cli("artifact", "copy", "--all", "--to", target)
    kept = collect(target)
    assert (kept.cache_entries, kept.artifacts) == (0, 0)
    done = collect("first", keep_runs=1)
    assert (done.runs, done.cache_entries, done.artifacts, done.objects) == (1, 2, 2, 1)
    assert collect(target, older_than_s=3600).cache_entries == 0
    run_pipeline(both, {"n": 3000}, stack=active_stack(target))
    done = collect(target, keep_runs=1)
    assert (done.runs, done.cache_entries, done.artifacts, done.objects) == (0, 2, 2, 1)
    for stack in ("first", target):
        again = run_pipeline(both, {"n": 3000}, stack=active_stack(stack))
        assert {s.status for s in again.steps.values()} == {"cached"}
        cli("artifact", "verify", "--stack", stack)
    for stack in ("first", target):
        collect(stack, keep_runs=0)
    for stack in ("first", target):
        collect(stack, keep_runs=0)
        books = Books(active_stack(stack))
        uri = books.store.uri
        assert (books.ledger.cache_entries(uri), books.ledger.list_artifacts(store=uri)) == ((), ())
        assert [n for n, _, _ in books.store.names("") if not n.startswith("ledgers/")] == []


def test_a_copy_of_an_old_result_is_as_young_as_the_copy(cli):
    both()
    first, apart = Books(active_stack("first")), Books(active_stack("apart"))
    with first.ledger.database.transaction() as connection:
        connection.execute(update(schema.cache_entries).values(created_at=1.0))
    cli("artifact", "copy", "--all", "--to", "apart")
    assert garbage.collect(apart, keep_runs=0, is_dry=False).cache_entries == 0
    assert {e.created_at for e in apart.ledger.cache_entries(apart.store.uri)} == {1.0}
    assert collect("apart", keep_runs=0).cache_entries == 2
