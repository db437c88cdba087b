"""The same bucket and prefix on two servers, with one ledger: two stores, whatever their URL says."""

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

import zenray
from tests.servers.object_stores import ObjectStore, seaweedfs
from tests.servers.starting import running
from zenray import pipeline, profile, step
from zenray.cli import app
from zenray.errors import StoreError
from zenray.profile import active_stack
from zenray.submit import run_pipeline
from zenray.views import Books, Run


@step
def rows(n: int) -> list[int]:
    print("reading", n)
    return list(range(n))


@step
def total(values: list[int]) -> int:
    return sum(values)


@pipeline
def both(n: int = 20_000):
    return total(rows(n))


@pytest.fixture(scope="module")
def other_server() -> Iterator[ObjectStore]:
    yield from running(seaweedfs())


@pytest.fixture(autouse=True)
def stacks(s3: ObjectStore, other_server: ObjectStore, tmp_path, monkeypatch):
    """The stacks ``office`` and ``cloud``: one URL, one ledger, two servers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    for name, options in (("office", s3.options), ("cloud", other_server.options)):
        profile.save(
            name,
            {
                "orchestrator": "inline",
                "artifact_store": {"url": s3.uri, **options},
                "metadata_store": f"sqlite:///{tmp_path}/ledger.db",
            },
            profile=None,
        )


def run(stack: str, n: int = 20_000) -> Run:
    return run_pipeline(both, {"n": n}, stack=active_stack(stack))


def statuses(found: Run) -> set[str]:
    return {str(s.status) for s in found.steps.values()}


def cli(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.output
    return done.output


def objects(stack: str) -> int:
    return len(list(Books(active_stack(stack)).store.names("objects")))


def test_a_result_on_one_server_is_no_hit_on_the_other():
    assert statuses(run("office")) == {"succeeded"}
    assert statuses(run("cloud")) == {"succeeded"}
    assert statuses(run("office")) == statuses(run("cloud")) == {"cached"}
    assert objects("office") == objects("cloud") == 1
    for stack in ("office", "cloud"):
        assert "2 artifacts are whole, 0 are not" in cli("artifact", "verify", "--stack", stack)


def test_what_lies_on_the_other_server_is_read_with_its_logs_by_the_stack_that_leads_there(monkeypatch):
    run_id = run("office").run_id
    monkeypatch.setenv("ZENRAY_STACK", "cloud")
    found = zenray.get_run(run_id).steps["rows"]
    assert found.output.load() == list(range(20_000))
    assert found.logs == "reading 20000\n"
    assert "1 artifacts are whole" in cli("artifact", "verify", found.output.digest)


def test_without_a_stack_that_leads_to_its_server_an_artifact_is_not_looked_for_on_another(monkeypatch):
    run_id = run("office").run_id
    monkeypatch.setenv("ZENRAY_STACK", "cloud")
    profile.delete(profile.find("office"))
    with pytest.raises(StoreError, match=r"no stack here leads to the artifact store 's3://zenray-test@127.0.0.1:"):
        zenray.get_run(run_id).steps["rows"].output.load()


def test_artifacts_are_copied_from_one_server_to_the_other_with_their_cache_entries():
    run("office")
    assert "2 cache entries" in cli("artifact", "copy", "--all", "--stack", "office", "--to", "cloud")
    assert statuses(run("cloud")) == {"cached"}
    assert "share the store" in cli("artifact", "copy", "--all", "--stack", "office", "--to", "office", code=2)


def test_an_artifact_that_both_servers_have_is_taken_from_the_stack_in_use(tmp_path):
    digest = run("office").steps["rows"].output.digest
    run("cloud")
    store = Books(active_stack("cloud")).store
    for name, _, _ in list(store.names("objects")):
        store.delete(name)
    cli("artifact", "export", digest, str(tmp_path / "out"), "--stack", "office")
    assert "is missing or has another size" in cli("artifact", "verify", digest, "--stack", "cloud", code=1)


def test_gc_of_one_server_leaves_the_runs_and_objects_of_the_other():
    run("office")
    gone = run("cloud", 30_000).run_id
    shown = cli("artifact", "gc", "--keep-runs", "0", "--grace", "0s", "--yes", "--stack", "cloud")
    assert "removed 1 runs" in shown
    assert (objects("office"), objects("cloud")) == (1, 0)
    assert gone not in {r.run_id for r in zenray.list_runs(stack="office")}
    assert statuses(run("office")) == {"cached"}
