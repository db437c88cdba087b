"""The materializers that come with ZenRay keep the contract, and what each promises beyond it."""

import copy
import dataclasses
import datetime as dt
import enum
import functools
import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import uuid
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest
import skops.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from sklearn.compose import ColumnTransformer
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from torch import nn

from zenray.errors import MaterializerError
from zenray.materializer import active_table, find, load_class, load_materializer, registry, type_name
from zenray.testing import MaterializerContract, MemoryFiles, round_trip, save
from zenray_materializers import TABLE, arrow
from zenray_materializers.arrow import (
    ArrayMaterializer,
    RecordBatchMaterializer,
    SchemaMaterializer,
    TableMaterializer,
)
from zenray_materializers.files import PathMaterializer
from zenray_materializers.numpy_arrays import NumpyDtypeMaterializer, NumpyMaterializer, NumpyScalarMaterializer
from zenray_materializers.pandas_frames import (
    ExtensionArrayMaterializer,
    FrameMaterializer,
    IndexMaterializer,
    PandasScalarMaterializer,
    SeriesMaterializer,
)
from zenray_materializers.pickled import PickleMaterializer
from zenray_materializers.plain import PlainMaterializer
from zenray_materializers.polars_frames import (
    LazyFrameMaterializer,
    PolarsFrameMaterializer,
    PolarsSeriesMaterializer,
)
from zenray_materializers.sklearn_estimators import SklearnMaterializer
from zenray_materializers.torch_modules import ModuleMaterializer
from zenray_materializers.torch_tensors import TensorMaterializer, TorchFactMaterializer

BERLIN = ZoneInfo("Europe/Berlin")


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: float
    y: float = 0.0


Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Item:
    name: str
    price: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)
    total: float = dataclasses.field(init=False, default=0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    item: Item
    when: dt.date | None = None


@dataclasses.dataclass
class Child(Item):
    parent: Frozen | None = None

    @functools.cached_property
    def upper(self) -> str:
        return self.name.upper()


@dataclasses.dataclass
class ListWithFields(list):  # type: ignore[type-arg]
    name: str = ""


@dataclasses.dataclass
class WithArrays:
    name: str
    weights: np.ndarray
    table: pa.Table


class Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    lr: float = 0.1
    when: dt.date | None = None
    _secret: int = 3


class Nested(pydantic.BaseModel):
    settings: Settings
    item: Item
    levels: dict[int, str] = {}


class Plain:
    """A class that nothing serves."""


class DictChild(dict):  # type: ignore[type-arg]
    pass


def _same(value: Any, other: Any) -> bool:
    """Equality that tells ``1`` from ``1.0``, ``0.0`` from ``-0.0``, and finds NaN equal to itself, order included."""
    if type(value) is not type(other):
        return False
    if isinstance(value, float):
        return struct.pack(">d", value) == struct.pack(">d", other)
    if isinstance(value, complex):
        return _same(value.real, other.real) and _same(value.imag, other.imag)
    if isinstance(value, list | tuple | deque):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict):
        return _same(list(value.items()), list(other.items()))
    if isinstance(value, dt.datetime | dt.time):
        return value.replace(tzinfo=None) == other.replace(tzinfo=None) and (
            (repr(value.tzinfo), value.fold) == (repr(other.tzinfo), other.fold)
        )
    if isinstance(value, pydantic.BaseModel):
        return bool(value == other) and value.model_fields_set == other.model_fields_set
    return bool(value == other)


class TestPlain(MaterializerContract):
    materializer = PlainMaterializer

    def values(self) -> Mapping[str, Any]:
        cell = Item("cell", 1.5, ["a"])
        cell.total = 3.0
        child = Child("child", parent=Frozen(cell, dt.date(2026, 1, 31)))
        assert child.upper == "CHILD"
        return {
            "none": None,
            "bools": [True, False, None],
            "small ints": list(range(1000)),
            "large ints": [2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**5000],
            "floats": [0.0, -0.0, 1.0, 1e300, 5e-324, math.nan, math.inf, -math.inf],
            "odd nan": struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0],
            "floats that overflow in sum": [1e308, 1e308],
            "complex": complex(-0.0, math.nan),
            "texts": ["", "ä", "日本", "\x00", "😀", "\ud800", "\ud83d\ude00", "$date"],
            "bytes": b"\x00\xff",
            "bytearray": bytearray(b"ab"),
            "nested bytes": {"small": b"x", "large": b"y" * 100_000, "array": bytearray(b"z")},
            "empty containers": [[], (), {}, set(), frozenset(), "", b"", deque()],
            "tuple": (1, (2.0, ("3",))),
            "dict in order": {"b": 1, "a": {"z": None, "y": []}},
            "dict of any keys": {1: "a", "1": "b", (1, 2): "c", None: "d", True: "e", 2.5: "f"},
            "dict like a tag": {"$date": "2026-01-31", "x": {"$tuple": [1]}},
            "dict with odd key": {"\ud800": 1},
            "sets": [{"b", "a", "c", "ä"}, frozenset({(1, 2), (0, 3)}), {1, "1", 2.5, None}],
            "collections": [Counter("abca"), OrderedDict(b=1, a=2), defaultdict(list, {"a": [1]}), deque([1, 2], 5)],
            "times": [dt.time(1, 2, 3, 4), dt.time(23, tzinfo=dt.timezone.utc), dt.timedelta(-1, 2, 3)],
            "dates": [dt.date(1, 1, 1), dt.datetime(2026, 1, 31, 12), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)],
            "zones": [
                dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
                dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, microseconds=1), "odd")),
                dt.timezone.utc,
                dt.timezone(dt.timedelta(minutes=330)),
                BERLIN,
            ],
            "numbers": [Decimal("1.10"), Decimal("NaN"), Decimal("-Infinity"), Fraction(-1, 3), range(0, 10, 3)],
            "names": [uuid.UUID(int=7), PurePosixPath("a/../b"), PureWindowsPath("c:/x"), ...],
            "enums": [Color.RED, Level.LOW, Access.READ, Access.READ | Access.WRITE, Access(0)],
            "named tuples": [Point(1.0), Pair(1, [2])],
            "dataclass": child,
            "frozen dataclass": Frozen(cell),
            "pydantic": Nested(settings=Settings(when=dt.date(2026, 1, 31), other=[1]), item=cell, levels={3: "x"}),
            "deep": functools.reduce(lambda inner, _: [inner], range(150), "bottom"),
        }

    def refused(self) -> Mapping[str, Any]:
        loop: list[Any] = []
        loop.append(loop)
        twice: list[Any] = []
        twice.extend([twice, twice])
        with_extra = Item("x")
        with_extra.extra = 1  # type: ignore[attr-defined]

        @dataclasses.dataclass
        class Local:
            x: int = 1

        return {
            "cycle": loop,
            "cycle twice": {"a": (twice,)},
            "too deep": functools.reduce(lambda inner, _: [inner], range(250), "bottom"),
            "far too deep": functools.reduce(lambda inner, _: [inner], range(5000), "bottom"),
            "local class": [Local()],
            "lambda": {"f": lambda: 1},
            "class": [Item],
            "module": [json],
            "generator": [iter(())],
            "unknown class": [Plain()],
            "subclass of dict": DictChild(a=1),
            "subclass of list": ListWithFields(),
            "attribute that is no field": with_extra,
            "factory": defaultdict(lambda: 3),
            "exception": [ValueError("x")],
            "set of files": {Path(__file__)},
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        if isinstance(value, Decimal) and value.is_nan():
            return loaded.is_nan()
        if isinstance(value, list) and value and isinstance(value[0], Decimal):
            return all(map(self.is_equal, value, loaded)) and len(value) == len(loaded)
        return _same(value, loaded)


def _plain_values() -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters())
        | st.binary()
        | st.dates()
        | st.datetimes(timezones=st.none() | st.sampled_from([BERLIN, dt.timezone.utc]))
        | st.timedeltas()
        | st.decimals(allow_nan=False)
        | st.fractions()
        | st.uuids()
        | st.sampled_from([*Color, *Access])
    )
    keys = st.text(st.sampled_from("$ab\ud800")) | st.integers() | st.tuples(st.integers(), st.text())
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.sets(st.integers() | st.text() | st.booleans())
        | st.builds(Item, st.text(), st.floats(), st.lists(st.text())),
        max_leaves=20,
    )


