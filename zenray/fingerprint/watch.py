"""What fingerprints were made of in this process, to tell whether they still hold after other code has run.

Runs in: driver.

A pipeline function that runs its steps in its own process may set ``config.MODE`` between two of them. Comparing the
objects that were met is a hundred times cheaper than taking the fingerprints again.
"""

import pickle
import types
from collections.abc import Iterator, Mapping
from typing import Any

from blake3 import blake3

_ABSENT = object()
_BY_VALUE = (str, bytes)  # made anew by whoever asks, or what an object is that can be compared only as a whole


class Watch:
    """Remembers globals that code reads and objects with state that it can reach."""

    def __init__(self) -> None:
        self._reads: dict[tuple[int, str], tuple[Mapping[str, Any], str, object]] = {}
        self._states: dict[int, tuple[object, list[object]]] = {}  # with the objects, so that their ids stay their own

    def read(self, namespace: Mapping[str, Any], name: str) -> None:
        """Remember a global."""
        self._reads.setdefault((id(namespace), name), (namespace, name, namespace.get(name, _ABSENT)))

    def state(self, thing: object) -> None:
        """Remember what a container, function, class or instance holds."""
        if id(thing) not in self._states:
            self._states[id(thing)] = (thing, _held(thing))

    def is_changed(self) -> bool:
        """Tell whether anything differs from what it was when it was met, or at the last `refresh`."""
        return any(space.get(name, _ABSENT) is not value for space, name, value in self._reads.values()) or any(
            not _are_same(_held(thing), held) for thing, held in self._states.values()
        )

    def refresh(self) -> None:
        """Take everything as it is now: what steps change is no change of their code."""
        for key, (space, name, _) in self._reads.items():
            self._reads[key] = (space, name, space.get(name, _ABSENT))
        for number, (thing, _) in self._states.items():
            self._states[number] = (thing, _held(thing))


def _are_same(now: list[object], before: list[object]) -> bool:
    if len(now) != len(before):
        return False
    return all(a is b or (type(a) in _BY_VALUE and a == b) for a, b in zip(now, before, strict=True))


def _held(thing: Any) -> list[object]:
    kind = type(thing)
    if kind in (list, set):
        return list(thing)
    if kind is dict:
        return [*thing, *thing.values()]
    if kind is types.FunctionType:
        return [thing.__code__, thing.__defaults__, *_of_dict(thing), *(thing.__closure__ or ()), *_in_cells(thing)]
    if issubclass(kind, type):
        return list(_of_dict(thing))
    try:
        return [blake3(pickle.dumps(thing)).hexdigest(), *_of_dict(thing)]
    except Exception:  # noqa: BLE001 - objects of the project and of libraries may raise anything here
        return list(_of_dict(thing))


def _of_dict(thing: Any) -> Iterator[object]:
    namespace = getattr(thing, "__dict__", {})
    yield from namespace
    yield from namespace.values()


def _in_cells(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield _ABSENT
