"""The launcher on Ray: one generic remote function runs every step.

Runs in: driver; ``_run_unit`` in: worker.
"""

import atexit
import ctypes
import importlib
import importlib.util
import inspect
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zenray import local_cluster
from zenray.errors import ClusterError, DefinitionError, StoreError
from zenray.fingerprint import Fingerprint, State, fingerprint, watched
from zenray.fingerprint.origin import Origin, origin_of_module
from zenray.launcher import Done
from zenray.materializer import module_name_of, registry, use_table
from zenray.model import AttemptResult, CodeRef, Failure, JobContext, Json, Resources, StepCall
from zenray.settings import current_folder
from zenray.step import Step
from zenray.store import Store, open_store
from zenray.trackers import WorkerTracker
from zenray.worker import SLOW_UNIT_S, Attempt, begin_step, describe_failure

# What Ray sets in each worker process: its own settings, and the accelerators that it has given to the task.
_NOT_SENT = re.compile(
    r"RAY_.*|.*VISIBLE_(DEVICES|CORES|CHIPS|MODULES)|(RBLN|FURIOSA)_DEVICES|ZE_AFFINITY_MASK|ONEAPI_DEVICE_SELECTOR"
    r"|TPU_(CHIPS_PER_)?HOST_BOUNDS"
)
_CRASHED = "the step's process ended while it ran: a crash in native code, os._exit(), or a kill, as for its memory"
WATCH_S = 0.5  # how often a run looks whether its cluster still is there: a millisecond or two each time


class RayLauncher:
    """Runs units of step calls as Ray tasks on the warm local cluster, which is joined on first use."""

    is_blocking = False

    def __init__(
        self, *, store_uri: str, store_options: Mapping[str, Any], tracker: Mapping[str, Any] | None = None
    ) -> None:
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
            found = self._references[step.function] = reference_to(step)
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
        self._ray = _joined()
        if _joined_to is not None:
            threading.Thread(target=self._watch, args=_joined_to[:1], name="zenray-cluster", daemon=True).start()
        context = job_context(*self._store, tracker=self._tracker)
        # ZenRay owns the retries: it knows what is committed.
        self._run_unit = self._ray.remote(max_retries=0)(_unit_runner(context))


def job_context(
    store_uri: str, store_options: Mapping[str, Any], *, tracker: Mapping[str, Any] | None = None
) -> JobContext:
    """Return what workers need of this process as it is now: path, folder, environment, store and materializers."""
    return JobContext(
        sys_path=tuple(sys.path),
        cwd=str(current_folder()),
        environment={k: v for k, v in os.environ.items() if not _NOT_SENT.fullmatch(k)},
        store_uri=store_uri,
        store_options=store_options,
        materializers=registry.table(),
        tracker=tracker or {},
    )


def reference_to(step: Step[Any]) -> CodeRef:
    """Refer to a step's function for workers that import code: by module and name, or by value where that cannot be."""
    function = step.function
    module_name, qualname = function.__module__, function.__qualname__
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", "") or ""
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not file or _function_of(found) is not function:
        return CodeRef(module_name, qualname, pickled=_pickled(step), parts=_parts(fingerprint(function)))
    return CodeRef(module_name_of(function), qualname, file=str(Path(file).absolute()))


_joined_to: "tuple[local_cluster.Start, local_cluster.ClusterInfo] | None" = None  # holds the cluster while it is ours


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


def _pickled(step: Step[Any]) -> bytes:
    from ray import cloudpickle

    try:
        return bytes(cloudpickle.dumps(step.function))
    except Exception as exc:
        names = inspect.getclosurevars(step.function)
        found = next((n for n, v in {**names.nonlocals, **names.globals}.items() if not _can_pickle(v)), None)
        raise DefinitionError(
            f"step {step.name!r} is defined inside of a function or a notebook, so it travels to its worker as a "
            f"pickle, and {f'its variable {found!r}' if found else 'something it uses'} cannot be pickled: "
            f"{_text(exc)}; make that inside of the step, or move the step to the level of a module"
        ) from exc


def _can_pickle(value: Any) -> bool:
    from ray import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001 - whatever a foreign __reduce__ raises
        return False
    return True


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


