"""Reads type annotations: declared outputs of a step, and whether a value fits what was annotated.

Runs in: anywhere.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from zenray.errors import DefinitionError, suggest
from zenray.model import Output

DEFAULT_OUTPUT = "output"


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the resolvable annotations; those of names that exist only for type checkers are left out."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001 - evaluating a string annotation can raise anything; then each alone
        return {n: a for n, a in map(partial(_hint, function), function.__annotations__.items()) if a is not _UNKNOWN}


_UNKNOWN = object()


def _hint(function: Callable[..., Any], item: tuple[str, Any]) -> tuple[str, Any]:
    name, annotation = item
    probe = types.SimpleNamespace(__annotations__={name: annotation})
    namespace = getattr(function, "__globals__", {})
    try:
        return name, typing.get_type_hints(probe, namespace, include_extras=True)[name]
    except Exception:  # noqa: BLE001 - the same
        # Annotated["Model", "name"] still tells the name, where the class exists for type checkers only
        return name, _UNKNOWN if isinstance(annotation, str) else annotation


def bind(
    signature: inspect.Signature, what: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    """Match a call with a signature and fill in the defaults; DefinitionError says what does not match."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as exc:
        unknown = [name for name in kwargs if name not in signature.parameters]
        if unknown:
            raise DefinitionError(
                f"{what} has no argument {unknown[0]!r}; {suggest(unknown[0], signature.parameters)}"
            ) from None
        raise DefinitionError(f"{what}: {exc}; its signature is {signature}") from None
    bound.apply_defaults()
    return bound


def outputs_of(function: Callable[..., Any], step_name: str) -> tuple[tuple[Output, ...], bool]:
    """Return the outputs a step declares and whether it returns a tuple of several.

    ``-> T`` is one output, ``-> Annotated[T, "name"]`` one with a name, and a tuple of fixed length several, which
    are called ``output_0`` ... where they are not named.
    """
    annotation = hints_of(function).get("return")
    if get_origin(annotation) is not tuple or ... in get_args(annotation) or not get_args(annotation):
        return (_output(annotation, DEFAULT_OUTPUT),), False
    outputs = tuple(_output(a, f"output_{i}") for i, a in enumerate(get_args(annotation)))
    names = [o.name for o in outputs]
    for name in names:
        if names.count(name) > 1:
            raise DefinitionError(
                f"step {step_name!r} declares the output {name!r} {names.count(name)} times; give each its own name"
            )
    return outputs, True


def _output(annotation: Any, default: str) -> Output:
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        name = next((m for m in marks if isinstance(m, str)), default)
        if not name.isidentifier():
            raise DefinitionError(f"an output is named {name!r}; a name is letters, digits and underscores")
        return Output(name, inner)
    return Output(default, annotation)


def classes_in(annotation: Any) -> Iterator[type]:
    """Give the plain classes an annotation allows at its top: both of ``A | B``, the ``list`` of ``list[int]``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from classes_in(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from classes_in(option)
    elif isinstance(origin, type):
        yield _runtime_class(origin)
    elif isinstance(annotation, type) and annotation is not Any:
        yield _runtime_class(annotation)


def _runtime_class(cls: type) -> type:
    """Return the class that values have: a TypedDict's are dicts."""
    return dict if typing.is_typeddict(cls) else cls


def fits(value: Any, annotation: Any) -> bool:
    """Say whether a value can be what an annotation says; what cannot be decided counts as fitting."""
    if annotation is None or annotation is type(None):
        return value is None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(_equals(value, argument) for argument in arguments)
    if origin in (list, set, frozenset) and isinstance(value, origin):
        return all(fits(v, arguments[0]) for v in value)
    if origin is dict and isinstance(value, dict):
        return all(fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items())
    if isinstance(origin, type):
        return _is_instance(value, _runtime_class(origin))
    if isinstance(annotation, type) and annotation is not Any:
        return _is_instance(value, _runtime_class(annotation))
    return True


def _equals(value: Any, literal: Any) -> bool:
    try:
        return bool(value == literal)
    except Exception:  # noqa: BLE001 - an array has no single answer, and a foreign class may raise anything
        return False


def _is_instance(value: Any, cls: type) -> bool:
    try:
        if isinstance(value, cls):
            return not (cls in (int, float) and isinstance(value, bool))
    except TypeError:  # a protocol that cannot be checked at run time
        return True
    if cls is float:
        return isinstance(value, int) and not isinstance(value, bool)
    # numpy's scalars are what people return where they wrote float or int
    return cls in (int, float, bool) and type(value).__module__ == "numpy"


def may_flow(source: Any, target: Any) -> bool:
    """Say whether a value annotated as ``source`` may be given where ``target`` is annotated."""
    sources, targets = list(classes_in(source)), list(classes_in(target))
    if not sources or not targets:
        return True
    pairs = [(s, t) for s in sources for t in targets]
    return any(_are_related(s, t) or (s is int and t is float) for s, t in pairs)


def _are_related(source: type, target: type) -> bool:
    try:
        return issubclass(source, target) or issubclass(target, source)
    except TypeError:  # a protocol that cannot be checked at run time, or one with fields
        return True


def describe(annotation: Any) -> str:
    """Return an annotation as people write it."""
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
