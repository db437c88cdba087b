"""Folders that this user may not read, write or find any more: an error of one line, and nothing half done."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FLOW = """
from zenray import pipeline, step

@step
def big(n: int) -> bytes:
    print("hello")
    return bytes(10_000)

@pipeline
def flow(n: int = 1):
    big(n)
"""
# Root may do everything: the tests run without that right.
_POWERS = "--bounding-set=-dac_override,-dac_read_search,-linux_immutable"
_MORTAL = ["setpriv", _POWERS] if os.geteuid() == 0 else []

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def zenray(tmp_path: Path) -> Iterator[Command]:
    if _MORTAL and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not there, and root may read everything; run the tests as another user")
    (tmp_path / "flow.py").write_text(FLOW)
    home = tmp_path / "home"

    def run(*words: str, folder: Path = tmp_path) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"ZENRAY_HOME": str(home), "ZENRAY_STACK": "inline"}
        command = [*_MORTAL, sys.executable, "-m", "zenray", *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    first = run("submit", "flow.py")
    assert first.returncode == 0, first.stderr
    yield run
    for folder in (home, home / "store"):
        folder.chmod(0o755)
    for path in home.rglob("*"):
        path.chmod(0o755)


def said(ran: "subprocess.CompletedProcess[str]") -> str:
    """Return what an error says, which is not a defect's traceback."""
    assert ran.returncode in (1, 2), ran.stdout
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_a_store_that_may_not_be_entered_is_named(zenray: Command, tmp_path: Path) -> None:
    (tmp_path / "home" / "store").chmod(0)
    for words in (("submit", "flow.py", "-p", "n=2"), ("submit", "flow.py"), ("run", "logs", "latest", "big")):
        found = said(zenray(*words))
        assert str(tmp_path / "home" / "store") in found
        assert "ermission" in found
    assert zenray("run", "list").returncode == 0


def test_gc_of_a_store_that_may_not_be_written_forgets_nothing(zenray: Command, tmp_path: Path) -> None:
    store = tmp_path / "home" / "store"
    for path in sorted(store.rglob("*"), reverse=True):
        path.chmod(path.stat().st_mode & ~0o222)
    store.chmod(0o555)
    found = said(zenray("artifact", "gc", "--keep-runs", "0", "--grace", "0s", "--yes"))
    assert "permission denied" in found
    assert "flow" in zenray("run", "list").stdout


def test_a_home_that_may_not_be_read_is_named(zenray: Command, tmp_path: Path) -> None:
    (tmp_path / "home").chmod(0)
    for words in (("cluster", "status"), ("cluster", "down"), ("run", "list"), ("submit", "flow.py")):
        assert str(tmp_path / "home") in said(zenray(*words))


def test_a_folder_that_is_gone_is_named(zenray: Command, tmp_path: Path) -> None:
    script = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m zenray"
    environment = os.environ | {"ZENRAY_STACK": "inline"}
    for words in ("run list", "stack list", f"submit {tmp_path / 'flow.py'}", "init", "doctor"):
        ran = subprocess.run(
            ["sh", "-c", f"{script} {words}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in ran.stderr
        assert "the current folder is not there any more" in ran.stderr + ran.stdout or words == "init"
        assert ran.returncode in (1, 2)