@given(_plain_values())
@settings(max_examples=300, deadline=None)
def test_any_plain_value_comes_back_the_same(value: Any) -> None:
    assert _same(round_trip(PlainMaterializer(), value), value)


@given(st.lists(st.floats() | st.integers() | st.text() | st.none()))
@settings(max_examples=100, deadline=None)
def test_a_plain_value_is_strict_json(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    files, _ = save(PlainMaterializer(), value)
    json.loads(files.contents["value.json"].decode("utf-8"), parse_constant=refuse)


def test_plain_json_is_readable() -> None:
    files, _ = save(PlainMaterializer(), {"lr": 0.1, "layers": [64, 32], "day": dt.date(2026, 1, 31), "at": (1, None)})
    assert files.contents["value.json"] == (
        b'{"lr":0.1,"layers":[64,32],"day":{"$date":"2026-01-31"},"at":{"$tuple":[1,null]}}'
    )


def test_order_of_a_dict_makes_a_difference() -> None:
    one, other = save(PlainMaterializer(), {"a": 1, "b": 2})[0], save(PlainMaterializer(), {"b": 2, "a": 1})[0]
    assert one.contents != other.contents


def test_values_of_other_types_inside_plain_values_become_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    array = np.arange(6.0).reshape(2, 3)
    table = pa.table({"x": [1, 2]})
    value = {
        "arrays": [array, {"deeper": array[0]}],
        "made": WithArrays("w", array, table),
        "tuple": (pd.DataFrame({"a": [1]}), pl.DataFrame({"b": [2]}), torch.ones(2)),
        "file": tmp_path / "note.txt",
        "scalars": [np.float32(1.5), np.int8(3), pd.Timestamp("2026-01-31", tz="Europe/Berlin"), torch.float32],
    }
    files, metadata = save(PlainMaterializer(), value)
    assert len(files.contents) == 1 + 8
    loaded = PlainMaterializer().load(files.reader(), dict, metadata)
    np.testing.assert_array_equal(loaded["arrays"][1]["deeper"], array[0])
    assert loaded["made"].name == "w"
    np.testing.assert_array_equal(loaded["made"].weights, array)
    assert loaded["made"].table.equals(table)
    assert [type(part) for part in loaded["tuple"]] == [pd.DataFrame, pl.DataFrame, torch.Tensor]
    assert loaded["file"].name == "note.txt"
    assert loaded["file"].read_text() == "hello"
    assert loaded["scalars"] == value["scalars"]
    assert list(map(type, loaded["scalars"])) == list(map(type, value["scalars"]))  # type: ignore[call-overload]


def test_errors_about_plain_values_say_what_to_do() -> None:
    for value, advice in (
        ({"f": len}, "return what it gives"),
        ([Item], "return an instance"),
        ([Plain()], "allow_pickle=True"),
        ([DictChild()], "return a dict or a dataclass"),
        (pl.LazyFrame({"a": [1]}), "collect"),
    ):
        materializer = LazyFrameMaterializer() if isinstance(value, pl.LazyFrame) else PlainMaterializer()
        with pytest.raises(MaterializerError, match=advice):
            save(materializer, value)


def test_a_stored_plain_value_cannot_name_a_class_that_is_not_data() -> None:
    for text in (
        '{"$dataclass":["subprocess.Popen",{"args":"true"}]}',
        '{"$enum":["os._Environ","x",false]}',
        '{"$namedtuple":["subprocess.Popen",{}]}',
        '{"$pydantic":["subprocess.Popen",{"fields":{},"set":[]}]}',
        '{"$artifact":["builtins.int","zenray_materializers.pickled:PickleMaterializer","0/",{}]}',
        '{"$artifact":["builtins.int","os:abort","0/",{}]}',
        '{"$unknown":1}',
        "{",
    ):
        files = MemoryFiles()
        files.writer().put("value.json", text.encode())
        with pytest.raises(MaterializerError):
            PlainMaterializer().load(files.reader(), dict, {})


def test_a_field_added_to_a_dataclass_has_its_default_when_an_old_value_is_loaded() -> None:
    files = MemoryFiles()
    name = type_name(Item)
    files.writer().put("value.json", json.dumps({"$dataclass": [name, {"name": "old"}]}).encode())
    assert PlainMaterializer().load(files.reader(), Item, {}) == Item("old")
    files = MemoryFiles()
    files.writer().put("value.json", json.dumps({"$dataclass": [name, {"name": "old", "gone": 1}]}).encode())
    with pytest.raises(MaterializerError, match="gone"):
        PlainMaterializer().load(files.reader(), Item, {})


@functools.cache
def _tree() -> Path:
    """Make a directory with something of everything; in each process its own, with the same content."""
    root = Path(tempfile.mkdtemp(prefix="zenray-test-")) / "out"
    (root / "empty" / "deeper").mkdir(parents=True)
    (root / "sub").mkdir()
    (root / "sub" / "ä b.txt").write_text("text")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "large.bin").write_bytes(bytes(100_000))
    (root / "link").symlink_to("sub/ä b.txt")
    (root / "sub" / "up").symlink_to(root / "run.sh")
    (root / "directory link").symlink_to("sub")
    return root


