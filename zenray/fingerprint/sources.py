"""What the text of a module tells that its loaded objects do not: import-time statements, and whether it still holds.

Runs in: driver.

A module such as ``import random; random.seed(3)`` changes what its functions return, though no function refers to
the 3. So statements that act on something outside of the project's own values count as code of every step that
imports the module.
"""

import ast
import builtins
import dis
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any

from zenray.fingerprint.bytecode import CodeForm, Import, nested_codes
from zenray.fingerprint.origin import Origin, origin, origin_of_module
from zenray.fingerprint.parts import asked, text_of

# Decorators of these modules have no effect but on what they decorate, which is followed by value.
_QUIET_MODULES = frozenset(
    {"abc", "builtins", "contextlib", "dataclasses", "enum", "functools", "typing", "types", "typing_extensions"}
)
_QUIET_LIBRARIES = frozenset({"attr", "attrs", "pydantic", "msgspec", "zenray", "zenray_materializers"})
_SETTER = re.compile(
    r"(manual_)?seed|set(_\w+|attr|locale|context|err|printoptions|default\w*)|register\w*|environ|putenv"
    r"|(rc)?[Pp]arams|options|configure\w*|basicConfig|patch\w*|install\w*|enable\w*|disable\w*|use"
)
_CONTAINERS = (list, dict, set, bytearray)
_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.TryStar, ast.Match)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Source:
    """The text of one module file, parsed."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self._data = data
        self.tree = ast.parse(data)
        self.imports = tuple(_imports(self.tree.body))  # what the module imports while it is itself imported
        self.effect_imports = tuple(_unused(self.tree))  # modules that it imports and uses for nothing
        self._actions = [statement for statement in self.tree.body if _may_act(statement)]
        self._codes: dict[str, list[CodeType]] | None = None

    def code(self) -> CodeType:
        """Compile the whole module."""
        return compile(self._data, self.path, "exec", dont_inherit=True)

    def holds(self, code: CodeType, normal_form: Callable[[CodeType], CodeForm]) -> bool:
        """Tell whether loaded code is still what the file says, layout aside."""
        if self._codes is None:
            self._codes = {}
            for nested in nested_codes(self.code()):
                self._codes.setdefault(nested.co_qualname, []).append(nested)
        candidates = self._codes.get(code.co_qualname, [])
        if code in candidates:
            return True
        digest = normal_form(code).digest
        return any(normal_form(candidate).digest == digest for candidate in candidates)

    def import_time_statements(self, namespace: Mapping[str, Any]) -> CodeType | None:
        """Compile the statements that act on something outside of the module's own values; None if there are none."""
        statements = list(_effects(self._actions, namespace))
        for statement in statements:  # which grows
            names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            objects = (name for name in sorted(names) if not _is_own(ast.Name(name), namespace))
            made = [ast.Expr(maker) for name in objects for node in self.tree.body for maker in _makers(node, name)]
            statements += [new for new in made if all(new.value is not _expression(old) for old in statements)]
        return _compiled(statements, self.path) if statements else None

    def origin_of(self, name: str) -> CodeType | None:
        """Compile what was done at module level to make a global: its decorators, or the values assigned to it."""
        expressions = [made for statement in ast.walk(self.tree) for made in _makers(statement, name)]
        return _compiled([ast.Expr(made) for made in expressions], self.path) if expressions else None


