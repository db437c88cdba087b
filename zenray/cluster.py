"""The launcher on Ray: one generic remote function runs every step.

Runs in: driver; ``_run_unit`` in: worker.
"""

import atexit
import ctypes
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from zenray import local_cluster
from zenray.cluster_files import ClusterInfo
from zenray.errors import ClusterError, ConfigError
from zenray.launcher import Done
from zenray.model import AttemptResult, CodeRef, Failure, JobContext, Resources, StepCall
from zenray.step import Step
from zenray.workplace import Workplace, job_context, reference_to

_CRASHED = "the step's process ended while it ran: a crash in native code, os._exit(), or a kill, as for its memory"
WATCH_S = 0.5  # how often a run looks whether its cluster still is there: a millisecond or two each time


class RayLauncher:
    """Runs units of step calls as Ray tasks on the warm local cluster, or on that of the job that this process is.

    It is joined on first use.
    """

    is_blocking = False

    def __init__(
        self,
        *,
        store_uri: str,
        store_options: Mapping[str, Any],
        tracker: Mapping[str, Any] | None = None,
        is_in_job: bool = False,
    ) -> None:
        self._is_in_job = is_in_job
        self._store = store_uri, dict(store_options)
        self._tracker = dict(tracker or {})
        self._references: dict[Callable[..., Any], CodeRef] = {}
        self._tasks: dict[Resources, Any] = {}
        self._widths: dict[Resources, int] = {}
        self._refs: dict[Any, tuple[Sequence[StepCall], Done]] = {}
        self._ray: Any = None
        self._run_unit: Any = None
        self._lost = ""  # what became of the cluster, once it has ended under the run
        self._is_closed = threading.Event()

    def reference(self, step: Step[Any]) -> CodeRef:
        """Refer to an importable function by module and name, and pickle any other by value."""
        found = self._references.get(step.function)
        if found is None:
            found = self._references[step.function] = reference_to(step, _cloudpickled)
        return found

    def check(self, step_name: str, resources: Resources) -> None:
        """Compare the request with what single nodes of the cluster have."""
        self._connect()
        nodes = [n["Resources"] for n in self._ray.nodes() if n["Alive"]]
        asked = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, "memory": resources.memory_bytes}
        asked |= dict(resources.resources)
        if resources.accelerator_type:
            asked[f"accelerator_type:{resources.accelerator_type}"] = 0.001
        asked = {k: v for k, v in asked.items() if v}
        if not any(all(node.get(k, 0) >= v for k, v in asked.items()) for node in nodes):
            shown = "; ".join(_amounts({k: n.get(k, 0) for k in ("CPU", "GPU", "memory", *asked)}) for n in nodes)
            raise ClusterError(
                f"step {step_name!r} asks for {_amounts(asked)}, and no node has that much; the cluster's "
                f"{len(nodes)} node(s): {shown}. "
                "Lower the request in @step(...) or .options(...), or use a larger cluster"
            )

    def width(self, resources: Resources) -> int:
        """Return four times what could run at once: workers find the next unit waiting, and the rest stays ours."""
        self._connect()
        if resources not in self._widths:
            asked = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **dict(resources.resources)}
            total = self._ray.cluster_resources()
            at_once = min((total.get(k, 0) // v for k, v in asked.items() if v), default=16)
            self._widths[resources] = max(8, 4 * int(at_once))
        return self._widths[resources]

    def launch(self, calls: Sequence[StepCall], resources: Resources, on_done: Done) -> None:
        """Submit one Ray task for the calls."""
        self._connect()
        if resources not in self._tasks:
            self.check(calls[0].name, resources)
        payload = pickle.dumps(tuple(calls), protocol=5)
        try:
            task = self._tasks.get(resources) or self._run_unit.options(**_ray_options(resources))
            ref = task.remote(payload)
        except Exception as exc:
            raise ClusterError(
                f"step {calls[0].name!r}: Ray does not take a task with {resources.describe()}: {_text(exc)}; "
                "correct the request in @step(...) or .options(...)"
            ) from exc
        self._tasks[resources] = task
        self._refs[ref] = calls, on_done
        if self._lost:  # a moment ago
            self._lose()
        ref.future().add_done_callback(lambda future: self._finished(ref, future))

    def cancel(self, *, is_forced: bool) -> None:
        """Interrupt all tasks in flight: KeyboardInterrupt in the step, or the end of its process."""
        for ref in list(self._refs):
            self._ray.cancel(ref, force=is_forced)

    def close(self) -> None:
        """End what is still in flight; the process stays connected, so that its next run starts at once."""
        self.cancel(is_forced=True)
        self._tasks.clear()
        self._is_closed.set()
        if self._lost:
            # A minute after it has lost its cluster Ray ends the whole process, from C++ and without a word of ours.
            self._ray.shutdown()

    def _watch(self, joined: local_cluster.Start) -> None:
        """Notice that the cluster has ended: what was submitted to it would be waited for until Ray gives up."""
        while not self._is_closed.wait(WATCH_S):
            if not joined.is_alive():
                self._lose()
                return

    def _lose(self) -> None:
        """Give back all that is in flight, as lost with the cluster."""
        self._lost = (
            "the local Ray cluster has ended while the run was going on: by `zenray cluster down`, or because one of "
            "its processes was killed (for want of memory?); steps that had finished are in the cache: run again"
        )
        for ref in list(self._refs):
            calls, on_done = self._refs.pop(ref, ((), None))
            failure = Failure("cluster", ClusterError.__name__, self._lost)
            if on_done is not None:
                on_done([AttemptResult(c.step_run_id, c.attempt, failure=failure) for c in calls])

    def _finished(self, ref: Any, future: Any) -> None:
        error = future.exception()
        name = type(error).__name__
        if error is not None and name != "RayTaskError" and _joined_to is not None and not _joined_to[0].is_alive():
            self._lose()
        calls, on_done = self._refs.pop(ref, ((), None))
        if on_done is None:
            return  # it was lost with the cluster
        if error is None:
            on_done(pickle.loads(future.result()))
            return
        kind = "cancelled" if name == "TaskCancelledError" else "worker"
        if name == "RayTaskError" or isinstance(error, pickle.PicklingError):
            kind = "output"
        text = _CRASHED if name == "WorkerCrashedError" else next(iter(str(error).strip().splitlines()), "no message")
        # Which of several calls ended the process is not known: each tries again alone.
        on_done([AttemptResult(c.step_run_id, c.attempt, failure=Failure(kind, name, text)) for c in calls])

    def _connect(self) -> None:
        if self._lost:
            raise ClusterError(self._lost)
        if self._ray is not None:
            return
        self._ray = _joined_by_job() if self._is_in_job else _joined()
        if _joined_to is not None:
            threading.Thread(target=self._watch, args=_joined_to[:1], name="zenray-cluster", daemon=True).start()
        context = job_context(*self._store, tracker=self._tracker)
        if self._is_in_job:  # every machine has its own environment there, and Ray brings that of the job to all
            context = replace(context, environment={})
        # ZenRay owns the retries: it knows what is committed.
        self._run_unit = self._ray.remote(max_retries=0)(_unit_runner(context))


_joined_to: "tuple[local_cluster.Start, ClusterInfo] | None" = None  # holds the cluster while it is ours


def _joined() -> Any:
    """Return the ray module, connected to the local cluster, which is started where it does not run."""
    global _joined_to
    loaded = sys.modules.get("ray")
    if loaded is not None and loaded.is_initialized():
        if _joined_to is None or loaded.get_runtime_context().gcs_address != _joined_to[1].address:
            raise ClusterError(
                "this process is connected to a Ray cluster that is not ZenRay's local one, by a ray.init() of its "
                "own; call ray.shutdown() first, or leave ray.init() out: a run joins the local cluster itself"
            )
        if local_cluster.find() == _joined_to[1]:
            return loaded
        loaded.shutdown()  # it has ended, or ZENRAY_HOME names another one
    is_first, _joined_to = _joined_to is None, None
    start = local_cluster.begin()
    import ray  # 0.5 s, while the cluster starts

    info = start.wait_ready()
    try:
        with local_cluster.joining(info), _unheard_raylet(), _handler_kept(signal.SIGTERM):
            ray.init(address=info.address, log_to_driver=False, logging_level="error", _temp_dir=info.temp_dir)
    except Exception as exc:
        raise ClusterError(
            f"cannot join the local Ray cluster at {info.address}: {exc}; "
            "end it with `zenray cluster down` and run again"
        ) from exc
    if is_first:
        # Ray's own exit handler first sleeps for 0.5 s, for log lines that it does not print here.
        atexit.register(ray.shutdown)
    _joined_to = start, info
    return ray


def _joined_by_job() -> Any:
    """Return the ray module, connected to the cluster of the job that this process is the driver of."""
    import ray

    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            "the stack's orchestrator is the cluster of a Ray job, and this process is no job's: use 'local', or the "
            "URL of a cluster, such as 'http://head:8265'"
        )
    try:
        with _unheard_raylet(), _handler_kept(signal.SIGTERM):
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as exc:
        raise ClusterError(f"the job cannot join its own Ray cluster at {address}: {exc}; see the head's logs") from exc
    return ray


@contextmanager
def _handler_kept(number: int) -> Iterator[None]:
    """Put the process's handler of a signal back: Ray's own prints a stack of C++ before it passes the signal on.

    By the C library, because Python sets handlers in the main thread only, and where a run joins is another.
    """
    sigaction = ctypes.CDLL(None).sigaction
    kept = ctypes.create_string_buffer(512)  # struct sigaction has 152 bytes on Linux, 16 on macOS
    is_kept = sigaction(number, None, kept) == 0
    try:
        yield
    finally:
        if is_kept:
            sigaction(number, kept, None)


def _cloudpickled(value: Any) -> bytes:
    from ray import cloudpickle  # 0.5 s, which a run of importable and cached steps need not spend

    return bytes(cloudpickle.dumps(value))


def _text(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {' '.join(map(str, exc.args)) or 'no message'}"


@contextmanager
def _unheard_raylet() -> Iterator[None]:
    """Keep Ray from listening to what its raylet says of lost workers: it would print that to stdout.

    ``log_to_driver=False`` does not cover it (``listen_error_messages`` in ray/_private/worker.py), and ZenRay says
    itself what became of a step.
    """
    from ray._private import worker

    listen = worker.listen_error_messages
    worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        worker.listen_error_messages = listen


def _amounts(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{k} {v / 2**30:.1f} GiB" if k == "memory" else f"{k} {v:g}" for k, v in amounts.items())


def _ray_options(resources: Resources) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
    if resources.memory_bytes:
        options["memory"] = resources.memory_bytes
    if resources.resources:
        options["resources"] = dict(resources.resources)
    if resources.accelerator_type:
        options["accelerator_type"] = resources.accelerator_type
    return options


def _unit_runner(context: JobContext) -> Callable[[bytes], bytes]:
    """Return the remote function of a run; the context travels inside it, once to each worker process."""

    def run_unit(payload: bytes) -> bytes:
        return pickle.dumps(Workplace.of(context).run(pickle.loads(payload)), protocol=5)

    return run_unit
