"""Saves values as artifacts and loads them: materializer on one side, store on the other.

Runs in: anywhere.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from zenray.errors import CorruptedObjectError, MaterializerError, StoreError, ZenRayError
from zenray.hashing import digest_bytes
from zenray.materializer import find, load_class, load_materializer, no_materializer, type_name
from zenray.model import Json, Manifest, StoredFile, artifact_digest
from zenray.store import ObjectWriter, Store, manifest_name, object_name, pack_name

INLINE_BYTES = 4096  # a file up to this size lives in its manifest: one write instead of two
_DIGEST = re.compile(r"[0-9a-f]{64}")
REPAIR = "`zenray artifact verify --repair` removes what is damaged, so that its step runs again"
PICKLE = "zenray_materializers.pickled:PickleMaterializer"


def save(
    value: Any, store: Store, *, table: Mapping[str, str], allow_pickle: bool = False, producer: str = ""
) -> Manifest:
    """Write a value to the store and return its manifest, which is written too where there are objects.

    Hashed once, as it is written. Idempotent: an equal value gives the same artifact, stored once. A small value is in
    its manifest and nowhere else: whoever commits it also packs it.
    Raises MaterializerError where no materializer fits and StoreError where the store cannot take it.
    """
    prepared = prepare(value, store, table=table, allow_pickle=allow_pickle, producer=producer)
    prepared.publish()
    return prepared.manifest


def prepare(
    value: Any, store: Store, *, table: Mapping[str, str], allow_pickle: bool = False, producer: str = ""
) -> "Prepared":
    """Serialise and hash a value as ``save`` does, on this machine only; nothing is in the store before ``publish``."""
    cls = type(value)
    path = find(cls, table)
    if path is None:
        if not allow_pickle:
            raise MaterializerError(no_materializer(cls))
        path = PICKLE
    try:
        return _prepare(value, store, path, producer)
    except MaterializerError:
        if not allow_pickle or path == PICKLE:
            raise
        return _prepare(value, store, PICKLE, producer)  # a container of things that only pickle can take


def _prepare(value: Any, store: Store, path: str, producer: str) -> "Prepared":
    cls = type(value)
    materializer = load_materializer(path)
    writer = Writer(store)
    try:
        metadata = dict(materializer.save(value, writer) or {})
        files = writer.finish()
    except BaseException as exc:
        writer.abort()
        if isinstance(exc, ZenRayError) or not isinstance(exc, Exception):
            raise
        raise MaterializerError(
            f"{path} cannot save a value of type {type_name(cls)!r}: {type(exc).__name__}: {exc}"
        ) from exc
    name = type_name(cls)
    manifest = Manifest(
        type_name=name,
        materializer=path,
        format_version=materializer.format_version,
        files=files,
        metadata=metadata,
        digest=artifact_digest(name, path, materializer.format_version, files, metadata),
        is_pickle=materializer.is_pickle,
        may_hold_instances=materializer.may_hold_instances(value, metadata),
        preview=_preview(materializer.preview, value),
        producer=producer,
    )
    return Prepared(manifest, store, writer.objects)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An artifact that is finished on this machine; ``publish``, or ``discard`` it."""

    manifest: Manifest
    store: Store
    objects: tuple[ObjectWriter, ...]

    def publish(self) -> None:
        """Put the objects into the store, then the manifest; in any thread. Whatever happens, nothing remains here."""
        try:
            if not self.manifest.is_inline:
                self.store.publish(self.objects)
                put_manifest(self.manifest, self.store)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what is not published."""
        for writer in self.objects:
            writer.abort()


def pack(manifests: Sequence[Manifest], store: Store, *, run_id: str) -> None:
    """Write the small artifacts that a run commits together as one file, so that the store tells all that is in it.

    A file for each would cost as much as a tiny step, and on an object store a request. Idempotent.
    """
    lines = [_json(m) for m in manifests if m.is_inline]
    if lines:
        data = b"\n".join(lines) + b"\n"
        store.create_named(pack_name(run_id, digest_bytes(data)), data)


def packed(name: str, store: Store) -> list[Manifest]:
    """Return the manifests of a pack; none where it is gone."""
    return [_manifest(line, name, store) for line in (store.get_named(name) or b"").splitlines()]


def load(manifest: Manifest, store: Store, *, allow_pickle: bool = False) -> Any:
    """Return an artifact's value; arrays and tables on a local store are memory-mapped and read-only.

    Raises MaterializerError for a pickle that was not asked for, and where the format is newer than the code.
    """
    materializer = _trusted(manifest)
    if materializer.is_pickle and not allow_pickle:
        raise MaterializerError(
            f"artifact {manifest.digest[:12]} of type {manifest.type_name!r} is a pickle, and loading one runs code; "
            "where you trust its origin, load it with allow_pickle=True"
        )
    if manifest.format_version > materializer.format_version:
        raise MaterializerError(
            f"artifact {manifest.digest[:12]} has format {manifest.format_version} of {manifest.materializer}, "
            f"and this version reads up to {materializer.format_version}; upgrade the package that provides it"
        )
    cls = object if materializer.is_pickle else load_class(manifest.type_name)
    try:
        return materializer.load(Reader(manifest.files, store), cls, manifest.metadata)
    except ZenRayError:
        raise
    except Exception as exc:
        raise MaterializerError(
            f"{manifest.materializer} cannot load artifact {manifest.digest[:12]} of type {manifest.type_name!r}: "
            f"{type(exc).__name__}: {exc}; `zenray artifact verify {manifest.digest[:12]}` checks its bytes, and with "
            "--repair its step runs again where they are damaged"
        ) from exc


def _trusted(manifest: Manifest) -> Any:
    """Return the materializer of a manifest that is what its digest says: one that was changed is refused."""
    is_whole = all(
        _DIGEST.fullmatch(f.digest) if f.data is None else digest_bytes(f.data) == f.digest for f in manifest.files
    )
    if not is_whole or _identity(manifest) != manifest.digest:
        raise CorruptedObjectError(f"artifact {manifest.digest[:12]}: its manifest has changed since it was written")
    return load_materializer(manifest.materializer)


def _identity(manifest: Manifest) -> str:
    return artifact_digest(
        manifest.type_name, manifest.materializer, manifest.format_version, manifest.files, manifest.metadata
    )


def exists(manifest: Manifest, store: Store) -> bool:
    """Say whether every byte an artifact needs is in the store, by size; reads none of them."""
    return all(f.data is not None or store.has(f.digest, f.size_bytes) for f in manifest.files)


def verify(manifest: Manifest, store: Store) -> None:
    """Read every file and compare its digest; raises CorruptedObjectError that names the first that differs."""
    for file in manifest.files:
        if file.data is not None:
            actual = digest_bytes(file.data)
        else:
            if not store.has(file.digest, file.size_bytes):
                raise CorruptedObjectError(
                    f"artifact {manifest.digest[:12]}: file {file.name!r} ({file.size_bytes} bytes) is missing or has "
                    f"another size in {store.uri}; running its step again writes it anew"
                )
            actual = store.stored_digest(file.digest)
        if actual != file.digest:
            raise CorruptedObjectError(
                f"artifact {manifest.digest[:12]}: file {file.name!r} has digest {actual[:12]}, expected "
                f"{file.digest[:12]}, in {store.uri}; the bytes have changed since they were written"
            )
    if _identity(manifest) != manifest.digest:
        raise CorruptedObjectError(f"artifact {manifest.digest[:12]}: its manifest has changed since it was written")


def repair(manifest: Manifest, store: Store) -> str:
    """Remove the damaged objects of an artifact and write its manifest anew where it is not what it was.

    Returns what was done, in words. An artifact without an object that it needs is not taken from the cache any more.
    """
    damaged = {f.digest for f in manifest.files if f.data is None and not _is_whole(f, store)}
    for digest in damaged:
        store.delete(object_name(digest))
    if damaged:
        return f"{len(damaged)} damaged or missing object(s) removed; its step runs again when it is needed"
    try:
        verify(manifest, store)
    except CorruptedObjectError as exc:
        raise CorruptedObjectError(f"{exc}; restore the metadata store from a backup") from exc
    store.put_named(manifest_name(manifest.digest), _json(manifest))
    return "its manifest was written anew from the metadata store"


def is_same(stored: Manifest, recorded: Manifest) -> bool:
    """Say whether a store's manifest says what the recorded one does; who wrote it first, and how it looks, may differ.

    Other runs may have written an equal value: preview and producer are of whoever came first in that store.
    """
    return _essence(stored) == _essence(recorded)


def _essence(manifest: Manifest) -> Manifest:
    return replace(manifest, preview={}, producer="", metadata=_as_stored(manifest.metadata))


def _as_stored(metadata: Json) -> Json:
    """Return metadata as JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(metadata))


