"""Says of what a step declares to return that it could not be stored, before anything runs.

Runs in: driver.

A class says little of the values: its subclasses may be stored, an option of a union need not be taken, a field may
keep its default. Only what every value would fail on is refused.
"""

import dataclasses
import inspect
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from zenray.annotations import describe, fits, hints_of
from zenray.errors import DefinitionError
from zenray.materializer import PLAIN, find, load_materializer, loaded, no_materializer, registry, subclasses, type_name
from zenray.step import Step

_SAY_NOTHING = (object, Any, NoneType)
_CONTAINERS = frozenset((list, tuple, dict, set, frozenset, deque, defaultdict, OrderedDict, Counter))


def check(step: Step[Any], checked: set[Callable[..., Any]]) -> None:
    """Raise DefinitionError where an output of a step could not be stored; ``checked`` collects those that could."""
    if step.settings.allow_pickle or step.function in checked:
        return
    for output in step.outputs:
        why = _why_not(output.annotation, frozenset())
        if why:
            is_plain = isinstance(output.annotation, type)
            told = "" if is_plain else f", annotated {describe(output.annotation)}"
            raise DefinitionError(f"step {step.name!r}, output {output.name!r}{told}: {why}")
    checked.add(step.function)


def _why_not(annotation: Any, outer: frozenset[type]) -> str:
    """Say why no value of an annotation can be stored; ``outer`` are the classes that it is a part of."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _why_not(arguments[0], outer)
    if origin in (Union, UnionType):
        found = [_why_not(option, outer) for option in arguments]
        # Alone it is a mistake to declare what cannot be stored; inside, it may be what is left out.
        return "" if outer and not all(found) else next(filter(None, found), "")
    annotation = getattr(annotation, "__supertype__", annotation)  # of a NewType
    declared = origin or annotation
    if not isinstance(declared, type) or declared in _SAY_NOTHING or declared in outer - _CONTAINERS:
        return ""
    if inspect.isabstract(declared) or getattr(declared, "_is_protocol", False):
        return ""  # says nothing of the class the value will have
    cls = dict if typing.is_typeddict(declared) else declared
    why = _refusal(cls, is_inside=bool(outer))
    if why:
        return "" if _may_be_another(cls) else why
    if find(cls, registry.table()) != PLAIN:
        return ""
    inner = outer | {declared}
    for part in arguments if cls in _CONTAINERS else ():
        if why := _why_not(part, inner):
            return why
    for name, part in _fields(declared):
        if why := _why_not(part, inner):
            return f"field {name!r} of {type_name(declared)}: {why}"
    return ""


def _refusal(cls: type, *, is_inside: bool) -> str:
    """Say why an instance of exactly this class cannot be stored."""
    path = find(cls, registry.table())
    if path is None:
        return no_materializer(cls)
    if path == PLAIN and cls.__module__ == "builtins":
        return ""  # and saves the import
    materializer = load_materializer(path)
    if is_inside and getattr(materializer, "is_pickle", False) and not hasattr(materializer, "to_json"):
        return f"{path} pickles, and what it takes must be an output of its own"
    return str(getattr(materializer, "refuses", lambda cls: "")(cls))


def _may_be_another(cls: type) -> bool:
    """Say whether an instance may be of another class, which can be stored."""
    if type(cls).__instancecheck__ is not type.__instancecheck__:
        known = filter(None, (loaded(r.type_name) for r in registry.registrations()))
        if any(_is_subclass(found, cls) for found in known):
            return True
    return any(not _refusal(found, is_inside=False) for found in subclasses(cls))


def _is_subclass(found: type, cls: type) -> bool:
    try:
        return issubclass(found, cls)
    except Exception:  # noqa: BLE001 - a metaclass may do anything; then nothing is known of the class
        return True


def _fields(cls: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields that every instance has, but for those that may have a default of another kind."""
    hints = hints_of(cls)
    for name, defaults in _defaults(cls):
        annotation = hints.get(name, Any)
        if all(fits(default, annotation) for default in defaults):
            yield name, annotation


def _defaults(cls: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if typing.is_typeddict(cls):
        yield from ((name, ()) for name in cls.__required_keys__)
    elif hasattr(cls, "__pydantic_fields__"):
        for name, field in cls.__pydantic_fields__.items():
            is_made = field.is_required() or field.default_factory is not None
            yield name, () if is_made else (field.default,)
    elif dataclasses.is_dataclass(cls):
        for item in dataclasses.fields(cls):
            is_made = item.default_factory is not dataclasses.MISSING
            if item.default is not dataclasses.MISSING:
                yield item.name, (item.default,)
            elif item.init or is_made:
                yield item.name, ()
    elif issubclass(cls, tuple) and hasattr(cls, "_fields"):
        for name in cls._fields:
            yield name, (cls._field_defaults[name],) if name in cls._field_defaults else ()
