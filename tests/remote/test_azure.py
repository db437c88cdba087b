"""Azure Blob Storage, through adlfs on a real server: what differs from S3, faults, and a stack on it."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers.object_stores import AZURE_KEY, ObjectStore
from tests.servers.proxy import FaultProxy, fault_proxy
from zenray.errors import StoreError
from zenray.hashing import digest_bytes
from zenray.store import Store, object_name, open_store
from zenray.store.remote import RemoteStore

DATA = os.urandom(20 << 20)  # three blocks
FLOW = """
from zenray import pipeline, step


@step
def rows(n: int) -> list[int]:
    return list(range(n))


@pipeline
def flow(n: int = 5000):
    return rows(n)
"""


@pytest.fixture
def azure(azure_server: ObjectStore) -> ObjectStore:
    return ObjectStore(f"{azure_server.uri}/{uuid.uuid4().hex}", azure_server.options, azure_server.port)


@pytest.fixture
def proxy(azure_server: ObjectStore) -> Iterator[FaultProxy]:
    with fault_proxy(azure_server.port) as found:
        yield found


def login(azure: ObjectStore, old: str, new: str) -> dict[str, str]:
    """Return the options with a part of the connection string replaced."""
    return {"connection_string": str(azure.options["connection_string"]).replace(old, new)}


def behind(proxy: FaultProxy, azure: ObjectStore) -> Store:
    return open_store(azure.uri, login(azure, f":{azure.port}/", f":{proxy.port}/"))


def put(store: Store, data: bytes) -> tuple[str, int]:
    writer = store.create()
    writer.write(data)
    return writer.commit()


def test_an_upload_whose_connections_are_cut_ends_whole(azure: ObjectStore, proxy: FaultProxy) -> None:
    proxy.reset_after_bytes = 5 << 20
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(put, behind(proxy, azure), DATA)
        while proxy.resets < 5:
            assert not written.done()
        proxy.heal()
        digest, _ = written.result()
    assert open_store(azure.uri, azure.options).stored_digest(digest) == digest == digest_bytes(DATA)


def test_several_that_write_the_same_object_in_blocks_leave_it_whole(azure: ObjectStore) -> None:
    with ThreadPoolExecutor(4) as threads:
        written = list(threads.map(lambda _: put(open_store(azure.uri, azure.options), DATA), range(4)))
    assert set(written) == {(digest_bytes(DATA), len(DATA))}
    store = open_store(azure.uri, azure.options)
    assert store.stored_digest(written[0][0]) == written[0][0]
    assert [name for name, _, _ in store.names("")] == [object_name(written[0][0])]


def test_the_client_does_not_try_again_by_itself(azure: ObjectStore, proxy: FaultProxy) -> None:
    store = behind(proxy, azure)
    assert isinstance(store, RemoteStore)
    proxy.http_status = 503
    with pytest.raises(Exception, match="Fault"):
        store._fs.info(f"{store._root}/x")
    assert proxy.http_answers == 1


def test_an_answer_of_503_is_waited_out(azure: ObjectStore, proxy: FaultProxy) -> None:
    store = behind(proxy, azure)
    proxy.http_status = 503
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(store.put_named, "probe", b"x")
        while proxy.http_answers < 2:
            assert not written.done()
        proxy.heal()
        written.result()
    assert open_store(azure.uri, azure.options).get_named("probe") == b"x"


def test_a_wrong_key_is_refused_at_once_and_not_shown(azure: ObjectStore, proxy: FaultProxy) -> None:
    wrong = AZURE_KEY.replace("Eby8", "Eby9")
    options = login(azure, AZURE_KEY, wrong)
    options["connection_string"] = options["connection_string"].replace(f":{azure.port}/", f":{proxy.port}/")
    store = open_store(azure.uri, options)
    for call in (store.reach, lambda: store.put_named("x", b"x"), lambda: put(store, DATA)):
        with pytest.raises(StoreError, match="the store refuses these credentials") as caught:
            call()
        assert wrong not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert proxy.connections < 20


def test_a_missing_container_and_a_server_that_is_away_are_named(azure: ObjectStore, proxy: FaultProxy) -> None:
    store = open_store("az://no-such-box/x", azure.options)
    for data in (b"small", DATA[: 2 << 20]):
        with pytest.raises(StoreError, match="there is no such bucket or container: create it"):
            put(store, data)
    away = behind(proxy, azure)
    proxy.is_refusing = True
    with pytest.raises(StoreError, match=r"did not answer properly for .*: check that it is up and reachable"):
        away.reach()


def test_a_stack_on_azure_is_registered_checked_and_used(azure: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    environment = os.environ | {
        "ZENRAY_HOME": str(tmp_path / "home"),
        "AZURE_LOGIN": str(azure.options["connection_string"]),
    }
    environment.pop("ZENRAY_STACK", None)

    def zenray(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "zenray", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        shown = done.stdout + done.stderr
        assert done.returncode == code, shown
        assert AZURE_KEY not in shown
        assert "Unclosed" not in shown
        return shown

    zenray(
        "stack", "register", "azure", "--orchestrator", "inline", "--artifact-store", azure.uri,
        "-o", "artifact_store.connection_string=${env:AZURE_LOGIN}",
    )  # fmt: skip
    assert zenray("stack", "check", "azure").count("ok  ") == 3
    zenray("stack", "set", "azure")
    assert "1 succeeded" in zenray("submit", "flow.py")
    environment["ZENRAY_CACHE_DIR"] = str(tmp_path / "another machine")
    assert "its only step was cached" in zenray("submit", "flow.py")
    assert "1 artifacts are whole, 0 are not" in zenray("artifact", "verify")
    environment["AZURE_LOGIN"] = environment["AZURE_LOGIN"].replace("Eby8", "Eby9")
    shown = zenray("stack", "check", "azure", code=1)
    assert [line for line in shown.splitlines() if line.startswith("FAIL  artifact store")], shown
