"""Durations and sizes as people write them.

Runs in: anywhere.
"""

import re
from typing import Any

_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*", re.ASCII)
_SECONDS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "B": 1}
_BYTES |= {f"{p}{b}".upper(): 1000**n for n, p in enumerate("KMGT", 1) for b in ("", "B")}
_BYTES |= {f"{p}i{b}".upper(): 1024**n for n, p in enumerate("KMGT", 1) for b in ("", "B")}
_MOST = 1e30  # beyond it lie infinity and what no float holds; NaN fails the comparison


def duration_s(value: Any) -> float | None:
    """Read a duration such as ``"90s"``, ``"15min"``, ``"7d"`` or a number of seconds; None for what is none."""
    return _amount(value, _SECONDS)


def size_bytes(value: Any) -> int | None:
    """Read a size such as ``"8GiB"``, ``"1.5 GB"`` or a number of bytes; None for what is none."""
    found = _amount(value.upper() if isinstance(value, str) else value, _BYTES)
    return None if found is None else int(found)


def seconds_text(duration_s: float) -> str:
    """Return a duration for people: ``0.05 s``, ``12.3 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if duration_s < 0.1:
        return f"{max(duration_s, 0.0):.2f} s"
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _amount(value: Any, units: dict[str, Any]) -> float | None:
    factor = 1.0
    if isinstance(value, str):
        found = _NUMBER_AND_UNIT.fullmatch(value)
        if found is None or found[2] not in units:
            return None
        value, factor = float(found[1]), units[found[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return None
    return value * factor
