"""What a launcher needs to run steps in other processes: what travels there, and the process that takes it over.

The driver's side is ``job_context`` and ``reference_to``, a worker's is ``Workplace``. Nothing here knows Ray, so that
an orchestrator of a user's own package builds on it too: examples/own_components does.

Runs in: anywhere.
"""

import importlib
import importlib.util
import inspect
import os
import pickle
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zenray.errors import DefinitionError, StoreError
from zenray.fingerprint import CodePart, Fingerprint, Fingerprints, fingerprint
from zenray.fingerprint.origin import Origin, origin_of_module
from zenray.limits import let_interrupts_wake
from zenray.materializer import module_name_of, registry, use_table
from zenray.model import AttemptResult, CodeRef, JobContext, Json, StepCall
from zenray.raised import describe_failure
from zenray.settings import current_folder
from zenray.step import Step
from zenray.store import Store, open_store
from zenray.trackers import WorkerTracker
from zenray.waiting import Waiter
from zenray.worker import SLOW_UNIT_S, Attempt, begin_step

# What Ray sets in each worker process: its own settings, and the accelerators that it has given to the task.
_NOT_SENT = re.compile(
    r"RAY_.*|.*VISIBLE_(DEVICES|CORES|CHIPS|MODULES)|(RBLN|FURIOSA)_DEVICES|ZE_AFFINITY_MASK|ONEAPI_DEVICE_SELECTOR"
    r"|TPU_(CHIPS_PER_)?HOST_BOUNDS"
)


def job_context(
    store_uri: str, store_options: Mapping[str, Any], *, tracker: Mapping[str, Any] | None = None
) -> JobContext:
    """Return what workers need of this process as it is now: path, folder, environment, store and materializers.

    It can be pickled. It holds secrets, in the environment and the store's options: send it, but never log it.
    """
    return JobContext(
        sys_path=tuple(sys.path),
        cwd=str(current_folder()),
        environment={k: v for k, v in os.environ.items() if not _NOT_SENT.fullmatch(k)},
        store_uri=store_uri,
        store_options=store_options,
        materializers=registry.table(),
        tracker=tracker or {},
    )


def reference_to(step: Step[Any], dumps: Callable[[Any], bytes]) -> CodeRef:
    """Refer to a step's function for workers that import code: by module and name, or by value where that cannot be.

    A step of a notebook, or defined inside of a function, travels by value: as what ``dumps`` returns, which
    ``pickle.loads`` must understand. cloudpickle's does; DefinitionError for what it refuses.
    """
    function = step.function
    module_name, qualname = function.__module__, function.__qualname__
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", "") or ""
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not file or _function_of(found) is not function:
        return CodeRef(module_name, qualname, pickled=_pickled(step, dumps), parts=_parts(fingerprint(function)))
    return CodeRef(module_name_of(function), qualname, file=str(Path(file).absolute()))


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
        self._log = ""  # of the calls at work
        # The driver has reached the store: that it is away now is no wrong address.
        self._waiter = Waiter(self._tell)
        self._store: Store = open_store(context.store_uri, context.store_options, waiter=self._waiter, is_reached=True)
        self._functions: dict[tuple[CodeRef, str], _Known] = {}
        self._fingerprints = Fingerprints()
        self._tracker = WorkerTracker(context.tracker) if context.tracker else None
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    @classmethod
    def of(cls, context: JobContext) -> "Workplace":
        """Return this process's workplace for a run; its first call changes the process to be as the context says."""
        if cls._current is None or cls._current[0] != context or cls._current[1]._waiter.is_hurried:
            before = cls._current[0].environment if cls._current else {}
            cls._current = context, cls(context, before)
        return cls._current[1]

    def run(self, calls: Sequence[StepCall]) -> list[AttemptResult]:
        """Run calls one after another; when they turn out slow, give the rest back for other workers."""
        until = time.monotonic() + SLOW_UNIT_S
        self._log = calls[0].log_uri
        attempts: list[Attempt] = []
        for call in calls:
            if attempts and time.monotonic() > until:
                attempts.append(Attempt(AttemptResult(call.step_run_id, call.attempt, is_started=False)))
            else:
                attempts.append(self._begin_one(call))
        results = [attempt.result() for attempt in attempts]
        if any(r.failure is not None and r.failure.kind == "cancelled" for r in results):
            self._waiter.hurry()  # of what it had begun nobody wants anything any more
        return results

    def _tell(self, text: str) -> None:
        """Say what is waited for in the log of a call at work, where the driver sees it."""
        with suppress(OSError):  # that the log cannot be written is noted when the step prints
            Path(self._log).parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            with Path(self._log).open("a", encoding="utf-8") as log:
                log.write(f"zenray: {text}\n")

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
            return Attempt(failed)
        let_interrupts_wake()
        with _restored(), self._fingerprints.kept() as doubts:
            attempt = begin_step(call, known.function, self._store, worker=self._name, tracker=self._tracker)
        return attempt.doubted(known.doubt, doubts) if known.doubt or doubts else attempt

    def _known(self, call: StepCall) -> "_Known":
        """Return the step's function; what another step has changed in this process since casts doubt on it."""
        key = call.code, call.code_digest
        known = self._functions.get(key)
        if known is None:
            known = self._functions[key] = self._function(call)
        elif not known.code.problems:  # else it is never kept in the cache: nothing is left to be noticed
            code = self._fingerprints.of(known.function)
            if code is not known.code:
                known = self._functions[key] = known.again(code, call)
        return known

    def _obtained(self, call: StepCall) -> "_Known":
        function = _obtain(call.code)
        return _Known.of(function, self._fingerprints.of(function), call)

    def _function(self, call: StepCall) -> "_Known":
        """Return the step's function, made sure to be the code that the driver hashed, and what remains in doubt."""
        known = self._obtained(call)
        if not known.doubt:
            return known
        # The driver has newer code than this process imported before: an edit in a notebook or a long session.
        for name, module in list(sys.modules.items()):
            if name != "__main__" and origin_of_module(module) is Origin.FIRST_PARTY:
                del sys.modules[name]
        importlib.invalidate_caches()
        known = self._obtained(call)
        if known.doubt and known.code.source_digest != call.source_digest:
            raise StoreError(
                f"the source of step {call.name!r} or of something it uses changed while the run was going on; "
                "nothing was stored for it: run again"
            )
        return known


