"""Runs as runs of Weights & Biases, under ZenRay's own run id.

Runs in: anywhere.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from zenray import integrations
from zenray.errors import ConfigError
from zenray.trackers import Point, TrackedRun, check_options

FINISH_S = 15.0  # for what is still to be sent; the rest stays on disk, for `wandb sync`
INDEX = "zenray.index"  # in each row of the history that is ours
_OPTIONS = ("project", "entity", "api_key", "base_url", "mode", "dir")


class WandbTracker:
    """Logs a run to Weights & Biases; ``project`` is by default called like the pipeline.

    ``mode`` (or the variable WANDB_MODE) ``offline`` writes folders that ``wandb sync`` uploads: one of the driver, and
    one for each step that asked for the tracker, all under the same run id.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_options(options, _OPTIONS)
        mode: Any = options.get("mode") or os.environ.get("WANDB_MODE") or "online"
        if mode not in ("online", "offline", "shared", "disabled"):
            raise ConfigError(f"experiment_tracker: mode must be 'online', 'offline' or 'disabled', got {mode!r}")
        integrations.require("wandb", for_what="the experiment tracker of flavor 'wandb'")
        # "shared" is W&B's mode for several processes that write one run; offline each writes a folder of its own.
        self._mode: Any = "shared" if mode == "online" else mode
        self._options = dict(options)
        self._run: Any = None
        self._series: set[str] = set()
        self._is_driver = False

    def start(self, run: TrackedRun) -> None:
        """Begin the run; parameters and tags are its config."""
        self._is_driver = True
        if self._run is None:
            self._run = self._init(run.run_id, is_primary=True)
        self._run.config.update({**run.parameters, "zenray": {**run.tags, "run_id": run.run_id}})

    def log(self, points: Sequence[Point]) -> None:
        """Log points, in a row of the run's history for each index, which is the x axis of a series."""
        rows: dict[int, dict[str, float]] = {}
        for point in points:
            rows.setdefault(point.index, {INDEX: point.index})[point.name] = point.value
            if point.index and point.name not in self._series:
                self._series.add(point.name)
                self._run.define_metric(INDEX, hidden=True)
                self._run.define_metric(point.name, step_metric=INDEX)
        for _, row in sorted(rows.items()):
            self._run.log(row)

    def end(self, status: str) -> None:
        """Finish the run; a status that is not success is an exit code of 1."""
        self._run.finish(exit_code=int(status != "succeeded"))

    def check(self) -> str:
        """Ask the service who its key belongs to; offline there is nothing to ask."""
        if self._mode in ("offline", "disabled"):
            return f"wandb: {self._mode}, nothing is sent"
        import wandb

        api = wandb.Api(api_key=self._options.get("api_key"), timeout=10)
        return f"wandb: answers to {api.viewer.username}"

    def attach(self, run_id: str) -> Any:
        """Return a run object under the same id; ``wandb.log`` in the step goes there too."""
        if self._run is None:
            self._run = self._init(run_id, is_primary=False)
        return self._run

    def detach(self) -> None:
        """Send what the step logged."""
        if not self._is_driver and self._run is not None:
            self._run.finish()
            self._run = None

    def _init(self, run_id: str, *, is_primary: bool) -> Any:
        if not is_primary:
            # The driver's background service, which came along with its environment, takes a run id only once.
            os.environ.pop("WANDB_SERVICE", None)
        import wandb  # 1 s

        place = {name: self._options[name] for name in ("api_key", "base_url") if self._options.get(name)}
        who = "driver" if is_primary else f"{socket.gethostname()}-{os.getpid()}"
        settings = wandb.Settings(
            silent=True,
            console="off",  # ZenRay captures what is printed
            finish_timeout=FINISH_S,
            x_disable_stats=not is_primary,
            x_sync_dir_suffix=who,  # two processes that begin in the same second would share a folder
            **place,
            **({"x_label": who, "x_primary": is_primary} if self._mode == "shared" else {}),
            **({"x_update_finish_state": False} if not is_primary else {}),
        )
        return wandb.init(
            id=run_id,
            name=run_id,
            project=self._options.get("project") or self._options.get("pipeline") or None,
            entity=self._options.get("entity"),
            dir=self._options.get("dir"),
            mode=self._mode,
            resume=None if self._mode in ("shared", "offline") else "allow",
            # The driver's is not wandb's global run: that belongs to the user's own code.
            reinit="create_new" if is_primary else None,
            settings=settings,
        )
