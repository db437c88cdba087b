"""What a step raises reaches the driver as the exception that it was, with what led to it."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pydantic
import pytest

from zenray import pipeline, step
from zenray.errors import StepFailed
from zenray.raised import MAX_LINKS, describe_failure, exception_of


class Pair(Exception):
    def __init__(self, a: str, b: str) -> None:
        super().__init__(f"{a}-{b}")
        self.a, self.b = a, b


class Missing(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "not here", path)


class Slotted(KeyError):
    __slots__ = ("where",)

    def __init__(self, *, where: str) -> None:
        self.where = where


class Holder(Exception):
    def __init__(self, lock: Any, size: int) -> None:
        super().__init__("held", lock)
        self.lock, self.size = lock, size


class Both(Pair, OSError):
    pass


class Group(ExceptionGroup[Exception]):
    pass


class Model(pydantic.BaseModel):
    n: int


def carried(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as caught:  # noqa: BLE001 - a step may raise anything
        found = exception_of(pickle.loads(pickle.dumps(describe_failure(caught))))
    assert found is not None
    return found


def test_an_exception_with_a_constructor_of_its_own_comes_back() -> None:
    found = carried(Pair("left", "right"))
    assert type(found) is Pair
    assert (str(found), found.a, found.b) == ("left-right", "left", "right")
    assert "in carried" in found.__notes__[0]


@pytest.mark.parametrize("args", [(), ("x",), ({"a": 1}, [2])], ids=str)
@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, StopIteration, SystemExit, KeyboardInterrupt])
def test_pythons_own_come_back(kind: Any, args: tuple[Any, ...]) -> None:
    found = carried(kind(*args))
    assert type(found) is kind
    assert found.args == args


def test_state_outside_of_args_comes_back() -> None:
    missing = carried(Missing("/data"))
    assert type(missing) is Missing
    assert (missing.errno, missing.filename, str(missing)) == (2, "/data", str(Missing("/data")))
    slotted = carried(Slotted(where="here"))
    assert isinstance(slotted, Slotted)
    assert slotted.where == "here"
    both = carried(Both("a", "b"))
    assert isinstance(both, Both)
    assert isinstance(both, OSError)
    absent = carried(ModuleNotFoundError("no", name="lib"))
    assert isinstance(absent, ModuleNotFoundError)
    assert absent.name == "lib"
    text = carried(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))
    assert isinstance(text, UnicodeDecodeError)
    assert text.object == b"\xff"


def test_what_does_not_pickle_is_left_behind_and_the_class_stays() -> None:
    found = carried(Holder(threading.Lock(), 3))
    assert isinstance(found, Holder)
    assert found.args[0] == "held"
    assert found.args[1].startswith("<unlocked _thread.lock")
    assert found.size == 3
    assert not hasattr(found, "lock")


def test_a_huge_argument_costs_neither_the_class_nor_the_others() -> None:
    found = carried(ValueError("short", "x" * 2_000_000))
    assert type(found) is ValueError
    assert found.args[0] == "short"
    assert len(found.args[1]) == 200


def test_a_class_that_says_itself_how_it_is_rebuilt_is_asked() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Model(n="x")  # type: ignore[arg-type]  # that is what is tested
    found = carried(caught.value)
    assert isinstance(found, pydantic.ValidationError)
    assert found.errors() == caught.value.errors()


def test_a_class_that_cannot_be_found_is_its_text() -> None:
    class Local(ValueError):
        pass

    found = carried(Local("here"))
    assert type(found) is RuntimeError
    assert "Local: here" in str(found)


def test_causes_and_contexts_come_along() -> None:
    class Local(Exception):
        pass

    def fail() -> None:
        try:
            try:
                raise Local("first")
            except Local:
                raise Pair("a", "b")  # noqa: B904 - the context is what is tested
        except Pair as exc:
            raise ValueError("last") from exc

    with pytest.raises(ValueError, match="last") as caught:
        fail()
    found = carried(caught.value)
    assert isinstance(found.__cause__, Pair)
    assert found.__context__ is found.__cause__
    assert found.__suppress_context__
    assert not found.__cause__.__suppress_context__
    assert "Local: first" in str(found.__cause__.__context__)


def test_the_members_of_a_group_come_along() -> None:
    found = carried(Group("several", [Pair("a", "b"), ExceptionGroup("inner", [KeyError("k")])]))
    assert type(found) is Group
    assert [type(e) for e in found.exceptions] == [Pair, ExceptionGroup]
    assert found.split(KeyError)[0] is not None


def test_a_long_chain_is_cut_and_a_circle_ends() -> None:
    last: BaseException = ValueError("0")
    for n in range(1, 5_000):
        following = ValueError(str(n))
        following.__cause__ = last
        last = following
    link: BaseException | None = carried(last)
    length = 0
    while link is not None:
        length, link = length + 1, link.__cause__
    assert length == MAX_LINKS
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    found = carried(first)
    assert found.__cause__ is not None
    assert found.__cause__.__cause__ is found


def test_a_script_that_is_run_catches_its_own_exceptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    (tmp_path / "script.py").write_text("""
from zenray import pipeline, step
from zenray.errors import StepFailed

class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a}-{b}")

@step
def fail() -> int:
    try:
        raise KeyError("why")
    except KeyError as exc:
        raise Odd(1, 2) from exc

@pipeline
def failing():
    fail()

if __name__ == "__main__":
    try:
        failing()
    except StepFailed as exc:
        assert isinstance(exc.__cause__, Odd), repr(exc.__cause__)
        assert isinstance(exc.__cause__.__cause__, KeyError)
        print("caught", exc.__cause__)
""")
    command = [sys.executable, "script.py"]
    monkeypatch.setenv("ZENRAY_STACK", "inline")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "caught 1-2" in done.stdout


@step
def fails_oddly() -> int:
    raise Pair("x", "y")


@pipeline
def odd() -> None:
    fails_oddly()


def test_a_failed_step_has_its_exception_as_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path))
    monkeypatch.setenv("ZENRAY_STACK", "inline")
    with pytest.raises(StepFailed, match="x-y") as caught:
        odd()
    assert isinstance(caught.value.__cause__, Pair)
