"""A 1 GB Arrow table through three steps on a local store, against writing the same files with pyarrow by hand."""

import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import scratch

from zenray import pipeline, step

ROWS = 16 * 2**20
COLUMNS = 8  # of 8 bytes: 1 GiB
REPEATS = 3


def table(seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table({f"c{i}": random.random(ROWS) for i in range(COLUMNS)})


def changed(data: pa.Table, by: float) -> pa.Table:
    import pyarrow.compute as pc

    return data.set_column(0, "c0", pc.add(data["c0"], by))


@step
def make(seed: int) -> pa.Table:
    return table(seed)


@step
def change(data: pa.Table, by: float) -> pa.Table:
    return changed(data, by)


@pipeline
def three(seed: int):
    return change(change(make(seed), 1.0), 2.0)


def by_hand(folder: Path, seed: int) -> None:
    def write(data: pa.Table, name: str) -> None:
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, data.schema) as writer:
            writer.write_table(data)

    def read(name: str) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all()

    write(table(seed), "a")
    write(changed(read("a"), 1.0), "b")
    write(changed(read("b"), 2.0), "c")


def main() -> None:
    with tempfile.TemporaryDirectory() as home, scratch.cluster(home):
        scratch.run(three, seed=0)
        ratios, zenrays, hands = [], [], []
        for seed in range(1, REPEATS + 1):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=home) as folder:
                by_hand(Path(folder), seed)
                middle = time.perf_counter()
            begin = time.perf_counter()
            scratch.run(three, seed=seed)
            zenrays.append(time.perf_counter() - begin)
            hands.append(middle - start)
            ratios.append(zenrays[-1] / hands[-1])
        print(
            f"1 GiB table through three steps: {statistics.median(zenrays):.2f} s; by hand with pyarrow: "
            f"{statistics.median(hands):.2f} s; ratio {statistics.median(ratios):.2f}"
        )
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak memory of this process, which also wrote by hand: {peak_mib:,.0f} MiB")


if __name__ == "__main__":
    main()
