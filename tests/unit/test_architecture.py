"""Budgets of the code itself: hops to the user's function, what an import costs, sizes, errors that pickle."""

import ast
import pickle
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import yaml
from packaging.requirements import Requirement

import zenray
from zenray import errors, pipeline, step

SOURCE = Path(zenray.__file__).parent
PACKAGES = (SOURCE, SOURCE.parent / "materializers" / "zenray_materializers")
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py") if "migrations" not in path.parts)
HEAVY = (
    "ray",
    "sqlalchemy",
    "alembic",
    "pyarrow",
    "fsspec",
    "typer",
    "rich",
    "pydantic",
    "numpy",
    "pandas",
    "torch",
    "mlflow",
    "wandb",
)
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 600, 80
MAX_HOPS, MAX_FILES = 13, 7


@step(cache=False)
def hello(n: int) -> int:
    frame: FrameType | None = sys._getframe()
    PATH.clear()
    while frame is not None:
        if frame.f_code.co_filename.startswith(str(SOURCE)):
            PATH.append((Path(frame.f_code.co_filename).name, frame.f_code.co_qualname))
        frame = frame.f_back
    return n


@pipeline
def greeting() -> None:
    hello(1)


PATH: list[tuple[str, str]] = []


def test_a_reader_follows_a_run_to_the_users_function_in_few_hops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path))
    monkeypatch.setenv("ZENRAY_STACK", "inline")
    greeting()
    assert len(PATH) <= MAX_HOPS, PATH
    assert len({file for file, _ in PATH}) <= MAX_FILES, PATH


def test_importing_zenray_imports_nothing_heavy() -> None:
    code = f"import sys, zenray; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name


def all_errors(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for cls in root.__subclasses__():
        yield from all_errors(cls)


@pytest.mark.parametrize("cls", sorted(all_errors(errors.ZenRayError), key=lambda cls: cls.__name__))
def test_errors_survive_pickle_with_their_message(cls: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(cls("what, which, what to do")))
    assert type(again) is cls
    assert str(again) == "what, which, what to do"


def test_every_error_is_in_the_tree_that_is_drawn() -> None:
    public = {cls.__name__ for cls in all_errors(errors.ZenRayError) if cls.__module__ == errors.__name__}
    assert all(name in (errors.__doc__ or "") for name in public)


def test_a_cluster_of_ones_own_gets_what_zenray_needs() -> None:
    root = Path(zenray.__file__).parents[1]
    needed = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    (command,) = yaml.safe_load((root / "cluster.yaml").read_text())["setup_commands"]
    given = {Requirement(word).name for word in shlex.split(command)[2:]}
    assert {Requirement(text).name for text in needed} <= given