class Sources:
    """The parsed files of a process; a file that changes is parsed again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], Source | None]] = {}

    def read(self, path: str) -> Source | None:
        """Return a parsed file; None where there is none or it is not Python."""
        try:
            stat = Path(path).stat()
        except OSError:
            return None
        state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._known.get(path)
        if known is None or known[0] != state:
            known = self._known[path] = (state, _parsed(path))
        return known[1]


def _expression(statement: ast.stmt) -> ast.expr | None:
    return statement.value if isinstance(statement, ast.Expr) else None


def _parsed(path: str) -> Source | None:
    try:
        return Source(path, Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _compiled(statements: list[ast.stmt], path: str) -> CodeType:
    module = ast.fix_missing_locations(ast.Module(statements, type_ignores=[]))
    return compile(module, path, "exec", dont_inherit=True)


def _imports(body: list[ast.stmt]) -> Iterator[Import]:
    for statement in body:
        if isinstance(statement, ast.Import):
            yield from (Import(alias.name) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            names = tuple(alias.name for alias in statement.names)
            yield Import(statement.module or "", statement.level, names)
        elif isinstance(statement, _BLOCKS) and not _is_skipped(statement):
            yield from _imports(list(_inner(statement)))
        elif isinstance(statement, ast.ClassDef):
            yield from _imports(statement.body)


def _unused(tree: ast.Module) -> Iterator[str]:
    """Yield the modules whose names are bound by imports and used nowhere: they are imported for what that does."""
    nodes = list(ast.walk(tree))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    used |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in nodes:
        if isinstance(node, ast.Import):
            names = ((alias.name, alias.asname or alias.name.partition(".")[0]) for alias in node.names)
            yield from (name for name, bound in names if bound not in used)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound_names = {alias.asname or alias.name for alias in node.names}
            yield from () if bound_names & used else (str(node.module),)


def _may_act(statement: ast.stmt) -> bool:
    """Tell by its syntax alone whether a statement may have to do with anything outside of the module's values."""
    if isinstance(statement, ast.ClassDef):
        return bool(statement.decorator_list) or any(map(_may_act, statement.body))
    if isinstance(statement, _DEFINITIONS):
        return bool(statement.decorator_list)
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return False
    nodes = list(ast.walk(statement))
    is_action = any(isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant) for node in nodes)
    return is_action or any(isinstance(node, ast.Call | ast.Attribute | ast.Subscript) for node in nodes)


def _effects(body: list[ast.stmt], namespace: Mapping[str, Any]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.ClassDef) and any(_acts_outside(s, namespace) for s in statement.body):
            yield statement
        elif isinstance(statement, _DEFINITIONS):
            yield from _registrations(statement, namespace)
        elif isinstance(statement, _BLOCKS):
            if not _is_skipped(statement) and any(_effects(list(_inner(statement)), namespace)):
                yield statement
        elif _acts_outside(statement, namespace):
            yield statement


def _acts_outside(statement: ast.stmt, namespace: Mapping[str, Any]) -> bool:
    if isinstance(statement, ast.Expr):
        value = _root(statement.value, namespace)
        is_action = not isinstance(statement.value, ast.Constant)
        return is_action and not issubclass(type(value), _CONTAINERS) and value is not print and not _is_zenray(value)
    if isinstance(statement, ast.Assert):
        return _calls_setter(statement, namespace)
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
        targets = [statement.target]
    elif isinstance(statement, ast.Delete):
        targets = statement.targets
    else:
        return False
    # A plain name is a value of the module, and so is what belongs to an object of the project.
    written = [part for t in targets for part in ast.walk(t) if isinstance(part, ast.Attribute | ast.Subscript)]
    return any(not _is_own(part.value, namespace) for part in written) or _calls_setter(statement, namespace)


def _registrations(statement: ast.stmt, namespace: Mapping[str, Any]) -> Iterator[ast.stmt]:
    """Yield a definition whose decorators leave it as it is, or leave nothing: they must have registered it."""
    assert isinstance(statement, _DEFINITIONS)
    made = namespace.get(statement.name)
    is_plain = isinstance(made, type) or (isinstance(made, FunctionType) and not hasattr(made, "__wrapped__"))
    is_itself = is_plain and getattr(made, "__qualname__", None) == statement.name
    if (is_itself or made is None) and not all(_is_quiet(d, namespace) for d in statement.decorator_list):
        yield statement


def _is_quiet(decorator: ast.expr, namespace: Mapping[str, Any]) -> bool:
    """Tell whether a decorator has no effect on anything outside of the project."""
    root = _root(decorator, namespace)
    if _is_zenray(root) or isinstance(asked(root, "registry"), MappingProxyType):  # functools.singledispatch
        return True
    made_by = _value(decorator.func if isinstance(decorator, ast.Call) else decorator, namespace)
    if type(made_by) is FunctionType and _is_first_party_function(made_by):
        return not any(map(_is_library, _looked_up(made_by)))
    module = text_of(root, "__module__") or text_of(root, "__name__")
    return module in _QUIET_MODULES or module.partition(".")[0] in _QUIET_LIBRARIES


