"""Whether calling something has an effect on anything but what it returns and what belongs to the project.

Runs in: driver.
"""

import builtins
import dis
import functools
import importlib
import inspect
import itertools
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from zenray.fingerprint.bytecode import Reference, is_call, nested_codes, normal_form
from zenray.fingerprint.origin import Origin, origin, origin_of_module
from zenray.fingerprint.parts import asked, text_of
from zenray.fingerprint.state import carried

# Decorators of these modules have no effect but on what they decorate, which is followed by value.
QUIET_MODULES = frozenset(
    {"abc", "builtins", "contextlib", "dataclasses", "enum", "functools", "typing", "types", "typing_extensions"}
    | {"collections", "collections.abc", "_collections_abc", "warnings", "string", "_py_warnings"}
)
QUIET_LIBRARIES = frozenset(
    {"attr", "attrs", "pydantic", "pydantic_settings", "msgspec", "zenray", "zenray_materializers", "numpy", "numba"}
    | {"tenacity", "wrapt", "beartype", "jaxtyping", "typeguard", "deprecated", "cachetools", "pytest", "_pytest"}
)
# Functions of these only compute; those of other modules of the standard library may act.
_PURE_STDLIB = frozenset(
    {"_collections", "_functools", "_operator", "_struct", "_thread", "abc", "argparse", "ast", "base64", "binascii"}
    | {"collections", "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "enum", "fractions"}
    | {"fnmatch", "functools", "genericpath", "glob", "hashlib", "heapq", "html", "importlib", "inspect", "io"}
    | {"ipaddress", "itertools", "json", "math", "ntpath", "numbers", "operator", "os.path", "pathlib", "platform"}
    | {"posixpath", "re", "shlex", "statistics", "string", "struct", "textwrap", "time", "timeit", "tomllib", "types"}
    | {"typing", "unicodedata", "urllib", "uuid", "zoneinfo", "decimal", "_decimal", "_datetime", "threading", "queue"}
    | {"secrets", "tempfile", "weakref", "collections.abc", "_io", "_hashlib", "_blake2", "_sha2", "_json", "bisect"}
    | {"contextvars", "_contextvars", "keyword", "pprint", "reprlib", "traceback", "getpass", "calendar", "_strptime"}
)
_PURE_LIBRARIES = frozenset(
    {"numpy", "pandas", "polars", "pyarrow", "scipy", "pydantic", "pydantic_settings", "attr", "attrs", "msgspec"}
    | {"dateutil", "yaml", "orjson", "annotated_types", "typing_extensions", "pytz", "packaging", "sqlalchemy"}
    | {"rich", "typer", "click", "zenray", "zenray_materializers"}
)
_ACTING_BUILTINS = frozenset({"exec", "eval", "compile", "setattr", "delattr", "__import__", "input", "breakpoint"})
_PURE_OF_OS = frozenset(
    {"getenv", "getcwd", "getpid", "cpu_count", "listdir", "fspath", "uname", "stat", "scandir", "walk", "getlogin"}
    | {"getLogger", "Formatter", "StreamHandler", "getLevelName"}
)
SETTER = re.compile(
    r"(manual_)?seed|set(_\w+|attr|locale|context|err|printoptions|default\w*|[A-Z]\w*)|register\w*|environ|putenv"
    r"|(rc)?[Pp]arams|options|configure\w*|basicConfig|patch\w*|install\w*|enable\w*|disable\w*|use|getcontext|purge"
    r"|add_(?!argument|parser|subparsers|mutually|prefix|suffix)\w+|add\w*Level\w*|dictConfig|fileConfig|reload|chdir"
    r"|invalidate_caches|(set|del)item|i(add|concat|or|and|sub|xor)|listen\w*|subscribe\w*|attach\w*|hook\w*"
)
_MUTATORS = frozenset(
    {"update", "append", "extend", "insert", "add", "clear", "pop", "popitem", "setdefault", "remove", "discard"}
    | {"appendleft", "sort", "reverse", "write", "__setitem__", "__delitem__", "start", "run"}
)
READERS = frozenset(
    {"get", "copy", "keys", "values", "items", "index", "count", "union", "issubset", "intersection"}
) | {
    "fromkeys",
    "fromhex",
}
_LOGGING = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log", "isEnabledFor", "getChild"})
CONTAINERS = (list, dict, set, bytearray)
_MAKERS = ("__new__", "__init__", "__post_init__", "__attrs_post_init__", "__attrs_pre_init__", "model_post_init")
# What an object does without being called by name, but not all of it on any occasion.
_UNNAMED = re.compile(r"__\w+__")
_NO_OPERATORS = frozenset(
    {"__call__", "__del__", "__enter__", "__exit__", "__aenter__", "__aexit__", "__init_subclass__", "__set_name__"}
    | {"__class_getitem__", "__getattr__", "__getattribute__", "__setattr__", "__reduce__", "__getstate__", *_MAKERS}
)
_STORES = frozenset({"STORE_ATTR", "DELETE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"})


@dataclass(slots=True)
class _Traits:
    """What code may do by itself, and what it may go on to."""

    calls: "list[_Call]" = field(default_factory=list)
    made: set[type] = field(default_factory=set)  # classes of the project of which it may make instances
    names: set[str] = field(default_factory=set)  # of attributes that it may take of them
    acts: bool = False
    stores: bool = False  # into something that is not its own self
    stores_attributes: bool = False
    meets_library: bool = False  # calls a function of a library, which may return something that others share
    meets_foreign: bool = False  # something of a library that may be stored into

    def join(self, other: "_Traits") -> None:
        """Take over what other code does, but for what it calls."""
        self.made |= other.made
        self.names |= other.names
        self.acts |= other.acts
        self.stores |= other.stores
        self.stores_attributes |= other.stores_attributes
        self.meets_library |= other.meets_library
        self.meets_foreign |= other.meets_foreign

    @property
    def is_pure(self) -> bool:
        is_shared = (self.stores and self.meets_foreign) or (self.stores_attributes and self.meets_library)
        return not self.acts and not is_shared


_Call = tuple[FunctionType, type | None]  # of the project, as a method of a class or not


class Purity:
    """Looks through functions; keeps what it found."""

    def __init__(self) -> None:
        self._known: dict[tuple[types.CodeType, int], _Traits] = {}

    def of_function(self, function: FunctionType) -> bool:
        """Tell whether a function of the project acts on nothing else; one of a library is taken by its name."""
        if not is_first_party_function(function):
            return _is_pure_of_library(function, function.__name__)
        return self._with_all(_Traits([(function, None)])).is_pure

    def of_method(self, kind: type | None, name: str) -> bool:
        """Tell whether a method of an instance of a class does; `object` is any harmless value of a library."""
        if kind is None:
            return False
        found = unwrapped(_of_mro(kind, name))
        if is_first_party_function(found):
            return self._with_all(_Traits([(found, kind)])).is_pure
        return _is_pure_method_of_library(kind, name)

    def of_operators(self, kind: type | None, names: Iterable[str] = ()) -> bool:
        """Tell whether what instances of a class do without a call does; by `names`, or all that operators do."""
        if kind is None or not is_first_party_class(kind):
            return True
        wanted = set(names) or {n for n in _all_names(kind) if _UNNAMED.fullmatch(n)} - _NO_OPERATORS
        return self._with_all(_Traits(list(_methods(kind, wanted)))).is_pure

    def of_values(self, values: Iterable[Any], names: Iterable[str]) -> bool:
        """Tell whether functions that can be reached from values do, and methods of those names of instances there."""
        start = _Traits()
        self._reach(values, start)
        start.calls += [call for kind in start.made for call in _methods(kind, names)]
        start.made.clear()  # what else instances do is told by `of_operators`
        return self._with_all(start).is_pure

    def of_call(self, called: Any, given: Iterable[Any], *, name: str) -> bool:
        """Tell whether a call does, of something under a name that is no method of an instance, with arguments."""
        called = unwrapped(called)
        if called is None:
            return False
        if called is setattr or called is delattr:
            owner = next(iter(given), None)
            return owner is not None and not _is_foreign(owner)
        start = _Traits()
        self._meet_called(called, name, start)
        start.made.clear()  # what is made here is used where this can be seen
        traits = self._with_all(start)
        traits.meets_foreign |= traits.stores and any(map(_is_foreign, given))
        return traits.is_pure

    def _with_all(self, start: _Traits) -> _Traits:
        """Return what code does together with all that it calls, and with what the instances that it makes may do."""
        found = _Traits()
        pending, seen = [start], set()
        while pending and not found.acts:
            traits = pending.pop()
            found.join(traits)
            calls = list(traits.calls)
            if not pending:
                for cls in found.made:
                    calls += _methods(cls, {n for n in _all_names(cls) if n in found.names or _UNNAMED.fullmatch(n)})
            for function, owner in calls:
                key = function.__code__, id(owner)
                if key not in seen:
                    seen.add(key)
                    pending.append(self._traits(function, owner))
        return found

    def _meet_called(self, called: Any, name: str, found: _Traits) -> None:
        kind = type(called)
        if kind is FunctionType and is_first_party_function(called):
            found.calls.append((called, None))
        elif issubclass(kind, type) and is_first_party_class(called):
            self._meet_class(called, found)
        elif kind is FunctionType or issubclass(kind, type) or kind in _BUILTIN_KINDS:
            found.acts |= not _is_pure_of_library(called, name)
        elif is_first_party_class(kind):
            methods = list(_methods(kind, {"__call__"}))
            found.calls += methods
            found.acts |= not methods
        else:
            found.acts |= not _is_pure_place(kind.__module__)

    def _meet_class(self, cls: type, found: _Traits) -> None:
        found.made.add(cls)
        for group in map(vars(cls).get, ("__pydantic_decorators__",)):  # validators
            infos = (info for field in getattr(group, "__slots__", ()) for info in asked(group, field).values())
            self._reach([unwrapped(asked(info, "func")) for info in infos], found)
        for base in (*cls.__mro__, *inspect.getmro(type(cls))):
            if base in (object, type):
                continue
            if is_first_party_class(base):
                names = _MAKERS if issubclass(cls, base) else ("__call__",)
                methods = (unwrapped(vars(base).get(name)) for name in names)
                found.calls += [(method, cls) for method in methods if is_first_party_function(method)]
            elif not _is_pure_of_library(base, base.__name__) and not is_quiet_name(base.__module__):
                found.acts = True

    def _reach(self, values: Iterable[Any], found: _Traits) -> None:
        """Note the functions and classes of the project that values hold or are, as if all of them were called."""
        pending, seen = list(values), set[int]()
        while pending and len(seen) < _REACH_LIMIT:
            value = pending.pop()
            if id(value) in seen or type(value) in _PLAIN:
                continue
            seen.add(id(value))
            inner = unwrapped(value)
            kind = type(inner)
            if is_first_party_function(inner):
                found.calls.append((inner, None))
            elif isinstance(inner, type):
                if is_first_party_class(inner):
                    self._meet_class(inner, found)
            elif issubclass(kind, dict | types.MappingProxyType):
                pending += (*inner, *inner.values())
            elif issubclass(kind, list | tuple | set | frozenset):
                pending += inner
            elif is_first_party_class(kind) and not issubclass(kind, ModuleType):
                found.made.add(kind)
                pending += getattr(inner, "__dict__", {}).values()
            if issubclass(type(value), functools.partial):
                pending += (*value.args, *value.keywords.values())
            elif type(value) is types.MethodType:
                pending.append(value.__self__)

    def _traits(self, function: FunctionType, owner: type | None) -> _Traits:
        key = (function.__code__, id(owner))
        known = self._known.get(key)
        if known is not None:
            return known
        found = self._known[key] = _Traits()
        codes = list(nested_codes(function.__code__))
        for code in codes:
            stores = set(_stores_elsewhere(code))
            found.stores |= bool(stores)
            found.stores_attributes |= bool(stores & {"STORE_ATTR", "DELETE_ATTR"})
        found.names = {name for code in codes for name in code.co_names}
        if owner is not None:
            found.calls += _methods(owner, found.names)
        self._reach([*carried(function)], found)
        form = normal_form(function.__code__)
        for reference in form.references:
            if not reference.is_guess:
                self._meet(reference, function.__globals__, found)
        for statement in form.imports:
            module = sys.modules.get(statement.module)
            if statement.level or (module is not None and is_own_module(module)):
                found.acts = True  # whatever the import of that module does
                continue
            for name in statement.names if module is not None else ():
                self._meet_foreign(vars(module).get(name), name, (), found)
        calls_setter = any(SETTER.fullmatch(name) for code in codes for name in _methods_of_unknown(code))
        found.acts |= calls_setter
        return found

    def _meet(self, reference: Reference, namespace: Mapping[str, Any], found: _Traits) -> None:
        """Note what code may do with something that it names."""
        attributes = list(reference.attributes)
        name = reference.name
        value = sys.modules.get(name) if reference.imported else namespace.get(name, getattr(builtins, name, None))
        is_foreign = False
        while isinstance(value, ModuleType) and attributes:
            is_foreign = not is_own_module(value)
            name = attributes.pop(0)
            value = vars(value).get(name)
        if not is_foreign:
            self._reach([value], found)
        value = unwrapped(value)
        if is_foreign:
            self._meet_foreign(value, name, tuple(attributes), found)
        elif value is None or isinstance(value, ModuleType):
            return
        elif attributes and not isinstance(value, type):
            if not issubclass(type(value), CONTAINERS) or _is_shared(value, name):
                self._meet_method(value, attributes[0], found)
        elif isinstance(value, type) and attributes:
            method = unwrapped(_of_mro(value, attributes[0]))
            if is_first_party_function(method):
                found.calls.append((method, value))
            elif issubclass(value, CONTAINERS):
                found.acts |= attributes[0] in _MUTATORS
            elif _is_foreign(value):
                self._meet_foreign(value, attributes[0], (), found)
        elif callable(value) and not _is_foreign(value):
            self._meet_called(value, name, found)
        elif _is_foreign(value) or _is_shared(value, name):
            self._meet_foreign(value, name, (), found)

    def _meet_method(self, value: Any, name: str, found: _Traits) -> None:
        if issubclass(type(value), CONTAINERS):
            found.acts |= name in _MUTATORS
            return
        kind = type(value)
        method = unwrapped(_of_mro(kind, name))
        if is_first_party_function(method):
            found.calls.append((method, kind))
        else:
            found.acts |= not _is_pure_method_of_library(kind, name)

    def _meet_foreign(self, value: Any, name: str, attributes: tuple[str, ...], found: _Traits) -> None:
        if attributes and (attributes[0] in _MUTATORS or SETTER.fullmatch(attributes[0])):
            found.acts = True
        if callable(value):
            found.acts |= not _is_pure_of_library(value, name)
            found.meets_library |= not isinstance(value, type)
            found.meets_foreign |= isinstance(value, type) and not is_quiet_name(value.__module__)
        elif value is None or issubclass(type(value), (*CONTAINERS, ModuleType)) or not _is_constant(value):
            found.meets_foreign = True


_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, ModuleType})
_REACH_LIMIT = 10_000
_BUILTIN_KINDS = (types.BuiltinFunctionType, types.MethodType, types.WrapperDescriptorType, types.MethodDescriptorType)


