"""The values that a fingerprint was taken of, remembered so that a change of them is noticed in microseconds.

Runs in: worker.

A fingerprint takes milliseconds, too much before each call of a tiny step. But a process is shared by many steps, and
one may change what another reads: a global, an attribute of a class, the content of a list. So the objects are
compared by identity, and containers and instances item by item. More is remembered than a fingerprint depends on: a
difference says that it has to be taken anew, not that it has changed.
"""

import functools
import logging
import re
import sys
import types
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from operator import is_
from pathlib import PosixPath, PurePosixPath
from typing import Any
from uuid import UUID

from zenray.fingerprint.parts import text_of

Check = Callable[[], bool]

# Values that cannot change, or whose changes are no part of a fingerprint: classes and functions are asked one by one.
_FIXED = frozenset({
    type(None), bool, int, float, complex, str, bytes, range, date, datetime, time, timedelta, timezone, Decimal,
    Fraction, UUID, PosixPath, PurePosixPath, re.Pattern, type(...), type(NotImplemented), slice, property,
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.GenericAlias,
    types.UnionType, types.CodeType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, staticmethod, classmethod, functools.cached_property,
    functools._lru_cache_wrapper, logging.Logger,
})  # fmt: skip
_FIXED_MODULES = frozenset({"typing", "zenray", "_thread", "abc", "_abc", "dataclasses", "annotationlib"})
_DICTS = frozenset({dict, OrderedDict, defaultdict, Counter})
_SEQUENCES = frozenset({list, tuple, deque})
_SETS = frozenset({set, frozenset})
_IMPORT_SYSTEM = frozenset({"__builtins__", "__spec__", "__loader__", "__cached__", "__doc__", "__file__", "__path__"})
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made at run time
_MAX_THINGS = 10_000  # beyond that a fingerprint is cheaper


class State:
    """What functions, classes, instances and globals that a fingerprint has met are like now."""

    def __init__(
        self,
        *,
        functions: Iterable[types.FunctionType],
        classes: Iterable[type],
        namespaces: Iterable[Mapping[str, Any]],
        whole: Iterable[Mapping[str, Any]],
        names: frozenset[str],
        unloaded: Iterable[str],
    ) -> None:
        self._checks: list[Check] = []
        self._seen: set[int] = set()
        self._pending: list[Any] = []
        self._is_known = True
        self._unloaded = frozenset(unloaded)
        for function in functions:
            self._add_function(function)
        for namespace in whole:
            self._add_mapping(namespace, namespace.keys() - _IMPORT_SYSTEM)
        for namespace in namespaces:
            self._add_mapping(namespace, names & namespace.keys())
        for cls in classes:
            self._add_mapping(vars(cls), vars(cls).keys() - _IMPORT_SYSTEM)
        while self._pending and self._is_known:
            self._add(self._pending.pop())
        self._pending.clear()

    def holds(self) -> bool:
        """Say whether all of it is as it was; False also where that cannot be told."""
        if not self._is_known or not self._unloaded.isdisjoint(sys.modules):
            return False
        try:
            return all(check() for check in self._checks)
        except RuntimeError:  # a thread that an earlier step left behind has just changed one of them
            return False

    def _add_function(self, function: types.FunctionType) -> None:
        code, defaults, keywords = function.__code__, function.__defaults__, function.__kwdefaults__
        cells = tuple(c for c in function.__closure__ or ())
        contents = tuple(map(_content, cells))
        self._checks.append(
            lambda: (
                function.__code__ is code
                and function.__defaults__ is defaults
                and function.__kwdefaults__ is keywords
                and all(map(is_, map(_content, cells), contents))
            )
        )
        self._pending += [defaults, keywords, *contents]
        self._add_mapping(vars(function), vars(function).keys())

    def _add_mapping(self, mapping: Mapping[Any, Any], keys: Iterable[Any]) -> None:
        watched = tuple(keys)
        values = tuple(map(mapping.get, watched))
        all_keys = tuple(mapping)
        count = len(all_keys)
        self._checks.append(
            lambda: (
                len(mapping) == count
                and all(map(is_, map(mapping.get, watched), values))
                and all(map(is_, mapping, all_keys))
            )
        )
        self._pending += values

    def _add(self, value: Any) -> None:
        kind: Any = type(value)
        if kind in _FIXED or id(value) in self._seen or issubclass(kind, type):
            return  # of classes the fingerprint names each of the project's own; a library's counts by its version
        if text_of(kind, "__module__").partition(".")[0] in _FIXED_MODULES:
            return
        self._seen.add(id(value))
        if len(self._seen) > _MAX_THINGS:
            self._is_known = False
        elif kind in _DICTS or kind is types.MappingProxyType:
            self._pending += list(value)
            self._add_mapping(value, list(value))
        elif kind in _SEQUENCES:
            self._add_items(value)
        elif kind in _SETS:
            self._add_set(value)
        elif kind is types.MethodType:
            self._pending.append(value.__self__)
        elif kind is functools.partial:
            self._pending += [*value.args, value.keywords]
        elif _has_only_attributes(kind):
            self._add_mapping(vars(value), list(vars(value)))
        else:
            self._is_known = False  # such as an array: only its bytes tell

    def _add_items(self, value: Any) -> None:
        items = tuple(value)
        if type(value) is not tuple:
            self._checks.append(lambda: len(value) == len(items) and all(map(is_, value, items)))
        self._pending += items

    def _add_set(self, value: Any) -> None:
        items = tuple(value)
        if type(value) is set:
            ids = frozenset(map(id, items))
            self._checks.append(lambda: len(value) == len(items) and ids.issuperset(map(id, value)))
        self._pending += items


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


@functools.lru_cache(maxsize=1000)
def _has_only_attributes(kind: type) -> bool:
    """Say whether all that instances of a class hold lies in their ``__dict__``: a Python class without slots."""
    classes = [cls for cls in kind.__mro__ if cls not in (object, typing.Generic)]
    return bool(classes) and all(cls.__flags__ & _HEAP_TYPE and not _has_slots(cls) for cls in classes)


def _has_slots(cls: type) -> bool:
    return any(type(v) is types.MemberDescriptorType for v in vars(cls).values())
