"""The workloads in Flyte: flytekit's local execution, with its local cache."""

import pandas as pd
from flytekit import dynamic, map_task, task, workflow
from workloads import Read, double_frame, frame_mean, main, make_frame, trace


@task
def increment(value: int) -> int:
    return value + 1


@task(cache=True, cache_version="1")
def traced_increment(value: int) -> int:
    return trace(value + 1)


@task
def identity(value: int) -> int:
    return value


@task
def make() -> pd.DataFrame:
    return make_frame()


@task
def double(frame: pd.DataFrame) -> pd.DataFrame:
    return double_frame(frame)


@task
def mean(frame: pd.DataFrame) -> float:
    return frame_mean(frame)


@dynamic
def chain_workflow(start: int, n: int) -> int:
    value = start
    for _ in range(n):
        value = increment(value=value)
    return value


@workflow
def fan_out_workflow(values: list[int]) -> list[int]:
    return map_task(identity)(value=values)


@dynamic
def cached_workflow(start: int, n: int) -> int:
    value = start
    for _ in range(n):
        value = traced_increment(value=value)
    return value


@workflow
def frame_workflow() -> float:
    return mean(frame=double(frame=make()))


def chain(start: int, n: int) -> Read:
    value = chain_workflow(start=start, n=n)
    return lambda: value


def fan_out(start: int, n: int) -> Read:
    values = fan_out_workflow(values=list(range(start, start + n)))
    return lambda: list(values)


def cached(start: int, n: int) -> Read:
    value = cached_workflow(start=start, n=n)
    return lambda: value


def frame(start: int, n: int) -> Read:
    value = frame_workflow()
    return lambda: value


if __name__ == "__main__":
    main({"chain": chain, "fan_out": fan_out, "cached": cached, "frame": frame})
