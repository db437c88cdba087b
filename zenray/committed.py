"""What people are told of steps is what is in the ledger: the end of a step is passed on once it is committed.

Runs in: driver.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from zenray.journal import Observer, StepState
from zenray.metadata.writer import LedgerWriter
from zenray.model import Failure, Status

TINY_S = 0.1


class Committed:
    """Stands between the engine and an observer.

    Where steps run in this process and print for themselves, the engine waits for the commit, so that lines come in the
    right order. Only steps shorter than 0.1 s are then told at once: a commit for each would take longer than they do.
    """

    def __init__(self, observer: Observer, writer: LedgerWriter, *, is_inline: bool) -> None:
        self._observer, self._writer, self._is_inline = observer, writer, is_inline
        self._names: set[str] = set()  # of the step runs whose end is committed

    def on_step(self, state: StepState) -> None:
        """Pass on what has changed, the end of a step run when it is committed."""
        if not state.status.is_finished:
            self._observer.on_step(state)
        elif not self._is_inline:
            self._writer.after_commit(partial(self._tell, state))
        else:
            self._writer.after_commit(partial(self._names.add, state.name))
            if state.attempt and (state.ended_at or 0.0) - (state.started_at or 0.0) >= TINY_S:
                self._writer.flush()
            self._observer.on_step(state)

    def on_note(self, text: str) -> None:
        """Pass a warning on."""
        self._observer.on_note(text)

    def as_recorded(self, steps: Mapping[str, StepState], observer: Observer) -> dict[str, StepState]:
        """Return step runs as the ledger has them at the end: what was not recorded has failed, which is told too."""
        recorded = dict(steps)
        for name, state in steps.items():
            if state.status.has_outputs and name not in self._names:
                failure = Failure("store", "MetadataError", "its end was not recorded")
                recorded[name] = replace(state, status=Status.FAILED, failure=failure)
                observer.on_step(recorded[name])
        return recorded

    def _tell(self, state: StepState) -> None:
        self._names.add(state.name)
        self._observer.on_step(state)
