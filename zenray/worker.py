"""Runs one attempt of one step: load the inputs, call the function, save the outputs, say what happened.

Runs in: worker.
"""

import atexit
import builtins
import functools
import inspect
import logging
import math
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from zenray import artifacts
from zenray.annotations import describe, fits, outputs_of
from zenray.context import StepContext, TrackerLink, entered
from zenray.errors import MaterializerError, OutputError, StoreError, shown
from zenray.files import File, Folder
from zenray.limits import CANCELLED_LOG_S, Limit, can_limit, time_limit
from zenray.materializer import active_table
from zenray.model import AttemptResult, Failure, Json, Manifest, Slot, StepCall
from zenray.raised import cut, describe_failure
from zenray.step import active_caller
from zenray.store import Store, log_name
from zenray.store.local import fault
from zenray.threads import Threads

SLOW_UNIT_S = 0.05  # a unit of several calls gives back what it has not begun after this long
WRITES_AT_ONCE = 16  # artifacts and logs on their way to a remote store, for one process

Write = Callable[[float | None], Any]  # waits for a write that was begun, TimeoutError after so many seconds


def begin_step(
    call: StepCall,
    function: Callable[..., Any],
    store: Store,
    *,
    worker: str,
    is_tee: bool = False,
    tracker: TrackerLink | None = None,
) -> "Attempt":
    """Run one attempt up to its writes, which go on for a remote store while the next call of the unit runs.

    Never raises for what the step does: a failure is part of the result.
    """
    started_at = time.time()
    outputs: tuple[Manifest, ...] = ()
    writes: list[Write] = []
    failure: Failure | None = None
    notes: tuple[str, ...] = ()
    is_over = False
    log = Path(call.log_uri)
    context = StepContext(call.step_run_id.partition("/")[0], call.name, call.attempt, tracker)
    limit = Limit(_limit_s(call))
    try:
        with capture(log, is_tee=is_tee, is_followed=not call.is_tiny):
            try:
                with entered(context):
                    prepared = _run(call, function, store, limit, is_own_process=not is_tee)
                outputs = tuple(p.manifest for p in prepared)
                writes = [_begin(p.publish, store) for p in prepared]
            except BaseException as exc:  # noqa: BLE001 - this is where a step's errors end
                failure = describe_failure(exc)
                if failure.kind != "cancelled":
                    sys.stderr.write(failure.traceback)
            is_over = True
            notes = _let_go(context)
            if limit.seconds is not None and not can_limit():
                notes = (*notes, "its timeout is not watched: it ran in a thread that no signal can interrupt")
            if limit.is_reached and failure is None:
                notes = (*notes, "it was told that its time is up; what it gave then is not kept in the cache")
    except OSError as exc:
        unwritten = fault(exc, "write the log", str(log))
        if is_over or failure is not None:
            notes = (*notes, str(unwritten))
        else:
            failure = describe_failure(unwritten)
    size = _size_bytes(log)
    result = AttemptResult(
        step_run_id=call.step_run_id,
        attempt=call.attempt,
        outputs=outputs if failure is None else (),
        failure=failure,
        started_at=started_at,
        ended_at=time.time(),
        worker=worker,
        log_uri=call.log_uri if size else "",
        log_bytes=size,
        is_cacheable=not limit.is_reached,
        notes=notes,
        metadata=dict(context.metadata),
        series=context.series,
    )
    return Attempt(result, writes, _begin_log(call, log, store) if size else None)


