"""Values and annotations that nobody expects: each is handled or refused in words, never by an exception of ours."""

import json
import os
import subprocess
import sys
import threading
import traceback
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
import polars as pl
import pytest

from zenray import File, Folder, artifacts, pipeline, step
from zenray.annotations import fits, may_flow
from zenray.cli import failures
from zenray.cli.explanation import Explainer
from zenray.errors import DefinitionError, StoreError, UnfinishedArtifactError, shown
from zenray.materializer import registry
from zenray.metadata.rows import from_json, to_json
from zenray.store import open_store
from zenray.views import Books

HUGE = 10**5000


@pytest.fixture(autouse=True)
def _inline_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "inline")


class Row(TypedDict):
    a: int


class HasName(Protocol):
    name: str


@runtime_checkable
class Sized2(Protocol):
    size: int

    def grow(self) -> None: ...


@dataclass
class Named:
    name: str


class Colour(Enum):
    RED = 1


class Unshowable:
    def __repr__(self) -> str:
        raise KeyError("no")


@step
def number(n: int) -> int:
    return n


@step
def total(numbers: list[int]) -> int:
    return sum(numbers)


@step
def any_of(value: Any) -> int:
    return 1


@pytest.mark.parametrize("target", [Row, HasName, Sized2, Named], ids=str)
@pytest.mark.parametrize("source", [Row, HasName, Sized2, dict], ids=str)
def test_what_cannot_be_decided_may_flow(source: Any, target: Any) -> None:
    expected = not (target is Named and source in (Row, dict))
    assert may_flow(source, target) is expected


def test_a_typed_dict_is_a_dict() -> None:
    assert fits({"a": 1}, Row)
    assert not fits([1], Row)
    assert not may_flow(Row, list)

    @step
    def make() -> Row:
        return {"a": 1}

    @step
    def use(row: Row) -> int:
        return row["a"]

    @pipeline
    def rows() -> Any:
        return use(make())

    assert rows().steps["use"].output.load() == 1


def test_an_array_is_no_literal() -> None:
    assert not fits(np.arange(3), Literal["a", "b"])
    assert fits(np.arange(3), Literal["a"] | np.ndarray)
    assert fits("a", Literal["a", "b"])


def test_a_series_without_a_name_stays_without(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for series in (pl.Series([1, 2]), pl.Series("column_0", [1, 2])):
        loaded = artifacts.load(artifacts.save(series, store, table=registry.table()), store)
        assert loaded.name == series.name
        assert loaded.equals(series)


def test_a_member_of_an_enum_has_a_preview(tmp_path: Path) -> None:
    manifest = artifacts.save(Colour.RED, open_store(str(tmp_path / "store")), table=registry.table())
    assert manifest.preview == {"value": "Colour.RED"}


def test_an_artifact_in_a_text_is_an_error() -> None:
    @pipeline
    def texts() -> None:
        print(f"{number(1)}")

    with pytest.raises(UnfinishedArtifactError, match=r"number.output> is not a value yet"):
        texts()


@pytest.mark.parametrize(
    "hide",
    [lambda a: {a}, lambda a: OrderedDict(a=a), lambda a: Named(a), lambda a: [Named(a)], lambda a: {1: {a}}],
    ids=["set", "OrderedDict", "dataclass", "list of dataclass", "dict of set"],
)
def test_an_artifact_where_it_cannot_be_taken_from_is_refused(hide: Any) -> None:
    @pipeline
    def hidden() -> None:
        any_of(hide(number(1)))

    with pytest.raises(DefinitionError, match=r"argument 'value'.*<artifact number.output>.*lists, tuples and dicts"):
        hidden()


def test_an_argument_that_contains_itself_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    endless: list[Any] = []
    endless.append(endless)

    @step
    def nested(value: list[list[Any]]) -> int:
        return 1

    for taker in (any_of, nested):

        @pipeline
        def recursive(taker: Any = taker) -> None:
            taker(endless)

        with pytest.raises(DefinitionError, match="argument 'value' contains itself") as caught:
            recursive(taker)
        failures.report(caught.value, is_traced=False)
        shown = capsys.readouterr().err
        assert "RecursionError" not in shown
        assert "taker(endless)" in shown


def test_a_record_takes_numbers_that_have_no_decimal_text() -> None:
    @pipeline
    def huge(n: int) -> Any:
        any_of([n, {"x": n}])
        return number(n), n

    run = huge(HUGE)
    assert run.steps["number"].output.load() == HUGE
    assert run.parameters == {"n": "<int of 16610 bits>"}
    assert run.steps["number"].record.parameters == {"n": "<int of 16610 bits>"}
    with pytest.raises(DefinitionError, match="'n' must be int, got <Unshowable whose repr raises KeyError>"):
        huge(Unshowable())  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [HUGE, {"a": HUGE, "b": 1}, {"a": [HUGE]}, [Unshowable()]], ids=shown)
