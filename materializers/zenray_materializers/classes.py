"""Plain values of the user's own classes: enums, named tuples, dataclasses and pydantic models, by name and fields.

Runs in: anywhere.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, Flag
from typing import Any

from zenray.errors import MaterializerError
from zenray.materializer import load_class, no_materializer, type_name
from zenray.model import Json
from zenray_materializers.preview import brief

_MISSING: Any = object()
_NO_VALUES = ("function", "builtin_function_or_method", "method", "module", "generator", "coroutine")


def refusal(value: Any) -> str:
    """Return the message for a value that nothing can store."""
    kind = type(value)
    shown = brief(value, limit=80)
    if isinstance(value, type):
        return (
            f"the class {type_name(value)} is not a value that can be stored; return an instance, or its name as text"
        )
    if kind.__module__ == "builtins" and kind.__name__ in _NO_VALUES:
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "?")
        return (
            f"the {kind.__name__} {name!r} is not a value that can be stored; return what it gives, or its name as text"
        )
    return no_materializer(kind, f"no materializer is registered for type {type_name(kind)!r}, such as {shown}")


def importable_name(kind: type) -> str:
    """Return the name a class can be found under when its values are loaded; an error where there is none."""
    name = type_name(kind)
    if "<locals>" in kind.__qualname__:
        raise MaterializerError(
            f"{name} is defined inside a function, where loading cannot find it; move it to the level of its module"
        )
    if kind.__module__ not in ("__main__", "builtins") and kind.__module__ in sys.modules:
        found: Any = sys.modules[kind.__module__]
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, type):
            raise MaterializerError(
                f"{name} is not what its module has under that name, so loading cannot find it; "
                "define the class at the level of its module, under its own name"
            )
    return name


def encoder_for(kind: type) -> Callable[[Any, Any], Json]:
    """Return how instances of a class are encoded; an error where its fields would not be all of it."""
    name = importable_name(kind)
    if issubclass(kind, Enum):
        return functools.partial(_enum, name=name)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return functools.partial(_namedtuple, name=name)
    if not _is_made_of_fields(kind):
        base = next(b for b in kind.__mro__ if b.__module__ in ("builtins", "datetime", "collections") or b is object)
        raise MaterializerError(
            no_materializer(
                kind,
                f"{name} is a subclass of {base.__name__}, whose own state plain values do not keep: return "
                f"a {base.__name__} or a dataclass, or register a materializer for {name!r}",
            )
        )
    if hasattr(kind, "__pydantic_fields__") and hasattr(kind, "__pydantic_private__"):
        return functools.partial(_pydantic, name=name)
    if not dataclasses.is_dataclass(kind):
        raise MaterializerError(no_materializer(kind))
    return functools.partial(_dataclass, name=name, fields=tuple(f.name for f in dataclasses.fields(kind)))


def _is_made_of_fields(kind: type) -> bool:
    """True where an instance is a bare object: not a subclass of list, dict, Exception or another type with a state."""
    try:
        object.__new__(kind)
    except TypeError:
        return bool(getattr(kind, "__abstractmethods__", None))
    return True


def _enum(encoder: Any, value: Enum, *, name: str) -> Json:
    if isinstance(value, Flag):
        return {"$enum": [name, encoder.encode(value.value), True]}
    return {"$enum": [name, value.name, False]}


def load_enum(name: str, member: Any, is_flag: bool) -> Any:
    """Return an enum's member, by name; of a flag by value."""
    cls = load_class(name)
    if not issubclass(cls, Enum):
        raise _changed(name, "an Enum")
    try:
        return cls(member) if is_flag else cls[member]
    except (KeyError, ValueError):
        raise MaterializerError(
            f"{name} has no member {member!r} any more; put it back, or run the step again"
        ) from None


