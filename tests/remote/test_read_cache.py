"""The read cache of remote objects: filled once, checked, limited, harmless where it cannot be used."""

import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers.object_stores import ObjectStore
from tests.servers.proxy import FaultProxy
from zenray.errors import ConfigError, CorruptedObjectError, StoreError
from zenray.hashing import digest_bytes
from zenray.store import Store, object_name, open_store
from zenray.store.read_cache import ReadCache

DATA = os.urandom(20 << 20)


def put(store: Store, data: bytes) -> str:
    writer = store.create()
    writer.write(data)
    return writer.commit()[0]


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "objects").rglob("*") if path.is_file())


def left_over(folder: Path) -> list[str]:
    return [path.name for path in (folder / "tmp").iterdir()]


def fill_with(data: bytes) -> "tuple[list[int], object]":
    calls: list[int] = []

    def fill(descriptor: int) -> None:
        calls.append(descriptor)
        os.write(descriptor, data)

    return calls, fill


def test_what_a_machine_has_written_it_does_not_download(
    s3: ObjectStore, proxy: FaultProxy, cache_folder: Path
) -> None:
    store = open_store(s3.uri, s3.at(proxy.port))
    digest = put(store, DATA)
    assert cached(cache_folder) == [digest]
    passed = proxy.bytes_passed
    assert bytes(store.buffer(digest)) == DATA
    with open_store(s3.uri, s3.at(proxy.port)).open(digest) as file:
        assert file.read() == DATA
    assert proxy.bytes_passed == passed
    assert left_over(cache_folder) == []


READER = """
import sys
from zenray.store import open_store
store = open_store(sys.argv[1], {"endpoint_url": sys.argv[2], "key": sys.argv[3], "secret": sys.argv[4]})
print(len(store.buffer(sys.argv[5])))
"""


def test_several_processes_and_threads_download_an_object_once(
    s3: ObjectStore, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(open_store(s3.uri, s3.options), DATA)
    monkeypatch.setenv("ZENRAY_CACHE_DIR", str(tmp_path / "elsewhere"))
    options = s3.at(proxy.port)
    command = [sys.executable, "-c", READER, s3.uri, options["endpoint_url"], options["key"], options["secret"], digest]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(3)]
    store = open_store(s3.uri, options)
    with ThreadPoolExecutor(4) as threads:
        sizes = list(threads.map(lambda _: len(store.buffer(digest)), range(4)))
    assert sizes == [len(DATA)] * 4
    assert [reader.communicate()[0] for reader in readers] == [b"%d\n" % len(DATA)] * 3
    assert proxy.bytes_passed < 1.5 * len(DATA)
    assert left_over(tmp_path / "elsewhere") == []


def test_bytes_that_changed_in_the_store_are_refused_and_not_kept(s3: ObjectStore, cache_folder: Path) -> None:
    store = open_store(s3.uri, s3.options)
    digest = digest_bytes(b"what it was")
    store.put_named(object_name(digest), b"what it is!")
    with pytest.raises(CorruptedObjectError, match=digest[:12]) as caught:
        store.buffer(digest)
    assert store.uri in str(caught.value)
    assert cached(cache_folder) == []
    assert left_over(cache_folder) == []
    assert store.stored_digest(digest) != digest


def test_bytes_that_changed_in_the_cache_are_downloaded_again_by_the_next_process(
    s3: ObjectStore, cache_folder: Path
) -> None:
    digest = put(open_store(s3.uri, s3.options), b"right" * 2_000)
    path = cache_folder / "objects" / digest[:2] / digest
    path.chmod(0o600)
    path.write_bytes(b"wrong" * 2_000)
    store = open_store(s3.uri, s3.options)  # its cache has hashed nothing yet, as that of a new process
    assert bytes(store.buffer(digest)) == b"right" * 2_000
    assert path.read_bytes() == b"right" * 2_000


def test_an_object_that_was_deleted_in_the_store_is_not_there_although_it_is_cached(s3: ObjectStore) -> None:
    store = open_store(s3.uri, s3.options)
    digest = put(store, b"deleted" * 1_000)
    store.delete(object_name(digest))
    assert not store.has(digest, 7_000)
    assert put(store, b"deleted" * 1_000) == digest
    assert store.has(digest, 7_000)


