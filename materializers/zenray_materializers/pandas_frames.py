"""pandas frames, series and indexes as Arrow IPC files, everything about them kept; and pandas' scalars as JSON.

Runs in: anywhere.

The columns are written with Arrow's types, so that other programs read them; what Arrow has no word for (the kind of
index, frequencies, labels that aren't text) is in the metadata. Loaded frames are copies, so they can be changed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.tseries.frequencies import to_offset

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer
from zenray.model import Json
from zenray_materializers.arrow import read_table, write_batch, write_table
from zenray_materializers.numpy_arrays import statistics
from zenray_materializers.pandas_columns import decode, encode
from zenray_materializers.plain import InlineMaterializer
from zenray_materializers.preview import MAX_CELL, MAX_COLUMNS, MAX_ROWS, SAMPLE_ROWS, brief, cut, text_table
from zenray_materializers.tree import Decoder, Encoder

_COLUMNS = "columns.arrow"


class FrameMaterializer(Materializer):
    """Serves frames."""

    types = ("pandas.DataFrame",)
    is_exact = True

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write the columns and the index into one IPC file."""
        labels = [f"column {label!r}" for label in value.columns]
        columns = [encode(value.iloc[:, i].array, where=labels[i]) for i in range(value.shape[1])]
        metadata = _write(value.index, columns, [str(label) for label in value.columns], writer)
        metadata["columns"] = _save_labels(value.columns, writer)
        return metadata | _attributes(value)

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return a frame with memory of its own."""
        index, series = _read(reader, metadata)
        frame = pd.DataFrame(dict(enumerate(series)), copy=False) if series else pd.DataFrame(index=index)
        frame.index = index
        frame.columns = _load_labels(reader, metadata["columns"])
        frame.attrs = Decoder(None).tree(metadata.get("attributes", {}))
        return frame

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return size, types, the first rows and statistics."""
        return _preview(value)

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so where cells or labels are objects, or of a type that does not come with pandas."""
        return _has_objects(metadata)


class SeriesMaterializer(Materializer):
    """Serves series."""

    types = ("pandas.Series",)
    is_exact = True

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write the values and the index into one IPC file."""
        metadata = _write(value.index, [encode(value.array, where="the series")], [str(value.name)], writer)
        return metadata | {"name": _encode(value.name)} | _attributes(value)

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return a series with memory of its own."""
        index, (series,) = _read(reader, metadata)
        series.index = index
        series.name = Decoder(None).tree(metadata["name"])
        series.attrs = Decoder(None).tree(metadata.get("attributes", {}))
        return series

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return size, type, the first values and statistics."""
        return _preview(value.to_frame())

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so where cells or labels are objects, or of a type that does not come with pandas."""
        return _has_objects(metadata)


class IndexMaterializer(Materializer):
    """Serves indexes of every kind."""

    types = ("pandas.Index",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write the values into one IPC file; a range needs none, but has one all the same."""
        return _write(value, [], [], writer)

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the index."""
        return _read(reader, metadata)[0]

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return size, type and the first values."""
        head = [brief(label, limit=MAX_CELL) for label in value[: MAX_ROWS * 2]]
        return {"kind": type(value).__name__, "dtype": cut(str(value.dtype), 200), "length": len(value), "head": head}

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so where cells or labels are objects, or of a type that does not come with pandas."""
        return _has_objects(metadata)


class ExtensionArrayMaterializer(Materializer):
    """Serves pandas' own arrays, such as ``Categorical``."""

    types = ("pandas.api.extensions.ExtensionArray",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write the values into one IPC file."""
        return _write(pd.RangeIndex(len(value)), [encode(value, where="the array")], ["values"], writer)

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the array."""
        return _read(reader, metadata)[1][0].array

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return size, type, the first values and statistics."""
        return _preview(pd.DataFrame({"values": value[:SAMPLE_ROWS]}))

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so where cells or labels are objects, or of a type that does not come with pandas."""
        return _has_objects(metadata)


class PandasScalarMaterializer(InlineMaterializer):
    """Serves timestamps, time differences, periods, intervals, and what stands for missing values."""

    types = (
        "pandas.Timestamp",
        "pandas.Timedelta",
        "pandas.Period",
        "pandas.Interval",
        "pandas.api.typing.NaTType",
        "pandas.api.typing.NAType",
    )

    def to_json(self, value: Any) -> Json:
        """Return the parts."""
        if value is pd.NaT or value is pd.NA:
            return None
        if isinstance(value, pd.Timestamp):
            naive = value.tz_convert("UTC").tz_localize(None) if value.tz else value
            return [int(naive.asm8.view("int64")), value.unit, _encode(value.tz)]
        if isinstance(value, pd.Timedelta):
            return [int(value.asm8.view("int64")), value.unit]
        if isinstance(value, pd.Period):
            return [value.ordinal, value.freqstr]
        return [_encode(value.left), _encode(value.right), value.closed]

    def from_json(self, raw: Json, cls: type) -> Any:
        """Return the scalar."""
        if raw is None:
            return pd.NaT if isinstance(pd.NaT, cls) else pd.NA
        if issubclass(cls, pd.Timestamp):
            stamp = pd.Timestamp(np.datetime64(raw[0], raw[1]))
            zone = Decoder(None).tree(raw[2])
            return stamp if zone is None else stamp.tz_localize("UTC").tz_convert(zone)
        if issubclass(cls, pd.Timedelta):
            return pd.Timedelta(np.timedelta64(raw[0], raw[1]))
        if issubclass(cls, pd.Period):
            return pd.Period(ordinal=raw[0], freq=raw[1])
        return pd.Interval(Decoder(None).tree(raw[0]), Decoder(None).tree(raw[1]), raw[2])


def _encode(value: Any) -> Json:
    return Encoder(None).encode(value)


def _attributes(value: Any) -> dict[str, Json]:
    return {"attributes": _encode(value.attrs)} if value.attrs else {}


def _write(
    index: Any, columns: list[tuple[Any, Json]], names: list[str], writer: ArtifactWriter, *, file: str = "data.arrow"
) -> dict[str, Json]:
    """Write columns and an index as one table; return what else there is to know to read them."""
    levels, facts = _index_levels(index)
    arrays = [array for array, _ in columns] + [array for array, _ in levels]
    names = names + [f"__index_level_{i}__" for i in range(len(levels))]
    facts["dtypes"] = [dtype for _, dtype in levels]
    if arrays and not len(arrays[0]):
        # A batch without rows, where a table without rows would have none: the categories are in it.
        arrays = [array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array for array in arrays]
        write_batch(pa.RecordBatch.from_arrays(arrays, names=names), writer, name=file)
    else:
        write_table(pa.Table.from_arrays(arrays, names=names), writer, name=file)
    return {"dtypes": [dtype for _, dtype in columns], "index": facts}


def _has_objects(facts: Json) -> bool:
    """Find, in what describes a frame, values and columns that may hold instances of any class."""
    if isinstance(facts, list):
        return any(map(_has_objects, facts))
    if not isinstance(facts, dict):
        return False
    kind = facts.get("kind")
    if kind == "extension":
        return type(pd.api.types.pandas_dtype(facts["name"])).__module__.partition(".")[0] != "pandas"
    is_open = kind in ("json", "arrow") or any(key.startswith("$") for key in facts)
    return is_open or any(map(_has_objects, facts.values()))


def _read(reader: ArtifactReader, metadata: Mapping[str, Json], *, file: str = "data.arrow") -> tuple[Any, list[Any]]:
    dtypes = metadata["dtypes"]
    table = read_table(reader, name=file)
    index = _load_index(metadata["index"], table.columns[len(dtypes) :])
    return index, [decode(column, dtype) for column, dtype in zip(table.columns, dtypes, strict=False)]


def _index_levels(index: Any) -> tuple[list[tuple[Any, Json]], dict[str, Json]]:
    facts: dict[str, Json] = {"names": _encode(list(index.names))}
    if type(index) is pd.RangeIndex:
        return [], facts | {"range": [index.start, index.stop, index.step]}
    if isinstance(index, pd.MultiIndex):
        nameless = index.set_names([None] * index.nlevels)  # a name that is a number would be taken for a position
        levels = [encode(nameless.get_level_values(i).array, where=f"index level {i}") for i in range(index.nlevels)]
        return levels, facts | {"is_multi": True}
    freq = getattr(index, "freq", None) if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) else None
    if freq is not None:
        if to_offset(freq.freqstr) != freq:
            raise MaterializerError(f"the index has the frequency {freq!r}, which has no name; set index.freq = None")
        facts["freq"] = freq.freqstr
    return [encode(index.array, where="the index")], facts