def unwrapped(value: Any) -> Any:
    """Return the function of the project that something made of one calls, else the thing itself."""
    for _ in range(10):
        kind = type(value)
        if issubclass(kind, classmethod | staticmethod | types.MethodType):
            value = value.__func__
        elif issubclass(kind, functools.partial):
            value = value.func
        elif issubclass(kind, property):
            value = value.fget
        else:
            inner = asked(value, "__wrapped__") if not issubclass(kind, type) else None
            is_own = kind is FunctionType and is_first_party_function(value)
            if is_own or type(inner) is not FunctionType:
                return value
            value = inner
    return value


def is_first_party_function(function: Any) -> bool:
    """Tell whether something is a function of the project."""
    if type(function) is not FunctionType:
        return False
    namespace = function.__globals__
    return origin(str(namespace.get("__name__", "")), namespace.get("__file__")) is Origin.FIRST_PARTY


def is_own_module(module: ModuleType) -> bool:
    """Tell whether a loaded module is the project's own."""
    return origin_of_module(module) is Origin.FIRST_PARTY


def is_quiet_name(module_name: str) -> bool:
    """Tell whether what a module offers acts only on what it is given."""
    return module_name in QUIET_MODULES or module_name.partition(".")[0] in QUIET_LIBRARIES


def is_first_party_class(cls: type) -> bool:
    """Tell whether a class is the project's own."""
    module = sys.modules.get(cls.__module__)
    return module is None or is_own_module(module)


