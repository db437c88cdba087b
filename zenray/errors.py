"""Every error ZenRay raises on purpose, one tree, split by whose move it is.

Runs in: anywhere.

    ZenRayError
    ├── DefinitionError          the author of a step or pipeline, before anything runs
    │   └── UnfinishedArtifactError
    ├── ConfigError              a stack, a setting or the environment
    ├── NotFoundError            a name or id that is not there (also a LookupError)
    ├── StepFailed               a step's own exception, or what ended it
    ├── StepTimedOut             raised inside a step that takes too long (also a TimeoutError)
    ├── OutputError              a step's return value that is not what it declares
    ├── RunCancelled             the run was stopped on request
    ├── RunLostError             another process has taken the run over
    ├── MaterializerError        a value that cannot be written or read
    ├── StoreError               the artifact store
    │   └── CorruptedObjectError
    ├── MetadataError            the metadata store
    └── ClusterError             Ray: start, join, lost workers, impossible requests

Messages have three parts: what was asked, what is there, what to do. Constructors take one positional
message, so that every error survives a round trip through pickle.
"""

import difflib
from collections.abc import Iterable
from typing import TypeGuard

_MAX_BITS = 14_000  # 4300 decimal digits: https://docs.python.org/3/library/stdtypes.html#int-max-str-digits


class ZenRayError(Exception):
    """The root of all errors that ZenRay raises on purpose."""


class DefinitionError(ZenRayError):
    """Raised when a step or pipeline is defined or called in a way that cannot work."""


class UnfinishedArtifactError(DefinitionError):
    """Raised when an artifact is used as if it were the value it stands for."""


class ConfigError(ZenRayError):
    """Raised when a stack, a setting or the environment cannot be used as it is."""


class NotFoundError(ZenRayError, LookupError):
    """Raised when a named thing is not there; the message lists what is."""


class StepFailed(ZenRayError):
    """Raised when a run ends because a step failed; the step's own exception is the cause."""


class StepTimedOut(ZenRayError, TimeoutError):
    """Raised in a step when its attempt has lasted as long as ``timeout`` or ``deadline`` allow."""


class OutputError(ZenRayError):
    """Raised when what a step returned is not what it declares."""


class RunCancelled(ZenRayError):
    """Raised when a run was stopped on request before it was finished."""


class RunLostError(ZenRayError):
    """Raised when another process has taken over the run this one was working on."""


class MaterializerError(ZenRayError):
    """Raised when a value cannot be written to, or read from, an artifact."""


class StoreError(ZenRayError):
    """Raised when the artifact store cannot be read or written."""


class CorruptedObjectError(StoreError):
    """Raised when a stored object's bytes do not have the digest they are stored under."""


class MetadataError(ZenRayError):
    """Raised when the metadata store cannot be read or written."""


class ClusterError(ZenRayError):
    """Raised when Ray cannot be started, joined or asked for what a step needs."""


def shown(value: object, *, limit: int = 200) -> str:
    """Return a value's ``repr`` for a message, cut; where that raises, or a number is huge, what it is instead."""
    try:
        text = f"<int of {value.bit_length()} bits>" if is_huge(value) else repr(value)
    except Exception as exc:  # noqa: BLE001 - a foreign __repr__ may raise anything
        text = f"<{type(value).__qualname__} whose repr raises {type(exc).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_huge(value: object) -> TypeGuard[int]:
    """Say whether a value is an int with more digits than Python turns into text, and back, by default."""
    return isinstance(value, int) and value.bit_length() > _MAX_BITS


def suggest(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """Say which known name was probably meant, else list what is there, as the tail of a message."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    if not names:
        return "there are none yet"
    shown = ", ".join(repr(n) for n in names[:limit])
    return f"known: {shown}" + (f" and {len(names) - limit} more" if len(names) > limit else "")
