"""Every edit of the table changes the fingerprints of the steps it must, and hardly any other."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NEEDLESS_LIMIT = 0.10

# Fingerprints are taken before any step runs, as running one may import modules and change globals.
PROBE = """
import json, sys
import pipeline
from zenray.fingerprint import fingerprint

inputs = json.loads(sys.argv[1])
prints = {name: fingerprint(getattr(pipeline, name)) for name in inputs}
seen = {}
for name, arguments in inputs.items():
    found = prints[name]
    result = repr(getattr(pipeline, name)(**arguments))
    seen[name] = {"digest": found.digest, "problems": found.problems, "result": result}
print(json.dumps(seen))
"""


def _table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_edits", ROOT / "benchmarks" / "edits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


table = _table()


def probe(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Return digest, problems and result of each step of the project in a folder, in a new process."""
    path = os.pathsep.join(map(str, (folder, folder / "site-packages", ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(table.INPUTS)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, dict[str, Any]]:
    """What each version of the project looks like; the unedited one is under None."""

    def look(edit: Any) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("version")
        table.write_project(folder, edit)
        return probe(folder, dict(edit.environment) if edit else {})

    edits = (None, *table.EDITS)
    with ThreadPoolExecutor(2) as pool:
        return {edit and edit.name: found for edit, found in zip(edits, pool.map(look, edits), strict=True)}


def changed(seen: dict[str | None, dict[str, Any]], edit: Any, what: str) -> set[str]:
    return {step for step in table.STEPS if seen[edit.name][step][what] != seen[None][step][what]}


@pytest.mark.parametrize("edit", table.EDITS, ids=lambda edit: edit.name)
def test_an_edit_changes_the_digest_of_every_step_it_must(seen: Any, edit: Any) -> None:
    assert edit.must_rerun <= changed(seen, edit, "digest")


@pytest.mark.parametrize("edit", table.EDITS, ids=lambda edit: edit.name)
def test_the_table_is_true_of_what_the_steps_return(seen: Any, edit: Any) -> None:
    results = changed(seen, edit, "result")
    if edit.kind == "input":
        assert results
    else:
        assert results == (edit.must_rerun if edit.changes_result else set())


@pytest.mark.parametrize("edit", [None, *table.EDITS], ids=lambda edit: edit.name if edit else "unedited")
def test_no_version_of_the_project_has_code_that_cannot_be_followed(seen: Any, edit: Any) -> None:
    assert [found["problems"] for found in seen[edit and edit.name].values()] == [[], [], []]


def test_few_steps_run_again_without_need(seen: Any) -> None:
    needless = [(edit.name, step) for edit in table.EDITS for step in changed(seen, edit, "digest") - edit.must_rerun]
    print("needless:", needless)
    assert len(needless) <= NEEDLESS_LIMIT * len(table.EDITS)


def test_the_same_project_in_another_folder_has_the_same_digests(seen: Any, tmp_path: Path) -> None:
    table.write_project(tmp_path)
    assert {name: found["digest"] for name, found in probe(tmp_path, {}).items()} == {
        name: found["digest"] for name, found in seen[None].items()
    }


def test_the_table_has_enough_edits_of_each_sort() -> None:
    assert len(table.EDITS) >= 50
    assert len({edit.name for edit in table.EDITS}) == len(table.EDITS)
    assert sum(not edit.must_rerun for edit in table.EDITS) >= 20
