"""Where steps run in the pipeline's process: what code reads counts as it is when a step starts, whoever changed it."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zenray import pipeline, step


@pytest.fixture(autouse=True)
def _inline_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path))
    monkeypatch.setenv("ZENRAY_STACK", "inline")


MODE: Any = "a"
LEVELS: dict[str, Any] = {"n": 1, "inner": [1]}
WEIGHTS = np.zeros(2)
SEEN: list[int] = []


@step
def by_mode(n: int) -> str:
    SEEN.append(n)
    return f"{MODE}{LEVELS}{WEIGHTS.tolist()}{n}"


def _set(name: str, value: object) -> None:
    vars(sys.modules[__name__])[name] = value


EDITS: dict[str, Callable[[], object]] = {
    "global": lambda: _set("MODE", "b"),
    "item of a dict": lambda: LEVELS.update(n=2),
    "list inside of a dict": lambda: LEVELS["inner"].append(2),
    "array": lambda: WEIGHTS.__setitem__(0, 5.0),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_the_pipeline_changes_between_two_steps_is_in_the_key_of_the_second(name: str) -> None:
    @pipeline
    def once() -> list[str]:
        return [by_mode(1).load()]

    @pipeline
    def twice() -> list[str]:
        first = by_mode(1).load()
        EDITS[name]()
        return [first, by_mode(1).load()]

    _set("MODE", "a")
    _set("LEVELS", {"n": 1, "inner": [1]})
    _set("WEIGHTS", np.zeros(2))
    SEEN.clear()
    once()
    SEEN.clear()
    run = twice()
    assert [str(s.status) for s in run.steps.values()] == ["cached", "succeeded"]
    first, second = (s.output.load() for s in run.steps.values())
    assert first != second == f"{MODE}{LEVELS}{WEIGHTS.tolist()}1"


COUNT = 0


@step
def count(n: int) -> int:
    global COUNT
    COUNT += 1
    return 100 * COUNT + n


@step(retries=1)
def count_again(n: int) -> int:
    global COUNT
    COUNT += 1
    if COUNT == 1:
        raise ValueError
    return 100 * COUNT + n


@step
def counted(n: int) -> int:
    return 100 * COUNT + n


def values(run: Any) -> list[tuple[str, int]]:
    return [(str(s.status), s.output.load()) for s in run.steps.values()]


@pytest.mark.parametrize("loads", [False, True])
def test_what_steps_change_in_this_process_is_in_the_keys_of_the_next_ones(
    loads: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    @pipeline
    def several() -> None:
        for made in (count(1), counted(2), count(3)):
            if loads:
                made.load()

    @pipeline
    def some() -> None:
        counted(2)
        count(3)

    _set("COUNT", 0)
    assert values(several()) == [("succeeded", 101), ("succeeded", 102), ("succeeded", 203)]
    assert capfd.readouterr().err.count("it changes constant 'tests.unit.test_changing_code.COUNT'") == 1
    _set("COUNT", 0)
    assert values(some()) == [("succeeded", 2), ("succeeded", 103)]
    _set("COUNT", 1)
    assert values(some()) == [("cached", 102), ("cached", 203)]


def test_calls_whose_code_changes_before_they_start_are_still_computed_once() -> None:
    @pipeline
    def twins() -> None:
        count(1)
        counted(2)
        counted.options(num_cpus=2)(2)

    _set("COUNT", 0)
    assert values(twins()) == [("succeeded", 101), ("succeeded", 102), ("cached", 102)]


def test_an_attempt_after_one_that_changed_what_its_code_reads_has_another_key() -> None:
    @pipeline
    def once() -> None:
        count_again(1)

    _set("COUNT", 0)
    assert values(once()) == [("succeeded", 201)]
    for before in (1, 0):  # from 0 its first attempt changes it to 1, and its second is looked up
        _set("COUNT", before)
        assert values(once()) == [("cached", 201)]


@functools.lru_cache
def remembered(n: int) -> str:
    return f"{MODE}{n}"


@step
def remembers(n: int) -> str:
    return remembered(n)


def test_a_result_that_a_helper_remembers_from_before_a_change_is_not_kept(capfd: pytest.CaptureFixture[str]) -> None:
    @pipeline
    def once() -> None:
        remembers(1)

    @pipeline
    def twice() -> None:
        remembers(1).load()
        _set("MODE", "b")
        remembers(1)

    _set("MODE", "a")
    assert values(twice()) == [("succeeded", "a1"), ("succeeded", "a1")]
    assert capfd.readouterr().err.count("call remembered.cache_clear() after the change") == 1
    remembered.cache_clear()
    assert values(once()) == [("succeeded", "b1")]
