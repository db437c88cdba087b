import io
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zenray import step
from zenray.journal import StepState
from zenray.model import Failure, Status, StoredFile, artifact_digest
from zenray.model import Manifest as ManifestRecord
from zenray.profile import active_stack
from zenray.progress import MAX_LINES, LiveView, LogTail, PlainView, size_text
from zenray.runner import RunRequest
from zenray.stack import Stack
from zenray.units import seconds_text


@step
def work(x: int) -> int:
    return x


def request(orchestrator: str = "local") -> RunRequest:
    return RunRequest("demo", lambda: None, {}, Stack("here", orchestrator, "memory://store", "sqlite://"))


def state(name: str, status: Status = Status.WAITING, **values: object) -> StepState:
    return StepState(name, work, 0, {}, ((), {}), (), status=status, **values)


def ended(name: str, status: Status = Status.SUCCEEDED, **values: object) -> StepState:
    return state(name, status, attempt=1, started_at=100.0, ended_at=101.5, **values)


def shown(
    view_class: type[PlainView], states: list[StepState], status: Status = Status.SUCCEEDED, orchestrator="local"
):
    stream = io.StringIO()
    view = view_class(stream)
    view.on_start("run-1", request(orchestrator))
    for s in states:
        view.on_step(s)
    view.on_end(status, {s.name: s for s in states}, None)
    return stream.getvalue()


def wait_for(text: str, stream: io.StringIO) -> None:
    deadline = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, f"{text!r} never came: {stream.getvalue()!r}"
        time.sleep(0.01)


def test_the_first_line_names_run_pipeline_and_stack():
    first = shown(PlainView, []).splitlines()[0]
    assert first == "run run-1 of pipeline 'demo' on stack 'here'"


@pytest.mark.parametrize(("active", "option"), [("local", ""), ("inline", " --stack local")])
def test_where_to_look_closer_names_the_stack_unless_it_is_the_active_one(active, option, monkeypatch):
    monkeypatch.setenv("ZENRAY_STACK", "local")
    stack = active_stack()
    monkeypatch.setenv("ZENRAY_STACK", active)
    stream = io.StringIO()
    view = PlainView(stream)
    view.on_start("run-1", RunRequest("demo", lambda: None, {}, stack))
    failed = ended("bad", Status.FAILED, failure=Failure("user", "ValueError", "no good"))
    view.on_end(Status.FAILED, {"bad": failed}, None)
    assert stream.getvalue().splitlines()[-1] == f"look closer: zenray run logs run-1 bad{option}"


@pytest.mark.parametrize("orchestrator", ["local", "inline"])
def test_each_of_few_steps_gets_a_line_that_says_how_it_ended(orchestrator):
    failure = Failure("user", "ValueError", "no good\nsecond line")
    text = shown(
        PlainView,
        [
            ended("features"),
            state("train", Status.CACHED, source=("run-0", "train")),
            ended("bad", Status.FAILED, failure=failure),
            state("after", Status.SKIPPED, cause="bad"),
        ],
        Status.FAILED,
        orchestrator,
    )
    assert "features  succeeded 1.5 s\n" in text
    assert "train  cached (from run run-0)\n" in text
    assert "bad  failed 1.5 s: ValueError: no good\n" in text
    assert "after  skipped (bad failed)\n" in text
    assert "1 succeeded, 1 cached, 1 failed, 1 skipped" in text
    assert "zenray run logs run-1 bad" in text


def test_a_run_of_cached_steps_says_that_all_were_cached():
    states = [state(f"s{i}", Status.CACHED, source=("run-0", f"s{i}")) for i in range(3)]
    text = shown(PlainView, states)
    assert "all 3 steps were cached" in text
    assert "slowest" not in text


def test_a_run_with_one_step_that_ran_does_not_say_that_all_were_cached():
    text = shown(PlainView, [ended("a"), state("b", Status.CACHED, source=("run-0", "b"))])
    assert "were cached" not in text
    assert "1 succeeded, 1 cached" in text


