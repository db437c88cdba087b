"""How values that code refers to are written: plain data, containers, callables and the state of instances.

Runs in: driver.
"""

import copyreg
import functools
import logging
import marshal
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Protocol
from uuid import UUID

from zenray.fingerprint.bytecode import normal_form
from zenray.fingerprint.origin import display_name
from zenray.fingerprint.parts import Form, asked, text_of
from zenray.fingerprint.state import Look, State, attributes, is_fixed, is_same, leaves, pairs
from zenray.hashing import digest_bytes, encode, framed

_PLAIN = frozenset(
    {type(None), bool, int, float, complex, bytes, bytearray, date, time, datetime, timedelta, timezone, range}
    | {Decimal, Fraction, UUID}
)
_PATHS = frozenset({PurePosixPath, PureWindowsPath, PosixPath, WindowsPath})
_SEQUENCES = frozenset({list, tuple})
_MUTABLE = frozenset({list, dict, set, bytearray})
_LOOKS: dict[type, Look] = {list: tuple, set: tuple, dict: pairs, bytearray: bytes, types.MappingProxyType: pairs}
_SETS = frozenset({set, frozenset})
_MAPPINGS = frozenset({dict, types.MappingProxyType})
# They guard state, they hold none; that one is open or taken says nothing about the code.
_INERT = frozenset({"_thread.lock", "_thread.RLock"})
# How to get the plain content of an instance of a subclass without running methods of that subclass.
_CONTENT: dict[type, Callable[[Any], Any]] = {
    list: lambda v: list.__getitem__(v, slice(None)),
    tuple: lambda v: tuple.__getitem__(v, slice(None)),
    dict: dict.copy,
    set: set.copy,
    frozenset: frozenset.copy,
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__pos__,
    bytes: lambda v: bytes.__getitem__(v, slice(None)),
    bytearray: lambda v: bytearray.__getitem__(v, slice(None)),
}
_CONTAINERS = frozenset({list, tuple, dict})
_FLAT = frozenset({type(None), bool, int, float, str, bytes})
_LARGE = 1000
_RECURSION_LIMIT = 200
_SIZE_LIMIT_BYTES = 1 << 28
_UNNAMED = object()


class Walk(Protocol):
    """What the writer of values needs from the walk that it is part of."""

    @property
    def state(self) -> State:
        """Where what is looked at is left, to be compared later."""

    @property
    def root(self) -> str:
        """The folder that paths of the project are relative to."""

    @property
    def is_background(self) -> bool:
        """True while what only import-time statements reach is visited."""

    def is_opaque(self, kind: type) -> bool:
        """Tell whether instances of a library's class hold more than data, such as caches that fill."""

    def link(self, thing: Any, form: Form, name: str) -> None:
        """Write a reference to a function, class, module or instance, and visit it later."""

    def is_first_party(self, thing: type | types.FunctionType) -> bool:
        """Tell whether a class or function is the project's own."""

    def is_address(self, number: int) -> bool:
        """Tell whether a number is the id of something that was met."""

    def is_own_module(self, module_name: str) -> bool:
        """Tell whether a module is the project's own."""

    def note_distribution(self, module_name: str) -> None:
        """Note that code of an installed module is used."""

    def problem(self, text: str) -> None:
        """Note why the closure cannot be known."""


