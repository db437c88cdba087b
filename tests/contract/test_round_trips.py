"""Any array, table or frame that can be made comes back as it was, and equal ones are written as equal bytes."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from polars.testing.parametric import dataframes
from zenray_materializers.arrow import TableMaterializer
from zenray_materializers.numpy_arrays import NumpyMaterializer
from zenray_materializers.pandas_frames import FrameMaterializer
from zenray_materializers.polars_frames import PolarsFrameMaterializer

from zenray.materializer import Materializer
from zenray.testing import round_trip, save

ROWS = 12
_limits = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def identity(materializer: Materializer, value: Any) -> tuple[dict[str, str], Any]:
    files, metadata = save(materializer, value)
    return files.digests(), metadata


# -- NumPy -------------------------------------------------------------------------------------------------------------

_scalars = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(sizes=(64, 128)),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
)
_dtypes = _scalars | hnp.array_dtypes(_scalars, max_size=3)
_VIEWS: tuple[Callable[[Any], Any], ...] = (
    lambda a: a,
    np.asfortranarray,
    np.transpose,
    lambda a: a[..., ::-1] if a.ndim else a,
    lambda a: a[::2] if a.ndim else a,
    lambda a: a[..., 1:] if a.ndim else a,
    lambda a: np.broadcast_to(a, (2, *a.shape)),
    np.squeeze,
)


@st.composite
def _arrays(draw: st.DrawFn) -> Any:
    array = draw(hnp.arrays(_dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    return draw(st.sampled_from(_VIEWS))(array)


def _same_bits(one: Any, other: Any) -> bool:
    if one.dtype.names is None:
        return bool(one.tobytes() == other.tobytes())
    return all(_same_bits(one[name], other[name]) for name in one.dtype.names)


@given(_arrays())
@_limits
def test_any_array_comes_back_bit_by_bit(array: Any) -> None:
    loaded = round_trip(NumpyMaterializer(), array)
    assert type(loaded) is np.ndarray
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    assert _same_bits(loaded, array)
    expected = identity(NumpyMaterializer(), array)
    assert identity(NumpyMaterializer(), loaded) == expected
    assert identity(NumpyMaterializer(), array.copy(order="K" if array.flags.forc else "C")) == expected


# -- Arrow -------------------------------------------------------------------------------------------------------------

_moments = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1))
_LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    pa.int8(): st.integers(-128, 127),
    pa.uint16(): st.integers(0, 2**16 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=5),
    pa.large_string(): st.text(max_size=5),
    pa.string_view(): st.text(max_size=20),
    pa.binary(): st.binary(max_size=5),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.date32(): st.dates(),
    pa.time64("us"): st.times(),
    pa.timestamp("us"): _moments,
    pa.timestamp("us", "Europe/Berlin"): _moments.map(lambda m: m.replace(tzinfo=dt.UTC)),
    pa.duration("us"): st.timedeltas(dt.timedelta(-9), dt.timedelta(9)),
    pa.decimal128(12, 2): st.integers(-(10**9), 10**9).map(lambda n: Decimal(n) / 100),
    pa.null(): st.none(),
    pa.dictionary(pa.int16(), pa.string()): st.sampled_from(["a", "b", "", "ä"]),
}
Kind = tuple[Any, st.SearchStrategy[Any]]


def _nested(kinds: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    def lists(kind: Kind) -> st.SearchStrategy[Kind]:
        items = st.lists(st.none() | kind[1], max_size=3)
        pair = st.lists(st.none() | kind[1], min_size=2, max_size=2)
        named = st.dictionaries(st.text(max_size=2), st.none() | kind[1], max_size=2).map(lambda d: list(d.items()))
        return st.sampled_from(
            [
                (pa.list_(kind[0]), items),
                (pa.large_list(kind[0]), items),
                (pa.list_(kind[0], 2), pair),
                (pa.map_(pa.string(), kind[0]), named),
            ]
        )

    def structure(fields: list[Kind]) -> Kind:
        kind = pa.struct([(f"f{i}", kind) for i, (kind, _) in enumerate(fields)])
        return kind, st.fixed_dictionaries({f"f{i}": st.none() | values for i, (_, values) in enumerate(fields)})

    return kinds.flatmap(lists) | st.lists(kinds, max_size=2).map(structure)


def _has_dictionary(kind: Any) -> bool:
    return pa.types.is_dictionary(kind) or any(_has_dictionary(kind.field(i).type) for i in range(kind.num_fields))


_leaves = st.sampled_from(list(_LEAVES.items()))
# Python values cannot be put into a dictionary below the top
_kinds = _leaves | st.recursive(_leaves.filter(lambda k: not _has_dictionary(k[0])), _nested, max_leaves=4)


@st.composite
def _chunked(draw: st.DrawFn, length: int) -> Any:
    kind, values = draw(_kinds)
    items = draw(st.lists(st.none() | values, min_size=length, max_size=length))
    return pa.chunked_array([pa.array(items, kind)])


@st.composite
def _tables(draw: st.DrawFn) -> Any:
    length = draw(st.integers(0, ROWS))
    columns = draw(st.lists(_chunked(length), max_size=3))
    return pa.table(columns, names=[f"c{i}" for i in range(len(columns))])


@st.composite
def _moved(draw: st.DrawFn, column: Any) -> Any:
    """Return an equal column that lies elsewhere in memory, in other chunks."""
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    around = draw(st.integers(0, len(array)))
    larger = pa.concat_arrays([array.slice(around), array, array.slice(0, around)])
    cuts = sorted(draw(st.lists(st.integers(0, len(array)), max_size=3)))
    pieces = zip([0, *cuts], [*cuts, len(array)], strict=True)
    start = len(array) - around
    return pa.chunked_array([larger.slice(start + a, b - a) for a, b in pieces], column.type)


@given(st.data())
@_limits
def test_any_table_comes_back_and_equal_ones_are_equal_bytes(data: st.DataObject) -> None:
    table = data.draw(_tables())
    loaded = round_trip(TableMaterializer(), table)
    loaded.validate(full=True)
    assert loaded.equals(table, check_metadata=True)
    expected = identity(TableMaterializer(), table)
    assert identity(TableMaterializer(), loaded) == expected
    moved = pa.table([data.draw(_moved(c)) for c in table.columns], schema=table.schema)
    assert moved.equals(table)
    assert identity(TableMaterializer(), moved) == expected


# -- pandas ------------------------------------------------------------------------------------------------------------

_COLUMNS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "int64": ("int64", st.integers(-(2**63), 2**63 - 1)),
    "uint8": ("uint8", st.integers(0, 255)),
    "float64": ("float64", st.floats()),
    "float32": ("float32", st.floats(width=32)),
    "bool": ("bool", st.booleans()),
    "text": ("str", st.none() | st.text(max_size=4)),
    "string": ("string", st.none() | st.text(max_size=4)),
    "object": (object, st.none() | st.integers() | st.text(max_size=3) | st.dates() | st.tuples(st.integers())),
    "datetime": ("datetime64[us]", st.none() | _moments),
    "datetime s": ("datetime64[s]", st.none() | _moments),
    "zoned": ("datetime64[us, Europe/Berlin]", st.none() | _moments.map(lambda m: m.replace(tzinfo=dt.UTC))),
    "timedelta": ("timedelta64[us]", st.none() | st.timedeltas(dt.timedelta(-9), dt.timedelta(9))),
    "Int64": ("Int64", st.none() | st.integers(-(2**63), 2**63 - 1)),
    "boolean": ("boolean", st.none() | st.booleans()),
    "Float32": ("Float32", st.none() | st.floats(width=32, allow_nan=False)),
    "category": (pd.CategoricalDtype(["b", "a", "unused"], ordered=True), st.none() | st.sampled_from(["a", "b"])),
    "number category": ("category", st.none() | st.integers(0, 5)),
    "arrow": (pd.ArrowDtype(pa.list_(pa.int8())), st.none() | st.lists(st.integers(0, 9), max_size=3)),
}

_NO_LABELS = ("arrow", "object")  # pandas cannot sort lists, or numbers and texts


@st.composite
def _series(draw: st.DrawFn, length: int, *, is_label: bool = False) -> Any:
    kinds = [kind for kind in _COLUMNS if not is_label or kind not in _NO_LABELS]
    dtype, values = _COLUMNS[draw(st.sampled_from(kinds))]
    return pd.Series(draw(st.lists(values, min_size=length, max_size=length)), dtype=dtype)


_names = st.none() | st.text(max_size=3) | st.integers(0, 9)


@st.composite
def _indexes(draw: st.DrawFn, length: int) -> Any:
    name = draw(_names)
    match draw(st.sampled_from(["range", "dates", "periods", "intervals", "multi", "values"])):
        case "range":
            start, step = draw(st.integers(-5, 5)), draw(st.sampled_from([1, 3, -2]))
            return pd.RangeIndex(start, start + step * length, step, name=name)
        case "dates":
            freq = draw(st.sampled_from(["D", "h", "BMS", "W-MON"]))
            zone = draw(st.sampled_from([None, "UTC", "America/New_York"]))
            return pd.date_range("2026-03-01", periods=length, freq=freq, tz=zone, name=name)
        case "periods":
            return pd.period_range("2026-03", periods=length, freq="Q", name=name)
        case "intervals":
            return pd.interval_range(0, length, closed=draw(st.sampled_from(["left", "both"])), name=name)
        case "multi":
            return pd.MultiIndex.from_arrays(
                [draw(_series(length, is_label=True)) for _ in range(2)], names=[name, "2"]
            )
        case _:
            return pd.Index(draw(_series(length, is_label=True)), name=name)


@st.composite
def _frames(draw: st.DrawFn) -> Any:
    length = draw(st.integers(0, ROWS))
    columns = draw(st.lists(_series(length), max_size=4))
    frame = pd.DataFrame(dict(enumerate(columns)), index=range(length))
    frame.columns = pd.Index(draw(st.lists(_names, min_size=len(columns), max_size=len(columns))), dtype=object)
    if draw(st.booleans()):
        frame.columns = pd.Index([f"c{i}" for i in range(len(columns))])
    frame.index = draw(_indexes(length))
    start, stop = draw(st.integers(0, length)), draw(st.integers(0, length))
    part = frame.iloc[start:stop]
    if isinstance(part.index, pd.MultiIndex):
        part.index = part.index.remove_unused_levels()  # what is compared beside the labels
    return part


@given(_frames())
@_limits
def test_any_frame_comes_back_and_equal_ones_are_equal_bytes(frame: Any) -> None:
    loaded = round_trip(FrameMaterializer(), frame)
    pd.testing.assert_frame_equal(loaded, frame, check_freq=True, check_flags=True, check_exact=True)
    expected = identity(FrameMaterializer(), frame)
    assert identity(FrameMaterializer(), loaded) == expected
    assert identity(FrameMaterializer(), frame.copy()) == expected


# -- Polars ------------------------------------------------------------------------------------------------------------


@given(dataframes(max_cols=3, max_size=ROWS, allow_null=True, excluded_dtypes=[pl.Int128, pl.UInt128, pl.Object]))
@_limits
def test_any_polars_frame_comes_back_and_equal_ones_are_equal_bytes(frame: Any) -> None:
    loaded = round_trip(PolarsFrameMaterializer(), frame)
    assert_frame_equal(loaded, frame, check_exact=True)
    expected = identity(PolarsFrameMaterializer(), frame)
    assert identity(PolarsFrameMaterializer(), loaded) == expected
    assert identity(PolarsFrameMaterializer(), frame.rechunk()) == expected
