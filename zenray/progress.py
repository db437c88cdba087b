"""What a terminal shows while a run goes on: steps as they begin and end, what they print, and a summary.

Runs in: driver.

The engine calls ``on_step`` under its lock, so that only puts the news into a queue. Everything slow (reading logs,
writing to the terminal) happens in one thread, ten times a second; with the inline stack, whose steps print to the
terminal themselves, at once, so that the lines come in the right order.
"""

import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

from zenray.journal import StepState
from zenray.model import Status
from zenray.profile import option_for
from zenray.runner import RunObserver, RunRequest
from zenray.units import seconds_text

TURN_S = 0.1
SUMMARY_S = 1.0
MAX_LINES = 50  # steps that get lines of their own
MAX_LOGS = 64  # logs looked at in one turn
MAX_READ = 1 << 20  # bytes of one log shown in one turn
MAX_PARTIAL = 1 << 16  # bytes held back for the end of their line

_ORDER = (Status.SUCCEEDED, Status.CACHED, Status.FAILED, Status.SKIPPED, Status.CANCELLED)


def terminal_observer(*, names_stack: bool = False) -> RunObserver:
    """Return the view that fits where stderr goes: a live table on a terminal, plain lines elsewhere.

    ``names_stack`` is for who reads it elsewhere, where the stack that is active here need not be.
    """
    stream = sys.stderr
    if stream is None:  # a process without a console, such as pythonw
        return RunObserver()
    is_live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    return (LiveView if is_live else PlainView)(stream, names_stack=names_stack)


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A step run at one moment: its state goes on changing in the engine's thread."""

    state: StepState
    status: Status
    attempt: int
    log_path: str


@dataclass(slots=True)
class Tally:
    """How far the steps of a run are."""

    statuses: dict[str, Status] = field(default_factory=dict)
    counts: Counter[Status] = field(default_factory=Counter)

    def take(self, event: StepEvent) -> None:
        """Count a step where it is now."""
        name = event.state.name
        if name in self.statuses:
            self.counts[self.statuses[name]] -= 1
        self.statuses[name] = event.status
        self.counts[event.status] += 1

    def text(self, statuses: Sequence[Status] = (*_ORDER, Status.RUNNING, Status.WAITING)) -> str:
        """Return ``3 succeeded, 1 running``."""
        return ", ".join(f"{self.counts[s]:,} {s}" for s in statuses if self.counts[s])