def test_the_least_recently_used_objects_make_room(tmp_path: Path) -> None:
    cache = ReadCache(str(tmp_path), 100_000)
    pieces = [bytes([n]) * 30_000 for n in range(3)]
    digests = [digest_bytes(piece) for piece in pieces]
    for n, piece in enumerate(pieces):
        cache.open(digests[n], fill_with(piece)[1], uri="s3://b").close()
        os.utime(tmp_path / "objects" / digests[n][:2] / digests[n], (n, n))
    cache.open(digests[0], fill_with(b"")[1], uri="s3://b").close()  # used again: now the youngest
    fourth = b"x" * 30_000
    cache.open(digest_bytes(fourth), fill_with(fourth)[1], uri="s3://b").close()
    assert digest_bytes(fourth) in cached(tmp_path)
    assert digests[0] in cached(tmp_path)
    assert digests[1] not in cached(tmp_path)
    assert sum(p.stat().st_size for p in (tmp_path / "objects").rglob("*") if p.is_file()) <= 100_000


def test_many_small_objects_stay_within_the_limit_of_several_caches(tmp_path: Path) -> None:
    caches = [ReadCache(str(tmp_path), 50_000) for _ in range(3)]
    for n in range(60):
        piece = n.to_bytes(4, "big") * 1_000
        caches[n % 3].open(digest_bytes(piece), fill_with(piece)[1], uri="s3://b").close()
    assert sum(p.stat().st_size for p in (tmp_path / "objects").rglob("*") if p.is_file()) <= 75_000


def test_a_file_that_is_mapped_survives_its_eviction(tmp_path: Path) -> None:
    cache = ReadCache(str(tmp_path), 100_000)
    piece = b"mapped" * 10_000
    with cache.open(digest_bytes(piece), fill_with(piece)[1], uri="s3://b") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    ReadCache(str(tmp_path), 100_000).clear()
    assert cached(tmp_path) == []
    assert view[:] == piece


def test_a_limit_of_nothing_keeps_nothing(tmp_path: Path) -> None:
    cache = ReadCache(str(tmp_path), 0)
    calls, fill = fill_with(b"some bytes")
    for _ in range(2):
        with cache.open(digest_bytes(b"some bytes"), fill, uri="s3://b") as file:
            assert file.read() == b"some bytes"
    assert len(calls) == 2
    assert cached(tmp_path) == []
    assert left_over(tmp_path) == []


def test_a_filling_that_fails_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    cache = ReadCache(str(tmp_path), 100_000)

    def fail(descriptor: int) -> None:
        os.write(descriptor, b"half")
        raise StoreError("lost")

    with pytest.raises(StoreError):
        cache.open(digest_bytes(b"whole"), fail, uri="s3://b")
    assert left_over(tmp_path) == []
    (tmp_path / "tmp" / f"{digest_bytes(b'whole')}.part").write_bytes(b"left by a process that was killed")
    with cache.open(digest_bytes(b"whole"), fill_with(b"whole")[1], uri="s3://b") as file:
        assert file.read() == b"whole"


def test_a_cache_that_cannot_be_written_is_read_past(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(open_store(s3.uri, s3.options), DATA)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ZENRAY_CACHE_DIR", str(tmp_path / "file"))
    store = open_store(s3.uri, s3.options)
    assert bytes(store.buffer(digest)) == DATA
    with pytest.raises(StoreError, match="ZENRAY_CACHE_DIR"):
        store.create()


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    return folder


def test_a_full_disk_is_emptied_then_read_past_and_said_by_a_writer(
    s3: ObjectStore, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        big = os.urandom(40 << 20)
        digests = [put(open_store(s3.uri, s3.options), data) for data in (DATA, DATA[::-1], big)]
        monkeypatch.setenv("ZENRAY_CACHE_DIR", str(small_disk))
        store = open_store(s3.uri, s3.options)
        assert bytes(store.buffer(digests[0])) == DATA
        assert cached(small_disk) == [digests[0]]
        assert bytes(store.buffer(digests[1])) == DATA[::-1]
        assert cached(small_disk) == [digests[1]]
        assert bytes(store.buffer(digests[2])) == big
        writer = store.create()
        with pytest.raises(StoreError, match="disk is full"):
            writer.write(big)
        writer.abort()
        assert left_over(small_disk) == []
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=True)


def test_sizes_are_read_and_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"20GiB": 20 << 30, "1.5 MB": 1_500_000, "0": 0, "1024": 1024, "2KiB": 2048, "": 10 << 30}
    for text, size_bytes in sizes.items():
        monkeypatch.setenv("ZENRAY_CACHE_SIZE", text)
        assert ReadCache.of_environment().limit_bytes == size_bytes
    monkeypatch.setenv("ZENRAY_CACHE_SIZE", "plenty")
    with pytest.raises(ConfigError, match="ZENRAY_CACHE_SIZE"):
        ReadCache.of_environment()
