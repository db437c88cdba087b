"""redun: each step is a task, which is cached by its source unless told otherwise."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redun import Scheduler, task
from redun.config import Config


def step(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    return functools.partial(step, **options) if function is None else task(namespace="demo")(function)


def pipeline(function: Callable[[], Any]) -> Callable[[], Any]:
    return function


def run(each: Callable[[], Any]) -> Any:
    scheduler = Scheduler(config=Config({"backend": {"db_uri": f"sqlite:///{Path.home()}/redun.db"}}))
    scheduler.load()
    return scheduler.run(each())
