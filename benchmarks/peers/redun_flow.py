"""The workloads in redun: tasks run by a scheduler that records into SQLite, as `redun run` sets it up."""

import pandas as pd
from redun import Scheduler, task
from redun.config import Config
from workloads import Read, double_frame, frame_mean, main, make_frame, trace

redun_namespace = "peers"


@task()
def increment(value: int) -> int:
    return value + 1


@task()
def traced_increment(value: int) -> int:
    return trace(value + 1)


@task()
def identity(value: int) -> int:
    return value


@task()
def make() -> pd.DataFrame:
    return make_frame()


@task()
def double(frame: pd.DataFrame) -> pd.DataFrame:
    return double_frame(frame)


@task()
def mean(frame: pd.DataFrame) -> float:
    return frame_mean(frame)


def run(expression: object) -> Read:
    # A store for large values beside the database, as redun's documentation advises for values over a kilobyte.
    backend = {"db_uri": "sqlite:///redun.db", "value_store_path": "values"}
    scheduler = Scheduler(config=Config({"backend": backend}))
    scheduler.load()
    value = scheduler.run(expression)
    return lambda: value


def chain(start: int, n: int) -> Read:
    value = start
    for _ in range(n):
        value = increment(value)
    return run(value)


def fan_out(start: int, n: int) -> Read:
    return run([identity(start + i) for i in range(n)])


def cached(start: int, n: int) -> Read:
    value = start
    for _ in range(n):
        value = traced_increment(value)
    return run(value)


def frame(start: int, n: int) -> Read:
    return run(mean(double(make())))


if __name__ == "__main__":
    main({"chain": chain, "fan_out": fan_out, "cached": cached, "frame": frame})