def test_the_summary_names_the_slowest_steps_and_counts_equal_outputs_once():
    files = (StoredFile("data", 2_500_000, "d"),)
    manifest = ManifestRecord("t", "m", 1, files, {}, artifact_digest("t", "m", 1, files, {}))
    slow = state("slow", Status.SUCCEEDED, attempt=1, started_at=100.0, ended_at=300.0, outputs=(manifest,))
    text = shown(PlainView, [ended("fast", outputs=(manifest,)), slow])
    assert "slowest: slow 3 min 20 s, fast 1.5 s; outputs: 2.5 MB" in text


def test_what_a_step_prints_appears_while_it_runs_with_its_name_in_front(tmp_path: Path):
    log = tmp_path / "a.1.log"
    stream = io.StringIO()
    view = PlainView(stream)
    view.on_start("run-1", request())
    running = state("a", Status.RUNNING, attempt=1, log_path=str(log))
    view.on_step(running)
    log.write_text("first\nsec")
    wait_for("[a] first\n", stream)
    assert "[a] sec" not in stream.getvalue()
    with log.open("a") as file:
        file.write("ond\nno end of line")
    running.status = Status.SUCCEEDED
    view.on_step(running)
    view.on_end(Status.SUCCEEDED, {"a": running}, None)
    text = stream.getvalue()
    assert text.count("[a] first\n") == text.count("[a] second\n") == text.count("[a] no end of line\n") == 1
    assert text.index("no end of line") < text.index("a  succeeded")


def test_a_step_that_was_over_before_anybody_looked_still_shows_its_output(tmp_path: Path):
    log = tmp_path / "a.1.log"
    log.write_text("quick\n")
    text = shown(PlainView, [ended("a", log_path=str(log))])
    assert text.count("[a] quick\n") == 1


def test_every_attempt_shows_its_own_output_once(tmp_path: Path):
    logs = [tmp_path / f"a.{n}.log" for n in (1, 2)]
    stream = io.StringIO()
    view = PlainView(stream)
    view.on_start("run-1", request())
    s = state("a", Status.RUNNING, attempt=1, log_path=str(logs[0]))
    view.on_step(s)
    logs[0].write_text("try one\n")
    s.attempt, s.log_path = 2, str(logs[1])
    view.on_step(s)
    logs[1].write_text("try two\n")
    s.status = Status.SUCCEEDED
    view.on_step(s)
    view.on_end(Status.SUCCEEDED, {"a": s}, None)
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("[a]")]
    assert lines == ["[a] try one", "[a] try two"]


def test_inline_steps_are_not_read_from_their_logs_because_they_print_themselves(tmp_path: Path):
    log = tmp_path / "a.1.log"
    log.write_text("printed\n")
    assert "printed" not in shown(PlainView, [ended("a", log_path=str(log))], orchestrator="inline")


def test_many_steps_do_not_get_a_line_each_but_failures_do():
    states = [ended(f"s{i}") for i in range(5000)]
    states.append(ended("bad", Status.FAILED, failure=Failure("user", "E", "m")))
    lines = shown(PlainView, states, Status.FAILED).splitlines()
    assert len(lines) < MAX_LINES + 20
    assert any(line.startswith("bad  failed") for line in lines)
    assert any("5,000 succeeded, 1 failed" in line for line in lines)


def test_a_note_is_shown_as_a_warning():
    stream = io.StringIO()
    view = PlainView(stream)
    view.on_start("run-1", request())
    view.on_note("step 'a' is never cached")
    view.on_end(Status.SUCCEEDED, {}, None)
    assert "warning: step 'a' is never cached\n" in stream.getvalue()


