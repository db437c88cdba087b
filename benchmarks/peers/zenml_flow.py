"""The workloads in ZenML: pipelines on the default local stack."""

from typing import Any

import pandas as pd
from workloads import Read, double_frame, frame_mean, main, make_frame, trace
from zenml import pipeline, step


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
def chain_pipeline(start: int, n: int) -> None:
    value = start
    for _ in range(n):
        value = increment(value)


@pipeline
def fan_out_pipeline(start: int, n: int) -> None:
    for i in range(n):
        identity(start + i)


@pipeline
def cached_pipeline(start: int, n: int) -> None:
    value = start
    for _ in range(n):
        value = traced_increment(value)


@pipeline
def frame_pipeline() -> None:
    mean(double(make()))


def output(run: Any, step_name: str) -> Any:
    return run.steps[step_name].output.load()


def nth(name: str, n: int) -> str:
    """Return the name that ZenML gives to the n-th call of a step."""
    return name if n == 1 else f"{name}_{n}"


def chain(start: int, n: int) -> Read:
    run = chain_pipeline(start, n)
    return lambda: output(run, nth("increment", n))


def fan_out(start: int, n: int) -> Read:
    run = fan_out_pipeline(start, n)
    return lambda: [output(run, nth("identity", i + 1)) for i in range(n)]


def cached(start: int, n: int) -> Read:
    run = cached_pipeline(start, n)
    return lambda: output(run, nth("traced_increment", n))


def frame(start: int, n: int) -> Read:
    run = frame_pipeline()
    return lambda: output(run, "mean")


if __name__ == "__main__":
    main({"chain": chain, "fan_out": fan_out, "cached": cached, "frame": frame})
