"""Which statements of a module act, while it is imported, on something that is not the module's own.

Runs in: driver.

A statement counts unless it is seen to have no effect: one too many costs a run when it is edited, one too few is a
stale hit. What a call does is told by what it calls: known modules of the standard library and of some libraries have
functions without effect but for those with a telling name, and code of the project is looked through.
"""

import ast
import builtins
import inspect
import os
import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, TypeGuard

from zenray.fingerprint.origin import Origin, origin_of_module
from zenray.fingerprint.parts import asked, text_of
from zenray.fingerprint.purity import (
    CONTAINERS,
    QUIET_LIBRARIES,
    QUIET_MODULES,
    READERS,
    Purity,
    is_first_party_class,
    is_first_party_function,
    is_own_module,
    unwrapped,
)

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.TryStar, ast.Match)
_LITERALS: dict[type[ast.expr], type] = {
    ast.JoinedStr: str, ast.List: list, ast.ListComp: list, ast.Dict: dict, ast.DictComp: dict, ast.Set: set,
    ast.SetComp: set, ast.Tuple: tuple, ast.Compare: bool, ast.GeneratorExp: tuple,
}  # fmt: skip
_HEADS = ("test", "iter", "subject")
# The parts of an expression or statement that are asked for something by it without a call.
_OPERANDS: dict[type[ast.AST], tuple[str, ...]] = {
    ast.Attribute: ("value",), ast.Subscript: ("value",), ast.BinOp: ("left", "right"), ast.UnaryOp: ("operand",),
    ast.Compare: ("left", "comparators"), ast.BoolOp: ("values",), ast.IfExp: ("test",), ast.Starred: ("value",),
    ast.FormattedValue: ("value",), ast.comprehension: ("iter",), ast.For: ("iter",), ast.If: ("test",),
    ast.While: ("test",), ast.Assert: ("test",), ast.Match: ("subject",), ast.withitem: ("context_expr",),
    ast.AugAssign: ("target", "value"), ast.Assign: ("value",),
}  # fmt: skip