def _listing(root: Path) -> list[Any]:
    if root.is_file():
        return [root.name, root.read_bytes(), os.access(root, os.X_OK)]
    found: list[Any] = []
    for path in sorted(root.rglob("*")):
        content = path.read_bytes() if path.is_file() else None
        found.append([str(path.relative_to(root)), path.is_symlink(), content, os.access(path, os.X_OK)])
    return found


class TestPath(MaterializerContract):
    materializer = PathMaterializer

    def values(self) -> Mapping[str, Any]:
        root = _tree()
        return {"file": root / "large.bin", "program": root / "run.sh", "directory": root, "empty": root / "empty"}

    def refused(self) -> Mapping[str, Any]:
        root = Path(tempfile.mkdtemp(prefix="zenray-test-"))
        for name, target in (("outside", "/etc/hosts"), ("up", ".."), ("broken", "nowhere"), ("loop", "loop")):
            (root / name).mkdir()
            (root / name / "link").symlink_to(target)
        (root / "special").mkdir()
        os.mkfifo(root / "special" / "fifo")
        names = ("outside", "up", "broken", "loop", "special")
        return {name: root / name for name in names} | {"missing": root / "missing", "device": Path("/dev/null")}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return loaded != value and loaded.name == value.name and _listing(loaded) == _listing(value)


def test_stored_names_that_leave_the_directory_are_refused() -> None:
    kept = {"kind": "directory", "name": "x", "directories": [], "executables": [], "links": {}}
    for names, change in (
        ({"data/../evil": b""}, {}),
        ({"data//etc/evil": b""}, {}),
        ({}, {"name": ".."}),
        ({}, {"name": "a/b"}),
        ({}, {"directories": ["../evil"]}),
        ({}, {"links": {"a": "../evil"}}),
        ({}, {"links": {"a": "/etc"}}),
        ({}, {"links": {"../a": "x"}}),
        ({}, {"links": {"a": ".", "a/b": ".."}}),
    ):
        files = MemoryFiles()
        files.contents.update(names)
        with pytest.raises(MaterializerError):
            PathMaterializer().load(files.reader(), Path, kept | change)


def test_a_loaded_directory_is_a_private_copy_removed_when_the_process_ends() -> None:
    program = (
        "from pathlib import Path; from zenray.testing import round_trip\n"
        "from zenray_materializers.files import PathMaterializer\n"
        f"p = round_trip(PathMaterializer(), Path({str(_tree())!r}))\n"
        "(p / 'run.sh').write_text('changed'); print(p)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()
    assert loaded.endswith("/out")
    assert not Path(loaded).exists()
    assert (_tree() / "run.sh").read_text() == "#!/bin/sh\n"


def _arrow_columns(*, has_nulls: bool) -> dict[str, Any]:
    """Return a column of every kind, 100 rows, the same in every process."""
    source = random.Random(7)

    def column(kind: Any, make: Any) -> Any:
        return pa.array([None if has_nulls and source.random() < 0.3 else make() for _ in range(100)], kind)

    def number() -> int:
        return source.randrange(100)

    def text() -> str:
        return "xyz"[: source.randrange(4)] + str(number())

    structure = pa.struct({"a": pa.int32(), "b": pa.string(), "c": pa.bool_()})
    deep = pa.list_(pa.struct({"x": pa.list_(pa.float32())}))
    return {
        "int8": column(pa.int8(), number),
        "int64": column(pa.int64(), number),
        "double": column(pa.float64(), source.random),
        "bool": column(pa.bool_(), lambda: number() < 50),
        "string": column(pa.string(), text),
        "large_string": column(pa.large_string(), text),
        "string_view": column(pa.string_view(), lambda: text() * 6),
        "binary": column(pa.binary(), lambda: text().encode()),
        "fixed_binary": column(pa.binary(3), lambda: b"abc"),
        "timestamp": column(pa.timestamp("us", "UTC"), lambda: dt.datetime(2026, 1, 1 + number() % 20)),
        "date": column(pa.date32(), lambda: dt.date(2026, 1, 1 + number() % 20)),
        "decimal": column(pa.decimal128(10, 2), lambda: Decimal(number()) / 4),
        "list": column(pa.list_(pa.int32()), lambda: [number()] * (number() % 4)),
        "list of string": column(pa.list_(pa.string()), lambda: [None, text()] * (number() % 4)),
        "large list": column(pa.large_list(pa.bool_()), lambda: [True, None] * (number() % 3)),
        "fixed list": column(pa.list_(pa.int32(), 2), lambda: [number(), number()]),
        "struct": column(structure, lambda: {"a": number(), "b": None if number() < 40 else text(), "c": True}),
        "deep": column(deep, lambda: [{"x": [1.5, None] * (number() % 3)}] * (number() % 3)),
        "map": column(pa.map_(pa.string(), pa.int32()), lambda: [(text(), number())] * (number() % 3)),
        "dictionary": column(pa.string(), text).dictionary_encode(),
        "extension": pa.ExtensionArray.from_storage(pa.uuid(), column(pa.binary(16), lambda: bytes([number()]) * 16)),
        "null": pa.nulls(100),
    }


def _all_columns() -> dict[str, Any]:
    full = {f"{name}, full": column for name, column in _arrow_columns(has_nulls=False).items()}
    return full | {f"{name}, nulls": column for name, column in _arrow_columns(has_nulls=True).items()}


class TestTable(MaterializerContract):
    materializer = TableMaterializer

    def values(self) -> Mapping[str, Any]:
        columns = _all_columns()
        wide = pa.table({f"column number {i} with a long name": [i] for i in range(500)})
        described = pa.schema(
            [pa.field("x", pa.int64(), nullable=False, metadata={"b": "1", "a": "2"})], metadata={"z": "1", "a": "2"}
        )
        return {
            "all": pa.table(columns),
            "no rows": pa.table(columns).slice(0, 0),
            "no columns": pa.table({}),
            "many columns": wide,
            "described": pa.table([pa.array([1, 2])], schema=described),
            "twice the same name": pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]),
            "many rows": pa.table({"x": range(300_000), "y": ["abc"] * 300_000}),
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        loaded.validate(full=True)
        return bool(loaded.equals(value, check_metadata=True))