class Values:
    """Writes values, by content, into forms."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._open: list[int] = []
        self._aliases: dict[int, tuple[int, object]] = {}  # with the objects, so that their ids stay their own

    def write(self, value: Any, form: Form, name: str, *, is_made: bool = False) -> None:
        """Write any value; what has no content that can be compared becomes a problem that names it.

        With `is_made` it is a container that was made to be written, and its items are what may change.
        """
        if id(value) in self._open:
            form.text("cycle", str(len(self._open) - self._open.index(id(value))))
            return
        if len(self._open) > _RECURSION_LIMIT:
            self._walk.problem(f"{name} is nested too deeply to be compared; pass it to the step as a parameter")
            return
        self._open.append(id(value))
        if type(value) in _LOOKS and not is_made:
            self._walk.state.hold(value, _LOOKS[type(value)])
        try:
            self._write(value, form, name)
        finally:
            self._open.pop()

    def alias_number(self, value: object) -> int:
        """Number mutable objects as they are met, so that one that is met twice differs from two that are equal."""
        return self._aliases.setdefault(id(value), (len(self._aliases), value))[0]

    def _write(self, value: Any, form: Form, name: str) -> None:
        kind = type(value)
        if kind in _MUTABLE:
            form.alias(self.alias_number(value))
        if kind in _PLAIN:
            form.raw(encode(value))
        elif kind is str or kind in _PATHS:
            self._text(value, form)
        elif kind in _CONTAINERS and len(value) > _LARGE and _is_flat(value):
            # The same bytes for the same content, thirty times faster; version 2 has no marks for shared objects.
            form.raw(framed(kind.__name__.encode(), marshal.dumps(value, 2)))
        elif kind in _SEQUENCES:
            self._all(kind.__name__, value, form, name)
        elif kind in _SETS:
            self._all(kind.__name__, sorted(value, key=_order), form, name)
        elif kind in _MAPPINGS:
            self._all(kind.__name__, [part for item in value.items() for part in item], form, name)
        elif issubclass(kind, type | types.FunctionType | types.ModuleType):  # a proxy lies about its __class__
            self._walk.link(value, form, name)
        else:
            self._object(value, form, name)

    def _all(self, tag: str, values: Iterable[Any], form: Form, name: str) -> None:
        values = list(values)
        form.text(tag, str(len(values)))
        for value in values:
            self.write(value, form, name)

    def _text(self, value: str | PurePath, form: Form) -> None:
        """Write text; a path inside the project is written relative to it, so that a copy elsewhere is the same."""
        text = value if isinstance(value, str) else value.as_posix()
        root = self._walk.root
        tag = "str" if isinstance(value, str) else "path"
        before, _, address = text.rpartition(":")
        if address.isdecimal() and self._walk.is_address(int(address)):
            # pydantic notes the class of a validator as "module.Class:94722217388608".
            form.text(tag, "address", before)
            return
        if text == root or text.startswith(root + "/"):
            form.text(tag, "in project", text[len(root) :])
        else:
            form.text(tag, "", text)

    def _object(self, value: Any, form: Form, name: str) -> None:
        parts = _parts_of_callable(value)
        module = library_module(value)
        kind = type(value)  # not isinstance: a proxy lies about its __class__
        if is_zenray(value) and hasattr(value, "__wrapped__"):
            self.write(value.__wrapped__, form, name)
        elif kind.__module__ == "zenray.files":
            self._walk.problem(
                f"{name} is a {value!r}, whose content is not followed; pass it to the step as an argument"
            )
        elif module is not None and not self._walk.is_own_module(module):
            form.text("library", module, value.__qualname__)
            self._walk.note_distribution(module)
        elif kind.__name__ == "cython_function_or_method":
            self._walk.problem(f"{name} is compiled code of the project, which cannot be followed")
        elif value is Ellipsis or value is NotImplemented:
            form.text("named", repr(value))
        elif parts is not None:
            if kind.__module__ not in _HOMES_OF_CALLABLES:
                self._walk.link(kind, form, name)
                own = {k: v for k, v in getattr(value, "__dict__", {}).items() if k not in _COPIED}
                self.write(own, form, name, is_made=True)
            if kind is functools._lru_cache_wrapper:
                self._walk.state.memories.append(value)
            elif getattr(value, "__dict__", None):
                self._walk.state.hold(value, attributes)
            self._all(parts[0], parts[1:], form, name)
        elif _type_name(value) in _INERT:
            form.text("inert", _type_name(value))
        elif issubclass(kind, logging.Logger) and not self._walk.is_first_party(kind):
            form.text("logger", display_name(value.name))  # a script's own has another name in a worker
        elif issubclass(kind, Enum):
            form.text("member", str(value.name))
            if issubclass(kind, Flag):
                form.raw(encode(int(value.value)))  # bits without a name have none to tell them apart
            self._walk.link(kind, form, name)
        elif kind is types.CodeType:
            form.text("code", normal_form(value).digest)
        elif issubclass(kind, types.BuiltinFunctionType | types.MethodWrapperType):
            self._builtin(value, form, name)
        elif issubclass(
            kind,
            types.WrapperDescriptorType
            | types.MethodDescriptorType
            | types.ClassMethodDescriptorType
            | types.GetSetDescriptorType
            | types.MemberDescriptorType,
        ):
            form.text("descriptor", value.__name__)
            # A slot of a class of the project is written with that class.
            form.text(value.__objclass__.__qualname__)
        else:
            self._walk.link(value, form, name)

    def _builtin(self, value: Any, form: Form, name: str) -> None:
        owner = value.__self__
        form.text("builtin", value.__name__)
        if owner is None or isinstance(owner, types.ModuleType):
            module = text_of(value, "__module__") or "builtins"
            form.text(module)
            self._walk.note_distribution(module)
            if module in sys.modules and self._walk.is_own_module(module):
                self._walk.problem(f"{name} is compiled code of the project, which cannot be followed")
        else:
            self.write(owner, form, name)

    def write_instance(self, value: Any, form: Form, name: str) -> None:
        """Write an instance: its class and its state."""
        kind = type(value)
        if self._walk.is_first_party(kind) and not _has_foreign_state(kind, self._walk.is_first_party):
            self._walk.link(kind, form, name)
            self._own_state(value, form, name)
            return
        known = None if self._walk.is_first_party(kind) else _known_name(value, name)
        if known is not None:
            form.text("named", *known)
            self._walk.note_distribution(known[0])
            return
        size_bytes = asked(value, "nbytes")
        if isinstance(size_bytes, int) and size_bytes > _SIZE_LIMIT_BYTES:
            self._walk.problem(f"{name} is too large to be compared; pass it to the step as a parameter")
            return
        if self._walk.is_background and self._walk.is_opaque(kind):
            form.text("made by statements", _type_name(value))
            self._walk.note_distribution(kind.__module__)
        elif _is_tensor(kind):
            self._tensor(value, form, name)
        else:
            self._reduced(value, form, name)
        if self._walk.is_first_party(kind):
            self._own_state(value, form, name)  # a __getstate__ of the project may leave something out

    def _own_state(self, value: Any, form: Form, name: str) -> None:
        self._walk.state.hold(value, _own)
        for base, content in _CONTENT.items():
            if isinstance(value, base):
                self.write(content(value), form, name, is_made=True)
        if isinstance(value, BaseException):
            self.write(value.args, form, name)
        state = dict(vars(value)) if hasattr(value, "__dict__") else {}
        kind: Any = type(value)
        for slot, member in _slots(kind).items():
            state.setdefault(slot, _of_slot(member, value))
        items = [(key, part) for key, part in state.items() if part is not _UNNAMED and key not in _SKIPPED_STATE]
        form.text("state", str(len(items)))
        for key, part in items:
            form.text(str(key))
            self.write(part, form, f"{name}.{key}")

    def _tensor(self, value: Any, form: Form, name: str) -> None:
        """Write a tensor of torch; what it is pickled as has names that torch makes up anew in each process."""
        try:
            content = _tensor_content(value)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            self._walk.problem(
                f"{name} is a {_type_name(value)}, whose content cannot be compared ({type(error).__name__}); "
                "create it inside the step or pass what it is made from as a parameter"
            )
            return
        self._walk.note_distribution("torch")
        self._walk.state.hold(value, _tensor_content)
        form.text("tensor", *content[:4])
        form.text(*content[4:])
        self.write(vars(value), form, name)

    def _reduced(self, value: Any, form: Form, name: str) -> None:
        """Write what pickle would write: the only general way to see the content of an object of a library."""
        kind = type(value)
        try:
            if not is_fixed(kind):
                self._walk.state.hold(value, _look_at(value))
            content = _content(value)
            if isinstance(content, str):
                self._global(value, content, form, name)
                return
        except Exception as error:  # noqa: BLE001  a library's own code may raise anything here
            about = f"{kind.__module__}.{kind.__qualname__}"
            self._walk.problem(
                f"{name} is a {about}, whose content cannot be compared ({type(error).__name__}); "
                "create it inside the step or pass what it is made from as a parameter"
            )
            return
        self._walk.note_distribution(kind.__module__)
        self._all("reduced", content, form, name)

    def _global(self, value: Any, global_name: str, form: Form, name: str) -> None:
        """Write what pickle would write as a name; `numpy.frompyfunc` makes things that are not found under theirs."""
        kind = type(value)
        holders = [
            module_name
            for module_name, module in sorted(sys.modules.items())
            if getattr(module, "__dict__", {}).get(global_name) is value and not self._walk.is_own_module(module_name)
        ]
        if not holders and kind.__module__ != "typing":
            self._walk.problem(f"{name} is a {_type_name(value)} without a name, whose content cannot be compared")
        form.text("global", global_name, *holders[:1])
        if kind.__module__ in ("typing", "typing_extensions"):
            meant = [asked(value, part) for part in _MEANINGS]
            if any(meant):
                self._all("means", meant, form, name)
        for module_name in holders[:1]:
            self._walk.note_distribution(module_name)
        self._walk.link(kind, form, name)


def _own(value: Any) -> Iterator[object]:
    """Yield all that an instance of a class of the project holds, to be compared."""
    kind: Any = type(value)
    yield kind
    if hasattr(value, "__dict__"):
        yield from pairs(vars(value))
    for member in _slots(kind).values():
        yield _of_slot(member, value)
    for base in _MUTABLE:
        if issubclass(kind, base):
            yield from _LOOKS[base](_CONTENT[base](value))
    if issubclass(kind, BaseException):
        yield value.args


@functools.lru_cache(maxsize=1000)
def _slots(kind: type) -> dict[str, types.MemberDescriptorType]:
    """Return the slots of a class; not by __slots__: the names there are not mangled."""
    found: dict[str, types.MemberDescriptorType] = {}
    for base in kind.__mro__:
        for slot, member in vars(base).items():
            if type(member) is types.MemberDescriptorType and member.__objclass__ is base:
                found.setdefault(slot, member)
    return found


def _content(value: Any) -> list[Any] | str:
    """Return what pickle would write."""
    reducer: Callable[[Any], Any] | None = copyreg.dispatch_table.get(type(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pickling, for iterators since Python 3.12
        reduced = reducer(value) if reducer else value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return reduced
    call, arguments, state, items, entries = (*reduced, None, None, None)[:5]
    return [call, arguments, state, list(items or ()), [list(entry) for entry in entries or ()]]


def _look_at(value: Any) -> Look:
    """Return how to see a change of an object of a library: by its pickle where it is made of new parts each time."""
    if is_same(tuple(_reduced(value)), tuple(_reduced(value))):
        return _reduced
    try:
        _pickled(value)
    except Exception:  # noqa: BLE001  a library's own code may raise anything here
        return _reduced  # which never is the same
    return _pickled


def _reduced(value: Any) -> Iterator[object]:
    return leaves(_content(value))


def _pickled(value: Any) -> Iterable[object]:
    return (digest_bytes(pickle.dumps(value)),)


def _tensor_content(value: Any) -> tuple[str, ...]:
    flat = value.detach().cpu().contiguous().reshape(-1)
    content = flat.view(sys.modules["torch"].uint8).numpy().tobytes()
    place = str(value.dtype), str(tuple(value.shape)), str(value.device)
    return _type_name(value), *place, str(value.requires_grad), digest_bytes(content)


def _of_slot(member: types.MemberDescriptorType, value: Any) -> Any:
    try:
        return member.__get__(value)
    except AttributeError:
        return _UNNAMED


def _is_tensor(kind: type) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and issubclass(kind, getattr(torch, "Tensor", ()))


def _is_flat(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> bool:
    kinds = set(map(type, value))
    return kinds | set(map(type, value.values())) <= _FLAT if isinstance(value, dict) else kinds <= _FLAT


def is_zenray(value: Any) -> bool:
    """Tell whether an object is one of ZenRay's own, such as a step."""
    return text_of(type(value), "__module__").partition(".")[0] == "zenray"


