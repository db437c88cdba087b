"""Stacks of real servers from the command line: checked, set, used, and what is wrong with them said at once."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.servers.object_stores import READ_ONLY_KEY, READ_ONLY_SECRET, ObjectStore

COMMAND = [sys.executable, "-m", "zenray"]
FLOW = """
from zenray import pipeline, step


@step
def rows(n: int) -> list[int]:
    print("reading", n)
    return list(range(n))


@step
def total(values: list[int]) -> int:
    return sum(values)


@pipeline
def flow(n: int = 5000):
    return total(rows(n))
"""


class Project:
    def __init__(self, folder: Path, store: ObjectStore, database_url: str) -> None:
        self.folder = folder
        (folder / "flow.py").write_text(FLOW)
        (folder / "stacks").mkdir()
        head, _, quoted = database_url.rpartition("@")[0].rpartition(":")
        password = unquote(quoted)
        self.environment = os.environ | {
            "ZENRAY_HOME": str(folder / "home"),
            "STORE_KEY": store.options["key"],
            "STORE_SECRET": store.options["secret"],
            "DB_PASSWORD": password,
        }
        self.environment.pop("ZENRAY_STACK", None)
        self.secrets = (store.options["secret"], password)
        self.store, self.given_url = store, database_url
        self.database_url = database_url.replace(f"{head}:{quoted}@", f"{head}:${{env:DB_PASSWORD}}@")

    def register(self, name: str, **options: str) -> None:
        given = {"key": "${env:STORE_KEY}", "secret": "${env:STORE_SECRET}", **self.options(), **options}
        words = [f"-o artifact_store.{k}={v}".split(" ", 1) for k, v in given.items()]
        self(
            "stack", "register", name, "--orchestrator", "inline", "--artifact-store", self.store.uri,
            "--metadata-store", self.database_url, *(w for pair in words for w in pair),
        )  # fmt: skip

    def options(self) -> dict[str, str]:
        return {k: str(v) for k, v in self.store.options.items() if k not in ("key", "secret")}

    def __call__(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        shown = done.stdout + done.stderr
        assert done.returncode == code, shown
        assert not any(secret in shown for secret in self.secrets)
        return shown


@pytest.fixture
def project(tmp_path: Path, s3: ObjectStore, fresh_postgresql_url: str) -> Project:
    return Project(tmp_path, s3, fresh_postgresql_url)


def test_a_project_moves_to_s3_and_postgresql_and_back(project):
    project("submit", "flow.py", "--stack", "inline")
    project.register("prod")
    assert project("stack", "check", "prod").count("ok  ") == 3
    project("artifact", "copy", "--all", "--to", "prod", "--stack", "inline")
    project("stack", "set", "prod")
    assert "all 2 steps were cached" in project("submit", "flow.py")
    assert "2 succeeded" in project("submit", "flow.py", "-p", "n=6000")
    assert "reading 6000" in project("run", "logs", "latest")
    assert "4 artifacts are whole, 0 are not" in project("artifact", "verify")
    assert "would remove" in project("artifact", "gc", "--keep-runs", "1", "--grace", "0s")
    project("stack", "set", "inline")
    assert "all 2 steps were cached" in project("submit", "flow.py")


def test_two_machines_share_results_and_read_each_others_logs(project, tmp_path):
    project.register("prod")
    project("stack", "set", "prod")
    project("submit", "flow.py")
    other = tmp_path / "another machine"
    other.mkdir()
    there = Project(other, project.store, project.given_url)
    there.environment["ZENRAY_CACHE_DIR"] = str(other / "cache")
    there.register("prod")
    assert "all 2 steps were cached" in there("submit", "flow.py", "--stack", "prod")
    first = there("run", "list", "--stack", "prod").splitlines()[-1].split()[0]
    assert "reading 5000" in there("run", "logs", first, "rows", "--stack", "prod")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"STORE_SECRET": "wrong"}, "artifact store"),
        ({"STORE_KEY": READ_ONLY_KEY, "STORE_SECRET": READ_ONLY_SECRET}, "artifact store"),
        ({"DB_PASSWORD": "wrong"}, "metadata store"),
    ],
)
def test_wrong_credentials_fail_the_check_and_are_named(project, change, message):
    project.register("prod")
    project.environment |= change
    shown = project("stack", "check", "prod", code=1)
    assert [line for line in shown.splitlines() if line.startswith(f"FAIL  {message}")], shown
    assert shown.count("FAIL") == 1


def test_a_missing_bucket_fails_the_check(project):
    project.register("prod")
    project("stack", "update", "prod", "--artifact-store", "s3://no-such-bucket/x")
    assert "FAIL  artifact store" in project("stack", "check", "prod", code=1)


def test_a_secret_that_is_not_set_is_refused_at_registration(project):
    del project.environment["STORE_SECRET"]
    with pytest.raises(AssertionError, match="refers to the variable 'STORE_SECRET'"):
        project.register("prod")
    assert "no stack 'prod'" in project("stack", "describe", "prod", code=2)