@pytest.mark.parametrize("name", _all_columns())
def test_equal_columns_give_equal_bytes_however_they_lie_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "_BATCH_ROWS", 16)  # more batches than one, without 100,000 rows
    column = _all_columns()[name]
    junk = pa.concat_arrays([column.slice(50, 13), column, column.slice(3, 20)])
    expected, metadata = save(TableMaterializer(), pa.table({"c": column}))
    loaded = TableMaterializer().load(expected.reader(), pa.Table, metadata)
    for other in (
        pa.chunked_array([column.slice(0, 7), column.slice(7, 30), column.slice(37, 0), column.slice(37)]),
        pa.chunked_array([junk.slice(13, 100)]),
        loaded.column(0),
        loaded.combine_chunks().column(0),
    ):
        assert other.equals(pa.chunked_array([column]))
        assert save(TableMaterializer(), pa.table({"c": other}))[0].digests() == expected.digests()


@pytest.mark.parametrize("name", _all_columns())
@pytest.mark.parametrize(("start", "length"), [(0, 0), (0, 50), (3, 47), (5, 55), (16, 16)])
def test_a_slice_is_written_without_what_lies_around_it(name: str, start: int, length: int) -> None:
    part = _all_columns()[name].slice(start, length)
    files, metadata = save(ArrayMaterializer(), part)
    loaded = ArrayMaterializer().load(files.reader(), type(part), metadata)
    assert loaded.equals(part)
    moved = pa.concat_arrays([part.slice(0, length // 2), part.slice(length // 2)])
    assert save(ArrayMaterializer(), moved)[0].digests() == files.digests()


def test_what_lies_under_a_null_makes_no_difference() -> None:
    column = pa.array([1, None, 3])
    other = pa.Array.from_buffers(column.type, 3, [column.buffers()[0], pa.array([1, 99, 3]).buffers()[1]])
    assert save(ArrayMaterializer(), column)[0].digests() == save(ArrayMaterializer(), other)[0].digests()


def test_a_loaded_table_lies_in_the_buffer_it_was_read_from() -> None:
    files, metadata = save(TableMaterializer(), pa.table({"x": range(1000), "s": ["a"] * 1000}))
    before = pa.total_allocated_bytes()
    loaded = TableMaterializer().load(files.reader(), pa.Table, metadata)
    assert loaded.column("x").to_pylist() == list(range(1000))
    assert pa.total_allocated_bytes() == before


class TestRecordBatch(MaterializerContract):
    materializer = RecordBatchMaterializer

    def values(self) -> Mapping[str, Any]:
        batch = pa.record_batch(_all_columns())
        return {"all": batch, "slice": batch.slice(3, 50), "no rows": batch.slice(0, 0), "no columns": pa.record_batch({})}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return bool(loaded.equals(value))


class TestArray(MaterializerContract):
    materializer = ArrayMaterializer

    def values(self) -> Mapping[str, Any]:
        columns = _all_columns()
        scalars = {f"scalar {name}": column[1] for name, column in columns.items()}
        chunked = {"chunked": pa.chunked_array([[1], [2, None]]), "no chunks": pa.chunked_array([], pa.int8())}
        return columns | scalars | chunked

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return bool(loaded.equals(value)) and loaded.type == value.type


class TestSchema(MaterializerContract):
    materializer = SchemaMaterializer

    def values(self) -> Mapping[str, Any]:
        schema = pa.schema({name: column.type for name, column in _all_columns().items()}, metadata={"b": "1", "a": "2"})
        return {"schema": schema, "field": pa.field("x", pa.int8(), False), "type": pa.list_(pa.timestamp("ms"))}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return bool(loaded.equals(value, check_metadata=True))


class TestNumpy(MaterializerContract):
    materializer = NumpyMaterializer

    def values(self) -> Mapping[str, Any]:
        numbers = np.arange(24.0).reshape(2, 3, 4)
        padded = np.dtype([("flag", "u1"), ("value", "f8"), ("part", [("a", "i2"), ("b", "i8")])], align=True)
        records = np.empty(3, padded)
        for name in ("flag", "value"):
            records[name] = 1
        records["part"]["a"], records["part"]["b"] = 2, 3
        kinds = ("?", "i1", "u2", "<i8", ">i4", "f2", "f4", "c8", "c16", "S5", "U3", "V4", "M8[D]", "M8[ns]", "m8[s]")
        return {
            **{f"dtype {kind}": np.zeros((2, 2), "V8").view("u1").reshape(-1)[:2].astype("u1").astype(kind) if
               kind != "V4" else np.zeros(2, "V4") for kind in kinds},
            "c order": numbers,
            "fortran order": np.asfortranarray(numbers),
            "transposed": numbers.T,
            "not contiguous": numbers[:, ::2, 1:3],
            "reversed": numbers[::-1],
            "zero dimensions": np.array(3.5),
            "empty": np.empty((0, 3)),
            "special": np.array([np.nan, np.inf, -0.0]),
            "not a time": np.array(["NaT", "2026-01-31"], "M8[D]"),
            "records with padding": records,
            "record names": np.zeros(2, [("ä日", "f4"), ("x", "i4", (2,))]),
            "record array": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
            "objects": np.array([["a", None], [1, {"x": (1, 2)}]], dtype=object),
            "objects that are lists": _object_array([[1], [2]]),
            "masked": np.ma.MaskedArray([1.0, 2.0], mask=[True, False], fill_value=-1.0),
            "matrix": _matrix(),
            "large": np.arange(1_000_000, dtype=np.int32),
        }

    def refused(self) -> Mapping[str, Any]:
        return {
            "objects": np.array([Plain()], dtype=object),
            "long double": np.zeros(2, np.longdouble),
            "strings of any length": np.array(["a"], np.dtypes.StringDType()),
            "record with object": np.zeros(2, [("a", object)]),
            "subclass": np.zeros(2).view(_ArrayChild),
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        same_order = value.flags.f_contiguous == loaded.flags.f_contiguous or not value.flags.forc
        if value.dtype == object:
            return loaded.shape == value.shape and bool((loaded == value).all())
        if isinstance(value, np.ma.MaskedArray):
            return bool((loaded.mask == value.mask).all()) and loaded.fill_value == value.fill_value
        if value.dtype.names:
            return loaded.dtype == value.dtype and bool((loaded == value).all())
        return (
            loaded.dtype == value.dtype
            and loaded.shape == value.shape
            and same_order
            and loaded.tobytes() == value.tobytes()
        )


class _ArrayChild(np.ndarray):  # type: ignore[type-arg]
    pass


def _object_array(items: list[Any]) -> Any:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _matrix() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix([[1, 2], [3, 4]])


def test_a_loaded_array_is_read_only_and_lies_in_the_buffer_it_was_read_from() -> None:
    files, metadata = save(NumpyMaterializer(), np.arange(1000.0))
    loaded = NumpyMaterializer().load(files.reader(), np.ndarray, metadata)
    assert not loaded.flags.writeable
    assert np.shares_memory(loaded, np.frombuffer(files.contents["array.npy"], np.uint8))


def test_numpy_itself_reads_the_files() -> None:
    for value in (np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((3, 2))), np.array(1.5), np.ones((4, 4))[::2]):
        files, _ = save(NumpyMaterializer(), value)
        np.testing.assert_array_equal(np.load(io.BytesIO(files.contents["array.npy"])), value)


def test_a_memory_mapped_array_is_saved_as_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(5))
    assert round_trip(NumpyMaterializer(), np.load(tmp_path / "x.npy", mmap_mode="r")).tolist() == [0, 1, 2, 3, 4]


class TestNumpyScalar(MaterializerContract):
    materializer = NumpyScalarMaterializer

    def values(self) -> Mapping[str, Any]:
        scalars = (
            np.float64(0.1), np.float64("nan"), np.float64("-inf"), np.float64(-0.0), np.float32(0.1), np.float16(2),
            np.int64(-(2**63)), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1 + 2j), np.str_("ä"), np.str_(""),
            np.bytes_(b"x"), np.datetime64("2026-01-31T12", "ms"), np.datetime64("NaT"), np.timedelta64(3, "D"),
        )  # fmt: skip
        return {f"{type(scalar).__name__} {scalar}": scalar for scalar in scalars}

    def refused(self) -> Mapping[str, Any]:
        return {"record": np.zeros(1, [("a", "i4")])[0], "long double": np.longdouble(1)}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return loaded.dtype == value.dtype and loaded.tobytes() == value.tobytes()


class TestNumpyDtype(MaterializerContract):
    materializer = NumpyDtypeMaterializer

    def values(self) -> Mapping[str, Any]:
        record = np.dtype([("a", "i4"), ("b", [("c", "f8"), ("d", "S3")], (2, 3))])
        return {"float": np.dtype("f4"), "text": np.dtype("U5"), "time": np.dtype("M8[ms]"), "record": record}


def _frame() -> pd.DataFrame:
    """Return a frame with a column of every dtype."""
    day = pd.Timestamp("2026-01-31")
    frame = pd.DataFrame(
        {
            "int": [1, 2, 3],
            "float": [1.5, np.nan, -0.0],
            "float32": np.array([1, 2, 3], "f4"),
            "bool": [True, False, True],
            "text": ["a", None, "ä"],
            "object text": pd.Series(["a", None, "b"], dtype=object),
            "objects": pd.Series([1, "x", {"a": (1, dt.date(2026, 1, 31))}], dtype=object),
            "decimals": pd.Series([Decimal("1.1"), None, np.nan], dtype=object),
            "when": pd.to_datetime(["2026-01-31", None, "2026-02-01"]),
            "when ns": pd.Series([day, None, day]).astype("datetime64[ns]"),
            "zoned": pd.Series([day, None, day]).dt.tz_localize("Europe/Berlin"),
            "offset": pd.Series([day] * 3).dt.tz_localize(dt.timezone(dt.timedelta(hours=3))),
            "difference": pd.to_timedelta(["1 day", None, "2 s"]),
            "Int64": pd.array([1, None, 3], "Int64"),
            "boolean": pd.array([True, None, False], "boolean"),
            "Float32": pd.array([1.5, None, 2], "Float32"),
            "string": pd.array(["a", None, "b"], "string"),
            "python string": pd.array(["a", None, "b"], pd.StringDtype("python", na_value=np.nan)),
            "category": pd.Categorical(["b", None, "a"], categories=["b", "a", "unused"], ordered=True),
            "number category": pd.Categorical([30, 10, 30]),
            "interval category": pd.cut([1, 5, 9], 3),
            "period": pd.PeriodIndex(["2026-01", None, "2026-03"], freq="M"),
            "interval": pd.arrays.IntervalArray.from_breaks([0, 1, 2, 3], closed="left"),
            "interval of times": pd.arrays.IntervalArray.from_breaks(pd.date_range("2026", periods=4, tz="Europe/Berlin")),
            "arrow": pd.array([[1], None, [2, 3]], pd.ArrowDtype(pa.list_(pa.int64()))),
            "sparse": pd.arrays.SparseArray([0.0, 1.0, 0.0], fill_value=0.0),
        }
    )
    frame.attrs = {"source": "test", "at": dt.date(2026, 1, 31)}
    return frame


def _indexes() -> dict[str, Any]:
    return {
        "range": pd.RangeIndex(2, 8, 2, name="r"),
        "int": pd.Index([3, 1, 2]),
        "text": pd.Index(["b", "a", "c"], name="n"),
        "object": pd.Index(["x", 1, None], dtype=object),
        "datetime": pd.date_range("2026-01-01", periods=3, freq="D", tz="Europe/Berlin", name=("a", 1)),
        "business days": pd.date_range("2026-01-01", periods=3, freq="BMS"),
        "no frequency": pd.DatetimeIndex(["2026-01-01", "2026-01-03", "2026-02-01"]),
        "difference": pd.timedelta_range("1h", periods=3, freq="90min"),
        "period": pd.period_range("2026-01", periods=3, freq="Q"),
        "interval": pd.interval_range(0, 3),
        "category": pd.CategoricalIndex(["b", "a", "b"], categories=["b", "a"]),
        "Int64": pd.Index([1, None, 2], dtype="Int64"),
        "multi": pd.MultiIndex.from_arrays([["a", "a", "b"], [1, 2, 1], pd.to_datetime(["2026"] * 3)], names=["x", None, 3]),
        "multi of one": pd.MultiIndex.from_arrays([["a", "b", "c"]], names=["x"]),
    }


class TestFrame(MaterializerContract):
    materializer = FrameMaterializer

    def values(self) -> Mapping[str, Any]:
        frame = _frame()
        indexed = {f"index {name}": frame.iloc[:, :2].set_axis(index) for name, index in _indexes().items()}
        plain = pd.DataFrame(np.arange(9.0).reshape(3, 3))
        labelled = {f"columns {name}": plain.set_axis(index, axis=1) for name, index in _indexes().items()}
        return {
            "all": frame,
            "no rows": frame.iloc[:0],
            "no columns": pd.DataFrame(index=pd.Index([1, 2])),
            "nothing": pd.DataFrame(),
            "some rows": frame.iloc[1:],
            "twice the same name": pd.concat([frame[["int"]], frame[["text"]].set_axis(["int"], axis=1)], axis=1),
            "mixed labels": pd.DataFrame([[1, 2, 3]], columns=[1, "a", (2, 3)]),
            "many columns": pd.DataFrame(np.zeros((2, 500))).rename(columns=lambda i: f"a long name of column {i}"),
            "many rows": pd.DataFrame({"x": np.arange(300_000), "s": ["text"] * 300_000}),
            **indexed,
            **labelled,
        }

    def refused(self) -> Mapping[str, Any]:
        return {
            "objects": pd.DataFrame({"x": pd.Series([Plain()], dtype=object)}),
            "arrays": pd.DataFrame({"x": pd.Series([np.zeros(2)], dtype=object)}),
            "complex": pd.DataFrame({"x": [1j]}),
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        pd.testing.assert_frame_equal(loaded, value, check_freq=True, check_flags=True, check_exact=True)
        return bool(loaded.attrs == value.attrs) and [type(x) for x in loaded.dtypes] == [type(x) for x in value.dtypes]


def test_an_error_about_a_column_names_it() -> None:
    with pytest.raises(MaterializerError, match="column 'bad'"):
        save(FrameMaterializer(), pd.DataFrame({"good": [1], "bad": pd.Series([Plain()], dtype=object)}))


def test_a_loaded_frame_can_be_changed() -> None:
    loaded = round_trip(FrameMaterializer(), pd.DataFrame({"x": [1.0, 2.0], "s": ["a", "b"], "n": pd.array([1, 2], "Int64")}))
    loaded.loc[0, "x"] = 9.0
    loaded.loc[0, "s"] = "z"
    loaded.loc[0, "n"] = 7
    assert loaded.iloc[0].tolist() == [9.0, "z", 7]


def test_arrow_reads_the_columns_of_a_frame_under_their_names() -> None:
    files, _ = save(FrameMaterializer(), pd.DataFrame({"x": [1, 2], "when": pd.to_datetime(["2026-01-31"] * 2)}))
    table = pa.ipc.open_file(files.contents["data.arrow"]).read_all()
    assert table.schema == pa.schema({"x": pa.int64(), "when": pa.timestamp("us")})


class TestSeries(MaterializerContract):
    materializer = SeriesMaterializer

    def values(self) -> Mapping[str, Any]:
        frame = _frame()
        columns = {str(name): frame[name] for name in frame.columns}
        return columns | {"unnamed": pd.Series([1, 2]), "odd name": pd.Series([1], name=("a", 1)), "empty": pd.Series([])}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        pd.testing.assert_series_equal(loaded, value, check_exact=True, check_freq=True)
        return bool(loaded.attrs == value.attrs)


class TestIndex(MaterializerContract):
    materializer = IndexMaterializer

    def values(self) -> Mapping[str, Any]:
        return _indexes()

    def is_equal(self, value: Any, loaded: Any) -> bool:
        pd.testing.assert_index_equal(loaded, value, exact=True)
        return getattr(loaded, "freq", None) == getattr(value, "freq", None) and list(loaded.names) == list(value.names)


class TestExtensionArray(MaterializerContract):
    materializer = ExtensionArrayMaterializer

    def values(self) -> Mapping[str, Any]:
        return {"category": pd.Categorical(["a", "b", None]), "Int64": pd.array([1, None], "Int64")}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        pd.testing.assert_extension_array_equal(loaded, value)
        return True


class TestPandasScalar(MaterializerContract):
    materializer = PandasScalarMaterializer

    def values(self) -> Mapping[str, Any]:
        return {
            "timestamp": pd.Timestamp("2026-01-31 12:00:00.123456789"),
            "zoned": pd.Timestamp(dt.datetime(2026, 10, 25, 2, 30, fold=1), tz="Europe/Berlin"),
            "seconds": pd.Timestamp("2026-01-31").as_unit("s"),
            "difference": pd.Timedelta("1 day 3 ns"),
            "period": pd.Period("2026-01", freq="M"),
            "interval": pd.Interval(pd.Timestamp("2026-01-01"), pd.Timestamp("2026-02-01"), closed="both"),
            "not a time": pd.NaT,
            "missing": pd.NA,
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        if value is pd.NaT or value is pd.NA:
            return loaded is value
        unit = getattr(value, "unit", None) == getattr(loaded, "unit", None)
        return bool(loaded == value) and unit and str(loaded) == str(value)


def _polars_frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "int": [1, None, 3],
            "float": [1.5, math.nan, None],
            "text": ["a", None, "ä" * 20],
            "category": pl.Series(["u", "v", None], dtype=pl.Categorical),
            "enum": pl.Series(["u", "v", None], dtype=pl.Enum(["v", "u"])),
            "list": [[1], None, [2, 3]],
            "array": pl.Series([[1, 2], [3, 4], None], dtype=pl.Array(pl.Int8, 2)),
            "struct": [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None],
            "list of categories": pl.Series([["u"], [], None], dtype=pl.List(pl.Categorical)),
            "duration": pl.Series([1, 2, None], dtype=pl.Duration("ms")),
            "time": pl.Series([1, 2, None], dtype=pl.Time),
            "when": pl.Series([1, 2, None], dtype=pl.Datetime("ns", "Europe/Berlin")),
            "date": [dt.date(2026, 1, 31), None, None],
            "decimal": pl.Series(["1.5", "2.5", None]).cast(pl.Decimal(10, 2)),
            "nulls": pl.Series([None, None, None], dtype=pl.Null),
            "bytes": [b"a", b"b", None],
        }
    )


class TestPolarsFrame(MaterializerContract):
    materializer = PolarsFrameMaterializer

    def values(self) -> Mapping[str, Any]:
        frame = _polars_frame()
        return {
            "all": frame,
            "no rows": frame.clear(),
            "no columns": pl.DataFrame(),
            "slice": frame[1:],
            "many rows": pl.DataFrame({"x": range(300_000)}),
        }

    def refused(self) -> Mapping[str, Any]:
        return {"objects": pl.DataFrame({"x": pl.Series([Plain()], dtype=pl.Object)})}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return loaded.schema == value.schema and bool(loaded.equals(value))


def test_categories_that_were_seen_before_make_no_difference() -> None:
    expected, _ = save(PolarsFrameMaterializer(), _polars_frame())
    pl.Series(["other", "v", "u"], dtype=pl.Categorical)
    assert save(PolarsFrameMaterializer(), _polars_frame())[0].digests() == expected.digests()
    parts = pl.concat([_polars_frame()[:1], _polars_frame()[1:]], rechunk=False)
    assert save(PolarsFrameMaterializer(), parts)[0].digests() == expected.digests()


class TestPolarsSeries(MaterializerContract):
    materializer = PolarsSeriesMaterializer

    def values(self) -> Mapping[str, Any]:
        return {series.name: series for series in _polars_frame()}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return loaded.dtype == value.dtype and bool(loaded.equals(value, check_names=True))


class TestTensor(MaterializerContract):
    materializer = TensorMaterializer

    def values(self) -> Mapping[str, Any]:
        numbers = torch.arange(12.0).reshape(3, 4)
        kinds = ("float64", "float16", "bfloat16", "int64", "int8", "uint8", "bool", "complex64", "float8_e4m3fn")
        return {
            **{kind: torch.tensor([0, 1, 1]).to(getattr(torch, kind)) for kind in kinds},
            "transposed": numbers.T,
            "part": numbers[1:, ::2],
            "zero dimensions": torch.tensor(2.5),
            "empty": torch.empty(0, 3),
            "requires grad": torch.ones(2, requires_grad=True),
            "parameter": nn.Parameter(torch.ones(2)),
            "frozen parameter": nn.Parameter(torch.ones(2), requires_grad=False),
            "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        }

    def refused(self) -> Mapping[str, Any]:
        return {
            "sparse": torch.eye(2).to_sparse(),
            "no data": torch.ones(2, device="meta"),
            "complex128": torch.ones(2, dtype=torch.complex128),
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        plain = value.detach().resolve_conj()
        same = torch.equal(loaded.detach(), plain) if "float8" not in str(value.dtype) else loaded.tolist() == value.tolist()
        return same and loaded.dtype == value.dtype and loaded.requires_grad == value.requires_grad


def test_safetensors_itself_reads_the_files() -> None:
    value = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    files, _ = save(TensorMaterializer(), value)
    assert torch.equal(load_safetensors(files.contents["tensor.safetensors"])["tensor"], value)


def test_a_loaded_tensor_can_be_changed() -> None:
    assert round_trip(TensorMaterializer(), torch.zeros(2)).add_(1).tolist() == [1.0, 1.0]


def test_a_state_dict_comes_back_with_its_versions() -> None:
    state = nn.BatchNorm1d(3).state_dict()
    loaded = round_trip(PlainMaterializer(), state)
    assert list(loaded) == list(state)
    assert loaded._metadata == state._metadata
    nn.BatchNorm1d(3).load_state_dict(loaded)


class TestTorchFact(MaterializerContract):
    materializer = TorchFactMaterializer

    def values(self) -> Mapping[str, Any]:
        facts = (torch.float32, torch.device("cuda:1"), torch.Size([1, 2]), torch.channels_last, torch.strided)
        return {str(fact): fact for fact in facts}


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.shape = (width, width)
        self.first = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.third.weight = self.second.weight
        self.act = torch.relu
        self.all = [self.first, self.second]
        self.scale = torch.ones(width)
        self.register_buffer("steps", torch.zeros(1), persistent=False)
        self.register_parameter("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.act(self.second(self.norm(self.all[0](x))))) * self.scale + self.steps


class WithLambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x


class TestModule(MaterializerContract):
    materializer = ModuleMaterializer

    def values(self) -> Mapping[str, Any]:
        torch.manual_seed(0)
        frozen = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2)).eval()
        frozen[0].weight.requires_grad_(False)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        return {
            "linear": nn.Linear(3, 2),
            "sequential": frozen,
            "own": Net(4),
            "convolution": nn.Sequential(nn.Conv1d(3, 2, 1), nn.GELU(), nn.Flatten()),
            "lstm": nn.LSTM(3, 4, 2, bidirectional=True),
            "transformer": nn.Sequential(nn.Linear(3, 4), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)),
        }

    def refused(self) -> Mapping[str, Any]:
        hooked = nn.Linear(2, 2)
        hooked.register_forward_hook(print)

        class Local(nn.Module):
            pass

        return {
            "lambda": WithLambda(),
            "hook": hooked,
            "local": Local(),
            "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        assert loaded.training == value.training
        flags = [(name, p.requires_grad) for name, p in value.named_parameters()]
        assert [(name, p.requires_grad) for name, p in loaded.named_parameters()] == flags
        x = torch.linspace(-1, 1, 15).reshape(5, 3)
        if isinstance(value[0] if isinstance(value, nn.Sequential) else value, nn.Conv1d):
            x = x.reshape(1, 3, 5)
        outputs = [copy.deepcopy(model).eval()(x) for model in (value, loaded)]
        if isinstance(outputs[0], tuple):
            outputs = [output[0] for output in outputs]
        return torch.equal(*outputs) and str(loaded) == str(value)


def test_shared_parts_of_a_module_stay_shared_and_train_on() -> None:
    loaded = round_trip(ModuleMaterializer(), Net(4))
    assert loaded.third.weight is loaded.second.weight
    assert loaded.all[0] is loaded.first
    assert list(loaded.state_dict()) == list(Net(4).state_dict())
    assert loaded.width == 4
    assert loaded.shape == (4, 4)
    optimizer = torch.optim.SGD(loaded.parameters(), 0.1)
    loaded(torch.ones(2, 3)).sum().backward()
    before = loaded.third.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, loaded.second.weight)


def test_an_error_about_a_module_names_the_attribute_and_the_way_out() -> None:
    with pytest.raises(MaterializerError, match=r"'act'.*WithLambda.*state_dict\(\)"):
        save(ModuleMaterializer(), WithLambda())


@functools.cache
def _estimators() -> dict[str, Any]:
    source = np.random.default_rng(0)
    x = source.normal(size=(120, 4))
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": np.where(x[:, 2] > 0, "u", "v")})
    columns = ColumnTransformer([("numbers", StandardScaler(), ["a", "b"]), ("texts", OneHotEncoder(), ["c"])])
    return {
        "not fitted": LogisticRegression(C=0.5),
        "boosting": HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(x, y),
        "forest": RandomForestClassifier(3, random_state=0).fit(x, y),
        "pipeline": make_pipeline(StandardScaler(), FunctionTransformer(np.abs), LogisticRegression()).fit(x, y),
        "columns": make_pipeline(columns, LogisticRegression()).fit(frame, y),
        "search": GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(x, y),
        "texts": TfidfVectorizer(stop_words=["and", "or", "the"]).fit(["a cat and a dog", "the dog or the bird"]),
    }


class OwnTransformer(TransformerMixin, BaseEstimator):
    def fit(self, x: Any, y: Any = None) -> "OwnTransformer":
        self.mean_ = 1.0
        return self

    def transform(self, x: Any) -> Any:
        return x


class OwnSklearnMaterializer(SklearnMaterializer):
    trusted = (*SklearnMaterializer.trusted, OwnTransformer.__module__ + ".")


class TestSklearn(MaterializerContract):
    materializer = SklearnMaterializer

    def values(self) -> Mapping[str, Any]:
        # The search keeps how long its fits took: no two are equal.
        return {name: estimator for name, estimator in _estimators().items() if name != "search"}

    def refused(self) -> Mapping[str, Any]:
        return {"own": make_pipeline(OwnTransformer(), LogisticRegression()), "lambda": FunctionTransformer(lambda x: x)}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return _predictions(value) == _predictions(loaded)


def _predictions(estimator: Any) -> Any:
    if isinstance(estimator, TfidfVectorizer):
        return estimator.transform(["a dog", "the bird"]).toarray().tolist()
    if not hasattr(estimator, "classes_"):
        return estimator.get_params()
    x = np.random.default_rng(1).normal(size=(20, 4))
    if "columntransformer" in getattr(estimator, "named_steps", ()):
        x = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": np.where(x[:, 2] > 0, "u", "v")})
    return estimator.predict_proba(x).tolist()


def test_a_search_predicts_the_same() -> None:
    search = _estimators()["search"]
    assert _predictions(round_trip(SklearnMaterializer(), search)) == _predictions(search)


def test_estimators_of_ones_own_are_named_and_can_be_trusted() -> None:
    value = make_pipeline(OwnTransformer().fit(None), StandardScaler())
    with pytest.raises(MaterializerError, match="OwnTransformer.*trusted"):
        save(SklearnMaterializer(), value)
    assert round_trip(OwnSklearnMaterializer(), value)[0].mean_ == 1.0


def test_skops_itself_reads_the_files() -> None:
    files, _ = save(SklearnMaterializer(), _estimators()["pipeline"])
    loaded = skops.io.loads(files.contents["estimator.skops"])
    assert _predictions(loaded) == _predictions(_estimators()["pipeline"])


def test_an_estimator_of_another_version_comes_with_a_warning() -> None:
    files, metadata = save(SklearnMaterializer(), LogisticRegression())
    with pytest.warns(UserWarning, match="0.1"):
        SklearnMaterializer().load(files.reader(), LogisticRegression, metadata | {"sklearn": "0.1"})


def test_a_stored_estimator_cannot_call_functions() -> None:
    files, metadata = save(SklearnMaterializer(), StandardScaler().fit([[1.0], [2.0]]))
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files.contents["estimator.skops"])) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "schema.json":
                data = data.replace(b'"__class__":"ndarray","__module__":"numpy"', b'"__class__":"load","__module__":"numpy"')
                assert data != old.read(name)
            new.writestr(name, data)
    files.contents["estimator.skops"] = target.getvalue()
    with pytest.raises(MaterializerError):
        SklearnMaterializer().load(files.reader(), StandardScaler, metadata)


