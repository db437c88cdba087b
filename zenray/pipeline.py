"""The ``@pipeline`` decorator: a function that calls steps, and the run that calling it starts.

Runs in: driver.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType
from typing import Any, Generic, ParamSpec, overload

from zenray import storable
from zenray.annotations import bind, describe, fits, hints_of
from zenray.errors import DefinitionError, RunCancelled, shown
from zenray.futures import Artifact
from zenray.step import Step, active_caller
from zenray.stored import StoredArtifact

P = ParamSpec("P")
MAX_DEPTH = 50

_depth: ContextVar[tuple[str, ...]] = ContextVar("_depth", default=())


class Pipeline(Generic[P]):
    """A pipeline: called on its own it runs, inside another pipeline its steps become part of that one's run."""

    def __init__(self, function: Callable[P, Any], name: str) -> None:
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self.name = name
        self._signature = inspect.signature(function)

    @property
    def function(self) -> Callable[P, Any]:
        """The user's function."""
        return self.__wrapped__

    @property
    def signature(self) -> inspect.Signature:
        """The parameters of the pipeline."""
        return self._signature

    @functools.cached_property
    def annotations(self) -> dict[str, Any]:
        """The resolvable annotations of the parameters."""
        return hints_of(self.__wrapped__)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run on the active stack, block, and return the Run; nested, return what the function returns.

        Ctrl-C cancels the run, closes its records and raises KeyboardInterrupt.
        """
        if active_caller.get() is not None:
            return self._nested(args, kwargs)
        from zenray.submit import run_pipeline  # what runs pipelines knows them, so it cannot be imported above

        parameters = self.bind(args, kwargs)
        try:
            return run_pipeline(self, parameters)
        except RunCancelled as exc:
            if isinstance(exc.__cause__, KeyboardInterrupt):
                # What a script expects of Ctrl-C: no `except Exception` goes on after it, and Python exits with 130.
                raise KeyboardInterrupt(str(exc)) from None
            raise

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Check a call and return all parameters by name, defaults included."""
        bound = bind(self._signature, f"pipeline {self.name!r}", args, kwargs)
        for name, value in bound.arguments.items():
            annotation = self.annotations.get(name, Any)
            if not isinstance(value, Artifact | StoredArtifact) and not fits(value, annotation):
                raise DefinitionError(
                    f"pipeline {self.name!r}: parameter {name!r} must be {describe(annotation)}, got {shown(value)} of "
                    f"type {type(value).__name__!r}"
                )
        return dict(bound.arguments)

    def check(self) -> None:
        """Refuse outputs that could not be stored, of every step the pipeline names, before anything runs."""
        for step in _steps_of(self, set()):
            storable.check(step, set())

    def _nested(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        chain = _depth.get()
        if len(chain) >= MAX_DEPTH:
            cycle = " -> ".join(dict.fromkeys(chain))
            raise DefinitionError(
                f"pipelines are nested more than {MAX_DEPTH} deep ({cycle} -> {self.name}): a cycle? "
                "a pipeline that calls itself needs a branch that ends"
            )
        token = _depth.set((*chain, self.name))
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            _depth.reset(token)

    def __repr__(self) -> str:
        return f"<pipeline {self.name}{self._signature}>"


@overload
def pipeline(function: Callable[P, Any], /) -> Pipeline[P]: ...
@overload
def pipeline(*, name: str = ...) -> Callable[[Callable[P, Any]], Pipeline[P]]: ...
def pipeline(function: Callable[P, Any] | None = None, /, *, name: str = "") -> Any:
    """Make a function a pipeline: plain Python that calls steps, with loops and branches on what ``.load()`` gives.

    Raises DefinitionError for what is not a plain function.
    """
    if function is None:
        return functools.partial(_pipeline, name=name)
    return _pipeline(function, name=name)


def _pipeline(function: Callable[P, Any], *, name: str) -> Pipeline[P]:
    if (
        not inspect.isfunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.iscoroutinefunction(function)
    ):
        raise DefinitionError(f"@pipeline is for plain functions, got {function!r}")
    return Pipeline(function, name or function.__name__)


def _steps_of(found: Pipeline[Any], seen: set[int]) -> Iterator[Step[Any]]:
    """Give the steps that a pipeline's code names, also through nested pipelines and modules."""
    if id(found) in seen:
        return
    seen.add(id(found))
    function = inspect.unwrap(found.function)
    closure = inspect.getclosurevars(function)
    named = [*closure.globals.values(), *closure.nonlocals.values()]
    attributes = set(_names(function.__code__))
    modules = [v for v in named if inspect.ismodule(v)]
    named += [vars(m)[a] for m in modules for a in attributes if a in vars(m)]
    for value in named:
        if isinstance(value, Step) and id(value) not in seen:
            seen.add(id(value))
            yield value
        elif isinstance(value, Pipeline):
            yield from _steps_of(value, seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
