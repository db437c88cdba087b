"""NumPy arrays as ``.npy`` files, read by memory map, and NumPy's scalars and dtypes as JSON.

Runs in: anywhere.

Loaded arrays are read-only: they lie in the artifact's file, which other processes may have mapped too. ``.copy()``
gives one to write to. Memory order is kept where an array is contiguous. The format is
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

import base64
import io
import math
import warnings
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer, type_name
from zenray.model import Json
from zenray_materializers.plain import InlineMaterializer, PlainMaterializer
from zenray_materializers.preview import MAX_ROWS, SAMPLE_ROWS, cut, number

_ARRAY, _MASK = "array.npy", "mask.npy"
_WRITE_BYTES = 1 << 20  # what stays in a processor's cache between hashing and writing
_SERVED = (np.ndarray, np.memmap, np.matrix, np.recarray, np.ma.MaskedArray)
_Array = np.ndarray[Any, Any]


class NumpyMaterializer(Materializer):
    """Serves arrays of every dtype; arrays of objects where the elements are plain values."""

    types = ("numpy.ndarray",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write ``array.npy``, and ``mask.npy`` of a masked array; objects as plain JSON."""
        if type(value) not in _SERVED:
            raise MaterializerError(
                f"{type_name(type(value))} is a subclass of numpy.ndarray that is not known; return np.asarray(value)"
            )
        data = np.asarray(value)
        if data.dtype.hasobject:
            return _save_objects(value, data, writer)
        if data.dtype.char in "gGT":
            raise MaterializerError(
                f"an array of dtype {data.dtype} has no portable file format; convert it: value.astype('float64'), "
                "complex128, or object for strings"
            )
        _write(data, _ARRAY, writer)
        if isinstance(value, np.ma.MaskedArray):
            _write(np.asarray(np.ma.getmaskarray(value)), _MASK, writer)
            fill = io.BytesIO()
            np.lib.format.write_array(fill, np.asarray(value.fill_value), allow_pickle=False)
            return {"fill_value": base64.b64encode(fill.getvalue()).decode()}
        return None

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return a read-only array over the mapped file."""
        if "shape" in metadata:
            return _load_objects(reader, metadata["shape"])
        data = _read(reader.buffer(_ARRAY))
        if cls is np.ma.MaskedArray:
            fill = np.lib.format.read_array(io.BytesIO(base64.b64decode(metadata["fill_value"])), allow_pickle=False)
            masked: Any = np.ma.MaskedArray
            return masked(data, mask=_read(reader.buffer(_MASK)), fill_value=fill[()])
        return data.view(cls) if cls in (np.matrix, np.recarray) else data

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return dtype, shape, the first elements and what the numbers are like."""
        facts: dict[str, Json] = {"dtype": cut(str(value.dtype), 500), "shape": list(value.shape)}
        head = np.asarray(value).flat[: MAX_ROWS * 4]
        facts["head"] = cut(np.array2string(head, separator=", ", threshold=50), 1000)
        if value.dtype.kind in "iuf" and value.size:
            facts["statistics"] = statistics(np.asarray(value).flat[:SAMPLE_ROWS], value.size)
        return facts

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so of arrays of objects."""
        return bool(value.dtype.hasobject)


def statistics(sample: Any, size: int) -> dict[str, Json]:
    """Return least, greatest and mean of numbers that aren't NaN, and how many are looked at where it isn't all."""
    valid = sample[~np.isnan(sample)] if sample.dtype.kind == "f" else sample
    facts: dict[str, Json] = {"nan": int(sample.size - valid.size)} if valid.size < sample.size else {}
    if valid.size:
        with np.errstate(all="ignore"):
            mean = float(valid.mean(dtype=np.float64))
        facts |= {"min": number(valid.min().item()), "max": number(valid.max().item()), "mean": number(mean)}
    return facts | ({"of_first": int(sample.size)} if sample.size < size else {})


def _save_objects(value: Any, data: _Array, writer: ArtifactWriter) -> Mapping[str, Json]:
    if type(value) is not np.ndarray or data.dtype != object:
        raise MaterializerError(
            f"an array of dtype {cut(str(data.dtype), 200)} holds Python objects in a form that cannot be stored; "
            "return a list, or a table"
        )
    try:
        PlainMaterializer().save(data.ravel().tolist(), writer)
    except MaterializerError as exc:
        raise MaterializerError(f"an array of dtype object cannot be stored by its elements: {exc}") from exc
    return {"shape": list(data.shape)}


def _load_objects(reader: ArtifactReader, shape: list[int]) -> _Array:
    items = PlainMaterializer().load(reader, list, {})
    data = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):  # one by one: a slice assignment would look into items that are sequences
        data[index] = item
    return data.reshape(shape)


def _write(data: _Array, name: str, writer: ArtifactWriter) -> None:
    with writer.open(name) as file:
        if data.dtype.names is None and (data.flags.c_contiguous or data.flags.f_contiguous):
            _write_contiguous(data, file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # names of fields that NumPy before 1.17 cannot read
                np.lib.format.write_array(file, without_padding_bytes(data), allow_pickle=False)


def _write_contiguous(data: _Array, file: IO[bytes]) -> None:
    """Write an array without copying it; NumPy's own function copies on its way to anything but a real file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(data))
    file.write(header.getvalue())
    if not data.size or not data.dtype.itemsize:
        return
    flat = (data if data.flags.c_contiguous else data.T).reshape(-1)
    raw = flat.view(np.uint8).data
    for start in range(0, len(raw), _WRITE_BYTES):
        file.write(raw[start : start + _WRITE_BYTES])


