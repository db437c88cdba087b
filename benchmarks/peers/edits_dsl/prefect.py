"""Prefect: each step is a task cached by its inputs and its source, in every run (the default adds the run's id)."""

import functools
from collections.abc import Callable
from typing import Any

from prefect import flow, task
from prefect.cache_policies import INPUTS, TASK_SOURCE


def step(function: Callable[..., Any] | None = None, *, retries: int = 0, **options: Any) -> Any:
    if function is None:
        return functools.partial(step, retries=retries)
    return task(function, retries=retries, cache_policy=INPUTS + TASK_SOURCE, persist_result=True)


pipeline = flow


def run(each: Callable[[], Any]) -> Any:
    return each()
