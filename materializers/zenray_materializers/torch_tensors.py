"""PyTorch tensors as safetensors files; dtypes, devices and sizes as JSON.

Runs in: anywhere.

Written and read here rather than by the library, to do it as a stream; ``safetensors.torch.load`` reads the files as
well. Loaded tensors are copies on the CPU, because PyTorch has no read-only tensors. Not kept are gradients, the graph
a tensor was computed in, and views of shared memory. The format is https://huggingface.co/docs/safetensors/index#format.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer, type_name
from zenray.model import Json
from zenray_materializers.numpy_arrays import statistics
from zenray_materializers.plain import InlineMaterializer
from zenray_materializers.preview import MAX_ROWS, SAMPLE_ROWS, cut

_FILE = "tensor.safetensors"
_NAME = "tensor"
_LENGTH = struct.Struct("<Q")
_WRITE_BYTES = 1 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorMaterializer(Materializer):
    """Serves tensors and parameters."""

    types = ("torch.Tensor",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one safetensors file."""
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise MaterializerError(
                f"{type_name(type(value))} is a subclass of torch.Tensor that is not known; return a plain tensor of it"
            )
        write_tensors({_NAME: value}, writer, _FILE)
        return {"requires_grad": value.requires_grad and value.is_leaf}

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the tensor, on the CPU."""
        tensor = read_tensors(reader, _FILE)[_NAME]
        if issubclass(cls, torch.nn.Parameter):
            return torch.nn.Parameter(tensor, metadata["requires_grad"])
        return tensor.requires_grad_(metadata["requires_grad"])

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return dtype, shape, device, the first elements and what the numbers are like."""
        facts: dict[str, Json] = {"dtype": str(value.dtype), "shape": list(value.shape), "device": str(value.device)}
        sample = value.detach().reshape(-1)[:SAMPLE_ROWS].cpu()
        if sample.is_floating_point():
            sample = sample.double()
        facts["head"] = cut(str(sample[: MAX_ROWS * 4].tolist()), 1000)
        if sample.numel() and not sample.is_complex() and sample.dtype != torch.bool:
            facts["statistics"] = statistics(sample.numpy(), value.numel())
        return facts

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so never: subclasses are refused."""
        return False


class TorchFactMaterializer(InlineMaterializer):
    """Serves dtypes, devices, sizes, memory formats and layouts."""

    types = ("torch.dtype", "torch.device", "torch.Size", "torch.memory_format", "torch.layout")

    def to_json(self, value: Any) -> Json:
        """Return the name, or the numbers of a size."""
        return list(value) if isinstance(value, torch.Size) else str(value)

    def from_json(self, raw: Json, cls: type) -> Any:
        """Return the object of that name."""
        if cls in (torch.Size, torch.device):
            return cls(raw)
        found = getattr(torch, raw.removeprefix("torch."), None)
        if not isinstance(found, cls):
            raise MaterializerError(f"this version of torch has no {cls.__name__} named {raw!r}")
        return found


def write_tensors(tensors: Mapping[str, Any], writer: ArtifactWriter, name: str) -> None:
    """Write named tensors as one safetensors file; the largest elements first, which keeps all of them aligned."""
    header: dict[str, Json] = {}
    offset = 0
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    for key in order:
        tensor = tensors[key]
        _check(key, tensor)
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with writer.open(name) as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for key in order:
            raw = _raw(tensors[key])
            for start in range(0, len(raw), _WRITE_BYTES):
                file.write(raw[start : start + _WRITE_BYTES])


def read_tensors(reader: ArtifactReader, name: str) -> dict[str, Any]:
    """Return the tensors of a safetensors file, each with memory of its own."""
    buffer = reader.buffer(name)
    (length,) = _LENGTH.unpack(buffer[: _LENGTH.size])
    header = json.loads(bytes(buffer[_LENGTH.size : _LENGTH.size + length]))
    data = buffer[_LENGTH.size + length :]
    tensors = {}
    for key, facts in header.items():
        start, end = facts["data_offsets"]
        if start == end:
            tensors[key] = torch.empty(facts["shape"], dtype=_DTYPES[facts["dtype"]])
            continue
        raw = torch.from_numpy(np.frombuffer(data[start:end], np.uint8).copy())
        tensors[key] = raw.view(_DTYPES[facts["dtype"]]).reshape(facts["shape"])
    return tensors


def _check(name: str, tensor: Any) -> None:
    where = "the tensor" if name == _NAME else f"the tensor {name!r}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise MaterializerError(f"{where} is sparse, quantized or without data; return a dense one, as by .to_dense()")
    if tensor.dtype not in _DTYPE_NAMES:
        raise MaterializerError(f"{where} has the dtype {tensor.dtype}, which safetensors does not have; convert it")


def _raw(tensor: Any) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return memoryview(dense.reshape(-1).view(torch.uint8).numpy())
