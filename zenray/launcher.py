"""How step calls get executed: the protocol between the run engine and what runs the steps.

Runs in: driver.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from zenray.model import AttemptResult, CodeRef, Resources, StepCall
from zenray.step import Step

Done = Callable[[Sequence[AttemptResult]], None]


class Launcher(Protocol):
    """Runs step calls somewhere. ``on_done`` may be called from any thread, once for every call handed in."""

    is_blocking: bool  # True where launch() returns only after the calls have ended

    def reference(self, step: Step[Any]) -> CodeRef:
        """Return how a worker of this launcher finds the step's function."""
        ...

    def check(self, step_name: str, resources: Resources) -> None:
        """Raise ClusterError for a request that can never be granted: what was asked, what there is."""
        ...

    def width(self, resources: Resources) -> int:
        """Return how many units that ask for this are worth handing over before one has come back."""
        ...

    def launch(self, calls: Sequence[StepCall], resources: Resources, on_done: Done) -> None:
        """Start calls that ask for the same resources, as one unit of work, one after another."""
        ...

    def cancel(self, *, is_forced: bool) -> None:
        """Interrupt everything in flight; forced ends the worker processes."""
        ...

    def close(self) -> None:
        """Let go of what the launcher holds."""
        ...
