"""Runs logged to Weights & Biases in its offline mode: the folders that ``wandb sync`` would upload are read back."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zenray
from tests.trackers.conftest import Tracking
from zenray import pipeline, step
from zenray.errors import ConfigError
from zenray.model import Status
from zenray.trackers.wandb import INDEX


@step(cache=False)
def train(n: int) -> float:
    zenray.log_metadata(loss=0.25)
    zenray.context().tracker.log({"inner": n})
    return n / 2


@pipeline
def learning(n: int = 3) -> None:
    train(n)


@step(cache=False)
def looping(n: int) -> int:
    for epoch in range(n):
        zenray.log_metadata(loss=1 / (epoch + 1), epoch=epoch)
    return n


@pipeline
def loops(n: int = 4) -> None:
    looping(n)


BLOCK = 32768
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def scan(path: Path) -> Iterator[bytes]:
    """Give the records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + 7 : position + 7 + size]
        position += 7 + size
        parts = piece if kind in (WHOLE, FIRST) else parts + piece
        if kind in (WHOLE, LAST):
            yield parts


def records(folder: Path) -> list[Any]:
    """Read every record of every offline run in a folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [Record.FromString(data) for path in files for data in scan(path)]


def rows(found: list[Any]) -> list[dict[str, Any]]:
    items = [r.history.item for r in found if r.WhichOneof("record_type") == "history"]
    named = [{(i.key or i.nested_key[0]): json.loads(i.value_json) for i in row} for row in items]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in named]


def history(found: list[Any]) -> dict[str, Any]:
    return {k: v for row in rows(found) for k, v in row.items() if k != INDEX}


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return Tracking({"flavor": "wandb", "project": "tests", "dir": str(tmp_path), "api_key": "0" * 40})


def test_a_run_is_logged_under_its_own_id_with_numbers_parameters_and_status(
    tracking: Tracking, tmp_path: Path
) -> None:
    run, seen = tracking.run(learning)
    assert run.status is Status.SUCCEEDED
    assert (seen.notes, seen.remarks) == ([], [])
    found = records(tmp_path)
    assert {r.run.run_id for r in found if r.WhichOneof("record_type") == "run"} == {run.run_id}
    assert history(found) == {"inner": 3, "train.output": 1.5, "train.loss": 0.25}
    config = {u.key: json.loads(u.value_json) for r in found for u in (*r.config.update, *r.run.config.update) if u.key}
    assert config["n"] == 3
    assert config["zenray"]["stack"] == "inline"
    assert [r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"] == [0]


def test_a_number_logged_in_a_loop_is_a_series_over_its_index(tracking: Tracking, tmp_path: Path) -> None:
    run, seen = tracking.run(loops)
    assert (run.status, seen.notes, seen.remarks) == (Status.SUCCEEDED, [], [])
    found = records(tmp_path)
    values = [(row[INDEX], row["looping.loss"], row["looping.epoch"]) for row in rows(found)]
    assert values == [(i, 1 / (i + 1), i) for i in range(4)]
    assert [row["looping.output"] for row in rows(found) if "looping.output" in row] == [4]
    defined = {r.metric.name: r.metric for r in found if r.WhichOneof("record_type") == "metric"}
    assert defined["looping.loss"].step_metric == defined["looping.epoch"].step_metric == INDEX


@pytest.mark.usefixtures("cluster")
def test_steps_on_ray_write_folders_of_their_own_under_the_same_id(tracking: Tracking, tmp_path: Path) -> None:
    run, seen = Tracking(tracking.options, stack="local").run(learning)
    assert (seen.notes, seen.remarks) == ([], [])
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    found = records(tmp_path)
    assert {r.run.run_id for r in found if r.WhichOneof("record_type") == "run"} == {run.run_id}
    assert history(found) == {"inner": 3, "train.output": 1.5, "train.loss": 0.25}


def test_an_unknown_mode_is_refused(tracking: Tracking) -> None:
    with pytest.raises(ConfigError, match="mode must be 'online', 'offline' or 'disabled', got 'ofline'"):
        Tracking(dict(tracking.options) | {"mode": "ofline"}).run(learning)
