"""The rows of the metadata store as frozen dataclasses; importing them costs no SQLAlchemy.

Runs in: anywhere.

All times are seconds since the epoch. Mappings are stored as JSON, and what JSON cannot express as its ``repr``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from zenray.model import Json, Manifest, Status


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One execution of a pipeline; ``fence``, ``owner`` and ``lease_until`` say who works on it."""

    run_id: str
    pipeline: str
    status: Status
    started_at: float
    ended_at: float | None = None
    parameters: Mapping[str, Json] = field(default_factory=dict)
    stack: str = ""
    error: Mapping[str, Json] | None = None
    user: str = ""
    host: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    git_revision: str = ""
    source_file: str = ""
    outputs: Json = None
    fence: int = 0
    owner: str = ""
    lease_until: float | None = None
    stop_asked_by: str = ""  # whoever it is that wants the run to end


@dataclass(frozen=True, slots=True)
class RunState:
    """A change of where a run is: the four fields are set together, so a run that goes on has no end and no error."""

    run_id: str
    status: Status
    ended_at: float | None = None
    error: Mapping[str, Json] | None = None
    outputs: Json = None


@dataclass(frozen=True, slots=True)
class StepRunRecord:
    """One invocation of a step inside a run; ``name`` is unique in the run, ``step`` is the definition's name."""

    run_id: str
    name: str
    step: str
    status: Status
    position: int
    module: str = ""
    cache_key: str = ""
    key_parts: Mapping[str, Json] = field(default_factory=dict)
    code_digest: str = ""
    cache_source: tuple[str, str] | None = None  # (run_id, name) of the step run whose result was reused
    parameters: Mapping[str, Json] = field(default_factory=dict)
    resources: Mapping[str, Json] = field(default_factory=dict)
    started_at: float | None = None
    ended_at: float | None = None
    error: Mapping[str, Json] | None = None
    cause: str = ""  # of a skipped step: the name of the step that failed
    reason: str = ""
    tags: Mapping[str, Json] = field(default_factory=dict)
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One try of a step run; numbers begin at 1."""

    run_id: str
    name: str
    number: int
    status: Status
    worker: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    error: Mapping[str, Json] | None = None
    log_uri: str = ""
    log_bytes: int = 0
    fence: int = 0


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """An artifact that a store holds, or held."""

    manifest: Manifest
    store: str
    created_at: float

    @property
    def digest(self) -> str:
        """The identity of the artifact."""
        return self.manifest.digest


@dataclass(frozen=True, slots=True)
class StepInput:
    """An artifact that a step run took; ``position`` counts within a list argument, ``producer`` is a step's name.

    ``producer`` is empty where the artifact came from outside the run.
    """

    run_id: str
    name: str
    argument: str
    position: int
    digest: str
    producer: str = ""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """An artifact that a step run gave."""

    run_id: str
    name: str
    output: str
    position: int
    digest: str


@dataclass(frozen=True, slots=True)
class StepInputs:
    """All inputs of one step run; replaces what was recorded for it before."""

    run_id: str
    name: str
    inputs: tuple[StepInput, ...]


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """All outputs of one step run; replaces what was recorded for it before."""

    run_id: str
    name: str
    outputs: tuple[StepOutput, ...]


@dataclass(frozen=True, slots=True)
class CodeRecord:
    """What a code digest is made of: mappings with ``kind``, ``name``, ``digest``, ``file`` and ``line``."""

    digest: str
    parts: tuple[Mapping[str, Json], ...]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The result of a key in one store: ``outputs`` are (output name, artifact digest), in the order of declaration."""

    key: str
    store: str
    run_id: str
    name: str
    outputs: tuple[tuple[str, str], ...]
    created_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """That a run is computing a key for a store, in its step run ``name``."""

    key: str
    store: str
    run_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What came of claiming keys: those that other runs hold, and those of ours that have a cache entry already."""

    held: Mapping[str, Claim]
    recorded: frozenset[str]


@dataclass(frozen=True, slots=True)
class ClaimEnd:
    """Lets a run's claim go, together with what is committed with it; another run's claim stays."""

    key: str
    store: str
    run_id: str


@dataclass(frozen=True, slots=True)
class PipelineRecord:
    """A pipeline that has runs."""

    name: str
    run_count: int
    last_started_at: float


Change = (
    RunState
    | StepRunRecord
    | AttemptRecord
    | ArtifactRecord
    | StepInputs
    | StepOutputs
    | CodeRecord
    | CacheEntry
    | ClaimEnd
)