def _is_whole(file: StoredFile, store: Store) -> bool:
    return store.has(file.digest, file.size_bytes) and store.stored_digest(file.digest) == file.digest


def copy(manifest: Manifest, source: Store, target: Store) -> int:
    """Copy an artifact to another store and return how many bytes of objects that took; what is there is skipped.

    Streams, and compares every digest on the way: a CorruptedObjectError leaves nothing in the target, and the
    manifest comes last. A small artifact has nothing to be copied: it is to be packed.
    """
    copied_bytes = 0
    for file in manifest.files:
        if file.data is None and not target.has(file.digest, file.size_bytes):
            _copy_object(file, source, target)
            copied_bytes += file.size_bytes
    if not manifest.is_inline:
        put_manifest(manifest, target)
    return copied_bytes


def _copy_object(file: StoredFile, source: Store, target: Store) -> None:
    writer = target.create()
    try:
        with source.open(file.digest) as bytes_:
            while chunk := bytes_.read(4 << 20):
                writer.write(chunk)
        digest, size_bytes = writer.finish()
        if digest != file.digest:
            raise CorruptedObjectError(
                f"object {file.digest[:12]} in {source.uri} has changed since it was written ({size_bytes} bytes with "
                f"digest {digest[:12]}) and is not copied; run its step again"
            )
        target.publish([writer])
    finally:
        writer.abort()


