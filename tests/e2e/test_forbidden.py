"""Folders that this user may not read, write or find any more: an error of one line, and nothing half done."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from zenray.metadata.ledger import Ledger
from zenray.metadata.records import RunRecord
from zenray.model import Status

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
    protect(home, is_open=True)


def protect(folder: Path, *, is_open: bool = False) -> None:
    """Take the permission to write a folder and all that is in it from everybody, or give it back."""
    if is_open:
        folder.chmod(0o755)
    paths = sorted(folder.rglob("*"))
    for path in (*paths, folder):
        path.chmod(0o755 if is_open else path.stat().st_mode & ~0o222)


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


def test_a_store_that_may_not_be_written_is_said_once_with_what_to_do(zenray: Command, tmp_path: Path) -> None:
    protect(tmp_path / "home" / "store")
    text = said(zenray("submit", "flow.py", "-p", "n=2"))
    assert re.search(r"cannot write the log \(.*\): permission denied: give this user write access, or choose", text)
    assert "warning" not in text


def test_gc_of_a_store_that_may_not_be_written_forgets_nothing(zenray: Command, tmp_path: Path) -> None:
    protect(tmp_path / "home" / "store")
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


def test_what_may_only_be_read_is_listed_and_left_as_it_is(zenray: Command, tmp_path: Path) -> None:
    home = tmp_path / "home"
    protect(home)
    before = sorted(home.rglob("*"))
    digest = json.loads(zenray("artifact", "list", "--json").stdout)[0]["digest"]
    for words, shown in (
        (("run", "list"), "1 succeeded"),
        (("run", "show", "latest"), digest[:12]),
        (("run", "show", "latest", "big"), digest),
        (("run", "logs", "latest"), "hello"),
        (("run", "explain", "latest"), "big"),
        (("artifact", "list"), digest[:12]),
        (("artifact", "show", digest), "builtins.bytes"),
        (("artifact", "verify"), "1 artifacts are whole"),
        (("artifact", "gc"), "this was a dry run"),
    ):
        ran = zenray(*words)
        assert ran.returncode == 0, ran.stderr
        assert shown.replace(digest, digest[:12]) in ran.stdout
    assert sorted(home.rglob("*")) == before


def test_what_writes_into_a_ledger_that_may_only_be_read_says_so(zenray: Command, tmp_path: Path) -> None:
    (tmp_path / "home" / "ledger.db").chmod(0o444)
    before = sorted((tmp_path / "home").rglob("*"))
    for words in (("submit", "flow.py", "-p", "n=2"), ("artifact", "gc", "--keep-runs", "0", "--grace", "0s", "--yes")):
        assert "it can be listed, and what writes needs the permission to write" in said(zenray(*words))
    assert "may only be read" in zenray("stack", "check", "inline").stdout
    assert "1 succeeded" in zenray("run", "list").stdout
    assert sorted((tmp_path / "home").rglob("*")) == before


READER = """
import sys
from zenray.metadata.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    assert ledger.database.is_read_only
    for _ in sys.stdin:
        print(*sorted(r.run_id for r in ledger.list_runs()), flush=True)
"""


def test_a_ledger_that_may_only_be_read_is_read_as_it_is_now_while_its_owner_writes(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    theirs = Ledger(f"sqlite:///{folder}/ledger.db")
    theirs.create_run(RunRecord("a", "flow", Status.RUNNING, 1.0))
    theirs.close()
    protect(folder)
    command = [*_MORTAL, sys.executable, "-c", READER, f"sqlite:///{folder}/ledger.db"]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def listed() -> str:
        assert reader.stdin is not None
        assert reader.stdout is not None
        print(file=reader.stdin, flush=True)
        return reader.stdout.readline().strip()

    with reader:
        assert listed() == "a"
        protect(folder, is_open=True)
        theirs.create_run(RunRecord("b", "flow", Status.RUNNING, 2.0))
        protect(folder)
        assert listed() == "a b"
        theirs.create_run(RunRecord("c", "flow", Status.RUNNING, 3.0))
        assert listed() == "a b c"
        protect(folder, is_open=True)
        theirs.delete_run("b")
        theirs.close()
        protect(folder)
        assert listed() == "a c"
        protect(folder, is_open=True)


def test_a_copied_ledger_without_what_its_last_commits_need_says_what_to_do(zenray: Command, tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path}/ledger.db") as theirs:
        theirs.create_run(RunRecord("a", "flow", Status.RUNNING, 1.0))
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / "home" / name)
    protect(tmp_path / "home")
    assert "its last commits are in ledger.db-wal" in said(zenray("run", "list"))


def test_a_file_that_is_no_ledger_and_may_only_be_read_is_refused(zenray: Command, tmp_path: Path) -> None:
    ledger = tmp_path / "home" / "ledger.db"
    ledger.unlink()
    with closing(sqlite3.connect(ledger)) as other:
        other.execute("create table things (name)")
    protect(tmp_path / "home")
    assert "may only be read, and has no tables of this ZenRay" in said(zenray("run", "list"))