class Workplace:
    """A worker process prepared for one run: the driver's path, folder and environment, and the steps' functions."""

    _current: "tuple[JobContext, Workplace] | None" = None

    def __init__(self, context: JobContext, before: Mapping[str, str]) -> None:
        for name in before.keys() - context.environment.keys():
            os.environ.pop(name, None)
        sys.path[:] = list(dict.fromkeys([*context.sys_path, *sys.path]))
        os.environ.update(context.environment)
        if Path(context.cwd).is_dir():
            os.chdir(context.cwd)
        use_table(context.materializers)
        self._store: Store = open_store(context.store_uri, context.store_options)
        self._functions: dict[tuple[CodeRef, str], _Known] = {}
        self._tracker = WorkerTracker(context.tracker) if context.tracker else None
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    @classmethod
    def of(cls, context: JobContext) -> "Workplace":
        """Return this process's workplace for a run, made on its first call."""
        if cls._current is None or cls._current[0] != context:
            before = cls._current[0].environment if cls._current else {}
            cls._current = context, cls(context, before)
        return cls._current[1]

    def run(self, calls: Sequence[StepCall]) -> list[AttemptResult]:
        """Run calls one after another; when they turn out slow, give the rest back for other workers."""
        until = time.monotonic() + SLOW_UNIT_S
        attempts: list[Attempt] = []
        for call in calls:
            if attempts and time.monotonic() > until:
                attempts.append(Attempt(AttemptResult(call.step_run_id, call.attempt, is_started=False), []))
            else:
                attempts.append(self._begin_one(call))
        return [attempt.result() for attempt in attempts]

    def _begin_one(self, call: StepCall) -> Attempt:
        if not call.has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all devices visible to a task that asked for none
        try:
            known = self._known(call)
        except BaseException as exc:  # noqa: BLE001 - importing the user's modules can raise anything
            failure = describe_failure(exc)
            now = time.time()
            failed = AttemptResult(
                call.step_run_id, call.attempt, failure=failure, started_at=now, ended_at=now, worker=self._name
            )
            return Attempt(failed, [])
        with _restored():
            attempt = begin_step(call, known.function, self._store, worker=self._name, tracker=self._tracker)
        return attempt.doubted(known.doubt) if known.doubt else attempt

    def _known(self, call: StepCall) -> "_Known":
        """Return the step's function; what another step has changed in this process since casts doubt on it."""
        key = call.code, call.code_digest
        known = self._functions.get(key)
        if known is None:
            known = self._functions[key] = self._function(call)
        elif known.state is not None and not known.state.holds():
            known = self._functions[key] = _Known.of(known.function, call)
        return known

    def _function(self, call: StepCall) -> "_Known":
        """Return the step's function, made sure to be the code that the driver hashed, and what remains in doubt."""
        known = _Known.of(_obtain(call.code), call)
        if not known.doubt:
            return known
        # The driver has newer code than this process imported before: an edit in a notebook or a long session.
        for name, module in list(sys.modules.items()):
            if name != "__main__" and origin_of_module(module) is Origin.FIRST_PARTY:
                del sys.modules[name]
        importlib.invalidate_caches()
        known = _Known.of(_obtain(call.code), call)
        if known.doubt and known.source_digest != call.source_digest:
            raise StoreError(
                f"the source of step {call.name!r} or of something it uses changed while the run was going on; "
                "nothing was stored for it: run again"
            )
        return known


@dataclass(frozen=True, slots=True)
class _Known:
    """A step's function in this process, with what its code is made of where that is not what the driver hashed."""

    function: Callable[..., Any]
    state: State | None
    source_digest: str
    doubt: tuple[Mapping[str, Json], ...]

    @classmethod
    def of(cls, function: Callable[..., Any], call: StepCall) -> "_Known":
        found, state = watched(function)
        if found.problems:
            state = None  # it is never kept in the cache: nothing is left to be noticed
        doubt = () if _is_what_was_hashed(found, call) else tuple(map(asdict, found.parts))
        return cls(function, state, found.source_digest, doubt)


@contextmanager
def _restored() -> Iterator[None]:
    """Undo what the block does to this process's environment, path and folder: the next step may be another's."""
    # The bytes behind os.environ: comparing its own items would decode them all, at 20 times the cost.
    environment: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
    before, path, folder = environment.copy(), sys.path.copy(), _folder()
    try:
        yield
    finally:
        if environment != before:
            for name in environment.keys() - before.keys():
                del os.environb[name]
            os.environb.update(before)
        if sys.path != path:
            sys.path[:] = path
        if _folder() != folder:
            with suppress(OSError):  # that folder is gone: the step has removed what it was not given
                os.chdir(folder)


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a Path would cost as much again
    except FileNotFoundError:  # it was removed
        return ""


def _is_what_was_hashed(found: Fingerprint, call: StepCall) -> bool:
    """Say whether a step's function is the code that the driver took the fingerprint of.

    A pickle brings functions and classes along, classes in another order than they were written, and no statements
    that run on import. What counts there is that all that it found in this process is what the driver has.
    """
    if not call.code.pickled:
        return found.digest == call.code_digest
    return not found.problems and _parts(found, is_brought=True) <= call.code.parts


def _parts(found: Fingerprint, *, is_brought: bool = False) -> frozenset[str]:
    return frozenset(
        f"{p.kind} {p.digest}" for p in found.parts if not (is_brought and p.kind == "class" and not p.file)
    )


def _obtain(code: CodeRef) -> Callable[..., Any]:
    function: Callable[..., Any] = pickle.loads(code.pickled) if code.pickled else _import(code)
    return function


def _import(code: CodeRef) -> Callable[..., Any]:
    module = sys.modules.get(code.module)
    if module is None or Path(getattr(module, "__file__", None) or "").absolute() != Path(code.file):
        module = _load(code)
    found: Any = module
    for part in code.qualname.split("."):
        found = getattr(found, part)
    function = _function_of(found)
    if function is None:
        raise StoreError(f"{code.file}: {code.qualname!r} is not a step any more; run again")
    return function


def _function_of(found: Any) -> Callable[..., Any] | None:
    """Return the function of the step that a name stands for, also under decorators above ``@step``."""
    while found is not None and not isinstance(found, Step):
        found = getattr(found, "__wrapped__", None)
    return None if found is None else found.function


def _load(code: CodeRef) -> Any:
    found = importlib.util.find_spec(code.module) if code.module.isidentifier() or "." in code.module else None
    if found is not None and found.origin and Path(found.origin).absolute() == Path(code.file):
        return importlib.import_module(code.module)
    spec = importlib.util.spec_from_file_location(code.module, code.file)
    if spec is None or spec.loader is None:
        raise StoreError(f"the script {code.file!r} cannot be loaded on this worker")
    module = importlib.util.module_from_spec(spec)
    sys.modules[code.module] = module
    spec.loader.exec_module(module)
    return module
