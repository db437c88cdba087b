"""The typed JSON form of plain values: the encoder walks a value into JSON-like data, the decoder undoes one tag.

Runs in: anywhere.
"""

import base64
import functools
import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from json import dumps
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import IO, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from zenray.errors import MaterializerError
from zenray.materializer import (
    PLAIN,
    ArtifactReader,
    ArtifactWriter,
    active_table,
    find,
    load_class,
    load_materializer,
    type_name,
)
from zenray.model import Json
from zenray_materializers import classes
from zenray_materializers.preview import brief

MAX_DEPTH = 200
MAX_INLINE_BYTES = 16 * 1024
_INT64 = 2**63
_DIRECT = frozenset((type(None), bool))
_STR, _INT, _FLOAT = frozenset((str,)), frozenset((int,)), frozenset((float,))


class Encoder:
    """Walks one value into JSON-like data, writing values of other registered types to a writer as it meets them.

    Without a writer such values are refused. ``references`` maps the ``id`` of objects to texts that stand for them:
    these aren't descended into.
    """

    def __init__(
        self, writer: ArtifactWriter | None, *, prefix: str = "", references: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        self._writer = writer
        self._prefix = prefix
        self._references = references
        self._file_count = 0
        self._open: set[int] = set()  # the containers around the current value, to see cycles
        self._classes: dict[type, Callable[[Encoder, Any], Json]] = {}

    def encode(self, value: Any) -> Json:
        """Return a value as JSON-like data."""
        kind = type(value)
        if kind in _DIRECT:
            return value
        atom = _ATOMS.get(kind)
        if atom is not None:
            return atom(value)
        if self._references and (name := self._references.get(id(value))) is not None:
            return {"$ref": name}
        container = _CONTAINERS.get(kind) or self._classes.get(kind)
        if container is None:
            container = self._classes[kind] = self._choose(kind, value)
        key = id(value)
        if key in self._open:
            raise MaterializerError(f"{type_name(kind)} contains itself; a stored value must be a tree")
        if len(self._open) == MAX_DEPTH:
            raise MaterializerError(f"a value is nested more than {MAX_DEPTH} levels deep; store it flat")
        self._open.add(key)
        try:
            return container(self, value)
        finally:
            self._open.discard(key)

    def items(self, values: Iterable[Any]) -> list[Json]:
        """Return the items of a container as JSON-like data; a list that is JSON already is returned as it is."""
        items = values if type(values) is list else list(values)
        kinds = set(map(type, items))
        if kinds <= _DIRECT or (kinds == _STR and is_text("".join(items))):
            return items
        if kinds == _FLOAT and math.isfinite(sum(items)):
            return items
        if kinds == _INT and min(items) >= -_INT64 and max(items) < _INT64:
            return items
        return list(map(self.encode, items))

    def pairs(self, value: Mapping[Any, Any]) -> list[Json]:
        """Return a mapping as a list of pairs, for keys of any kind."""
        return [[self.encode(k), self.encode(v)] for k, v in value.items()]

    def mapping(self, value: Mapping[Any, Any]) -> Json:
        """Return a mapping as an object where its keys allow it, in its own order."""
        keys = list(value)
        if keys:
            if set(map(type, keys)) != _STR:
                return {"$dict": self.pairs(value)}
            joined = "".join(keys)
            if ("$" in joined and any(k.startswith("$") for k in keys)) or not is_text(joined):
                return {"$dict": self.pairs(value)}
        return dict(zip(keys, self.items(list(value.values())), strict=True))

    def blob(self, value: bytes | bytearray) -> Json:
        """Return bytes as base64, or the name of the file they were written to where they are many."""
        if len(value) <= MAX_INLINE_BYTES:
            return base64.b64encode(value).decode()
        writer, name = self.next_file(type(value))
        writer.put(name, bytes(value))
        return {"file": name}

    def sorted_items(self, value: Iterable[Any]) -> list[Json]:
        """Return the items of a set in the order of their encodings, which doesn't depend on hashes."""
        file_count = self._file_count
        items = sorted(map(self.encode, value), key=dumps)
        if self._file_count != file_count:
            raise MaterializerError(
                "a set of values that are stored as files has no order to number them by; use a list"
            )
        return items

    def next_file(self, kind: type) -> tuple[ArtifactWriter, str]:
        """Return the writer and the name for the next value that gets a file of its own."""
        if self._writer is None:
            raise MaterializerError(
                f"a value of type {type_name(kind)} needs a file of its own, which cannot be had here"
            )
        self._file_count += 1
        return self._writer, f"{self._prefix}{self._file_count - 1}"

    def _choose(self, kind: type, value: Any) -> Callable[["Encoder", Any], Json]:
        """Return how a class is encoded: through its materializer, or by its fields where that is the plain one."""
        path = find(kind, active_table())
        if path is None:
            raise MaterializerError(classes.refusal(value))
        if path != PLAIN:
            return functools.partial(_save_leaf, path=path, kind=kind)
        return classes.encoder_for(kind)


def why_not(kind: type) -> str:
    """Say why no instance of a class that is stored as a plain value can be, or nothing."""
    if kind in _DIRECT or kind in _ATOMS or kind in _CONTAINERS:
        return ""
    try:
        classes.encoder_for(kind)
    except MaterializerError as exc:
        return str(exc)
    return ""


def _save_leaf(encoder: Encoder, value: Any, *, path: str, kind: type) -> Json:
    """Write a value through its own materializer, and return where it is."""
    materializer = load_materializer(path)
    name = classes.importable_name(kind)
    if hasattr(materializer, "to_json"):
        return {"$value": [name, path, materializer.to_json(value)]}
    if getattr(materializer, "is_pickle", False):
        raise MaterializerError(
            f"{name} inside of another value is stored by {path}, which pickles; return it as an output of its own"
        )
    writer, prefix = encoder.next_file(kind)
    metadata = materializer.save(value, _PrefixedWriter(writer, prefix + "/"))
    return {"$artifact": [name, path, prefix + "/", Encoder(None).encode(dict(metadata or {}))]}


class Decoder:
    """Undoes the tags; used as the ``object_hook`` of a JSON parser, so what is inside of a tag is decoded already."""

    def __init__(self, reader: ArtifactReader | None, references: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.reader = reader
        self.references = references

    def decode(self, raw: dict[str, Any]) -> Any:
        """Return the value of one JSON object."""
        if len(raw) != 1:
            return raw
        ((tag, content),) = raw.items()
        if not tag.startswith("$"):
            return raw
        decode = _DECODERS.get(tag)
        if decode is None:
            raise MaterializerError(f"{tag!r} is not known to this version of ZenRay; install the one that wrote it")
        return decode(self, content)

    def tree(self, raw: Json) -> Any:
        """Return the value of JSON-like data that a parser has made already."""
        if isinstance(raw, dict):
            return self.decode({key: self.tree(value) for key, value in raw.items()})
        return [self.tree(value) for value in raw] if isinstance(raw, list) else raw


def _load_leaf(decoder: Decoder, content: Any) -> Any:
    name, path, prefix, metadata = content
    materializer = load_materializer(path)
    if getattr(materializer, "is_pickle", False):
        raise MaterializerError(f"a stored {name} would be unpickled by {path}, which nobody has opted in to; refused")
    assert decoder.reader is not None
    return materializer.load(_PrefixedReader(decoder.reader, prefix), load_class(name), metadata)


def _load_inline(decoder: Decoder, content: Any) -> Any:
    name, path, raw = content
    materializer: Any = load_materializer(path)
    return materializer.from_json(raw, load_class(name))


def _blob(decoder: Decoder, content: Any) -> bytes:
    if isinstance(content, str):
        return base64.b64decode(content)
    assert decoder.reader is not None
    return decoder.reader.read(content["file"])


def _reference(decoder: Decoder, name: str) -> Any:
    try:
        return decoder.references[name]
    except KeyError:
        raise MaterializerError(f"a stored value refers to {name!r}, which is not there") from None


def is_text(value: str) -> bool:
    """True where a string can be written as UTF-8: it holds no half of a surrogate pair."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _str(value: str) -> Json:
    return value if is_text(value) else {"$str": value.encode("utf-8", "surrogatepass").hex()}


def _int(value: int) -> Json:
    # Others than Python read integers of up to 64 bits; and decimal digits take time that grows with their square.
    return value if -_INT64 <= value < _INT64 else {"$int": hex(value)}


def _float(value: float) -> Json:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value)
    return {"$float": _SPECIAL_NAMES.get(bits) or bits.hex()}


def _load_float(text: str) -> float:
    bits = _SPECIAL_BITS.get(text) or bytes.fromhex(text)
    return float(struct.unpack(">d", bits)[0])


def _moment(value: datetime | time, tag: str) -> Json:
    text = value.replace(tzinfo=None).isoformat()
    if value.tzinfo is None and not value.fold:
        return {tag: text}
    return {tag: [text, _zone(value.tzinfo), value.fold]}


def _zone(zone: Any) -> Json:
    if zone is None:
        return None
    if type(zone) in (timezone, ZoneInfo):
        return _ATOMS[type(zone)](zone)
    raise MaterializerError(
        f"a time zone of type {type_name(type(zone))} cannot be stored; use zoneinfo.ZoneInfo or datetime.timezone"
    )


def _timezone(value: timezone) -> Json:
    offset, name = value.utcoffset(None), value.tzname(None)
    parts: list[Json] = [offset.days * 86400 + offset.seconds, offset.microseconds]
    return {"$timezone": parts if name == timezone(offset).tzname(None) else [*parts, name]}


def _zoneinfo(value: ZoneInfo) -> Json:
    if value.key is None:
        raise MaterializerError("a ZoneInfo made from a file has no key to store; use ZoneInfo('Area/City')")
    return {"$zoneinfo": value.key}


def _load_moment(cls: type[datetime] | type[time]) -> Callable[[Decoder, Any], Any]:
    def load(_: Decoder, content: Any) -> Any:
        if isinstance(content, str):
            return cls.fromisoformat(content)
        text, zone, fold = content
        return cls.fromisoformat(text).replace(tzinfo=zone, fold=fold)

    return load


def _load_timezone(_: Decoder, content: Any) -> timezone:
    seconds, microseconds, *name = content
    return timezone(timedelta(seconds=seconds, microseconds=microseconds), *name)


def _ordered(encoder: Encoder, value: OrderedDict[Any, Any]) -> Json:
    # A state_dict of torch keeps its versions in an attribute.
    attributes = [encoder.mapping(vars(value))] if vars(value) else []
    return {"$ordered": [encoder.pairs(value), *attributes]}


def _load_ordered(_: Decoder, content: Any) -> OrderedDict[Any, Any]:
    pairs, *attributes = content
    value = OrderedDict(pairs)
    for name, attribute in attributes[0].items() if attributes else ():
        setattr(value, name, attribute)
    return value


def _defaultdict(encoder: Encoder, value: defaultdict[Any, Any]) -> Json:
    factory = value.default_factory
    if factory is not None and factory not in _FACTORIES.values():
        raise MaterializerError(
            f"a defaultdict of {brief(factory)} cannot be stored: its factory must be one of "
            f"{', '.join(_FACTORIES)}; return dict(value)"
        )
    return {"$defaultdict": [None if factory is None else factory.__name__, encoder.pairs(value)]}


_SPECIAL_BITS = {name: struct.pack(">d", float(name)) for name in ("nan", "inf", "-inf")}
_SPECIAL_NAMES = {bits: name for name, bits in _SPECIAL_BITS.items()}
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (list, dict, set, int, float, str, tuple, bool)}

_ATOMS: dict[type, Callable[[Any], Json]] = {
    str: _str,
    int: _int,
    float: _float,
    complex: lambda v: {"$complex": [_float(v.real), _float(v.imag)]},
    type(...): lambda v: {"$ellipsis": None},
    range: lambda v: {"$range": [_int(v.start), _int(v.stop), _int(v.step)]},
    date: lambda v: {"$date": v.isoformat()},
    datetime: lambda v: _moment(v, "$datetime"),
    time: lambda v: _moment(v, "$time"),
    timedelta: lambda v: {"$timedelta": [v.days, v.seconds, v.microseconds]},
    timezone: _timezone,
    ZoneInfo: _zoneinfo,
    Decimal: lambda v: {"$decimal": str(v)},
    Fraction: lambda v: {"$fraction": [_int(v.numerator), _int(v.denominator)]},
    UUID: lambda v: {"$uuid": str(v)},
    PurePosixPath: lambda v: {"$posixpath": _str(str(v))},
    PureWindowsPath: lambda v: {"$windowspath": _str(str(v))},
}

_CONTAINERS: dict[type, Callable[[Encoder, Any], Json]] = {
    list: Encoder.items,
    tuple: lambda e, v: {"$tuple": e.items(v)},
    dict: Encoder.mapping,
    set: lambda e, v: {"$set": e.sorted_items(v)},
    frozenset: lambda e, v: {"$frozenset": e.sorted_items(v)},
    bytes: lambda e, v: {"$bytes": e.blob(v)},
    bytearray: lambda e, v: {"$bytearray": e.blob(v)},
    deque: lambda e, v: {"$deque": [v.maxlen, e.items(v)]},
    Counter: lambda e, v: {"$counter": e.pairs(v)},
    OrderedDict: _ordered,
    defaultdict: _defaultdict,
}

_DECODERS: dict[str, Callable[[Decoder, Any], Any]] = {
    "$str": lambda _, v: bytes.fromhex(v).decode("utf-8", "surrogatepass"),
    "$int": lambda _, v: int(v, 16),
    "$float": lambda _, v: _load_float(v),
    "$complex": lambda _, v: complex(*v),
    "$ellipsis": lambda _, v: ...,
    "$range": lambda _, v: range(*v),
    "$date": lambda _, v: date.fromisoformat(v),
    "$datetime": _load_moment(datetime),
    "$time": _load_moment(time),
    "$timedelta": lambda _, v: timedelta(*v),
    "$timezone": _load_timezone,
    "$zoneinfo": lambda _, v: ZoneInfo(v),
    "$decimal": lambda _, v: Decimal(v),
    "$fraction": lambda _, v: Fraction(*v),
    "$uuid": lambda _, v: UUID(v),
    "$posixpath": lambda _, v: PurePosixPath(v),
    "$windowspath": lambda _, v: PureWindowsPath(v),
    "$tuple": lambda _, v: tuple(v),
    "$dict": lambda _, v: dict(v),
    "$set": lambda _, v: set(v),
    "$frozenset": lambda _, v: frozenset(v),
    "$bytes": _blob,
    "$bytearray": lambda d, v: bytearray(_blob(d, v)),
    "$deque": lambda _, v: deque(v[1], v[0]),
    "$counter": lambda _, v: Counter(dict(v)),
    "$ordered": _load_ordered,
    "$defaultdict": lambda _, v: defaultdict(_FACTORIES[v[0]] if v[0] else None, v[1]),
    "$enum": lambda _, v: classes.load_enum(*v),
    "$namedtuple": lambda _, v: classes.load_namedtuple(*v),
    "$dataclass": lambda _, v: classes.load_dataclass(*v),
    "$pydantic": lambda _, v: classes.load_pydantic(*v),
    "$artifact": _load_leaf,
    "$value": _load_inline,
    "$ref": _reference,
}

_CLOSED = frozenset((type(None), bool, bytes, bytearray, *_ATOMS))


def is_closed(value: Any) -> bool:
    """Say whether a value that was encoded is made of Python's own types alone, whatever it contains."""
    kind = type(value)
    if kind in _CLOSED:
        return True
    if kind not in _CONTAINERS:
        return False
    items = list(value)
    if isinstance(value, dict):
        items += [*value.values(), *getattr(value, "__dict__", {}).values()]
    return set(map(type, items)) <= _CLOSED or all(map(is_closed, items))


class _PrefixedWriter:
    """A writer whose files all lie under a prefix of another writer."""

    def __init__(self, writer: ArtifactWriter, prefix: str) -> None:
        self._writer = writer
        self._prefix = prefix

    def open(self, name: str) -> IO[bytes]:
        return self._writer.open(self._prefix + name)

    def put(self, name: str, data: bytes) -> None:
        self._writer.put(self._prefix + name, data)

    def copy(self, path: Path, name: str) -> None:
        self._writer.copy(path, self._prefix + name)


class _PrefixedReader:
    """A reader of the files under a prefix of another reader."""

    def __init__(self, reader: ArtifactReader, prefix: str) -> None:
        self._reader = reader
        self._prefix = prefix

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(n.removeprefix(self._prefix) for n in self._reader.names if n.startswith(self._prefix))

    def open(self, name: str) -> IO[bytes]:
        return self._reader.open(self._prefix + name)

    def read(self, name: str) -> bytes:
        return self._reader.read(self._prefix + name)

    def buffer(self, name: str) -> memoryview:
        return self._reader.buffer(self._prefix + name)

    def extract(self, name: str, path: Path) -> None:
        self._reader.extract(self._prefix + name, path)
