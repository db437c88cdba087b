"""Outputs that could not be stored are refused before any step runs, and nothing else is."""

import numbers
import threading
from abc import ABC
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Generic, NamedTuple, NewType, NotRequired, Protocol, TypedDict, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pydantic
import pytest
from sklearn.linear_model import LogisticRegression

import zenray
from zenray import Materializer, pipeline, step, storable
from zenray.errors import DefinitionError, StepFailed
from zenray.materializer import no_materializer, registry

RAN: list[str] = []
T = TypeVar("T")


@pytest.fixture(autouse=True)
def _inline_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "inline")
    RAN.clear()


class Opq:
    pass


class Rows(dict[str, int]):
    pass


class Count(int):
    pass


class Table:
    pass


class LogisticRegresion:
    pass


@dataclass
class Box:
    held: Opq
    n: int = 1


@dataclass
class Filled:
    held: Opq = field(default_factory=Opq)


@dataclass
class Later:
    held: Opq | None = None
    other: Opq = None  # type: ignore[assignment]  # people write this
    unset: Opq = field(init=False, repr=False, compare=False)
    unknown: "Nowhere" = 1  # type: ignore[name-defined]  # noqa: F821


@dataclass
class Node:
    value: int
    children: "list[Node]"


@dataclass
class Typed(Generic[T]):
    value: T


class Pair(NamedTuple):
    left: int
    right: Opq


class Item(TypedDict):
    held: Opq


class Loose(TypedDict):
    held: NotRequired[Opq]
    inner: "Loose"


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    held: Opq


class LooseModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    held: Opq | None = None


class Shape:
    pass


@dataclass
class Circle(Shape):
    radius: int


class Named(Protocol):
    name: str


class Concrete(ABC):  # noqa: B024 - that is what is tested
    pass


class Colour(Enum):
    RED = 1


Wrapped = NewType("Wrapped", Opq)


def declared(annotation: Any, value: Any = None, **options: Any) -> Any:
    def make() -> Any:
        RAN.append("make")
        return value

    make.__annotations__ = {"return": annotation}
    return step(cache=False, **options)(make)


@step(cache=False)
def first() -> int:
    RAN.append("first")
    return 1


def run(made: Any) -> Any:
    @pipeline
    def flow() -> Any:
        first()
        return made()

    return flow()


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (Opq, "Opq"),
        (Annotated[Opq, "model"], "Opq"),
        (Opq | None, "Opq"),
        (list[Opq], "Opq"),
        (list[list[Opq]], "Opq"),
        (dict[str, Opq], "Opq"),
        (tuple[Opq, ...], "Opq"),
        (deque[Opq], "Opq"),
        (OrderedDict[str, Opq], "Opq"),
        (list[Opq | Table], "Opq"),
        (Annotated[list[Opq], "model"], "Opq"),
        (Wrapped, "Opq"),
        (Concrete, "Concrete"),
        (Box, "Opq"),
        (list[Box], "Opq"),
        (Filled, "Opq"),
        (Pair, "Opq"),
        (Item, "Opq"),
        (Model, "Opq"),
        (Rows, "Rows"),
        (Count, "Count"),
        (list[Count], "Count"),
        (Sequence[int] | Opq, "Opq"),
        (type[int], "type"),
    ],
    ids=str,
)
def test_what_no_value_could_be_stored_of_is_refused_before_any_step_runs(annotation: Any, name: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        run(declared(annotation))
    message = str(caught.value)
    output = "model" if "model" in str(annotation) else "output"
    assert message.startswith(f"step 'make', output '{output}'")
    assert f"class {name}Materializer(Materializer):" in message
    assert f"{name}'" in message.splitlines()[0]
    assert "(near: " in message or "`zenray materializer list`" in message
    assert RAN == []
    assert zenray.list_runs() == []


def test_a_step_that_the_pipelines_code_does_not_name_is_refused_before_any_step_runs() -> None:
    steps = {"bad": declared(list[Opq], [Opq()])}

    @pipeline
    def flow() -> Any:
        first()
        return steps["bad"]()

    with pytest.raises(DefinitionError, match="step 'make', output 'output', annotated list"):
        flow()
    assert RAN == []


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (list[Opq | None], [None]),
        (dict[str, int | Opq], {"a": 1}),
        (Later, Later()),
        (LooseModel, LooseModel()),
        (Loose, {"inner": {}}),
        (Node, Node(1, [Node(2, [])])),
        (Typed[int], Typed(1)),
        (list, [1]),
        (dict, {}),
        (Any, 1),
        (object, 1),
        (T, 1),
        (list[T], [1]),  # type: ignore[valid-type]
        ("Nowhere", 1),
        (list["Nowhere"], [1]),  # type: ignore[name-defined]  # noqa: F821
        (Named, LooseModel()),
        (Shape, Circle(1)),
        (list[Shape], [Circle(1)]),
        (numbers.Number, 1),
        (tzinfo, UTC),
        (PurePath, PurePath("/a")),
        (Enum, Colour.RED),
        (Iterable[Opq], [1]),
        (Callable[[], int] | int, 1),
        (dict[str, np.ndarray[Any, Any]], {"a": np.arange(2)}),
        (dict[str, pa.Table], {"a": pa.table({"a": [1]})}),
        (list[pl.DataFrame], [pl.DataFrame({"a": [1]})]),
        (LogisticRegression, LogisticRegression()),
        (pydantic.BaseModel, LooseModel()),
    ],
    ids=str,
)
def test_what_may_be_stored_is_not_refused(annotation: Any, value: Any) -> None:
    assert run(declared(annotation, value)).status == "succeeded"


def test_a_step_that_may_pickle_is_not_refused() -> None:
    assert run(declared(list[Opq], [Opq()], allow_pickle=True)).status == "succeeded"


class OwnRows(dict[str, int]):
    pass


class Base:
    pass


class Sub(Base):
    pass


@registry.register
class OwnMaterializer(Materializer):
    types = (OwnRows, Sub)


def test_a_type_with_a_materializer_of_ones_own_is_not_refused() -> None:
    for annotation in (OwnRows, list[OwnRows], Sub, Base, dict[str, Base]):
        storable.check(declared(annotation), set())


@pytest.mark.parametrize("value", [threading.Lock(), [threading.Lock()], {"a": [Opq()]}, Rows(), [Count()]], ids=repr)
def test_an_undeclared_output_that_cannot_be_stored_is_named_with_its_step_and_what_to_write(value: Any) -> None:
    with pytest.raises(StepFailed) as caught:
        run(declared(tuple[Any, Annotated[Any, "second"]], (1, value)))
    message = str(caught.value)
    assert "step 'make', output 'second': " in message
    assert "Materializer(Materializer):" in message
    assert "@step(allow_pickle=True)" in message


@pytest.mark.parametrize(
    ("cls", "near"),
    [
        (Table, ["'pyarrow.lib.Table'"]),
        (LogisticRegresion, ["'sklearn.linear_model._logistic.LogisticRegression'"]),
        (Opq, []),
    ],
)
def test_types_of_a_similar_name_are_near_and_others_are_not(cls: type, near: list[str]) -> None:
    shown = no_materializer(cls).splitlines()[0]
    assert f"near: {near[0]}" in shown if near else "near" not in shown
