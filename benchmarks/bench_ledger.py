"""Lists of runs and one run from a ledger of 110,000 step runs, and what a claim costs, on SQLite and PostgreSQL.

The reference is a plain SQL query of the same rows through the bare driver.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import scratch

from zenray.metadata.ledger import Ledger
from zenray.metadata.records import AttemptRecord, RunRecord, RunState, StepOutput, StepOutputs, StepRunRecord
from zenray.metadata.rows import Batch, BatchWriter
from zenray.model import Status
from zenray.recovery import mark_lost_runs

sys.path.insert(0, str(Path(__file__).parents[1]))  # the servers of the tests

RUNS, STEPS, LARGE = 2_000, 50, 10_000
REPEATS = 15
BUDGET_MS = 200.0


def main() -> None:
    print(scratch.machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder, Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        measure(ledger)
    with postgresql_url() as url:
        if url:
            with Ledger(url) as ledger:
                measure(ledger)


@contextmanager
def postgresql_url() -> Iterator[str]:
    """Give the URL of a server of our own, or nothing where none is installed."""
    try:
        from tests.servers import databases

        server = databases.postgresql()
    except ImportError as exc:
        print(f"PostgreSQL is left out: {exc}")
        yield ""
        return
    try:
        started = server.__enter__()
    except databases.MissingServer as exc:
        print(f"PostgreSQL is left out: {exc}")
        yield ""
        return
    try:
        yield started.url()
    finally:
        server.__exit__(None, None, None)


def measure(ledger: Ledger) -> None:
    began_at = time.perf_counter()
    fill(ledger)
    name = ledger.database.dialect
    print(f"\n{name}: {RUNS * STEPS + LARGE:,} step runs in {RUNS + 1:,} runs, {time.perf_counter() - began_at:.0f} s")
    run_id, large_id = f"run-{RUNS // 2:05}", "run-large"
    runs = "SELECT * FROM runs ORDER BY started_at DESC, run_id DESC LIMIT "
    steps = "SELECT * FROM step_runs WHERE run_id = '{0}'", "SELECT * FROM attempts WHERE run_id = '{0}'"
    counts = "SELECT run_id, status, count(*) FROM step_runs WHERE run_id IN ({0}) GROUP BY run_id, status"

    def listed(limit: int) -> Callable[[], object]:
        return lambda: (mark_lost_runs(ledger), ledger.step_counts([r.run_id for r in ledger.list_runs(limit=limit)]))

    def shown(run_id: str) -> Callable[[], object]:
        return lambda: (ledger.find_run(run_id), ledger.step_runs(run_id), ledger.attempts(run_id))

    def sql(*statements: str) -> Callable[[], object]:
        return lambda: [execute(ledger, statement) for statement in statements]

    newest = [r.run_id for r in ledger.list_runs(limit=100)]
    of_newest = {n: counts.format(", ".join(f"'{run_id}'" for run_id in newest[:n])) for n in (20, 100)}
    report("list 20 runs, with step counts", listed(20), sql(f"{runs}20", of_newest[20]))
    report("list 100 runs, with step counts", listed(100), sql(f"{runs}100", of_newest[100]))
    report("list all runs of a pipeline", lambda: ledger.list_runs("delays", limit=1_000_000), sql(f"{runs}1000000"))
    report("mark lost runs", lambda: mark_lost_runs(ledger), sql("SELECT * FROM runs WHERE status = 'running'"))
    show = "SELECT * FROM runs WHERE run_id = '{0}'", *steps
    report("show a run of 50 steps", shown(run_id), sql(*(s.format(run_id) for s in show)))
    report("show a run of 10,000 steps", shown(large_id), sql(*(s.format(large_id) for s in show)), has_budget=False)
    measure_claims(ledger)


def report(what: str, ours: Callable[[], object], plain: Callable[[], object], *, has_budget: bool = True) -> None:
    pairs = [(milliseconds(ours), milliseconds(plain)) for _ in range(REPEATS)]
    ours_ms, plain_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    verdict = "" if not has_budget else f", budget {BUDGET_MS:.0f} ms {'holds' if ours_ms <= BUDGET_MS else 'BROKEN'}"
    print(f"{what}: {ours_ms:.1f} ms; plain SQL {plain_ms:.1f} ms; ratio {ours_ms / plain_ms:.1f}{verdict}", flush=True)


def milliseconds(work: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    work()
    return (time.perf_counter() - began_at) * 1000


def execute(ledger: Ledger, statement: str) -> list[Any]:
    """Run plain SQL on the driver's own cursor, on a connection that is open already."""
    with ledger.database.transaction() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(statement)
        return list(cursor.fetchall())


