"""The materializers of Arrow and NumPy keep the contract, and what each promises beyond it."""

import datetime as dt
import io
import random
import warnings
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from zenray_materializers import arrow
from zenray_materializers.arrow import (
    ArrayMaterializer,
    RecordBatchMaterializer,
    SchemaMaterializer,
    TableMaterializer,
)
from zenray_materializers.numpy_arrays import NumpyDtypeMaterializer, NumpyMaterializer, NumpyScalarMaterializer

from zenray.testing import MaterializerContract, round_trip, save


class Plain:
    """A class that nothing serves."""


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
        "interval": column(pa.month_day_nano_interval(), lambda: pa.MonthDayNano([1, 2, number()])),
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
        "views": column(pa.list_(pa.struct({"v": pa.string_view()})), lambda: [{"v": text() * 6}, None] * 2),
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
        return {
            "all": batch,
            "slice": batch.slice(3, 50),
            "no rows": batch.slice(0, 0),
            "no columns": pa.record_batch({}),
        }

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
        schema = pa.schema(
            {name: column.type for name, column in _all_columns().items()}, metadata={"b": "1", "a": "2"}
        )
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
            **{
                f"dtype {kind}": np.zeros((2, 2), "V8").view("u1").reshape(-1)[:2].astype("u1").astype(kind)
                if kind != "V4"
                else np.zeros(2, "V4")
                for kind in kinds
            },
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
            np.bytes_(b"x"), np.datetime64("2026-01-31T12", "ms"), np.datetime64("NaT", "s"), np.timedelta64(3, "D"),
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
