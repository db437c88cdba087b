"""What a fingerprint is made of, and the two-sided writer that its parts are written with.

Runs in: anywhere.
"""

from dataclasses import dataclass
from typing import Any

from zenray.hashing import encode, framed


@dataclass(frozen=True, slots=True)
class CodePart:
    """One thing that a step's code can reach; `digest` covers the thing itself, not what it refers to.

    `kind` is one of ``step, function, class, constant, instance, module, distribution, unresolved, python``. `file`
    and `line` are for people and enter no digest.
    """

    kind: str
    name: str
    digest: str
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The digest of a code closure, and what it was computed from.

    Equal digests mean equal behaviour of the code. `source_digest` covers only functions, classes and import-time
    statements. If `problems` is not empty the closure is not known: a cache entry must neither be read nor written.
    """

    digest: str
    source_digest: str
    parts: tuple[CodePart, ...]
    problems: tuple[str, ...]


class Form:
    """Bytes that describe one thing, in two versions that differ in how they refer to other things.

    `linked` refers to them by their number in the walk and is therefore exact; `own` refers to them by a name that
    people know, so that the digest of a part changes only when that part is edited.
    """

    def __init__(self) -> None:
        self._linked: list[bytes] = []
        self._own: list[bytes] = []

    def text(self, *words: str) -> None:
        """Write words to both versions."""
        self.raw(encode(words))

    def raw(self, data: bytes) -> None:
        """Write self-delimiting bytes to both versions."""
        self._linked.append(data)
        self._own.append(data)

    def link(self, number: int, name: str) -> None:
        """Write a reference to another thing."""
        self._linked.append(encode(("link", number)))
        self._own.append(encode(("link", name)))

    def alias(self, number: int) -> None:
        """Write the number of a mutable object, to the exact version only: sharing it with others is behaviour."""
        self._linked.append(encode(("alias", number)))

    def nest(self, inner: "Form", name: str | None = None) -> None:
        """Write another form; with a name, the own version holds the name in its place."""
        self._linked.append(framed(b"form", inner.linked))
        self._own.append(framed(b"form", inner.own if name is None else name.encode()))

    @property
    def linked(self) -> bytes:
        """The exact version."""
        return b"".join(self._linked)

    @property
    def own(self) -> bytes:
        """The version for one part alone."""
        return b"".join(self._own)


def asked(value: Any, attribute: str) -> Any:
    """Return an attribute of any object, or None; objects of libraries may raise anything where one is asked for."""
    try:
        return getattr(value, attribute, None)
    except Exception:  # noqa: BLE001 - such as a proxy outside of its context
        return None


def text_of(value: Any, attribute: str) -> str:
    """Return an attribute that is text, or nothing; ``polars.col`` and mocks have every attribute, of odd types."""
    found = asked(value, attribute)
    return found if isinstance(found, str) else ""