def measure_claims(ledger: Ledger) -> None:
    for run_id in ("claimer", "rival"):
        ledger.create_run(RunRecord(run_id, "claims", Status.RUNNING, time.time()), owner=run_id, ttl_s=600)
    for count in (1, 200):
        keys = [{f"{count:016x}{n:016x}{i:032x}": "train" for i in range(count)} for n in range(200 // count + 30)]
        won = [milliseconds(lambda k=k: ledger.claim(k, store="s", run_id="claimer")) for k in keys]
        lost = [milliseconds(lambda k=k: ledger.claim(k, store="s", run_id="rival")) for k in keys]
        won_ms, lost_ms = statistics.median(won), statistics.median(lost)
        print(f"claim {count} keys: {won_ms:.2f} ms; held by another run: {lost_ms:.2f} ms")


def fill(ledger: Ledger) -> None:
    """Write runs as large as real ones: key parts, parameters and resources of a few hundred bytes a step."""
    with ledger.database.transaction() as connection:
        writer = BatchWriter(ledger.database, connection.dialect)
    sizes = [(f"run-{n:05}", STEPS) for n in range(RUNS)] + [("run-large", LARGE)]
    now = time.time() - len(sizes)
    for number, (run_id, steps) in enumerate(sizes):
        ledger.create_run(a_run(run_id, now + number))
        batch = Batch()
        for position in range(steps):
            for change in a_step(run_id, position, now + number):
                batch.add(change)
        batch.add(RunState(run_id, Status.SUCCEEDED, ended_at=now + number + 1))
        with ledger.database.transaction() as connection:
            writer.write(connection, batch)
    with ledger.database.transaction() as connection:
        connection.exec_driver_sql("ANALYZE")


def a_run(run_id: str, started_at: float) -> RunRecord:
    versions = {"python": "3.11.7", "ray": "2.60.0", "zenray": "0.1.0"}
    texts = {
        "stack": "local",
        "user": "ada",
        "host": "laptop",
        "git_revision": "a" * 40,
        "source_file": "/home/ada/f.py",
    }
    return RunRecord(
        run_id, "delays", Status.RUNNING, started_at, None, {"month": 1, "lr": 3e-4}, versions=versions, **texts
    )


def a_step(run_id: str, position: int, started_at: float) -> Iterator[Any]:
    name, digest = f"step_{position}", f"{position:064x}"
    parts = {"code": digest, "arguments": {"data": digest, "lr": digest}, "outputs": digest, "environment": digest}
    yield StepRunRecord(
        run_id,
        name,
        f"step_{position % 20}",
        (Status.SUCCEEDED, Status.CACHED)[position % 3 == 0],
        position,
        "flights",
        digest,
        parts,
        digest,
        parameters={"lr": "0.0003"},
        resources={"num_cpus": 1},
        started_at=started_at,
        ended_at=started_at + 1,
        reason="code changed",
    )
    yield AttemptRecord(
        run_id, name, 1, Status.SUCCEEDED, "laptop:123", started_at, started_at + 1, None, "/logs/1", 9, 1
    )
    yield StepOutputs(run_id, name, (StepOutput(run_id, name, "output", 0, digest),))


if __name__ == "__main__":
    main()
