"""Many drivers at once on one PostgreSQL and one S3 store: what they have in common is computed once.

Eight processes run pipelines of 50 steps each on the inline launcher: a prefix of 25 steps
that all of them need, and 25 of their own. The reference is the same work by one process after another.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.servers.databases import postgresql
from tests.servers.object_stores import ObjectStore, seaweedfs

PROCESSES, PREFIX, OWN = 8, 25, 25
FLOW = f"""
import os
from zenray import pipeline, step


@step
def common(n: int, before: int) -> int:
    with open(os.environ["COUNTS"], "a") as file:
        file.write(f"common {{n}}\\n")
    return before + n


@step
def own(n: int, before: int, who: str) -> str:
    with open(os.environ["COUNTS"], "a") as file:
        file.write(f"own {{who}} {{n}}\\n")
    return f"{{who}} {{before}} {{n}}"


@pipeline
def flow(who: str):
    last = common(0, 0)
    for n in range(1, {PREFIX}):
        last = common(n, last)
    for n in range({OWN}):
        own(n, last, who)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name, postgresql() as database, seaweedfs() as store:
        folder = Path(name)
        with database.database() as made:
            together = measure(folder / "together", database.url(made), store, is_together=True)
        with database.database() as made:
            alone = measure(folder / "alone", database.url(made), store, is_together=False)
        print(f"{PROCESSES} drivers x {PREFIX + OWN} steps, one PostgreSQL, one S3 store, 2 CPUs")
        print(f"  at once            {together:6.2f} s, every record there, {PREFIX} common steps computed once")
        print(f"  one after another  {alone:6.2f} s, the same")
        print(f"  ratio              {together / alone:6.2f}")


def measure(folder: Path, url: str, store: ObjectStore, *, is_together: bool) -> float:
    (folder / ".zenray").mkdir(parents=True)
    (folder / "stacks").mkdir()
    (folder / "flow.py").write_text(FLOW)
    (folder / "counts").write_text("")
    options = "".join(f"  {k}: {v!r}\n" for k, v in store.options.items())
    text = f"orchestrator: inline\nmetadata_store: {url}\nartifact_store:\n  url: {store.uri}/{folder.name}\n{options}"
    (folder / "stacks" / "shared.yaml").write_text(text)
    environment = os.environ | {
        "COUNTS": str(folder / "counts"),
        "ZENRAY_HOME": str(folder / "home"),
        "ZENRAY_STACK": "shared",
    }
    started_at = time.perf_counter()
    if is_together:
        running = [start(folder, environment, f"p{i}") for i in range(PROCESSES)]
        for process in running:
            finish(process)
    else:
        for i in range(PROCESSES):
            finish(start(folder, environment, f"p{i}"))
    took_s = time.perf_counter() - started_at
    check(folder, environment)
    return took_s


def start(folder: Path, environment: dict[str, str], who: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "zenray", "submit", "flow.py", "-p", f"who={who}"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: "subprocess.Popen[str]") -> None:
    _, stderr = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"a driver failed:\n{stderr[-3000:]}")


def check(folder: Path, environment: dict[str, str]) -> None:
    """Refuse a result where something ran twice or a record is missing."""
    counts = Counter((folder / "counts").read_text().splitlines())
    twice = [line for line, count in counts.items() if count > 1]
    if twice or len(counts) != PREFIX + PROCESSES * OWN:
        raise SystemExit(f"{len(counts)} different steps ran, of these more than once: {twice}")
    program = (
        "import zenray\n"
        "runs = zenray.get_pipeline('flow').runs\n"
        "steps = [s.status for r in runs for s in r.steps.values()]\n"
        "print(len(runs), len(steps), steps.count('succeeded'), {str(r.status) for r in runs})"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    wanted = f"{PROCESSES} {PROCESSES * (PREFIX + OWN)} {PREFIX + PROCESSES * OWN} {{'succeeded'}}"
    if found != wanted:
        raise SystemExit(f"the records say {found!r}, expected {wanted!r}")


if __name__ == "__main__":
    main()
