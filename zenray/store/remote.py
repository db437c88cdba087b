"""The artifact store on any fsspec file system: memory, S3, GCS and what else fsspec knows by URL.

Runs in: anywhere.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from blake3 import blake3

from zenray.errors import StoreError
from zenray.store import object_name

_SPOOL_BYTES = 8 << 20


class RemoteStore:
    """A store on an fsspec file system; an object is put whole under its final name, so that it appears at once."""

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self.uri = uri.rstrip("/")
        self._fs, self._root = fsspec.core.url_to_fs(self.uri, **options)

    def create(self) -> "RemoteObjectWriter":
        """Begin a new object in a local spool file: its name, the digest, is known only at the end."""
        return RemoteObjectWriter(self)

    def has(self, digest: str, size_bytes: int) -> bool:
        """Ask for the object's size."""
        with _translating("look up an object in", self.uri):
            try:
                return bool(self._fs.info(self._path(object_name(digest)))["size"] == size_bytes)
            except FileNotFoundError:
                return False

    def open(self, digest: str) -> IO[bytes]:
        """Open an object for reading in blocks."""
        with _translating("read", self.uri):
            return cast(IO[bytes], self._fs.open(self._path(object_name(digest)), "rb"))

    def buffer(self, digest: str) -> memoryview:
        """Fetch the whole object."""
        with _translating("read", self.uri):
            return memoryview(self._fs.cat_file(self._path(object_name(digest))))

    def put_named(self, name: str, data: bytes) -> None:
        """Put a small file whole."""
        with _translating("write to", self.uri):
            self._fs.makedirs(os.path.dirname(self._path(name)), exist_ok=True)
            self._fs.pipe_file(self._path(name), data)

    def get_named(self, name: str) -> bytes | None:
        """Fetch a named file."""
        with _translating("read", self.uri):
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def touch(self, name: str) -> bool:
        """Say whether a file is there; an object store has no way to make it young again."""
        return self.has_named(name)

    def has_named(self, name: str) -> bool:
        """Look for a named file, past any listing that was kept."""
        with _translating("look up a file in", self.uri):
            try:
                self._fs.info(self._path(name))
            except FileNotFoundError:
                return False
            return True

    def put_file(self, name: str, path: Path) -> None:
        """Upload a local file whole."""
        with _translating("write to", self.uri):
            self._fs.makedirs(os.path.dirname(self._path(name)), exist_ok=True)
            self._fs.put_file(str(path), self._path(name))

    def local_path(self, name: str) -> None:
        """Return None: nothing here lies on this machine's disk."""

    def names(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """List the files below a prefix."""
        with _translating("list", self.uri):
            try:
                found = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return
        for path, info in found.items():
            created = info.get("LastModified") or info.get("updated") or info.get("created")
            changed = created.timestamp() if hasattr(created, "timestamp") else 0.0
            yield path.removeprefix(self._root).lstrip("/"), int(info["size"]), changed

    def delete(self, name: str) -> None:
        """Remove a file."""
        with _translating("delete from", self.uri):
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class RemoteObjectWriter:
    """Hashes while it spools: in memory up to 8 MiB, beyond that on the local disk."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._spool = tempfile.NamedTemporaryFile(prefix="zenray-", buffering=_SPOOL_BYTES)  # noqa: SIM115
        self._hasher = blake3()
        self._size_bytes = 0
        self._is_whole = True

    def write(self, data: Any) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")
        self._is_whole = False  # until this piece is written too
        with _translating("spool an object for", self._store.uri):
            self._spool.write(view)
        self._hasher.update(view)
        self._size_bytes += len(view)
        self._is_whole = True
        return len(view)

    def commit(self) -> tuple[str, int]:
        """Upload under the digest, unless an equal object is there."""
        if not self._is_whole:
            self.abort()
            raise StoreError(f"an object of {self._store.uri} was not spooled whole, and is discarded")
        digest = self._hasher.hexdigest()
        if not self._store.has(digest, self._size_bytes):
            self._spool.flush()
            self._store.put_file(object_name(digest), Path(self._spool.name))
        self._spool.close()
        return digest, self._size_bytes

    def abort(self) -> None:
        """Remove the spool file."""
        self._spool.close()


@contextmanager
def _translating(verb: str, uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise StoreError(f"cannot {verb} the artifact store {uri!r}: {exc} is not there") from exc
    except (OSError, ValueError) as exc:
        raise StoreError(f"cannot {verb} the artifact store {uri!r}: {type(exc).__name__}: {exc}") from exc


def file_system(url: str) -> Any:
    """Return the fsspec file system of a URL outside of any store, with fresh listings; its errors are its own."""
    fs, _ = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return fs
