"""Copies of a remote store's objects on this machine: filled once, checked, shared by processes, limited in size.

Runs in: anywhere.

Below its folder lie ``objects/<2 hex>/<digest>``, renamed into place when they are whole, and ``tmp/``. An object's
name is its content, so that one cache serves all stores. It says nothing about what is in a store.
"""

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, cast

from blake3 import blake3

from zenray.errors import ConfigError, CorruptedObjectError
from zenray.settings import chosen_folder, home
from zenray.units import size_bytes

DEFAULT_LIMIT_BYTES = 10 << 30
_ABANDONED_S = 86_400.0
_CHUNK_BYTES = 4 << 20


class ReadCache:
    """A folder of whole, checked objects; the least recently used go first.

    A reader keeps what it has opened: a file that is evicted, by any process, is only unlinked. An object that is
    larger than the limit is used and forgotten. A process hashes each cached file once, when it first uses it: nothing
    is flushed to the disk when it is written, so after a power cut a file may be there without its bytes.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._sound: dict[str, int] = {}  # digest -> inode that was hashed, or written, by this process
        self._room_bytes = 0  # what may come in before the folder is measured again

    @classmethod
    def of_environment(cls) -> "ReadCache":
        """Return the cache in ZENRAY_CACHE_DIR, else ``cache`` in the state's folder, limited by ZENRAY_CACHE_SIZE."""
        folder = chosen_folder("ZENRAY_CACHE_DIR") or home() / "cache"
        return cls(str(folder), _limit(os.environ.get("ZENRAY_CACHE_SIZE")))

    def temporary(self) -> str:
        """Return a new name in the cache's ``tmp`` folder, which is made."""
        os.makedirs(f"{self.folder}/tmp", mode=0o700, exist_ok=True)
        return f"{self.folder}/tmp/{os.getpid()}-{secrets.token_hex(8)}"

    def open(self, digest: str, fill: Callable[[int], None], *, uri: str) -> IO[bytes]:
        """Open an object; where it isn't here, ``fill`` gets the descriptor of an empty file, in one process at a time.

        Raises CorruptedObjectError, and keeps nothing, where the bytes that came have another digest; OSError where
        the local disk fails, and what ``fill`` raises.
        """
        path = self._path(digest)
        while True:
            found = self._hit(path, digest)
            if found is not None:
                return found
            with self._part(digest) as descriptor:
                if descriptor is None:
                    continue  # another process had it, and has filled it or failed
                found = self._hit(path, digest)
                return found or self._filled(digest, descriptor, fill, uri)

    def adopt(self, temporary: str, digest: str) -> None:
        """Take a finished file, whose digest is known, in as an object, or remove it where it is too large."""
        info = os.stat(temporary)
        if info.st_size > self.limit_bytes:
            os.unlink(temporary)
            return
        self._make_room(info.st_size)
        os.chmod(temporary, 0o444)
        self._publish(temporary, digest)
        self._sound[digest] = info.st_ino

    def clear(self) -> None:
        """Remove every object: the disk is full."""
        self._evict(0)

    def _path(self, digest: str) -> str:
        return f"{self.folder}/objects/{digest[:2]}/{digest}"

    def _hit(self, path: str, digest: str) -> IO[bytes] | None:
        try:
            file = open(path, "rb")  # noqa: SIM115 - the caller's
        except FileNotFoundError:
            return None
        inode = os.fstat(file.fileno()).st_ino
        if self._sound.get(digest) != inode:
            if _digest(file) != digest:
                file.close()
                with suppress(FileNotFoundError):
                    os.unlink(path)
                return None
            self._sound[digest] = inode
        with suppress(OSError):
            os.utime(path)
        file.seek(0)
        return file

    def _filled(self, digest: str, descriptor: int, fill: Callable[[int], None], uri: str) -> IO[bytes]:
        try:
            fill(descriptor)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.clear()
            os.ftruncate(descriptor, 0)
            fill(descriptor)
        file = cast(IO[bytes], os.fdopen(os.dup(descriptor), "rb"))
        try:
            self._keep(digest, file, uri)
        except BaseException:
            file.close()
            raise
        return file

    def _keep(self, digest: str, file: IO[bytes], uri: str) -> None:
        file.seek(0)
        actual = _digest(file)
        if actual != digest:
            raise CorruptedObjectError(
                f"object {digest[:12]} in {uri!r} has changed since it was written: its bytes have digest "
                f"{actual[:12]}; delete it (`zenray artifact verify` names the artifact) and run its step again"
            )
        info = os.fstat(file.fileno())
        if info.st_size <= self.limit_bytes:
            self._make_room(info.st_size)
            os.fchmod(file.fileno(), 0o444)
            self._publish(self._part_path(digest), digest)
            self._sound[digest] = info.st_ino
        file.seek(0)

    def _publish(self, temporary: str, digest: str) -> None:
        path = self._path(digest)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.rename(temporary, path)

    # -- one process at a time fills an object ---------------------------------------------------------------------

    def _part_path(self, digest: str) -> str:
        return f"{self.folder}/tmp/{digest}.part"

    @contextmanager
    def _part(self, digest: str) -> Iterator[int | None]:
        """Give the locked, empty file that an object is filled in; None where another process had it meanwhile.

        The file that is filled is the lock: it goes away with the rename, and a dead process leaves it unlocked.
        """
        os.makedirs(f"{self.folder}/tmp", mode=0o700, exist_ok=True)
        path = self._part_path(digest)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_at(path, descriptor):
                yield None
                return
            try:
                os.ftruncate(descriptor, 0)
                yield descriptor
            finally:
                if _is_at(path, descriptor):
                    os.unlink(path)
        finally:
            os.close(descriptor)

    # -- the limit -------------------------------------------------------------------------------------------------

    def _make_room(self, size_bytes: int) -> None:
        """Evict what has been used least where the limit would be passed; several processes may pass it slightly."""
        self._room_bytes -= size_bytes
        if self._room_bytes < 0:
            left = self.limit_bytes - self._evict(max(0, self.limit_bytes - size_bytes)) - size_bytes
            self._room_bytes = max(left // 4, self.limit_bytes // 100)

    def _evict(self, limit_bytes: int) -> int:
        """Remove the least recently used objects beyond a limit; returns the bytes that remain."""
        found = sorted(_files(f"{self.folder}/objects"))
        total = sum(size for _, size, _ in found)
        if total > limit_bytes:
            enough = limit_bytes - limit_bytes // 10  # not again for the next object
            for _, size, path in found:
                if total <= enough:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size
        before = time.time() - _ABANDONED_S
        for changed_at, _, path in _files(f"{self.folder}/tmp"):
            if changed_at < before:
                with suppress(FileNotFoundError):
                    os.unlink(path)
        return total


def _files(folder: str) -> Iterator[tuple[float, int, str]]:
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                info = os.stat(f"{where}/{name}")
                yield info.st_mtime, info.st_size, f"{where}/{name}"


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _digest(file: IO[bytes]) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    while chunk := file.read(_CHUNK_BYTES):
        hasher.update(chunk)
    return hasher.hexdigest()


def _limit(text: str | None) -> int:
    if not text:
        return DEFAULT_LIMIT_BYTES
    found = size_bytes(text)
    if found is None:
        raise ConfigError(f"ZENRAY_CACHE_SIZE must be a size such as '20GiB', or 0 for no cache, got {text!r}")
    return found
