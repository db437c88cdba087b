"""Polars frames and series as Arrow IPC files.

Runs in: anywhere.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer
from zenray.model import Json
from zenray_materializers.arrow import read_table, table_preview, write_table
from zenray_materializers.preview import MAX_COLUMNS, SAMPLE_ROWS

_SCHEMA = "schema.arrow"
_FOREIGN = [pl.Object, *(getattr(pl, name) for name in ("Int128", "UInt128") if hasattr(pl, name))]


class PolarsFrameMaterializer(Materializer):
    """Serves frames."""

    types = ("polars.dataframe.frame.DataFrame",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one IPC file, and the schema where there are categories.

        These are numbered in the order in which a process met them, so they are written as texts.
        """
        if any(_has_categories(dtype) for dtype in value.dtypes):
            write_table(_to_arrow(value.clear()), writer, name=_SCHEMA)
            value = value.cast({name: _without_categories(dtype) for name, dtype in value.schema.items()})
        write_table(_to_arrow(value), writer)
        return None

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the frame; numbers are read in place, in the mapped file."""
        frame: Any = pl.from_arrow(read_table(reader))
        if _SCHEMA in reader.names:
            schema: Any = pl.from_arrow(read_table(reader, name=_SCHEMA))
            frame = frame.cast(dict(schema.schema))
        return frame

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return schema, size, the first rows and statistics."""
        sample = value.select(value.columns[:MAX_COLUMNS]).head(SAMPLE_ROWS)
        facts = table_preview(_to_arrow(sample), size_bytes=int(value.estimated_size()))
        facts |= {"rows": value.height, "columns": value.width}
        return facts | ({"statistics_of_first_rows": SAMPLE_ROWS} if value.height > SAMPLE_ROWS else {})

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so never: columns of objects are refused."""
        return False


class PolarsSeriesMaterializer(PolarsFrameMaterializer):
    """Serves series, as a frame of one column."""

    types = ("polars.series.series.Series",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one IPC file, and note where the series has no name: in a frame it gets one."""
        super().save(value.to_frame(), writer)
        return None if value.name else {"unnamed": True}

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the series."""
        series = super().load(reader, pl.DataFrame, metadata).to_series()
        return series.alias("") if metadata.get("unnamed") else series

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return type, size, the first values and statistics."""
        return super().preview(value.to_frame())


class LazyFrameMaterializer(Materializer):
    """Refuses lazy frames, and says what to do."""

    types = ("polars.lazyframe.frame.LazyFrame",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Raise MaterializerError."""
        raise MaterializerError(self.refuses(type(value)))

    def refuses(self, cls: type) -> str:
        """Say what to return instead."""
        return "a polars.LazyFrame is a query, not data; return lazy_frame.collect()"


def _to_arrow(frame: Any) -> Any:
    for name, dtype in frame.schema.items():
        if any(part in _FOREIGN for part in _parts(dtype)):
            raise MaterializerError(f"column {name!r} has the dtype {dtype}, which Arrow cannot hold; cast or drop it")
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _parts(dtype: Any) -> Iterator[Any]:
    """Yield a dtype and those that it is made of."""
    yield dtype
    if isinstance(dtype, pl.List | pl.Array):
        yield from _parts(dtype.inner)
    elif isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            yield from _parts(field.dtype)


def _has_categories(dtype: Any) -> bool:
    return bool(dtype != _without_categories(dtype))


def _without_categories(dtype: Any) -> Any:
    """Return a dtype with texts in the place of categories, however deep."""
    if isinstance(dtype, pl.Categorical):
        return pl.String()
    if isinstance(dtype, pl.List):
        return pl.List(_without_categories(dtype.inner))
    if isinstance(dtype, pl.Array):
        return pl.Array(_without_categories(dtype.inner), dtype.size)
    if isinstance(dtype, pl.Struct):
        return pl.Struct([pl.Field(field.name, _without_categories(field.dtype)) for field in dtype.fields])
    return dtype