def _size_bytes(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:  # nothing was printed, or nobody may look: then it is noted already
        return 0


class Attempt:
    """An attempt whose function has returned, and whose writes may still be on their way to the store."""

    def __init__(self, result: AttemptResult, writes: Sequence[Write] = (), log: Write | None = None) -> None:
        self._result, self._writes, self._log = result, writes, log

    def doubted(self, code: tuple[Mapping[str, Json], ...], notes: Sequence[str]) -> "Attempt":
        """Return the attempt with the parts of its code in this process, and its result not fit to be kept."""
        result = replace(self._result, is_cacheable=False, code=code, notes=(*self._result.notes, *notes))
        return Attempt(result, self._writes, self._log)

    def result(self) -> AttemptResult:
        """Wait until everything is in the store; a write that failed fails the attempt, a log's is only noted.

        An interrupt is the end of it: what is on its way then may arrive, or may not.
        """
        result = self._result
        for write in self._writes:
            if not _is_cancelled(result):
                result = _after(write, result)
        if self._log is not None:
            try:
                result = replace(result, log_uri=self._log(CANCELLED_LOG_S if _is_cancelled(result) else None))
            except (StoreError, TimeoutError) as exc:
                why = str(exc) or "there was no time to send it"
                result = replace(result, notes=(*result.notes, f"its log stays at {result.log_uri!r}: {why}"))
            except KeyboardInterrupt as exc:
                result = replace(result, outputs=(), failure=describe_failure(exc))
        write_s = time.time() - result.ended_at if self._writes else 0.0
        return replace(result, ended_at=result.ended_at + write_s, write_s=write_s)


def _is_cancelled(result: AttemptResult) -> bool:
    return result.failure is not None and result.failure.kind == "cancelled"


def _after(write: Write, result: AttemptResult) -> AttemptResult:
    """Wait for a write and return the result as it is then."""
    try:
        write(None)
    except BaseException as exc:  # noqa: BLE001 - this is where a step's errors end
        failure = describe_failure(exc)
        if result.failure is None or failure.kind == "cancelled":
            return replace(result, outputs=(), failure=failure)
    return result


def _begin(task: Callable[[], Any], store: Store) -> Write:
    """Begin a write and return what waits for it; one to the local disk is done at once."""
    if store.local_path("") is None:
        return partial(_wait, _threads().submit(task))
    done = task()
    return lambda timeout_s: done


def _wait(future: "Future[Any]", timeout_s: float | None) -> Any:
    """Wait in short pieces: Ray's interrupt reaches a thread that runs, not one that sleeps."""
    until = time.monotonic() + timeout_s if timeout_s is not None else math.inf
    while not future.done() and time.monotonic() < until:
        wait([future], timeout=0.1)
    return future.result(timeout=0)


@functools.cache
def _threads() -> Threads:
    return Threads(WRITES_AT_ONCE, "zenray-writes")


def _begin_log(call: StepCall, log: Path, store: Store) -> Write | None:
    """Send a finished log to a remote store, where every machine can read it; on a local one it lies already."""
    if store.local_path("") is not None:
        return None
    run_id, _, step = call.step_run_id.partition("/")
    name = log_name(run_id, step, call.attempt)

    def upload() -> str:
        store.put_file(name, log)
        return f"{store.uri}/{name}"

    return _begin(upload, store)


def _let_go(context: StepContext) -> tuple[str, ...]:
    """Close a step's context; a tracker that fails does not fail the step."""
    try:
        context.close()
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - a foreign client can raise anything
        return (f"the experiment tracker could not be closed: {type(exc).__name__}: {cut(str(exc), 200)}",)
    return ()


def _run(
    call: StepCall, function: Callable[..., Any], store: Store, limit: Limit, *, is_own_process: bool
) -> list[artifacts.Prepared]:
    args, kwargs = pickle.loads(call.arguments)
    values = [artifacts.load(m, store, allow_pickle=ok) for m, ok in zip(call.inputs, call.pickle_inputs, strict=True)]
    files: list[File | Folder] = []
    args, kwargs = fill((args, kwargs), values, files)
    # Inside of a step other steps are plain functions, also where the pipeline waits in this same thread.
    token = active_caller.set(None)
    try:
        with _in_one_process(), time_limit(limit, step_name=call.name, is_own_process=is_own_process):
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):
                import asyncio

                result = asyncio.run(result)
    finally:
        active_caller.reset(token)
    for file in files:
        if not file.is_unchanged():
            raise StoreError(f"the input {file!r} changed while step {call.name!r} was reading it; run again")
    prepared: list[artifacts.Prepared] = []
    try:
        for name, value in _outputs(call.name, function, result):
            prepared.append(_prepared(name, value, call, store))
    except BaseException:
        for done in prepared:
            done.discard()
        raise
    return prepared


def _prepared(name: str, value: Any, call: StepCall, store: Store) -> artifacts.Prepared:
    try:
        return artifacts.prepare(
            value, store, table=active_table(), allow_pickle=call.allow_pickle, producer=call.step_run_id
        )
    except MaterializerError as exc:
        raise MaterializerError(f"step {call.name!r}, output {name!r}: {exc}") from exc


@contextmanager
def _in_one_process() -> Iterator[None]:
    """End a child that the block has forked where it comes out of it: the result is its parent's to give."""
    pid = os.getpid()
    code = 1
    try:
        yield
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        raise
    except BaseException:
        if os.getpid() != pid:
            traceback.print_exc()
        raise
    finally:
        if os.getpid() != pid:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):  # whatever it is by now, nothing may keep the child alive
                    stream.flush()
            os._exit(code)


def _limit_s(call: StepCall) -> float | None:
    """Return how long an attempt that starts now may take."""
    limits = [] if call.timeout_s is None else [call.timeout_s]
    if call.deadline_at is not None:
        limits.append(max(0.0, call.deadline_at - time.time()))
    return min(limits, default=None)


_declared = functools.lru_cache(maxsize=None)(outputs_of)  # the annotations do not travel: not all of them pickle


