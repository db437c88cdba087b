"""What code a step really uses, as one digest and a list of parts.

Runs in: driver.

`fingerprint` follows a function or class to everything of the project that it can reach. Whatever cannot be
followed is a problem, never a guess: a step with problems must run.
"""

from collections.abc import Callable
from typing import Any

from zenray.fingerprint.closure import Closure
from zenray.fingerprint.names import CodeForms
from zenray.fingerprint.origin import distribution_of, release_of
from zenray.fingerprint.parts import CodePart, Fingerprint
from zenray.fingerprint.sources import Sources
from zenray.fingerprint.state import State
from zenray.fingerprint.watch import Watch

__all__ = [
    "CodePart",
    "Fingerprint",
    "Fingerprinter",
    "State",
    "Watch",
    "distribution_of",
    "fingerprint",
    "release_of",
    "watched",
]


class Fingerprinter:
    """Takes fingerprints of many steps, and keeps between them what cannot change: parsed files and code forms.

    Values of globals are read anew for each fingerprint.
    """

    def __init__(self) -> None:
        self._forms = CodeForms()
        self._sources = Sources()

    def __call__(self, target: Callable[..., Any] | type, watch: Watch | None = None) -> Fingerprint:
        """Return the fingerprint of a step, function or class as it is loaded in this process."""
        return self._walked(target, watch)[0]

    def watched(self, target: Callable[..., Any] | type) -> tuple[Fingerprint, State | None]:
        """Return a fingerprint and what it was taken of, to be told in microseconds whether it may have changed.

        None in the place of the state where the code cannot be followed.
        """
        found, closure = self._walked(target)
        return found, None if closure is None else closure.state()

    def _walked(
        self, target: Callable[..., Any] | type, watch: Watch | None = None
    ) -> tuple[Fingerprint, Closure | None]:
        closure = Closure(self._forms, self._sources, watch)
        try:
            return closure.walk(target), closure
        except Exception as error:  # noqa: BLE001  objects of the project may raise anything when they are looked at
            name = getattr(target, "__qualname__", repr(target))
            return Fingerprint("", "", (), (f"the code of {name} could not be followed: {error!r}",)), None


def fingerprint(target: Callable[..., Any] | type, watch: Watch | None = None) -> Fingerprint:
    """Return the fingerprint of a step, function or class as it is loaded in this process.

    A `watch` remembers the values that it was made of. Imports nothing. Takes some milliseconds for the first step of
    a module with twenty helpers, less for the next.
    """
    return _shared(target, watch)


def watched(target: Callable[..., Any] | type) -> tuple[Fingerprint, State | None]:
    """Return the fingerprint of a step, and what tells later whether it has to be taken anew."""
    return _shared.watched(target)


_shared = Fingerprinter()
