"""The materializers of pandas and Polars keep the contract, and what each promises beyond it."""

import datetime as dt
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from zenray_materializers.pandas_frames import (
    ExtensionArrayMaterializer,
    FrameMaterializer,
    IndexMaterializer,
    PandasScalarMaterializer,
    SeriesMaterializer,
)
from zenray_materializers.polars_frames import (
    LazyFrameMaterializer,
    PolarsFrameMaterializer,
    PolarsSeriesMaterializer,
)

from zenray.errors import MaterializerError
from zenray.materializer import active_table, find
from zenray.testing import MaterializerContract, round_trip, save


class Plain:
    """A class that nothing serves."""


def _frame() -> pd.DataFrame:
    """Return a frame with a column of every dtype."""
    day = pd.Timestamp("2026-01-31")
    breaks = pd.date_range("2026", periods=4, tz="Europe/Berlin")
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
            "interval of times": pd.arrays.IntervalArray.from_breaks(breaks),
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
        "multi": pd.MultiIndex.from_arrays(
            [["a", "a", "b"], [1, 2, 1], pd.to_datetime(["2026"] * 3)], names=["x", None, 3]
        ),
        "multi with numbers for names": pd.MultiIndex.from_arrays([["a", "b", "c"], [1, 2, 3]], names=[1, 0]),
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
    loaded = round_trip(
        FrameMaterializer(), pd.DataFrame({"x": [1.0, 2.0], "s": ["a", "b"], "n": pd.array([1, 2], "Int64")})
    )
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
        return columns | {
            "unnamed": pd.Series([1, 2]),
            "odd name": pd.Series([1], name=("a", 1)),
            "empty": pd.Series([]),
        }

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
        foreign = (pl.Int128, pl.UInt128, pl.List(pl.Int128), pl.Struct({"a": pl.UInt128}))
        return {
            "objects": pl.DataFrame({"x": pl.Series([Plain()], dtype=pl.Object)}),
            **{str(dtype): pl.DataFrame(schema={"x": dtype}) for dtype in foreign},
        }

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


def test_subclasses_of_a_frame_are_not_served_as_frames() -> None:
    class Geo(pd.DataFrame):
        pass

    assert find(pd.DataFrame, active_table()) == "zenray_materializers.pandas_frames:FrameMaterializer"
    assert find(Geo, active_table()) is None


def test_a_lazy_frame_is_refused_with_what_to_do() -> None:
    with pytest.raises(MaterializerError, match="collect"):
        save(LazyFrameMaterializer(), pl.LazyFrame({"a": [1]}))
