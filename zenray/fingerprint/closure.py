"""The walk from a step to all the code and values that it can reach.

Runs in: driver.

Things are numbered as they are met, breadth first from the step, in the order in which code refers to them. The
stream of their forms, with references as numbers, is the same for two programs only if they are equal up to the
names of what is called: it is a canonical form of the graph.
"""

import functools
import importlib.machinery
import inspect
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from zenray.fingerprint import classes
from zenray.fingerprint.bytecode import nested_codes
from zenray.fingerprint.names import CodeForms, Names, UnloadedModule, absolute_name
from zenray.fingerprint.origin import (
    Origin,
    all_releases,
    class_module,
    display_name,
    distribution_state,
    locate,
    module_file,
    normalised,
    origin,
    origin_of_module,
    project_root,
)
from zenray.fingerprint.parts import CodePart, Fingerprint, Form, asked, text_of
from zenray.fingerprint.sources import Sources
from zenray.fingerprint.state import State, attributes, carried, pairs
from zenray.fingerprint.values import Values, is_zenray, library_module
from zenray.hashing import digest_bytes, digest_value, encode, framed

# Changes when the meaning of a digest changes, so that older cache entries are not found any more.
RECIPE = "zenray-code-2"

_READS_NAMES = frozenset(
    {"__name__", "__qualname__", "co_name", "co_qualname", "f_code", "getmembers", "__code__", "stack", "extract_tb"}
    | {"extract_stack", "currentframe", "_getframe", "format_exc", "print_exc", "TracebackException", "tb_frame"}
)
_READS_LINES = frozenset({"f_lineno", "tb_lineno", "co_firstlineno", "co_lines", "co_positions", "lineno"})
_READS_CODE = frozenset({"co_varnames", "co_names", "co_consts", "co_code", "co_freevars", "co_cellvars", "dis"})
_READS_MODULES = frozenset({"__module__", "getmodule", "getfile", "getsourcefile"})
_READS_MEMBERS = frozenset({"vars", "__dict__", "globals", "getmembers", "getmembers_static", "__subclasses__"})
# Libraries that never look at the docstring of a function that they are given.
_IGNORES_TEXT = frozenset(
    {"numpy", "pandas", "polars", "pyarrow", "scipy", "sklearn", "joblib", "torch", "tqdm", "yaml", "pydantic"}
)
_READS_PASSED_TEXT = frozenset({"pydoc", "inspect", "doctest", "cmd", "optparse", "argparse"})
_READS_TEXT = frozenset({"__doc__", "getdoc", "getsource", "getsourcelines", "model_json_schema", "json_schema"})
_READS_ANNOTATIONS = frozenset({"__annotations__", "get_annotations", "get_type_hints", "signature", "getfullargspec"})
_OF_EVERY_MODULE = frozenset(
    {"__name__", "__doc__", "__file__", "__cached__", "__spec__", "__loader__", "__package__", "__path__"}
    | {"__builtins__", "__annotations__", "__warningregistry__", "__annotate__", "__conditional_annotations__"}
)
_THINGS_LIMIT = 100_000
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made at run time


@dataclass(frozen=True, slots=True, eq=False)
class Statements:
    """Code that ran at module level, as a thing to visit."""

    code: types.CodeType
    namespace: Mapping[str, Any]
    what: str
    bound: frozenset[str] = frozenset()