def _is_foreign(value: Any) -> bool:
    """Tell whether something of a library may be stored into: a module, a class, an object or what belongs to one."""
    if value is None or isinstance(value, (str, int, float, tuple, *CONTAINERS)):
        return False
    module = value if isinstance(value, ModuleType) else sys.modules.get(text_of(value, "__module__"))
    return module is not None and not is_own_module(module) and module is not builtins


def _is_shared(value: Any, name: str) -> bool:
    """Tell whether a container that a module has under a name is one of a library's."""
    if not issubclass(type(value), CONTAINERS):
        return False
    holders = [m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get(name) is value]
    return any(isinstance(holder, ModuleType) and not is_own_module(holder) for holder in holders)


def _is_constant(value: Any) -> bool:
    return isinstance(value, str | bytes | int | float | complex | tuple | frozenset)


def _is_pure_place(module_name: str) -> bool:
    top = module_name.partition(".")[0]
    return top in _PURE_LIBRARIES or top in _PURE_STDLIB or module_name in _PURE_STDLIB


def _is_pure_of_library(value: Any, name: str) -> bool:
    """Tell by the place and the name of something whether calling it only computes."""
    module_name = text_of(value, "__module__") or text_of(asked(value, "__self__"), "__module__")
    if SETTER.fullmatch(name) or any(value is known for known in (importlib.import_module, builtins.__import__)):
        return False
    if module_name == "builtins" or (not module_name and vars(builtins).get(name) is value):
        return name not in _ACTING_BUILTINS
    if isinstance(value, type):
        is_stdlib = module_name.partition(".")[0] in sys.stdlib_module_names
        return name != "Config" and (_is_pure_place(module_name) or (is_stdlib and "mock" not in module_name))
    if module_name in ("os", "posix", "nt", "logging"):
        return name in _PURE_OF_OS
    return _is_pure_place(module_name) and "random" not in module_name


