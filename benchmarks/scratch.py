"""What the benchmarks share: a home and a cluster of their own, quiet runs, and facts about the machine."""

import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from zenray import local_cluster
from zenray.runner import RunObserver
from zenray.submit import run_pipeline


@contextmanager
def cluster(home: str) -> Iterator[None]:
    """Use a home of its own, with the stack ``local``, and end its cluster afterwards."""
    os.environ["ZENRAY_HOME"] = home
    os.environ["ZENRAY_STACK"] = "local"
    print(machine(), flush=True)
    try:
        yield
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        local_cluster.down()


def machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("zenray", "ray", "pyarrow", "sqlalchemy"))
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} CPUs, {system}, {versions}"


def run(pipeline: Any, **parameters: Any) -> Any:
    """Run a pipeline without a display."""
    return run_pipeline(pipeline, pipeline.bind((), parameters), observer=RunObserver())


def process_s(words: Sequence[str], **environment: str) -> float:
    """Return the wall time of a whole process in seconds; its output is discarded, a failure is an error."""
    import subprocess

    start = time.perf_counter()
    subprocess.run(
        words, check=True, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start
