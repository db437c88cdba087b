"""The reference: bare Ray tasks, without storage, records or cache."""

import pandas as pd
import ray
from workloads import Read, double_frame, frame_mean, main, make_frame, unsupported


@ray.remote
def increment(value: int) -> int:
    return value + 1


@ray.remote
def identity(value: int) -> int:
    return value


@ray.remote
def make() -> pd.DataFrame:
    return make_frame()


@ray.remote
def double(frame: pd.DataFrame) -> pd.DataFrame:
    return double_frame(frame)


@ray.remote
def mean(frame: pd.DataFrame) -> float:
    return frame_mean(frame)


def chain(start: int, n: int) -> Read:
    value = start
    for _ in range(n):
        value = increment.remote(value)
    result = ray.get(value)
    return lambda: result


def fan_out(start: int, n: int) -> Read:
    values = ray.get([identity.remote(start + i) for i in range(n)])
    return lambda: values


def frame(start: int, n: int) -> Read:
    value = ray.get(mean.remote(double.remote(make.remote())))
    return lambda: value


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    main({"chain": chain, "fan_out": fan_out, "cached": unsupported("Ray has no cache of results"), "frame": frame})
