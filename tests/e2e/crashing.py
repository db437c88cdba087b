"""A driver that is killed at a given point: run as a program by ``test_crashes.py``.

A point is any moment just before the process changes something that outlives it: a statement or a commit of the
database, a file that is opened for writing, renamed, linked, touched or removed. ``crashing.py HOME FIRST STRIDE``
kills a run at point FIRST, another at FIRST + STRIDE and so on until one survives, each with a new home of its own
beside HOME, checks what is left each time, and prints how many points there were.
"""

import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import event
from sqlalchemy.engine import Engine

from zenray import artifacts, pipeline, step
from zenray.recovery import mark_lost_runs
from zenray.views import Books

ROWS = 2_000  # more than fits into a manifest


@step
def load(n: int) -> pa.Table:
    return pa.table({"n": list(range(n))})


@step
def summed(table: pa.Table) -> int:
    return sum(table["n"].to_pylist())


@step
def described(table: pa.Table, total: int) -> dict[str, int]:
    return {"rows": table.num_rows, "total": total}


@pipeline
def flow() -> None:
    table = load(ROWS)
    described(table, summed(table))


EXPECTED = {"rows": ROWS, "total": sum(range(ROWS))}
_CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.utime", "os.chmod", "os.truncate")


class Countdown:
    """Counts the points, and kills the process at one of them."""

    def __init__(self, at: int) -> None:
        self.count, self._at = 0, at
        sys.addaudithook(self._on_audit)
        for name in ("before_cursor_execute", "commit"):
            event.listen(Engine, name, self._on_database)

    def _on_audit(self, name: str, args: tuple[Any, ...]) -> None:
        writes = name == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if name in _CHANGES or (writes and os.environ["ZENRAY_HOME"] in str(args[0])):
            self._pass()

    def _on_database(self, *_: Any) -> None:
        self._pass()

    def _pass(self) -> None:
        self.count += 1
        if self.count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Any) -> int:
    """Call a function in a process of its own and return its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must never run on into the code of its parent
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def crash(at: int) -> None:
    Countdown(at)
    flow()


def check() -> None:
    """What a killed run left is whole, what it committed is used, and the run itself does not stay ``running``."""
    books = Books()
    mark_lost_runs(books.ledger)
    assert all(r.status.is_finished or not r.owner for r in books.ledger.list_runs(limit=100)), "a run stayed running"
    committed = {
        step.name
        for record in books.ledger.list_runs(limit=100)
        for step in books.ledger.step_runs(record.run_id)
        if step.status.has_outputs
    }
    for record in books.ledger.list_artifacts(limit=100):
        artifacts.verify(record.manifest, books.store)
    for name, _, _ in books.store.names("artifacts/"):
        manifest = artifacts.read_manifest(name.rpartition("/")[2].removesuffix(".json"), books.store)
        assert manifest is not None
        artifacts.verify(manifest, books.store)
    packed = {m.digest for name, _, _ in books.store.names("packs") for m in artifacts.packed(name, books.store)}
    recorded = {r.digest for r in books.ledger.list_artifacts(limit=100) if r.manifest.is_inline}
    assert recorded <= packed, f"the store does not tell of {recorded - packed}"
    run = flow()
    assert run.status == "succeeded"
    assert run.steps["described"].output.load() == EXPECTED
    again = {name for name in committed if run.steps[name].status != "cached"}
    assert not again, f"committed steps ran again: {again}"


def main() -> None:
    root, first, stride = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.environ["ZENRAY_STACK"] = "inline"
    at = first
    while True:
        home = root.with_name(f"{root.name}-{at}")
        os.environ["ZENRAY_HOME"] = str(home)
        status = in_child(partial(crash, at))
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, f"point {at}: the run failed"
            break
        assert in_child(check) == 0, f"killed at point {at}: see above"
        shutil.rmtree(home)
        at += stride
    print(f"{(at - first) // stride} points")


if __name__ == "__main__":
    main()
