"""Bytes that changed after they were written: noticed when they are used, named, and mended."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from zenray import artifacts, pipeline, step
from zenray.errors import CorruptedObjectError, MetadataError, StepFailed
from zenray.materializer import registry
from zenray.metadata.ledger import Ledger
from zenray.metadata.records import RunRecord
from zenray.model import Status
from zenray.store import manifest_name, object_name, open_store


@pytest.fixture(autouse=True)
def _inline_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "inline")
    with np.errstate():
        yield


@step
def big(n: int) -> bytes:
    return bytes([n]) * 100_000


@step(cache=False)
def size(data: bytes, n: int) -> int:
    return len(data)


@pipeline
def flow(n: int) -> Any:
    return size(big(1), n)


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def objects(home: Path) -> list[Path]:
    return [p for p in (home / "store" / "objects").rglob("*") if p.is_file()]


@pytest.mark.parametrize("way", ["open", "buffer"])
def test_a_flipped_bit_is_noticed_when_an_object_is_first_read(tmp_path: Path, way: str) -> None:
    manifest = artifacts.save(b"x" * 10_000, open_store(str(tmp_path)), table=registry.table())
    (digest,) = (f.digest for f in manifest.files)
    flip(tmp_path / object_name(digest))
    store = open_store(str(tmp_path))
    for _ in range(2):
        with pytest.raises(CorruptedObjectError, match=r"other bytes than were written.*artifact verify --repair"):
            getattr(store, way)(digest)


def test_a_whole_object_is_hashed_once_in_a_process(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    manifest = artifacts.save(b"x" * 10_000, store, table=registry.table())
    (digest,) = (f.digest for f in manifest.files)
    flip(tmp_path / object_name(digest))
    with pytest.raises(CorruptedObjectError):
        store.buffer(digest)  # also by who has written it: the file is not the one that was hashed
    artifacts.save(b"x" * 10_000, store, table=registry.table())
    info = (tmp_path / object_name(digest)).stat()
    flip(tmp_path / object_name(digest))
    os.utime(tmp_path / object_name(digest), ns=(info.st_atime_ns, info.st_mtime_ns))
    assert len(store.buffer(digest)) == len(b"x" * 10_000)  # nobody looks again


def test_a_step_does_not_take_a_damaged_input(tmp_path: Path) -> None:
    flow(1)
    (path,) = objects(tmp_path / "home")
    flip(path)
    with pytest.raises(StepFailed, match="verify --repair") as caught:
        flow(2)
    assert "'size' failed" in str(caught.value)
    mended = zenray("artifact", "verify", "--repair")
    assert mended.returncode == 0, mended.stderr
    assert flow(3).steps["size"].output.load() == 100_000


def zenray(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "zenray", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("damage", ["type", "files", "garbage"])
def test_a_changed_manifest_is_found_and_written_anew(tmp_path: Path, damage: str) -> None:
    run = flow(1)
    path = tmp_path / "home" / "store" / manifest_name(run.steps["big"].output.digest)

    def harm() -> bytes:
        whole = path.read_bytes()
        raw = json.loads(whole)
        raw |= {"type": "builtins.str"} if damage == "type" else {"files": []} if damage == "files" else {}
        path.write_text("{" if damage == "garbage" else json.dumps(raw))
        return whole

    whole = harm()
    found = zenray("artifact", "verify")
    assert found.returncode == 1
    assert "manifest" in found.stdout
    assert zenray("artifact", "verify", "--repair").returncode == 0
    assert json.loads(path.read_bytes()) == json.loads(whole)
    assert zenray("artifact", "verify").returncode == 0
    harm()
    artifacts.save(b"\1" * 100_000, open_store(str(tmp_path / "home" / "store")), table=registry.table())
    assert zenray("artifact", "verify").returncode == 0


def test_who_made_an_equal_value_first_is_no_damage(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    value = (1, {"a": "x" * 10_000})
    first = artifacts.save(value, store, table=registry.table(), producer="one")
    artifacts.save(value, store, table=registry.table(), producer="two")
    found = artifacts.read_manifest(first.digest, store)
    assert found is not None
    assert found.producer == "one"


class TestLedger:
    """A ledger with damaged rows, or damaged pages."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "home" / "ledger.db"

    def execute(self, path: Path, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement, values)

    @pytest.mark.parametrize("garbage", ["{", "[1]", "null", "[[1]]", b"\xff\xfe"])
    @pytest.mark.parametrize("table", ["cache_entries", "artifacts"])
    def test_a_damaged_cache_entry_is_a_miss(self, path: Path, table: str, garbage: object) -> None:
        flow(1)
        column = {"cache_entries": "outputs", "artifacts": "manifest"}[table]
        self.execute(path, f"UPDATE {table} SET {column} = ?", garbage)
        run = flow(1)
        assert run.steps["big"].status == "succeeded"
        if table == "cache_entries":
            assert flow(1).steps["big"].status == "cached"

    def test_a_damaged_run_is_named_and_the_others_are_listed(self, path: Path) -> None:
        runs = [flow(1), flow(1)]
        first = runs[0].run_id
        for damage in ("parameters = '{'", "status = 'odd'", "started_at = 'x'"):
            self.execute(path, f"UPDATE runs SET {damage} WHERE run_id = ?", first)
            listed = zenray("run", "list", "--json")
            assert [r["run_id"] for r in json.loads(listed.stdout)] == [runs[1].run_id], listed.stderr
            assert f"the record of run '{first}' is damaged (table 'runs'" in listed.stderr
            shown = zenray("run", "show", first)
            assert shown.returncode == 1
            assert f"error: the record of run '{first}' is damaged" in shown.stderr
            assert "Traceback" not in shown.stderr

    def test_a_damaged_step_or_artifact_is_named_and_the_others_are_shown(self, path: Path) -> None:
        run = flow(1)
        self.execute(path, "UPDATE step_runs SET key_parts = '{' WHERE name = 'big'")
        self.execute(path, "UPDATE attempts SET error = '{' WHERE name = 'big'")
        digest = run.steps["size"].output.digest
        self.execute(path, "UPDATE artifacts SET manifest = '{' WHERE digest = ?", digest)
        shown = zenray("run", "show", run.run_id)
        assert shown.returncode == 0, shown.stderr
        assert "size" in shown.stdout
        assert "the record of step 'big' of run" in shown.stderr
        listed = zenray("artifact", "list")
        assert listed.returncode == 0, listed.stderr
        assert f"artifact '{digest}' is damaged" in listed.stderr
        assert zenray("artifact", "gc", "--delete").returncode in (0, 2)

    def test_an_empty_version_table_beside_tables_is_damage(self, path: Path) -> None:
        flow(1)
        self.execute(path, "DELETE FROM alembic_version")
        with pytest.raises(MetadataError, match="is damaged: it has tables"):
            flow(1)

    @pytest.mark.parametrize("seed", range(30))
    def test_flipped_bytes_of_the_file_are_an_error_of_ours_or_none(self, path: Path, seed: int) -> None:
        with Ledger(f"sqlite:///{path}") as ledger:
            ledger.create_run(RunRecord("r", "p", Status.SUCCEEDED, 1.0, parameters={"a": "b"}))
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        data = bytearray(path.read_bytes())
        random = Random(seed)
        for _ in range(200):
            data[random.randrange(100, len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        with closing(Ledger(f"sqlite:///{path}")) as ledger, suppress(MetadataError):
            ledger.list_runs()
            ledger.create_run(RunRecord("r2", "p", Status.RUNNING, 2.0))
