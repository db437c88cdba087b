"""The ``@step`` decorator and what it makes of a function.

Runs in: anywhere.
"""

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Generic, ParamSpec, Protocol, overload

from zenray.annotations import bind, describe, fits, hints_of, outputs_of
from zenray.context import called_directly, is_in_step
from zenray.errors import DefinitionError, shown, suggest
from zenray.model import Output, Resources
from zenray.units import duration_s, size_bytes

P = ParamSpec("P")


class StepCaller(Protocol):
    """What takes a step call while a pipeline runs."""

    def call(self, step: "Step[Any]", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the call and return its artifacts."""
        ...


active_caller: ContextVar[StepCaller | None] = ContextVar("active_caller", default=None)
_open: list[StepCaller] = []  # the pipelines that run in this process
_NOT_SET: Any = object()


@contextmanager
def calling(caller: StepCaller) -> Iterator[None]:
    """Let a caller take the step calls of this thread, or of this coroutine."""
    token = active_caller.set(caller)
    _open.append(caller)
    try:
        yield
    finally:
        _open.remove(caller)
        active_caller.reset(token)


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a step is run; nothing here but ``cache``, ``cache_expiry_s``, ``ignore`` and ``salt`` touches its key."""

    name: str
    resources: Resources = field(default_factory=Resources)
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    retry_delay_s: float = 0.0
    timeout_s: float | None = None
    deadline_s: float | None = None
    cache: bool = True
    cache_expiry_s: float | None = None
    ignore: tuple[str, ...] = ()
    salt: str = ""
    allow_pickle: bool = False
    tags: tuple[str, ...] = ()

    @property
    def is_limited(self) -> bool:
        """True where an attempt is ended when its time is up."""
        return self.timeout_s is not None or self.deadline_s is not None


class Step(Generic[P]):
    """A step: called inside a pipeline it returns artifacts at once, called outside it just runs the function."""

    def __init__(self, function: Callable[P, Any], options: StepOptions) -> None:
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._options = options
        self._signature = inspect.signature(function)
        self.declared, self.is_multiple = outputs_of(function, options.name)

    @property
    def name(self) -> str:
        """The step's name, by default its function's."""
        return self._options.name

    @property
    def settings(self) -> StepOptions:
        """The options in force."""
        return self._options

    @property
    def function(self) -> Callable[P, Any]:
        """The user's function."""
        return self.__wrapped__

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The declared outputs."""
        return self.declared

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Record a step run inside a pipeline; outside, call the function."""
        caller = active_caller.get(_NOT_SET)
        if caller is _NOT_SET or caller is None:
            if caller is _NOT_SET and _open and not is_in_step():
                warnings.warn(
                    f"step {self.name!r} was called in another thread than its pipeline's and ran there as a plain "
                    "function, which is no part of the run; call it in the pipeline's thread, where calls return at "
                    f"once and run side by side, or pass the context on: contextvars.copy_context().run({self.name})",
                    stacklevel=2,
                )
            with called_directly(self.name):
                return self.__wrapped__(*args, **kwargs)
        return caller.call(self, args, kwargs)

    def options(self, **changes: Any) -> "Step[P]":
        """Return a copy with other options, as in Ray: ``train.options(num_gpus=0.5)(data)``."""
        return Step(self.__wrapped__, _parsed(self._options, changes))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """Check a call against the signature and fill in the defaults."""
        return bind(self._signature, f"step {self.name!r}", args, kwargs)

    def check_argument(self, name: str, value: Any) -> None:
        """Compare a plain argument with its annotation."""
        annotation = self.annotations.get(name, Any)
        if not fits(value, annotation):
            raise DefinitionError(
                f"step {self.name!r}: argument {name!r} must be {describe(annotation)}, got {shown(value)} of type "
                f"{type(value).__name__!r}"
            )

    @functools.cached_property
    def annotations(self) -> dict[str, Any]:
        """The resolvable annotations of the function; those of ``*args`` and ``**kwargs`` say nothing of the whole."""
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        loose = {n for n, p in self._signature.parameters.items() if p.kind in variadic}
        return {n: a for n, a in hints_of(self.__wrapped__).items() if n not in loose}

    def __repr__(self) -> str:
        return f"<step {self.name}{self._signature}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.__wrapped__, self._options)

    def __get__(self, instance: Any, owner: type | None = None) -> "Step[P]":
        if instance is not None:
            raise DefinitionError(
                f"step {self.name!r} is a method; a step is a function: take what it needs as arguments"
            )
        return self


@overload
def step(function: Callable[P, Any], /) -> Step[P]: ...
@overload
def step(**options: Any) -> Callable[[Callable[P, Any]], Step[P]]: ...
def step(function: Callable[P, Any] | None = None, /, **options: Any) -> Any:
    """Make a function a step.

    Args:
        function: the function; its annotations declare the outputs (``Annotated[T, "name"]``, tuples for several).
        **options: Ray's own ``num_cpus``, ``num_gpus`` (fractions allowed), ``memory`` (bytes, or ``"8GiB"``),
            ``resources`` (a mapping) and ``accelerator_type``; ``name``; ``retries`` (further attempts after an
            exception), ``retry_on`` (exception classes) and ``retry_delay`` (before the first of them; twice as long
            before each further one); ``timeout`` of one attempt and ``deadline`` of all, from the launch of the first
            (seconds, or ``"2h"``): then StepTimedOut, a TimeoutError, is raised in the step, and 5 s later its process
            is ended; ``cache=False``, ``cache_expiry`` (seconds, or ``"7d"``), ``ignore`` (arguments that are not part
            of the cache key), ``salt`` (any text that is); ``allow_pickle=True`` for outputs without a materializer;
            ``tags``.

    Raises:
        DefinitionError: for an unknown option or one that makes no sense, and for what is not a plain function.
    """
    if function is None:
        return lambda f: step(f, **options)
    if isinstance(function, Step):
        raise DefinitionError(f"{function.name!r} is a step already; decorate it once")
    if not inspect.isfunction(function):
        raise DefinitionError(f"@step is for functions, got {function!r}; put the call into a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(
            f"step {function.__name__!r} is a generator; return a list or a table instead of yielding"
        )
    made = Step(function, _parsed(StepOptions(name=function.__name__), options))
    for name in made.settings.ignore:
        if name not in inspect.signature(function).parameters:
            raise DefinitionError(f"step {made.name!r}: ignore names {name!r}, which is no argument of it")
    return made


def _rebuild(function: Callable[..., Any], options: StepOptions) -> Step[Any]:
    return Step(function, options)


_RESOURCE_OPTIONS = ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type")
_OPTIONS = (
    *_RESOURCE_OPTIONS, "name", "retries", "retry_on", "retry_delay", "timeout", "deadline", "cache", "cache_expiry",
    "ignore", "salt", "allow_pickle", "tags",
)  # fmt: skip


_DURATIONS = {"cache_expiry", "timeout", "deadline", "retry_delay"}


def _parsed(current: StepOptions, changes: Mapping[str, Any]) -> StepOptions:
    for option in changes:
        if option not in _OPTIONS:
            raise DefinitionError(f"step {current.name!r}: unknown option {option!r}; {suggest(option, _OPTIONS)}")
    asked = {k: v for k, v in changes.items() if k in _RESOURCE_OPTIONS}
    values = {k: _checked(current.name, k, v) for k, v in changes.items() if k not in _RESOURCE_OPTIONS}
    for option in _DURATIONS & values.keys():
        values[f"{option}_s"] = values.pop(option)
    return replace(current, resources=_resources(current.name, current.resources, asked), **values)


def _checked(step_name: str, option: str, value: Any) -> Any:
    is_valid: bool
    match option:
        case "name":
            is_valid = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w-]{0,99}", value) is not None
        case "retries":
            is_valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1000
        case "retry_on":
            value = value if isinstance(value, tuple) else tuple(value) if isinstance(value, list) else (value,)
            is_valid = all(isinstance(v, type) and issubclass(v, BaseException) for v in value)
        case "cache" | "allow_pickle":
            is_valid = isinstance(value, bool)
        case "cache_expiry" | "timeout" | "deadline" | "retry_delay":
            read = duration_s(value)
            is_valid = read is not None or (value is None and option != "retry_delay")
            is_valid &= read != 0 or option not in ("timeout", "deadline")
            value = read if is_valid else value
        case "salt":
            is_valid = isinstance(value, str)
        case _:
            value = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
            is_valid = all(isinstance(v, str) for v in value)
    if not is_valid:
        raise DefinitionError(f"step {step_name!r}: option {option}={value!r} makes no sense; see help(zenray.step)")
    return value


