"""Short texts about values, for people; every one is bounded in work and in length.

Runs in: anywhere.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from itertools import islice
from typing import Any

from zenray.model import Json

MAX_ROWS = 5
MAX_COLUMNS = 20
SAMPLE_ROWS = 100_000
MAX_CELL = 40
_MAX_ITEMS = 10
_MAX_DEPTH = 4


def brief(value: Any, *, limit: int = 1000) -> str:
    """Return a text like ``repr``, cut at a number of characters; only the first few items of anything are visited."""
    return cut("".join(_pieces(value, _MAX_DEPTH)), limit)


def cut(text: str, limit: int) -> str:
    """Return a text, or its start and an ellipsis where it is longer than the limit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: Any) -> Json:
    """Return a number as JSON has it: NaN and the infinities as text."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def text_table(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table's head as text, one line a row, the columns aligned."""
    lines = [[cut(name, MAX_CELL) for name in names]]
    lines += [[cut(str(cell).replace("\n", "\\n"), MAX_CELL) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return cut(
        "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines), 2500
    )


def _pieces(value: Any, depth: int) -> Iterator[str]:
    kind = type(value)
    if isinstance(value, str | bytes | bytearray):
        yield repr(value[:200]) + ("…" if len(value) > 200 else "")
    elif kind is int and value.bit_length() > 1000:
        yield f"<int of {value.bit_length()} bits>"
    elif depth == 0:
        yield "…"
    elif kind in _BRACKETS:
        opening, closing = _BRACKETS[kind]
        yield from _joined(opening, ([_pieces(v, depth - 1)] for v in value), len(value), closing)
    elif isinstance(value, Mapping):
        opening = "{" if kind is dict else f"{kind.__name__}({{"
        pairs = ([_pieces(k, depth - 1), _pieces(v, depth - 1)] for k, v in value.items())
        yield from _joined(opening, pairs, len(value), "}" if kind is dict else "})")
    elif isinstance(value, type):
        yield f"<class {value.__module__}.{value.__qualname__}>"
    elif isinstance(value, Enum):
        yield str(value)
    elif dataclasses.is_dataclass(value) or hasattr(kind, "__pydantic_fields__"):
        names = list(getattr(kind, "__dataclass_fields__", None) or kind.__pydantic_fields__)
        fields = ([iter((name + "=",)), _pieces(getattr(value, name, "?"), depth - 1)] for name in names)
        yield from _joined(f"{kind.__name__}(", fields, len(names), ")", between="")
    elif kind.__module__ in _SMALL or (kind.__module__ == "numpy" and getattr(value, "shape", None) == ()):
        yield repr(value)
    else:
        shape = getattr(value, "shape", None)
        yield f"<{kind.__module__}.{kind.__qualname__}{'' if shape is None else f' {tuple(shape)}'}>"


def _joined(
    opening: str, items: Iterable[list[Iterator[str]]], count: int, closing: str, *, between: str = ": "
) -> Iterator[str]:
    yield opening
    for index, item in enumerate(islice(items, _MAX_ITEMS)):
        yield ", " if index else ""
        yield between.join("".join(part) for part in item)
    yield f", … {count} in all" if count > _MAX_ITEMS else ""
    yield closing


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
_SMALL = {"builtins", "datetime", "decimal", "fractions", "uuid", "zoneinfo", "pathlib", "enum"}