class PlainView(RunObserver):
    """Writes plain lines: for logs, pipes and CI. Safe to call from any thread; never raises."""

    def __init__(self, stream: TextIO, *, names_stack: bool = False) -> None:
        self._stream = _Quiet(stream)
        self._names_stack = names_stack
        self._option = ""  # what leads a command to the run's stack
        self._news: deque[StepEvent | str] = deque()
        self._remarks: list[str] = []
        self._tally = Tally()
        self._tails: dict[str, LogTail] = {}  # by step run, of the attempts under way
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()  # of the turn: on_end and the thread may meet
        self._is_inline = False
        self._last_summary = 0.0
        self._started_at = time.monotonic()
        self._run_id = ""
        self._pipeline = ""

    def on_start(self, run_id: str, request: RunRequest) -> None:
        """Say what runs where and begin to watch."""
        self._run_id, self._pipeline = run_id, request.pipeline
        self._option = f" --stack {request.stack.name}" if self._names_stack else option_for(request.stack)
        self._started_at = time.monotonic()
        self._is_inline = request.stack.orchestrator == "inline"
        profile = f", profile {request.stack.profile!r}" if request.stack.profile else ""
        self._write(f"run {run_id} of pipeline {request.pipeline!r} on stack {request.stack.name!r}{profile}")
        if not self._is_inline:
            self._thread = threading.Thread(target=self._watch, name="zenray-progress", daemon=True)
            self._thread.start()

    def on_step(self, state: StepState) -> None:
        """Queue the news."""
        self._news.append(StepEvent(state, state.status, state.attempt, state.log_path))
        if self._is_inline:
            self._turn()

    def on_note(self, text: str) -> None:
        """Queue a warning."""
        self._news.append(f"warning: {text}")
        if self._thread is None:
            self._turn()

    def on_remark(self, text: str) -> None:
        """Keep a line for the summary."""
        if text:
            self._remarks.append(text)

    def on_end(self, status: Status, states: Mapping[str, StepState], error: BaseException | None) -> None:
        """Show what is left and the summary."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        self._turn()
        self._close()
        first, *others = summary(self._run_id, self._pipeline, status, states, time.monotonic() - self._started_at)
        for line in (first, *self._remarks, *others[:-1], others[-1] + self._option):
            self._write(line)

    # -- the view's thread -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closing.wait(TURN_S):
            self._turn()

    def _turn(self) -> None:
        """Show the news; a view that fails must not fail the run."""
        with self._lock, suppress(Exception):
            news = [self._news.popleft() for _ in range(len(self._news))]
            last = {n.state.name: n for n in news if isinstance(n, StepEvent)}
            for item in news:
                if isinstance(item, str):
                    self._write(item)
                    continue
                self._tally.take(item)
                self._follow(item)
                if last[item.state.name] is item:
                    self._show(item)
            self._read_logs()
            self._refresh()

    def _follow(self, event: StepEvent) -> None:
        """Begin to read the log of an attempt that runs, and finish that of one that has ended."""
        if self._is_inline or not event.log_path:
            return
        name = event.state.name
        known = self._tails.get(name)
        if known is not None and (event.status.is_finished or known.path != event.log_path):
            del self._tails[name]
            self._output(name, known.rest())
        if event.status is Status.RUNNING and name not in self._tails:
            self._tails[name] = LogTail(event.log_path)
        elif event.status.is_finished and known is None and event.attempt:
            self._output(name, LogTail(event.log_path).rest())

    def _read_logs(self) -> None:
        """Show what running steps have printed; of very many, some each turn."""
        names = list(self._tails)
        for name in names[:MAX_LOGS]:
            tail = self._tails[name]
            self._output(name, tail.lines())
            if len(names) > MAX_LOGS:
                self._tails[name] = self._tails.pop(name)  # to the end of the queue

    def _output(self, name: str, lines: Sequence[str]) -> None:
        if lines:
            self._write("\n".join(f"[{name}] {line}" for line in lines))

    def _show(self, event: StepEvent) -> None:
        """Write a step's line, as long as there are few."""
        if event.status is Status.WAITING:
            return
        is_loud = event.status is Status.FAILED and self._tally.counts[Status.FAILED] <= MAX_LINES
        if len(self._tally.statuses) <= MAX_LINES or is_loud:
            self._write(f"{event.state.name}  {describe(event)}")

    def _refresh(self) -> None:
        """Write, of many steps, a line a second."""
        now = time.monotonic()
        total = len(self._tally.statuses)
        if total <= MAX_LINES or now - self._last_summary < SUMMARY_S:
            return
        self._last_summary = now
        self._write(f"{total:,} steps: {self._tally.text()}")

    def _close(self) -> None:
        """Let go of the terminal."""

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class LiveView(PlainView):
    """Keeps a table of the steps at the bottom of the terminal; what steps print scrolls above it.

    The table is made when the first step runs: a fully cached run does not pay for importing rich.
    """

    def __init__(self, stream: TextIO, *, names_stack: bool = False) -> None:
        super().__init__(stream, names_stack=names_stack)
        self._live: Any = None
        self._rows: dict[str, StepEvent] = {}  # the first steps, in order of appearance
        self._running: dict[str, StepEvent] = {}

    def _show(self, event: StepEvent) -> None:
        if self._is_inline:
            super()._show(event)
            return
        name = event.state.name
        if len(self._rows) <= MAX_LINES or name in self._rows:
            self._rows[name] = event
        self._running.pop(name, None)
        if event.status is Status.RUNNING:
            self._running[name] = event

    def _refresh(self) -> None:
        if self._is_inline:
            super()._refresh()
            return
        if self._live is None and (self._running or self._tally.counts[Status.SUCCEEDED]):
            self._open()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _open(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=cast(TextIO, self._stream), highlight=False, markup=False, emoji=False, soft_wrap=True)
        is_shared = sys.stdout is not None and sys.stdout.isatty()
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=is_shared, redirect_stderr=True)
        self._live.start()

    def _table(self, *, is_final: bool = False) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        space = max(3, self._live.console.size.height - 4)
        total = len(self._tally.statuses)
        events = self._rows if total <= min(space, MAX_LINES) else self._running
        table = Table.grid(padding=(0, 2))
        for event in list(events.values())[:space]:
            resources = event.state.step.settings.resources.describe()
            asked = " ".join(_amount(k, v) for k, v in resources.items() if (k, v) != ("num_cpus", 1))
            style = _STYLES.get(event.status, "")
            table.add_row(
                Text(event.state.name), Text(describe(event, is_live=True), style=style), Text(asked, style="dim")
            )
        if is_final:
            return table if events is self._rows else Text("")
        return Group(table, Text(f"{total:,} step{'s'[: total > 1]}: {self._tally.text()}", style="dim"))

    def _close(self) -> None:
        with suppress(Exception):
            if self._live is not None:
                self._live.update(self._table(is_final=True), refresh=True)
                self._live.stop()
        self._live = None

    def _write(self, text: str) -> None:
        if self._live is None:
            super()._write(text)
            return
        with suppress(Exception):
            self._live.console.print(text)


