"""One column of pandas as one of Arrow, and back: the dtype is described in JSON, the values are Arrow's.

Runs in: anywhere.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from zenray.errors import MaterializerError
from zenray.model import Json
from zenray_materializers.plain import from_bytes, to_bytes
from zenray_materializers.tree import Decoder, Encoder


def encode(array: Any, *, where: str) -> tuple[Any, Json]:
    """Return an Arrow array and a description of the dtype; ``where`` names the column in errors."""
    try:
        return _encode(array, where)
    except (pa.ArrowException, NotImplementedError) as exc:
        raise MaterializerError(f"{where} of dtype {array.dtype} cannot be stored: {exc}") from exc


def _encode(array: Any, where: str) -> tuple[Any, Json]:
    dtype = array.dtype
    if type(array) is pd.arrays.NumpyExtensionArray or isinstance(dtype, np.dtype):
        return _encode_numpy(array.to_numpy(), where)
    if isinstance(dtype, pd.CategoricalDtype):
        codes = np.asarray(array.codes)
        indices = pa.array(codes, mask=codes < 0)
        categories, described = encode(dtype.categories.array, where=f"the categories of {where}")
        if isinstance(categories, pa.ChunkedArray):
            categories = categories.combine_chunks()
        # Arrow's "ordered" must not say more than pandas' own.
        return pa.DictionaryArray.from_arrays(indices, categories, ordered=bool(dtype.ordered)), {
            "kind": "category",
            "ordered": dtype.ordered,
            "categories": described,
            "codes": codes.dtype.str,
        }
    if isinstance(dtype, pd.DatetimeTZDtype):
        values = pa.array(array.tz_convert("UTC").tz_localize(None).to_numpy())
        zone = Encoder(None).encode(dtype.tz)
        return values.cast(pa.timestamp(dtype.unit, "UTC")), {"kind": "zoned", "zone": zone}
    if isinstance(dtype, pd.SparseDtype):
        values, described = _encode_numpy(np.asarray(array), where)
        return values, {"kind": "sparse", "dense": described, "fill": Encoder(None).encode(dtype.fill_value)}
    if isinstance(dtype, pd.IntervalDtype):
        (left, described), (right, _) = (encode(side.array, where=where) for side in (array.left, array.right))
        values = pa.StructArray.from_arrays([left, right], names=["left", "right"])
        return values, {"kind": "interval", "closed": dtype.closed, "sides": described}
    if isinstance(dtype, pd.StringDtype):
        na = "nan" if isinstance(dtype.na_value, float) else "NA"
        return pa.array(array, pa.large_string()), {"kind": "string", "storage": dtype.storage, "na": na}
    if isinstance(dtype, pd.ArrowDtype):
        return array.__arrow_array__(), {"kind": "arrow"}
    if not (hasattr(dtype, "__from_arrow__") and hasattr(array, "__arrow_array__")):
        raise MaterializerError(f"{where} has the dtype {dtype}, which Arrow cannot hold; convert it with .astype(...)")
    values = pa.array(array)
    # Arrow's own storage of periods: dictionaries of extension types do not survive a file.
    return getattr(values, "storage", values), {"kind": "extension", "name": str(dtype)}


def _encode_numpy(values: Any, where: str) -> tuple[Any, Json]:
    if values.dtype.kind == "O":
        return _encode_objects(values, where)
    if values.dtype.kind not in "biufmM" or values.dtype.char == "g":
        raise MaterializerError(f"{where} has the dtype {values.dtype}, which Arrow cannot hold; split or convert it")
    # NaN stays NaN: pandas means it as missing, but the bits are kept and nothing is copied.
    return pa.array(values), {"kind": "numpy", "dtype": values.dtype.str}


def _encode_objects(values: Any, where: str) -> tuple[Any, Json]:
    """Return texts and None as they are; anything else, cell by cell, as plain JSON."""
    if set(map(type, values)) <= {str, type(None)}:
        try:
            return pa.array(values, pa.large_string(), from_pandas=False), {"kind": "object"}
        except UnicodeEncodeError:
            pass
    try:
        cells = [to_bytes(Encoder(None).encode(value)) for value in values]
    except MaterializerError as exc:
        raise MaterializerError(f"{where} holds objects that cannot be stored: {exc}") from exc
    return pa.array(cells, pa.large_binary()).cast(pa.large_string()), {"kind": "json"}


def decode(column: Any, described: Json) -> Any:
    """Return a series of the dtype that was described, in memory of its own."""
    kind = described["kind"]
    if kind in ("numpy", "object", "json"):
        values = _decode_numpy(column, described)
        return pd.Series(values, dtype=values.dtype, copy=False)
    if kind == "category":
        return _decode_category(column, described)
    if kind == "interval":
        left, right = (decode(side, described["sides"]).array for side in pa.table({"": column}).flatten().columns)
        return pd.Series(pd.arrays.IntervalArray.from_arrays(left, right, closed=described["closed"]))
    if kind == "zoned":
        zone = Decoder(None).tree(described["zone"])
        values = column.cast(pa.timestamp(column.type.unit)).to_numpy()
        return pd.Series(pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(zone))
    if kind == "sparse":
        dense = _decode_numpy(column, described["dense"])
        fill = Decoder(None).tree(described["fill"])
        return pd.Series(pd.arrays.SparseArray(dense, fill_value=fill, dtype=pd.SparseDtype(dense.dtype, fill)))
    dtype: Any
    if kind == "string":
        dtype = pd.StringDtype(described["storage"], np.nan if described["na"] == "nan" else pd.NA)
    elif kind == "arrow":
        dtype = pd.ArrowDtype(column.type)
    else:
        dtype = pd.api.types.pandas_dtype(described["name"])
        kind_in_arrow = pa.array(pd.array([], dtype=dtype)).type
        if isinstance(kind_in_arrow, pa.BaseExtensionType):
            chunks = [pa.ExtensionArray.from_storage(kind_in_arrow, chunk) for chunk in column.chunks]
            column = pa.chunked_array(chunks, kind_in_arrow)
    return pd.Series(dtype.__from_arrow__(column), dtype=dtype, copy=kind == "extension")


def _decode_numpy(column: Any, described: Json) -> Any:
    if described["kind"] == "json":
        values = np.empty(len(column), dtype=object)
        decoder = Decoder(None)
        for index, cell in enumerate(column.to_pylist()):
            values[index] = from_bytes(cell.encode(), decoder)
        return values
    if described["kind"] == "object":
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=object)
    values = column.to_numpy().astype(described["dtype"], copy=False)
    return values if values.flags.writeable else values.copy()


def _decode_category(column: Any, described: Json) -> Any:
    # All chunks have one dictionary; there is at least one, for a column without rows as well.
    categories = decode(pa.chunked_array([column.chunk(0).dictionary]), described["categories"])
    indices = pa.chunked_array([chunk.indices for chunk in column.chunks])
    codes = indices.fill_null(-1).to_numpy().astype(described["codes"], copy=False)
    index = pd.Index(categories.array, dtype=categories.dtype)
    return pd.Series(pd.Categorical.from_codes(codes, categories=index, ordered=described["ordered"]))
