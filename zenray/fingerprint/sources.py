"""What the text of a module tells that its loaded objects do not: import-time statements, and whether it still holds.

Runs in: driver.

A module such as ``import random; random.seed(3)`` changes what its functions return, though no function refers to
the 3. So statements that act on something outside of the project's own values count as code of every step that
imports the module.
"""

import ast
import builtins
import importlib
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from zenray.fingerprint.bytecode import CodeForm, Import, nested_codes
from zenray.fingerprint.effects import DEFINITIONS, Effects, environment, inner, is_guard, is_own
from zenray.fingerprint.origin import Origin, origin_of_module

_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.TryStar, ast.Match)


@dataclass(frozen=True, slots=True)
class ImportTime:
    """What a module does to others while it is imported."""

    code: CodeType | None
    bound: frozenset[str]  # variables of its loops and with statements: their last values say nothing
    environment: tuple[str, ...]  # variables that its statements read, with their values
    imported: tuple[str, ...]  # modules that they may import by a name that is computed
    problems: tuple[str, ...]


class Source:
    """The text of one module file, parsed."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self._data = data
        self.tree = ast.parse(data)
        self.imports = tuple(_imports(self.tree.body))  # what the module imports while it is itself imported
        self.effect_imports = tuple(_unused(self.tree))  # modules that it imports and uses for nothing
        self._effects: tuple[Mapping[str, Any], ImportTime] | None = None
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

    def import_time(self, namespace: Mapping[str, Any]) -> ImportTime:
        """Return what the statements do that act on something outside of the module's own values.

        Found once for each module object: what names stood for then is nearest to what they did on import.
        """
        if self._effects is None or self._effects[0] is not namespace:
            self._effects = (namespace, self._import_time(namespace))
        return self._effects[1]

    def _import_time(self, namespace: Mapping[str, Any]) -> ImportTime:
        effects = Effects(self.tree.body, namespace)
        statements = effects.statements()
        acting = list(statements)
        for statement in statements:  # which grows
            names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            objects = (name for name in sorted(names) if not is_own(ast.Name(name), effects))
            made = [ast.Expr(maker) for name in objects for node in self.tree.body for maker in _makers(node, name)]
            statements += [new for new in made if all(new.value is not _expression(old) for old in statements)]
        code = _compiled(statements, self.path) if statements else None
        others = [node for node in self.tree.body if node not in acting]
        bound = frozenset(_bound(acting) - _stored(others))
        return ImportTime(code, bound, tuple(environment(statements)), *_by_name(acting, effects))

    def origin_of(self, name: str) -> CodeType | None:
        """Compile what was done at module level to make a global: its decorators, or the values assigned to it."""
        expressions = [made for statement in ast.walk(self.tree) for made in _makers(statement, name)]
        return _compiled([ast.Expr(made) for made in expressions], self.path) if expressions else None


class Sources:
    """The parsed files of a process; a file that changes is parsed again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], Source | None]] = {}
        self._ran: dict[str, tuple[object, str]] = {}  # by module name: its spec, and what it ran when first seen

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

    def look(self, path: str) -> tuple[Source | None]:
        """Return a file as something to compare: it is another object once the file has changed."""
        return (self.read(path),)

    def is_edited(self, module: ModuleType, digest: str) -> bool:
        """Tell whether a module's statements are others than when it was first seen, though it was not imported again.

        A reload gives a module a new spec.
        """
        spec = vars(module).get("__spec__")
        known = self._ran.get(module.__name__)
        if known is None or known[0] is not spec:
            known = self._ran[module.__name__] = (spec, digest)
        return known[1] != digest


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
        elif isinstance(statement, _BLOCKS):
            yield from _imports(statement.orelse if is_guard(statement) else list(inner(statement)))
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


def _bound(statements: list[ast.stmt]) -> set[str]:
    nodes = [node for statement in statements for node in ast.walk(statement)]
    targets = [node.target for node in nodes if isinstance(node, ast.For)]
    targets += [node.optional_vars for node in nodes if isinstance(node, ast.withitem) and node.optional_vars]
    return _stored(targets)


def _stored(statements: Sequence[ast.AST]) -> set[str]:
    nodes = (node for statement in statements for node in ast.walk(statement))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _by_name(statements: list[ast.stmt], effects: Effects) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules that statements may import by a computed name, and what cannot be told."""
    modules: set[str] = set()
    problems: set[str] = set()
    for statement in statements:
        nodes = list(ast.walk(statement))
        calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
        for call in calls:
            called = effects.value(call.func)
            if any(called is known for known in (builtins.exec, builtins.eval, runpy.run_path, runpy.run_module)):
                if not isinstance(call.args[0], ast.Constant):
                    problems.add(f"runs code on import that is made at run time, by {called.__name__}()")
            elif called is importlib.import_module or called is builtins.__import__:
                found = set(_modules_named(nodes, effects))
                modules |= found
                if not found and not isinstance(call.args[0], ast.Constant):
                    problems.add("imports a module on import by a name that is computed; write an import statement")
    return tuple(sorted(modules)), tuple(sorted(problems))


def _modules_named(nodes: list[ast.AST], effects: Effects) -> Iterator[str]:
    """Yield loaded modules of the project that a text names, and those below the packages that code names."""
    values = [effects.value(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    texts += [text for value in values if isinstance(value, list | tuple | set) for text in value]
    texts += [value for value in values if isinstance(value, str)]
    packages = {value.__name__ for value in values if isinstance(value, ModuleType)}
    packages |= {text.rstrip(".") for text in texts if isinstance(text, str) and text}
    for name, module in sorted(sys.modules.items()):
        is_named = any(name == package or name.startswith(f"{package}.") for package in packages)
        if is_named and isinstance(module, ModuleType) and origin_of_module(module) is Origin.FIRST_PARTY:
            yield name


def _makers(statement: ast.AST, name: str) -> Iterator[ast.expr]:
    if isinstance(statement, DEFINITIONS) and statement.name == name:
        yield from statement.decorator_list
    elif isinstance(statement, ast.Assign):
        names = {n.id for target in statement.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        if name in names:
            yield statement.value