class BlockedStream(io.StringIO):
    """A terminal that takes nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = threading.Event()

    def write(self, text: str) -> int:
        if text.startswith("s0"):
            assert self.is_open.wait(30)
        return super().write(text)


def test_a_terminal_that_takes_nothing_does_not_hold_the_engine_up():
    stream = BlockedStream()
    view = PlainView(stream)
    view.on_start("run-1", request())
    states = [ended(f"s{i}") for i in range(20)]
    for s in states:
        view.on_step(s)
        view.on_note("more")
    assert not stream.is_open.is_set()
    stream.is_open.set()
    view.on_end(Status.SUCCEEDED, {s.name: s for s in states}, None)
    assert "s19  succeeded" in stream.getvalue()


class BrokenStream(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("view_class", [PlainView, LiveView])
@pytest.mark.parametrize("orchestrator", ["local", "inline"])
def test_a_broken_terminal_never_reaches_the_engine(view_class, orchestrator):
    view = view_class(BrokenStream())
    running = state("a", Status.RUNNING, attempt=1, started_at=1.0)
    view.on_start("run-1", request(orchestrator))
    view.on_step(running)
    view.on_note("note")
    view.on_end(Status.SUCCEEDED, {"a": running}, None)
    assert view._live is None if isinstance(view, LiveView) else True


def test_views_take_news_from_many_threads_and_lose_none():
    stream = io.StringIO()
    view = PlainView(stream)
    view.on_start("run-1", request())
    states = {f"t{t}_{i}": ended(f"t{t}_{i}") for t in range(4) for i in range(10)}

    def tell(prefix: str) -> None:
        for name, s in states.items():
            if name.startswith(prefix):
                view.on_step(s)

    threads = [threading.Thread(target=tell, args=(f"t{t}_",)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view.on_end(Status.SUCCEEDED, states, None)
    lines = stream.getvalue().splitlines()
    assert all(lines.count(f"{name}  succeeded 1.5 s") == 1 for name in states)


def test_the_live_view_keeps_a_table_and_prints_output_above_it(tmp_path: Path):
    leader, follower = os.openpty()
    log = tmp_path / "train.1.log"
    log.write_text("epoch 1\n")
    with os.fdopen(follower, "w") as stream:
        view = LiveView(stream)
        view.on_start("run-1", request())
        s = state("train", Status.RUNNING, attempt=1, started_at=time.time(), log_path=str(log))
        view.on_step(s)
        view._turn()
        s.status, s.ended_at = Status.SUCCEEDED, s.started_at + 2
        view.on_step(s)
        view.on_end(Status.SUCCEEDED, {"train": s}, None)
        data = b""
        while select.select([leader], [], [], 0.2)[0]:  # a terminal gives what is there, piece by piece
            data += os.read(leader, 1 << 16)
    os.close(leader)
    text = data.decode()
    assert "[train] epoch 1" in text
    assert "train  \x1b" in text or "train  " in text
    assert "running" in text
    assert "succeeded 2.0 s" in text
    assert text.rstrip().endswith("look closer: zenray run show run-1 --stack here")


def test_a_fully_cached_run_on_a_terminal_does_not_import_rich():
    code = """
import io, sys
from tests.unit.test_progress import *
text = shown(LiveView, [state("a", Status.CACHED, source=("r", "a"))])
assert "was cached" in text, text
assert "rich" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_importing_the_progress_module_does_not_import_rich():
    code = "import sys, zenray.progress; assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tail_shows_what_was_last_to_be_seen_of_an_overwritten_line(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b" 10%\r 50%\r100%\ndone\r\n")
    assert LogTail(str(log)).lines() == ["100%", "done"]


def test_a_tail_does_not_cut_a_character_that_is_written_in_two_pieces(tmp_path: Path):
    log = tmp_path / "log"
    data = "naïve\n".encode()
    log.write_bytes(data[:3])
    tail = LogTail(str(log))
    assert tail.lines() == []
    log.write_bytes(data)
    assert tail.lines() == ["naïve"]


def test_a_tail_of_a_huge_log_is_cut_and_says_where_the_rest_is(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 99 + b"\n" + b"y\n" * 1_500_000)
    lines = LogTail(str(log)).rest()
    assert lines[0] == "x" * 99
    assert lines[-1].startswith("... 2.0 MB more in")


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path):
    tail = LogTail(str(tmp_path / "none"))
    assert tail.lines() == tail.rest() == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.00 s"),
        (0.05, "0.05 s"),
        (1.23, "1.2 s"),
        (59.9, "59.9 s"),
        (200, "3 min 20 s"),
        (1800, "30 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_shown_for_people(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB"), (4e12, "4.0 TB")],
)
def test_sizes_are_shown_for_people(size, text):
    assert size_text(size) == text