def _resources(step_name: str, current: Resources, asked: Mapping[str, Any]) -> Resources:
    values: dict[str, Any] = dict(asked)
    if "memory" in values:
        values["memory_bytes"] = size_bytes(values.pop("memory"))
    if "resources" in values:
        values["resources"] = _custom_resources(step_name, values["resources"])
    if not isinstance(values.get("accelerator_type"), str | None):
        raise DefinitionError(f"step {step_name!r}: accelerator_type={asked['accelerator_type']!r} must be a text")
    made = replace(current, **values)
    amounts = {
        "num_cpus": made.num_cpus,
        "num_gpus": made.num_gpus,
        "memory": made.memory_bytes,
        **{f"resources[{name!r}]": amount for name, amount in made.resources},
    }
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
            raise DefinitionError(f"step {step_name!r}: {name}={asked.get(name, amount)!r} must be a number, 0 or more")
    return made


_RAYS_OWN = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def _custom_resources(step_name: str, asked: Any) -> tuple[tuple[str, float], ...]:
    asked = {} if asked is None else asked
    if not isinstance(asked, Mapping) or not all(isinstance(name, str) for name in asked):
        raise DefinitionError(f'step {step_name!r}: resources={asked!r} must be a mapping such as {{"licence": 1}}')
    for name in asked:
        if name in _RAYS_OWN:
            raise DefinitionError(f"step {step_name!r}: resources has {name!r}; ask for it as {_RAYS_OWN[name]}=...")
    return tuple(sorted(asked.items()))
