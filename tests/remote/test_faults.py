"""An S3 store behind a proxy that makes faults: what passes is survived, what does not is said at once."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.servers.object_stores import BUCKET, READ_ONLY_KEY, READ_ONLY_SECRET, SECRET, ObjectStore
from tests.servers.proxy import FaultProxy
from zenray import garbage
from zenray.errors import StoreError
from zenray.stack import Stack
from zenray.store import Store, object_name, open_store
from zenray.store.faults import Patience
from zenray.store.remote import RemoteStore
from zenray.views import Books
from zenray.waiting import Server

DATA = os.urandom(40 << 20)  # five parts


def put(store: Store, data: bytes) -> tuple[str, int]:
    writer = store.create()
    writer.write(data)
    return writer.commit()


def behind(proxy: FaultProxy, s3: ObjectStore, **options: Any) -> Store:
    return open_store(s3.uri, s3.at(proxy.port, **options))


def visible(s3: ObjectStore) -> list[str]:
    return [name for name, _, _ in open_store(s3.uri, s3.options).names("")]


def unfinished_uploads(s3: ObjectStore) -> list[Any]:
    store = open_store(s3.uri, s3.options)
    assert isinstance(store, RemoteStore)
    prefix = s3.uri.removeprefix(f"s3://{BUCKET}/")
    return list(store._fs.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=f"{prefix}/").get("Uploads", []))


def later(seconds: float, action: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


def test_a_connection_cut_in_the_middle_of_an_upload_costs_only_the_parts_on_their_way(
    s3: ObjectStore, proxy: FaultProxy
) -> None:
    proxy.reset_after_bytes = 5 << 20
    healing = later(1.0, proxy.heal)
    digest, size_bytes = put(behind(proxy, s3), DATA)
    healing.join()
    assert open_store(s3.uri, s3.options).stored_digest(digest) == digest
    assert visible(s3) == [object_name(digest)]
    assert not unfinished_uploads(s3)
    assert size_bytes == len(DATA)


def test_a_connection_cut_in_the_middle_of_a_download_is_survived(
    s3: ObjectStore, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _ = put(open_store(s3.uri, s3.options), DATA)
    monkeypatch.setenv("ZENRAY_CACHE_DIR", str(tmp_path / "elsewhere"))
    store = behind(proxy, s3)
    proxy.reset_after_bytes = 3 << 20
    healing = later(1.0, proxy.heal)
    assert bytes(store.buffer(digest)) == DATA
    healing.join()


@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_store_that_answers_with_errors_for_a_while_is_waited_for(
    s3: ObjectStore, proxy: FaultProxy, status: int
) -> None:
    store = behind(proxy, s3)
    store.reach()  # one that was never reached is given up after seconds
    proxy.http_status = status
    healing = later(2.0, proxy.heal)
    digest, size_bytes = put(store, b"small" * 2_000)
    assert store.create_named("artifacts/ab/c.json", b"{}")
    healing.join()
    assert proxy.http_answers > 1
    assert store.has(digest, size_bytes)
    assert sorted(visible(s3)) == ["artifacts/ab/c.json", object_name(digest)]


def test_a_store_that_hangs_refuses_and_resets_is_waited_for(s3: ObjectStore, proxy: FaultProxy) -> None:
    store = behind(proxy, s3, config_kwargs={"read_timeout": 1})
    digest, size_bytes = put(store, b"before" * 1_000)
    proxy.is_hanging = True
    healing = later(2.0, proxy.heal)
    assert store.has(digest, size_bytes)
    healing.join()
    proxy.is_refusing = True
    proxy.reset()
    healing = later(1.0, proxy.heal)
    assert store.has(digest, size_bytes)
    healing.join()


def test_a_second_of_latency_is_only_slow(s3: ObjectStore, proxy: FaultProxy) -> None:
    store = behind(proxy, s3)
    proxy.latency_s = 1.0
    digest, size_bytes = put(store, b"slow" * 2_000)
    assert store.has(digest, size_bytes)
    assert store.create_named("artifacts/ab/c.json", b"{}")


def test_what_does_not_come_back_is_given_up_with_advice(s3: ObjectStore, proxy: FaultProxy) -> None:
    proxy.http_status = 503
    store = behind(proxy, s3)
    assert isinstance(store, RemoteStore)
    patience = Patience(Server(f"the artifact store {s3.uri!r}", retry_s=1.0), [SECRET])
    message = error_of(lambda: patience.call("read", store._fs.cat_file, f"{BUCKET}/x", start=0, end=9))
    assert "did not answer properly for " in message
    assert s3.uri in message


def test_a_failed_upload_leaves_nothing(s3: ObjectStore, proxy: FaultProxy, cache_folder: Path) -> None:
    """The server takes the first parts and then refuses the rest: the upload is aborted."""
    store = behind(proxy, s3)
    assert isinstance(store, RemoteStore)
    writer = store.create()
    writer.write(DATA)
    denying = threading.Thread(target=lambda: _deny_after(proxy, 10 << 20))
    denying.start()
    error_of(writer.commit)
    denying.join()
    assert not visible(s3)
    assert not [path for path in cache_folder.rglob("*") if path.is_file()]


def _deny_after(proxy: FaultProxy, count: int) -> None:
    while proxy.bytes_passed < count:
        time.sleep(0.005)
    proxy.http_status = 403
    while proxy.http_answers == 0:
        time.sleep(0.005)


@pytest.mark.parametrize(
    "credentials", [{"secret": "wrong-secret-value"}, {"key": "unknownkey"}, {"key": "", "secret": ""}]
)
def test_wrong_credentials_are_refused_at_once_without_showing_them(
    s3: ObjectStore, proxy: FaultProxy, credentials: dict[str, str]
) -> None:
    store = behind(proxy, s3, **credentials)
    for call in (
        lambda: put(store, b"x" * 9_000),
        lambda: store.has("0" * 64, 1),
        lambda: store.buffer("0" * 64),
        lambda: store.get_named("artifacts/x"),
        lambda: list(store.names("objects")),
    ):
        message = error_of(call)
        assert "credentials" in message
        assert "wrong-secret-value" not in message
        assert SECRET not in message
    assert "secret" not in repr(store)


def test_a_refusal_is_not_asked_for_twice(s3: ObjectStore, proxy: FaultProxy) -> None:
    proxy.http_status = 403
    error_of(lambda: behind(proxy, s3).get_named("artifacts/x"))
    assert proxy.http_answers == 1


def test_a_permission_that_is_missing_is_said(s3: ObjectStore) -> None:
    store = open_store(s3.uri, {**s3.options, "key": READ_ONLY_KEY, "secret": READ_ONLY_SECRET})
    assert not store.has("0" * 64, 1)
    assert "lack a permission" in error_of(lambda: put(store, b"x" * 9_000))


def test_a_bucket_that_is_missing_is_said_at_once(s3: ObjectStore) -> None:
    store = open_store("s3://no-such-bucket/x", s3.options)
    for call in (
        lambda: put(store, b"x" * 9_000),
        lambda: put(store, DATA),
        lambda: store.create_named("artifacts/ab/c.json", b"{}"),
    ):
        assert "bucket" in error_of(call)


def test_a_host_that_is_missing_is_said_at_once(s3: ObjectStore) -> None:
    store = open_store(s3.uri, {**s3.options, "endpoint_url": "http://no-such-host.invalid:9"})
    assert "no such host" in error_of(lambda: put(store, b"x" * 9_000))


def test_writers_of_the_same_object_do_not_disturb_each_other(s3: ObjectStore) -> None:
    stores = [open_store(s3.uri, s3.options) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda store: put(store, DATA), stores)
    assert first == second
    assert visible(s3) == [object_name(first[0])]
    assert stores[0].stored_digest(first[0]) == first[0]


WRITER = """
import sys
from zenray.store import open_store
store = open_store(sys.argv[1], {"endpoint_url": sys.argv[2], "key": sys.argv[3], "secret": sys.argv[4]})
writer = store.create()
writer.write(bytes(range(256)) * (200 << 12))
print("begin", flush=True)
writer.commit()
"""


def kill_in_the_middle(s3: ObjectStore, proxy: FaultProxy) -> None:
    """Kill a process that uploads a large object."""
    options, before = s3.at(proxy.port), proxy.bytes_passed
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, s3.uri, options["endpoint_url"], options["key"], options["secret"]],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begin\n"
        # What another killed process has left in the sockets' buffers passes too.
        while proxy.bytes_passed < before + (20 << 20) or not unfinished_uploads(s3):
            time.sleep(0.005)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()


def test_a_writer_that_is_killed_in_the_middle_of_an_upload_leaves_nothing_visible(
    s3: ObjectStore, proxy: FaultProxy, cache_folder: Path
) -> None:
    kill_in_the_middle(s3, proxy)
    assert not visible(s3)
    assert not list((cache_folder / "objects").rglob("*"))
    data = bytes(range(256)) * (200 << 12)
    digest, _ = put(open_store(s3.uri, s3.options), data)
    assert visible(s3) == [object_name(digest)]


def test_gc_names_and_aborts_what_a_killed_upload_leaves(s3: ObjectStore, proxy: FaultProxy, tmp_path: Path) -> None:
    kill_in_the_middle(s3, proxy)
    beside = ObjectStore(f"{s3.uri}x", s3.options, s3.port)  # another store, of a longer name
    kill_in_the_middle(beside, proxy)
    books = Books(Stack("s3", "inline", s3.uri, f"sqlite:///{tmp_path}/ledger.db", s3.options))
    assert garbage.collect(books, grace_s=-60).uploads == ()  # it may still go on
    planned = garbage.collect(books, grace_s=-60, abandoned_s=-60)
    (line,) = [x for x in garbage.describe(planned, "0 bytes") if "unfinished upload of" in x]
    assert re.fullmatch(r"  unfinished upload of objects/../[0-9a-f]{64}, begun 20\d\d-\d\d-\d\d \d\d:\d\d", line)
    assert len(unfinished_uploads(s3)) == 1
    done = garbage.collect(books, grace_s=-60, abandoned_s=-60, is_dry=False)
    assert "removed 1 unfinished uploads" in garbage.describe(done, "0 bytes")[0]
    assert (len(unfinished_uploads(s3)), len(unfinished_uploads(beside))) == (0, 1)
    assert not garbage.collect(books, grace_s=-60, abandoned_s=-60, is_dry=False).uploads


def test_gc_goes_on_where_a_store_does_not_let_it_see_unfinished_uploads(
    s3: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    books = Books(Stack("s3", "inline", s3.uri, f"sqlite:///{tmp_path}/ledger.db", s3.at(proxy.port)))
    put(books.store, b"unused")
    proxy.http_status, proxy.http_only = 403, b"?uploads"
    report = garbage.collect(books, grace_s=-60, is_dry=False)
    assert report.objects == 1
    assert "left alone: cannot list the uploads of" in garbage.describe(report, "")[-1]


def test_all_pages_of_unfinished_uploads_are_listed(s3: ObjectStore) -> None:
    store = open_store(s3.uri, s3.options)
    assert isinstance(store, RemoteStore)
    path = store._path("objects")
    bucket, prefix, _ = store._fs.split_path(path)
    for number in range(5):
        store._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/{number % 3}")
    found = list(store._transfer.uploads(path, at_once=2))
    assert sorted(u.path.rpartition("/")[2] for u in found) == ["0", "0", "1", "1", "2"]
    assert len({u.upload_id for u in found}) == 5