def _outputs(name: str, function: Callable[..., Any], result: Any) -> list[tuple[str, Any]]:
    """Return what a step returned by the names of its outputs, compared with what it declares."""
    outputs, is_multiple = _declared(function, name)
    values = (result,)
    if is_multiple:
        if not isinstance(result, tuple | list) or len(result) != len(outputs):
            names = ", ".join(o.name for o in outputs)
            got = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
            raise OutputError(f"step {name!r} declares {len(outputs)} outputs ({names}) and returned {got}")
        values = tuple(result)
    for output, value in zip(outputs, values, strict=True):
        if output.annotation is not None and not fits(value, output.annotation):
            raise OutputError(
                f"step {name!r}: output {output.name!r} is annotated {describe(output.annotation)}, and the step "
                f"returned {type(value).__name__}: {shown(value, limit=80)}; correct the annotation or the return value"
            )
        if output.annotation is type(None) and value is not None:
            raise OutputError(f"step {name!r} is annotated to return None and returned {type(value).__name__}")
    return [(output.name, value) for output, value in zip(outputs, values, strict=True)]


def fill(tree: Any, values: list[Any], files: list[File | Folder]) -> Any:
    """Return an argument tree with every Slot replaced by its value; collects the outside inputs it meets."""
    kind = type(tree)
    if kind is Slot:
        return values[tree.index]
    if kind is list:
        return [fill(v, values, files) for v in tree]
    if kind is tuple:
        return tuple(fill(v, values, files) for v in tree)
    if kind is dict:
        return {k: fill(v, values, files) for k, v in tree.items()}
    if kind in (File, Folder):
        files.append(tree)
    return tree


@contextmanager
def capture(log: Path, *, is_tee: bool, is_followed: bool = True) -> Iterator[None]:
    """Send everything this process prints to a log file, also what C code and child processes print.

    With ``is_tee`` only Python's own streams are taken, and the terminal still shows them: for steps that run in the
    user's process. Where nothing was printed there is no log. A log that nobody follows while it grows is written at
    the end: making and removing a file costs as much as a tiny step. What is done to the root logger ends with the
    block: its handlers would write into a log that is closed, and steps would depend on who ran before in the process.
    """
    root = logging.getLogger()
    level, handlers = root.level, root.handlers.copy()
    _add_default_handler()
    try:
        if is_followed:
            log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(log, "ab", buffering=0) as file, _tee(file) if is_tee else _redirect(file.fileno()):
                yield
            if log.stat().st_size == 0:
                log.unlink()
        else:
            spool = _spool()
            with _tee(spool) if is_tee else _redirect(spool.fileno()):
                yield
            if os.fstat(spool.fileno()).st_size:
                _empty_into(spool, log)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@functools.cache
def _spool() -> Any:
    """Return this process's nameless file for what tiny steps print."""
    spool = tempfile.TemporaryFile(prefix="zenray-", buffering=0)
    atexit.register(spool.close)
    return spool


def _empty_into(spool: Any, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    spool.seek(0)
    with open(log, "ab") as file:
        shutil.copyfileobj(spool, file)
    spool.seek(0)
    spool.truncate()


def _add_default_handler() -> None:
    root = logging.getLogger()
    if any(type(h) is logging.StreamHandler for h in root.handlers):
        return  # the user's own configuration prints already
    handler = _CurrentStderr()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    if root.level in (logging.NOTSET, logging.WARNING):
        root.setLevel(logging.INFO)


class _CurrentStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


@contextmanager
def _redirect(descriptor: int) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # A stream of our own, line by line: Ray's worker may have replaced Python's, or buffer it in blocks.
    sys.stdout = builtins.open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = builtins.open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    ours = sys.stdout, sys.stderr
    try:
        yield
    finally:
        try:
            for stream in ours:
                if not stream.closed:
                    stream.flush()
        finally:
            sys.stdout, sys.stderr = streams
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])


@contextmanager
def _tee(file: Any) -> Iterator[None]:
    streams = sys.stdout, sys.stderr
    tees = _Tee(streams[0], file), _Tee(streams[1], file)
    sys.stdout, sys.stderr = tees
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for tee in tees:
            tee.end()


class _Tee:
    def __init__(self, stream: Any, file: Any) -> None:
        self._stream = stream
        self._file = file

    def end(self) -> None:
        """Write to the terminal alone from now on: whatever the step gave this stream to may outlive the log."""
        self._file = None

    def write(self, text: str) -> int:
        file = self._file  # a thread of the step may still print while it ends
        if file is not None:
            file.write(text.encode("utf-8", "backslashreplace"))
        try:
            return int(self._stream.write(text) or len(text))
        except UnicodeEncodeError:  # half of a surrogate pair, or a terminal that is not UTF-8
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
