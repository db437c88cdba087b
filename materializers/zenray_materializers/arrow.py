"""Arrow tables, batches, arrays and schemas as Arrow IPC files, written as a stream and read by memory map.

Runs in: anywhere.

Equal data gives equal bytes, however it is chunked or sliced: tables are cut again into batches of a number of rows
that depends on the content only, dictionaries are unified, metadata is sorted, and see ``canonical``.
Nothing is compressed, so loading costs nothing and copies nothing. Chunks are therefore not kept; batches and arrays
come back in one piece. The format is https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer
from zenray.model import Json
from zenray_materializers.canonical import canonical, content_bytes
from zenray_materializers.plain import InlineMaterializer
from zenray_materializers.preview import MAX_CELL, MAX_COLUMNS, MAX_ROWS, SAMPLE_ROWS, brief, cut, number, text_table

FILE = "data.arrow"
_BATCH_ROWS = 1 << 17
_BATCH_BYTES = 1 << 28


class TableMaterializer(Materializer):
    """Serves tables."""

    types = ("pyarrow.lib.Table",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one IPC file."""
        write_table(value, writer)
        return None

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return a table over the mapped file."""
        return read_table(reader)

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return schema, size, the first rows and statistics."""
        return table_preview(value)

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so where a column has an extension type, which may be the user's."""
        return _has_extension(value.schema.types)


class RecordBatchMaterializer(Materializer):
    """Serves record batches."""

    types = ("pyarrow.lib.RecordBatch",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one IPC file of one batch."""
        write_batch(value, writer)
        return None

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the batch over the mapped file."""
        return read_batch(reader)

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return schema, size, the first rows and statistics."""
        return table_preview(pa.table(value))

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so where a column has an extension type, which may be the user's."""
        return _has_extension(value.schema.types)


class ArrayMaterializer(Materializer):
    """Serves arrays, chunked arrays and scalars, as a file with the one column ``value``."""

    types = ("pyarrow.lib.Array", "pyarrow.lib.ChunkedArray", "pyarrow.lib.Scalar")

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one IPC file."""
        if isinstance(value, pa.ChunkedArray):
            write_table(pa.table({"value": value}), writer)
        else:
            array = pa.repeat(value, 1) if isinstance(value, pa.Scalar) else value
            write_batch(pa.record_batch([array], names=["value"]), writer)
        return None

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the array over the mapped file."""
        if issubclass(cls, pa.ChunkedArray):
            return read_table(reader).column(0)
        array = read_batch(reader).column(0)
        return array[0] if issubclass(cls, pa.Scalar) else array

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return type, length, the first elements and statistics."""
        if isinstance(value, pa.Scalar):
            return {"type": cut(str(value.type), 500), "value": brief(value.as_py())}
        return table_preview(pa.table({"value": value}))

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so of an extension type, which may be the user's."""
        return _has_extension([value.type])


class SchemaMaterializer(InlineMaterializer):
    """Serves schemas, fields and data types, as the schema message of Arrow IPC in base64."""

    types = ("pyarrow.lib.Schema", "pyarrow.lib.Field", "pyarrow.lib.DataType")

    def to_json(self, value: Any) -> Json:
        """Return the message, and its text for people."""
        schema = value
        if isinstance(value, pa.DataType):
            schema = pa.schema([pa.field("value", value)])
        elif isinstance(value, pa.Field):
            schema = pa.schema([value])
        schema = _sorted(schema)
        return {"text": str(schema), "ipc": base64.b64encode(schema.serialize()).decode()}

    def from_json(self, raw: Json, cls: type) -> Any:
        """Return the schema, field or type."""
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(raw["ipc"])))
        if issubclass(cls, pa.Schema):
            return schema
        return schema.field(0) if issubclass(cls, pa.Field) else schema.field(0).type


def write_table(table: Any, writer: ArtifactWriter, *, name: str = FILE) -> None:
    """Write a table as one IPC file; columns aren't copied, except batch by batch where they must be put together."""
    table = _unified(table)
    schema = _sorted(table.schema)
    rows = _batch_rows(table)
    pieces = (table.slice(start, rows).combine_chunks() for start in range(0, table.num_rows, rows))
    _write(schema, (batch for piece in pieces for batch in piece.to_batches()), writer, name)