def _calls_setter(statement: ast.stmt, namespace: Mapping[str, Any]) -> bool:
    """Tell whether a statement calls what, by its name or what it does, sets state that is not of the project."""
    calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    if any(
        _SETTER.fullmatch(c.attr) and not _is_own(c.value, namespace) for c in calls if isinstance(c, ast.Attribute)
    ):
        return True
    pending = [_value(called, namespace) for called in calls]
    seen: set[int] = set()
    while pending:
        called = pending.pop()
        called = getattr(called, "__init__", None) if isinstance(called, type) else called
        called = called.__func__ if isinstance(called, classmethod | staticmethod) else called
        if type(called) is not FunctionType or id(called) in seen or not _is_first_party_function(called):
            continue
        seen.add(id(called))
        codes = list(nested_codes(called.__code__))
        if any(_SETTER.match(name) for code in codes for name in code.co_names):
            return True
        named = _looked_up(called)
        if any(map(_stores_attributes, codes)) and any(map(_is_foreign, named)):
            return True
        pending += named
    return False


def _stores_attributes(code: CodeType) -> bool:
    return any(step.opname in ("STORE_ATTR", "DELETE_ATTR") for step in dis.get_instructions(code))


def _is_foreign(value: Any) -> bool:
    module = value if issubclass(type(value), ModuleType) else sys.modules.get(text_of(value, "__module__"))
    return module is not None and origin_of_module(module) is not Origin.FIRST_PARTY


def _looked_up(function: FunctionType) -> list[object]:
    """Return the values of the globals that a function names."""
    names = {name for code in nested_codes(function.__code__) for name in code.co_names}
    return [function.__globals__[name] for name in sorted(names) if name in function.__globals__]


def _is_first_party_function(function: FunctionType) -> bool:
    namespace = function.__globals__
    return origin(str(namespace.get("__name__", "")), namespace.get("__file__")) is Origin.FIRST_PARTY


def _is_library(value: Any) -> bool:
    module = value if issubclass(type(value), ModuleType) else sys.modules.get(text_of(value, "__module__"))
    return module is not None and origin_of_module(module) is Origin.INSTALLED


def _is_own(expression: ast.expr, namespace: Mapping[str, Any]) -> bool:
    """Tell whether an expression stands for a value of the project, which counts by its content where it is used."""
    value = _value(expression, namespace)
    if issubclass(type(value), ModuleType):
        return origin_of_module(value) is Origin.FIRST_PARTY
    if value is None:
        return isinstance(_root(expression, namespace), _CONTAINERS)
    maker = sys.modules.get(text_of(value if isinstance(value, type) else type(value), "__module__"))
    is_function = type(value) is FunctionType and _is_first_party_function(value)
    is_instance = maker is None or origin_of_module(maker) is Origin.FIRST_PARTY
    return issubclass(type(value), _CONTAINERS) or is_function or is_instance


def _value(expression: ast.expr, namespace: Mapping[str, Any]) -> Any:
    """Return the value of a dotted name; None for other expressions and where it is not known."""
    if isinstance(expression, ast.Name):
        return namespace.get(expression.id, getattr(builtins, expression.id, None))
    if isinstance(expression, ast.Attribute):
        owner = _value(expression.value, namespace)
        return None if owner is None else inspect.getattr_static(owner, expression.attr, None)
    return None


def _is_zenray(value: object) -> bool:
    return text_of(type(value), "__module__").partition(".")[0] == "zenray"


def _root(expression: ast.expr, namespace: Mapping[str, Any]) -> object:
    """Return the value of the name that an expression such as ``a.b(c)[d]`` starts from; None if there is none."""
    while not isinstance(expression, ast.Name):
        inner = getattr(expression, "func", None) or getattr(expression, "value", None)
        if not isinstance(inner, ast.expr):
            return None
        expression = inner
    return namespace.get(expression.id, getattr(builtins, expression.id, None))


def _is_skipped(block: ast.stmt) -> bool:
    """Tell whether a block does not run on import: the main guard, and what is for type checkers only."""
    if not isinstance(block, ast.If) or block.orelse:
        return False
    nodes = list(ast.walk(block.test))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return bool(names & {"__name__", "TYPE_CHECKING"})


def _inner(block: ast.stmt) -> Iterator[ast.stmt]:
    for name in ("body", "orelse", "finalbody"):
        yield from getattr(block, name, ())
    for part in (*getattr(block, "handlers", ()), *getattr(block, "cases", ())):
        yield from part.body


def _makers(statement: ast.AST, name: str) -> Iterator[ast.expr]:
    if isinstance(statement, _DEFINITIONS) and statement.name == name:
        yield from statement.decorator_list
    elif isinstance(statement, ast.Assign):
        names = {n.id for target in statement.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        if name in names:
            yield statement.value