class Closure:
    """One walk from one step."""

    def __init__(self, forms: CodeForms, sources: Sources) -> None:
        self.root = ""
        self.state = State()
        self._forms = forms
        self._sources = sources
        self._values = Values(self)
        self._names = Names(self, self._values, forms, sources)
        self._target: object = None
        self._stream = blake3(RECIPE.encode())
        self._numbers: dict[int, int] = {}
        self._things: list[Any] = []  # by number; also keeps them alive, so that their ids stay their own
        self._queue: deque[tuple[Any, str, bool]] = deque()
        self._modules: dict[str, types.ModuleType] = {}
        self._pending_modules: deque[types.ModuleType] = deque()
        self._current: int | None = None
        self._edges: dict[int | None, list[int]] = {}
        self._sources_written: dict[int, bytes] = {}
        self._parts: dict[tuple[str, str, str], CodePart] = {}
        self._instances: dict[str, list[bytes]] = {}  # what is written of the instances behind a name
        self._problems: dict[str, None] = {}
        self._libraries: dict[str, None] = {}
        self._asked_releases: dict[str | None, None] = {}
        self._functions: list[types.FunctionType] = []
        self._classes: list[type] = []
        self._whole_modules: list[types.ModuleType] = []
        self._asked_classes = 0  # how many of them were asked for their subclasses
        self._passed_to_library: set[int] = set()
        self._in_library = False
        self.is_background = False  # visiting what only import-time statements reach
        self._is_silent = False  # inside of a function of a library, whose variables mean nothing to people

    def walk(self, target: Callable[..., Any] | type) -> Fingerprint:
        """Visit everything that can be reached from a step's function or class."""
        self._add("python", "python", str(sys.implementation.cache_tag))
        self._stream.update(framed(b"python", str(sys.implementation.cache_tag).encode()))
        while is_zenray(target) and hasattr(target, "__wrapped__"):
            target = target.__wrapped__
        self._target = target
        module = sys.modules.get(getattr(target, "__module__", None) or "")
        file = module_file(module) if module else None
        self.root = project_root(file) if file else str(Path.cwd())
        form = Form()
        self._values.write(target, form, getattr(target, "__qualname__", repr(target)))
        self._stream.update(framed(b"root", form.linked))
        self._visit_all()
        self._write_reflection()
        self._write_distributions()
        for name, data in self._instances.items():
            self._add("instance", name, digest_value(data))
        parts = sorted(self._parts.values(), key=lambda part: (part.kind != "step", part.kind, part.name))
        return Fingerprint(self._stream.hexdigest(), self._source_digest(), tuple(parts), tuple(self._problems))

    # What values and names need of the walk.

    def link(self, thing: Any, form: Form, name: str) -> None:
        """Write a reference to a function, class, module or instance, and visit it later."""
        if issubclass(type(thing), types.ModuleType) and origin_of_module(thing) is not Origin.FIRST_PARTY:
            form.text("module", thing.__name__)
            self.note_distribution(thing.__name__)
            return
        if self._in_library and type(thing) is types.FunctionType:
            self._passed_to_library.add(id(thing))
        number = self._numbers.setdefault(id(thing), len(self._things))
        if number == _THINGS_LIMIT:
            self._problems.setdefault(
                f"more than {_THINGS_LIMIT} objects can be reached; pass {name} to the step as a parameter"
            )
        elif number == len(self._things):
            self._things.append(thing)
            self._queue.append((thing, name, self.is_background))
        if self._names.is_lasting:
            self._edges.setdefault(self._current, []).append(number)
        form.link(number, text_of(thing, "__qualname__") or name.rpartition(".")[2])  # a script has another name there

    def is_first_party(self, thing: type | types.FunctionType) -> bool:
        """Tell whether a class or function is the project's own."""
        if type(thing) is types.FunctionType:
            namespace = thing.__globals__
            return origin(str(namespace.get("__name__", "")), namespace.get("__file__")) is Origin.FIRST_PARTY
        module = class_module(thing)
        whose = origin_of_module(module) if module else Origin.FIRST_PARTY
        # A class that a function of a library makes on behalf of the project has no name in the library.
        is_made = "<locals>" in thing.__qualname__ and bool(thing.__flags__ & _HEAP_TYPE)
        return whose is Origin.FIRST_PARTY or (whose is Origin.INSTALLED and is_made)

    def is_opaque(self, kind: type) -> bool:
        """Tell whether instances of a library's class hold more than data, such as caches that fill.

        The statements that make them are written with those that run on import.
        """
        return kind.__module__.partition(".")[0] != "numpy" and self._is_installed(kind.__module__)

    def is_address(self, number: int) -> bool:
        """Tell whether a number is the id of something that was met."""
        return number in self._numbers

    def is_own_module(self, module_name: str) -> bool:
        """Tell whether a loaded module is the project's own."""
        module = sys.modules.get(module_name)
        return module is not None and origin_of_module(module) is Origin.FIRST_PARTY

    def note_distribution(self, module_name: str) -> None:
        """Note that code of an installed module is used."""
        self._libraries.setdefault(module_name)

    def note_release(self, name: str | None) -> None:
        """Note that code asks for the version of a distribution, by its name or by one that is computed."""
        self._asked_releases.setdefault(name)

    def note_data(self, name: str, form: Form) -> None:
        """Note a value that a name stands for."""
        if not self._is_silent:
            self._add("constant", name, digest_bytes(form.own))

    def note_unresolved(self, name: str) -> None:
        """Note a name that stands for nothing."""
        self._add("unresolved", name, digest_value(name))

    def note_text(self, thing: UnloadedModule, form: Form) -> None:
        """Note a module whose text was written."""
        self._add("module", thing.module_name, digest_bytes(form.own), file=thing.file)

    def problem(self, text: str) -> None:
        """Note why the closure cannot be known.

        What an import-time statement does to a library counts by its code, and by that of what it uses; values of
        which not even the type's content can be seen do not make every step of the module a problem.
        """
        if not self.is_background:
            self._problems.setdefault(text)

    def reach(self, namespace: Mapping[str, Any]) -> None:
        """Note that code of a module is used, so that what its import does counts."""
        name = str(namespace.get("__name__"))
        module = sys.modules.get(name)
        if module is None or name in self._modules or vars(module) is not namespace:
            return
        if origin_of_module(module) is not Origin.FIRST_PARTY:
            return  # a library counts by its version, and may be imported later in one process than in another
        self._modules[name] = module
        self._pending_modules.append(module)
        parent = sys.modules.get(name.rpartition(".")[0])
        if parent is not None and origin_of_module(parent) is Origin.FIRST_PARTY:
            self.reach(vars(parent))

    def reach_package(self, namespace: Mapping[str, Any]) -> None:
        """Note that code may have imported any module of its own package: plugins, found by listing a folder."""
        package = str(namespace.get("__package__") or namespace.get("__name__"))
        for name, module in sorted(sys.modules.items()):
            if name.startswith(f"{package}.") and isinstance(module, types.ModuleType):
                self.reach(vars(module))

    # The walk.

    def _visit_all(self) -> None:
        is_done = False
        while not is_done:
            while self._queue:
                thing, name, self.is_background = self._queue.popleft()
                self._current = self._numbers[id(thing)]
                form = Form()
                self._visit(thing, name, form)
                self._stream.update(framed(b"thing", form.linked))
            self._names.is_lasting = self.is_background = False
            if not self._queue_annotated() and not self._queue_subclasses():
                self.is_background = True
                is_done = not self._pending_modules
                if self._pending_modules:
                    self._visit_import_time(self._pending_modules.popleft())
            self._names.is_lasting = True

    def _visit(self, thing: Any, name: str, form: Form) -> None:
        self._in_library = False
        kind = type(thing)  # not isinstance: a proxy, such as what wrapt makes, lies about its __class__
        if kind is types.FunctionType:
            self._function(thing, form)
        elif issubclass(kind, type):
            self._class(thing, form)
        elif issubclass(kind, types.ModuleType):
            self._whole_module(thing, form)
        elif kind is Statements:
            self._statements(thing, form)
        elif kind is UnloadedModule:
            self._names.write_unloaded(thing, form)
        else:
            self._instance(thing, name, form)

    def _add(self, kind: str, name: str, digest: str, *, file: str | None = None, line: int | None = None) -> None:
        if file is not None:
            file = file.removeprefix(self.root + "/")
        self._parts.setdefault((kind, name, digest), CodePart(kind, name, digest, file, line))

    def _function(self, function: types.FunctionType, form: Form) -> None:
        if not self.is_first_party(function):
            self._library_function(function, form)
            return
        self._functions.append(function)
        code, namespace = function.__code__, function.__globals__
        is_generated = code.co_filename.startswith("<")
        qualname = function.__qualname__ if is_generated else code.co_qualname
        name = f"{display_name(str(namespace.get('__name__', '?')))}.{qualname}"
        form.text("function")
        self._carried(function, name, form)
        self._names.write_code(code, namespace, form)
        self.reach(namespace)
        self._verify(code, namespace, name)
        normal = self._forms(code)
        looked_up = tuple((reference.name, *reference.attributes) for reference in normal.references)
        self._sources_written[self._current or 0] = encode(("function", normal.digest, looked_up))
        kind = "step" if function is self._target else "function"
        self._add(kind, name, digest_bytes(form.own), file=code.co_filename, line=code.co_firstlineno)

    def _carried(self, function: types.FunctionType, name: str, form: Form) -> None:
        """Write what a function carries beside its code: defaults, closure cells and attributes."""
        self.state.hold(function, carried)
        self._values.write(function.__defaults__, form, f"a default of {name}")
        keywords = dict(sorted((function.__kwdefaults__ or {}).items()))
        self._values.write(keywords, form, f"a default of {name}", is_made=True)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            try:
                value = cell.cell_contents
            except ValueError:
                form.text("empty cell")
                continue
            form.alias(self._values.alias_number(cell))
            self._names.write_target(value, form, f"{name}.{variable}")
        own = dict(sorted(vars(function).items()))
        self._values.write(own, form, f"an attribute of {name}", is_made=True)

    def _library_function(self, function: types.FunctionType, form: Form) -> None:
        """Write a function of a library: by name where it has one, else with the values that it carries."""
        module_name = str(function.__globals__.get("__name__", ""))
        name = function.__code__.co_qualname
        form.text("library function", module_name, name)
        self.note_distribution(module_name)
        if library_module(function) == module_name:
            return
        registry = getattr(function, "registry", None)
        if module_name == "functools" and isinstance(registry, types.MappingProxyType):
            self.state.hold(registry, pairs)
            for cls in classes.by_name(list(registry)):
                self._values.write((cls, registry[cls]), form, name)
            return
        if not self._wrapper(function, module_name, form):
            self._is_silent = True
            self._carried(function, f"{module_name}.{name}", form)
            self._is_silent = False

    def _instance(self, value: Any, name: str, form: Form) -> None:
        was_lasting, self._names.is_lasting = self._names.is_lasting, False
        if issubclass(type(value), functools.singledispatchmethod):
            self._values.write((value.func, value.dispatcher), form, name)  # without the cache that Python 3.13 has
        elif not self._wrapper(value, getattr(class_module(type(value)), "__name__", ""), form):
            self._values.write_instance(value, form, name)
        self._instances.setdefault(name, []).append(form.own)
        self._names.is_lasting = was_lasting

    def _wrapper(self, value: Any, module_name: str, form: Form) -> bool:
        """Write what a library made of a function of the project as that function and the decorators that made it."""
        self._in_library = bool(module_name) and self._is_installed(module_name)
        wrapped = asked(value, "__wrapped__") if self._in_library else None
        if type(wrapped) is not types.FunctionType or not self.is_first_party(wrapped):
            return False
        name = wrapped.__code__.co_qualname
        source = self._sources.read(wrapped.__code__.co_filename)
        code = source.origin_of(name) if source else None
        if code is None:
            return False
        form.text("wrapper")
        parts: tuple[object, ...] = (type(value), wrapped)
        self._values.write(parts, form, name)
        self.link(Statements(code, wrapped.__globals__, f"decorators of {name}"), form, name)
        return True

    def _class(self, cls: type, form: Form) -> None:
        name = f"{display_name(cls.__module__)}.{cls.__qualname__}"
        if not self.is_first_party(cls):
            form.text("library class", cls.__module__, cls.__qualname__)
            self.note_distribution(cls.__module__)
            return
        self._classes.append(cls)
        self.state.hold(cls, classes.contents)
        for member in classes.members(cls).values():
            self.state.hold(member, attributes)
        # With its module: an instance that was stored is loaded from there.
        form.text("class", display_name(cls.__module__), cls.__qualname__)
        bases: tuple[type, ...] = (type(cls), *cls.__bases__)
        for base in bases:
            self.link(base, form, base.__qualname__)
        module = class_module(cls)
        namespace = vars(module) if module else {}
        self.reach(namespace)
        self._annotations(cls, namespace, name, form)
        modules = {getattr(base, "__module__", None) for base in (*cls.__mro__, *inspect.getmro(type(cls)))}
        is_ordered = any(isinstance(m, str) and self._is_installed(m) for m in modules)
        entries = classes.entries(cls, is_ordered=is_ordered or classes.sees_order(type(cls)))
        for key, value in entries:
            form.text(key)
            self._values.write(value, form, f"{name}.{key}")
        for other in classes.virtual_subclasses(cls):
            self.link(other, form, other.__qualname__)
        methods = [key for key, value in entries if isinstance(value, classes.METHODS)]
        outline = ("class", cls.__qualname__, [base.__qualname__ for base in bases], methods)
        self._sources_written[self._current or 0] = encode(outline)
        kind = "step" if cls is self._target else "class"
        self._add(kind, name, digest_bytes(form.own), file=module_file(module) if module else None)

    def _annotations(self, cls: type, namespace: Mapping[str, Any], name: str, form: Form) -> None:
        for field, annotation in classes.class_annotations(cls).items():
            form.text(field)
            if not isinstance(annotation, str):
                self._values.write(annotation, form, f"an annotation of {name}")
                continue
            form.text(annotation)
            code = classes.compiled_annotation(annotation)
            if code is not None:
                self._names.write_code(code, namespace, form)

    def _whole_module(self, module: types.ModuleType, form: Form) -> None:
        self._whole_modules.append(module)
        self.reach(vars(module))
        self.state.hold(vars(module), pairs)
        name = display_name(module.__name__)
        for key, value in sorted(vars(module).items()):
            if key in _OF_EVERY_MODULE:
                continue
            form.text(key)
            self._names.write_target(value, form, f"{name}.{key}")

    def _statements(self, thing: Statements, form: Form) -> None:
        form.text("statements")
        self._names.write_code(thing.code, thing.namespace, form, bound=thing.bound)
        name = f"{display_name(str(thing.namespace['__name__']))} ({thing.what})"
        self._add("module", name, digest_bytes(form.own), file=thing.code.co_filename)

    def _visit_import_time(self, module: types.ModuleType) -> None:
        file = vars(module).get("__file__")
        source = self._sources.read(file) if file else None
        if source is None:
            return
        namespace = vars(module)
        for used_for_nothing in filter(self._is_installed, source.effect_imports):
            self.note_distribution(used_for_nothing)
        found = source.import_time(namespace)
        digest = self._forms(found.code).digest if found.code else ""
        if self._sources.is_edited(module, digest):
            self._problems.setdefault(
                f"what module {display_name(module.__name__)} runs on import changed on disk since it was imported; "
                "start a new process to use it"
            )
        for problem in found.problems:
            self._problems.setdefault(f"module {display_name(module.__name__)} {problem}")
        for by_name in found.imported:
            if by_name in sys.modules:
                self.reach(vars(sys.modules[by_name]))
        if found.code is not None:
            form = Form()
            form.text(*found.environment)
            self.link(Statements(found.code, namespace, "statements run on import", found.bound), form, module.__name__)
            self._stream.update(framed(b"import", form.linked))
        for statement in source.imports:
            name = absolute_name(statement, namespace)
            for imported in (name, *(f"{name}.{inner}" for inner in statement.names)):
                other = sys.modules.get(str(imported))
                if other is not None and origin_of_module(other) is Origin.FIRST_PARTY:
                    self.reach(vars(other))

    def _verify(self, code: types.CodeType, namespace: Mapping[str, Any], name: str) -> None:
        """Note a problem where a file was edited after it was imported: workers would run something else."""
        # Import hooks, such as pytest's, make other code of a file than Python does.
        is_plain = type(namespace.get("__loader__")) is importlib.machinery.SourceFileLoader
        if not is_plain or code.co_filename != namespace.get("__file__"):
            return
        source = self._sources.read(code.co_filename)
        if source is None or not source.holds(code, self._forms):
            self.problem(f"the source of {name} changed on disk since it was imported; start a new process to use it")

    # What is written at the end.

    def _queue_annotated(self) -> bool:
        """Visit classes of the project that annotations name: their instances may arrive as arguments."""
        found = {cls: None for function in self._functions for cls in classes.annotated_classes(function)}
        if type(self._target) is types.FunctionType:
            for cls in classes.annotated_classes(self._target):
                if not self.is_first_party(cls):
                    self.note_distribution(cls.__module__)  # it calls methods of what it gets, and names nothing else
        new = [cls for cls in found if id(cls) not in self._numbers and self.is_first_party(cls)]
        for cls in classes.by_name(new):
            self.link(cls, Form(), cls.__qualname__)
        return bool(new)

    def _queue_subclasses(self) -> bool:
        """Visit the subclasses of all classes met so far, where some code asks for them."""
        if "__subclasses__" not in self._names.mentions:
            return False
        form = Form()
        count = len(self._things)
        for cls in self._classes[self._asked_classes :]:
            # Those of one module stay in the order in which they were written.
            self.state.hold(cls, type.__subclasses__)
            children: list[type] = type.__subclasses__(cls)
            for child in sorted(children, key=_module_of):
                self.link(child, form, child.__qualname__)
        self._asked_classes = len(self._classes)
        self._stream.update(framed(b"subclasses", form.linked))
        return len(self._things) > count

    def _write_reflection(self) -> None:
        """Write names, docstrings and annotations of functions, where some code asks for them."""
        form = Form()
        mentions = self._names.mentions
        form.text("rebound", *self._names.rebound())
        if mentions & _READS_NAMES:
            form.text("names", *(function.__qualname__ for function in self._functions))
        if mentions & _READS_MEMBERS:
            for cls in self._classes:
                form.text("members", *classes.names(cls))
            for module in self._whole_modules:
                own = (key for key, value in vars(module).items() if not isinstance(value, types.ModuleType))
                form.text("members", *(key for key in own if key not in _OF_EVERY_MODULE))
        if mentions & _READS_MODULES:
            form.text("modules", *(display_name(f.__module__ or "?") for f in self._functions))
        codes = [code for function in self._functions for code in nested_codes(function.__code__)]
        if mentions & _READS_TEXT:
            form.text("docs", *(str(thing.__doc__) for thing in (*self._functions, *self._classes)))
            form.text("texts", *(text for code in codes for text in code.co_consts if isinstance(text, str)))
        if mentions & _READS_CODE:
            form.text("code", *(str((c.co_varnames, c.co_names, c.co_freevars, c.co_cellvars)) for c in codes))
        if mentions & _READS_LINES:
            form.text("lines", *(str([line for *_, line in c.co_lines()]) for c in codes))
        self._write_passed(form)
        self._stream.update(framed(b"reflection", form.linked))

    def _write_passed(self, form: Form) -> None:
        """Write what may be asked of a function that is passed on, such as to a library that validates or documents."""
        mentions = self._names.mentions
        tops = {name.partition(".")[0] for name in self._libraries}
        reads_text = bool(tops & _READS_PASSED_TEXT) or any(map(self._is_installed, tops - _IGNORES_TEXT))
        for function in self._functions:
            is_passed = id(function) in self._names.passed_on
            if is_passed and reads_text:
                form.text("doc", str(function.__doc__))
            if mentions & _READS_ANNOTATIONS or is_passed or id(function) in self._passed_to_library:
                texts = (f"{key}: {classes.annotation_text(v)}" for key, v in function.__annotations__.items())
                form.text("annotations", *texts)

    def _write_distributions(self) -> None:
        states = set()
        for module_name in self._libraries:
            if self._is_installed(module_name):
                state = distribution_state(module_name) or (module_name.partition(".")[0], _content(module_name), "")
                states.add(state)
                self._add("distribution", state[0], digest_value(state[1:]))
        for distribution, version in self._releases():
            states.add((distribution, version, "asked"))
            self._add("distribution", distribution, digest_value((version, "asked")))
        self._stream.update(framed(b"distributions", encode(sorted(states))))

    def _releases(self) -> list[tuple[str, str]]:
        """Return the versions that code asks for; all there are, where it does so by a name that is computed."""
        if not self._asked_releases:
            return []
        known = all_releases()
        if None in self._asked_releases:
            return sorted(known.items())
        asked_for = sorted(normalised(name) for name in self._asked_releases if name is not None)
        return [(name, known.get(name, "")) for name in asked_for]

    def _is_installed(self, module_name: str) -> bool:
        module = sys.modules.get(module_name)
        if module is not None:
            return origin_of_module(module) is Origin.INSTALLED
        top = locate(module_name.partition(".")[0])
        file = (top.file or "".join(f"{folder}/__init__.py" for folder in top.folders[:1])) if top else None
        return bool(file) and origin(module_name, file) is Origin.INSTALLED

    def _source_digest(self) -> str:
        """Return the digest of the functions and classes reached by names that mean the same in every process."""
        pending, seen = list(self._edges.get(None, ())), set()
        while pending:
            number = pending.pop()
            if number not in seen:
                seen.add(number)
                pending += self._edges.get(number, ())
        return digest_value(sorted({self._sources_written[n] for n in seen if n in self._sources_written}))


def _module_of(cls: type) -> str:
    return display_name(cls.__module__)


def _content(module_name: str) -> str:
    """Return the digest of the files of an installed package that no distribution lists."""
    located = locate(module_name.partition(".")[0])
    if located is None:
        return ""
    if not located.is_package:
        return digest_bytes(Path(str(located.file)).read_bytes())
    files = (file for folder in located.folders for file in sorted(Path(folder).rglob("*")))
    kept = [file for file in files if file.suffix in {".py", ".so", ".pyd"}]
    return digest_value([(file.name, digest_bytes(file.read_bytes())) for file in kept])
