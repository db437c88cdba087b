"""Bytes by digest: content-addressed objects, artifact manifests and logs in a local folder or on fsspec.

Runs in: anywhere.

Layout below the root, the same in every store: ``objects/<2 hex>/<digest>`` holds bytes named by their BLAKE3
digest, ``artifacts/<2 hex>/<digest>.json`` manifests, ``logs/<run id>/<step>.<attempt>.log`` what steps printed,
``tmp/`` what is being written. Nothing becomes visible under its name before it is whole.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from zenray.errors import ConfigError


class ObjectWriter(Protocol):
    """An object being written; ``commit`` makes it visible under its digest, anything else leaves nothing."""

    def write(self, data: Any) -> int:
        """Append a bytes-like object."""
        ...

    def commit(self) -> tuple[str, int]:
        """Make the object visible; returns its digest and size in bytes."""
        ...

    def abort(self) -> None:
        """Discard what was written; harmless after ``commit``."""
        ...


class Store(Protocol):
    """What an artifact store can do. All methods raise StoreError where the store cannot."""

    uri: str

    def create(self) -> ObjectWriter:
        """Begin a new object."""
        ...

    def has(self, digest: str, size_bytes: int) -> bool:
        """Say whether a whole object is there; reads no bytes."""
        ...

    def open(self, digest: str) -> IO[bytes]:
        """Open an object for reading."""
        ...

    def buffer(self, digest: str) -> memoryview:
        """Return an object's bytes, memory-mapped where the store is a local folder."""
        ...

    def put_named(self, name: str, data: bytes) -> None:
        """Write a small file under a relative name, atomically, replacing what is there."""
        ...

    def get_named(self, name: str) -> bytes | None:
        """Return a named file's bytes, or None where there is none."""
        ...

    def has_named(self, name: str) -> bool:
        """Say whether a named file is there."""
        ...

    def touch(self, name: str) -> bool:
        """Say whether a name is there, and make it young again where the store can."""
        ...

    def put_file(self, name: str, path: Path) -> None:
        """Copy a local file to a relative name."""
        ...

    def local_path(self, name: str) -> Path | None:
        """Return where a relative name lies on this machine's disk; None for a store that is not a folder."""
        ...

    def names(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """Give every name below a prefix with its size in bytes and its age as a modification time (epoch s)."""
        ...

    def delete(self, name: str) -> None:
        """Remove a name; harmless where it is not there."""
        ...


def object_name(digest: str) -> str:
    """Return the relative name of an object."""
    return f"objects/{digest[:2]}/{digest}"


def manifest_name(digest: str) -> str:
    """Return the relative name of an artifact's manifest."""
    return f"artifacts/{digest[:2]}/{digest}.json"


def log_name(run_id: str, step_name: str, attempt: int) -> str:
    """Return the relative name of an attempt's log."""
    return f"logs/{run_id}/{step_name}.{attempt}.log"


def open_store(uri: str, options: Mapping[str, Any] | None = None) -> Store:
    """Open a store by its URL; a plain path is a local folder, which is made where it does not exist."""
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file") or len(scheme) == 1:
        from zenray.store.local import LocalStore

        return LocalStore(Path(uri.removeprefix("file://")))
    from zenray.store.remote import RemoteStore  # fsspec costs 0.15 s, which a local store does not need

    try:
        return RemoteStore(uri, options or {})
    except (ImportError, ValueError) as exc:
        raise ConfigError(f"artifact store {uri!r}: {exc}") from exc
