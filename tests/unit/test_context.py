"""What a step asks about itself and the facts it keeps: ``zenray.context()`` and ``zenray.log_metadata``."""

import json
import threading
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zenray
from zenray import pipeline, step
from zenray.cli import runs
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
