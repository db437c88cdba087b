"""Whole processes: import, help, first run on a cold machine, second run, fully cached run, against bare Ray."""

import statistics
import sys
import tempfile
from pathlib import Path

import scratch

REPEATS = 5
PIPELINE = """
from zenray import pipeline, step

@step
def add(n: int, salt: str) -> int:
    return n + 1

@pipeline
def twenty(salt: str = "", count: int = 20):
    n = 0
    for _ in range(count):
        n = add(n, salt)
"""
BARE = """
import ray
ray.init(address="local")

@ray.remote
def task():
    return 1

assert ray.get(task.remote()) == 1
"""


def median_s(*words: str, repeats: int = REPEATS) -> float:
    return statistics.median(scratch.process_s(words) for _ in range(repeats))


def main() -> None:
    zenray = [sys.executable, "-m", "zenray"]
    with tempfile.TemporaryDirectory() as home, scratch.cluster(home):
        flow, bare = Path(home, "flow.py"), Path(home, "bare.py")
        flow.write_text(PIPELINE)
        bare.write_text(BARE)
        python_s = median_s(sys.executable, "-c", "pass")
        import_s = median_s(sys.executable, "-c", "import zenray")
        print(f"import zenray: {import_s - python_s:.3f} s beyond a bare interpreter's {python_s:.3f} s")
        print(f"zenray --help: {median_s(*zenray, '--help'):.3f} s")
        colds, bares = [], []
        from zenray import local_cluster

        for i in range(3):
            local_cluster.down()
            colds.append(scratch.process_s([*zenray, "submit", str(flow), "-p", f"salt=cold{i}", "-p", "count=1"]))
            bares.append(scratch.process_s([sys.executable, str(bare)]))
        cold_s, bare_s = statistics.median(colds), statistics.median(bares)
        ratio = statistics.median(c / b for c, b in zip(colds, bares, strict=True))
        print(f"first run, cold: {cold_s:.2f} s; bare ray.init and one task: {bare_s:.2f} s; ratio {ratio:.2f}")
        submit = [*zenray, "submit", str(flow)]
        warms = [scratch.process_s([*submit, "-p", f"salt=warm{i}", "-p", "count=1"]) for i in range(REPEATS)]
        print(f"second run, warm cluster, one new step: {statistics.median(warms):.2f} s")
        scratch.process_s(submit)
        print(f"fully cached run of 20 steps: {median_s(*submit):.2f} s")


if __name__ == "__main__":
    main()
