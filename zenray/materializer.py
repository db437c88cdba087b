"""How values of one type become an artifact's files and back; the registry that finds the class for a type.

Runs in: anywhere.
"""

import builtins
import dataclasses
import difflib
import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol

from zenray.errors import MaterializerError
from zenray.model import Json
from zenray.settings import find_repository

PLAIN = "zenray_materializers.plain:PlainMaterializer"  # of what Python itself has
ENTRY_POINT_GROUP = "zenray.materializers"


class ArtifactWriter(Protocol):
    """Takes an artifact's files, hashing them as they are written."""

    def open(self, name: str) -> IO[bytes]:
        """Open a new file for writing; use it in a ``with`` block. Not seekable."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write one file whole."""
        ...

    def copy(self, path: Path, name: str) -> None:
        """Copy a file of the local disk in, streaming, in bounded memory."""
        ...


class ArtifactReader(Protocol):
    """Gives an artifact's files."""

    @property
    def names(self) -> tuple[str, ...]:
        """The files, in the order they were written."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; seekable."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        ...

    def buffer(self, name: str) -> memoryview:
        """Return a file's bytes read-only, memory-mapped where the store is a local directory: free, and shared."""
        ...

    def extract(self, name: str, path: Path) -> None:
        """Copy a file to the local disk, streaming."""
        ...


class Materializer:
    """Writes and reads values of the types it names. Subclass it, or provide the same attributes.

    ``types`` are qualified names such as ``"pyarrow.lib.Table"``, so that nothing has to be imported to know them, or
    classes; a subclass of a named type is served too unless ``is_exact``. ``"@dataclass"`` serves dataclass instances.
    Equal values must give equal bytes: keys sorted, no time stamps. Early cutoff lives on that.
    """

    types: ClassVar[tuple[str | type, ...]] = ()
    is_exact: ClassVar[bool] = False
    is_pickle: ClassVar[bool] = False
    format_version: ClassVar[int] = 1

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write the value into files; what is returned is kept with the artifact and given to ``load``."""
        raise NotImplementedError

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the value; ``cls`` is the class it had when it was saved."""
        raise NotImplementedError

    def refuses(self, cls: type) -> str:
        """Say why no value of a class can be stored, and what to return instead; nothing where values may be.

        Asked before a run begins about the classes that steps say they return.
        """
        return ""

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return a few facts for people, each a short text, number or table: schema, shape, head, statistics."""
        return {}

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say whether a value can be, or contain, an instance of one of the user's own classes.

        The methods of such an instance are code that a step which takes it need not name anywhere, so the code of the
        step that made it counts for the cache too. Return False only where that can never be. ``metadata`` is what
        ``save`` returned.
        """
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class Registration:
    """One line of the registry: a type's qualified name, the class that serves it, and where it came from."""

    type_name: str
    materializer: str  # "module:Class"
    is_exact: bool
    is_pickle: bool
    origin: str  # "built in", "entry point NAME", a file, or "register()"


