"""The run engine: takes step calls, looks them up in the cache, launches what is left, commits what comes back.

Runs in: driver.

The coordinator is the only writer of its run. Step calls come from the thread that runs the pipeline function,
results from the launcher's threads; both only append to queues. Everything else happens in ``_turn``, under one
lock: in a thread of its own, or, with a blocking launcher, in the pipeline's thread while it waits.
"""

import pickle
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from zenray import artifacts, cache, policy, storable
from zenray.arguments import ArgumentTree
from zenray.errors import ClusterError, RunCancelled, StepFailed, ZenRayError
from zenray.fingerprint import Fingerprint, Fingerprints
from zenray.futures import Artifact
from zenray.graph import Graph
from zenray.journal import Journal, Observer, RecordWriter, StepState
from zenray.launcher import Launcher
from zenray.limits import CANCELLED_LOG_S
from zenray.lookup import POLL_S, CacheReader, Lookup, Sorted
from zenray.metadata.records import ArtifactRecord, CacheEntry, Change, ClaimEnd
from zenray.model import AttemptResult, Failure, Manifest, Resources, Status, StepCall
from zenray.raised import exception_of
from zenray.relevance import CustomMaterializers
from zenray.step import Step
from zenray.store import Store, log_name

UNIT_S = 0.02  # step calls shorter than this travel together, up to about this long
MAX_UNIT = 64
CANCEL_GRACE_S = 1.0