def write_batch(batch: Any, writer: ArtifactWriter, *, name: str = FILE) -> None:
    """Write a record batch as one IPC file of one batch."""
    _write(_sorted(batch.schema), iter((batch,)), writer, name)


def read_table(reader: ArtifactReader, *, name: str = FILE) -> Any:
    """Return the table of an IPC file, over the mapped file."""
    return _open(reader, name).read_all()


def read_batch(reader: ArtifactReader, *, name: str = FILE) -> Any:
    """Return the only batch of an IPC file, over the mapped file."""
    return _open(reader, name).get_batch(0)


def _open(reader: ArtifactReader, name: str) -> Any:
    try:
        return pa.ipc.open_file(pa.py_buffer(reader.buffer(name)))
    except pa.ArrowInvalid as exc:
        raise MaterializerError(f"{name!r} is not an Arrow IPC file: {exc}; run the step that made it again") from exc


def _write(schema: Any, batches: Iterator[Any], writer: ArtifactWriter, name: str) -> None:
    with writer.open(name) as file, pa.ipc.new_file(pa.PythonFile(file, "w"), schema) as sink:
        for batch in batches:
            columns = [canonical(column) for column in batch.columns]
            sink.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema) if columns else batch)


def _sorted(schema: Any) -> Any:
    """Return a schema with the metadata of it and of its fields in the order of keys."""
    fields = [field.with_metadata(_sorted_metadata(field.metadata)) for field in schema]
    return pa.schema(fields, metadata=_sorted_metadata(schema.metadata))


def _sorted_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes] | None:
    return {key: metadata[key] for key in sorted(metadata)} if metadata else None


def _has_extension(kinds: Iterable[Any]) -> bool:
    return any(
        isinstance(kind, pa.BaseExtensionType) or _has_extension(kind.field(i).type for i in range(kind.num_fields))
        for kind in kinds
    )


def _unified(table: Any) -> Any:
    """Return a table with one dictionary for all chunks of a column, as the file format has it."""
    if any(_has(field.type, pa.types.is_dictionary) for field in table.schema):
        return table.unify_dictionaries()
    return table


def _has(kind: Any, is_it: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has(kind.storage_type, is_it)
    return is_it(kind) or any(_has(kind.field(i).type, is_it) for i in range(kind.num_fields))


def _batch_rows(table: Any) -> int:
    """Return how many rows a batch gets: a power of two, fewer where rows are large; the same for equal tables."""
    size = sum(content_bytes(chunk) for column in table.columns for chunk in column.chunks)
    rows = _BATCH_ROWS
    while rows > 1 and rows * size > _BATCH_BYTES * max(table.num_rows, 1):
        rows //= 2
    return rows


def table_preview(table: Any, *, size_bytes: int | None = None) -> dict[str, Json]:
    """Return a table's schema, size, first rows and statistics of its first columns, over at most 100,000 rows."""
    shown = table.select(range(min(table.num_columns, MAX_COLUMNS)))
    facts: dict[str, Json] = {
        "rows": table.num_rows,
        "columns": table.num_columns,
        "size_bytes": table.nbytes if size_bytes is None else size_bytes,
        "schema": [[cut(field.name, MAX_CELL), cut(str(field.type), MAX_CELL)] for field in shown.schema],
    }
    if shown.num_columns:
        head = shown.slice(0, MAX_ROWS)
        columns = [[brief(cell.as_py(), limit=MAX_CELL) for cell in column] for column in head.columns]
        facts["head"] = text_table(shown.column_names, zip(*columns, strict=True))
    sample = shown.slice(0, SAMPLE_ROWS)
    facts["statistics"] = [
        [cut(name, MAX_CELL), _statistics(column)]
        for name, column in zip(sample.column_names, sample.columns, strict=True)
    ]
    return facts | ({"statistics_of_first_rows": SAMPLE_ROWS} if table.num_rows > SAMPLE_ROWS else {})


def _statistics(column: Any) -> dict[str, Json]:
    facts: dict[str, Json] = {"nulls": column.null_count} if column.null_count else {}
    kind = column.type
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and column.null_count < len(column):
        limits = pc.min_max(column)
        facts |= {"min": number(limits["min"].as_py()), "max": number(limits["max"].as_py())}
        facts["mean"] = number(round(pc.mean(column).as_py(), 6))
    return facts
