"""Bytes by digest: content-addressed objects, artifact manifests and logs in a local folder or on fsspec.

Runs in: anywhere.

Layout below the root, the same in every store: ``objects/<2 hex>/<digest>`` holds bytes named by their BLAKE3
digest, ``artifacts/<2 hex>/<digest>.json`` the manifests of artifacts that have objects,
``packs/<run id>/<digest>.jsonl`` those of small artifacts, a line for each, as they were committed together,
``logs/<run id>/<step>.<attempt>.log`` what steps printed, ``ledgers/<id>`` whose runs use the store, ``tmp/`` what is
being written. Nothing becomes visible under its name before it is whole.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from zenray.waiting import Waiter


class ObjectWriter(Protocol):
    """An object being written; visible under its digest once it is published, anything else leaves nothing."""

    def write(self, data: Any) -> int:
        """Append a bytes-like object."""
        ...

    def finish(self) -> tuple[str, int]:
        """End the object, which is not visible yet; returns its digest and size in bytes."""
        ...

    def commit(self) -> tuple[str, int]:
        """Finish and publish."""
        ...

    def abort(self) -> None:
        """Discard what was written; harmless once it is published."""
        ...


class Store(Protocol):
    """What an artifact store can do. All methods raise StoreError where the store cannot.

    ``uri`` is its address (``address_of``), by which ledgers know it. It is for people and for comparing.
    """

    uri: str

    def create(self) -> ObjectWriter:
        """Begin a new object."""
        ...

    def publish(self, writers: Sequence[ObjectWriter]) -> None:
        """Make finished objects of this store visible; returns when their bytes are in it. Any thread may call it."""
        ...

    def has(self, digest: str, size_bytes: int) -> bool:
        """Say whether a whole object is there; reads no bytes."""
        ...

    def open(self, digest: str) -> IO[bytes]:
        """Open an object for reading."""
        ...

    def buffer(self, digest: str) -> memoryview:
        """Return an object's bytes, memory-mapped: from the store where it is a folder, else from the read cache."""
        ...

    def stored_digest(self, digest: str) -> str:
        """Read the bytes that are stored under a digest, past any cache, and return the digest that they have."""
        ...

    def reach(self) -> None:
        """Raise StoreError within seconds where the store cannot be reached or refuses us; the local disk always is."""
        ...

    def put_named(self, name: str, data: bytes) -> None:
        """Write a small file under a relative name, atomically, replacing what is there."""
        ...

    def create_named(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one, which is made young again where it can be; says if it has."""
        ...

    def get_named(self, name: str) -> bytes | None:
        """Return a named file's bytes, or None where there is none."""
        ...

    def has_named(self, name: str) -> bool:
        """Say whether a named file is there."""
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

    def abort_uploads(self, *, before: float, is_dry: bool) -> list[tuple[str, float]]:
        """Abort what was begun before a time (epoch s), never ended, and is paid for until then; or only find it.

        Returns names with the times when they were begun. Where nothing of that kind remains there is nothing to do.
        """
        ...


def object_name(digest: str) -> str:
    """Return the relative name of an object."""
    return f"objects/{digest[:2]}/{digest}"


def manifest_name(digest: str) -> str:
    """Return the relative name of an artifact's manifest."""
    return f"artifacts/{digest[:2]}/{digest}.json"


def pack_name(run_id: str, digest: str) -> str:
    """Return the relative name of manifests that were committed together; ``digest`` is that of the file's bytes."""
    return f"packs/{run_id}/{digest}.jsonl"


def log_name(run_id: str, step_name: str, attempt: int) -> str:
    """Return the relative name of an attempt's log."""
    return f"logs/{run_id}/{step_name}.{attempt}.log"


def ledger_name(ledger_id: str) -> str:
    """Return the relative name that says that a ledger's runs use the store."""
    return f"ledgers/{ledger_id}"


def address_of(uri: str, options: Mapping[str, Any] | None = None) -> str:
    """Return what a store is known by, its ``Store.uri``: the same for every way to write where it lies.

    A folder's path has no symbolic links in it. A remote store's address has no credentials, and names the server
    where it is not the provider's own.
    """
    if _is_local(uri):
        return os.path.realpath(os.path.expanduser(uri.removeprefix("file://")))
    from zenray.store.address import remote_address  # fsspec costs 0.15 s, which a local store does not need

    return remote_address(uri, options or {})


def open_store(
    uri: str, options: Mapping[str, Any] | None = None, *, waiter: Waiter | None = None, is_reached: bool = False
) -> Store:
    """Open a store by its URL; a plain path is a local folder, which is made where it does not exist.

    ``waiter`` is told while a remote store is waited for. One that was never reached is given up after seconds, where
    not ``is_reached`` says that somebody else has. Raises ConfigError for a protocol or an option that is not known;
    asks nothing of a remote store.
    """
    if _is_local(uri):
        from zenray.store.local import LocalStore

        return LocalStore(address_of(uri))
    from zenray.store.remote import RemoteStore  # fsspec, as above

    return RemoteStore(uri, options or {}, waiter=waiter, is_reached=is_reached)


def _is_local(uri: str) -> bool:
    scheme = urlsplit(uri).scheme
    return scheme in ("", "file") or len(scheme) == 1
