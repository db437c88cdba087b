"""The encoding behind cache keys: equal exactly where type and content are."""

import math
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenray.hashing import digest_value, encode, framed

ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=2)), ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")])
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.dates(),
    st.times(),
    st.datetimes(timezones=ZONES),
    st.timedeltas(),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.builds(PurePosixPath, st.sampled_from(["a", "a/b", "b"])),
    st.builds(PureWindowsPath, st.sampled_from(["a", "a/b", "b"])),
    st.builds(range, st.integers(-3, 3), st.integers(-3, 3)),
)
KEYS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.text(max_size=2), st.binary(max_size=2))
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=12,
)


def is_same(a: Any, b: Any) -> bool:
    """Equality as a program can tell it: types count, and 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    match a:
        case float():
            return struct.pack("d", a) == struct.pack("d", b)
        case complex():
            return is_same(a.real, b.real) and is_same(a.imag, b.imag)
        case Decimal():
            return str(a) == str(b)
        case datetime() | time():
            return (a.isoformat(), a.fold, repr(a.tzinfo)) == (b.isoformat(), b.fold, repr(b.tzinfo))
        case list() | tuple():
            return len(a) == len(b) and all(map(is_same, a, b))
        case dict():
            return is_same(list(a.items()), list(b.items()))
        case set() | frozenset():
            return {(type(x), x) for x in a} == {(type(x), x) for x in b}
        case range():
            return (a.start, a.stop, a.step) == (b.start, b.stop, b.step)
        case _:
            return bool(a == b)


@given(VALUES, VALUES)
def test_two_values_share_an_encoding_exactly_when_they_are_the_same(a: Any, b: Any) -> None:
    assert (encode(a) == encode(b)) == is_same(a, b)


@given(VALUES)
def test_a_rebuilt_value_has_the_same_digest(value: Any) -> None:
    def rebuilt(v: Any) -> Any:
        if isinstance(v, list | tuple | set | frozenset):
            return type(v)(map(rebuilt, v))
        return {rebuilt(k): rebuilt(x) for k, x in v.items()} if isinstance(v, dict) else v

    assert digest_value(rebuilt(value)) == digest_value(value)


@given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=4), st.data())
def test_framed_pieces_cannot_be_cut_in_another_way(pieces: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=4))
    joined, other = (b"".join(framed(tag, payload) for tag, payload in p) for p in (pieces, others))
    assert (joined == other) == (pieces == others)


class Color(Enum):
    RED = 1
    BLUE = 2


PAIRS: dict[str, tuple[Any, Any]] = {
    "bool and int": (True, 1),
    "int and float": (1, 1.0),
    "zeros": (0.0, -0.0),
    "text and bytes": ("a", b"a"),
    "list and tuple": ([1], (1,)),
    "dict order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "nesting": ([[1], 2], [[1, 2]]),
    "exponents": (Decimal("1.0"), Decimal("1.00")),
    "kinds of path": (PurePosixPath("a"), Path("a")),
    "zones": (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC"))),
    "folds": (datetime(2026, 1, 1), datetime(2026, 1, 1, fold=1)),
    "date and datetime": (date(2026, 1, 1), datetime(2026, 1, 1)),
    "empty ranges": (range(0), range(1, 1)),
    "numbers": (Fraction(1), 1),
    "text and UUID": (str(UUID(int=1)), UUID(int=1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_that_behave_differently_differ(name: str) -> None:
    a, b = PAIRS[name]
    assert encode(a) != encode(b)


def test_a_nan_is_itself() -> None:
    assert encode(math.nan) == encode(float("nan"))


class Zone(tzinfo):
    def __str__(self) -> str:
        return "zone"


class Folder(type(Path())):  # type: ignore[misc]
    pass


class Text(str):
    pass


UNKNOWN: dict[str, Callable[[], Any]] = {
    "subclass of str": lambda: Text("a"),
    "subclass of Path": lambda: Folder("a"),
    "own time zone": lambda: datetime(2026, 1, 1, tzinfo=Zone()),
    "object": object,
    "member of an enum": lambda: Color.RED,
    "member in a set": lambda: {Color.RED},
    "in a list": lambda: [object()],
    "in a key": lambda: {(1, Text("a")): 1},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_canonical_form_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="no canonical encoding"):
        encode(UNKNOWN[name]())
