"""The artifact store on any fsspec file system: S3, GCS, Azure, memory and what else fsspec knows by URL.

Runs in: anywhere.

Objects are spooled on this machine's disk, since their name, the digest, is known only at their end. From there they
are uploaded, and then stay in the read cache: what a machine has written it need not fetch.
"""

import errno
import io
import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from blake3 import blake3

from zenray.errors import CorruptedObjectError, StoreError
from zenray.hashing import digest_bytes
from zenray.store import ObjectWriter, address_of, object_name
from zenray.store.faults import Patience
from zenray.store.options import Target, split_credentials
from zenray.store.read_cache import ReadCache
from zenray.store.transfer import Transfer, missing
from zenray.waiting import RETRY_S, Server, Waiter, retry_s_of

_EMPTY = digest_bytes(b"")
_ASK_BYTES = 1 << 20  # from this size on it is asked first whether an object is there: a request is cheaper than bytes
INPUT_RETRY_S = 10.0
_CHANGED = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


class RemoteStore:
    """A store on an fsspec file system; an object appears whole under its final name."""

    def __init__(
        self, uri: str, options: Mapping[str, Any], *, waiter: Waiter | None = None, is_reached: bool = False
    ) -> None:
        self.uri = address_of(uri, options)
        retry_s = retry_s_of(options.get("retry_s", RETRY_S), f"artifact store {self.uri!r}")
        self._target = Target(uri, {k: v for k, v in options.items() if k != "retry_s"})
        self._fs, self._root = self._target.fs, self._target.root.rstrip("/")
        server = Server(f"the artifact store {self.uri!r}", retry_s=retry_s, waiter=waiter, is_reached=is_reached)
        self._patience = Patience(server, self._target.secrets)
        self._transfer = Transfer(self._target, self._patience)
        self.cache = ReadCache.of_environment()

    def __repr__(self) -> str:
        return f"<store {self.uri}>"

    def create(self) -> "RemoteObjectWriter":
        """Begin a new object in the cache's ``tmp`` folder."""
        return RemoteObjectWriter(self, self.cache)

    def publish(self, writers: Sequence[ObjectWriter]) -> None:
        """Upload finished objects, several small ones at a time."""
        ours = [cast(RemoteObjectWriter, w) for w in writers]
        small = [w for w in ours if w.size_bytes < _ASK_BYTES]
        if small:
            self._transfer.each(self._publish, small)
        for writer in ours:
            if writer.size_bytes >= _ASK_BYTES:
                self._publish(writer)

    def _publish(self, writer: "RemoteObjectWriter") -> None:
        if writer.size_bytes < _ASK_BYTES or not self.has(writer.digest, writer.size_bytes):
            with self._local("upload to"):
                self._put_file(object_name(writer.digest), writer.path)
        writer.keep()

    def has(self, digest: str, size_bytes: int) -> bool:
        """Ask the store itself for the object's size."""
        try:
            return self._transfer.size(self._path(object_name(digest))) == size_bytes
        except FileNotFoundError:
            return False

    def open(self, digest: str) -> IO[bytes]:
        """Open an object's file in the read cache, downloaded and checked where it is not there."""
        try:
            with self._found(digest):
                return self.cache.open(digest, lambda descriptor: self._fill(digest, descriptor), uri=self.uri)
        except OSError as exc:  # the local disk's; the store's are StoreErrors
            return io.BytesIO(self._in_memory(digest, exc))

    def buffer(self, digest: str) -> memoryview:
        """Map an object's file in the read cache."""
        with self.open(digest) as file:
            if isinstance(file, io.BytesIO):
                return memoryview(file.getvalue())
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def stored_digest(self, digest: str) -> str:
        """Read the object from the store, past the cache, and hash it; a part at a time."""
        hasher = blake3(max_threads=blake3.AUTO)
        with self._found(digest):
            for piece in self._transfer.pieces(self._path(object_name(digest))):
                hasher.update(piece)
        return hasher.hexdigest()

    def reach(self) -> None:
        """Look for a name: a run is not begun on a store that is not there."""
        with suppress(FileNotFoundError):
            self._transfer.size(self._path("ledgers/x"))

    def put_named(self, name: str, data: bytes) -> None:
        """Put a small file whole."""
        with self._writable():
            self._transfer.put_bytes(self._path(name), data)

    def create_named(self, name: str, data: bytes) -> bool:
        """Put a small file where there is none, in one request."""
        try:
            with self._writable():
                self._transfer.put_bytes(self._path(name), data, is_new=True)
        except FileExistsError:
            return False
        return True

    def get_named(self, name: str) -> bytes | None:
        """Fetch a named file."""
        try:
            return bytes(self._patience.call("read", self._fs.cat_file, self._path(name)))
        except FileNotFoundError:
            return None

    def has_named(self, name: str) -> bool:
        """Look for a named file."""
        try:
            self._transfer.size(self._path(name))
        except FileNotFoundError:
            return False
        return True

    def put_file(self, name: str, path: Path) -> None:
        """Upload a local file whole."""
        with self._local("upload to"):
            self._put_file(name, str(path))

    def local_path(self, name: str) -> None:
        """Return None: nothing here lies on this machine's disk."""

    def names(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """List the files below a prefix; one whose age the store does not tell counts as new."""
        self._fs.invalidate_cache()
        try:
            found = self._patience.call("list", self._fs.find, self._path(prefix), detail=True)
        except FileNotFoundError:
            return
        now = time.time()
        for path, info in found.items():
            if info["type"] != "file":  # some servers list an empty folder for a while after its last file has gone
                continue
            changed = next((info[k] for k in _CHANGED if info.get(k) is not None), now)
            age = changed.timestamp() if hasattr(changed, "timestamp") else changed
            name = path.removeprefix(self._root).lstrip("/")
            yield name, int(info["size"]), age if isinstance(age, int | float) else now

    def delete(self, name: str) -> None:
        """Remove a file."""
        with suppress(FileNotFoundError):
            self._patience.call("delete from", self._fs.rm_file, self._path(name))

    def abort_uploads(self, *, before: float, is_dry: bool) -> list[tuple[str, float]]:
        """Abort S3's multipart uploads of objects and logs; GCS and Azure forget theirs after a week."""
        found = [u for kind in ("objects", "logs") for u in self._transfer.uploads(self._path(kind))]
        found = [u for u in found if u.began_at < before]
        if not is_dry:
            self._transfer.each(self._transfer.abort, found)
        return [(u.path.removeprefix(f"{self._root}/"), u.began_at) for u in found]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put_file(self, name: str, path: str) -> None:
        with self._writable():
            self._transfer.put_file(self._path(name), path)

    def _fill(self, digest: str, descriptor: int) -> None:
        with self._found(digest):
            if digest == _EMPTY:  # no range of it can be asked for
                self._transfer.size(self._path(object_name(digest)))
            else:
                self._transfer.get_file(self._path(object_name(digest)), descriptor)

    def _in_memory(self, digest: str, cause: OSError) -> bytes:
        """Read an object without the cache, which cannot be used."""
        name = self._path(object_name(digest))
        try:
            with self._found(digest):
                data = b"".join(self._transfer.pieces(name))
        except MemoryError:
            raise StoreError(
                f"object {digest[:12]} of {self.uri!r} fits neither into memory nor into {self.cache.folder!r} "
                f"({cause.strerror or cause}); free some space, or set ZENRAY_CACHE_DIR to a larger disk"
            ) from cause
        if digest_bytes(data) != digest:
            raise CorruptedObjectError(
                f"object {digest[:12]} in {self.uri!r} has changed since it was written; run its step again"
            )
        return data

    @contextmanager
    def _found(self, digest: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as exc:
            raise missing(self.uri, digest) from exc

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Say what a missing name means for a write."""
        try:
            yield
        except FileNotFoundError as exc:
            raise StoreError(
                f"cannot write to the artifact store {self.uri!r}: its bucket or folder is not there ({exc}); "
                "create it, or correct the stack's artifact_store"
            ) from exc

    @contextmanager
    def _local(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise local_error(exc, verb, self.uri, self.cache.folder) from exc


class RemoteObjectWriter:
    """Hashes while it spools; the file is uploaded when it is published, and then becomes the read cache's."""

    def __init__(self, store: RemoteStore, cache: ReadCache) -> None:
        self._store, self._cache = store, cache
        with self._local():
            self.path = cache.temporary()
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - lives as long as the writer
        self._hasher = blake3(max_threads=blake3.AUTO)
        self.digest, self.size_bytes = "", 0
        self._is_whole = True

    def write(self, data: Any) -> int:
        """Append bytes; a full disk is first met by emptying the read cache."""
        view = memoryview(data).cast("B")
        self._is_whole = False  # until this piece is written too
        with self._local():
            self._write(view)
        self._hasher.update(view)
        self.size_bytes += len(view)
        self._is_whole = True
        return len(view)

    def _write(self, view: memoryview) -> None:
        written, is_emptied = 0, False
        while written < len(view):  # a raw write may take less than it is given
            try:
                written += self._file.write(view[written : written + (1 << 30)])
            except OSError as exc:
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT) or is_emptied:
                    raise
                self._cache.clear()
                is_emptied = True

    def finish(self) -> tuple[str, int]:
        """End the object; it stays on this machine's disk until it is published."""
        if not self._is_whole:
            self.abort()
            raise StoreError(f"an object of {self._store.uri} was not spooled whole, and is discarded")
        with self._local():
            self._file.close()
        self.digest = self._hasher.hexdigest()
        return self.digest, self.size_bytes

    def commit(self) -> tuple[str, int]:
        """Finish and upload."""
        self.finish()
        try:
            self._store.publish([self])
        finally:
            self.abort()
        return self.digest, self.size_bytes

    def keep(self) -> None:
        """Move the spooled file into the read cache; where that fails it is only not cached."""
        try:
            self._cache.adopt(self.path, self.digest)
        except OSError:
            self.abort()

    def abort(self) -> None:
        """Remove the spool file; harmless once it has been kept."""
        self._file.close()
        with suppress(OSError):
            os.unlink(self.path)

    def _local(self) -> Any:
        return self._store._local("spool an object for")


def local_error(exc: OSError, verb: str, uri: str, folder: str) -> StoreError:
    """Say what this machine's disk refused."""
    advice = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "the disk quota is used up: free some space",
        errno.EACCES: "permission denied: give this user write access",
        errno.EROFS: "the file system is read-only",
    }.get(exc.errno or 0, exc.strerror or str(exc))
    return StoreError(
        f"cannot {verb} the artifact store {uri!r} ({exc.filename or folder}): {advice}, or set ZENRAY_CACHE_DIR to a "
        "folder on another disk"
    )


class Outside:
    """Files at a URL outside of any store, read as inputs; never out of a kept listing.

    What passes is tried again for 10 s; the errors that remain are those of the file system.
    """

    def __init__(self, url: str) -> None:
        name = f"the input {split_credentials(url)[0]!r}"
        self._patience = Patience(Server(name, retry_s=INPUT_RETRY_S, is_reached=True))
        self._fs, self._path = fsspec.core.url_to_fs(url)
        self._fs.invalidate_cache()

    def open(self) -> IO[bytes]:
        """Open the file for reading in blocks."""
        return cast(IO[bytes], self._patience.tried(self._fs.open, self._path, "rb"))

    def facts(self) -> Mapping[str, Any]:
        """Return what the file system says about the file."""
        return cast(Mapping[str, Any], self._patience.tried(self._fs.info, self._path))

    def names(self) -> list[str]:
        """Return the files below the folder, relative to it."""
        root = self._path.rstrip("/")
        return [f.removeprefix(root).lstrip("/") for f in self._patience.tried(self._fs.find, self._path)]
