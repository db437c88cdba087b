"""The frozen records that cross process boundaries: artifacts, step calls and what came of them.

Runs in: anywhere.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from zenray.hashing import digest_value

Json = Any  # what json.loads gives: None, bool, int, float, str, list, dict
Sample = tuple[int, float, float]  # of a series: its index from 0, the number, and when it was logged (epoch s)


class Status(StrEnum):
    """Where a run or a step run is; a run has no ``cached`` or ``skipped``."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CACHED = "cached"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @property
    def is_finished(self) -> bool:
        """True where nothing more will happen."""
        return self not in (Status.WAITING, Status.RUNNING)

    @property
    def has_outputs(self) -> bool:
        """True where the outputs are committed."""
        return self in (Status.SUCCEEDED, Status.CACHED)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One named file of an artifact; small ones carry their bytes in the manifest and have no object."""

    name: str
    size_bytes: int
    digest: str
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is made of; ``digest`` is its identity, a hash of type, format and content.

    ``preview`` and ``producer`` describe it and are not part of the identity: whoever writes first is named.
    """

    type_name: str
    materializer: str
    format_version: int
    files: tuple[StoredFile, ...]
    metadata: Mapping[str, Json]
    digest: str
    is_pickle: bool = False
    may_hold_instances: bool = True  # of the user's own classes
    preview: Mapping[str, Json] = field(default_factory=dict)
    producer: str = ""

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(f.size_bytes for f in self.files)

    @property
    def is_inline(self) -> bool:
        """True where it holds the bytes of all files itself, so that there is no object to be stored."""
        return all(f.data is not None for f in self.files)

    def to_json(self) -> dict[str, Json]:
        """Return the form that is stored; small files' bytes in base64."""
        return {
            "type": self.type_name,
            "materializer": self.materializer,
            "format_version": self.format_version,
            "files": [_file_to_json(f) for f in self.files],
            "metadata": dict(self.metadata),
            "digest": self.digest,
            "pickle": self.is_pickle,
            "instances": self.may_hold_instances,
            "preview": dict(self.preview),
            "producer": self.producer,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Json]) -> "Manifest":
        """Read what ``to_json`` wrote."""
        return cls(
            type_name=raw["type"],
            materializer=raw["materializer"],
            format_version=raw["format_version"],
            files=tuple(
                StoredFile(f["name"], f["size"], f["digest"], base64.b64decode(f["data"]) if "data" in f else None)
                for f in raw["files"]
            ),
            metadata=raw["metadata"],
            digest=raw["digest"],
            is_pickle=raw["pickle"],
            may_hold_instances=raw.get("instances", True),
            preview=raw["preview"],
            producer=raw["producer"],
        )


def _file_to_json(file: StoredFile) -> dict[str, Json]:
    raw: dict[str, Json] = {"name": file.name, "size": file.size_bytes, "digest": file.digest}
    if file.data is not None:
        raw["data"] = base64.b64encode(file.data).decode()
    return raw


def artifact_digest(
    type_name: str, materializer: str, format_version: int, files: tuple[StoredFile, ...], metadata: Mapping[str, Json]
) -> str:
    """Return the identity of an artifact: equal type, format, metadata and bytes, and only those, are equal."""
    content = sorted((f.name, f.size_bytes, f.digest) for f in files)
    return digest_value(["artifact", type_name, materializer, format_version, content, _sorted(metadata)])


def _sorted(value: Json) -> Json:
    """Return JSON-like data with every mapping in key order."""
    if isinstance(value, Mapping):
        return {k: _sorted(value[k]) for k in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(v) for v in value]
    return value


@dataclass(frozen=True, slots=True)
class Output:
    """A declared output of a step: its name and annotated type (None where not annotated)."""

    name: str
    annotation: Any = None


@dataclass(frozen=True, slots=True)
class Resources:
    """What a step asks Ray for, under Ray's own names; ``memory_bytes`` is Ray's ``memory``."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory_bytes: int = 0
    resources: tuple[tuple[str, float], ...] = ()
    accelerator_type: str = ""

    def describe(self) -> dict[str, Json]:
        """Return what differs from nothing asked, for records and the live view."""
        raw: dict[str, Json] = {"num_cpus": self.num_cpus}
        if self.num_gpus:
            raw["num_gpus"] = self.num_gpus
        if self.memory_bytes:
            raw["memory"] = self.memory_bytes
        if self.accelerator_type:
            raw["accelerator_type"] = self.accelerator_type
        raw.update(self.resources)
        return raw


@dataclass(frozen=True, slots=True)
class CodeRef:
    """Where a worker finds a step's function: a module to import, or, where that cannot be, its pickle.

    ``file`` is the script the module is loaded from when it is not importable by name (``python script.py``). ``parts``
    are those of the code behind a pickle: it holds what cannot be imported, and names the rest.
    """

    module: str
    qualname: str
    file: str = ""
    pickled: bytes = b""
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in an argument tree for the input artifact of that index."""

    index: int


@dataclass(frozen=True, slots=True)
class StepCall:
    """One attempt, as it is handed to a worker: everything the worker needs, and nothing it has to look up."""

    step_run_id: str
    attempt: int
    name: str
    code: CodeRef
    code_digest: str
    source_digest: str
    arguments: bytes  # pickled (args, kwargs) trees, artifacts replaced by Slot
    inputs: tuple[Manifest, ...]
    pickle_inputs: tuple[bool, ...]  # for each input, whether its producer opted in to pickle
    allow_pickle: bool
    log_uri: str
    has_gpu: bool = False
    is_tiny: bool = False  # its log need not be followed while it runs
    timeout_s: float | None = None  # how long the attempt may take
    deadline_at: float | None = None  # when the last attempt ends, by the driver's clock


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt did not succeed; ``kind`` decides about another attempt.

    Kinds: ``user`` (the step raised), ``timeout``, ``output`` (a value that does not fit or cannot be stored),
    ``worker`` (process or node lost), ``cluster`` (all of it is gone), ``store``, ``code`` (source changed under
    the run), ``impossible``, ``cancelled``.
    """

    kind: str
    type_name: str
    message: str
    traceback: str = ""
    pickled: bytes = b""
    bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """What a worker returns for one attempt: manifests of all outputs, or a failure, and what was observed.

    Times are seconds since the epoch; the last ``write_s`` seconds went into waiting for a remote store. ``notes``
    are warnings for the user; ``is_cacheable`` is False where the worker saw a reason not to trust the key.
    """

    step_run_id: str
    attempt: int
    outputs: tuple[Manifest, ...] = ()
    failure: Failure | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    write_s: float = 0.0
    worker: str = ""
    log_uri: str = ""
    log_bytes: int = 0
    is_cacheable: bool = True
    code: tuple[Mapping[str, Json], ...] = ()  # the parts of the step's code in the worker, where they differ
    is_started: bool = True
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Json] = field(default_factory=dict)  # what the step logged
    series: Mapping[str, Sequence[Sample]] = field(default_factory=dict)  # of it, numbers that were logged repeatedly


@dataclass(frozen=True, slots=True)
class JobContext:
    """What every worker of a run has in common; sent once to each worker process, never logged or stored."""

    sys_path: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str] = field(repr=False)
    store_uri: str = ""
    store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    materializers: Mapping[str, str] = field(default_factory=dict)
    tracker: Mapping[str, Any] = field(default_factory=dict, repr=False)  # options of the experiment tracker
