"""The workloads in Prefect: a flow on the default thread-pool runner and the server that it starts for itself."""

import pandas as pd
from prefect import flow, task
from prefect.cache_policies import INPUTS, TASK_SOURCE
from workloads import Read, double_frame, frame_mean, main, make_frame, trace


@task
def increment(value: int) -> int:
    return value + 1


@task(cache_policy=INPUTS + TASK_SOURCE, persist_result=True)
def traced_increment(value: int) -> int:
    return trace(value + 1)


@task
def identity(value: int) -> int:
    return value


@task(persist_result=True)
def make() -> pd.DataFrame:
    return make_frame()


@task(persist_result=True)
def double(frame: pd.DataFrame) -> pd.DataFrame:
    return double_frame(frame)


@task(persist_result=True)
def mean(frame: pd.DataFrame) -> float:
    return frame_mean(frame)


@flow
def chain_flow(start: int, n: int) -> int:
    value = start
    for _ in range(n):
        value = increment(value)
    return value


@flow
def fan_out_flow(start: int, n: int) -> list[int]:
    return identity.map(range(start, start + n)).result()


@flow
def cached_flow(start: int, n: int) -> int:
    value = start
    for _ in range(n):
        value = traced_increment(value)
    return value


@flow
def frame_flow() -> float:
    return mean(double(make()))


def chain(start: int, n: int) -> Read:
    value = chain_flow(start, n)
    return lambda: value


def fan_out(start: int, n: int) -> Read:
    values = fan_out_flow(start, n)
    return lambda: values


def cached(start: int, n: int) -> Read:
    value = cached_flow(start, n)
    return lambda: value


def frame(start: int, n: int) -> Read:
    value = frame_flow()
    return lambda: value


if __name__ == "__main__":
    main({"chain": chain, "fan_out": fan_out, "cached": cached, "frame": frame})
