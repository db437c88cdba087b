"""The workloads in ZenRay: pipelines on the built-in local stack."""

from typing import Any

import pandas as pd
from workloads import Read, double_frame, frame_mean, main, make_frame, trace

from zenray import pipeline, step


@step
def increment(value: int) -> int:
    return value + 1


@step
def traced_increment(value: int) -> int:
    return trace(value + 1)


@step
def identity(value: int) -> int:
    return value


@step
def make() -> pd.DataFrame:
    return make_frame()


@step
def double(frame: pd.DataFrame) -> pd.DataFrame:
    return double_frame(frame)


@step
def mean(frame: pd.DataFrame) -> float:
    return frame_mean(frame)


@pipeline
def chain_pipeline(start: int, n: int) -> Any:
    value: Any = start
    for _ in range(n):
        value = increment(value)
    return value


@pipeline
def fan_out_pipeline(start: int, n: int) -> Any:
    return [identity(start + i) for i in range(n)]


@pipeline
def cached_pipeline(start: int, n: int) -> Any:
    value: Any = start
    for _ in range(n):
        value = traced_increment(value)
    return value


@pipeline
def frame_pipeline() -> Any:
    return mean(double(make()))


def nth(name: str, n: int) -> str:
    """Return the name that ZenRay gives to the n-th call of a step."""
    return name if n == 1 else f"{name}_{n}"


def chain(start: int, n: int) -> Read:
    run = chain_pipeline(start, n)
    return lambda: run.steps[nth("increment", n)].output.load()


def fan_out(start: int, n: int) -> Read:
    run = fan_out_pipeline(start, n)
    return lambda: [run.steps[nth("identity", i + 1)].output.load() for i in range(n)]


def cached(start: int, n: int) -> Read:
    run = cached_pipeline(start, n)
    return lambda: run.steps[nth("traced_increment", n)].output.load()


def frame(start: int, n: int) -> Read:
    run = frame_pipeline()
    return lambda: run.steps["mean"].output.load()


if __name__ == "__main__":
    main({"chain": chain, "fan_out": fan_out, "cached": cached, "frame": frame})