def test_every_record_is_json_that_can_be_read(value: Any) -> None:
    from_json(to_json(value))


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for given in (File(str(tmp_path / "pipe")), File(str(tmp_path / "pipe"), by="stat"), Folder(str(tmp_path))):
        with pytest.raises(StoreError, match="is no regular file"):
            given.identified()


def test_a_step_called_in_a_thread_of_a_pipeline_says_what_it_did() -> None:
    @pipeline
    def threads() -> None:
        caught: list[Warning] = []

        def call() -> None:
            try:
                number(1)
            except UserWarning as warning:
                caught.append(warning)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        assert "ran there as a plain function" in str(caught[0])

    threads()


def test_a_step_may_call_another_in_its_own_threads() -> None:
    @step
    def outer(n: int) -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(number(n)))
        thread.start()
        thread.join()
        return found[0]

    @pipeline
    def nested() -> Any:
        return outer(3)

    assert nested().steps["outer"].output.load() == 3


def test_half_of_a_surrogate_pair_can_be_printed_by_an_inline_step(tmp_path: Path) -> None:
    script = tmp_path / "flow.py"
    script.write_text(
        "from zenray import pipeline, step\n"
        "@step\ndef s(x: int) -> int:\n    print('out \\ud800 é')\n    return x\n"
        "@pipeline\ndef p():\n    s(1)\n"
        "if __name__ == '__main__':\n    print(ascii(p().steps['s'].logs))\n"
    )
    for encoding in ("utf-8", "ascii"):
        environment = os.environ | {"PYTHONIOENCODING": encoding, "ZENRAY_HOME": str(tmp_path / encoding)}
        ran = subprocess.run([sys.executable, script], capture_output=True, env=environment, check=False)
        assert ran.returncode == 0, ran.stderr.decode()
        assert rb"out \ud800" in ran.stdout


def test_a_frame_of_a_materializer_is_ours() -> None:
    try:
        registry.table()
        artifacts.load_materializer("zenray_materializers.plain:PlainMaterializer").load(None, int, {})
    except AttributeError as exc:
        frames = [f.filename for f in traceback.extract_tb(exc.__traceback__)]
        assert failures._is_ours(frames[-1])
        assert not failures._is_ours(frames[0])


def test_json_text_of_what_json_has_is_unchanged() -> None:
    assert json.loads(to_json({"a": [1, 2.5, None, "x"]})) == {"a": [1, 2.5, None, "x"]}


def test_what_an_earlier_run_made_is_cached_where_it_holds_no_instances() -> None:
    @step
    def name_of(named: Named) -> str:
        return named.name

    @step
    def named(n: int) -> Named:
        return Named(str(n))

    @step
    def numbers(n: int) -> list[int]:
        return list(range(n))

    @pipeline
    def makes() -> None:
        numbers(3)
        named(1)

    @pipeline
    def takes() -> None:
        total(made.steps["numbers"].output)
        name_of(made.steps["named"].output)

    made = makes()
    takes()
    again = takes()
    assert [str(s.status) for s in again.steps.values()] == ["cached", "succeeded"]
    explained = Explainer(Books().ledger).explain(again.steps["name_of"].record)
    assert "it takes instances of classes whose code is not recorded" in explained
