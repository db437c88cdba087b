"""An experiment tracker that appends lines of JSON to a file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zenray.errors import ConfigError
from zenray.trackers import Point, TrackedRun


class JsonLinesTracker:
    """Follows the protocol ``zenray.trackers.Tracker``; there is nothing to inherit from.

    It is opened before the run starts, so this is the place to refuse options. It is also opened in each worker whose
    step asks for ``zenray.context().tracker``, from the same options: what they name has to be reachable there.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        if "path" not in options:
            raise ConfigError("experiment_tracker: flavor 'jsonlines' needs 'path', such as 'runs.jsonl'")
        self._path = Path(options["path"])
        self._run_id = ""

    def start(self, run: TrackedRun) -> None:
        """Called in a thread of the driver's; the run does not wait for it, and does not fail with it."""
        self._run_id = run.run_id
        self._append(event="start", pipeline=run.pipeline, parameters=run.parameters, tags=run.tags)

    def log(self, points: Sequence[Point]) -> None:
        """Called with what several steps gave, under names such as ``train.auc``, and what they logged in a loop."""
        self._append(event="values", values=[[point.name, point.index, point.value] for point in points])

    def end(self, status: str) -> None:
        """Called when the run has ended."""
        self._append(event="end", status=status)

    def check(self) -> str:
        """Called by ``zenray stack check``: reach what is logged to, and say what is there."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.close(descriptor)
        return f"{self._path} can be written"

    def attach(self, run_id: str) -> "JsonLinesTracker":
        """Called in a step that asks for the tracker; what this returns is what the step gets."""
        self._run_id = run_id
        return self

    def detach(self) -> None:
        """Called after that step: the place to flush."""

    def log_one(self, name: str, value: float) -> None:
        """Log a value from a step."""
        self._append(event="step", values={name: value})

    def _append(self, **line: Any) -> None:
        text = json.dumps({"run_id": self._run_id, **line}) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, text.encode())  # one call, so that lines of several processes do not mix
        finally:
            os.close(descriptor)