class Registry:
    """Finds the materializer for a type. Later registrations win over earlier ones, and all over the built-in ones."""

    def __init__(self) -> None:
        self._table: dict[str, Registration] = {}
        self._is_loaded = False
        self._paths: dict[str, str] = {}  # what table() and custom() return: both are asked for at every step
        self._custom: dict[str, str] = {}

    def register(self, materializer: type[Materializer], *, origin: str = "register()") -> type[Materializer]:
        """Add a materializer for all its types; usable as a decorator. Its class must be importable by name."""
        self._load()
        self._add(materializer, f"{materializer.__module__}:{materializer.__qualname__}", origin)
        return materializer

    def register_folder(self, folder: Path) -> None:
        """Import every ``*.py`` of a repository's ``materializers`` folder and register the classes defined there."""
        for path in sorted(folder.glob("*.py")):
            if path.name.startswith("_"):
                continue
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
            try:
                module = importlib.import_module(path.stem)
            except Exception as exc:
                raise MaterializerError(f"{path} cannot be imported: {type(exc).__name__}: {exc}") from exc
            file = getattr(module, "__file__", None) or "built in"
            if Path(file).resolve() != path.resolve():
                raise MaterializerError(
                    f"{path} cannot be imported: {path.stem!r} is the name of another module ({file}); rename the file"
                )
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == module.__name__ and getattr(value, "types", None):
                    self.register(value, origin=str(path))

    def registrations(self) -> tuple[Registration, ...]:
        """Return every line, in order of type name."""
        self._load()
        return tuple(self._table[name] for name in sorted(self._table))

    def table(self) -> dict[str, str]:
        """Return what a worker needs: type name to ``module:Class``, a leading ``=`` marking exact types."""
        self._load()
        if not self._paths:
            self._paths = {("=" if r.is_exact else "") + r.type_name: r.materializer for r in self._table.values()}
        return self._paths

    def custom(self) -> dict[str, str]:
        """Return the registrations beyond the built-in ones, type name to ``module:Class``."""
        self._load()
        return self._custom

    def near(self, cls: type) -> str:
        """Name types that have a materializer and a name like a class's, for an error."""
        named: dict[str, list[str]] = {}
        for name in [r.type_name for r in self.registrations()] + list(self._loaded_subclasses()):
            named.setdefault(name.rpartition(".")[2].lower(), []).append(name)
        near = difflib.get_close_matches(cls.__name__.lower(), named, cutoff=0.75)
        names = list(dict.fromkeys(name for short in near for name in named[short] if name != type_name(cls)))[:3]
        return f"near: {', '.join(map(repr, names))}" if names else "`zenray materializer list` shows what has one"

    def _loaded_subclasses(self) -> Iterator[str]:
        """Yield the names of the loaded classes that a materializer of their base takes."""
        for registration in self.registrations():
            cls = loaded(registration.type_name)
            if cls is not None and not registration.is_exact and registration.materializer != PLAIN:
                yield from map(type_name, subclasses(cls))

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        from zenray_materializers import TABLE  # the second package of this wheel: a table, nothing heavy

        for name, path, is_exact, is_pickle in TABLE:
            self._table[name] = Registration(name, path, is_exact, is_pickle, "built in")
        for point in entry_points(group=ENTRY_POINT_GROUP):
            try:
                self._add(point.load(), point.value, f"entry point {point.name}")
            except Exception as exc:
                raise MaterializerError(
                    f"the materializer of entry point {point.name!r} ({point.value}) cannot be loaded: {exc}; "
                    "repair or uninstall the distribution that offers it"
                ) from exc

    def _add(self, materializer: type[Materializer], path: str, origin: str) -> None:
        try:
            names = type_names(materializer)
        except MaterializerError as exc:
            raise MaterializerError(f"{path} ({origin}): {exc}") from exc
        if not names:
            raise MaterializerError(f"{path} names no types; set types = ('package.module.Class',)")
        for name in names:
            is_exact = getattr(materializer, "is_exact", False)
            is_pickle = getattr(materializer, "is_pickle", False)
            self._table[name] = Registration(name, path, is_exact, is_pickle, origin)
            self._custom[name] = path
        self._paths = {}


def type_names(materializer: type[Materializer]) -> list[str]:
    """Return the qualified names of the types that a materializer serves, which may name classes themselves."""
    types_ = materializer.types
    if not isinstance(types_, tuple | list) or not all(isinstance(t, str | type) for t in types_):
        raise MaterializerError(
            f"types = {types_!r} must be a tuple of classes or of their qualified names, such as "
            "types = ('package.module.Class',)"
        )
    return [type_name(t) if isinstance(t, type) else t for t in types_]


registry = Registry()


def loaded(name: str) -> type | None:
    """Return the class with a qualified name where its module has been imported."""
    module, _, short = name.rpartition(".")
    cls = getattr(sys.modules.get(module), short, None)
    return cls if isinstance(cls, type) else None


def subclasses(cls: type) -> Iterator[type]:
    """Yield the loaded subclasses of a class, at any depth; one that is reached in two ways comes twice."""
    found: type
    for found in type.__subclasses__(cls):
        yield found
        yield from subclasses(found)


