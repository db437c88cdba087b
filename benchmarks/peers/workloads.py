"""What every peer runs: the sizes, the work inside the steps, and the clock around them.

Runs in: the peer's own environment.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

STEPS = {"chain": 100, "fan_out": 200, "cached": 20, "frame": 3}
FRAME_ROWS = 8_000_000
FRAME_COLUMNS = 8  # of 8 bytes each: 0.512 GB

Read = Callable[[], object]
Workload = Callable[[int, int], Read]
"""Takes the first argument and the number of steps; returns, when all steps are done, a reader of the result."""


class NotSupportedError(Exception):
    """Raised when the tool has no way to do a workload; the message is printed below the table."""


def make_frame() -> "pd.DataFrame":
    import numpy as np
    import pandas as pd

    values = np.random.default_rng(0).random((FRAME_COLUMNS, FRAME_ROWS))
    return pd.DataFrame({f"c{i}": column for i, column in enumerate(values)}, copy=True)


def double_frame(frame: "pd.DataFrame") -> "pd.DataFrame":
    return frame * 2.0


def frame_mean(frame: "pd.DataFrame") -> float:
    return float(frame.to_numpy().mean())


def trace(value: int) -> int:
    """Leave a mark that a cached step really ran, so that the harness can prove that it did not."""
    with Path(os.environ["PEERS_TRACE"]).open("a") as file:
        file.write(f"{value}\n")
    return value


def main(workloads: Mapping[str, Workload]) -> None:
    """Run the workload that the command line names, and write how long its steps took into the file it names.

    The tool is warmed up first with a tiny run of other arguments, so that a server or a database that it starts
    once is not charged to the steps. The cached workload has no warm-up: its whole process is measured.
    """
    name, result = sys.argv[1], Path(sys.argv[2])
    try:
        if name != "cached":
            workloads["fan_out" if name == "fan_out" else "chain"](1_000_000, 2)
        started = time.perf_counter()
        read = workloads[name](0, STEPS[name])
        steps_s = time.perf_counter() - started
    except NotSupportedError as exc:
        result.write_text(json.dumps({"unsupported": str(exc)}))
        return
    started = time.perf_counter()
    _check(name, read())
    result.write_text(json.dumps({"steps_s": steps_s, "check_s": time.perf_counter() - started}))


def unsupported(reason: str) -> Workload:
    """Return a workload that says why the tool cannot do it."""

    def run(start: int, n: int) -> Read:
        raise NotSupportedError(reason)

    return run


def _check(name: str, value: object) -> None:
    if name == "fan_out":
        assert isinstance(value, list)
        right = sorted(value) == list(range(STEPS[name]))
    elif name == "frame":
        assert isinstance(value, float)
        right = math.isclose(value, 1.0, abs_tol=1e-3)
    else:
        right = value == STEPS[name]
    if not right:
        raise AssertionError(f"{name}: wrong result {value!r}")
