"""What the names in code stand for: globals, attributes of modules, and imports inside of functions.

Runs in: driver.
"""

import builtins
import importlib
import runpy
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zenray.fingerprint.bytecode import CodeForm, Import, Reference, normal_form
from zenray.fingerprint.effects import environment
from zenray.fingerprint.origin import Origin, display_name, locate, module_file, origin, origin_of_module
from zenray.fingerprint.parts import Form, asked, text_of
from zenray.fingerprint.sources import Sources
from zenray.fingerprint.state import State
from zenray.fingerprint.values import Values, is_zenray

Namespace = Mapping[str, Any]

_MODULE_NAMES = frozenset(
    {"__file__", "__spec__", "__path__", "__loader__", "__package__", "__builtins__", "__cached__"}
)
# What these run is made at run time, or read from a file.
_EXECUTES = (builtins.exec, builtins.compile, runpy.run_path, runpy.run_module, importlib.reload)
# These look up names of the module that calls them.
_SEES_MODULE = (builtins.globals, builtins.eval, builtins.vars, builtins.dir)
_IMPORTS = (importlib.import_module, builtins.__import__)
# With these, code may bind a global by a name that stands in no instruction.
_BINDS_BY_NAME = frozenset(
    {"setattr", "delattr", "globals", "vars", "__dict__", "__setattr__", "__delattr__", "setitem", "patch"}
)
# What a module that is not loaded may call these by is known only by name.
_RUNS_BY_NAME = frozenset({"exec", "compile", "run_path", "run_module", "import_module", "__import__", "exec_module"})
_BUILTIN_DATA = frozenset({"None", "True", "False", "Ellipsis", "NotImplemented", "__debug__"})
# Through these, code sees what called it, or the text it was written as.
_LOOKS_AROUND = frozenset({"f_back", "f_locals", "f_globals", "__globals__", "getsource", "getsourcelines"})
# These find code by a name that is computed.
_FINDS = frozenset(
    {("pydoc", "locate"), ("pkgutil", "resolve_name"), ("importlib.util", "module_from_spec"), ("runpy", "run_path")}
    | {("importlib._bootstrap", "module_from_spec"), ("importlib._bootstrap_external", "spec_from_file_location")}
    | {("_frozen_importlib", "module_from_spec"), ("_frozen_importlib_external", "spec_from_file_location")}
)
# These tell the version of a distribution, or what it has; of importlib.metadata.
_METADATA = frozenset({"version", "metadata", "distribution", "distributions", "entry_points", "requires", "files"}) | {
    "packages_distributions",
    "Distribution",
}
_ABSENT = object()


@dataclass(frozen=True, slots=True, eq=False)
class UnloadedModule:
    """A module of the project that a function imports and that is not loaded yet: its whole text counts."""

    module_name: str
    file: str


class CodeForms:
    """Normal forms of code objects. These are immutable, so a form once made can never be out of date."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[types.CodeType, CodeForm]] = {}

    def __call__(self, code: types.CodeType) -> CodeForm:
        """Return the normal form of a code object; the code object is kept, so that its id stays its own."""
        known = self._known.get(id(code))
        if known is None:
            known = self._known[id(code)] = (code, normal_form(code))
        return known[1]


class Walk(Protocol):
    """What names need from the walk that they are resolved for."""

    @property
    def state(self) -> State:
        """Where what is looked at is left, to be compared later."""

    def link(self, thing: Any, form: Form, name: str) -> None:
        """Write a reference to a thing, and visit it later."""

    def is_first_party(self, thing: type | types.FunctionType) -> bool:
        """Tell whether a class or function is the project's own."""

    def note_distribution(self, module_name: str) -> None:
        """Note that code of an installed module is used."""

    def note_release(self, name: str | None) -> None:
        """Note that code asks for the version of a distribution, by its name or by one that is computed."""

    def note_data(self, name: str, form: Form) -> None:
        """Note a value that a name stands for."""

    def note_unresolved(self, name: str) -> None:
        """Note a name that stands for nothing."""

    def note_text(self, thing: UnloadedModule, form: Form) -> None:
        """Note a module whose text was written."""

    def reach(self, namespace: Namespace) -> None:
        """Note that code of a module is used, so that what its import does counts."""

    def problem(self, text: str) -> None:
        """Note why the closure cannot be known."""

    def reach_package(self, namespace: Namespace) -> None:
        """Note that code may have imported any module of its own package."""


