"""The launcher that runs steps in the calling process, one after another: for tests and debuggers.

Runs in: driver.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from zenray.context import TrackerLink
from zenray.launcher import Done
from zenray.model import CodeRef, Resources, StepCall
from zenray.step import Step
from zenray.store import Store
from zenray.worker import begin_step


class InlineLauncher:
    """Runs each call at once and returns when it has ended; requests for resources are taken as granted."""

    is_blocking = True

    def __init__(self, store: Store, *, tracker: TrackerLink | None = None) -> None:
        self._store, self._tracker = store, tracker
        self._functions: dict[str, Callable[..., Any]] = {}

    def reference(self, step: Step[Any]) -> CodeRef:
        """Remember the function itself: nothing has to be imported."""
        key = f"{step.function.__qualname__}@{id(step.function)}"
        self._functions[key] = step.function
        return CodeRef(step.function.__module__, key)

    def check(self, step_name: str, resources: Resources) -> None:
        """Accept everything."""

    def width(self, resources: Resources) -> int:
        """Return 1: there is one thread."""
        return 1

    def launch(self, calls: Sequence[StepCall], resources: Resources, on_done: Done) -> None:
        """Run the calls now, in this thread; Ctrl-C passes through."""
        worker = f"inline:{os.getpid()}"
        attempts = [
            begin_step(
                c, self._functions[c.code.qualname], self._store, worker=worker, is_tee=True, tracker=self._tracker
            )
            for c in calls
        ]
        results = [attempt.result() for attempt in attempts]
        on_done(results)
        if any(r.failure is not None and r.failure.kind == "cancelled" for r in results):
            raise KeyboardInterrupt

    def cancel(self, *, is_forced: bool) -> None:
        """Do nothing: while a step runs, nobody else can be calling."""

    def close(self) -> None:
        """Forget the functions."""
        self._functions.clear()