def _load_index(facts: Mapping[str, Json], columns: list[Any]) -> Any:
    names = Decoder(None).tree(facts["names"])
    if "range" in facts:
        return pd.RangeIndex(*facts["range"], name=names[0])
    levels = [decode(column, dtype) for column, dtype in zip(columns, facts["dtypes"], strict=True)]
    if "is_multi" in facts:
        return pd.MultiIndex.from_arrays(levels, names=names)
    index = pd.Index(levels[0].array, dtype=levels[0].dtype, name=names[0], copy=False)
    if "freq" in facts:
        index = type(index)(index, freq=facts["freq"])
    return index


def _save_labels(labels: Any, writer: ArtifactWriter) -> dict[str, Json]:
    """Return the columns' labels: texts here, others in a file."""
    if type(labels) is pd.Index and labels.dtype == "str" and not labels.hasnans:
        return {"texts": _encode(labels.tolist()), "names": _encode(list(labels.names))}
    return _write(labels, [], [], writer, file=_COLUMNS)


def _load_labels(reader: ArtifactReader, facts: Mapping[str, Json]) -> Any:
    if "texts" in facts:
        names = Decoder(None).tree(facts["names"])
        return pd.Index(Decoder(None).tree(facts["texts"]), dtype="str", name=names[0])
    return _read(reader, facts, file=_COLUMNS)[0]


def _preview(frame: Any) -> dict[str, Json]:
    shown = frame.iloc[:, :MAX_COLUMNS]
    names = [cut(str(label), MAX_CELL) for label in shown.columns]
    dtypes = [cut(str(dtype), MAX_CELL) for dtype in shown.dtypes]
    head = shown.iloc[:MAX_ROWS]
    rows = [
        [str(label), *(brief(head.iat[i, j], limit=MAX_CELL) for j in range(head.shape[1]))]
        for i, label in enumerate(head.index)
    ]
    sample = shown.iloc[:SAMPLE_ROWS]
    return {
        "rows": frame.shape[0],
        "columns": frame.shape[1],
        "size_bytes": int(frame.memory_usage(deep=False).sum()),
        "index": f"{type(frame.index).__name__} {cut(str(frame.index.dtype), MAX_CELL)}",
        "schema": [list(pair) for pair in zip(names, dtypes, strict=True)],
        "head": text_table(["", *names], rows),
        "statistics": [[name, _statistics(sample.iloc[:, i], len(frame))] for i, name in enumerate(names)],
    }


def _statistics(series: Any, size: int) -> dict[str, Json]:
    missing = int(series.isna().sum())
    facts: dict[str, Json] = {"nulls": missing} if missing else {}
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iuf" and missing < len(series):
        facts |= statistics(series.to_numpy(), size)
    return facts
