"""Whole runs whose artifacts and logs lie in an S3 store, on both launchers."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

from tests.servers.object_stores import ObjectStore
from tests.servers.proxy import FaultProxy
from zenray import garbage, local_cluster, pipeline, step
from zenray.errors import StepFailed, StoreError
from zenray.stack import Stack
from zenray.store import address_of, object_name, open_store
from zenray.submit import run_pipeline
from zenray.views import Books, Run


@step
def numbers(n: int) -> np.ndarray:
    print("counting to", n)
    return np.arange(n)


@step
def halves(data: np.ndarray) -> tuple[Annotated[np.ndarray, "low"], Annotated[np.ndarray, "high"]]:
    return data[: len(data) // 2].copy(), data[len(data) // 2 :].copy()


@step
def total(data: np.ndarray) -> int:
    return int(data.sum())


@pipeline
def summing(n: int = 300_000):
    low, high = halves(numbers(n))
    return total(low), total(high)


@step
def broken(n: int) -> int:
    print("about to fail")
    raise KeyError(n)


@pipeline
def failing():
    broken(1)


@pytest.fixture
def stack(s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return Stack("s3", "inline", s3.uri, f"sqlite:///{tmp_path / 'ledger.db'}", s3.options)


def statuses(run: Run) -> dict[str, str]:
    return {name: str(found.status) for name, found in run.steps.items()}


def test_the_second_run_is_cached_and_everything_is_read_back_on_another_machine(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_pipeline(summing, {"n": 300_000}, stack=stack)
    assert set(statuses(first).values()) == {"succeeded"}
    assert set(statuses(run_pipeline(summing, {"n": 300_000}, stack=stack)).values()) == {"cached"}
    monkeypatch.setenv("ZENRAY_CACHE_DIR", str(tmp_path / "cache of another machine"))
    shutil.rmtree(tmp_path / "home")
    found = Run(first.record, Books(stack))
    assert found.steps["numbers"].output.load().sum() == 299_999 * 150_000
    assert found.steps["numbers"].attempts[0].log_uri.startswith(Books(stack).store.uri)
    assert found.steps["numbers"].logs == "counting to 300000\n"


def test_a_step_that_failed_leaves_its_log_in_the_store(stack: Stack) -> None:
    with pytest.raises(StepFailed):
        run_pipeline(failing, {}, stack=stack)
    books = Books(stack)
    run = Run(books.ledger.list_runs(limit=1)[0], books)
    assert "about to fail" in run.steps["broken"].logs
    assert "KeyError" in run.steps["broken"].logs


def test_an_object_deleted_behind_our_back_is_made_again_and_nothing_else(stack: Stack) -> None:
    run = run_pipeline(summing, {"n": 300_000}, stack=stack)
    store = Books(stack).store
    doomed = run.steps["halves"].outputs["low"].manifest
    (file,) = (f for f in doomed.files if f.data is None)
    store.delete(object_name(file.digest))
    again = run_pipeline(summing, {"n": 300_000}, stack=stack)
    assert statuses(again) == {"numbers": "cached", "halves": "succeeded", "total": "cached", "total_2": "cached"}
    assert store.has(file.digest, file.size_bytes)


def test_a_run_outlives_a_store_that_answers_with_errors_for_a_while(
    stack: Stack, s3: ObjectStore, proxy: FaultProxy
) -> None:
    @step(cache=False)
    def trouble() -> bytes:
        proxy.http_status = 503
        threading.Timer(1.5, proxy.heal).start()
        return bytes(100_000)

    @pipeline
    def troubled():
        return trouble()

    behind = Stack("s3", "inline", s3.uri, stack.metadata_store, s3.at(proxy.port))
    run = run_pipeline(troubled, {}, stack=behind)
    assert statuses(run) == {"trouble": "succeeded"}
    assert proxy.http_answers > 1
    assert run.steps["trouble"].output.load() == bytes(100_000)


def test_no_run_begins_with_wrong_credentials_or_on_a_store_that_is_not_there(stack: Stack, s3: ObjectStore) -> None:
    wrong = Stack("s3", "inline", s3.uri, stack.metadata_store, {**s3.options, "secret": "not the secret"})
    with pytest.raises(StoreError, match="credentials"):
        run_pipeline(summing, {"n": 10}, stack=wrong)
    gone = {**s3.options, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(StoreError, match="did not answer"):
        run_pipeline(summing, {"n": 10}, stack=Stack("s3", "inline", s3.uri, stack.metadata_store, gone))
    assert Books(stack).ledger.list_runs() == ()


def test_what_only_a_deleted_run_used_is_collected_from_the_store(stack: Stack) -> None:
    run = run_pipeline(summing, {"n": 300_000}, stack=stack)
    store = open_store(stack.artifact_store, stack.artifact_store_options)
    assert len(list(store.names("objects"))) == 3
    report = garbage.collect(Books(stack), keep_runs=0, grace_s=-60, is_dry=False)
    assert (report.runs, report.objects, report.logs) == (1, 3, 1)
    assert [name.partition("/")[0] for name, _, _ in store.names("")] == ["ledgers"]
    assert not list(Path(os.environ["ZENRAY_HOME"]).glob(f"logs/{run.run_id}*"))


def test_what_a_killed_collection_left_in_the_store_goes_with_the_next(stack: Stack) -> None:
    run = run_pipeline(summing, {"n": 300_000}, stack=stack)
    books = Books(stack)
    store = books.store
    books.ledger.delete_cache_entries(store=store.uri)
    books.ledger.delete_run(run.run_id)
    digests = {r.digest for r in books.ledger.list_artifacts()}
    assert books.ledger.delete_artifacts(digests, store=store.uri) == digests
    report = garbage.collect(books, grace_s=-60, is_dry=False)
    assert (report.artifacts, report.unrecorded, report.objects) == (0, 3, 3)
    assert {name.partition("/")[0] for name, _, _ in store.names("")} == {"ledgers", "logs"}


DRIVER = """
import json, sys
from flow import mapping
from zenray.stack import Stack
from zenray.submit import run_pipeline
run = run_pipeline(mapping, {"count": 40}, stack=Stack("s3", "local", *json.loads(sys.argv[1])))
print(json.dumps({
    "statuses": sorted({str(s.status) for s in run.steps.values()}),
    "total": run.steps["total"].output.load(),
    "logs": run.steps["total"].logs,
    "log_uri": run.steps["total"].attempts[0].log_uri if run.steps["total"].attempts else "",
}))
"""
FLOW = """
import numpy as np
from zenray import pipeline, step

@step
def piece(n: int) -> np.ndarray:
    return np.full(2_000, n)

@step
def total(pieces: list) -> int:
    print("adding", len(pieces))
    return int(sum(p.sum() for p in pieces))

@pipeline
def mapping(count: int):
    return total([piece(n) for n in range(count)])
"""


@pytest.fixture
def cluster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    local_cluster.begin(num_cpus=2).wait_ready()
    yield tmp_path / "home"
    local_cluster.down()


def test_a_run_on_ray_writes_to_the_store_and_the_second_one_is_cached(
    s3: ObjectStore, tmp_path: Path, cluster_home: Path
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "driver.py").write_text(DRIVER)
    stack = json.dumps([s3.uri, f"sqlite:///{tmp_path / 'ledger.db'}", dict(s3.options)])

    def run() -> dict[str, Any]:
        command = [sys.executable, "driver.py", stack]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    first = run()
    assert first["statuses"] == ["succeeded"]
    assert first["total"] == sum(2_000 * n for n in range(40))
    assert first["logs"] == "adding 40\n"
    assert first["log_uri"].startswith(address_of(s3.uri, s3.options))
    assert run()["statuses"] == ["cached"]
