"""The example package with components of one's own: installed as a user would, and used by real runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_components"
# A run through the parts without a stack's file, on the inline launcher.
DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path

from zenray.profile import active_stack
from zenray.runner import RunObserver, RunRequest, run
from zenray.submit import load_pipeline
from zenray.views import Books, Run

here = Path.cwd()
tracker = {"flavor": "jsonlines", "path": str(here / "runs.jsonl")}
stack = replace(active_stack("inline"), artifact_store=f"shelf://{here}/shelf", experiment_tracker=tracker)
pipeline = load_pipeline("flow.py")
run_id = run(RunRequest(pipeline.name, pipeline.function, pipeline.bind((), {"x": 4.0}), stack), RunObserver())
books = Books(stack)
steps = Run(books.ledger.find_run(run_id), books).steps
curve = steps["fit"].output
print(run_id, curve.load().coefficients, curve.manifest.materializer, steps["value_at"].output.load())
"""
# Ray cannot be imported here, and a step that nothing could import travels as a pickle.
WITHOUT_RAY = """
import sys

sys.modules["ray"] = None

from zenray import pipeline, step


def made(offset: int):
    @step
    def shifted(x: int) -> int:
        import sys

        assert "ray" not in sys.modules
        return x + offset

    return shifted


@pipeline
def flow() -> None:
    made(40)(2)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed in it; no network."""
    target = tmp_path_factory.mktemp("site")
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(EXAMPLE)], check=True, capture_output=True)
    return target


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "flow.py").write_text((EXAMPLE / "flow.py").read_text())
    (tmp_path / ".zenrayignore").write_text((EXAMPLE / ".zenrayignore").read_text())
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    (stacks / "own.yaml").write_text((EXAMPLE / "stacks" / "own.yaml").read_text())
    return tmp_path


def call(project: Path, installed: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env=os.environ | {"PYTHONPATH": path, "ZENRAY_HOME": str(project / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def tracked(project: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (project / "runs.jsonl").read_text().splitlines()]


def test_an_installed_materializer_tracker_and_store_serve_a_run(project: Path, installed: Path) -> None:
    (project / "driver.py").write_text(DRIVER)
    shown = call(project, installed, "driver.py").stdout
    run_id = shown.split()[0]
    assert "(1.0, 0.0, 1.0) own_components.polynomial:PolynomialMaterializer 17.0" in shown
    lines = tracked(project)
    assert {line["run_id"] for line in lines} == {run_id}
    assert lines[0]["parameters"] == {"x": 4.0}
    assert {"event": "step", "run_id": run_id, "values": {"x": 4.0}} in lines
    values = [value for line in lines if line["event"] == "values" for value in list(line["values"])]  # type: ignore[call-overload]
    assert sorted(values) == [["fit.degree", 0, 2], ["value_at.output", 0, 17.0]]
    assert lines[-1]["status"] == "succeeded"
    assert list((project / "shelf" / "packs").rglob("*.jsonl"))


@pytest.mark.parametrize("name", ["shelf/packs/x", "runs.jsonl"])
def test_git_ignores_what_a_run_of_the_example_writes(name: str) -> None:
    subprocess.run(["git", "check-ignore", "--quiet", name], cwd=EXAMPLE, check=True)


def test_the_installed_materializer_is_listed_with_its_entry_point(project: Path, installed: Path) -> None:
    shown = call(project, installed, "-m", "zenray", "materializer", "list").stdout
    assert "own_components.polynomial.Polynomial" in shown
    assert "entry point polynomial" in shown


def test_a_stack_of_nothing_but_own_components_runs_the_example(project: Path, installed: Path) -> None:
    shown = call(project, installed, "-m", "zenray", "submit", "flow.py", "--stack", "own")
    assert "2 succeeded" in shown.stdout + shown.stderr
    lines = tracked(project)
    assert [line["event"] for line in lines][-1] == "end"
    assert list((project / "shelf" / "packs").rglob("*.jsonl"))  # in the repository
    assert any(line["event"] == "step" for line in lines)  # from the step's own process
    again = call(project, installed, "-m", "zenray", "submit", "flow.py", "--stack", "own")
    assert "all 2 steps were cached" in again.stdout + again.stderr


def test_an_own_orchestrator_needs_no_ray_even_for_a_step_that_cannot_be_imported(
    project: Path, installed: Path
) -> None:
    (project / "flow.py").write_text(WITHOUT_RAY)
    shown = call(project, installed, "-m", "zenray", "submit", "flow.py", "--stack", "own")
    assert "1 succeeded" in shown.stdout + shown.stderr
    kept = call(project, installed, "-m", "zenray", "run", "show", "latest", "shifted", "--stack", "own").stdout
    assert "builtins.int  42" in kept
