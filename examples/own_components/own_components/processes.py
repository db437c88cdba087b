"""An orchestrator: ``processes://4`` runs each unit of steps in a new process of this machine, four at a time."""

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from zenray.errors import ClusterError, ConfigError
from zenray.model import AttemptResult, CodeRef, Failure, JobContext, Resources, StepCall
from zenray.step import Step
from zenray.workplace import Workplace, job_context, reference_to

# Not "fork": the driver has threads.
_PROCESSES = get_context("spawn")


def work(pipe: Connection, context: JobContext, calls: Sequence[StepCall]) -> None:
    """Run in the new process: take over the driver's path, folder and environment, run the calls, send the results."""
    pipe.send(Workplace.of(context).run(calls))


class ProcessLauncher:
    """Follows the protocol ``zenray.launcher.Launcher``.

    One is made for each run. ``launch`` must not block, and calls ``on_done`` once for every unit, whatever happens: a
    process that died is a result too. ZenRay does the rest: the graph, the cache, retries, records.
    """

    is_blocking = False

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any],
        *,
        store_uri: str,
        store_options: Mapping[str, Any],
        tracker: Mapping[str, Any] | None = None,
    ) -> None:
        count = url.partition("://")[2].strip("/") or str(os.cpu_count() or 1)
        if not count.isdigit() or int(count) < 1 or options:
            raise ConfigError(
                f"orchestrator must be 'processes://' with a number, such as 'processes://4', got {url!r}"
            )
        self._count = int(count)
        self._store = store_uri, store_options
        self._tracker = tracker
        self._context: JobContext | None = None
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="processes")
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        self._is_cancelled = False

    def reference(self, step: Step[Any]) -> CodeRef:
        """Name the function by module and file: the new process imports it. One of a notebook travels as a pickle."""
        return reference_to(step, cloudpickle.dumps)

    def check(self, step_name: str, resources: Resources) -> None:
        """Refuse what this machine will never have, instead of waiting for it."""
        if resources.num_cpus > self._count or resources.num_gpus:
            raise ClusterError(
                f"step {step_name!r} asks for {resources.describe()}, and there are {self._count} CPUs and no GPU; "
                "lower the request, or give the orchestrator a larger number"
            )

    def width(self, resources: Resources) -> int:
        """Say how many units are worth having here: those that run, and as many that wait for their turn."""
        return 2 * self._count

    def launch(self, calls: Sequence[StepCall], resources: Resources, on_done: Callable[..., None]) -> None:
        """Hand the unit to a thread that waits for its process."""
        self.check(calls[0].name, resources)
        if self._context is None:
            # As late as this, so that variables that the pipeline's module sets are in it.
            self._context = job_context(*self._store, tracker=self._tracker)
        self._threads.submit(self._watch, self._context, calls, on_done)

    def cancel(self, *, is_forced: bool) -> None:
        """Interrupt the steps, as Ctrl-C would, or end their processes."""
        with self._lock:
            self._is_cancelled = True
            for process in self._running:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL if is_forced else signal.SIGINT)

    def close(self) -> None:
        """End what is left."""
        self.cancel(is_forced=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _watch(self, context: JobContext, calls: Sequence[StepCall], on_done: Callable[..., None]) -> None:
        mine, theirs = _PROCESSES.Pipe(duplex=False)
        process = _PROCESSES.Process(target=work, args=(theirs, context, calls), daemon=True)
        with self._lock:
            if self._is_cancelled:
                on_done([self._lost(c, "cancelled", "the run was cancelled") for c in calls])
                return
            process.start()
            self._running.add(process)
        theirs.close()  # so that the pipe ends with the process
        try:
            results = mine.recv()
        except EOFError:
            process.join()
            kind = "cancelled" if self._is_cancelled else "worker"  # "worker": ZenRay tries again, free of charge
            results = [self._lost(c, kind, f"the process ended with code {process.exitcode}") for c in calls]
        finally:
            with self._lock:
                self._running.discard(process)
        process.join()
        mine.close()
        on_done(results)

    def _lost(self, call: StepCall, kind: str, text: str) -> AttemptResult:
        return AttemptResult(call.step_run_id, call.attempt, failure=Failure(kind, "ProcessLost", text))
