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
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from zenray.fingerprint.bytecode import Reference, is_call, nested_codes, normal_form
from zenray.fingerprint.origin import Origin, origin, origin_of_module
from zenray.fingerprint.parts import asked, text_of

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
    r"|add_type|add\w*Level\w*|dictConfig|fileConfig|invalidate_caches|reload|chdir"
)
_MUTATORS = frozenset(
    {"update", "append", "extend", "insert", "add", "clear", "pop", "popitem", "setdefault", "remove", "discard"}
    | {"appendleft", "sort", "reverse", "write", "__setitem__", "__delitem__", "start", "run"}
)
READERS = frozenset({"get", "copy", "keys", "values", "items", "index", "count", "union", "issubset", "intersection"})
_LOGGING = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log", "isEnabledFor", "getChild"})
CONTAINERS = (list, dict, set, bytearray)
_MAKERS = ("__new__", "__init__", "__post_init__", "__attrs_post_init__", "__attrs_pre_init__", "model_post_init")
_STORES = frozenset({"STORE_ATTR", "DELETE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"})


@dataclass(slots=True)
class _Traits:
    """What the code of a function, and all that it calls, may do."""

    acts: bool = False
    stores: bool = False  # into something that is not its own self
    stores_attributes: bool = False
    meets_library: bool = False  # calls a function of a library, which may return something that others share
    meets_foreign: bool = False  # something of a library that may be stored into

    def join(self, other: "_Traits") -> None:
        """Take over what something that is called may do."""
        self.acts |= other.acts
        self.stores |= other.stores
        self.stores_attributes |= other.stores_attributes
        self.meets_library |= other.meets_library
        self.meets_foreign |= other.meets_foreign

    @property
    def is_pure(self) -> bool:
        is_shared = (self.stores and self.meets_foreign) or (self.stores_attributes and self.meets_library)
        return not self.acts and not is_shared


class Purity:
    """Looks through functions; keeps what it found."""

    def __init__(self) -> None:
        self._known: dict[tuple[types.CodeType, int], _Traits] = {}

    def of_function(self, function: FunctionType) -> bool:
        """Tell whether a function of the project acts on nothing else; one of a library is taken by its name."""
        if not is_first_party_function(function):
            return _is_pure_of_library(function, function.__name__)
        return self._traits(function, None).is_pure

    def of_method(self, kind: type | None, name: str) -> bool:
        """Tell whether a method of an instance of a class does; `object` is any harmless value of a library."""
        if kind is None:
            return False
        found = unwrapped(next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None))
        if type(found) is FunctionType and is_first_party_function(found):
            return self._traits(found, kind).is_pure
        if kind in CONTAINERS:
            return True
        if kind.__module__ == "logging":
            return name in _LOGGING
        if kind.__module__ == "os":
            return name in READERS
        is_known = kind is object or kind.__module__ == "builtins" or _is_pure_place(kind.__module__)
        return is_known and name not in _MUTATORS and not SETTER.fullmatch(name)

    def of_call(self, called: Any, given: Iterable[Any], *, name: str) -> bool:
        """Tell whether a call does, of something under a name that is no method of an instance, with arguments."""
        called = unwrapped(called)
        if called is None:
            return False
        if called is setattr or called is delattr:
            owner = next(iter(given), None)
            return owner is not None and not _is_foreign(owner)
        traits = _Traits()
        self._meet_called(called, name, traits)
        traits.meets_foreign |= traits.stores and any(map(_is_foreign, given))
        return traits.is_pure

    def _meet_called(self, called: Any, name: str, traits: _Traits) -> None:
        kind = type(called)
        if kind is FunctionType and is_first_party_function(called):
            traits.join(self._traits(called, None))
        elif issubclass(kind, type) and is_first_party_class(called):
            traits.join(self._of_class(called))
        elif kind is FunctionType or issubclass(kind, type) or kind in _BUILTIN_KINDS:
            traits.acts |= not _is_pure_of_library(called, name)
        elif is_first_party_class(kind):
            method = vars(kind).get("__call__")
            traits.acts |= type(method) is not FunctionType or not self._traits(method, kind).is_pure
        else:
            traits.acts |= not _is_pure_place(kind.__module__)

    def _of_class(self, cls: type) -> _Traits:
        found = _Traits()
        for base in (*cls.__mro__, *inspect.getmro(type(cls))):
            if base in (object, type):
                continue
            if is_first_party_class(base):
                names = _MAKERS if issubclass(cls, base) else ("__call__",)
                methods = (unwrapped(vars(base).get(name)) for name in names)
                for method in methods:
                    if type(method) is FunctionType:
                        found.join(self._traits(method, cls))
            elif not _is_pure_of_library(base, base.__name__) and not is_quiet_name(base.__module__):
                found.acts = True
        return found

    def _traits(self, function: FunctionType, owner: type | None) -> _Traits:
        key = (function.__code__, id(owner))
        known = self._known.get(key)
        if known is not None:
            return known
        found = self._known[key] = _Traits()  # itself, where it calls itself
        codes = list(nested_codes(function.__code__))
        for code in codes:
            stores = set(_stores_elsewhere(code))
            found.stores |= bool(stores)
            found.stores_attributes |= bool(stores & {"STORE_ATTR", "DELETE_ATTR"})
        for name in {name for code in codes for name in code.co_names}:
            method = unwrapped(_of_mro(owner, name)) if owner else None
            if type(method) is FunctionType and is_first_party_function(method):
                found.join(self._traits(method, owner))
        form = normal_form(function.__code__)
        for reference in form.references:
            if not reference.is_guess:
                self._meet(reference, function.__globals__, found)
        for statement in form.imports:
            module = sys.modules.get(statement.module)
            for name in statement.names if module is not None and not is_own_module(module) else ():
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
            if type(method) is FunctionType and is_first_party_function(method):
                found.join(self._traits(method, value))
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
        found.acts |= not self.of_method(type(value), name)

    def _meet_foreign(self, value: Any, name: str, attributes: tuple[str, ...], found: _Traits) -> None:
        if attributes and (attributes[0] in _MUTATORS or SETTER.fullmatch(attributes[0])):
            found.acts = True
        if callable(value):
            found.acts |= not _is_pure_of_library(value, name)
            found.meets_library |= not isinstance(value, type)
            found.meets_foreign |= isinstance(value, type) and not is_quiet_name(value.__module__)
        elif value is None or issubclass(type(value), (*CONTAINERS, ModuleType)) or not _is_constant(value):
            found.meets_foreign = True


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
    module_name = text_of(value, "__module__")
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
