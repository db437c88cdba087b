"""scikit-learn estimators as skops files, which hold arrays and JSON and are loaded without pickle.

Runs in: anywhere.

Only classes of scikit-learn, NumPy and SciPy are let in. skops names the parts of a file by memory addresses, and the
zip format has times in it: both are replaced here, so that equal estimators give equal bytes. ``skops.io.load`` reads
the files as well. The format is https://skops.readthedocs.io/en/stable/persistence.html.
"""

import io
import json
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import sklearn
import skops
from sklearn.exceptions import InconsistentVersionWarning
from skops import io as skops_io
from skops.io.exceptions import UnsupportedTypeException

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer, load_class, type_name
from zenray.model import Json
from zenray_materializers.numpy_arrays import without_padding_bytes
from zenray_materializers.preview import brief

_FILE = "estimator.skops"
_SCHEMA = "schema.json"
_UNCHANGING = ("JsonNode", "TypeNode", "FunctionNode")
_MAX_PARAMETERS = 40


class SklearnMaterializer(Materializer):
    """Serves estimators; where classes of your own are in them, subclass it and add your package to ``trusted``."""

    types = ("sklearn.base.BaseEstimator",)
    trusted: tuple[str, ...] = ("sklearn.", "numpy.", "scipy.")

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one skops file; return the versions."""
        try:
            data = skops_io.dumps(value)
        except (UnsupportedTypeException, TypeError, AttributeError, ValueError) as exc:
            raise MaterializerError(
                f"{type_name(type(value))} cannot be written by skops: {exc}; "
                "opt in to pickle with @step(allow_pickle=True)"
            ) from exc
        data = _canonical(data)
        self._trusted_types(data)
        writer.put(_FILE, data)
        return {"sklearn": sklearn.__version__, "skops": skops.__version__}

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the estimator; warns where it was fitted by another version of scikit-learn."""
        data = reader.read(_FILE)
        if metadata["sklearn"] != sklearn.__version__:
            warnings.warn(
                f"this {cls.__name__} was fitted by scikit-learn {metadata['sklearn']} and is used by "
                f"{sklearn.__version__}, which may give other results; fit it again, or install that version",
                stacklevel=2,
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconsistentVersionWarning)  # said above, once
            return skops_io.loads(data, trusted=self._trusted_types(data))

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return class, parameters and what it was fitted to."""
        parameters = sorted(value.get_params(deep=False).items())[:_MAX_PARAMETERS]
        facts: dict[str, Json] = {"class": type_name(type(value))}
        facts["parameters"] = {name: brief(parameter, limit=80) for name, parameter in parameters}
        for name in ("n_features_in_", "feature_names_in_", "classes_", "n_iter_"):
            if (fitted := vars(value).get(name)) is not None:
                facts[name] = brief(fitted.tolist() if hasattr(fitted, "tolist") else fitted, limit=300)
        return facts

    def _trusted_types(self, data: bytes) -> list[str]:
        """Return the names in a file that skops wants to be trusted; an error for those that are not."""
        names = skops_io.get_untrusted_types(data=data)
        if foreign := sorted(name for name in names if not name.startswith(self.trusted)):
            packages = ", ".join(repr(prefix) for prefix in self.trusted)
            raise MaterializerError(
                f"the estimator holds {', '.join(foreign)}, and only what is in {packages} is loaded without pickle; "
                "register a subclass of SklearnMaterializer with its package added to 'trusted', "
                "or opt in to pickle with @step(allow_pickle=True)"
            )
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            schema = json.loads(archive.read(_SCHEMA))
        for node in _nodes(schema):
            name = f"{node['__module__']}.{node['__class__']}"
            if name in names and node["__loader__"] != "FunctionNode":
                load_class(name)  # only classes: skops calls what it takes for one
        return list(names)

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so of a subclass that trusts other packages: those may be the user's own."""
        return self.trusted != SklearnMaterializer.trusted


def _canonical(data: bytes) -> bytes:
    """Return a skops file with its parts numbered in the order of the schema, and without times."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(parts.pop(_SCHEMA))
    for node in _nodes(schema):
        if node["__loader__"] == "SetNode":
            node["content"].sort(key=_without_ids)
        elif node["__loader__"] == "DictNode" and "_stop_words_id" in node["content"]:
            node["content"]["_stop_words_id"]["content"] = "0"  # an address, that a vectorizer finds out of date anyway
    ids: dict[int, int] = {}
    names: dict[str, str] = {}
    for node in _nodes(schema):
        if node["__loader__"] in _UNCHANGING:
            node.pop("__id__", None)  # whether equal constants are one object is up to the interpreter
        elif "__id__" in node:
            node["__id__"] = ids.setdefault(node["__id__"], len(ids) + 1)
        if "file" in node:
            suffix = node["file"].rpartition(".")[2]
            node["file"] = names.setdefault(node["file"], f"{len(names)}.{suffix}")
        if node["__loader__"] == "FunctionNode":
            _name_function(node)
    text = json.dumps(schema, separators=(",", ":")).encode()
    return _zipped({_SCHEMA: text} | {name: _clean(parts[old]) for old, name in names.items()})


def _clean(part: bytes) -> bytes:
    """Return a part with the bytes between the fields of records zeroed: the nodes of trees have some."""
    if b"'descr': [" not in part[:128]:
        return part
    target = io.BytesIO()
    records = np.lib.format.read_array(io.BytesIO(part), allow_pickle=False)
    np.lib.format.write_array(target, without_padding_bytes(records), allow_pickle=False)
    return target.getvalue()


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of the schema that describes a value, from the outside in, in the order they are written."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if "__loader__" in item:
                yield item
            stack += reversed(item.values())
        elif isinstance(item, list):
            stack += reversed(item)


def _without_ids(node: Any) -> str:
    return json.dumps({key: value for key, value in node.items() if key != "__id__"}, sort_keys=True)


def _name_function(node: dict[str, Any]) -> None:
    """Name the public module of a ufunc: these do not know theirs, and skops takes the first module that has it."""
    found = getattr(sys.modules.get(node["__module__"]), node["__class__"], None)
    for module in ("numpy", "scipy.special"):
        if found is not None and getattr(sys.modules.get(module), node["__class__"], None) is found:
            node["__module__"] = module
            return


def _zipped(parts: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), part)
    return target.getvalue()
