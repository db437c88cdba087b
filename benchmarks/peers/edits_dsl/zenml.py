"""ZenML: each step is a step, which is cached unless told otherwise."""

import functools
from collections.abc import Callable
from typing import Any

import zenml
from zenml.config.retry_config import StepRetryConfig


def step(function: Callable[..., Any] | None = None, *, retries: int = 0, **options: Any) -> Any:
    if function is None:
        return functools.partial(step, retries=retries)
    return zenml.step(function, retry=StepRetryConfig(max_retries=retries) if retries else None)


pipeline = zenml.pipeline


def run(each: Callable[[], Any]) -> list[Any]:
    steps = each().steps
    return [steps[name].output.load() for name in ("load", "features", "train")]
