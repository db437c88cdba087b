"""Where modules come from: this project, the standard library, or an installed distribution.

Runs in: driver.
"""

import functools
import importlib.machinery
import os
import re
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType

from zenray.hashing import digest_value
from zenray.settings import IGNORE_FILE

_STDLIB = {os.path.dirname(path) for path in (os.__file__, os.path.realpath(os.__file__))}  # noqa: PTH120
_INSTALLED = re.compile(r"[\\/](?:site|dist)-packages[\\/]")
_PACKAGES = re.compile(r"(?:site|dist)-packages[\\/]?$")
_OWN = frozenset({"zenray", "zenray_materializers"})
# Not ".zenray": a run makes that folder, and the root must not move between the first run and the second.
_ROOT_MARKS = (".git", "pyproject.toml", "setup.py", IGNORE_FILE)  # the last is what a cluster gets, without .git


class Origin(Enum):
    """Whose code a module is."""

    FIRST_PARTY = "first-party"
    STDLIB = "standard library"
    INSTALLED = "installed"
    ZENRAY = "zenray"


@dataclass(frozen=True, slots=True)
class Located:
    """A module found without importing it: its file, and where its submodules are."""

    name: str
    file: str | None
    folders: tuple[str, ...]
    is_package: bool


def origin(name: str, file: str | None) -> Origin:
    """Tell whose code a module is, by its name and file."""
    top = name.partition(".")[0]
    if top in _OWN:
        return Origin.ZENRAY
    if file is None:
        is_builtin = top in sys.builtin_module_names or (top in sys.stdlib_module_names and top != "__main__")
        return Origin.STDLIB if is_builtin else Origin.FIRST_PARTY
    if _INSTALLED.search(file):
        return Origin.INSTALLED
    if file.startswith("<frozen") or any(file.startswith(folder + os.sep) for folder in _STDLIB):
        return Origin.STDLIB
    return Origin.FIRST_PARTY


def origin_of_module(module: ModuleType) -> Origin:
    """Tell whose code a loaded module is, or an object that a module has put in its place."""
    if not issubclass(type(module), ModuleType):
        return origin(type(module).__module__, None)
    return origin(module.__name__, module_file(module))


def module_file(module: ModuleType) -> str | None:
    """Return the file of a module; for a package without ``__init__`` a path inside its first folder."""
    # Not getattr: a module may have a __getattr__ of its own, and code of the project must not run here.
    file = vars(module).get("__file__")
    if file is not None:
        return str(file)
    folders = list(vars(module).get("__path__") or ())
    return str(Path(folders[0], "__init__.py")) if folders else None


def display_name(module_name: str) -> str:
    """Return the name of a module for people; a script is called like the module it would be if imported."""
    if module_name != "__main__":
        return module_name
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def project_root(file: str) -> str:
    """Return the folder that paths of a project are relative to: the nearest one above with a mark of a project."""
    folder = Path(file).absolute().parent
    for parent in (folder, *folder.parents):
        if any((parent / mark).exists() for mark in _ROOT_MARKS):
            return str(parent)
    return str(folder)


def locate(name: str) -> Located | None:
    """Find a module without importing it or its packages; None where there is none."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        folders = tuple(map(str, vars(loaded).get("__path__") or ()))
        return Located(name, vars(loaded).get("__file__"), folders, "__path__" in vars(loaded))
    parent, _, _ = name.rpartition(".")
    path: list[str] | None = None
    if parent:
        package = locate(parent)
        if package is None or not package.is_package:
            return None
        path = list(package.folders)
    try:
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((found for found in specs if found is not None), None)
        return _located(spec) if spec is not None else None
    except KeyError:  # a folder without __init__ inside of another one: importlib wants the outer one imported
        folders = tuple(str(Path(outer, name.rpartition(".")[2])) for outer in path or ())
        return Located(name, None, tuple(f for f in folders if Path(f).is_dir()), is_package=True)


def _located(spec: importlib.machinery.ModuleSpec) -> Located:
    folders = tuple(map(str, spec.submodule_search_locations or ()))
    file = spec.origin if spec.has_location else None
    return Located(spec.name, file, folders, spec.submodule_search_locations is not None)


def distribution_of(module_name: str) -> tuple[str, str] | None:
    """Return the installed distribution (name, version) that a module belongs to; None if there is none.

    Reads the names in one folder of sys.path; the contents of the distributions' lists of files are read only
    where no distribution is called like the module. The module is not imported.
    """
    found = _metadata_folder(module_name)
    return found and found[1:]


def distribution_state(module_name: str) -> tuple[str, str, str] | None:
    """Return name, version and a digest of the files, which is empty where the version alone is exact.

    An index never has two builds of one version of a wheel. What was installed from elsewhere, such as by
    ``pip install .``, has a ``direct_url.json`` (PEP 610) and may change without its version.
    """
    found = _metadata_folder(module_name)
    if found is None:
        return None
    folder, name, version = found
    record = Path(folder, "RECORD")
    if not Path(folder, "direct_url.json").exists() or not record.exists():
        return name, version, ""
    stat = record.stat()
    return name, version, _recorded(str(record), stat.st_mtime_ns, stat.st_size)


def release_of(module_name: str) -> tuple[str, str, str] | None:
    """Return `distribution_state` of an installed module; None for the project's own and where nothing is known."""
    located = locate(module_name.partition(".")[0])
    folders = located.folders[:1] if located else ()
    file = (located.file if located else None) or "".join(f"{folder}/__init__.py" for folder in folders)
    is_installed = bool(file) and origin(module_name, file) is Origin.INSTALLED
    return distribution_state(module_name) if is_installed else None