_HOMES_OF_CALLABLES = frozenset({"builtins", "functools", "types", "enum"})
# What a descriptor copies from its function, or notes of its place.
_COPIED = frozenset({"__module__", "__name__", "__qualname__", "__doc__", "__wrapped__", "__annotations__"}) | {
    "attrname",
    "func",
    "lock",
}
# What the types that a name was made for stand for.
_MEANINGS = ("__supertype__", "__bound__", "__constraints__", "__value__")
_SKIPPED_STATE = frozenset({"__dict__", "__weakref__", "__objclass__"})


def _parts_of_callable(value: Any) -> tuple[Any, ...] | None:
    """Take apart the callables and descriptors of the standard library."""
    kind = type(value)  # not isinstance: a proxy lies about its __class__
    if issubclass(kind, functools.partial | functools.partialmethod):
        return "partial", value.func, value.args, value.keywords, dict(vars(value))
    if kind is types.MethodType:
        return "method", value.__func__, value.__self__
    if issubclass(kind, staticmethod | classmethod):
        return "static" if issubclass(kind, staticmethod) else "class", value.__func__
    if issubclass(kind, property | types.DynamicClassAttribute):
        return "property", value.fget, value.fset, value.fdel
    if issubclass(kind, functools.cached_property):
        return "cached_property", value.func
    if kind is functools._lru_cache_wrapper:
        return "cached", value.__wrapped__, value.cache_parameters()["typed"]
    if kind is types.GenericAlias:
        return "alias", value.__origin__, value.__args__
    if kind is types.UnionType:
        return "union", *value.__args__
    return None


