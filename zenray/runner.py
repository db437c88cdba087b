"""Runs a pipeline on a stack: opens the stores, takes the lease, lets the engine work, and closes the books.

Runs in: driver.
"""

import getpass
import json
import os
import platform
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zenray import artifacts
from zenray.cluster import RayLauncher
from zenray.committed import Committed
from zenray.context import enclosing_runs
from zenray.engine import Coordinator
from zenray.errors import ConfigError, RunCancelled, StepFailed, ZenRayError, is_huge, shown
from zenray.inline import InlineLauncher
from zenray.journal import Observer, StepState
from zenray.launcher import Launcher, launcher_factory
from zenray.masking import masked_text, masked_url
from zenray.metadata.ledger import Ledger
from zenray.metadata.records import RunRecord, RunState
from zenray.metadata.writer import LedgerWriter
from zenray.model import Json, Status
from zenray.recovery import how_ended, mark_lost_runs
from zenray.returned import brief, named, references
from zenray.settings import home
from zenray.stack import THIS_CLUSTER, Stack
from zenray.step import calling
from zenray.stopping import StopRequest
from zenray.store import Store, ledger_name, open_store
from zenray.trackers import TrackedRun, open_for_run
from zenray.trackers.reporting import Reporter
from zenray.waiting import Waiter

LEASE_S = 30.0
MAX_PARAMETER = 10_000  # characters of a recorded parameter that is no number or text
SHOWN = 40  # characters of a returned value that are still shown in the summary


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to run: the pipeline's function with its arguments, and how."""

    pipeline: str
    function: Callable[..., Any]
    parameters: Mapping[str, Any]
    stack: Stack
    source_file: str = ""
    use_cache: bool = True
    run_id: str = ""  # empty, as the next two, unless somebody else has asked for the run from afar
    user: str = ""
    git_revision: str = ""


class RunObserver(Observer):
    """Is told about the run as a whole too."""

    def on_start(self, run_id: str, request: RunRequest) -> None:
        """The run is recorded and about to begin."""

    def on_end(self, status: Status, states: Mapping[str, StepState], error: BaseException | None) -> None:
        """Everything is committed."""

    def on_step(self, state: StepState) -> None:
        """A step run was added or has changed."""

    def on_note(self, text: str) -> None:
        """Something the user should know."""

    def on_remark(self, text: str) -> None:
        """Something for the summary."""