def all_releases() -> dict[str, str]:
    """Return the versions of all installed distributions by normalised name, the first of sys.path of each name."""
    found: dict[str, str] = {}
    for entry in filter(_PACKAGES.search, sys.path):  # a worker has more folders on its path, of Ray's own
        try:
            known = _metadata_in(entry, Path(entry).stat().st_mtime_ns)
        except OSError:
            continue
        for name, (_, _, version) in known.items():
            found.setdefault(name, version)
    return found


def _metadata_folder(module_name: str) -> tuple[str, str, str] | None:
    """Return (folder, name, version) of the metadata of the distribution that owns a module."""
    located = locate(module_name)
    while located is None and "." in module_name:  # the last part is an attribute, not a module
        module_name = module_name.rpartition(".")[0]
        located = locate(module_name)
    if located is None:
        return None
    file = located.file or (str(Path(located.folders[0], "__init__.py")) if located.folders else None)
    depth = module_name.count(".") + located.is_package
    if file is None or len(Path(file).parents) <= depth:
        return None
    entry = Path(file).parents[depth]
    top = module_name.partition(".")[0]
    is_namespace = (entry / top).is_dir() and not (entry / top / "__init__.py").exists()
    try:
        changed_ns = entry.stat().st_mtime_ns
    except OSError:
        return None
    named = _metadata_in(str(entry), changed_ns).get(normalised(top))
    if named is not None and not is_namespace:
        return named
    return _owner(str(entry), changed_ns, top, Path(file).relative_to(entry).as_posix())


@functools.lru_cache(maxsize=64)
def _metadata_in(entry: str, changed_ns: int) -> dict[str, tuple[str, str, str]]:
    """Return the distributions in a folder of sys.path by normalised name; a folder that changes is read again."""
    found = {}
    for path in sorted(Path(entry).iterdir()):
        if path.suffix not in {".dist-info", ".egg-info"} or "-" not in path.stem:
            continue
        name, _, version = path.stem.partition("-")
        version = version.partition("-py")[0] if path.suffix == ".egg-info" else version
        found[normalised(name)] = (str(path), name, version)
    return found


@functools.lru_cache(maxsize=1024)
def _owner(entry: str, changed_ns: int, top: str, file: str) -> tuple[str, str, str] | None:
    """Return the distribution whose list of files names a file."""
    distributions = _metadata_in(entry, changed_ns).values()
    for listing, line in (("RECORD", f"{file},"), ("top_level.txt", f"{top}\n")):
        for found in distributions:
            if _lists(Path(found[0], listing), line):
                return found
    return None


@functools.lru_cache(maxsize=64)
def _recorded(record: str, changed_ns: int, size_bytes: int) -> str:
    """Return a digest of the installed files that is the same on all machines, by the hashes that RECORD has."""
    lines = Path(record).read_text(errors="replace").splitlines()
    hashed = (line for line in lines if "sha256=" in line and not line.startswith("..") and ".dist-info/" not in line)
    return digest_value(sorted(hashed))


def _lists(path: Path, line_start: str) -> bool:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return False
    return f"\n{line_start}" in f"\n{text}\n"


def normalised(name: str) -> str:
    """Return the name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def class_module(cls: type) -> ModuleType | None:
    """Return the loaded module of a class; compiled ones may say ``_wrappers`` where it is ``wrapt._wrappers``.

    A class of a main script or notebook that came to this process in a pickle has none: the main script is another.
    """
    name = cls.__module__
    found = sys.modules.get(name)
    if name == "__main__" and cls.__qualname__.partition(".")[0] not in vars(found or sys):
        return None
    if found is None:
        found = next((module for full, module in sys.modules.items() if full.endswith(f".{name}")), None)
    return found
