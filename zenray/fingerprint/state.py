"""What a fingerprint was taken of, remembered so that a change of it in this process is noticed in microseconds.

Runs in: anywhere.

A fingerprint takes milliseconds, too much before each call of a tiny step. But steps share a process with one another,
and with the pipeline where they run in its own: any of them may set a global that another reads, or add to a list. So
the walk leaves here whatever it looks at, together with how it looked. More is compared than a fingerprint depends
on: a difference says that it has to be taken anew, not that it is another one.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import is_
from types import FunctionType
from typing import Any

from blake3 import blake3

from zenray.fingerprint.origin import Origin, origin
from zenray.fingerprint.parts import text_of

Look = Callable[[Any], Iterable[object]]

_ABSENT = object()
_BY_VALUE = frozenset({str, bytes, int})  # made anew by whoever takes an object of a library apart
_DEPTH = 4  # of tuples, lists and dicts in what such an object is reduced to, which are made anew too
_FIXED_MODULES = frozenset({"typing", "zenray", "_thread", "abc", "_abc", "dataclasses", "annotationlib"})


class State:
    """What globals, containers, functions, classes and instances were when they were looked at."""

    def __init__(self) -> None:
        self._globals: dict[int, tuple[Mapping[str, Any], dict[str, object]]] = {}
        self._held: dict[tuple[int, Look], tuple[object, Look, tuple[object, ...]]] = {}  # keeps them alive: ids last
        self._texts: dict[str, tuple[str, Look]] = {}  # of modules that were not loaded: their files
        self._has_failed = False
        self.memories: list[Any] = []  # functions that remember their results, which is no state as long as they hold

    def read(self, namespace: Mapping[str, Any], name: str) -> None:
        """Remember what a name stands for, if anything."""
        names = self._globals.setdefault(id(namespace), (namespace, {}))[1]
        names.setdefault(name, namespace.get(name, _ABSENT))

    def hold(self, thing: object, look: Look) -> None:
        """Remember what something holds, which `look` tells as objects to be compared by identity."""
        key = id(thing), look
        if key not in self._held:
            self._held[key] = thing, look, tuple(look(thing))

    def read_text(self, module_name: str, file: str, look: Look) -> None:
        """Remember the text of a module that is not loaded."""
        self.hold(file, look)
        self._texts.setdefault(module_name, (file, look))

    @property
    def missing_modules(self) -> list[str]:
        """Return the modules that were looked for and not loaded."""
        _, names = self._globals.get(id(sys.modules), ({}, {}))
        return [name for name, module in names.items() if module is _ABSENT]

    def holds(self, *, but: Sequence[object] = ()) -> bool:
        """Say whether all of it is as it was; False also where that cannot be told.

        Where a name stood for nothing, it may now stand for one of those in `but`.
        """
        if self._has_failed:
            return False
        try:
            for namespace, names in self._globals.values():
                now: Iterable[object] = map(namespace.get, names, repeat(_ABSENT))
                if but:
                    now = (_ABSENT if any(value is new for new in but) else value for value in now)
                if not all(map(is_, now, names.values())):
                    return False
            return all(is_same(tuple(look(thing)), held) for thing, look, held in self._held.values())
        except Exception:  # noqa: BLE001 - of foreign objects, or a thread that a step left has just changed one
            return False

    def fail(self) -> None:
        """Hold no more, also if what has changed is changed back."""
        self._has_failed = True

    def has_text(self, module_name: str, file: str | None) -> bool:
        """Say whether a module that was not loaded still has its text, where it is found in `file`, or not at all."""
        if module_name not in self.missing_modules:
            return True
        if module_name not in self._texts:  # there was none
            return file is None or origin(module_name, file) is not Origin.FIRST_PARTY
        known, look = self._texts[module_name]
        return file == known and is_same(tuple(look(file)), self._held[id(known), look][2])


def pairs(mapping: Mapping[Any, Any]) -> Iterable[object]:
    """Return the keys and values of a mapping."""
    return *mapping, *mapping.values()


def attributes(value: Any) -> Iterable[object]:
    """Return the class and the attributes of an instance."""
    return type(value), *pairs(vars(value))


def carried(function: FunctionType) -> Iterator[object]:
    """Yield what a function is made of that may be set, to be compared."""
    yield from (function.__code__, function.__defaults__)
    yield from pairs(function.__kwdefaults__ or {})
    yield from pairs(vars(function))
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield cell


def leaves(part: Any, depth: int = _DEPTH) -> Iterator[object]:
    """Yield what something is made of that may have been made for whoever asked."""
    kind = type(part)
    if kind is bytes:
        yield blake3(part).digest()
    elif kind in (list, tuple, dict) and depth:
        yield from (kind, len(part))
        for inner in pairs(part) if kind is dict else part:
            yield from leaves(inner, depth - 1)
    elif kind is slice:
        yield from (part.start, part.stop, part.step)
    else:
        yield part


def is_fixed(kind: type) -> bool:
    """Say whether nothing changes instances of a class of a library that is all too common."""
    return kind is re.Pattern or text_of(kind, "__module__").partition(".")[0] in _FIXED_MODULES


def is_same(now: tuple[object, ...], before: tuple[object, ...]) -> bool:
    """Compare what was seen at two looks."""
    return len(now) == len(before) and (all(map(is_, now, before)) or all(map(_is_equal, now, before)))


def _is_equal(now: object, before: object) -> bool:
    return now is before or (type(now) is type(before) and type(now) in _BY_VALUE and now == before)