def new_run_id() -> str:
    """Return an id that sorts by time and is not guessable."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(3)


def owner_name() -> str:
    """Return who this process is, in a form that tells it from a later process of the same number."""
    return f"{socket.gethostname()}:{os.getpid()}:{_process_start()}"


def run(request: RunRequest, observer: RunObserver) -> str:
    """Execute a pipeline and return its run id once everything is committed.

    Raises StepFailed (the step's own exception as its cause), RunCancelled, or what the pipeline's function raised.
    Whatever happens, the run is recorded as ended.
    """
    stack, waiter = request.stack, Waiter(observer.on_note)
    store = open_store(stack.artifact_store, stack.artifact_store_options, waiter=waiter)
    tracking = _tracking(request)
    tracker = open_for_run(tracking) if tracking else None
    launcher = _launcher(stack, tracking)  # before there is a run: a package's may refuse
    store.reach()
    with Ledger(stack.metadata_store, **stack.metadata_store_options, waiter=waiter) as ledger:
        store.create_named(ledger_name(ledger.ledger_id()), masked_url(stack.metadata_store).encode())
        run_id = request.run_id or new_run_id()
        record = _record(run_id, request)
        fence = ledger.create_run(record, owner=owner_name(), ttl_s=LEASE_S)
        reporter = None
        if tracker is not None:
            ended = partial(how_ended, ledger)
            reporter = Reporter(tracker, _tracked(record), store=store, observer=observer, ended=ended)
        pack = partial(artifacts.pack, store=store, run_id=run_id)
        stop = StopRequest()
        with LedgerWriter(ledger, run_id, fence, ttl_s=LEASE_S, before_commit=pack, on_stop=stop) as writer:
            committed = Committed(reporter or observer, writer, is_inline=launcher is None or launcher.is_blocking)
            coordinator = Coordinator(
                run_id,
                reader=ledger,
                writer=writer,
                store=store,
                launcher=launcher or InlineLauncher(store, tracker=reporter),
                observer=committed,
                log_root=_log_root(store),
                use_cache=request.use_cache,
                reap=partial(mark_lost_runs, ledger),
                outer=enclosing_runs(),
            )
            observer.on_start(run_id, request)
            stop.reaches(coordinator, is_inline=launcher is None)
            try:
                _execute(
                    request, coordinator, writer, observer, reporter, waiter=waiter, stop=stop, committed=committed
                )
            except RunCancelled as exc:
                raise stop.explained(exc) from exc.__cause__
    return run_id


def _execute(
    request: RunRequest,
    coordinator: Coordinator,
    writer: LedgerWriter,
    observer: RunObserver,
    reporter: Reporter | None,
    *,
    waiter: Waiter,
    stop: StopRequest,
    committed: Committed,
) -> None:
    status, outputs = Status.FAILED, None
    error: BaseException | None = None
    try:
        outputs = _call(request, coordinator)
        status = Status.SUCCEEDED
    except (KeyboardInterrupt, RunCancelled) as exc:
        status, error = Status.CANCELLED, exc
        waiter.hurry()
        coordinator.cancel()
        raise RunCancelled(f"run {coordinator.run_id} was cancelled") from exc
    except BaseException as exc:
        error = exc
        coordinator.cancel()
        raise
    finally:
        stop.over()
        with _undisturbed(waiter):
            coordinator.close()
            changes = RunState(coordinator.run_id, status, time.time(), _error_json(error), outputs)
            try:
                writer.record(changes)
                writer.flush()
            except ZenRayError as exc:
                status, error = Status.FAILED, exc  # as the records will say, once somebody looks at them
                if waiter.is_hurried:
                    raise RunCancelled(f"run {coordinator.run_id} was cancelled, and its end is lost: {exc}") from exc
                raise
            finally:
                if reporter is not None:
                    observer.on_remark(reporter.close(status))
                if status is Status.SUCCEEDED:
                    observer.on_remark(_returned(outputs, coordinator))
                observer.on_end(status, committed.as_recorded(coordinator.steps, observer), error)


@contextmanager
def _undisturbed(waiter: Waiter) -> Iterator[None]:
    """Write the last records whatever comes: they are what is left of the run. Ctrl-C only ends a wait for a server."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hurry(number: int, frame: object) -> None:
        waiter.hurry()

    before = {number: signal.signal(number, hurry) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _call(request: RunRequest, coordinator: Coordinator) -> Json:
    """Call the pipeline's function, wait for every step, and return what it returned, by reference."""
    with _active(coordinator):
        returned = request.function(**request.parameters)
        coordinator.finish()
    failed = coordinator.first_failure()
    if failed is not None:
        raise coordinator.failure(failed)
    return references(returned)


@contextmanager
def _active(coordinator: Coordinator) -> Iterator[None]:
    with calling(coordinator):
        try:
            yield
        except StepFailed:
            # A step failed that the pipeline function waited for; what does not depend on it still runs to its end.
            coordinator.finish()
            raise


def _returned(outputs: Json, coordinator: Coordinator) -> str:
    """Return the small values among what the pipeline returned, as a line of the summary."""
    texts = []
    for returned in named(outputs).values():
        text = repr(returned.value)
        if returned.step_run:
            state = coordinator.steps[returned.step_run]
            index = [o.name for o in state.step.outputs].index(returned.output)
            text = brief(state.outputs[index], limit=SHOWN)
        if text and len(text) <= SHOWN:
            texts.append(f"{returned.name} = {text}")
    return f"returned: {', '.join(texts[:10])}" if texts else ""


def _launcher(stack: Stack, tracking: Mapping[str, Any]) -> Launcher | None:
    """Return the launcher of a stack, None for the inline one, which needs what belongs to the run."""
    if stack.orchestrator == "inline":
        return None
    uri, options = stack.artifact_store, stack.artifact_store_options
    if stack.orchestrator in ("local", THIS_CLUSTER):
        is_in_job = stack.orchestrator == THIS_CLUSTER
        return RayLauncher(store_uri=uri, store_options=options, tracker=tracking, is_in_job=is_in_job)
    make = launcher_factory(stack.orchestrator)
    given: dict[str, Any] = {"store_uri": uri, "store_options": options, "tracker": tracking}
    try:
        return make(stack.orchestrator, stack.orchestrator_options, **given)
    except ZenRayError:
        raise
    except Exception as exc:
        raise ConfigError(
            f"the orchestrator {masked_url(stack.orchestrator)!r} could not be opened: "
            f"{type(exc).__name__}: {masked_text(str(exc))}; "
            "repair the package that provides it"
        ) from exc


def _tracking(request: RunRequest) -> Mapping[str, Any]:
    """Return the options of the run's experiment tracker, the same here and in the workers; empty without one."""
    options = request.stack.experiment_tracker
    return {**options, "pipeline": request.pipeline} if options else {}


def _tracked(record: RunRecord) -> TrackedRun:
    tags = {"stack": record.stack, "user": record.user, "git_revision": record.git_revision}
    tags["pipeline"] = record.pipeline
    return TrackedRun(record.run_id, record.pipeline, record.parameters, {k: v for k, v in tags.items() if v})


def _log_root(store: Store) -> str:
    """Return a folder of this machine for logs: in the store where it is one, so that they need no copying."""
    return str(store.local_path("") or home()).rstrip("/")


def _record(run_id: str, request: RunRequest) -> RunRecord:
    return RunRecord(
        run_id=run_id,
        pipeline=request.pipeline,
        status=Status.RUNNING,
        started_at=time.time(),
        parameters={name: _recorded(value) for name, value in request.parameters.items()},
        stack=request.stack.name,
        user=request.user or user_name(),
        host=socket.gethostname(),
        versions={"zenray": version("zenray"), "ray": version("ray"), "python": platform.python_version()},
        git_revision=request.git_revision
        or git_revision(Path(request.source_file).parent if request.source_file else Path.cwd()),
        source_file=request.source_file,
    )


def _recorded(value: Any) -> Json:
    """Return a parameter as it is recorded: what JSON can express as it is, all else, or what is large, as text."""
    if value is None or (isinstance(value, bool | int | float | str) and not is_huge(value)):
        return value
    try:
        text = json.dumps(value)
        if len(text) <= MAX_PARAMETER and json.loads(text) == value:
            return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        pass
    return shown(value, limit=MAX_PARAMETER)


def user_name() -> str:
    """Return who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def git_revision(folder: Path) -> str:
    """Read the commit of the checkout a file lies in, from git's own files: starting git would cost 5 ms a run."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        head = parent / ".git" / "HEAD"
        if head.is_file():
            with suppress(OSError):
                text = head.read_text().strip()
                ref = head.parent / text.removeprefix("ref: ")
                return text if not text.startswith("ref: ") else ref.read_text().strip() if ref.is_file() else ""
    return ""


def _process_start() -> str:
    stat = Path(f"/proc/{os.getpid()}/stat")
    if stat.exists():
        return stat.read_text().rpartition(")")[2].split()[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(os.getpid())], capture_output=True, text=True, check=False)
    return "-".join(shown.stdout.split())


def _error_json(error: BaseException | None) -> dict[str, Json] | None:
    if error is None:
        return None
    kind = "user" if not isinstance(error, ZenRayError) else type(error).__name__
    return {"kind": kind, "type": type(error).__name__, "message": str(error), "traceback": ""}
