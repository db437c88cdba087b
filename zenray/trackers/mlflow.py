"""Runs as MLflow runs, through the client of ``mlflow-skinny``.

Runs in: anywhere.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from zenray import integrations
from zenray.errors import ConfigError, ZenRayError
from zenray.masking import masked_text
from zenray.trackers import Ended, Point, TrackedRun, check_options

RUN_TAG = "zenray.run_id"
ATTACH_S = 20.0  # how long a step waits for the driver to have created MLflow's run
MAX_BATCH, MAX_PARAMETER = 1000, 500  # limits of MLflow's REST API: metrics of one request, characters
_STATUSES = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
_OPTIONS = ("tracking_uri", "experiment")
# MLflow's client would try for four minutes before it says that a server is down, and prints links to stdout.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MlflowTracker:
    """Logs a run to an MLflow server; ``experiment`` is by default called like the pipeline.

    Variables of the environment that MLflow itself reads (credentials, timeouts) count; they travel to the workers.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_options(options, _OPTIONS)
        self._uri = str(options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI", ""))
        if not self._uri:
            raise ConfigError(
                "experiment_tracker: flavor 'mlflow' needs 'tracking_uri', such as 'http://mlflow:5000', "
                "or the variable MLFLOW_TRACKING_URI"
            )
        integrations.require("mlflow", for_what="the experiment tracker of flavor 'mlflow'")
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        named = options.get("experiment") or options.get("pipeline")
        self._is_named, self._experiment = bool(named), str(named or "Default")
        self._made: Any = None  # the client
        self._run_id = ""  # MLflow's
        self._uri_before: str | None = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            from mlflow.tracking import MlflowClient  # 1 to 3 s

            self._made = MlflowClient(tracking_uri=self._uri)
        return self._made

    def start(self, run: TrackedRun) -> None:
        """Create MLflow's run, in its experiment, which is created too."""
        from mlflow.entities import Param

        if not self._run_id:
            tags = {f"zenray.{name}": value for name, value in run.tags.items()} | {RUN_TAG: run.run_id}
            tags["mlflow.user"] = run.tags.get("user", "")
            tags["mlflow.source.git.commit"] = run.tags.get("git_revision", "")
            tags = {name: value for name, value in tags.items() if value}
            self._run_id = self._client.create_run(self._experiment_id(), run_name=run.run_id, tags=tags).info.run_id
        params = [Param(_name(k), str(v)[:MAX_PARAMETER]) for k, v in run.parameters.items()]
        for some in _parts(params, 100):
            self._client.log_batch(self._run_id, params=some)

    def log(self, points: Sequence[Point]) -> None:
        """Log points as metrics; their index is MLflow's step."""
        from mlflow.entities import Metric

        metrics = [Metric(_name(p.name), p.value, int(p.logged_at * 1000), p.index) for p in points]
        for some in _parts(metrics, MAX_BATCH):
            self._client.log_batch(self._run_id, metrics=some)

    def end(self, status: str) -> None:
        """Set MLflow's status."""
        self._client.set_terminated(self._run_id, _STATUSES[status])

    def sweep(self, ended: Ended) -> int:
        """End runs of this experiment; of all, where neither the stack nor a pipeline names one."""
        where, found = f"attributes.status = 'RUNNING' AND tags.`{RUN_TAG}` != ''", list[Any]()
        for experiments in _parts(self._experiments(), 100):
            found += _all(partial(self._client.search_runs, experiments, where, max_results=1000))
        over = [(run.info.run_id, end) for run in found if (end := ended(run.data.tags[RUN_TAG]))]
        for run_id, (status, ended_at) in over:
            self._client.set_terminated(run_id, _STATUSES[status], end_time=int(ended_at * 1000))
        return len(over)

    def check(self) -> str:
        """Ask the server for its experiments."""
        try:
            self._client.search_experiments(max_results=1)
        except Exception as exc:
            raise ConfigError(
                f"no MLflow server answers at {masked_text(self._uri)!r} ({type(exc).__name__}): check 'tracking_uri', "
                "and that the server runs"
            ) from exc
        return f"mlflow: {masked_text(self._uri)} answers"

    def attach(self, run_id: str) -> Any:
        """Return the module ``mlflow`` with MLflow's run active in this thread."""
        import mlflow

        found = self._run_id or self._find(run_id)
        self._uri_before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self._uri)
        mlflow.start_run(run_id=found, nested=True)  # nested: the step may be called from code that has a run
        return mlflow

    def detach(self) -> None:
        """Take MLflow's run off this thread; a run that the step itself left open ends with it."""
        import mlflow

        try:
            while mlflow.active_run() is not None:
                is_ours = mlflow.active_run().data.tags.get(RUN_TAG)
                mlflow.end_run("RUNNING" if is_ours else "FINISHED")  # its status is the driver's to set
                if is_ours:
                    break
        finally:
            mlflow.set_tracking_uri(self._uri_before)

    def _experiments(self) -> list[str]:
        if not self._is_named:
            return [e.experiment_id for e in _all(partial(self._client.search_experiments, max_results=1000))]
        found = self._client.get_experiment_by_name(self._experiment)
        return [] if found is None else [found.experiment_id]

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self._experiment))
            except MlflowException:  # another run was faster
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _find(self, run_id: str) -> str:
        """Return the id that MLflow gave to a run of ours, waiting for it: the driver creates it in the background."""
        until = time.monotonic() + ATTACH_S
        while True:
            experiment = self._client.get_experiment_by_name(self._experiment)
            where = f"tags.`{RUN_TAG}` = '{run_id}'"
            found = self._client.search_runs([experiment.experiment_id], where) if experiment is not None else []
            if found:
                return str(found[0].info.run_id)
            if time.monotonic() > until:
                raise ZenRayError(
                    f"run {run_id!r} is not in experiment {self._experiment!r} of MLflow yet, after {ATTACH_S:.0f} s; "
                    "see whether the run warned that its tracker cannot be reached"
                )
            time.sleep(0.2)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _all(search: Callable[..., Any]) -> list[Any]:
    """Return what a search of MLflow's client finds, of all its pages."""
    found, token = list[Any](), None
    while True:
        page = search(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _name(text: str) -> str:
    """Return a text as MLflow accepts it for a metric or parameter."""
    return re.sub(r"[^\w\-. /]", "_", text)[:250]