def _order(value: Any) -> tuple[str, bytes]:
    """Return a key to sort the elements of a set by, which have an order that differs between processes."""
    try:
        return "", encode(value)
    except TypeError:
        return _type_name(value), (text_of(value, "__qualname__") or repr(value)).encode()


def library_module(value: Any) -> str | None:
    """Return the module where a function, class or other object is found under its own name."""
    module, qualname = text_of(value, "__module__"), text_of(value, "__qualname__")
    if not module or not qualname:
        return None
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return module if found is value else None


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _has_foreign_state(kind: type, is_first_party: Callable[[type], bool]) -> bool:
    """Tell whether instances may hold state that neither attributes nor the content of a builtin show."""
    known = (object, BaseException, *_CONTENT)
    return any(
        base not in known and not is_first_party(base) and not issubclass(base, BaseException | Enum)
        for base in kind.__mro__
        if vars(base).keys() - {"__module__", "__doc__", "__dict__", "__weakref__", "__slots__"}
        and base.__module__ not in {"abc", "typing", "collections.abc", "builtins"}
    )


def _known_name(value: Any, name: str) -> tuple[str, str] | None:
    """Return module and name of an object that a library offers under the name it is used by, such as a logger."""
    module_name = type(value).__module__
    while module_name:
        namespace = getattr(sys.modules.get(module_name), "__dict__", {})
        for key in (text_of(value, "__name__"), name.rpartition(".")[2]):
            if namespace.get(key) is value:
                return module_name, key
        module_name = module_name.rpartition(".")[0]
    return None