def without_padding_bytes(data: _Array) -> _Array:
    """Return a record array whose bytes between the fields are zero: they are whatever was in memory before."""
    if data.dtype.names is None or _field_bytes(data.dtype) == data.dtype.itemsize:
        return data
    clean = np.zeros(data.shape, data.dtype)
    for name in data.dtype.names:
        clean[name] = without_padding_bytes(data[name])
    return clean


def _field_bytes(dtype: Any) -> int:
    if dtype.subdtype is not None:
        return int(_field_bytes(dtype.base) * math.prod(dtype.shape))
    if dtype.names is None:
        return int(dtype.itemsize)
    return sum(_field_bytes(dtype.fields[name][0]) for name in dtype.names)


def _read(buffer: memoryview) -> _Array:
    start = io.BytesIO(bytes(buffer[:65536]))
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(start)
    elif version == (2, 0) and len(buffer) <= 65536:
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(start)
    else:  # field names beyond Latin-1, or so many that the header is large
        data: _Array = np.lib.format.read_array(io.BytesIO(buffer), allow_pickle=False)
        data.flags.writeable = False
        return data
    count = math.prod(shape)
    if not count or not dtype.itemsize:
        flat = np.zeros(count, dtype)
        flat.flags.writeable = False
    else:
        flat = np.frombuffer(buffer, dtype, count, start.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


class NumpyScalarMaterializer(InlineMaterializer):
    """Serves scalars, such as ``numpy.float64``."""

    types = ("numpy.generic", "numpy.str_", "numpy.bytes_")

    def to_json(self, value: Any) -> Json:
        """Return dtype and number; what isn't a finite number as its bytes in base64."""
        if value.dtype.kind in "biu" or (value.dtype.char in "efd" and np.isfinite(value)):
            return [value.dtype.str, value.item()]
        if value.dtype.hasobject or value.dtype.names is not None or value.dtype.char in "gG":
            raise MaterializerError(f"a scalar of dtype {value.dtype} cannot be stored; return value.item()")
        return [value.dtype.str, {"base64": base64.b64encode(value.tobytes()).decode()}]

    def from_json(self, raw: Json, cls: type) -> Any:
        """Return the scalar."""
        dtype, content = raw
        if not isinstance(content, dict):
            return np.dtype(dtype).type(content)
        if not np.dtype(dtype).itemsize:
            return cls()
        return np.frombuffer(base64.b64decode(content["base64"]), dtype, 1)[0]

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so never."""
        return False


class NumpyDtypeMaterializer(InlineMaterializer):
    """Serves dtypes."""

    types = ("numpy.dtype",)

    def to_json(self, value: Any) -> Json:
        """Return the description that ``.npy`` files have."""
        return np.lib.format.dtype_to_descr(value)

    def from_json(self, raw: Json, cls: type) -> Any:
        """Return the dtype."""
        return np.lib.format.descr_to_dtype(_with_tuples(raw))

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so never."""
        return False


def _with_tuples(raw: Json, *, is_field: bool = False) -> Any:
    """Return a description with the tuples that JSON made lists of: fields are tuples in a list, shapes are tuples."""
    if not isinstance(raw, list):
        return raw
    if is_field:
        return (raw[0], _with_tuples(raw[1]), *(tuple(shape) for shape in raw[2:]))
    if len(raw) == 2 and isinstance(raw[1], list) and all(isinstance(n, int) for n in raw[1]):
        return (_with_tuples(raw[0]), tuple(raw[1]))
    return [_with_tuples(field, is_field=True) for field in raw]
