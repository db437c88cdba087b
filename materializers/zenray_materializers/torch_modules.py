"""PyTorch modules: the tensors as one safetensors file, and how they are put together as JSON.

Runs in: anywhere.

Of each module are kept its class by name, its parameters, buffers and submodules, and its own attributes as plain
values. It is loaded as unpickling would, without calling ``__init__``, but only subclasses of ``torch.nn.Module`` are
made and nothing else is called. Parameters that are shared stay shared. Attributes may be what ``plain`` can store,
functions of torch such as ``torch.nn.functional.relu``, and parts of the module itself.
"""

import json
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer, load_class, type_name
from zenray.model import Json
from zenray_materializers.classes import importable_name
from zenray_materializers.plain import to_bytes
from zenray_materializers.preview import cut
from zenray_materializers.torch_tensors import read_tensors, write_tensors
from zenray_materializers.tree import Decoder, Encoder

_TENSORS, _STRUCTURE = "tensors.safetensors", "module.json"
_CONTENT = ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_FUNCTIONS = {"torch.nn.functional": nn.functional, "torch": torch}
_ADVICE = (
    "return model.state_dict() and load it into a module of your own, or opt in to pickle with @step(allow_pickle=True)"
)


class ModuleMaterializer(Materializer):
    """Serves modules."""

    types = ("torch.nn.modules.module.Module",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write ``tensors.safetensors`` and ``module.json``."""
        modules = dict(value.named_modules())
        tensors = _tensors(modules)
        references = {id(module): f"module:{name}" for name, module in modules.items()}
        references |= {id(tensor): f"tensor:{name}" for name, tensor in tensors.items()}
        encoder = Encoder(writer, prefix="attributes/", references=_Functions(references))
        described = {name: _describe(module, references, encoder) for name, module in modules.items()}
        kinds = {name: [isinstance(t, nn.Parameter), t.requires_grad and t.is_leaf] for name, t in tensors.items()}
        write_tensors(tensors, writer, _TENSORS)
        writer.put(_STRUCTURE, to_bytes({"modules": described, "tensors": kinds}))
        return None

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the module, its tensors on the CPU."""
        structure = json.loads(reader.read(_STRUCTURE))
        parts: dict[str, Any] = _Parts()
        for name, tensor in read_tensors(reader, _TENSORS).items():
            is_parameter, requires_grad = structure["tensors"][name]
            made = nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)
            parts[f"tensor:{name}"] = made
        for name, described in structure["modules"].items():
            parts[f"module:{name}"] = _new(described["class"])
        decoder = Decoder(reader, parts)
        for name, described in structure["modules"].items():
            parts[f"module:{name}"].__setstate__(_state(described, decoder))
        return parts["module:"]

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return class, layers, and the number of parameters."""
        parameters = list(value.parameters())
        return {
            "class": type_name(type(value)),
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "size_bytes": sum(p.numel() * p.element_size() for p in parameters),
            "training": value.training,
            "layers": cut(str(value), 3000),
        }


class _Functions(dict[int, str]):
    """References by identity that also know the functions of torch."""

    def __init__(self, references: Mapping[int, str]) -> None:
        super().__init__(references)
        for path, module in _FUNCTIONS.items():
            for name, function in vars(module).items():
                if isinstance(function, FunctionType | BuiltinFunctionType) and not name.startswith("_"):
                    self.setdefault(id(function), f"function:{path}.{name}")


class _Parts(dict[str, Any]):
    """What a reference stands for: parts of the module made so far, and functions of torch by name."""

    def __missing__(self, key: str) -> Any:
        path, _, name = key.removeprefix("function:").rpartition(".")
        found = getattr(_FUNCTIONS.get(path), name, None)
        if name.startswith("_") or not isinstance(found, FunctionType | BuiltinFunctionType):
            raise KeyError(key)
        return found


def _tensors(modules: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters and buffers, each once, by the name it is met under first."""
    found: dict[int, tuple[str, Any]] = {}
    for path, module in modules.items():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), (f"{path}.{name}" if path else name, tensor))
    return dict(found.values())


def _describe(module: Any, references: Mapping[int, str], encoder: Encoder) -> Json:
    """Return one module as JSON, its parts as references; an error where there is more to it than can be written."""
    name = importable_name(type(module))
    kind: Any = type(module)
    if kind.__reduce__ is not object.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__:
        raise MaterializerError(f"{name} has a way of its own to be pickled, so its attributes are not all; {_ADVICE}")
    state = module.__getstate__()
    bare = vars(nn.Module())
    if not isinstance(state, dict):
        raise MaterializerError(f"{name} has a state that is no dict of attributes; {_ADVICE}")
    if hooks := sorted(key for key in bare if key not in _CONTENT and state.get(key)):
        raise MaterializerError(
            f"{name} has hooks ({', '.join(hooks)}), which are code; remove them before returning it"
        )
    attributes = {}
    for key, attribute in state.items():
        if key in bare:
            continue
        try:
            attributes[key] = encoder.encode(attribute)
        except MaterializerError as exc:
            raise MaterializerError(f"the attribute {key!r} of {name} cannot be stored: {exc}; or {_ADVICE}") from exc
    parts = {
        group: {key: None if part is None else references[id(part)] for key, part in state[group].items()}
        for group in ("_parameters", "_buffers", "_modules")
    }
    non_persistent = sorted(state["_non_persistent_buffers_set"])
    return (
        {"class": name, "training": module.training}
        | parts
        | {
            "non_persistent": non_persistent,
            "attributes": attributes,
        }
    )


def _new(name: str) -> Any:
    cls: Any = load_class(name)
    if not issubclass(cls, nn.Module):
        raise MaterializerError(
            f"{name} was a torch.nn.Module when it was stored and is not any more; run the step again"
        )
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


def _state(described: Mapping[str, Json], decoder: Decoder) -> dict[str, Any]:
    """Return what ``__dict__`` of a module shall hold."""
    state: dict[str, Any] = vars(nn.Module()) | {"training": described["training"]}
    for group in ("_parameters", "_buffers", "_modules"):
        parts = {key: None if ref is None else decoder.references[ref] for key, ref in described[group].items()}
        state[group] = type(state[group])(parts)
    state["_non_persistent_buffers_set"] = set(described["non_persistent"])
    return state | {key: decoder.tree(value) for key, value in described["attributes"].items()}
