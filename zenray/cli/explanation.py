"""Why a step run ran, or which result it reused, in words.

Runs in: driver.
"""

from zenray.cache import differences
from zenray.cli.output import time_text
from zenray.errors import NotFoundError
from zenray.metadata.ledger import Ledger
from zenray.metadata.records import StepRunRecord
from zenray.model import Json, Status

MAX_EARLIER = 200  # step runs that are looked at to find the nearest
MAX_SHOWN = 8


class Explainer:
    """Compares step runs with earlier ones of the same step."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._codes: dict[str, tuple[Json, ...]] = {}

    def explain(self, step: StepRunRecord) -> str:
        """Return one line, or two where the step run is compared with an earlier one."""
        if step.status is Status.CACHED and step.cache_source is not None:
            return f"{step.name} was cached: {self._source(step, *step.cache_source)}"
        if step.status is Status.SKIPPED:
            return f"{step.name} was skipped: " + (
                f"{step.cause} failed" if step.cause else step.reason or "the run ended"
            )
        if step.started_at is None:
            return f"{step.name} has not run: it is {step.status}" + (f" ({step.reason})" if step.reason else "")
        if step.reason:
            return f"{step.name} ran because: {step.reason}"
        return f"{step.name} ran because: {self._why(step)}"

    def _source(self, step: StepRunRecord, run_id: str, name: str) -> str:
        if run_id == step.run_id:
            return f"it is the same work as {name} of this run"
        try:
            made = self._ledger.step_run(run_id, name)
        except NotFoundError:
            return f"the result of {name} of run {run_id}, which is not recorded here (deleted, or of another stack)"
        return f"the result of {name} of run {run_id}, made {time_text(made.ended_at)}"

    def _why(self, step: StepRunRecord) -> str:
        found = self._nearest(step)
        if found is None:
            return "there is no earlier run of it"
        before, changes = found
        compared = f"\n  compared with {before.name} of run {before.run_id}, {time_text(before.started_at)}"
        if changes:
            more = f"; and {len(changes) - MAX_SHOWN} more" if len(changes) > MAX_SHOWN else ""
            return "; ".join(changes[:MAX_SHOWN]) + more + compared
        if not before.status.has_outputs:
            return f"nothing differs, but the earlier run of it left no result: it is {before.status}{compared}"
        why = "was deleted, was not fit to be kept, or is in another store"
        return f"nothing differs, but the earlier result {why}{compared}"

    def _nearest(self, step: StepRunRecord) -> tuple[StepRunRecord, list[str]] | None:
        """Return the earlier step run with the fewest differences, the newest of equals, and the differences."""
        assert step.started_at is not None
        earlier = self._ledger.previous_step_runs(
            step.step, before=step.started_at, module=step.module or None, limit=MAX_EARLIER
        )
        best: tuple[StepRunRecord, list[str]] | None = None
        best_rank = (0, False)
        for record in earlier:
            if record.run_id == step.run_id or not record.key_parts:
                continue
            found = differences(step.key_parts, record.key_parts, self._code(step), self._code(record))
            # A result counts for more than the remains of a run that failed in the same state.
            rank = len(found), not record.status.has_outputs
            if best is None or rank < best_rank:
                best, best_rank = (record, found), rank
        return None if best is None else (best[0], [self._with_producer(step, text) for text in best[1]])

    def _code(self, step: StepRunRecord) -> tuple[Json, ...]:
        digest = step.code_digest
        if digest not in self._codes:
            self._codes[digest] = self._ledger.code_parts(digest)
        return self._codes[digest]

    def _with_producer(self, step: StepRunRecord, text: str) -> str:
        """Add to an argument that changed the step that it came from."""
        for entry in self._ledger.inputs(step.run_id, step.name):
            if entry.producer and text == f"argument {entry.argument!r} changed":
                return f"{text} (it comes from {entry.producer})"
        return text