def _is_pure_method_of_library(kind: type, name: str) -> bool:
    if kind in CONTAINERS:
        return True
    if kind.__module__ == "logging":
        return name in _LOGGING
    if kind.__module__ == "os":
        return name in READERS
    is_known = kind is object or kind.__module__ == "builtins" or _is_pure_place(kind.__module__)
    return is_known and name not in _MUTATORS and not SETTER.fullmatch(name)


def _methods(cls: type, names: Iterable[str]) -> Iterator[_Call]:
    """Yield the methods and properties of those names that the project has written for a class."""
    found = (unwrapped(_of_mro(cls, name)) for name in names)
    return ((method, cls) for method in found if is_first_party_function(method))


def _all_names(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if is_first_party_class(base) for name in vars(base)}


def _of_mro(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _stores_elsewhere(code: types.CodeType) -> Iterator[str]:
    """Yield how code stores into anything but attributes of its first parameter, if that is called self."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "NOP", "EXTENDED_ARG")]
    is_method = code.co_varnames[:1] == ("self",) or code.co_varnames[:1] == ("s",)
    for before, step in itertools.pairwise(steps):
        if step.opname in _STORES:
            is_self = is_method and before.opname.startswith("LOAD_FAST") and before.argval == code.co_varnames[0]
            if not (is_self and step.opname.endswith("ATTR")):
                yield step.opname


def _methods_of_unknown(code: types.CodeType) -> set[str]:
    """Return the attributes that are called where they are looked up, whatever they belong to."""
    return {s.argval for s in dis.get_instructions(code) if s.opname in ("LOAD_METHOD", "LOAD_ATTR") and is_call(s)}
