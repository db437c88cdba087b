"""Plain Python values as typed JSON, and any other registered type inside of them as files of its own.

Runs in: anywhere.

What JSON has is written as JSON: ``{"lr": 0.1, "layers": [64, 32]}``. Everything else is an object with one key, a
tag that starts with ``$``: ``{"$tuple": [1, 2]}``, ``{"$date": "2026-01-31"}``, ``{"$float": "nan"}``,
``{"$dataclass": ["shop.Item", {"price": 3}]}``. Dicts keep their order, because Python code sees it; sets are sorted.
A value of another registered type, such as an array in a dict, is written by its own materializer under ``0/``,
``1/`` and so on, and the tag says which. Loading imports the classes that are named and sets their fields without
calling ``__init__``, as unpickling does; it never calls anything else. An object held twice is loaded as two.
"""

import json
from collections.abc import Mapping, Sized
from typing import Any

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer
from zenray.model import Json
from zenray_materializers.preview import brief
from zenray_materializers.tree import Decoder, Encoder, is_closed, why_not

_FILE = "value.json"
_BYTES_FILE = "value.bin"


class PlainMaterializer(Materializer):
    """Serves what Python itself has: numbers, texts, containers, dates, enums, dataclasses, and pydantic models."""

    types = (
        *(f"builtins.{name}" for name in ("NoneType", "bool", "int", "float", "complex", "str", "bytes", "bytearray")),
        *(f"builtins.{name}" for name in ("list", "tuple", "dict", "set", "frozenset", "range")),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"collections.{name}" for name in ("OrderedDict", "defaultdict", "Counter", "deque")),
        "zoneinfo.ZoneInfo",
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "enum.Enum",
        "pathlib.PurePath",
        "pydantic.main.BaseModel",
        "@dataclass",
    )

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one JSON file; bytes as they are."""
        if type(value) is bytes or type(value) is bytearray:
            writer.put(_BYTES_FILE, bytes(value))
        else:
            writer.put(_FILE, to_bytes(_encoded(value, writer)))
        return None

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return an equal value of the same types."""
        if cls is bytes or cls is bytearray:
            return cls(reader.read(_BYTES_FILE))
        return from_bytes(reader.read(_FILE), Decoder(reader))

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return the value as a short text, and the length of a container."""
        if isinstance(value, Sized):  # a member of an Enum has no length, though its class has
            return {"value": brief(value), "length": len(value)}
        return {"value": brief(value)}

    def refuses(self, cls: type) -> str:
        """Say so of classes with more state than fields, and of those that cannot be found by name."""
        return why_not(cls)

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so where something in it is not of one of Python's own types."""
        return not is_closed(value)


class InlineMaterializer(Materializer):
    """The base for small values that have a JSON form: a file on their own, JSON inside of others."""

    def to_json(self, value: Any) -> Json:
        """Return the value as JSON."""
        raise NotImplementedError

    def from_json(self, raw: Json, cls: type) -> Any:
        """Return the value that ``to_json`` described."""
        raise NotImplementedError

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one JSON file."""
        writer.put(_FILE, to_bytes(self.to_json(value)))
        return None

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the value."""
        return self.from_json(json.loads(reader.read(_FILE)), cls)

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return the value as text."""
        return {"value": str(value)[:200]}


def _encoded(value: Any, writer: ArtifactWriter) -> Json:
    try:
        return Encoder(writer).encode(value)
    except RecursionError as exc:
        raise MaterializerError("a value is nested too deeply to be stored; store it flat") from exc


def to_bytes(tree: Json) -> bytes:
    """Return what an ``Encoder`` made as JSON text in UTF-8, without spaces, keys in the order they have."""
    return _encode(tree).encode()


def from_bytes(data: bytes, decoder: Decoder) -> Any:
    """Return the value of a JSON text that ``to_bytes`` made."""
    try:
        return json.loads(data, object_hook=decoder.decode)
    except (ValueError, RecursionError) as exc:
        raise MaterializerError(f"a stored plain value cannot be read: {exc}; run the step that made it again") from exc


# What is encoded has been walked by the Encoder: it holds no cycles and no NaN.
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode
