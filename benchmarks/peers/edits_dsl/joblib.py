"""joblib: each step is a function of one Memory."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from joblib import Memory

memory = Memory(Path.home() / "joblib", verbose=0)


def step(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    return functools.partial(step, **options) if function is None else memory.cache(function)


def pipeline(function: Callable[[], Any]) -> Callable[[], Any]:
    return function


def run(each: Callable[[], Any]) -> Any:
    return each()
