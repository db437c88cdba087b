"""What a step asks about itself and the facts it keeps: ``zenray.context()`` and ``zenray.log_metadata``."""

import json
import threading
import time
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zenray
from zenray import pipeline, step
from zenray.cli import runs
from zenray.context import MAX_SAMPLES, StepContext, entered
from zenray.errors import DefinitionError, StepFailed
from zenray.fingerprint import fingerprint
from zenray.model import Status

FAILURES = {"left": 0}


@pytest.fixture(autouse=True)
def _inline_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "inline")


def deep(value: Any) -> None:
    zenray.log_metadata(loss=value)


@step
def train(n: int) -> int:
    deep(n / 4)
    zenray.log_metadata(note="text", curve=[1, (2, None)], nested={"a": {"b": True}})
    return n


@step(cache=False, retries=1)
def flaky(n: int) -> int:
    zenray.log_metadata(**{f"attempt_{zenray.context().attempt}": n})
    if zenray.context().attempt == 1:
        raise ValueError("the first one fails")
    return n


@step(cache=False)
def described(n: int) -> str:
    here = zenray.context()
    return f"{here.run_id}/{here.step_name}/{here.attempt}/{here.tracker}"


@step(cache=False)
def in_thread(n: int) -> int:
    worker = threading.Thread(target=deep, args=(n,))
    worker.start()
    worker.join()
    return n


@step(cache=False)
def wrong(kind: str) -> int:
    values = {"object": object(), "deep": {"a": [{1}]}, "keys": {1: 2}, "array": np.zeros(3)}
    zenray.log_metadata(**{kind: values[kind]})
    return 1


@pipeline
def training(n: int = 1) -> None:
    train(n)


@pipeline
def several() -> None:
    flaky(3)
    described(1)
    described(2)
    in_thread(5)


@pipeline
def failing(kind: str) -> None:
    wrong(kind)


class Link:
    """A tracker that nobody asks for."""

    def attach(self, run_id: str) -> Any:
        raise AssertionError(run_id)

    def detach(self) -> None:
        raise AssertionError


def test_a_number_logged_in_a_loop_is_kept_as_a_series_for_the_tracker_and_once_in_the_record() -> None:
    here = StepContext("run", "step", 1, Link())
    began = time.time()
    with entered(here):
        for i in range(5):
            zenray.log_metadata(loss=1 / (i + 1), epoch=np.int64(i), note=f"epoch {i}")
        zenray.log_metadata(once=1)
    assert here.metadata == {"loss": 0.2, "epoch": 4, "note": "epoch 4", "once": 1}
    assert {key: [s[:2] for s in samples] for key, samples in here.series.items()} == {
        "loss": [(i, 1 / (i + 1)) for i in range(5)],
        "epoch": [(i, i) for i in range(5)],
    }
    times = [at for _, _, at in here.series["loss"]]
    assert began <= times[0]
    assert times == sorted(times)


def test_without_a_tracker_no_series_is_kept() -> None:
    here = StepContext("run", "step", 1)
    with entered(here):
        for i in range(5):
            zenray.log_metadata(loss=i)
    assert here.series == {}


@given(st.integers(2, 5000))
@settings(max_examples=30, deadline=None)
def test_of_a_long_series_evenly_chosen_numbers_are_kept_and_the_last(count: int) -> None:
    here = StepContext("run", "step", 1, Link())
    for i in range(count):
        here.keep({"loss": i})
    indices = [index for index, value, _ in here.series["loss"] if index == value]
    assert len(indices) == len(here.series["loss"]) <= MAX_SAMPLES + 1
    assert len(indices) >= min(count, MAX_SAMPLES // 2)
    assert (indices[0], indices[-1]) == (0, count - 1)
    assert len({b - a for a, b in pairwise(indices[:-1])}) <= 1


def test_metadata_is_kept_with_the_step_run_and_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    run = training()
    expected = {"loss": 0.25, "note": "text", "curve": [1, [2, None]], "nested": {"a": {"b": True}}}
    assert run.steps["train"].metadata == expected
    runs.show(run.run_id, as_json=True)
    assert json.loads(capsys.readouterr().out)["steps"][0]["metadata"] == expected


def test_a_cached_step_has_no_metadata() -> None:
    training()
    again = training()
    assert again.steps["train"].status is Status.CACHED
    assert again.steps["train"].metadata == {}


def test_only_what_the_successful_attempt_logged_counts() -> None:
    assert several().steps["flaky"].metadata == {"attempt_2": 3}


def test_a_step_knows_its_run_its_name_there_and_its_attempt() -> None:
    run = several()
    assert run.steps["described_2"].output.load() == f"{run.run_id}/described_2/1/None"


def test_a_thread_that_a_step_started_logs_for_it() -> None:
    assert several().steps["in_thread"].metadata == {"loss": 5}


@pytest.mark.parametrize(
    ("kind", "key"), [("object", "object"), ("deep", "deep.a[0]"), ("keys", "keys"), ("array", "array")]
)
def test_a_value_that_json_cannot_hold_is_an_error_that_names_its_key(kind: str, key: str) -> None:
    with pytest.raises(StepFailed, match="JSON cannot hold") as caught:
        failing(kind)
    assert repr(key) in str(caught.value)


def test_numbers_of_numpy_torch_and_enums_are_numbers() -> None:
    class Level(IntEnum):
        HIGH = 3

    context = zenray.StepContext("run", "step", 1)
    from zenray.context import entered

    with entered(context):
        zenray.log_metadata(a=np.float32(0.5), b=np.int64(2), c=torch.tensor(1.5), d=Level.HIGH, e=float("nan"))
    kinds = {k: type(v) for k, v in context.metadata.items()}
    assert kinds == {"a": float, "b": int, "c": float, "d": int, "e": float}


def test_outside_of_a_step_both_are_errors_that_say_so() -> None:
    with pytest.raises(DefinitionError, match=r"zenray.context\(\) was called outside of a step"):
        zenray.context()
    with pytest.raises(DefinitionError, match=r"zenray.log_metadata\(loss\) was called outside of a step"):
        zenray.log_metadata(loss=1)


def test_a_step_that_logs_can_be_called_as_a_function() -> None:
    assert train(8) == 8
    assert described(1) == "/described/0/None"


def test_logging_leaves_a_steps_fingerprint_as_it_is() -> None:
    before = fingerprint(train.function).digest
    training(5)
    assert fingerprint(train.function).digest == before
    assert fingerprint(train.function).problems == ()
