"""Timeouts, deadlines and pauses between attempts, on the inline launcher."""

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import zenray
from zenray import pipeline, step
from zenray.errors import DefinitionError, StepFailed, StepTimedOut
from zenray.limits import Limit, time_limit


@pytest.fixture(autouse=True)
def _inline_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "inline")


def seconds(value: float) -> float:
    time.sleep(value)
    return value


def stubborn(value: float) -> float:
    end = time.monotonic() + value
    while time.monotonic() < end:
        try:
            time.sleep(value)
        except TimeoutError:
            return -1.0
    return value


def run(function: Any, *args: Any, **options: Any) -> Any:
    call = step(**options)(function)

    @pipeline
    def one() -> None:
        call(*args)

    return one()


def attempts(name: str) -> list[Any]:
    return list(zenray.get_run("latest").steps[name].attempts)


def test_a_step_that_takes_longer_than_its_timeout_fails_with_that() -> None:
    with pytest.raises(
        StepFailed, match=r"step 'seconds' failed in attempt 1: StepTimedOut: .* limit of 0.2 s"
    ) as error:
        run(seconds, 600.0, timeout=0.2)
    assert isinstance(error.value.__cause__, StepTimedOut)
    assert isinstance(error.value.__cause__, TimeoutError)
    (attempt,) = attempts("seconds")
    assert attempt.error["kind"] == "timeout"


def test_a_timeout_that_is_long_enough_disturbs_nobody() -> None:
    before = signal.getsignal(signal.SIGALRM)
    assert run(seconds, 0.01, timeout="1h", deadline="2h").steps["seconds"].output.load() == 0.01
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_step_may_give_what_it_has_when_its_time_is_up_but_not_to_the_cache(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        given = run(stubborn, 600.0, timeout=0.2).steps["stubborn"]
        assert (given.status, given.output.load()) == ("succeeded", -1.0)
        assert "not kept in the cache" in capsys.readouterr().err


def test_a_timeout_is_retried_like_an_exception() -> None:
    with pytest.raises(StepFailed, match="in attempt 3: StepTimedOut"):
        run(seconds, 600.0, timeout=0.05, retries=2)
    assert [str(a.status) for a in attempts("seconds")] == ["failed"] * 3
    with pytest.raises(StepFailed, match="in attempt 1: StepTimedOut"):
        run(seconds, 601.0, timeout=0.05, retries=2, retry_on=ValueError)


def test_a_deadline_counts_all_attempts_and_ends_the_last() -> None:
    with pytest.raises(StepFailed, match="StepTimedOut"):
        run(seconds, 600.0, timeout=0.3, deadline=0.5, retries=100)
    assert len(attempts("seconds")) == 2
    with pytest.raises(StepFailed, match=r"in attempt 1: StepTimedOut.*of 100 that are left: the deadline of 0.5 s"):
        run(seconds, 600.0, timeout=0.05, deadline=0.5, retries=100, retry_delay=1)


def test_the_pause_before_an_attempt_doubles() -> None:
    with pytest.raises(StepFailed, match="in attempt 3"):
        run(seconds, 600.0, timeout=0.02, retries=2, retry_delay=0.2)
    first, second, third = attempts("seconds")
    assert second.started_at - first.ended_at >= 0.2
    assert third.started_at - second.ended_at >= 0.4


def test_another_step_runs_while_one_waits_for_its_next_attempt() -> None:
    failing = step(retries=1, retry_delay=0.3, timeout=0.02)(seconds)
    other = step(name="other")(seconds)

    @pipeline
    def two() -> None:
        failing(600.0)
        other(0.0)

    with pytest.raises(StepFailed):
        two()
    assert attempts("other")[0].ended_at < attempts("seconds")[1].started_at


def test_in_another_thread_a_timeout_is_not_watched_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run(seconds, 0.1, timeout=0.01)))
    thread.start()
    thread.join(60)
    assert found[0].status == "succeeded"
    assert "its timeout is not watched" in capsys.readouterr().err


def test_a_limit_that_was_reached_leaves_nothing_behind() -> None:
    with pytest.raises(StepTimedOut), time_limit(Limit(0.01), step_name="x", is_own_process=False):
        time.sleep(60)
    time.sleep(0.05)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_block_that_ends_as_its_time_is_up_leaves_nothing_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    for n in range(300):
        with suppress(StepTimedOut), time_limit(Limit(0.001), step_name="x", is_own_process=False):
            end = time.perf_counter() + 0.0009 + n % 20 * 1e-5
            while time.perf_counter() < end:
                pass
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0}, {"timeout": "soon"}, {"deadline": -1}, {"deadline": float("nan")}, {"retry_delay": None},
        {"retry_delay": "-1s"}, {"timeout": True},
    ],
    ids=str,
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="makes no sense"):
        step(**options)(seconds)