class TestPickle(MaterializerContract):
    materializer = PickleMaterializer

    def values(self) -> Mapping[str, Any]:
        return {"anything": ValueError("x"), "nested": {"a": [1, Color.RED]}}

    def refused(self) -> Mapping[str, Any]:
        return {"generator": (i for i in ()), "file": [sys.stdout.buffer]}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return repr(value) == repr(loaded)


def test_a_pickle_that_needs_cloudpickle_holds_functions() -> None:
    pytest.importorskip("cloudpickle")
    files, metadata = save(PickleMaterializer(), {"f": lambda x: x + 1})
    assert metadata == {"by": "cloudpickle"}
    assert PickleMaterializer().load(files.reader(), object, metadata)["f"](1) == 2


def test_a_pickle_that_is_broken_says_so() -> None:
    files = MemoryFiles()
    files.writer().put("value.pickle", b"broken")
    with pytest.raises(MaterializerError, match="cannot be loaded"):
        PickleMaterializer().load(files.reader(), object, {})


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_table_says_what_the_classes_say(row: tuple[str, str, bool, bool]) -> None:
    name, path, is_exact, is_pickle = row
    materializer = load_materializer(path)
    assert name in materializer.types
    assert (materializer.is_exact, materializer.is_pickle) == (is_exact, is_pickle)
    assert name.startswith("@") or type_name(load_class(name)) == name


