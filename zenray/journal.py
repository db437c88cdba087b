"""Turns what happens to step runs into rows, and hands them to the ledger's writer.

Runs in: driver.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from zenray.arguments import Input
from zenray.cache import CacheKey
from zenray.errors import is_huge, shown
from zenray.fingerprint import Fingerprint
from zenray.materializer import module_name_of
from zenray.metadata.records import (
    AttemptRecord,
    Change,
    CodeRecord,
    StepInput,
    StepInputs,
    StepOutput,
    StepOutputs,
    StepRunRecord,
)
from zenray.model import AttemptResult, Failure, Json, Manifest, Sample, Slot, Status
from zenray.step import Step


class RecordWriter(Protocol):
    """Where the engine's records go; never waits for the database."""

    def record(self, *changes: Change) -> None:
        """Take rows that belong together; they are committed together."""
        ...


@dataclass(slots=True)
class StepState:
    """A step run while its run goes on."""

    name: str
    step: Step[Any]
    position: int
    arguments: dict[str, Any]
    args: Any
    inputs: tuple[Input, ...]  # by Slot index
    status: Status = Status.WAITING
    code: Fingerprint | None = None  # as the key has it
    key: CacheKey | None = None
    materializers: frozenset[str] = frozenset()  # of the custom ones, the types whose materializer may matter
    brought: frozenset[str] = frozenset()  # digests of code that may come in as methods of instances, with literals
    heritage: frozenset[str] = frozenset()  # the same, of what may go out
    attempt: int = 0
    recorded: int = 0  # the last attempt of which is recorded what came of it
    lost_workers: int = 0
    outputs: tuple[Manifest, ...] = ()
    failure: Failure | None = None
    cause: str = ""
    source: tuple[str, str] | None = None
    refusal: str = ""  # why the cached result that was found could not be used
    awaits: str = ""  # the run that computes the same just now
    holds_claim: bool = False  # on its key, which ends with what is committed for it
    begun_at: float | None = None  # when its first attempt was launched
    launched_at: float = 0.0  # its last attempt
    started_at: float | None = None
    ended_at: float | None = None
    log_path: str = ""
    metadata: Mapping[str, Json] = field(default_factory=dict)
    series: Mapping[str, Sequence[Sample]] = field(default_factory=dict)


class Observer(Protocol):
    """Is told what happens, for people."""

    def on_step(self, state: StepState) -> None:
        """A step run was added or has changed."""
        ...

    def on_note(self, text: str) -> None:
        """Something the user should know."""
        ...


class Journal:
    """Writes one run's rows."""

    def __init__(self, run_id: str, writer: RecordWriter, *, use_cache: bool) -> None:
        self._run_id = run_id
        self._writer = writer
        self._use_cache = use_cache
        self._codes: set[str] = set()

    def record(self, *changes: Change) -> None:
        """Hand over rows as they are."""
        self._writer.record(*changes)

    def step(self, state: StepState, changes: Sequence[Change] = ()) -> None:
        """Record where a step run is, together with rows that must be committed with it."""
        found = state.code if state.key else None
        all_changes: list[Change] = list(changes)
        if found is not None and found.digest not in self._codes:
            self._codes.add(found.digest)
            all_changes.append(CodeRecord(found.digest, tuple(asdict(p) for p in found.parts)))
        all_changes.append(
            StepRunRecord(
                run_id=self._run_id,
                name=state.name,
                step=state.step.name,
                status=state.status,
                position=state.position,
                module=module_name_of(state.step.function),
                cache_key=state.key.key if state.key else "",
                key_parts=state.key.parts if state.key else {},
                code_digest=found.digest if found else "",
                cache_source=state.source,
                parameters={n: _shown(v) for n, v in state.arguments.items()},
                resources=state.step.settings.resources.describe(),
                started_at=state.started_at,
                ended_at=state.ended_at,
                error=_error_json(state.failure),
                cause=state.cause,
                reason=self._reason(state),
                tags=dict.fromkeys(state.step.settings.tags, True),
                metadata=state.metadata,
            )
        )
        self._writer.record(*all_changes)

    def _reason(self, state: StepState) -> str:
        if state.key is not None and state.key.reason:
            return state.key.reason
        if not state.step.settings.cache:
            return "the step says cache=False"
        return state.refusal if self._use_cache else "the run was started without cache"

    def attempt(self, state: StepState, result: AttemptResult, status: Status) -> None:
        """Record what came of an attempt."""
        state.recorded = result.attempt
        self._writer.record(
            AttemptRecord(
                run_id=self._run_id,
                name=state.name,
                number=result.attempt,
                status=status,
                worker=result.worker,
                started_at=result.started_at or state.started_at,
                ended_at=result.ended_at or time.time(),
                error=_error_json(result.failure),
                log_uri=result.log_uri,
                log_bytes=result.log_bytes,
            )
        )

    def outputs(self, state: StepState, manifests: Sequence[Manifest]) -> StepOutputs:
        """Return the rows that say what a step run gave."""
        pairs = enumerate(zip(state.step.outputs, manifests, strict=True))
        return StepOutputs(
            self._run_id,
            state.name,
            tuple(StepOutput(self._run_id, state.name, o.name, i, m.digest) for i, (o, m) in pairs),
        )

    def inputs(self, state: StepState, manifests: Sequence[Manifest]) -> StepInputs:
        """Return the rows that say what a step run took."""
        rows = [
            StepInput(self._run_id, state.name, taken.argument, i, manifest.digest, taken.producer)
            for i, (taken, manifest) in enumerate(zip(state.inputs, manifests, strict=True))
        ]
        return StepInputs(self._run_id, state.name, tuple(rows))


def _error_json(failure: Failure | None) -> dict[str, Json] | None:
    if failure is None:
        return None
    return {
        "kind": failure.kind,
        "type": failure.type_name,
        "message": failure.message,
        "traceback": failure.traceback,
    }


def _shown(value: Any) -> Json:
    """Return an argument for people, short."""
    if isinstance(value, Slot):
        return "<artifact>"
    if value is None or (isinstance(value, bool | int | float) and not is_huge(value)):
        return value
    text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= 200 else text[:197] + "..."