_STYLES = {
    Status.RUNNING: "cyan",
    Status.SUCCEEDED: "green",
    Status.CACHED: "blue",
    Status.FAILED: "red",
    Status.SKIPPED: "yellow",
    Status.CANCELLED: "yellow",
}


class _Quiet:
    """A stream that takes everything: where a pipe was closed the run goes on (rich would end the process)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class LogTail:
    """Reads a growing log file from where it stopped, in whole lines; a file that is not there has none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._offset = 0
        self._partial = b""

    def lines(self) -> list[str]:
        """Return the lines that were finished since the last call, of at most MAX_READ bytes."""
        data = self._partial + self._read()
        cut = data.rfind(b"\n") + 1
        if not cut and len(data) > MAX_PARTIAL:
            cut = len(data)
        self._partial = data[cut:]
        return _split(data[:cut])

    def rest(self) -> list[str]:
        """Return what is left, also without an end of line; much of it is cut short."""
        lines = _split(self._partial + self._read())
        self._partial = b""
        left = self._size() - self._offset
        if left > 0:
            lines.append(f"... {size_text(left)} more in {self.path}")
        return lines

    def _size(self) -> int:
        try:
            return Path(self.path).stat().st_size
        except OSError:
            return 0

    def _read(self) -> bytes:
        if self._size() <= self._offset:
            return b""
        try:
            with Path(self.path).open("rb") as file:
                file.seek(self._offset)
                data = file.read(MAX_READ)
        except OSError:
            return b""
        self._offset += len(data)
        return data


def _split(data: bytes) -> list[str]:
    """Return lines as text; of a line that was overwritten with carriage returns what was last to be seen."""
    if not data:
        return []
    lines = data.removesuffix(b"\n").split(b"\n")
    return [line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in lines]


def describe(event: StepEvent, *, is_live: bool = False) -> str:
    """Say where a step is: ``succeeded 1.2 s``, ``cached (from run ...)``, ``failed ValueError: ...``."""
    state = event.state
    if event.status is Status.CACHED and state.source:
        return f"cached (from run {state.source[0]})"
    if event.status is Status.SKIPPED and state.cause:
        return f"skipped ({state.cause} failed)"
    end = time.time() if is_live and event.status is Status.RUNNING else state.ended_at
    took = f" {seconds_text(end - state.started_at)}" if end and state.started_at else ""
    again = f" (attempt {event.attempt})" if event.attempt > 1 and event.status is Status.RUNNING else ""
    why = ""
    if event.status is Status.FAILED and state.failure is not None:
        why = f": {state.failure.type_name}: {shortened(state.failure.message)}"
    return f"{event.status}{took if event.status.is_finished or is_live else ''}{again}{why}"


def summary(
    run_id: str, pipeline: str, status: Status, states: Mapping[str, StepState], duration_s: float
) -> list[str]:
    """Return the lines that end a run: counts, the slowest steps, what was stored, and where to look closer."""
    counts = Counter(s.status for s in states.values())
    if states and counts[Status.CACHED] == len(states):
        done = f"all {len(states):,} steps were cached" if len(states) > 1 else "its only step was cached"
    else:
        done = ", ".join(f"{counts[s]:,} {s}" for s in _ORDER if counts[s]) or "no step was called"
    lines = [f"run {run_id} of pipeline {pipeline!r} {status} in {seconds_text(duration_s)}: {done}"]
    made = {m.digest: m.size_bytes for s in states.values() if s.status is Status.SUCCEEDED for m in s.outputs}
    ran = [(s.ended_at - s.started_at, s.name) for s in states.values() if s.attempt and s.started_at and s.ended_at]
    slowest = ", ".join(f"{name} {seconds_text(took)}" for took, name in sorted(ran, reverse=True)[:3])
    if slowest:
        lines.append(f"slowest: {slowest}; outputs: {size_text(sum(made.values()))}")
    failed = [s.name for s in states.values() if s.status is Status.FAILED]
    if len(failed) > 1:
        lines.append(f"failed: {', '.join(failed[:10])}" + (f" and {len(failed) - 10:,} more" if failed[10:] else ""))
    look = f"zenray run logs {run_id} {failed[0]}" if failed else f"zenray run show {run_id}"
    return [*lines, f"look closer: {look}"]


def shortened(text: str, width: int = 120) -> str:
    """Return the first line of a text, cut between words where it is long."""
    line = text.partition("\n")[0]
    return line if len(line) <= width else (line[:width].rpartition(" ")[0] or line[:width]) + " ..."


def _amount(name: str, amount: float | str) -> str:
    if isinstance(amount, str):
        return f"{name}={amount}"
    return f"memory={amount / 2**30:.3g}GiB" if name == "memory" else f"{name}={amount:g}"


def size_text(size_bytes: float) -> str:
    """Return a number of bytes for people, in powers of 1,000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