def read_manifest(digest: str, store: Store) -> Manifest | None:
    """Return the manifest of an artifact from the store itself, or None."""
    raw = store.get_named(manifest_name(digest))
    if raw is None:
        return None
    return _manifest(raw, f"artifact {digest[:12]}", store)


def _manifest(raw: bytes, what: str, store: Store) -> Manifest:
    try:
        return Manifest.from_json(json.loads(raw))
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptedObjectError(f"the manifest of {what} in {store.uri} is not readable: {exc}") from exc


def _json(manifest: Manifest) -> bytes:
    return json.dumps(manifest.to_json(), separators=(",", ":")).encode()


def put_manifest(manifest: Manifest, store: Store) -> None:
    """Write an artifact's manifest unless it is there as it should be; one that was changed is mended."""
    name, data = manifest_name(manifest.digest), _json(manifest)
    if store.create_named(name, data) or store.local_path(name) is None:
        return
    try:
        stored = read_manifest(manifest.digest, store)
    except CorruptedObjectError:
        stored = None
    if stored is None or not is_same(stored, manifest):
        store.put_named(name, data)  # a disk or a person has changed it


def _preview(preview: Any, value: Any) -> Mapping[str, Json]:
    try:
        facts = dict(preview(value))
        json.dumps(facts)
    except Exception as exc:  # noqa: BLE001 - a preview that fails must not cost the artifact; it says so itself
        return {"preview failed": f"{type(exc).__name__}: {exc}"}
    return facts


