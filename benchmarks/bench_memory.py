"""Peak memory of the driver: a process that runs many small steps, against a bare Ray driver with as many tasks."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import scratch

STEPS = 10_000
ZENRAY = f"""
import scratch
from zenray import pipeline, step

@step
def noop(i: int) -> int:
    return i

@pipeline
def fan():
    for i in range({STEPS}):
        noop(i)

if __name__ == "__main__":
    scratch.run(fan)
"""
BARE = f"""
import ray
from zenray import local_cluster
info = local_cluster.begin().wait_ready()
with local_cluster.joining(info):
    ray.init(address=info.address, logging_level="error", _temp_dir=info.temp_dir)

@ray.remote
def noop(i):
    return i

assert len(ray.get([noop.remote(i) for i in range({STEPS})])) == {STEPS}
"""


def peak_mib(program: Path) -> float:
    """Return the peak resident memory in MiB of a Python program, run as a process of its own."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, str(program)], env=os.environ | {"PYTHONPATH": path})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{program.name} failed with exit code {process.returncode}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    with tempfile.TemporaryDirectory() as home, scratch.cluster(home):
        programs = {"zenray.py": ZENRAY, "bare.py": BARE}
        peaks = {}
        for name, text in programs.items():
            program = Path(home, f"bench_{name}")
            program.write_text(text)
            peaks[name] = peak_mib(program)
        zenray, bare = peaks["zenray.py"], peaks["bare.py"]
        print(
            f"driver of {STEPS:,} steps, peak: {zenray:.0f} MiB; bare Ray driver with as many tasks: {bare:.0f} MiB; "
            f"ratio {zenray / bare:.2f}"
        )


if __name__ == "__main__":
    main()
