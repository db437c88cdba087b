"""Arrow arrays whose buffers are a function of their values alone, so that equal arrays are written as equal bytes.

Runs in: anywhere.

Two equal arrays may differ in memory: a slice's buffers go on behind its end, and up to seven of these bytes reach an
IPC file as padding; offsets of strings and lists need not start at zero; under a null there may be anything. Where
there are no nulls nothing large is copied here. Unions, run-end encodings and list views stay as they are.
"""

import functools
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
_LISTS = (pa.types.is_list, pa.types.is_large_list)
_AS_THEY_ARE = (
    pa.types.is_null,
    pa.types.is_union,
    pa.types.is_run_end_encoded,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_INTEGERS = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def canonical(array: Any) -> Any:
    """Return an equal array in the one form that its values have."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, canonical(array.storage))
    if pa.types.is_dictionary(kind):
        parts = canonical(array.indices), canonical(array.dictionary)
        return pa.DictionaryArray.from_arrays(*parts, ordered=kind.ordered, safe=False)
    if _is_one_of(_AS_THEY_ARE, kind):
        return array
    if not len(array):
        return pa.nulls(0, kind)
    if _has_views(kind):
        return canonical(array.cast(_without_views(kind))).cast(kind)
    if pa.types.is_struct(kind):
        return _struct(array)
    is_split = array.offset % 8 or len(array) % 8  # a bitmap begins or ends within a byte
    if array.null_count and not is_split and pa.types.is_primitive(kind) and kind.bit_width in _INTEGERS:
        return _zeroed(array)
    if array.null_count or (pa.types.is_boolean(kind) and is_split):
        array = array.take(_indices(len(array)))
    if pa.types.is_map(kind):
        return _map(array)
    if pa.types.is_fixed_size_list(kind):
        return _fixed_size_list(array)
    if _is_one_of(_LISTS, kind):
        return _list(array)
    return _binary(array) if _is_one_of(_BINARY, kind) else _fixed_width(array)


def content_bytes(array: Any) -> int:
    """Return the bytes of an array's values, whatever buffers they lie in."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return content_bytes(array.storage)
    if _is_one_of(_BINARY, kind):
        return pc.sum(pc.binary_length(array)).as_py() or 0
    if pa.types.is_dictionary(kind):
        return content_bytes(array.indices)
    if _is_one_of(_LISTS, kind) or pa.types.is_fixed_size_list(kind):
        return content_bytes(array.flatten())
    if pa.types.is_struct(kind):
        return sum(map(content_bytes, array.flatten()))
    return len(array) * kind.bit_width // 8 if pa.types.is_primitive(kind) else 0


def _has_views(kind: Any) -> bool:
    return kind in _VIEWS or any(_has_views(kind.field(i).type) for i in range(kind.num_fields))


def _without_views(kind: Any) -> Any:
    """Return a type with offsets in the place of views, which few of Arrow's functions know inside of others."""

    def plain(field: Any) -> Any:
        return field.with_type(_without_views(field.type))

    if kind in _VIEWS or not _has_views(kind):
        return _VIEWS.get(kind, kind)
    if pa.types.is_struct(kind):
        return pa.struct([plain(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_field), plain(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_field), kind.list_size)
    if _is_one_of(_LISTS, kind):
        make = pa.large_list if pa.types.is_large_list(kind) else pa.list_
        return make(plain(kind.value_field))
    return kind


def _is_one_of(tests: Any, kind: Any) -> bool:
    return any(is_it(kind) for is_it in tests)


@functools.lru_cache(maxsize=2)  # the batches of a table have one length, but for the last
def _indices(length: int) -> Any:
    if length < 1000:
        return pa.array(range(length), pa.int64())
    return pc.subtract(pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), length)), 1)


def _zeroed(array: Any) -> Any:
    """Return numbers with zeros under the nulls; ``take`` does that as well, at a third of the speed."""
    filled = pc.fill_null(array.view(_INTEGERS[array.type.bit_width]), 0)
    validity = array.buffers()[0].slice(array.offset // 8, len(array) // 8)
    return _fixed_width(
        pa.Array.from_buffers(array.type, len(array), [validity, filled.buffers()[1]], offset=filled.offset)
    )


def _struct(array: Any) -> Any:
    if not array.type.num_fields:
        array = array.take(_indices(len(array)))
        return pa.Array.from_buffers(array.type, len(array), [_validity(array)])
    mask = canonical(array.is_null()) if array.null_count else None
    return pa.StructArray.from_arrays([canonical(c) for c in array.flatten()], fields=list(array.type), mask=mask)


def _validity(array: Any) -> Any:
    """Return the bitmap, of an array that ``take`` has made: it starts at bit 0 and is zero behind the end."""
    return array.buffers()[0].slice(0, (len(array) + 7) // 8) if array.null_count else None


def _offsets(array: Any) -> tuple[Any, int, int]:
    """Return the buffer of the offsets, moved to start at zero, and where the first and the last pointed."""
    kind = pa.int64() if array.type in (pa.large_string(), pa.large_binary()) else pa.int32()
    if pa.types.is_large_list(array.type):
        kind = pa.int64()
    count = len(array) + 1
    offsets = pa.Array.from_buffers(kind, count, [None, array.buffers()[1]], offset=array.offset)
    first, last = offsets[0].as_py(), offsets[count - 1].as_py()
    if first:
        offsets = pc.subtract(offsets, offsets[0])
    width = kind.bit_width // 8
    return offsets.buffers()[1].slice(offsets.offset * width, count * width), first, last


def _binary(array: Any) -> Any:
    offsets, first, last = _offsets(array)
    data = array.buffers()[2]
    data = pa.py_buffer(b"") if data is None else data.slice(first, last - first)
    return pa.Array.from_buffers(array.type, len(array), [_validity(array), offsets, data])


def _list(array: Any) -> Any:
    offsets, first, last = _offsets(array)
    values = canonical(array.values.slice(first, last - first))
    return pa.Array.from_buffers(array.type, len(array), [_validity(array), offsets], children=[values])


def _map(array: Any) -> Any:
    offsets, first, last = _offsets(array)
    kind = array.type
    parts = [canonical(part.slice(first, last - first)) for part in (array.keys, array.items)]
    entries = pa.StructArray.from_arrays(parts, fields=[kind.key_field, kind.item_field])
    return pa.Array.from_buffers(kind, len(array), [_validity(array), offsets], children=[entries])


def _fixed_size_list(array: Any) -> Any:
    size = array.type.list_size
    values = canonical(array.values.slice(array.offset * size, len(array) * size))
    return pa.Array.from_buffers(array.type, len(array), [_validity(array)], children=[values])


def _fixed_width(array: Any) -> Any:
    bits = array.type.bit_width
    data = array.buffers()[1].slice(array.offset * bits // 8, (len(array) * bits + 7) // 8)
    return pa.Array.from_buffers(array.type, len(array), [_validity(array), data])