class Names:
    """Writes code together with everything that its names stand for."""

    def __init__(self, walk: Walk, values: Values, forms: CodeForms, sources: Sources) -> None:
        self.mentions: set[str] = set()  # every name and attribute that any code met so far looks up
        self.passed_on: set[int] = set()  # ids of functions that are not only called where they are named
        self._stores: set[str] = set()  # every global and attribute that any code met so far binds
        self._looked_up: list[str] = []  # the globals that code looks up, in the order in which they are met
        self.is_lasting = True  # false inside of what depends on which modules happen to be loaded already
        self._walk = walk
        self._values = values
        self._forms = forms
        self._sources = sources
        self._unloaded: dict[str, UnloadedModule] = {}

    def write_code(
        self, code: types.CodeType, namespace: Namespace, form: Form, *, bound: frozenset[str] = frozenset()
    ) -> None:
        """Write code and everything it refers to, but for names that only the code itself binds."""
        normal = self._forms(code)
        self._note_mentions(normal, _module_name(namespace))
        form.text("code", normal.digest)
        for reference in normal.references:
            if reference.name in bound:
                form.text("bound", reference.name, *reference.attributes)
                continue
            with self._passing(reference.imported):
                self._reference(reference, namespace, form)
        with self._passing(True):
            for statement in normal.imports:
                self._import(statement, namespace, form)

    def rebound(self) -> list[str]:
        """Return the globals that code looks up and that some code binds again, each with its place among all.

        Of any other global only the value can be observed, not what it is called.
        """
        is_open = bool(self.mentions & _BINDS_BY_NAME)
        looked_up = ((name, name.rpartition(".")[2]) for name in self._looked_up)
        return [f"{i} {name}" for i, (name, last) in enumerate(looked_up) if is_open or last in self._stores]

    def _note_mentions(self, normal: CodeForm, module_name: str) -> None:
        self.mentions |= normal.mentions
        self._stores |= normal.stores
        for name in sorted(normal.mentions & _LOOKS_AROUND):
            self._walk.problem(f"code in {module_name} looks at the code or the variables of its callers ({name})")

    def write_target(self, value: Any, form: Form, name: str, *, is_called: bool = False) -> None:
        """Write what a name stands for; data becomes a part of its own."""
        while is_zenray(value) and hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        if type(value) is types.FunctionType:
            # A function that is passed on may be asked for its name, for example for the name of a column.
            form.text("called" if is_called else value.__qualname__)
            if not is_called:
                self.passed_on.add(id(value))
        if issubclass(type(value), types.FunctionType | type | types.ModuleType):
            self._walk.link(value, form, name)
            return
        inner = Form()
        self._values.write(value, inner, name)
        form.nest(inner, "constant")
        self._walk.note_data(name, inner)

    @contextmanager
    def _passing(self, is_passing: bool) -> Iterator[None]:
        was_lasting, self.is_lasting = self.is_lasting, self.is_lasting and not is_passing
        yield
        self.is_lasting = was_lasting

    # References.

    def _reference(self, reference: Reference, namespace: Namespace, form: Form) -> None:
        attributes = list(reference.attributes)
        value = self._look_up(reference, namespace, form)
        name = f"{_module_name(namespace)}.{reference.name}"
        while attributes and issubclass(type(value), types.ModuleType):
            if origin_of_module(value) is not Origin.FIRST_PARTY:
                self._library_attribute(value, reference, attributes, namespace, form)
                return
            self._walk.reach(vars(value))
            attribute = attributes.pop(0)
            if attribute == "__dict__":
                break
            self._walk.state.read(vars(value), attribute)
            if attribute not in vars(value):
                self._missing_attribute(value, attribute, form)
                return
            name = f"{display_name(value.__name__)}.{attribute}"
            value = vars(value)[attribute]
        if value is _ABSENT:
            return
        self._looked_up.append(name)
        form.text(*attributes)
        self._indirect(value, reference, namespace, form)
        self.write_target(value, form, name, is_called=reference.is_called and not attributes)

    def _look_up(self, reference: Reference, namespace: Namespace, form: Form) -> Any:
        """Return what a name stands for; where that is not a value of the project, write it and return nothing."""
        name = reference.name
        if reference.imported:
            module = self._loaded(name)
            if _is_library(name):
                self._library_attribute(module, reference, list(reference.attributes), namespace, form)
            elif module is not None:
                return module
            else:
                self._module(name, (), form)
        elif name == "__name__":
            form.text("module name", _module_name(namespace))
        elif name in _MODULE_NAMES:
            form.text("module", name)
        else:
            return self._global(reference, namespace, form)
        return _ABSENT

    def _global(self, reference: Reference, namespace: Namespace, form: Form) -> Any:
        name = reference.name
        self._walk.state.read(namespace, name)
        if name in namespace:
            return namespace[name]
        if not reference.is_guess:
            self._walk.state.read(vars(builtins), name)
            if name in vars(builtins):
                return self._builtin(reference, namespace, form)
            self._unresolved(name, form)
        return _ABSENT

    def _loaded(self, name: str) -> types.ModuleType | None:
        """Return a module that code may import while it runs, if it is loaded already."""
        module = sys.modules.get(name)
        if not _is_library(name):
            self._walk.state.read(sys.modules, name)
        return module

    def _builtin(self, reference: Reference, namespace: Namespace, form: Form) -> Any:
        value = vars(builtins)[reference.name]
        is_own = issubclass(type(value), types.FunctionType | type) and self._walk.is_first_party(value)
        is_data = not callable(value) and reference.name not in _BUILTIN_DATA
        if is_own or is_data:
            return value  # the project has put something of its own there
        form.text("builtin", reference.name, *reference.attributes)
        self._indirect(value, reference, namespace, form)
        return _ABSENT

    def _unresolved(self, name: str, form: Form) -> None:
        form.text("unresolved", name)
        self._walk.note_unresolved(name)

    def _missing_attribute(self, module: types.ModuleType, name: str, form: Form) -> None:
        with self._passing(True):
            if locate(f"{module.__name__}.{name}") is not None:
                self._module(f"{module.__name__}.{name}", (), form)
            elif "__getattr__" in vars(module):
                made_by = vars(module)["__getattr__"]
                if type(made_by) is not types.FunctionType or not self._walk.is_first_party(made_by):
                    self._walk.problem(
                        f"{module.__name__}.{name} is found by a library's __getattr__; import it from where it is made"
                    )
                self._walk.link(module, form, module.__name__)
            elif hasattr(type(module), "__getattr__"):
                self._walk.problem(f"{module.__name__}.{name} is made on demand by a {type(module).__qualname__}")
            else:
                self._unresolved(f"{display_name(module.__name__)}.{name}", form)

    def _library_attribute(
        self,
        module: types.ModuleType | None,
        reference: Reference,
        attributes: list[str],
        namespace: Namespace,
        form: Form,
    ) -> None:
        """Write what is taken of a library; of one that a function imports, the same before its import and after."""
        form.text("module", reference.name if reference.imported or module is None else module.__name__, *attributes)
        if module is None:
            return  # the import statement notes the distribution
        value: Any = module
        for name in attributes:
            self._walk.state.read(vars(value), name)
            found = vars(value).get(name, _ABSENT)
            if found is _ABSENT and value.__name__ == "zenray":
                found = asked(value, name)  # ZenRay imports what it offers when it is asked for
            if issubclass(type(found), types.ModuleType):
                value = found
                continue
            self._indirect(found, reference, namespace, form)
            if issubclass(type(found), types.FunctionType | type) and self._walk.is_first_party(found):
                self._walk.link(found, form, name)  # the project has put something of its own into the library
            break
        self._walk.note_distribution(value.__name__)

    def _indirect(self, value: Any, reference: Reference, namespace: Namespace, form: Form) -> None:
        """Take care of callables through which code reaches things without naming them."""
        here = f"code in {_module_name(namespace)}"
        called = text_of(value, "__module__"), text_of(value, "__qualname__")
        if called[0] in ("inspect", "typing"):
            self.mentions.add(called[1])  # under whatever name it was imported
            if called[1] in _LOOKS_AROUND:
                self._walk.problem(f"{here} looks at the text of code ({called[1]})")
        if called[0] == "importlib.metadata" and called[1].partition(".")[0] in _METADATA:
            self._walk.note_release(reference.argument)
        if called in (("zenray.files", "File"), ("zenray.files", "Folder")) and reference.is_called:
            self._walk.problem(
                f"{here} makes a {called[1]} inside of a step, whose content is not followed; "
                "pass it to the step as an argument"
            )
        if called in _FINDS:
            self._walk.problem(
                f"{here} finds code by a name that is computed, by {called[1]}(); write an import statement"
            )
        if any(value is known for known in _IMPORTS):
            literal = reference.argument
            if literal is None or literal == "__name__" or literal.startswith("."):
                self._walk.problem(f"{here} imports a module by a name that is computed; write an import statement")
                self._walk.reach_package(namespace)
            else:
                with self._passing(True):
                    self._module(literal, (), form)
        elif any(value is known for known in _EXECUTES):
            self._walk.problem(f"{here} runs code that is made at run time, by {value.__name__}()")
        elif value is sys.modules and reference.argument != "__name__":
            self._walk.problem(f"{here} looks up modules in sys.modules; import them")
        elif value is sys.modules or any(value is known for known in _SEES_MODULE):
            module = sys.modules.get(str(namespace.get("__name__")))
            if module is not None and vars(module) is namespace:
                self._walk.link(module, form, module.__name__)
            else:
                self._walk.problem(f"{here} looks up globals by name")

    # Imports inside of functions.

    def _import(self, statement: Import, namespace: Namespace, form: Form) -> None:
        name = absolute_name(statement, namespace)
        if name is None:
            self._walk.problem(f"code in {_module_name(namespace)} has a relative import, but is in no package")
            return
        if _is_library(name):
            self._module(name, statement.names, form)
        elif statement.is_followed and (module := self._loaded(name)) is not None:
            self._walk.reach(vars(module))
        else:
            self._module(name, statement.names, form)

    def _module(self, name: str, names: tuple[str, ...], form: Form) -> None:
        """Write what an import of a module, or of names from it, makes reachable."""
        form.text("import", *names)
        loaded = self._loaded(name)
        located = locate(name)
        if located is None:
            self._unresolved(name, form)
            return
        file = module_file(loaded) if loaded else located.file
        if origin(name, file) is not Origin.FIRST_PARTY:
            form.text(name)
            for inner in names or ("",):
                self._walk.note_distribution(f"{name}.{inner}".rstrip("."))
            if name.replace("_", ".") == "importlib.metadata":
                self._walk.note_release(None)
            if name == "importlib" and not {"import_module", "reload"}.isdisjoint(names):
                self._walk.problem("code imports import_module or reload inside a function; write import statements")
        elif loaded is not None:
            self._from_loaded(loaded, names, form)
        else:
            self._from_unloaded(name, names, form)

    def _from_loaded(self, module: types.ModuleType, names: tuple[str, ...], form: Form) -> None:
        self._walk.reach(vars(module))
        if "*" in names:
            self._walk.link(module, form, module.__name__)
        if not names:
            # "import a.b" may bind a, and anything may be taken from it.
            packages = module.__name__.split(".")
            prefixes = (".".join(packages[: depth + 1]) for depth in range(len(packages)))
            for loaded in (sys.modules[prefix] for prefix in prefixes if prefix in sys.modules):
                self._walk.link(loaded, form, loaded.__name__)
        for name in names:
            if name == "*":
                continue
            self._walk.state.read(vars(module), name)
            if name in vars(module):
                self.write_target(vars(module)[name], form, f"{display_name(module.__name__)}.{name}")
            else:
                self._missing_attribute(module, name, form)

    def _from_unloaded(self, name: str, names: tuple[str, ...], form: Form) -> None:
        packages = name.split(".")
        modules = [".".join(packages[: depth + 1]) for depth in range(len(packages))]
        modules += [f"{name}.{inner}" for inner in names if inner != "*" and locate(f"{name}.{inner}")]
        for module in modules:
            self._walk.state.read(sys.modules, module)
            located = locate(module)
            if located is None or module in sys.modules or (located.is_package and located.file is None):
                continue
            if located.file is None or not located.file.endswith(".py"):
                self._walk.problem(f"module {module} of the project has no Python source")
                continue
            thing = self._unloaded.setdefault(module, UnloadedModule(module, located.file))
            self._walk.link(thing, form, module)

    def write_unloaded(self, thing: UnloadedModule, form: Form) -> None:
        """Write the text of a module that a function will import."""
        self._walk.state.read_text(thing.module_name, thing.file, self._sources.look)
        source = self._sources.read(thing.file)
        if source is None:
            self._walk.problem(f"{thing.module_name} cannot be read as Python source")
            return
        is_package = Path(thing.file).name == "__init__.py"
        package = thing.module_name if is_package else thing.module_name.rpartition(".")[0]
        namespace = {"__name__": thing.module_name, "__package__": package}
        normal = self._forms(source.code())
        self._note_mentions(normal, thing.module_name)
        form.text("code", normal.digest, *environment(source.tree.body))
        for reference in normal.references:
            form.text(reference.name, *reference.attributes)
            self._reference_of_unloaded(reference, thing, form)
        for statement in normal.imports:
            self._import(statement, namespace, form)
        self._walk.note_text(thing, form)

    def _reference_of_unloaded(self, reference: Reference, thing: UnloadedModule, form: Form) -> None:
        """Take care of what imports or runs code in a module that is not loaded, as far as its text tells."""
        name = (reference.name, *reference.attributes)[-1]
        literal = reference.argument
        if name in ("import_module", "__import__") and literal and literal.isidentifier() and literal != "__name__":
            self._module(literal, (), form)
        elif name in _RUNS_BY_NAME:
            self._walk.problem(f"{thing.module_name} imports or runs code by names that are computed")


def _is_library(name: str) -> bool:
    """Say whether a module that may not have been imported yet is not of the project."""
    module = sys.modules.get(name)
    if module is not None:
        return origin_of_module(module) is not Origin.FIRST_PARTY
    located = locate(name)
    return located is not None and origin(name, located.file) is not Origin.FIRST_PARTY


def absolute_name(statement: Import, namespace: Namespace) -> str | None:
    """Return the full name of the module that an import statement names; None where there is no package."""
    if not statement.level:
        return statement.module
    package = namespace.get("__package__") or getattr(namespace.get("__spec__"), "parent", None)
    if not package:
        return None
    base = str(package).rsplit(".", statement.level - 1)[0]
    return f"{base}.{statement.module}" if statement.module else base


def _module_name(namespace: Namespace) -> str:
    return display_name(str(namespace.get("__name__", "?")))