def _namedtuple(encoder: Any, value: Any, *, name: str) -> Json:
    if getattr(value, "__dict__", None):
        raise MaterializerError(f"{name} has attributes that are not fields: {sorted(vars(value))}; make them fields")
    return {"$namedtuple": [name, dict(zip(value._fields, map(encoder.encode, value), strict=True))]}


def load_namedtuple(name: str, fields: Mapping[str, Any]) -> Any:
    """Return a named tuple."""
    cls = load_class(name)
    if not (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        raise _changed(name, "a named tuple")
    if set(cls._fields) != set(fields):
        raise MaterializerError(
            f"{name} was stored with the fields {list(fields)} and has {list(cls._fields)} now; run the step again"
        )
    return tuple.__new__(cls, (fields[f] for f in cls._fields))


def _dataclass(encoder: Any, value: Any, *, name: str, fields: tuple[str, ...]) -> Json:
    if extra := sorted(_extra_names(value, fields)):
        raise MaterializerError(f"{name} has attributes that are not fields: {extra}; declare them as fields")
    present = ((field, getattr(value, field, _MISSING)) for field in fields)
    return {"$dataclass": [name, {field: encoder.encode(item) for field, item in present if item is not _MISSING}]}


def _extra_names(value: Any, fields: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of state that is outside the fields; a ``cached_property`` can be computed again."""
    kind = type(value)
    for name in getattr(value, "__dict__", ()):
        if name not in fields and not isinstance(getattr(kind, name, None), functools.cached_property):
            yield name
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in fields and not name.startswith("__") and hasattr(value, name):
                yield name


def load_dataclass(name: str, stored: Mapping[str, Any]) -> Any:
    """Return a dataclass instance with its fields set; fields added since have their defaults."""
    cls = load_class(name)
    if not dataclasses.is_dataclass(cls):
        raise _changed(name, "a dataclass")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if gone := [field for field in stored if field not in fields]:
        raise MaterializerError(f"{name} was stored with {gone}, which are no fields of it now; run the step again")
    value = object.__new__(cls)
    for field in fields.values():
        item = stored.get(field.name, _MISSING)
        if item is _MISSING and field.init:
            item = _default(name, field)
        if item is not _MISSING:
            object.__setattr__(value, field.name, item)
    return value


def _default(name: str, field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise MaterializerError(
        f"{name} has a field {field.name!r} that a stored value lacks; give it a default, or run the step again"
    )


def _pydantic(encoder: Any, value: Any, *, name: str) -> Json:
    fields = type(value).__pydantic_fields__
    parts: dict[str, Json] = {
        "fields": encoder.mapping({k: v for k, v in vars(value).items() if k in fields}),
        "set": sorted(value.__pydantic_fields_set__),
    }
    if value.__pydantic_extra__ is not None:
        parts["extra"] = encoder.mapping(value.__pydantic_extra__)
    if value.__pydantic_private__ is not None:
        parts["private"] = encoder.mapping(value.__pydantic_private__)
    return {"$pydantic": [name, parts]}


def load_pydantic(name: str, parts: Mapping[str, Any]) -> Any:
    """Return a model with its state set, not validated again."""
    cls: Any = load_class(name)
    if not hasattr(cls, "__pydantic_fields__"):
        raise _changed(name, "a pydantic model")
    if set(parts["fields"]) != set(cls.__pydantic_fields__):
        raise MaterializerError(
            f"{name} was stored with the fields {sorted(parts['fields'])} and has "
            f"{sorted(cls.__pydantic_fields__)} now; run the step again"
        )
    value = cls.__new__(cls)
    value.__setstate__(
        {
            "__dict__": dict(parts["fields"]),
            "__pydantic_fields_set__": set(parts["set"]),
            "__pydantic_extra__": parts.get("extra"),
            "__pydantic_private__": parts.get("private"),
        }
    )
    return value


def _changed(name: str, what: str) -> MaterializerError:
    return MaterializerError(f"{name} was {what} when a value of it was stored and is not any more; run the step again")