@dataclass(frozen=True, slots=True)
class _Known:
    """A step's function in this process, with what its code is made of where that is not what the driver hashed."""

    function: Callable[..., Any]
    code: Fingerprint
    trusted: str = ""  # the digest of its code in this process when it was what the driver hashed
    doubt: tuple[Mapping[str, Json], ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any], code: Fingerprint, call: StepCall) -> "_Known":
        is_trusted = _is_what_was_hashed(code, call)
        return cls(function, code, code.digest) if is_trusted else cls(function, code).doubted()

    def again(self, code: Fingerprint, call: StepCall) -> "_Known":
        """Return the same of its code as it is by now."""
        is_trusted = code.digest == self.trusted if self.trusted else _is_what_was_hashed(code, call)
        known = replace(self, code=code, doubt=())
        return known if is_trusted and not code.problems else known.doubted()

    def doubted(self) -> "_Known":
        return replace(self, doubt=tuple(map(asdict, self.code.parts)))


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
    """Return the parts of code as one can be compared with another, or those that no pickle has brought."""
    return frozenset(f"{p.kind} {p.digest}" for p in found.parts if not (is_brought and _is_of_pickle(p)))


def _is_of_pickle(part: CodePart) -> bool:
    is_instance = part.kind == "instance" and part.name.partition(".")[0] not in sys.modules
    return is_instance or (part.kind == "class" and not part.file)


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


def _pickled(step: Step[Any], dumps: Callable[[Any], bytes]) -> bytes:
    try:
        return dumps(step.function)
    except Exception as exc:
        names = inspect.getclosurevars(step.function)
        found = next((n for n, v in {**names.nonlocals, **names.globals}.items() if not _can_pickle(v, dumps)), None)
        raise DefinitionError(
            f"step {step.name!r} is defined inside of a function or a notebook, so it travels to its worker as a "
            f"pickle, and {f'its variable {found!r}' if found else 'something it uses'} cannot be pickled: "
            f"{type(exc).__name__}: {exc}; make that inside of the step, or move the step to the level of a module"
        ) from exc


def _can_pickle(value: Any, dumps: Callable[[Any], bytes]) -> bool:
    try:
        dumps(value)
    except Exception:  # noqa: BLE001 - whatever a foreign __reduce__ raises
        return False
    return True
