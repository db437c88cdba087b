"""The one place that defines how values and bytes become digests.

Runs in: anywhere.

Digests are BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs), 32 bytes, written as 64 hex digits. A value
is encoded as a type tag, the length of its payload (8 bytes, big endian) and the payload; containers nest
encodings. Nothing is joined by separators, so no two different values share an encoding: ``1``, ``True``,
``1.0`` and ``"1"`` all differ, and so do ``["a", "bc"]`` and ``["ab", "c"]``.
"""

import struct
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from blake3 import blake3

_LENGTH = struct.Struct(">Q")


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the digest of bytes."""
    return blake3(data).hexdigest()


def digest_value(value: Any) -> str:
    """Return the digest of a plain value; TypeError where there is no canonical encoding for its type."""
    return blake3(encode(value)).hexdigest()


def encode(value: Any) -> bytes:
    """Encode a plain value canonically: equal type and content, and only that, give equal bytes.

    Covers None, bool, int, float, complex, str, bytes, list, tuple, dict (in insertion order), set, frozenset,
    date and time types, Decimal, Fraction, UUID, paths and range. Anything else, subclasses of these included,
    is a TypeError; so are members of an Enum, which may have methods, and values that their names do not tell.
    """
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        raise TypeError(f"no canonical encoding for {type(value).__module__}.{type(value).__qualname__}")
    return framed(*encoder(value))


def framed(tag: bytes, payload: bytes) -> bytes:
    """Return tag and payload, each preceded by its length."""
    return b"".join((_LENGTH.pack(len(tag)), tag, _LENGTH.pack(len(payload)), payload))


def _float(value: float) -> tuple[bytes, bytes]:
    # The bits, not the value: 0.0 and -0.0 behave differently, and a NaN must equal itself.
    return b"float", struct.pack(">d", value)


def _sequence(tag: bytes) -> Callable[[Any], tuple[bytes, bytes]]:
    return lambda value: (tag, b"".join(map(encode, value)))


def _unordered(tag: bytes) -> Callable[[Any], tuple[bytes, bytes]]:
    return lambda value: (tag, b"".join(sorted(map(encode, value))))


def _mapping(value: Mapping[Any, Any]) -> tuple[bytes, bytes]:
    return b"dict", b"".join(encode(k) + encode(v) for k, v in value.items())


def _clock(tag: bytes) -> Callable[[Any], tuple[bytes, bytes]]:
    return lambda value: (tag, encode((value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo)))


def _path(value: PurePath) -> tuple[bytes, bytes]:
    return b"path", encode((type(value).__name__, value.as_posix()))


_ENCODERS: dict[type, Callable[[Any], tuple[bytes, bytes]]] = {
    type(None): lambda _: (b"none", b""),
    bool: lambda v: (b"bool", b"1" if v else b"0"),
    int: lambda v: (b"int", hex(v).encode()),
    float: _float,
    complex: lambda v: (b"complex", struct.pack(">dd", v.real, v.imag)),
    str: lambda v: (b"str", v.encode("utf-8", "surrogatepass")),
    bytes: lambda v: (b"bytes", v),
    bytearray: lambda v: (b"bytearray", bytes(v)),
    list: _sequence(b"list"),
    tuple: _sequence(b"tuple"),
    dict: _mapping,
    set: _unordered(b"set"),
    frozenset: _unordered(b"frozenset"),
    date: lambda v: (b"date", v.isoformat().encode()),
    time: _clock(b"time"),
    datetime: _clock(b"datetime"),
    timedelta: lambda v: (b"timedelta", encode((v.days, v.seconds, v.microseconds))),
    timezone: lambda v: (b"timezone", repr(v).encode()),
    ZoneInfo: lambda v: (b"zone", repr(v).encode()),
    Decimal: lambda v: (b"decimal", str(v).encode()),
    Fraction: lambda v: (b"fraction", str(v).encode()),
    UUID: lambda v: (b"uuid", v.bytes),
    **dict.fromkeys((PurePosixPath, PureWindowsPath, PosixPath, WindowsPath), _path),
    range: lambda v: (b"range", encode((v.start, v.stop, v.step))),
}