class Coordinator:
    """Runs the steps of one run."""

    def __init__(
        self,
        run_id: str,
        *,
        reader: CacheReader,
        writer: RecordWriter,
        store: Store,
        launcher: Launcher,
        observer: Observer,
        log_root: str,
        use_cache: bool = True,
        reap: Callable[[], object] = lambda: None,
        outer: Collection[str] = (),
    ) -> None:
        self.run_id = run_id
        self.steps: dict[str, StepState] = {}
        self._store = store
        self._lookup = Lookup(run_id, reader=reader, store=store, reap=reap, outer=outer)
        self._journal = Journal(run_id, writer, use_cache=use_cache)
        self._launcher, self._observer = launcher, observer
        self._log_root, self._use_cache = log_root, use_cache
        self._graph = Graph()
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)  # for the engine's thread
        # For those that wait for step runs; with a lock of its own, because the engine may hold the other one for long
        # while a server is away, and Ctrl-C does not get through to who comes out of a wait and wants that lock back.
        self._moved, self._moves = threading.Condition(), 0
        self._awaited: list[Callable[[], bool]] = []  # what they wait for: nobody is woken for anything else
        self._results: deque[AttemptResult] = deque()
        self._fingerprints = Fingerprints()
        self._codes: dict[Any, Fingerprint] = {}  # of this run's steps, by function
        self._noted: set[str] = set()
        self._checked: set[Callable[..., Any]] = set()  # functions of steps whose outputs can be stored
        self._materializers: CustomMaterializers | None = None
        self._durations: dict[Any, float] = {}
        self._pausing: list[tuple[float, StepState]] = []  # before another attempt, and until when
        self._queues: defaultdict[Resources, deque[StepState]] = defaultdict(deque)
        self._in_flight: Counter[Resources] = Counter()
        self._names: dict[str, int] = {}
        self._error: BaseException | None = None
        self._is_cancelled = self._is_closed = self._is_stuck = False
        self._has_moved = False  # in this turn, so that there is more to do in the next
        self._thread: threading.Thread | None = None

    # -- the pipeline's thread -------------------------------------------------------------------------------------

    def call(self, step: Step[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a step call; returns its artifact, or a tuple of them where the step has several outputs."""
        storable.check(step, self._checked)
        bound = step.bind(args, kwargs)
        tree = ArgumentTree(self.run_id, step, self._store)
        for name, value in list(bound.arguments.items()):
            bound.arguments[name] = tree.take(name, value)
        self._journal.record(*tree.stored)
        with self._lock:
            state = StepState(
                name=self._unique(step.name),
                step=step,
                position=len(self.steps),
                arguments=dict(bound.arguments),
                args=(bound.args, bound.kwargs),
                inputs=tuple(tree.inputs),
                brought=frozenset(tree.heritage),
            )
            self.steps[state.name] = state
            cause = self._graph.add(state.name, [i.producer for i in state.inputs if i.producer])
            if cause is not None:
                self._skip([state.name], cause)
            else:
                self._journal.step(state)
                self._observer.on_step(state)
            self._news.notify()
        made = [
            Artifact(self, state.name, i, output=o.name, annotation=o.annotation) for i, o in enumerate(step.outputs)
        ]
        return tuple(made) if step.is_multiple else made[0]

    def start(self) -> None:
        """Begin to run what was recorded; harmless when called again."""
        if self._launcher.is_blocking or self._thread is not None:
            return
        self._thread = threading.Thread(target=self._work, name=f"zenray-{self.run_id}", daemon=True)
        self._thread.start()

    def manifest(self, step_run: str, index: int) -> Manifest:
        """Wait for a step run; StepFailed where it, or what it needs, failed."""
        self._wait(lambda: self.steps[step_run].status.is_finished)
        state = self.steps[step_run]
        if not state.status.has_outputs:
            raise self.failure(state)
        return state.outputs[index]

    def load(self, step_run: str, index: int) -> Any:
        """Wait for a step run and load one of its outputs."""
        manifest = self.manifest(step_run, index)
        return artifacts.load(manifest, self._store, allow_pickle=self.steps[step_run].step.settings.allow_pickle)

    def finish(self) -> None:
        """Wait until every step run has ended."""
        self._wait(lambda: self._graph.is_finished)

    def cancel(self) -> None:
        """Interrupt what runs, wait a moment for it to stop, then end it by force; what it ends is not committed."""
        self._is_cancelled = True
        if not self._lock.acquire(timeout=CANCEL_GRACE_S):  # the engine waits for a server that says nothing
            self._is_stuck = True
            self._launcher.cancel(is_forced=True)
            return
        self._queues.clear()
        self._pausing.clear()
        self._lookup.forget()
        self._lock.release()
        with suppress(KeyboardInterrupt):  # a second one asks not to wait
            self._launcher.cancel(is_forced=False)
            is_remote = self._store.local_path("") is None  # then their logs have to be sent
            deadline = time.monotonic() + CANCEL_GRACE_S + (CANCELLED_LOG_S if is_remote else 0.0)
            with self._lock:
                while self._in_flight.total() and time.monotonic() < deadline and not self._launcher.is_blocking:
                    self._news.wait(0.05)
        self._launcher.cancel(is_forced=True)
        with self._lock:
            while self._results:  # the engine's thread may have had no turn since they came
                self._take(self._results.popleft())
            for name in self._graph.cancel():
                state = self.steps[name]
                if state.attempt > state.recorded:
                    self._take_failure(state, _ended(state, self.run_id))
                self._end(state, Status.CANCELLED)
        self._move()

    def stop(self, reason: str) -> bool:
        """Let whoever waits for the run raise RunCancelled, in another thread; False where the run is over."""
        if self._is_closed:
            return False
        self._error = RunCancelled(reason)  # without the lock, which may be held by who waits for the other thread
        self._move()
        return True

    def close(self) -> None:
        """Stop the engine's thread and let go of the launcher."""
        self._is_closed = True
        if not self._is_stuck:
            with self._lock:
                self._news.notify_all()
            if self._thread is not None:
                self._thread.join(timeout=5)
        self._launcher.close()

    def failure(self, state: StepState) -> ZenRayError:
        """Return the error a step run ends its pipeline with; the step's own exception is its cause."""
        if state.status is Status.CANCELLED:
            return RunCancelled(f"step {state.name!r} was cancelled")
        failed = self.steps[state.cause] if state.cause else state
        found = failed.failure
        if found is None:
            return StepFailed(f"step {failed.name!r} did not finish ({failed.status})")
        others = [s.name for s in self.steps.values() if s.status is Status.FAILED and s is not failed]
        also = f"also failed: {', '.join(map(repr, others))}\n" if others else ""
        error = StepFailed(
            f"step {failed.name!r} failed in attempt {failed.attempt}: {found.type_name}: {found.message}\n{also}"
            f"see `zenray run logs {self.run_id} {failed.name}`"
        )
        error.__cause__ = exception_of(found)
        return error

    def first_failure(self) -> StepState | None:
        """Return the step run that failed first, if one did."""
        failed = [s for s in self.steps.values() if s.status is Status.FAILED]
        return min(failed, key=lambda s: s.ended_at or 0.0, default=None)

    def _wait(self, is_done: Callable[[], bool]) -> None:
        self.start()
        self._awaited.append(is_done)
        try:
            while not self._is_over(is_done):
                self._turn()
        finally:
            self._awaited.remove(is_done)

    def _is_over(self, is_done: Callable[[], bool]) -> bool:
        """Say whether what is waited for has come; waits for it where the engine has a thread of its own."""
        while True:
            if self._error is not None:
                raise self._error
            if not self._lock.acquire(timeout=0.5):
                continue  # who has it waits for a server, and perhaps the run is to stop
            try:
                if is_done():
                    return True
                if self._is_cancelled:
                    raise RunCancelled(f"run {self.run_id} was cancelled")
                if self._thread is None:
                    return False
                seen = self._moves
            finally:
                self._lock.release()
            with self._moved:  # not for ever: Ctrl-C must get through on every platform
                self._moved.wait_for(lambda: self._moves != seen, 0.5)  # noqa: B023 - it is called at once

    def _move(self) -> None:
        """Wake those that wait for step runs."""
        with self._moved:
            self._moves += 1
            self._moved.notify_all()

    def _unique(self, name: str) -> str:
        while True:
            count = self._names.get(name, 0) + 1
            self._names[name] = count
            candidate = name if count == 1 else f"{name}_{count}"
            if candidate not in self.steps:
                return candidate

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._is_closed:
            try:
                self._turn()
            except BaseException as exc:  # noqa: BLE001 - whatever it is, it belongs to who waits for the run
                with self._lock:
                    self._error = exc
                self._move()
                return

    def _turn(self) -> None:
        """Take the results that are there, move on what became ready, and sleep if nothing happened."""
        with self._lock:
            results = [self._results.popleft() for _ in range(len(self._results))]
            for result in results:
                self._take(result)
            ready = self._graph.take_ready()
            if self._is_cancelled:
                ready = []
            self._has_moved = bool(results or ready)
            if ready:
                self._look_up([self.steps[name] for name in ready])
            if self._lookup.is_waiting and not self._is_cancelled:
                self._act(self._lookup.poll())
            self._end_pauses()
            units = [] if self._is_cancelled else self._units_to_launch()
            if any(is_done() for is_done in self._awaited):
                self._move()
            if not self._has_moved and not units:
                self._sleep()
        for states, resources in units:
            self._launch(states, resources)

    def _sleep(self) -> None:
        """Wait for news; a blocking launcher has none, but another run may."""
        if self._is_closed:
            return  # the news of it came before there was anybody to wake
        if self._lookup.is_waiting:
            self._news.wait(POLL_S[0])
        elif self._pausing:
            self._news.wait(max(0.0, min(min(until for until, _ in self._pausing) - time.monotonic(), 0.5)))
        elif not self._launcher.is_blocking:
            self._news.wait(0.5)

    def _end_pauses(self) -> None:
        if self._pausing:
            now = time.monotonic()
            for state in [s for until, s in self._pausing if until <= now]:
                self._enqueue(state)
            self._pausing = [(until, state) for until, state in self._pausing if until > now]

    def _enqueue(self, state: StepState) -> None:
        self._queues[state.step.settings.resources].append(state)

    def _on_done(self, resources: Resources, results: Sequence[AttemptResult], doubts: Sequence[str] = ()) -> None:
        with self._lock:
            if doubts:
                results = [replace(r, is_cacheable=False, notes=(*r.notes, *doubts)) for r in results]
            self._results.extend(results)
            self._in_flight[resources] -= 1
            self._news.notify_all()

    def _look_up(self, states: list[StepState]) -> None:
        for state in states:
            try:
                state.key = self._key(state)
            except Exception as exc:  # noqa: BLE001 - foreign objects are encoded here; the step fails, not the engine
                self._fail(state, Failure("output", type(exc).__name__, f"its cache key cannot be computed: {exc}"))
        self._act(self._lookup.sort([s for s in states if s.key is not None], use_cache=self._use_cache))

    def _claimed(self, states: list[StepState]) -> list[StepState]:
        """Return those of the step runs whose turn has come that really start: no other run is at work on the same."""
        found = self._lookup.claim(states)
        for state in states:
            if state.awaits:
                self._observer.on_note(f"step {state.name!r} waits for run {state.awaits}, which computes the same")
        self._commit_hits(found)
        return found.to_run

    def _act(self, found: Sorted) -> None:
        self._commit_hits(found)
        for state in found.to_run:
            self._enqueue(state)

    def _commit_hits(self, found: Sorted) -> None:
        for state, entry, manifests in found.hits:
            self._has_moved = True
            state.source = (entry.run_id, entry.name)
            self._commit(state, manifests, is_cached=True)

    def _key(self, state: StepState) -> cache.CacheKey:
        inputs = self._inputs(state)
        code = state.code = self._code_of(state.step)
        for problem in code.problems:
            self._note(f"step {state.step.name!r} is never cached: {problem}")
        taken = set(state.brought)
        for taken_from, manifest in zip(state.inputs, inputs, strict=True):
            if taken_from.producer and manifest.may_hold_instances:
                taken |= self.steps[taken_from.producer].heritage
        # Its own code counts for whoever takes instances from it, whatever its parts are: a class may hide in a module
        # that is not loaded yet, and a pickle or a materializer may name a function.
        state.heritage = frozenset(taken | {cache.UNKNOWN_CODE if code.problems else code.digest})
        if self._materializers is None:
            self._materializers = CustomMaterializers()
        taken_with = [self.steps[i.producer].materializers if i.producer else None for i in state.inputs]
        materializers = self._materializers.relevant(code, zip(inputs, taken_with, strict=True))
        state.materializers = frozenset(materializers)
        digests = [m.digest for m in inputs]
        libraries = cache.libraries(m.type_name for m in inputs)
        return cache.key_of(state.step, state.arguments, digests, code, materializers, taken, libraries)

    def _code_of(self, step: Step[Any]) -> Fingerprint:
        """Return the fingerprint of a step's code: as it was first, or is now where it runs in this process."""
        code = self._codes.get(step.function)
        if code is None or self._launcher.is_blocking:
            code = self._codes[step.function] = self._fingerprints.of(step.function)
        return code

    def _is_outdated(self, state: StepState) -> bool:
        """Tell whether the code of a step run that is about to start has changed, and look it up anew if so."""
        assert state.code is not None
        if self._code_of(state.step).digest == state.code.digest:
            return False
        self._journal.record(*self._claim_end(state))
        state.holds_claim = False
        self._look_up([state, *self._lookup.end(state)])
        return True

    def _note(self, text: str, *, about: str = "") -> None:
        """Tell people something once; of several texts about the same, only the first."""
        if (about or text) not in self._noted:
            self._noted.add(about or text)
            self._observer.on_note(text)

    def _inputs(self, state: StepState) -> tuple[Manifest, ...]:
        return tuple(i.given or self.steps[i.producer].outputs[i.output_index] for i in state.inputs)

    def _units_to_launch(self) -> list[tuple[list[StepState], Resources]]:
        """Group what is queued: calls of a step that proved to be tiny travel together."""
        units: list[tuple[list[StepState], Resources]] = []
        for resources, queue in list(self._queues.items()):
            # A blocking launcher gets one call at a time, so that what it makes ready can come in between.
            width = 1 if self._launcher.is_blocking else self._launcher.width(resources) if queue else 0
            while queue and self._in_flight[resources] < width and not (units and self._launcher.is_blocking):
                unit = [queue.popleft()]
                if self._is_outdated(unit[0]):
                    continue
                size = self._unit_size(unit[0], len(queue))
                while len(unit) < size and queue and queue[0].step.function is unit[0].step.function:
                    unit.append(queue.popleft())
                unit = self._claimed(unit)
                if unit:
                    units.append((unit, resources))
                    self._in_flight[resources] += 1
        return units

    def _unit_size(self, state: StepState, queued: int) -> int:
        duration_s = self._durations.get(state.step.function)
        is_limited = state.step.settings.is_limited  # by the end of its process
        if duration_s is None or duration_s > UNIT_S or state.lost_workers or is_limited:
            return 1
        fair_share = queued // 8  # several units for every worker, so that none is left over
        return max(1, min(MAX_UNIT, int(UNIT_S / max(duration_s, 1e-5)), fair_share))

    def _launch(self, states: list[StepState], resources: Resources) -> None:
        calls: list[StepCall] = []
        with self._lock:
            for state in states:
                state.attempt += 1
                state.launched_at = time.time()
                state.begun_at = state.begun_at or state.launched_at
                state.started_at = state.started_at or state.launched_at
                state.status = Status.RUNNING
                state.log_path = f"{self._log_root}/{log_name(self.run_id, state.name, state.attempt)}"
                self._graph.start(state.name)
                self._journal.step(state, [self._journal.inputs(state, self._inputs(state))] if state.inputs else [])
                self._observer.on_step(state)
                try:
                    calls.append(self._call(state))
                except ZenRayError as exc:
                    self._results.append(_impossible(f"{self.run_id}/{state.name}", state.attempt, exc))
        on_done = partial(self._on_done, resources)
        try:
            if calls:
                with self._fingerprints.kept() as doubts:
                    self._launcher.launch(calls, resources, partial(on_done, doubts=doubts))
            else:
                on_done([])
        except ZenRayError as exc:
            on_done([_impossible(c.step_run_id, c.attempt, exc) for c in calls])

    def _call(self, state: StepState) -> StepCall:
        assert state.code is not None
        settings = state.step.settings
        return StepCall(
            step_run_id=f"{self.run_id}/{state.name}",
            attempt=state.attempt,
            name=state.name,
            code=self._launcher.reference(state.step),
            code_digest=state.code.digest,
            source_digest=state.code.source_digest,
            arguments=pickle.dumps(state.args),
            inputs=self._inputs(state),
            pickle_inputs=tuple(self._is_trusted(state, i) for i in range(len(state.inputs))),
            allow_pickle=settings.allow_pickle,
            log_uri=state.log_path,
            has_gpu=settings.resources.num_gpus > 0,
            is_tiny=self._durations.get(state.step.function, UNIT_S) < UNIT_S and not settings.is_limited,
            timeout_s=settings.timeout_s,
            deadline_at=policy.deadline_at(state),
        )

    def _is_trusted(self, state: StepState, index: int) -> bool:
        """A pickle is loaded where the step that made it, or the one that takes it, opted in."""
        producer = state.inputs[index].producer
        return state.step.settings.allow_pickle or bool(producer and self.steps[producer].step.settings.allow_pickle)

    def _take(self, result: AttemptResult) -> None:
        """Act on what came of an attempt; one that is no longer wanted is dropped."""
        state = self.steps[result.step_run_id.partition("/")[2]]
        if state.status.is_finished or result.attempt != state.attempt:
            return
        if not result.is_started:
            state.attempt -= 1
            self._enqueue(state)
            return
        for note in result.notes:
            self._observer.on_note(f"step {state.name!r}: {note}")
        if state.code is not None and (result.is_cacheable or result.code):
            changed = cache.change(result.code, self._code_of(state.step), state.code)
            if changed:
                self._note(f"step {state.step.name!r}: {changed}", about=f"changes of {state.step.name!r}")
        if result.started_at:
            state.started_at = result.started_at
        if result.failure is None:
            if result.ended_at:
                seconds = result.ended_at - result.started_at - result.write_s  # other calls use that time
                known = self._durations.get(state.step.function, seconds)
                self._durations[state.step.function] = max(seconds, 0.7 * known + 0.3 * seconds)
            self._commit(state, result.outputs, result=result)
            return
        self._take_failure(state, result)

    def _take_failure(self, state: StepState, result: AttemptResult) -> None:
        assert result.failure is not None
        failure = policy.explained(state, result.failure, time.time())
        is_cancelled = failure.kind == "cancelled"
        result = replace(policy.with_left_log(state, result), failure=failure)
        self._journal.attempt(state, result, Status.CANCELLED if is_cancelled else Status.FAILED)
        if self._is_cancelled:
            return
        if failure.kind == "cluster":
            for other in [s for s in self.steps.values() if s.status is Status.RUNNING]:
                self._fail(other, failure)
            raise ClusterError(failure.message)  # it is the run's end too
        pause_s = policy.pause_s(state, failure, time.time())
        is_lost = failure.kind == "worker"
        if pause_s is not None:
            why = "lost its process, which counts as no retry" if is_lost else f"failed ({failure.type_name})"
            when = f" in {pause_s:.1f} s" if pause_s else ""
            self._observer.on_note(f"step {state.name!r}: attempt {state.attempt} {why}, trying again{when}")
            self._pausing.append((time.monotonic() + pause_s, state))
        else:
            self._fail(state, policy.final(state, failure))

    def _commit(
        self,
        state: StepState,
        outputs: tuple[Manifest, ...],
        *,
        is_cached: bool = False,
        result: AttemptResult | None = None,
    ) -> None:
        """Make a result count: the records of outputs, cache entry and step run go out together."""
        if not self._graph.succeed(state.name, is_cached=is_cached):
            return
        state.outputs = outputs
        now = time.time()
        changes: list[Change] = [] if is_cached else [ArtifactRecord(m, self._store.uri, now) for m in outputs]
        if is_cached and state.inputs:
            changes.append(self._journal.inputs(state, self._inputs(state)))
        changes.append(self._journal.outputs(state, outputs))
        changes += self._claim_end(state)
        key = state.key.key if state.key else ""
        if result is not None:
            state.metadata, state.series = result.metadata, result.series
            self._journal.attempt(state, result, Status.SUCCEEDED)
            if key and result.is_cacheable and state.step.settings.cache:
                entry = tuple((o.name, m.digest) for o, m in zip(state.step.outputs, outputs, strict=True))
                changes.append(CacheEntry(key, self._store.uri, self.run_id, state.name, entry, now))
            if not result.is_cacheable:
                state.heritage |= {cache.UNKNOWN_CODE}
        self._end(state, Status.CACHED if is_cached else Status.SUCCEEDED, changes)
        for twin in self._lookup.end(state):
            twin.source = state.source or (self.run_id, state.name)
            twin.heritage |= state.heritage
            self._commit(twin, outputs, is_cached=True)

    def _fail(self, state: StepState, failure: Failure) -> None:
        state.failure = failure
        skipped = self._graph.fail(state.name)
        self._end(state, Status.FAILED, self._claim_end(state))
        self._skip(skipped, state.name)
        for twin in self._lookup.end(state):
            self._enqueue(twin)

    def _claim_end(self, state: StepState) -> list[Change]:
        return [ClaimEnd(state.key.key, self._store.uri, self.run_id)] if state.key and state.holds_claim else []

    def _skip(self, names: Sequence[str], cause: str) -> None:
        for name in names:
            state = self.steps[name]
            state.cause = self.steps[cause].cause or cause
            self._end(state, Status.SKIPPED)

    def _end(self, state: StepState, status: Status, changes: Sequence[Change] = ()) -> None:
        state.status = status
        state.ended_at = time.time()
        if status is Status.CACHED:
            state.started_at = state.ended_at
        self._journal.step(state, changes)
        self._observer.on_step(state)


def _ended(state: StepState, run_id: str) -> AttemptResult:
    failure = Failure("cancelled", RunCancelled.__name__, "it did not stop when it was told, so its process was ended")
    return AttemptResult(f"{run_id}/{state.name}", state.attempt, failure=failure)


def _impossible(step_run_id: str, attempt: int, exc: ZenRayError) -> AttemptResult:
    return AttemptResult(step_run_id, attempt, failure=Failure("impossible", type(exc).__name__, str(exc)))
