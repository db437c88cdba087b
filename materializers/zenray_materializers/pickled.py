"""Any value as a pickle, where a step opts in: such an artifact is tied to the code and the versions that wrote it.

Runs in: anywhere.
"""

import pickle
from collections.abc import Mapping
from typing import Any

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer, type_name
from zenray.model import Json
from zenray_materializers.preview import brief

_FILE = "value.pickle"


class PickleMaterializer(Materializer):
    """Serves whatever a step with ``allow_pickle=True`` returns and nothing else serves.

    Bytes are equal for equal values only as far as the value's own pickle is: a set of texts is not.
    """

    is_pickle = True

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Write one pickle of protocol 5, by cloudpickle where that is installed and the standard module fails."""
        try:
            data, by = pickle.dumps(value, protocol=5), "pickle"
        except Exception as exc:  # noqa: BLE001 - whatever a foreign __reduce__ raises
            data, by = _cloudpickled(value, exc), "cloudpickle"
        writer.put(_FILE, data)
        return {"by": by}

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Any:
        """Return the value; runs code that the pickle names."""
        try:
            return pickle.loads(reader.buffer(_FILE))
        except Exception as exc:
            raise MaterializerError(
                f"a pickle cannot be loaded: {type(exc).__name__}: {exc}; "
                "it needs the code and the versions it was written with, or its step runs again"
            ) from exc

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return the class and a short text."""
        return {"type": type_name(type(value)), "value": brief(value, limit=500)}


def _cloudpickled(value: Any, cause: Exception) -> bytes:
    problem = f"a value of type {type_name(type(value))} cannot be pickled: {type(cause).__name__}: {cause}"
    try:
        import cloudpickle  # optional: it comes with some environments and is not needed without functions
    except ImportError:
        advice = "move functions and classes to the level of a module, or install cloudpickle"
        raise MaterializerError(f"{problem}; {advice}") from cause
    try:
        return bytes(cloudpickle.dumps(value, protocol=5))
    except Exception as exc:
        raise MaterializerError(f"{problem}; return the data it is made of instead") from exc
