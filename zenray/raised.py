"""Carries what a step raised from its worker to the driver: as text, and as the exception that it was.

Runs in: anywhere.

An exception is rebuilt without calling its ``__init__``, which may take other arguments than the exception keeps: from
its class by name, its ``args`` and attributes, each of them pickled on its own, and its causes and contexts. What
cannot be rebuilt in the driver is a RuntimeError with the text, in the chain too. A class with a ``__reduce__`` of its
own knows better, and is asked first. All of it passes between driver and worker: a store's bytes are not unpickled.
"""

import io
import pickle
import sysconfig
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import zenray_materializers

from zenray.errors import OutputError, StepTimedOut, StoreError, ZenRayError, shown
from zenray.materializer import load_class
from zenray.model import Failure

MAX_LINKS = 20  # exceptions of a chain that travel along
MAX_MESSAGE, MAX_TRACEBACK = 10_000, 100_000  # characters that are printed and recorded
MAX_PICKLE_BYTES = 1 << 20


def describe_failure(exc: BaseException) -> Failure:
    """Turn an exception into what a result carries: text that always survives, and what rebuilds the exception."""
    kind = "user"
    if isinstance(exc, KeyboardInterrupt):
        kind = "cancelled"
    elif isinstance(exc, StepTimedOut):
        kind = "timeout"
    elif isinstance(exc, OutputError):
        kind = "output"
    elif isinstance(exc, StoreError):
        kind = "store"
    elif isinstance(exc, ZenRayError):
        kind = "output"
    bases = tuple(f"{c.__module__}.{c.__qualname__}" for c in type(exc).__mro__)
    return Failure(kind, type(exc).__qualname__, _text(exc), _own_traceback(exc), _packed(exc), bases)


def cut(text: str, limit: int) -> str:
    """Return a text with its middle left out where it is longer than a number of characters."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"


def _text(exc: BaseException) -> str:
    try:
        return cut(str(exc), MAX_MESSAGE)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the failure
        return "<its message cannot be shown>"


_OURS = (str(Path(__file__).parent), str(Path(zenray_materializers.__file__).parent))
_LIBRARIES = (*_OURS, *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))


def _own_traceback(exc: BaseException) -> str:
    """Format the traceback from the user's first line on: the frames that led there are ZenRay's.

    An error of ZenRay that no line of the user's has a part in says what it has to say in its message.
    """
    if isinstance(exc, ZenRayError) and not _has_user_frame(exc):
        return f"{type(exc).__qualname__}: {_text(exc)}\n"
    tb = exc.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_OURS) and tb.tb_next is not None:
        tb = tb.tb_next
    return cut("".join(traceback.format_exception(type(exc), exc, tb)), MAX_TRACEBACK)


def _has_user_frame(exc: BaseException | None) -> bool:
    while exc is not None:
        files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(exc.__traceback__))
        if any(Path(file).is_file() and not file.startswith(_LIBRARIES) for file in files):
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def exception_of(failure: Failure) -> BaseException | None:
    """Return the exception the step raised, with its traceback as text, or a stand-in where it cannot be rebuilt.

    None where nothing was raised: its process was lost, or it could not be started.
    """
    if not failure.pickled and not failure.traceback:
        return None
    error: BaseException | None = None
    if failure.pickled:
        with suppress(Exception):  # foreign code may raise anything here; then the text is what counts
            error = pickle.loads(failure.pickled)
    if not isinstance(error, BaseException):
        error = RuntimeError(f"{failure.type_name}: {failure.message}")
    if failure.traceback:
        error.add_note(f"In the step:\n{failure.traceback}")
    return error


def _packed(exc: BaseException) -> bytes:
    for limit in (MAX_LINKS, 1):
        with suppress(Exception):  # a cycle, or foreign code that raises; the text is what counts
            data = _dumps(exc, limit)
            if len(data) <= MAX_PICKLE_BYTES:
                return data
    return b""


class _Part(NamedTuple):
    """An argument or attribute of an exception; an argument that does not pickle is its text."""

    data: bytes
    text: str

    def value(self) -> Any:
        with suppress(Exception):
            return pickle.loads(self.data)
        return self.text


def _part(value: Any) -> _Part:
    data = b""
    with suppress(Exception):
        data = _dumps(value, 1)
    return _Part(data if len(data) <= MAX_PICKLE_BYTES // 4 else b"", shown(value))


def _dumps(value: Any, limit: int) -> bytes:
    file = io.BytesIO()
    _Pickler(file, value, limit).dump(value)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Takes exceptions apart, and of their chain only so many."""

    def __init__(self, file: io.BytesIO, value: Any, limit: int) -> None:
        super().__init__(file)
        self._kept = _chain(value, limit) if isinstance(value, BaseException) else {}

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, BaseException):
            return NotImplemented
        cause, context = (link if id(link) in self._kept else None for link in (value.__cause__, value.__context__))
        return _rebuilt, _parts(value), (cause, context, value.__suppress_context__), None, None, _link


def _chain(exc: BaseException, limit: int) -> dict[int, BaseException]:
    """Return the nearest of the exceptions that led to one, itself among them, by their ids."""
    found = {id(exc): exc}
    for link in (queue := [exc]):
        for further in (link.__cause__, link.__context__):
            if further is not None and id(further) not in found and len(found) < limit:
                found[id(further)] = further
                queue.append(further)
    return found


def _parts(exc: BaseException) -> tuple[Any, ...]:
    """Return what ``_rebuilt`` makes an exception of."""
    cls = type(exc)
    base = _built_in(cls)
    _, args, *state = base.__reduce__(exc)
    is_own = cls.__reduce__ is not base.__reduce__ or cls.__reduce_ex__ is not object.__reduce_ex__
    whole = b""
    if is_own:
        with suppress(Exception):
            whole = pickle.dumps(exc)
    members: tuple[BaseException, ...] = ()
    if isinstance(exc, BaseExceptionGroup):
        args, members = (exc.message,), exc.exceptions
    attributes = {name: _part(value) for name, value in {**(state[0] if state else {}), **_slots(exc)}.items()}
    name = f"{cls.__module__}.{cls.__qualname__}"
    return name, f"{cls.__qualname__}: {_text(exc)}", whole, tuple(map(_part, args)), attributes, members


def _slots(exc: BaseException) -> dict[str, Any]:
    state = object.__getstate__(exc)
    return state[1] if isinstance(state, tuple) else {}


def _built_in(cls: type[BaseException]) -> Any:
    """Return the class of Python's own that decides how instances are laid out."""
    while cls.__module__ != "builtins":
        cls = cls.__base__  # type: ignore[assignment]  # it is an exception down to the last
    return cls


def _rebuilt(
    name: str, text: str, whole: bytes, args: Sequence[_Part], attributes: dict[str, _Part], members: Sequence[Any]
) -> BaseException:
    try:
        cls: Any = load_class(name)
        if whole:
            with suppress(Exception):
                found: BaseException = pickle.loads(whole)
                if type(found) is cls:
                    return found
        base = _built_in(cls)
        values = [*(part.value() for part in args), *([members] if members else [])]
        error: BaseException = base.__new__(cls, *values)
        base.__init__(error, *values)
        for attribute, part in attributes.items():
            with suppress(Exception):  # one that does not pickle is left out
                object.__setattr__(error, attribute, pickle.loads(part.data))
    except Exception:  # noqa: BLE001 - the class may not exist here, or be made in a way of its own
        return RuntimeError(text)
    return error


def _link(error: BaseException, links: tuple[BaseException | None, BaseException | None, bool]) -> None:
    error.__cause__, error.__context__, error.__suppress_context__ = links