class Effects:
    """Looks through the statements of one module, or of one class in it."""

    def __init__(self, body: list[ast.stmt], namespace: Mapping[str, Any], purity: Purity | None = None) -> None:
        self._body, self._namespace = body, namespace
        self._purity = purity or Purity()
        self._shared = {id(v) for v in _from_libraries(body, namespace)}

    def statements(self) -> list[ast.stmt]:
        """Return the statements that count, and the expressions of definitions that do."""
        return list(self._of(self._body))

    def _of(self, body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                if self._class_acts(statement):
                    yield statement
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from self._definition(statement)
            elif isinstance(statement, _BLOCKS):
                if is_guard(statement):
                    yield from self._of(statement.orelse)
                elif self._head_acts(statement) or any(self._of(list(inner(statement)))):
                    yield statement
            elif self._acts(statement):
                yield statement

    # Definitions.

    def _definition(self, statement: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.stmt]:
        if self._registers(statement):
            yield statement
            return
        defaults = (*statement.args.defaults, *statement.args.kw_defaults)
        yield from (ast.Expr(d) for d in defaults if d is not None and self._calls_act(d))

    def _class_acts(self, statement: ast.ClassDef) -> bool:
        made = self._namespace.get(statement.name)
        inside = ChainMap(dict(vars(made)) if isinstance(made, type) else {}, dict(self._namespace))
        heads = (*statement.bases, *(keyword.value for keyword in statement.keywords))
        if self._registers(statement) or any(map(self._calls_act, heads)):
            return True
        if any(Effects(statement.body, inside, self._purity).statements()):
            return True
        return isinstance(made, type) and self._is_told(made)

    def _is_told(self, cls: type) -> bool:
        """Tell whether a metaclass, a base class or a descriptor does something when the class is made."""
        hooks = [vars(base).get("__init_subclass__") for base in cls.__mro__[1:] if base is not object]
        metaclasses = [meta for meta in inspect.getmro(type(cls)) if meta not in (type, object)]
        hooks += [vars(m).get(n) for m in metaclasses for n in ("__new__", "__init__", "__call__", "__prepare__")]
        hooks += [vars(type(value)).get("__set_name__") for value in vars(cls).values()]
        functions = [unwrapped(hook) for hook in hooks if hook is not None]
        return any(
            not self._purity.of_function(f) if is_first_party_function(f) else not _is_quiet_place(f)
            for f in functions
            if type(f) is FunctionType
        )

    def _registers(self, statement: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
        """Tell whether a decorator may put what it gets somewhere outside of the project."""
        made = self._namespace.get(statement.name)
        is_plain = isinstance(made, type) or (isinstance(made, FunctionType) and not hasattr(made, "__wrapped__"))
        is_itself = is_plain and str(getattr(made, "__qualname__", "")).rpartition(".")[2] == statement.name
        for decorator in statement.decorator_list:
            if self._is_quiet(decorator):
                continue
            root = self._root(decorator)
            is_named = isinstance(root, ModuleType | type | FunctionType) or inspect.isbuiltin(root)
            if is_itself or made is None or is_named:
                return True
        return False

    def _is_quiet(self, decorator: ast.expr) -> bool:
        """Tell whether a decorator has no effect on anything outside of the project."""
        root = self._root(decorator)
        if _is_zenray(root) or isinstance(asked(root, "registry"), MappingProxyType):  # functools.singledispatch
            return True
        if isinstance(root, property):
            return True
        arguments = decorator.args if isinstance(decorator, ast.Call) else []
        made_by = unwrapped(self.value(decorator.func if isinstance(decorator, ast.Call) else decorator))
        if type(made_by) is FunctionType and is_first_party_function(made_by):
            return self._purity.of_function(made_by) and not any(map(self._calls_act, arguments))
        if isinstance(decorator, ast.Name) and self._is_own(decorator) and not isinstance(made_by, type):
            return self._purity.of_method(type(made_by), "__call__")
        return _is_quiet_place(root)

    # Statements and expressions.

    def _head_acts(self, statement: ast.stmt) -> bool:
        heads = [getattr(statement, name) for name in _HEADS if hasattr(statement, name)]
        heads += getattr(statement, "items", ())
        return self._operates(statement) or any(map(self._calls_act, heads))

    def _acts(self, statement: ast.stmt) -> bool:
        if isinstance(statement, ast.Expr):
            return self._expression_acts(statement.value)
        if isinstance(statement, ast.Assert):
            return self._calls_act(statement)
        if isinstance(statement, ast.Assign | ast.Delete):
            targets = statement.targets
        elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
            targets = [statement.target]
        else:
            return False
        # A plain name is a value of the module, and so is what belongs to an object of the project.
        written = [p.value for t in targets for p in ast.walk(t) if isinstance(p, ast.Attribute | ast.Subscript)]
        if isinstance(statement, ast.AugAssign):
            written += [statement.target] if id(self.value(statement.target)) in self._shared else []
        return not all(map(self._is_own, written)) or self._calls_act(statement)

    def _expression_acts(self, expression: ast.expr) -> bool:
        """Tell whether an expression as a statement acts: a call does but for those that are all too common."""
        if isinstance(expression, ast.Constant):
            return False
        root = self._root(expression)
        is_harmless = issubclass(type(root), CONTAINERS) or root is print or _is_zenray(root)
        if not is_harmless or id(root) in self._shared:
            return True
        return self._calls_act(expression)

    def _calls_act(self, node: ast.AST) -> bool:
        """Tell whether any call in an expression or statement may act."""
        parts = list(ast.walk(node))
        calls = [part for part in parts if isinstance(part, ast.Call)]
        if any(map(self._operates, parts)) or not all(map(self._is_pure, calls)):
            return True
        values = [self.value(part) for part in parts if isinstance(part, ast.Name | ast.Attribute)]
        return bool(calls) and not self._purity.of_values(
            values, [p.attr for p in parts if isinstance(p, ast.Attribute)]
        )

    def _operates(self, node: ast.AST) -> bool:
        """Tell whether an operator, a loop, a property or the like may act, by what a class of the project says."""
        names: tuple[str, ...] = ()
        if isinstance(node, ast.Attribute):
            names = (node.attr, "__getattr__", "__getattribute__")
        elif isinstance(node, ast.withitem):
            names = ("__enter__", "__exit__")
        elif isinstance(node, ast.Assign) and not any(isinstance(t, ast.Tuple | ast.List) for t in node.targets):
            return False
        parts = (getattr(node, name) for name in _OPERANDS.get(type(node), ()))
        operands = (operand for part in parts for operand in (part if isinstance(part, list) else [part]))
        return not all(self._purity.of_operators(self._type_of(operand), names) for operand in operands)

    def _is_pure(self, call: ast.Call) -> bool:
        given = [self.value(part) for part in (*call.args, *(keyword.value for keyword in call.keywords))]
        callbacks = (unwrapped(value) for value in given)
        if not all(self._purity.of_function(f) for f in callbacks if type(f) is FunctionType):
            return False
        func = call.func
        if isinstance(func, ast.Attribute):
            owner = self.value(func.value)
            if owner is None:
                return self._purity.of_method(self._type_of(func.value), func.attr)
            if isinstance(owner, type) and not is_first_party_class(owner):
                if issubclass(owner, CONTAINERS) and func.attr not in READERS:
                    return False
                return self._purity.of_method(owner, func.attr)
            if not issubclass(type(owner), ModuleType | type):
                is_shared = id(owner) in self._shared or not self._is_own(func.value)
                if is_shared and issubclass(type(owner), CONTAINERS):
                    return func.attr in READERS
                return _is_zenray(owner) or self._purity.of_method(type(owner), func.attr)
        return self._purity.of_call(self.value(func), given, name=_last_name(func))

    def _type_of(self, expression: ast.expr) -> type | None:
        """Return the class of what an expression gives; `object` where it is known only to be harmless."""
        if isinstance(expression, ast.Constant):
            return type(expression.value)
        literal = _LITERALS.get(type(expression))
        if literal is not None:
            return literal
        if isinstance(expression, ast.BinOp):
            return self._type_of(expression.left)
        if isinstance(expression, ast.Attribute | ast.Subscript):
            return object if self._type_of(expression.value) else None
        if isinstance(expression, ast.Call):
            made_by = self.value(expression.func)
            if isinstance(made_by, type):
                return made_by
            return object if self._is_pure(expression) and not is_first_party_function(made_by) else None
        value = self.value(expression)
        return None if value is None else type(value)

    # What names stand for.

    def value(self, expression: ast.expr) -> Any:
        """Return the value of a dotted name; None for other expressions and where it is not known."""
        if isinstance(expression, ast.Name):
            return self._namespace.get(expression.id, getattr(builtins, expression.id, None))
        if isinstance(expression, ast.Attribute):
            owner = self.value(expression.value)
            return None if owner is None else inspect.getattr_static(owner, expression.attr, None)
        return None

    def _root(self, expression: ast.expr) -> object:
        """Return the value of the name that an expression such as ``a.b(c)[d]`` starts from; None if there is none."""
        while not isinstance(expression, ast.Name):
            inner_one = getattr(expression, "func", None) or getattr(expression, "value", None)
            if not isinstance(inner_one, ast.expr):
                return None
            expression = inner_one
        return self._namespace.get(expression.id, getattr(builtins, expression.id, None))

    def _is_own(self, expression: ast.expr) -> bool:
        return is_own(expression, self) and id(self._root(expression)) not in self._shared


def is_own(expression: ast.expr, effects: Effects) -> bool:
    """Tell whether an expression stands for a value of the project, which counts by its content where it is used."""
    value = effects.value(expression)
    if issubclass(type(value), ModuleType):
        return is_own_module(value)
    if value is None:
        return isinstance(effects._root(expression), CONTAINERS)
    maker = sys.modules.get(text_of(value if isinstance(value, type) else type(value), "__module__"))
    is_function = type(value) is FunctionType and is_first_party_function(value)
    is_instance = maker is None or is_own_module(maker)
    is_container = issubclass(type(value), CONTAINERS) and not (
        isinstance(expression, ast.Attribute) and not is_own(expression.value, effects)
    )
    return is_container or is_function or is_instance


def environment(statements: list[ast.stmt]) -> list[str]:
    """Return the environment variables that statements name as they read them."""
    found = set()
    for node in (node for statement in statements for node in ast.walk(statement)):
        key = None
        if isinstance(node, ast.Call) and node.args and _last_name(node.func) in ("get", "getenv"):
            is_named = "environ" in ast.dump(node.func) or _last_name(node.func) == "getenv"
            key = node.args[0] if is_named else None
        elif isinstance(node, ast.Subscript) and _last_name(node.value) == "environ":
            key = node.slice
        elif isinstance(node, ast.Compare) and any(_last_name(c) == "environ" for c in node.comparators):
            key = node.left
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            found.add(key.value)
    return [f"{name}={os.environ.get(name)!r}" for name in sorted(found)]


def inner(block: ast.stmt) -> Iterator[ast.stmt]:
    """Yield the statements inside of a block."""
    for name in ("body", "orelse", "finalbody"):
        yield from getattr(block, name, ())
    for part in (*getattr(block, "handlers", ()), *getattr(block, "cases", ())):
        yield from part.body


def is_guard(block: ast.stmt) -> TypeGuard[ast.If]:
    """Tell whether the body of a block does not run on import: the main guard, and what is for type checkers only."""
    if not isinstance(block, ast.If):
        return False
    test = block.test
    if isinstance(test, ast.Name | ast.Attribute):
        return _last_name(test) == "TYPE_CHECKING"
    if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.Eq):
        return False
    sides = {ast.unparse(side) for side in (test.left, *test.comparators)}
    return sides == {"__name__", "'__main__'"}


def _from_libraries(body: list[ast.stmt], namespace: Mapping[str, Any]) -> Iterator[object]:
    """Yield the containers that belong to a library and have a name in the module too."""
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and not statement.level:
            module = sys.modules.get(str(statement.module))
            if module is not None and not is_own_module(module):
                yield from (vars(module).get(alias.name) for alias in statement.names)
        elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Attribute):
            root: ast.expr = statement.value
            while isinstance(root, ast.Attribute):
                root = root.value
            module = namespace.get(root.id) if isinstance(root, ast.Name) else None
            if isinstance(module, ModuleType) and not is_own_module(module):
                yield from (namespace.get(target.id) for target in statement.targets if isinstance(target, ast.Name))


def _last_name(expression: ast.expr) -> str:
    if isinstance(expression, ast.Name):
        return expression.id
    return expression.attr if isinstance(expression, ast.Attribute) else ""


def _is_zenray(value: object) -> bool:
    return text_of(type(value), "__module__").partition(".")[0] == "zenray"


def _is_quiet_place(value: Any) -> bool:
    """Tell whether something comes from where it has no effect but on what it decorates, which is followed by value."""
    module = value if isinstance(value, ModuleType) else sys.modules.get(text_of(value, "__module__"))
    name = module.__name__ if module is not None else text_of(value, "__module__")
    if module is not None and origin_of_module(module) is Origin.ZENRAY:
        return True
    return name in QUIET_MODULES or name.partition(".")[0] in QUIET_LIBRARIES
