"""What code a step really uses, as one digest and a list of parts.

Runs in: driver.

`fingerprint` follows a function or class to everything of the project that it can reach. Whatever cannot be
followed is a problem, never a guess: a step with problems must run.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from zenray.fingerprint.closure import Closure
from zenray.fingerprint.imports import Imports
from zenray.fingerprint.names import CodeForms
from zenray.fingerprint.origin import distribution_of, release_of
from zenray.fingerprint.parts import CodePart, Fingerprint
from zenray.fingerprint.sources import Sources
from zenray.fingerprint.state import State

__all__ = [
    "CodePart",
    "Fingerprint",
    "Fingerprinter",
    "Fingerprints",
    "State",
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

    def __call__(self, target: Callable[..., Any] | type) -> Fingerprint:
        """Return the fingerprint of a step, function or class as it is loaded in this process."""
        return self.watched(target)[0]

    def watched(self, target: Callable[..., Any] | type) -> tuple[Fingerprint, State]:
        """Return a fingerprint and what it was taken of, to be told in microseconds whether it may have changed."""
        closure = Closure(self._forms, self._sources)
        try:
            return closure.walk(target), closure.state
        except Exception as error:  # noqa: BLE001  objects of the project may raise anything when they are looked at
            name = getattr(target, "__qualname__", repr(target))
            return Fingerprint("", "", (), (f"the code of {name} could not be followed: {error!r}",)), closure.state


def fingerprint(target: Callable[..., Any] | type) -> Fingerprint:
    """Return the fingerprint of a step, function or class as it is loaded in this process.

    Imports nothing. Takes some milliseconds for the first step of a module with twenty helpers, less for the next.
    """
    return _shared(target)


def watched(target: Callable[..., Any] | type) -> tuple[Fingerprint, State]:
    """Return the fingerprint of a step, and what tells later whether it has to be taken anew."""
    return _shared.watched(target)


class Fingerprints:
    """The fingerprints of the functions that run in this process, each as it is when it is asked for."""

    def __init__(self) -> None:
        self._known: dict[Callable[..., Any], tuple[Fingerprint, State]] = {}
        self._memories: dict[Any, State] = {}  # what code whose results are remembered was taken of at first

    def of(self, function: Callable[..., Any]) -> Fingerprint:
        """Return a function's fingerprint: the same object until something that it was taken of has changed."""
        known = self._known.get(function)
        if known is None or not known[1].holds():
            found, state = watched(function)
            problems = (problem for memory in state.memories for problem in self._problems_of(memory))
            known = self._known[function] = replace(found, problems=(*found.problems, *problems)), state
        return known[0]

    def _problems_of(self, memory: Any) -> Iterator[str]:
        """Tell where a function under ``lru_cache`` may return what it did when its code read other values."""
        first = self._memories.get(memory)
        if first is None or not memory.cache_info().currsize:
            self._memories[memory] = watched(memory.__wrapped__)[1]
        elif not first.holds():
            first.fail()
            name = getattr(memory, "__qualname__", repr(memory))
            yield (
                f"{name} remembers results (functools.lru_cache) of before a change of what its code reads; "
                f"call {name}.cache_clear() after the change"
            )

    @contextmanager
    def kept(self) -> Iterator[list[str]]:
        """Keep what is known while a step runs that may import modules of the project.

        A fingerprint has the text of a module that is not loaded. What has only just been imported is what its text
        says, so the fingerprint holds for as long as the module is what it was at that moment. Yields a list that
        gets a note for each import of something else: then no key has what ran.
        """
        states = [state for _, state in self._known.values()]
        missing = {name for state in states for name in state.missing_modules}
        doubts: list[str] = []
        if not missing:
            yield doubts
            return

        def compare(name: str, file: str | None) -> None:
            if not all(state.has_text(name, file) for state in states):
                doubts.append(
                    f"module {name!r} ({file or 'now without a file'}) is not what the step's key has: it was edited "
                    "before the step imported it, or is found in another place than when the step was looked up; so "
                    "the result is not kept in the cache. Run again"
                )

        imports = Imports(missing, on_read=compare, on_loaded=self._take_over)
        sys.meta_path = [imports, *sys.meta_path]  # a new list: other threads may be going through the old one
        try:
            yield doubts
        finally:
            sys.meta_path = [finder for finder in sys.meta_path if finder is not imports]

    def _take_over(self) -> None:
        for function, (found, state) in list(self._known.items()):
            new = [sys.modules[name] for name in state.missing_modules if name in sys.modules]
            if new and state.holds(but=new):
                self._known[function] = found, watched(function)[1]


_shared = Fingerprinter()
