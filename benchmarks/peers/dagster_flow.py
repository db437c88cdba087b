"""The workloads in Dagster: op jobs and software-defined assets, stored by the default file-system I/O manager.

The chain runs in one process, which is the faster of Dagster's executors for it; the fan-out has the default
executor, which starts a process for each step.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from dagster import (
    DagsterInstance,
    DynamicOut,
    DynamicOutput,
    JobDefinition,
    asset,
    build_reconstructable_job,
    execute_job,
    in_process_executor,
    job,
    materialize,
    op,
)
from workloads import Read, double_frame, frame_mean, main, make_frame, unsupported


@op
def increment(value: int) -> int:
    return value + 1


@op
def identity(value: int) -> int:
    return value


@op
def collect(values: list[int]) -> list[int]:
    return values


def chain_job(start: int, n: int) -> JobDefinition:
    @op
    def first() -> int:
        return start

    @job(executor_def=in_process_executor)
    def chain() -> None:
        value = first()
        for _ in range(n):
            value = increment(value)

    return chain


def fan_out_job(start: int, n: int) -> JobDefinition:
    @op(out=DynamicOut(int))
    def numbers() -> Iterator[DynamicOutput[int]]:
        for value in range(start, start + n):
            yield DynamicOutput(value, mapping_key=str(value))

    @job
    def fan_out() -> None:
        collect(numbers().map(identity).collect())

    return fan_out


@asset
def made() -> pd.DataFrame:
    return make_frame()


@asset
def doubled(made: pd.DataFrame) -> pd.DataFrame:
    return double_frame(made)


@asset
def mean(doubled: pd.DataFrame) -> float:
    return frame_mean(doubled)


def run(job_function: str, start: int, n: int, last: str) -> Read:
    recipe = build_reconstructable_job(
        "dagster_flow", job_function, (start, n), reconstructor_working_directory=str(Path(__file__).parent)
    )
    instance = DagsterInstance.get()
    with execute_job(recipe, instance, raise_on_error=True) as result:
        if not result.success:
            raise RuntimeError(f"{job_function} failed")
        value = result.output_for_node(last)
    return lambda: value


def chain(start: int, n: int) -> Read:
    return run("chain_job", start, n, "increment" if n == 1 else f"increment_{n}")


def fan_out(start: int, n: int) -> Read:
    return run("fan_out_job", start, n, "collect")


def frame(start: int, n: int) -> Read:
    result = materialize([made, doubled, mean], instance=DagsterInstance.get())
    return lambda: result.output_for_node("mean")


NO_CACHE = "materialize() and execute_job() run every step again; only the daemon and the UI act on code versions"

if __name__ == "__main__":
    main({"chain": chain, "fan_out": fan_out, "cached": unsupported(NO_CACHE), "frame": frame})