def test_every_type_a_materializer_names_is_in_the_table() -> None:
    for path in {path for _, path, _, _ in TABLE}:
        assert set(load_materializer(path).types) == {name for name, other, _, _ in TABLE if other == path}


def test_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, zenray_materializers, zenray_materializers.plain, zenray_materializers.files\n"
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'torch', 'sklearn', 'polars', 'pydantic') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "[]"


def test_subclasses_of_a_frame_are_not_served_as_frames() -> None:
    class Geo(pd.DataFrame):
        pass

    assert find(pd.DataFrame, active_table()) == "zenray_materializers.pandas_frames:FrameMaterializer"
    assert find(Geo, active_table()) is None


def test_bases_are_found_before_the_kind_of_a_dataclass() -> None:
    @dataclasses.dataclass
    class Tuned(BaseEstimator):
        alpha: float = 1.0

    assert find(Tuned, registry.table()) == "zenray_materializers.sklearn_estimators:SklearnMaterializer"


class TestContractFindsFaults:
    """The contract refuses materializers that break it."""

    class NotEqual(PlainMaterializer):
        types: ClassVar[tuple[str, ...]] = ("builtins.int",)

        def load(self, reader: Any, cls: type, metadata: Mapping[str, Any]) -> Any:
            return 3

    class HashDependent(PlainMaterializer):
        types: ClassVar[tuple[str, ...]] = ("builtins.str",)

        def save(self, value: Any, writer: Any) -> Mapping[str, Any] | None:
            super().save(value, writer)
            return {"hash": hash(value)}

    class Chatty(PlainMaterializer):
        def preview(self, value: Any) -> Mapping[str, Any]:
            return {"all": "x" * 10_000}
