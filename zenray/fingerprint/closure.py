"""The walk from a step to all the code and values that it can reach.

Runs in: driver.

Things are numbered as they are met, breadth first from the step, in the order in which code refers to them. The
stream of their forms, with references as numbers, is the same for two programs only if they are equal up to the
names of what is called: it is a canonical form of the graph.
"""

import builtins
import importlib
import importlib.machinery
import inspect
import runpy
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from zenray.fingerprint.bytecode import CodeForm, Import, Reference, normal_form
from zenray.fingerprint.origin import (
    Origin,
    display_name,
    distribution_state,
    locate,
    module_file,
    origin,
    origin_of_module,
    project_root,
)
from zenray.fingerprint.parts import CodePart, Fingerprint, Form, digest_parts
from zenray.fingerprint.sources import Sources
from zenray.fingerprint.values import Values, is_zenray
from zenray.hashing import digest_bytes, digest_value, encode, framed

# Changes when the meaning of a digest changes, so that older cache entries are not found any more.
RECIPE = "zenray-code-1"

_SOURCE_KINDS = frozenset({"step", "function", "class", "module"})
_MODULE_NAMES = frozenset({"__file__", "__spec__", "__path__", "__loader__", "__package__", "__builtins__", "__cached__"})
_DERIVED = frozenset(
    {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__qualname__", "__firstlineno__"}
    | {"__static_attributes__", "_abc_impl", "__annotate_func__", "__annotations_cache__", "__annotate__"}
    | {"_member_map_", "_value2member_map_", "_member_names_", "_unhashable_values_", "_hashable_values_"}
    | {"__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__", "__signature__"}
    | {"__pydantic_parent_namespace__", "__pydantic_complete__", "__attrs_attrs__"}
)
_READS_NAMES = frozenset({"__name__", "__qualname__", "co_name", "co_qualname", "f_code", "getmembers", "__code__"})
_READS_TEXT = frozenset({"__doc__", "getdoc", "getsource", "getsourcelines"})
_READS_ANNOTATIONS = frozenset({"__annotations__", "get_annotations", "get_type_hints", "signature", "getfullargspec"})
_ABSENT = object()


@dataclass(frozen=True, slots=True, eq=False)
class Statements:
    """Code that ran at module level, as a thing to visit."""

    code: types.CodeType
    namespace: Mapping[str, Any]
    module_name: str
    what: str


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


class Closure:
    """One walk from one step."""

    def __init__(self, forms: CodeForms, sources: Sources) -> None:
        self.root = ""
        self._forms = forms
        self._sources = sources
        self._values = Values(self)
        self._numbers: dict[int, int] = {}
        self._things: list[Any] = []  # by number; also keeps them alive, so that their ids stay their own
        self._queue: deque[tuple[Any, str]] = deque()
        self._stream = blake3(RECIPE.encode())
        self._parts: dict[tuple[str, str, str], CodePart] = {}
        self._problems: dict[str, None] = {}
        self._modules: dict[str, types.ModuleType] = {}
        self._pending_modules: deque[types.ModuleType] = deque()
        self._unloaded: dict[str, UnloadedModule] = {}
        self._foreign: dict[str, None] = {}
        self._mentions: set[str] = set()
        self._functions: list[types.FunctionType] = []
        self._classes: list[type] = []
        self._passed_on: set[int] = set()
        self._in_library = False
        self._current: int | None = None
        self._is_lasting = True
        self._edges: dict[int | None, list[int]] = {}
        self._source_entries: dict[int, bytes] = {}

    def walk(self, target: Callable[..., Any] | type) -> Fingerprint:
        """Visit everything that can be reached from a step's function or class."""
        self._add("python", "python", sys.implementation.cache_tag or sys.version)
        while is_zenray(target) and hasattr(target, "__wrapped__"):
            target = target.__wrapped__
        self._step = target
        module = sys.modules.get(getattr(target, "__module__", None) or "")
        file = module_file(module) if module else None
        self.root = project_root(file) if file else str(Path.cwd())
        form = Form()
        self._values.write(target, form, getattr(target, "__qualname__", repr(target)))
        self._stream.update(framed(b"root", form.linked))
        self._visit_all()
        self._write_reflection()
        self._write_distributions()
        parts = tuple(sorted(self._parts.values(), key=lambda part: (part.kind != "step", part.kind, part.name)))
        return Fingerprint(
            digest=self._stream.hexdigest(),
            source_digest=self._source_digest(),
            parts=parts,
            problems=tuple(self._problems),
        )

    # What values need of the walk.

    def link(self, thing: Any, form: Form, name: str) -> None:
        """Write a reference to a function, class, module or instance, and visit it later."""
        if isinstance(thing, types.ModuleType) and origin_of_module(thing) is not Origin.FIRST_PARTY:
            form.text("module", thing.__name__)
            self.note_distribution(thing.__name__)
            return
        if self._in_library and isinstance(thing, types.FunctionType):
            self._passed_on.add(id(thing))
        number = self._numbers.setdefault(id(thing), len(self._things))
        if number == len(self._things):
            self._things.append(thing)
            self._queue.append((thing, name))
        if self._is_lasting:
            self._edges.setdefault(self._current, []).append(number)
        form.link(number, _label(thing, name))

    def is_first_party(self, thing: type | types.FunctionType) -> bool:
        """Tell whether a class or function is the project's own."""
        return self._origin(thing) is Origin.FIRST_PARTY

    def note_distribution(self, module_name: str) -> None:
        """Note that code of an installed module is used."""
        self._foreign.setdefault(module_name)

    def problem(self, text: str) -> None:
        """Note why the closure cannot be known."""
        self._problems.setdefault(text)

    # The order of the walk.

    def _visit_all(self) -> None:
        while self._queue or self._pending_modules:
            while self._queue:
                thing, name = self._queue.popleft()
                self._current = self._numbers[id(thing)]
                form = Form()
                self._visit(thing, name, form)
                self._stream.update(framed(b"thing", form.linked))
            if self._pending_modules:
                self._visit_import_time(self._pending_modules.popleft())
            if not self._queue and not self._pending_modules:
                self._enqueue_annotated()

    def _visit(self, thing: Any, name: str, form: Form) -> None:
        if isinstance(thing, types.FunctionType):
            self._function(thing, form)
        elif isinstance(thing, type):
            self._class(thing, form)
        elif isinstance(thing, types.ModuleType):
            self._whole_module(thing, form)
        elif isinstance(thing, Statements):
            self._statements(thing, form)
        elif isinstance(thing, UnloadedModule):
            self._unloaded_module(thing, form)
        else:
            self._instance(thing, name, form)

    def _add(self, kind: str, name: str, digest: str, *, file: str | None = None, line: int | None = None) -> None:
        if file is not None:
            file = file.removeprefix(self.root + "/")
        self._parts.setdefault((kind, name, digest), CodePart(kind, name, digest, file, line))

    def _add_form(self, kind: str, name: str, form: Form, *, file: str | None = None, line: int | None = None) -> None:
        self._add(kind, name, digest_bytes(form.own), file=file, line=line)

    # Functions.

    def _function(self, function: types.FunctionType, form: Form) -> None:
        namespace = function.__globals__
        if not self.is_first_party(function):
            self._library_function(function, form)
            return
        self._functions.append(function)
        code = function.__code__
        module_name = display_name(str(namespace.get("__name__", "?")))
        name = f"{module_name}.{code.co_qualname}"
        form.text("function")
        self._bound_values(function, name, form)
        self._code(code, namespace, form)
        self._reach(namespace)
        self._verify(code, namespace, name)
        kind = "step" if function is self._step else "function"
        self._add_form(kind, name, form, file=code.co_filename, line=code.co_firstlineno)

    def _bound_values(self, function: types.FunctionType, name: str, form: Form) -> None:
        """Write what a function carries beside its code: defaults, closure cells and attributes."""
        self._values.write(function.__defaults__, form, f"a default of {name}")
        self._values.write(dict(sorted((function.__kwdefaults__ or {}).items())), form, f"a default of {name}")
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            try:
                value = cell.cell_contents
            except ValueError:
                form.text("empty cell")
                continue
            self._target(value, form, f"{name}.{variable}")
        attributes = {key: value for key, value in sorted(vars(function).items()) if not key.startswith("__zenray")}
        self._values.write(attributes, form, f"an attribute of {name}")

    def _library_function(self, function: types.FunctionType, form: Form) -> None:
        """Write a function of a library: by name where it has one, else with the values that it carries."""
        module_name = str(function.__globals__.get("__name__", ""))
        name = function.__code__.co_qualname
        form.text("library function", module_name, name)
        self.note_distribution(module_name)
        if "<locals>" not in name and _lookup(module_name, name) is function:
            return
        registry = getattr(function, "registry", None)
        if module_name == "functools" and isinstance(registry, types.MappingProxyType):
            for key in sorted(registry, key=lambda cls: (cls.__module__, cls.__qualname__)):
                self._values.write((key, registry[key]), form, name)
            return
        was_inside, self._in_library = self._in_library, self._is_installed(module_name)
        wrapped = getattr(function, "__wrapped__", None)
        made = self._how_it_was_made(wrapped, function.__globals__) if self._in_library and wrapped else None
        if made is not None:
            self._values.write(wrapped, form, name)
            self.link(made, form, made.what)
        else:
            self._bound_values(function, f"{module_name}.{name}", form)
        self._in_library = was_inside

    def _how_it_was_made(self, wrapped: Any, namespace: Mapping[str, Any]) -> Statements | None:
        """Return the decorators, as code, that made a library's wrapper of a function of the project."""
        if not isinstance(wrapped, types.FunctionType) or not self.is_first_party(wrapped):
            return None
        name = wrapped.__code__.co_qualname
        source = self._sources.read(wrapped.__code__.co_filename)
        code = source.origin_of(name) if source and "." not in name else None
        if code is None:
            return None
        module_name = str(wrapped.__globals__.get("__name__"))
        return Statements(code, wrapped.__globals__, module_name, f"decorators of {name}")

    def _code(self, code: types.CodeType, namespace: Mapping[str, Any], form: Form) -> None:
        """Write code and everything it refers to."""
        normal = self._forms(code)
        self._mentions |= normal.mentions
        form.text("code", normal.digest)
        for reference in normal.references:
            self._reference(reference, namespace, form)
        with self._passing():
            for statement in normal.imports:
                self._import(statement, namespace, form)

    # Names.

    def _reference(self, reference: Reference, namespace: Mapping[str, Any], form: Form) -> None:
        name = reference.name
        attributes = list(reference.attributes)
        value = self._look_up(reference, namespace, form)
        if value is _ABSENT:
            return
        where = f"{display_name(str(namespace.get('__name__', '?')))}.{name}"
        while attributes and isinstance(value, types.ModuleType):
            if origin_of_module(value) is not Origin.FIRST_PARTY:
                self._library_attribute(value, attributes, reference, namespace, form)
                return
            self._reach(vars(value))
            where = f"{display_name(value.__name__)}.{attributes[0]}"
            found = vars(value).get(attributes[0], _ABSENT)
            if found is _ABSENT:
                self._missing_attribute(value, attributes[0], form)
                return
            value = found
            attributes.pop(0)
        form.text(*attributes)
        self._dynamic(value, reference, namespace, form)
        self._target(value, form, where, is_called=reference.is_called and not attributes)

    def _look_up(self, reference: Reference, namespace: Mapping[str, Any], form: Form) -> Any:
        """Return what a name stands for; where that is not a value, write it and return nothing."""
        name = reference.name
        if reference.imported:
            module = sys.modules.get(name)
            if module is not None and origin_of_module(module) is Origin.FIRST_PARTY:
                return module
            with self._passing():
                self._module(name, (), form)
            return _ABSENT
        if name == "__name__":
            form.text("module name", display_name(str(namespace.get("__name__", "?"))))
        elif name in _MODULE_NAMES:
            form.text("module", name)
        elif name in namespace:
            return namespace[name]
        elif reference.is_guess:
            pass
        elif name in vars(builtins):
            form.text("builtin", name, *reference.attributes)
            self._dynamic(vars(builtins)[name], reference, namespace, form)
        else:
            self._unresolved(name, form)
        return _ABSENT

    def _target(self, value: Any, form: Form, name: str, *, is_called: bool = False) -> None:
        """Write what a name stands for; data becomes a part of its own."""
        while is_zenray(value) and hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        if isinstance(value, types.FunctionType):
            # A function that is passed on may be asked for its name, for example for the name of a column.
            form.text("called" if is_called else value.__qualname__)
        if isinstance(value, types.FunctionType | type | types.ModuleType):
            self.link(value, form, name)
            return
        inner = Form()
        self._values.write(value, inner, name)
        form.nest(inner, "constant")
        self._add_form("constant", name, inner)

    def _unresolved(self, name: str, form: Form) -> None:
        form.text("unresolved", name)
        self._add("unresolved", name, digest_value(name))

    def _missing_attribute(self, module: types.ModuleType, name: str, form: Form) -> None:
        if locate(f"{module.__name__}.{name}") is not None:
            self._module(f"{module.__name__}.{name}", (), form)
        elif "__getattr__" in vars(module):
            self.link(module, form, module.__name__)
        else:
            self._unresolved(f"{display_name(module.__name__)}.{name}", form)

    def _library_attribute(
        self,
        module: types.ModuleType,
        attributes: list[str],
        reference: Reference,
        namespace: Mapping[str, Any],
        form: Form,
    ) -> None:
        form.text("module", module.__name__, *attributes)
        value: Any = module
        for name in attributes:
            found = vars(value).get(name, _ABSENT)
            if isinstance(found, types.ModuleType):
                value = found
                continue
            self._dynamic(found, reference, namespace, form)
            if isinstance(found, types.FunctionType | type) and self.is_first_party(found):
                self.link(found, form, name)  # the project has put something of its own into the library
            break
        self.note_distribution(value.__name__)

    def _dynamic(self, value: Any, reference: Reference, namespace: Mapping[str, Any], form: Form) -> None:
        """Take care of callables through which code reaches things without naming them."""
        if not isinstance(value, types.BuiltinFunctionType | types.FunctionType) and value is not sys.modules:
            return
        if value is importlib.import_module or value is builtins.__import__:
            literal = reference.argument
            if literal is None or literal == "__name__" or literal.startswith("."):
                self.problem(f"{self._place(namespace)} imports a module by a name that is computed")
            else:
                self._module(literal, (), form)
        elif value is sys.modules and reference.argument != "__name__":
            self.problem(f"{self._place(namespace)} looks modules up in sys.modules")
        elif value in _EXECUTES:
            self.problem(f"{self._place(namespace)} runs code that is made at run time ({value.__name__})")
        elif value in _SEES_MODULE or value is sys.modules:
            self._own_module(namespace, form)

    def _place(self, namespace: Mapping[str, Any]) -> str:
        return f"code in {display_name(str(namespace.get('__name__', '?')))}"

    def _own_module(self, namespace: Mapping[str, Any], form: Form) -> None:
        module = sys.modules.get(str(namespace.get("__name__")))
        if module is None or vars(module) is not namespace:
            self.problem(f"{self._place(namespace)} looks up globals by name")
            return
        self.link(module, form, module.__name__)

    # Imports inside of functions.

    def _import(self, statement: Import, namespace: Mapping[str, Any], form: Form) -> None:
        name = _absolute(statement, namespace)
        if name is None:
            self.problem(f"{self._place(namespace)} has a relative import outside of a package")
            return
        self._module(name, statement.names, form)

    def _module(self, name: str, names: tuple[str, ...], form: Form) -> None:
        """Write what an import of a module, or of names from it, makes reachable."""
        loaded = sys.modules.get(name)
        located = locate(name) if loaded is None else None
        form.text("import", *names)
        if loaded is None and located is None:
            self._unresolved(name, form)
            return
        file = module_file(loaded) if loaded else located.file if located else None
        whose = origin(name, file)
        if whose is not Origin.FIRST_PARTY:
            form.text(name)
            for inner in names or ("",):
                self.note_distribution(f"{name}.{inner}".rstrip("."))
            if "import_module" in names:
                self.problem("code imports import_module inside a function, and modules by names that are computed")
        elif loaded is not None:
            self._from_loaded(loaded, names, form)
        elif located is not None:
            self._from_unloaded(name, names, form)

    def _from_loaded(self, module: types.ModuleType, names: tuple[str, ...], form: Form) -> None:
        self._reach(vars(module))
        if not names or "*" in names:
            self.link(module, form, module.__name__)
            return
        for name in names:
            if name in vars(module):
                self._target(vars(module)[name], form, f"{display_name(module.__name__)}.{name}")
            else:
                self._missing_attribute(module, name, form)

    def _from_unloaded(self, name: str, names: tuple[str, ...], form: Form) -> None:
        packages = name.split(".")
        for depth in range(1, len(packages) + 1):
            self._unloaded_file(".".join(packages[:depth]), form)
        for inner in names:
            located = locate(f"{name}.{inner}") if inner != "*" else None
            if located is not None:
                self._unloaded_file(located.name, form)

    def _unloaded_file(self, name: str, form: Form) -> None:
        located = locate(name)
        if located is None or name in sys.modules:
            return
        if located.file is None or not located.file.endswith(".py"):
            if not located.is_package or located.file is not None:
                self.problem(f"{name} has no Python source")
            return
        thing = self._unloaded.setdefault(name, UnloadedModule(name, located.file))
        self.link(thing, form, name)

    def _unloaded_module(self, thing: UnloadedModule, form: Form) -> None:
        source = self._sources.read(thing.file)
        if source is None:
            self.problem(f"{thing.module_name} cannot be read as Python source")
            return
        package = thing.module_name if Path(thing.file).name == "__init__.py" else thing.module_name.rpartition(".")[0]
        namespace = {"__name__": thing.module_name, "__package__": package}
        normal = self._forms(source.code())
        form.text("code", normal.digest)
        self._mentions |= normal.mentions
        for reference in normal.references:
            value = vars(builtins).get(reference.name)
            if value in _EXECUTES or value is builtins.__import__ or "import_module" in reference.attributes:
                self.problem(f"{thing.module_name} imports or runs code by names that are computed")
        for statement in normal.imports:
            self._import(statement, namespace, form)
        self._add_form("module", thing.module_name, form, file=thing.file)

    # Classes.

    def _class(self, cls: type, form: Form) -> None:
        name = f"{display_name(cls.__module__)}.{cls.__qualname__}"
        if not self.is_first_party(cls):
            form.text("library class", cls.__module__, cls.__qualname__)
            self.note_distribution(cls.__module__)
            return
        self._classes.append(cls)
        form.text("class", cls.__qualname__)
        self.link(type(cls), form, type(cls).__qualname__)
        for base in cls.__bases__:
            self.link(base, form, base.__qualname__)
        module = sys.modules.get(cls.__module__)
        namespace = vars(module) if module else {}
        self._reach(namespace)
        self._class_annotations(cls, namespace, name, form)
        for key, value in self._class_entries(cls):
            form.text(key)
            self._values.write(value, form, f"{name}.{key}")
        self._virtual_subclasses(cls, form)
        kind = "step" if cls is self._step else "class"
        self._add_form(kind, name, form, file=module_file(module) if module else None)

    def _class_entries(self, cls: type) -> Iterator[tuple[str, Any]]:
        """Yield what a class holds: data in order, as it may be fields; then functions, whose order nobody sees."""
        entries = [(key, value) for key, value in vars(cls).items() if key not in _DERIVED]
        entries += [(f"{name} =", _member_state(member)) for name, member in getattr(cls, "__members__", {}).items()]
        bases = (*cls.__mro__, *type(cls).__mro__)
        if any(self._is_installed(base.__module__) for base in bases) or "__prepare__" in vars(type(cls)):
            return iter(entries)
        return iter(sorted(entries, key=lambda entry: (isinstance(entry[1], _METHODS), _method_name(entry))))

    def _class_annotations(self, cls: type, namespace: Mapping[str, Any], name: str, form: Form) -> None:
        try:
            annotations = inspect.get_annotations(cls)
        except NameError:  # Python 3.14 evaluates them here, and a name may be for type checkers only
            annotations = {}
        form.text(*annotations)
        for annotation in annotations.values():
            if isinstance(annotation, str):
                form.text(annotation)
                code = _compiled_annotation(annotation)
                if code is not None:
                    self._code(code, namespace, form)
            else:
                self._values.write(annotation, form, f"an annotation of {name}")

    def _virtual_subclasses(self, cls: type, form: Form) -> None:
        if "_abc_impl" in vars(cls):
            registered = [ref() for ref in _abc_registry(cls)]
            self._subclasses([other for other in registered if other is not None], form)
        if "__subclasses__" in self._mentions:
            self._subclasses(type.__subclasses__(cls), form)

    def _subclasses(self, classes: list[type], form: Form) -> None:
        for other in sorted(classes, key=lambda c: (c.__qualname__, c.__module__)):
            self.link(other, form, other.__qualname__)

    # Other things.

    def _instance(self, value: Any, name: str, form: Form) -> None:
        module_name = type(value).__module__
        wrapped = getattr(value, "__wrapped__", None) if self._is_installed(module_name) else None
        was_inside, self._in_library = self._in_library, self._is_installed(module_name)
        made = self._how_it_was_made(wrapped, {}) if wrapped is not None else None
        if made is not None:
            self.link(type(value), form, name)
            self._values.write(wrapped, form, name)
            self.link(made, form, made.what)
        else:
            self._values.write_instance(value, form, name)
        self._in_library = was_inside

    def _whole_module(self, module: types.ModuleType, form: Form) -> None:
        self._reach(vars(module))
        name = display_name(module.__name__)
        for key, value in sorted(vars(module).items()):
            if key.startswith("__") and key.endswith("__") and key not in {"__getattr__", "__all__"}:
                continue
            form.text(key)
            self._target(value, form, f"{name}.{key}")

    def _statements(self, thing: Statements, form: Form) -> None:
        form.text("statements")
        self._code(thing.code, thing.namespace, form)
        name = f"{display_name(thing.module_name)} ({thing.what})"
        self._add_form("module", name, form, file=thing.code.co_filename)

    # Modules, for what their import does.

    def _reach(self, namespace: Mapping[str, Any]) -> None:
        """Note that code of a module is used, so that what its import does counts."""
        name = str(namespace.get("__name__"))
        module = sys.modules.get(name)
        if module is None or name in self._modules or vars(module) is not namespace:
            return
        self._modules[name] = module
        self._pending_modules.append(module)
        parent = sys.modules.get(name.rpartition(".")[0])
        if parent is not None and origin_of_module(parent) is Origin.FIRST_PARTY:
            self._reach(vars(parent))

    def _visit_import_time(self, module: types.ModuleType) -> None:
        file = getattr(module, "__file__", None)
        source = self._sources.read(file) if file else None
        if source is None:
            return
        namespace = vars(module)
        code = source.import_time_statements(namespace)
        if code is not None:
            form = Form()
            thing = Statements(code, namespace, module.__name__, "statements run on import")
            self.link(thing, form, thing.what)
            self._stream.update(framed(b"import", form.linked))
        for statement in source.imports():
            name = _absolute(statement, namespace)
            for imported in (name, *(f"{name}.{inner}" for inner in statement.names)):
                other = sys.modules.get(str(imported))
                if other is not None and origin_of_module(other) is Origin.FIRST_PARTY:
                    self._reach(vars(other))

    def _verify(self, code: types.CodeType, namespace: Mapping[str, Any], name: str) -> None:
        """Note a problem where a file was edited after it was imported: workers would run something else."""
        if code.co_filename != namespace.get("__file__") or not _is_plainly_loaded(namespace):
            return
        source = self._sources.read(code.co_filename)
        if source is None or not source.holds(code, self._forms):
            self.problem(f"the source of {name} changed on disk since it was imported; start a new process to use it")

    # What is written at the end.

    def _enqueue_annotated(self) -> None:
        """Visit classes of the project that annotations name: their instances may arrive as arguments."""
        found: dict[int, type] = {}
        for function in self._functions:
            for cls in _annotated_classes(function):
                if id(cls) not in self._numbers and self.is_first_party(cls):
                    found[id(cls)] = cls
        form = Form()
        for cls in sorted(found.values(), key=lambda c: (c.__qualname__, display_name(c.__module__))):
            self.link(cls, form, cls.__qualname__)

    def _write_reflection(self) -> None:
        """Write names, docstrings and annotations of functions, where some code asks for them."""
        form = Form()
        if self._mentions & _READS_NAMES:
            form.text("names", *(f.__qualname__ for f in self._functions))
        if self._mentions & _READS_TEXT:
            form.text("docs", *(str(thing.__doc__) for thing in (*self._functions, *self._classes)))
        for function in self._functions:
            if self._mentions & _READS_ANNOTATIONS or id(function) in self._passed_on:
                form.text("annotations", *(f"{k}: {_text(v)}" for k, v in function.__annotations__.items()))
        self._stream.update(framed(b"reflection", form.linked))

    def _write_distributions(self) -> None:
        states = set()
        for module_name in self._foreign:
            if not self._is_installed(module_name):
                continue
            state = distribution_state(module_name)
            if state is None:
                state = (module_name.partition(".")[0], _files_digest(module_name), "")
            states.add(state)
            self._add("distribution", state[0], digest_value(state[1:]))
        self._stream.update(framed(b"distributions", encode(sorted(states))))

    def _is_installed(self, module_name: str) -> bool:
        module = sys.modules.get(module_name)
        if module is not None:
            return origin_of_module(module) is Origin.INSTALLED
        top = locate(module_name.partition(".")[0])
        file = (top.file or "".join(f"{folder}/__init__.py" for folder in top.folders[:1])) if top else None
        return bool(file) and origin(module_name, file) is Origin.INSTALLED

    def _origin(self, thing: type | types.FunctionType) -> Origin:
        if isinstance(thing, types.FunctionType):
            name = str(thing.__globals__.get("__name__", ""))
            file = thing.__globals__.get("__file__") or None
            return origin(name, file)
        module = sys.modules.get(thing.__module__)
        if module is None:
            return Origin.FIRST_PARTY
        whose = origin_of_module(module)
        is_named = _lookup(module.__name__, thing.__qualname__) is thing or not thing.__flags__ & _HEAP_TYPE
        # A class made by a function of a library on behalf of the project counts as the project's.
        is_made = whose is Origin.INSTALLED and not is_named and "<locals>" in thing.__qualname__
        return Origin.FIRST_PARTY if is_made else whose


_HEAP_TYPE = 1 << 9
_EXECUTES = (builtins.exec, builtins.compile, runpy.run_path, runpy.run_module)
_SEES_MODULE = (builtins.globals, builtins.eval, builtins.vars, builtins.dir)
_METHODS = (types.FunctionType, staticmethod, classmethod, property)


def _label(thing: Any, name: str) -> str:
    return str(getattr(thing, "__qualname__", None) or name)


def _lookup(module_name: str, qualname: str) -> Any:
    value: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        value = getattr(value, "__dict__", {}).get(part)
    return value


def _absolute(statement: Import, namespace: Mapping[str, Any]) -> str | None:
    if not statement.level:
        return statement.module
    package = namespace.get("__package__")
    if not package:
        spec = namespace.get("__spec__")
        package = getattr(spec, "parent", None)
    if not package:
        return None
    base = str(package).rsplit(".", statement.level - 1)[0]
    return f"{base}.{statement.module}" if statement.module else base


def _member_state(member: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(member).items() if key != "__objclass__"}


def _method_name(entry: tuple[str, Any]) -> str:
    return entry[0] if isinstance(entry[1], _METHODS) else ""


def _abc_registry(cls: type) -> list[Callable[[], type | None]]:
    import _abc  # the C half of the standard library's abc

    return list(_abc._get_dump(cls)[0])


def _compiled_annotation(text: str) -> types.CodeType | None:
    try:
        return compile(text, "<annotation>", "eval", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None


def _annotated_classes(function: types.FunctionType) -> Iterator[type]:
    pending = list(function.__annotations__.values())
    seen = 0
    while pending and seen < 1000:
        annotation = pending.pop()
        seen += 1
        if isinstance(annotation, str):
            code = _compiled_annotation(annotation)
            names = normal_form(code).references if code else []
            pending += [_named(reference, function.__globals__) for reference in names]
        elif isinstance(annotation, type):
            yield annotation
        pending += getattr(annotation, "__args__", ())
        pending += getattr(annotation, "__metadata__", ())


def _named(reference: Reference, namespace: Mapping[str, Any]) -> Any:
    value = namespace.get(reference.name)
    for attribute in reference.attributes:
        value = getattr(value, "__dict__", {}).get(attribute)
    return value if not isinstance(value, str) else None


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _is_plainly_loaded(namespace: Mapping[str, Any]) -> bool:
    """Tell whether the module's code is what its file compiles to; import hooks, such as pytest's, rewrite it."""
    return type(namespace.get("__loader__")) is importlib.machinery.SourceFileLoader


def _files_digest(module_name: str) -> str:
    """Return the digest of the files of an installed package that no distribution lists."""
    located = locate(module_name.partition(".")[0])
    if located is None:
        return ""
    if not located.is_package:
        return digest_bytes(Path(str(located.file)).read_bytes())
    files = (file for folder in located.folders for file in sorted(Path(folder).rglob("*")))
    kept = [file for file in files if file.suffix in {".py", ".so", ".pyd"}]
    return digest_value([(file.name, digest_bytes(file.read_bytes())) for file in kept])
