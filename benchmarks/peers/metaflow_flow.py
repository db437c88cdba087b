"""The workloads in Metaflow: one flow a file, as it wants them, run by its own Runner on the local data store."""

import os
from pathlib import Path

from metaflow import Runner
from workloads import Read, main, unsupported

HERE = Path(__file__).parent
NO_CACHE = "a second run computes every step again; only `resume` of a failed run reuses results"


def run(flow: str, **parameters: int) -> Read:
    with Runner(str(HERE / "metaflow_flows" / f"{flow}.py"), env=os.environ | {"PYTHONPATH": str(HERE)}) as runner:
        running = runner.run(max_num_splits=1000, **parameters)
        if running.status != "successful":
            raise RuntimeError(f"{flow}: {running.status}")
    return lambda: running.run.data.result


def chain(start: int, n: int) -> Read:
    return run("chain", start_value=start, steps=n)


def fan_out(start: int, n: int) -> Read:
    return run("fan_out", start_value=start, steps=n)


def frame(start: int, n: int) -> Read:
    return run("frame")


if __name__ == "__main__":
    main({"chain": chain, "fan_out": fan_out, "cached": unsupported(NO_CACHE), "frame": frame})
