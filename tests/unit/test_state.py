"""A fingerprint's state: every change of what it was taken of is noticed, and nothing else costs a new one."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from zenray.fingerprint import watched

SOURCE = """
import functools, threading
from collections import deque
import numpy as np

NUMBER, TEXT, NESTED, SET, QUEUE = 1, "a", {"a": [1, {"b": 2}]}, {1, 2}, deque([1])
LOCK = threading.Lock()
UNUSED = [1]
ARRAY = np.zeros(3)

class Model:
    rate = 1
    def __init__(self):
        self.weights = [1]
    def predict(self):
        return self.rate

class Slotted:
    __slots__ = ("x",)

MODEL = Model()
PREDICT = MODEL.predict
SLOTTED = Slotted()

def helper(n, extra=[]):
    return n

def memo(n):
    global NUMBER
    return n

def step(n):
    with LOCK:
        return helper(n), NUMBER, TEXT, NESTED, SET, QUEUE, MODEL

def with_array(n):
    return ARRAY

def with_slots(n):
    return SLOTTED

def with_method(n):
    return PREDICT()

def with_missing(n):
    return LATER
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "watched_flow.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import watched_flow

    yield watched_flow
    del sys.modules["watched_flow"]


CHANGES: dict[str, Callable[[ModuleType], object]] = {
    "a global": lambda m: setattr(m, "NUMBER", 2),
    "a nested list": lambda m: m.NESTED["a"].append(2),
    "a nested dict": lambda m: m.NESTED["a"][1].update(b=3),
    "a set": lambda m: (m.SET.remove(1), m.SET.add(3)),
    "a deque": lambda m: m.QUEUE.append(1),
    "a class attribute": lambda m: setattr(m.Model, "rate", 2),
    "a method": lambda m: setattr(m.Model, "predict", lambda self: 2),
    "an attribute of an instance": lambda m: m.MODEL.weights.append(2),
    "a default": lambda m: m.helper.__defaults__[0].append(2),
    "the defaults": lambda m: setattr(m.helper, "__defaults__", (1,)),
    "an attribute of a function": lambda m: setattr(m.helper, "mark", 1),
    "a function": lambda m: setattr(m, "helper", lambda n: n),
    "the code of a function": lambda m: setattr(m.helper, "__code__", m.memo.__code__),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_noticed(module: ModuleType, what: str) -> None:
    found, state = watched(module.step)
    assert state is not None
    assert not found.problems
    assert state.holds()
    CHANGES[what](module)
    assert not state.holds()


def test_the_object_behind_a_bound_method_counts(module: ModuleType) -> None:
    _, state = watched(module.with_method)
    assert state is not None
    assert state.holds()
    module.MODEL.weights.append(2)
    assert not state.holds()


def test_a_name_that_comes_into_being_is_noticed(module: ModuleType) -> None:
    _, state = watched(module.with_missing)
    assert state is not None
    module.LATER = 1
    assert not state.holds()


def test_what_is_not_used_costs_nothing(module: ModuleType) -> None:
    _, state = watched(module.step)
    assert state is not None
    module.UNUSED.append(2)
    module.UNUSED = [3]
    assert state.holds()


@pytest.mark.parametrize("name", ["with_array", "with_slots"])
def test_what_cannot_be_compared_never_holds(module: ModuleType, name: str) -> None:
    _, state = watched(getattr(module, name))
    assert state is not None
    assert not state.holds()


def test_a_module_that_is_imported_later_is_noticed(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "watched_later.py").write_text("MODE = 1\n")
    (tmp_path / "watched_lazy.py").write_text("def step(n):\n    import watched_later\n    return watched_later.MODE\n")
    import watched_lazy

    _, state = watched(watched_lazy.step)
    assert state is not None
    assert state.holds()
    watched_lazy.step(1)
    assert not state.holds()
    for name in ("watched_lazy", "watched_later"):
        del sys.modules[name]
