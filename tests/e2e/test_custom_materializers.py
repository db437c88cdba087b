"""What an edit in the repository's ``materializers`` folder runs again, and what it leaves in the cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FLOW = """
from fractions import Fraction
from typing import Any

import things
from zenray import pipeline, step


@step
def plain(n: int) -> int:
    return n + 1


@step
def thing(n: int) -> things.Thing:
    return things.Thing(n)


@step
def hidden(n: int):
    return [things.make(n)]


@step
def passed(x: Any) -> Any:
    return x


@step
def taken(x: list) -> int:
    return x[0].n


@pipeline
def flow():
    plain(1)
    passed(thing(2))
    taken(passed(hidden(3)))


if __name__ == "__main__":
    run = flow()
    print(",".join(name for name, s in run.steps.items() if s.status != "cached"))
"""
THINGS = """
class Thing:
    def __init__(self, n):
        self.n = n


class Special(Thing):
    pass


class Other:
    pass


def make(n):
    return Special(n)
"""
MATERIALIZER = """
from zenray import Materializer


class {name}Materializer(Materializer):
    types = ("things.{name}",)

    def save(self, value, writer):
        writer.put("data", str(value.n).encode())

    def load(self, reader, cls, metadata):
        return cls(int(reader.read("data")))
"""
ALL = {"plain", "thing", "passed", "passed_2", "hidden", "taken"}


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (".zenray", "materializers"):
            (folder / name).mkdir()
        self.write("flow.py", FLOW)
        self.write("things.py", THINGS)
        self.write("materializers/thing.py", MATERIALIZER.format(name="Thing"))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def call(self, *arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("ZENRAY_", "RAY_"))}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment | {"ZENRAY_STACK": "inline", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ran(self) -> set[str]:
        """Run the pipeline and return the steps that were not cached."""
        return set(self.call("flow.py").strip().split(",")) - {""}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_new_materializer_of_another_type_leaves_everything_cached(project: Project) -> None:
    assert project.ran() == ALL
    project.write("materializers/other.py", MATERIALIZER.format(name="Other"))
    assert project.ran() == set()


def test_an_edited_materializer_runs_again_what_makes_or_takes_its_type(project: Project) -> None:
    assert project.ran() == ALL
    project.edit("materializers/thing.py", "int(reader", "1 * int(reader")
    assert project.ran() == ALL - {"plain"}
    told = project.call("-c", "import sys; from zenray.cli import main; sys.exit(main())", "run", "explain", "latest")
    assert "materializer 'thing:ThingMaterializer' of 'things.Thing' changed" in told


def test_a_new_materializer_runs_again_what_another_one_served_before(project: Project) -> None:
    assert project.ran() == ALL
    project.write("materializers/special.py", MATERIALIZER.format(name="Special"))
    assert project.ran() == {"hidden", "passed_2", "taken"}


def test_a_materializer_of_a_type_of_the_standard_library_counts_for_every_step(project: Project) -> None:
    assert project.ran() == ALL
    project.write("materializers/other.py", MATERIALIZER.format(name="X").replace("things.X", "fractions.Fraction"))
    assert project.ran() == ALL


def test_a_value_that_the_code_does_not_name_is_never_taken_from_before_an_edit(project: Project) -> None:
    project.edit("flow.py", "[things.make(n)]", "pickle.loads(DATA)")
    project.edit(
        "flow.py", "import things\n", 'import pickle\n\nimport things\n\nDATA = b"cthings\\nThing\\n(I3\\ntR."\n'
    )
    project.edit("flow.py", "x[0].n", "x.n")
    project.edit("flow.py", "x: list", "x: Any")
    assert project.ran() == ALL
    assert project.ran() <= {"hidden", "passed_2", "taken"}
    project.edit("materializers/thing.py", "int(reader", "1 * int(reader")
    assert "hidden" in project.ran()
