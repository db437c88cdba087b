"""The artifact store in a local folder: plain files, renamed into place, memory-mapped for reading.

Runs in: anywhere.
"""

import errno
import io
import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from blake3 import blake3

from zenray.errors import CorruptedObjectError, StoreError
from zenray.store import ObjectWriter, object_name

_CHUNK_BYTES = 1 << 20
_Mark = tuple[int, int, int]  # inode, time of modification in ns, size: of a file that was hashed


class LocalStore:
    """A store in a folder; safe for any number of processes that share it.

    A process hashes each object once, when it first reads it: what the disk has changed must not spread. What it has
    written itself it has hashed already.
    """

    def __init__(self, folder: str) -> None:
        self.uri, self.root = folder, Path(folder)
        self._sound: dict[str, _Mark] = {}  # digest -> the file that had it

    def create(self) -> "LocalObjectWriter":
        """Begin a new object in ``tmp/``."""
        return LocalObjectWriter(self)

    def publish(self, writers: Sequence[ObjectWriter]) -> None:
        """Rename finished objects into place."""
        for writer in writers:
            cast(LocalObjectWriter, writer).publish()

    def has(self, digest: str, size_bytes: int) -> bool:
        """Compare the file's size too: a crash of the machine can leave a short file."""
        try:
            return os.stat(self._path(object_name(digest))).st_size == size_bytes
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise fault(exc, "look up an object in the artifact store", self.uri) from exc

    def open(self, digest: str) -> IO[bytes]:
        """Open an object's file; CorruptedObjectError where it has other bytes than were written."""
        file = self._open(digest)
        mark = _mark(file.fileno())
        if self._sound.get(digest) != mark:
            try:
                self._check(digest, _digest(file), mark)
            except BaseException:
                file.close()
                raise
            file.seek(0)
        return file

    def buffer(self, digest: str) -> memoryview:
        """Map an object's file, checked as by ``open``: its pages are shared between processes."""
        with _translating("read", self.uri), self._open(digest) as file:
            mark = _mark(file.fileno())
            is_empty = mark[2] == 0
            view = memoryview(b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if self._sound.get(digest) != mark:
            self._check(digest, blake3(view, max_threads=blake3.AUTO).hexdigest(), mark)
        return view

    def stored_digest(self, digest: str) -> str:
        """Hash the object's file."""
        with _translating("read", self.uri), self._open(digest) as file:
            return _digest(file)

    def written(self, digest: str, mark: "_Mark") -> None:
        """Note that this process has just hashed an object's file while it wrote it."""
        self._sound[digest] = mark

    def _open(self, digest: str) -> IO[bytes]:
        with _translating("read", self.uri):
            return Path(self._path(object_name(digest))).open("rb")

    def _check(self, digest: str, found: str, mark: "_Mark") -> None:
        if found != digest:
            raise CorruptedObjectError(
                f"object {digest[:12]} in {self.uri} has other bytes than were written (their digest is {found[:12]}): "
                "a disk or another program has changed them; `zenray artifact verify --repair` removes what is "
                "damaged, so that its step runs again"
            )
        self._sound[digest] = mark

    def create_named(self, name: str, data: bytes) -> bool:
        """Write a file, or make the one that is there young again, which garbage collection spares."""
        if self.touch(name):
            return False
        self.put_named(name, data)
        return True

    def reach(self) -> None:
        """Do nothing: what is wrong with a folder shows at once when it is used."""

    def put_named(self, name: str, data: bytes) -> None:
        """Write to ``tmp/`` and rename."""
        with _translating("write to", self.uri):
            temporary = self.temporary()
            try:
                with open(temporary, "wb", buffering=0) as file:
                    _write_all(file, memoryview(data))
                self.move_in(temporary, name)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise

    def get_named(self, name: str) -> bytes | None:
        """Read a named file."""
        with _translating("read", self.uri):
            try:
                return Path(self._path(name)).read_bytes()
            except FileNotFoundError:
                return None

    def has_named(self, name: str) -> bool:
        """Look for a named file."""
        return os.path.exists(self._path(name))

    def touch(self, name: str) -> bool:
        """Make a file young again, which garbage collection spares; False where it is not there (any more)."""
        with _translating("write to", self.uri):
            try:
                os.utime(self._path(name))
            except FileNotFoundError:
                return False
            return True

    def put_file(self, name: str, path: Path) -> None:
        """Stream a local file in and rename it into place."""
        with _translating("write to", self.uri), path.open("rb") as source:
            temporary = self.temporary()
            with open(temporary, "wb") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
            self.move_in(temporary, name)

    def local_path(self, name: str) -> Path:
        """Return the path below the root."""
        return Path(self._path(name))

    def names(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """Walk the files below a prefix."""
        base = self._path(prefix)
        for folder, _, files in os.walk(base):
            for file in files:
                path = os.path.join(folder, file)
                with suppress(FileNotFoundError):
                    info = os.stat(path)
                    yield os.path.relpath(path, self.root).replace(os.sep, "/"), info.st_size, info.st_mtime

    def delete(self, name: str) -> None:
        """Unlink a file."""
        with _translating("delete from", self.uri), suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def abort_uploads(self, *, before: float, is_dry: bool) -> list[tuple[str, float]]:
        """Return nothing: what was begun here lies in ``tmp/``, as a file."""
        return []

    def temporary(self) -> str:
        """Return a new name in ``tmp/``; the folder is made on first use."""
        path = f"{self.uri}/tmp/{os.getpid()}-{secrets.token_hex(8)}"
        folder = f"{self.uri}/tmp"
        if not os.path.isdir(folder):
            with _translating("create", self.uri):
                os.makedirs(folder, mode=0o700, exist_ok=True)
        return path

    def move_in(self, temporary: str, name: str) -> None:
        """Rename a finished temporary file to its name, making the folder where needed."""
        target = self._path(name)
        try:
            os.rename(temporary, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            os.rename(temporary, target)

    def _path(self, name: str) -> str:
        return f"{self.uri}/{name}"


class LocalObjectWriter:
    """Hashes while it writes; the object appears under its digest on ``commit``."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._temporary = store.temporary()
        with _translating("write to", store.uri):
            self._file = open(self._temporary, "wb", buffering=0)  # noqa: SIM115 - lives as long as the writer
        self._hasher = blake3(max_threads=blake3.AUTO)
        self._size_bytes = 0
        self._is_whole = True
        self._digest = ""
        self._mark: _Mark = (0, 0, 0)

    def write(self, data: Any) -> int:
        """Append bytes; large pieces are hashed on all cores."""
        view = memoryview(data).cast("B")
        self._is_whole = False  # until this piece is written too
        with _translating("write to", self._store.uri):
            _write_all(self._file, view)
        self._hasher.update(view)
        self._size_bytes += len(view)
        self._is_whole = True
        return len(view)

    def finish(self) -> tuple[str, int]:
        """Close the file; it stays in ``tmp/`` until it is published."""
        if not self._is_whole:
            self.abort()
            raise StoreError(f"an object of {self._store.uri} was not written whole, and is discarded")
        self._digest = self._hasher.hexdigest()
        with _translating("write to", self._store.uri):
            os.fchmod(self._file.fileno(), 0o444)  # a stored object is never changed, not by accident either
            self._mark = _mark(self._file.fileno())
            self._file.close()
        return self._digest, self._size_bytes

    def publish(self) -> None:
        """Rename to the digest, also over an object that is there: a damaged one is mended, and it is as new for gc."""
        with _translating("write to", self._store.uri):
            self._store.move_in(self._temporary, object_name(self._digest))
        self._store.written(self._digest, self._mark)

    def commit(self) -> tuple[str, int]:
        """Finish and publish."""
        found = self.finish()
        self.publish()
        return found

    def abort(self) -> None:
        """Remove the temporary file."""
        self._file.close()
        with suppress(OSError):
            os.unlink(self._temporary)


def _mark(descriptor: int) -> _Mark:
    info = os.fstat(descriptor)
    return info.st_ino, info.st_mtime_ns, info.st_size


def _digest(file: IO[bytes]) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    while chunk := file.read(4 * _CHUNK_BYTES):
        hasher.update(chunk)
    return hasher.hexdigest()


def _write_all(file: io.FileIO, view: memoryview) -> None:
    written = 0
    while written < len(view):  # a raw write may take less than it is given
        written += file.write(view[written : written + (1 << 30)])


@contextmanager
def _translating(verb: str, uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise fault(exc, f"{verb} the artifact store", uri) from exc


def fault(exc: OSError, task: str, where: str) -> StoreError:
    """Return the error that says what could not be done, with which file if the system names it, and what to do."""
    advice = {
        errno.ENOSPC: "the disk is full: free some space (`zenray artifact gc` removes what is unused) and run again",
        errno.EDQUOT: "the disk quota is used up: free some space and run again",
        errno.EACCES: "permission denied: give this user write access, or choose another folder with ZENRAY_HOME",
        errno.EPERM: "permission denied: give this user write access, or choose another folder with ZENRAY_HOME",
        errno.EROFS: "the file system is read-only: choose another folder with ZENRAY_HOME",
        errno.ENOENT: "it is not there: it was removed, and running again writes it anew",
        errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    }.get(exc.errno or 0, f"{exc.strerror or exc}")
    return StoreError(f"cannot {task} ({exc.filename or where}): {advice}")