def no_materializer(cls: type, why: str = "") -> str:
    """Say that a type cannot be stored, and why; what has a name like it; and the two ways out."""
    name = type_name(cls)
    short = cls.__name__
    return f"""{why or f"no materializer is registered for type {name!r}"} ({registry.near(cls)}).
Either write one, in a file such as materializers/{short.lower()}.py of the repository (`zenray init` marks it):

    from zenray import Materializer

    class {short}Materializer(Materializer):
        types = ({name!r},)

        def save(self, value, writer):
            writer.put("data", ...)              # bytes that describe the value

        def load(self, reader, cls, metadata):
            return cls(...)                      # from reader.read("data")

or opt in to pickle for this step, which ties the artifact to this code and these versions: @step(allow_pickle=True)"""


def register_repository() -> None:
    """Register the materializers of the repository this process works in; cheap when done already."""
    repository = find_repository()
    if repository is not None:
        if str(repository) not in sys.path:
            sys.path.append(str(repository))  # materializers name the project's own modules
        registry.register_folder(repository / "materializers")


_PUBLIC = {"pathlib._local": "pathlib"}  # where Python 3.13 keeps it, so that stored names are the same everywhere


def type_name(cls: type) -> str:
    """Return a class's qualified name; a class of the main script gets the script's module name."""
    return f"{module_name_of(cls)}.{cls.__qualname__}"


def module_name_of(thing: Any) -> str:
    """Return the module of a class or function; of one in the main script the name that the script is imported by."""
    name = _PUBLIC.get(thing.__module__, thing.__module__)
    return main_module_name() if name == "__main__" else str(name)


def main_module_name() -> str:
    """Return the name the main script has when it is imported: its file's stem, or ``__main__`` without a file."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name.removesuffix(".__main__"))
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def find(cls: type, table: Mapping[str, str]) -> str | None:
    """Return ``module:Class`` of the materializer for a class, by its nearest base, or None."""
    exact = table.get("=" + type_name(cls))
    if exact is not None:
        return exact
    for base in cls.__mro__[:-1]:
        path = table.get(f"{base.__module__}.{base.__qualname__}") or table.get(type_name(base))
        if path is not None:
            return path
    # After the bases: a dataclass that is also an estimator or a module has state outside its fields.
    return table.get("@dataclass") if dataclasses.is_dataclass(cls) else None


_active: Mapping[str, str] | None = None


def use_table(table: Mapping[str, str] | None) -> None:
    """Make a table, as the driver resolved it, the one this process finds materializers in; None for the registry's."""
    global _active
    _active = table


def active_table() -> Mapping[str, str]:
    """Return the table of this process, for materializers that save values inside of values."""
    return registry.table() if _active is None else _active


_instances: dict[str, Materializer] = {}


def load_materializer(path: str) -> Materializer:
    """Return the materializer of ``module:Class``, imported on first use."""
    found = _instances.get(path)
    if found is None:
        module_name, _, class_name = path.partition(":")
        try:
            cls = _resolve(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as exc:
            raise MaterializerError(
                f"the materializer {path!r} cannot be imported here: {exc}; install the package that provides it"
            ) from exc
        # The path may come from a stored file: nothing is called that isn't a materializer.
        if not (isinstance(cls, type) and hasattr(cls, "save") and hasattr(cls, "load")):
            raise MaterializerError(f"{path!r} is not a materializer: it must be a class with 'save' and 'load'")
        found = _instances[path] = cls()
    return found


def load_class(name: str) -> type:
    """Return the class with a qualified name, importing its module; MaterializerError where it is not there."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            module = _module(".".join(parts[:cut]))
        except ImportError:
            continue
        try:
            cls = _resolve(module, ".".join(parts[cut:]))
        except AttributeError:
            break
        if isinstance(cls, type):
            return cls
        break
    raise MaterializerError(
        f"the class {name!r} of a stored artifact cannot be imported here; "
        "put its module on the path (run from the repository it was written in) or install its package"
    )


def _module(name: str) -> Any:
    """Import a module; the main script, under its own name, is what runs already."""
    if name == main_module_name() and name not in sys.modules:
        return sys.modules["__main__"]
    if name == "builtins":
        return _BUILTINS
    return importlib.import_module(name)


class _Builtins:
    """The classes that say they are in ``builtins``; some, such as ``NoneType``, are only to be had from ``types``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(builtins, name, None) or getattr(types, name)


_BUILTINS = _Builtins()


def _resolve(root: Any, qualname: str) -> Any:
    for part in qualname.split("."):
        root = getattr(root, part)
    return root
