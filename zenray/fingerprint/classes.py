"""What of a class counts: bases, metaclass, annotations, members and methods, but not what is derived from them.

Runs in: driver.
"""

import abc
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from enum import EnumType
from typing import Any

from zenray.fingerprint.bytecode import Reference, normal_form
from zenray.fingerprint.parts import asked
from zenray.fingerprint.state import pairs

_DERIVED = frozenset(
    {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__qualname__", "__firstlineno__"}
    | {
        "__slotnames__",
        "__static_attributes__",
        "_abc_impl",
        "__annotate_func__",
        "__annotations_cache__",
        "__annotate__",
    }
    | {"_member_map_", "_value2member_map_", "_member_names_", "_unhashable_values_", "_hashable_values_"}
    | {"__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__", "__signature__"}
    | {"__pydantic_parent_namespace__", "__pydantic_complete__", "__pydantic_setattr_handlers__"}
)
METHODS = (types.FunctionType, staticmethod, classmethod, property)


def entries(cls: type, *, is_ordered: bool) -> list[tuple[str, Any]]:
    """Return what a class holds: data in order, as it may be fields, then functions, whose order nobody sees.

    With `is_ordered` everything stays in order, for classes whose base or metaclass may look at it.
    """
    found = [(key, value) for key, value in vars(cls).items() if key not in _DERIVED]
    found += [(f"{name} =", _state(member)) for name, member in members(cls).items()]
    if is_ordered:
        return found
    return sorted(found, key=lambda entry: (True, entry[0]) if isinstance(entry[1], METHODS) else (False, ""))


def members(cls: type) -> dict[str, Any]:
    """Return the members of an enum, by name."""
    is_enum = issubclass(type(cls), EnumType)
    return vars(cls).get("_member_map_", {}) if is_enum else {}  # not getattr: a metaclass may answer any


def contents(cls: type) -> Iterable[object]:
    """Return what a class is made of that may be set, to be compared."""
    registered = abc.get_cache_token() if "_abc_impl" in vars(cls) else 0
    return type(cls), cls.__bases__, registered, *pairs(vars(cls))


def names(cls: type) -> list[str]:
    """Return the names of what a class holds, in order."""
    return [key for key in vars(cls) if key not in _DERIVED]


def sees_order(metaclass: type) -> bool:
    """Tell whether a metaclass may look at the order in which a class was written."""
    return any("__prepare__" in vars(base) for base in inspect.getmro(metaclass) if base is not type)


def class_annotations(cls: type) -> dict[str, Any]:
    """Return the annotations of a class's own fields."""
    try:
        return inspect.get_annotations(cls)
    except NameError:  # Python 3.14 evaluates them here, and a name may be for type checkers only
        return {}


def virtual_subclasses(cls: type) -> list[type]:
    """Return the classes that were registered with an abstract class."""
    if "_abc_impl" not in vars(cls):
        return []
    # The half of the standard library's abc that knows; absent from other Pythons than CPython.
    import _abc  # type: ignore[import-not-found]

    alive = (reference() for reference in _abc._get_dump(cls)[0])
    return by_name([found for found in alive if found is not None])


def by_name(classes: list[type]) -> list[type]:
    """Sort classes."""
    return sorted(classes, key=lambda cls: (cls.__qualname__, cls.__module__))


def compiled_annotation(text: str) -> types.CodeType | None:
    """Compile an annotation that is a string; None where it is no expression."""
    try:
        return compile(text, "<annotation>", "eval", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None


def annotated_classes(function: types.FunctionType) -> Iterator[type]:
    """Yield the classes that the annotations of a function name, also inside of ``list[...]`` and the like."""
    pending = list(function.__annotations__.values())
    for _ in range(1000):
        if not pending:
            return
        annotation = pending.pop(0)
        if isinstance(annotation, str):
            code = compiled_annotation(annotation)
            pending += [_named(reference, function) for reference in (normal_form(code).references if code else ())]
        elif issubclass(type(annotation), type):
            yield annotation
        for inner in (asked(annotation, "__args__"), asked(annotation, "__metadata__")):
            pending += inner if isinstance(inner, tuple) else ()


def annotation_text(annotation: Any) -> str:
    """Return an annotation as text."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _named(reference: Reference, function: types.FunctionType) -> Any:
    value = function.__globals__.get(reference.name)
    for attribute in reference.attributes:
        namespace = asked(value, "__dict__")
        value = namespace.get(attribute) if isinstance(namespace, Mapping) else None
    return None if isinstance(value, str) else value


def _state(member: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(member).items() if key != "__objclass__"}
