"""Steps a second and milliseconds a chained step, against bare Ray tasks on the same cluster in one process."""

import statistics
import tempfile
import time
from collections.abc import Callable

import scratch

from zenray import pipeline, step

REPEATS = 5
FAN = 1000
CHAIN = 100


@step
def noop(i: int) -> int:
    return i


@step
def link(i: int) -> int:
    return i + 1


@pipeline
def fan(salt: int) -> None:
    for i in range(FAN):
        noop(salt * 10**6 + i)


@pipeline
def chain(salt: int) -> None:
    value = salt
    for _ in range(CHAIN):
        value = link(value)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as home, scratch.cluster(home):
        scratch.run(fan, salt=0)
        import ray

        @ray.remote(max_retries=0)
        def task(i: int) -> int:
            return i

        def bare_chain() -> None:
            ref = task.remote(0)
            for _ in range(CHAIN):
                ref = task.remote(ref)
            ray.get(ref)

        ray.get([task.remote(i) for i in range(200)])
        rows = []
        for i in range(1, REPEATS + 1):
            bare_fan_s = seconds(lambda: ray.get([task.remote(i) for i in range(FAN)]))
            fan_s = seconds(lambda i=i: scratch.run(fan, salt=i))
            bare_chain_s = seconds(bare_chain)
            chain_s = seconds(lambda i=i: scratch.run(chain, salt=i * 10**6))
            rows.append((bare_fan_s, fan_s, bare_chain_s, chain_s))
        bare_fan_s, fan_s, bare_chain_s, chain_s = (statistics.median(c) for c in zip(*rows, strict=True))
        ratio = statistics.median(r[0] / r[1] for r in rows)
        print(
            f"independent no-op steps: {FAN / fan_s:,.0f}/s; bare Ray tasks: {FAN / bare_fan_s:,.0f}/s; "
            f"ratio {ratio:.2f}"
        )
        slower = statistics.median(r[3] / r[2] for r in rows)
        print(
            f"chain of {CHAIN}: {chain_s / CHAIN * 1e3:.2f} ms a step; bare Ray: {bare_chain_s / CHAIN * 1e3:.2f} ms; "
            f"ratio {slower:.2f}"
        )


if __name__ == "__main__":
    main()