class Writer:
    """Collects an artifact's files: small ones in memory for the manifest, larger ones as objects."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[str, StoredFile] = {}
        self._opened: list[_FileWriter] = []

    @property
    def objects(self) -> tuple[ObjectWriter, ...]:
        """The finished objects, to be published."""
        return tuple(f.object for f in self._opened if f.object is not None)

    def open(self, name: str) -> IO[bytes]:
        """Open a new file; it counts when it is closed."""
        if name in self._files or any(f.name == name for f in self._opened):
            raise MaterializerError(f"an artifact's file {name!r} was written twice")
        file = _FileWriter(name, self._store, self._files)
        self._opened.append(file)
        return _Buffered(file, 1 << 16)

    def put(self, name: str, data: bytes) -> None:
        """Write one file whole."""
        if name in self._files:
            raise MaterializerError(f"an artifact's file {name!r} was written twice")
        if len(data) <= INLINE_BYTES:
            self._files[name] = StoredFile(name, len(data), digest_bytes(data), bytes(data))
            return
        with self.open(name) as file:
            file.write(data)

    def copy(self, path: Path, name: str) -> None:
        """Stream a local file in."""
        with path.open("rb") as source, self.open(name) as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)

    def finish(self) -> tuple[StoredFile, ...]:
        """Return the files, in the order of their names."""
        unclosed = [f.name for f in self._opened if not f.closed]
        if unclosed:
            raise MaterializerError(
                f"a materializer left files open: {', '.join(unclosed)}; use `with writer.open(...)`"
            )
        return tuple(self._files[name] for name in sorted(self._files))

    def abort(self) -> None:
        """Discard everything."""
        for file in self._opened:
            file.abort()


class _Buffered(io.BufferedWriter):
    """A file that is discarded where the block that writes it ends with an error."""

    raw: "_FileWriter"

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.raw.abort()
        super().__exit__(kind, *rest)


class _FileWriter(io.RawIOBase):
    """Keeps up to INLINE_BYTES in memory and becomes an object beyond that."""

    def __init__(self, name: str, store: Store, files: dict[str, StoredFile]) -> None:
        super().__init__()
        self.name = name
        self._store = store
        self._files = files
        self._small = bytearray()
        self.object: ObjectWriter | None = None
        self._is_aborted = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._is_aborted:
            return len(view)
        if self.object is None and len(self._small) + len(view) <= INLINE_BYTES:
            self._small += view
            return len(view)
        if self.object is None:
            self.object = self._store.create()
            self.object.write(bytes(self._small))
        return self.object.write(view)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self._is_aborted:
            return
        if self.object is None:
            data = bytes(self._small)
            self._files[self.name] = StoredFile(self.name, len(data), digest_bytes(data), data)
        else:
            digest, size_bytes = self.object.finish()
            self._files[self.name] = StoredFile(self.name, size_bytes, digest)

    def abort(self) -> None:
        self._is_aborted = self._is_aborted or not self.closed
        if self.object is not None:
            self.object.abort()


class Reader:
    """Gives an artifact's files out of its manifest and the store."""

    def __init__(self, files: tuple[StoredFile, ...], store: Store) -> None:
        self._files = {f.name: f for f in files}
        self._store = store

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names."""
        return tuple(self._files)

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        file = self._file(name)
        return io.BytesIO(file.data) if file.data is not None else self._store.open(file.digest)

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return bytes(self.buffer(name))

    def buffer(self, name: str) -> memoryview:
        """Return a file's bytes, mapped where they can be; a size that is not the recorded one is an error."""
        file = self._file(name)
        if file.data is not None:
            return memoryview(file.data)
        view = self._store.buffer(file.digest)
        if len(view) != file.size_bytes:
            raise CorruptedObjectError(
                f"object {file.digest[:12]} in {self._store.uri} has {len(view)} bytes, expected {file.size_bytes}; "
                f"{REPAIR}"
            )
        return view

    def extract(self, name: str, path: Path) -> None:
        """Stream a file to the local disk."""
        try:
            with self.open(name) as source, path.open("wb") as target:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
        except OSError as exc:
            raise StoreError(f"cannot write {path}: {exc.strerror or exc}") from exc

    def _file(self, name: str) -> StoredFile:
        try:
            return self._files[name]
        except KeyError:
            raise MaterializerError(f"the artifact has no file {name!r}; it has {list(self._files)}") from None
