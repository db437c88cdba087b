"""What a package with its own materializers or stores tests them with: contracts to subclass, an artifact in memory.

Runs in: anywhere.
"""
# ruff: noqa: D102 - the names of the tests are what they claim

import functools
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ClassVar

from zenray import artifacts
from zenray.errors import MaterializerError, StoreError
from zenray.hashing import digest_bytes
from zenray.materializer import (
    Materializer,
    find,
    load_class,
    load_materializer,
    registry,
    type_name,
    type_names,
)
from zenray.model import Json
from zenray.store import Store, manifest_name, object_name, open_store

MAX_PREVIEW_BYTES = 8 * 1024


class MemoryFiles:
    """An artifact's files in memory: ``writer()`` for a materializer's ``save``, ``reader()`` for its ``load``."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def writer(self) -> "MemoryWriter":
        """Return an ``ArtifactWriter`` that adds to these files."""
        return MemoryWriter(self.contents)

    def reader(self) -> "MemoryReader":
        """Return an ``ArtifactReader`` of these files."""
        return MemoryReader(self.contents)

    def digests(self) -> dict[str, str]:
        """Return the digest of each file."""
        return {name: digest_bytes(data) for name, data in self.contents.items()}


class MemoryWriter:
    """The ``ArtifactWriter`` of ``MemoryFiles``."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self._contents = contents

    def open(self, name: str) -> IO[bytes]:
        """Open a new file for writing; it is there when it has been closed."""
        self._check(name)
        return _MemoryFile(self._contents, name)

    def put(self, name: str, data: bytes) -> None:
        """Write one file whole."""
        self._check(name)
        self._contents[name] = bytes(data)

    def copy(self, path: Path, name: str) -> None:
        """Copy a file of the local disk in."""
        self.put(name, path.read_bytes())

    def _check(self, name: str) -> None:
        if name in self._contents:
            raise MaterializerError(f"the file {name!r} is written twice; give each file of an artifact its own name")
        if name.startswith("/") or ".." in name.split("/") or not name:
            raise MaterializerError(f"{name!r} is not a file name inside an artifact; use a relative name without '..'")


class _MemoryFile(io.BytesIO):
    """A file that cannot be read or repositioned, as files of an object store cannot."""

    def __init__(self, contents: dict[str, bytes], name: str) -> None:
        super().__init__()
        self._contents = contents
        self._name = name

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        raise io.UnsupportedOperation("an artifact's file is written from front to back; seek is not possible")

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self._keep()
        super().close()

    def close(self) -> None:
        if not self.closed:
            self._keep()
        super().close()

    def _keep(self) -> None:
        if not self.closed:
            self._contents[self._name] = self.getvalue()


class MemoryReader:
    """The ``ArtifactReader`` of ``MemoryFiles``."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    @property
    def names(self) -> tuple[str, ...]:
        """The files, in the order they were written."""
        return tuple(self._contents)

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        return io.BytesIO(self.read(name))

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        try:
            return self._contents[name]
        except KeyError:
            raise MaterializerError(f"the artifact has no file {name!r}; it has {list(self._contents)}") from None

    def buffer(self, name: str) -> memoryview:
        """Return a file's bytes, read-only."""
        return memoryview(self.read(name))

    def extract(self, name: str, path: Path) -> None:
        """Copy a file to the local disk."""
        path.write_bytes(self.read(name))


class StoreContract:
    """The tests an artifact store must pass; subclass it in a test module and open a store.

    ``store`` gives a new handle on the same place each time it is called within one test, as two processes would have.
    """

    def store(self) -> Store:
        """Open the store that is tested, empty at the beginning of each test."""
        raise NotImplementedError

    def test_an_object_appears_under_the_digest_of_its_bytes_when_it_is_published(self) -> None:
        store = self.store()
        writer = store.create()
        writer.write(b"first ")
        writer.write(memoryview(bytearray(b"second")))
        digest, size_bytes = writer.finish()
        assert not list(store.names("objects"))
        store.publish([writer])
        writer.abort()
        assert (digest, size_bytes) == (digest_bytes(b"first second"), 12)
        assert self.store().has(digest, 12)
        assert self.store().stored_digest(digest) == digest
        assert bytes(self.store().buffer(digest)) == b"first second"
        with self.store().open(digest) as file:
            assert file.seek(6) == 6
            assert file.read() == b"second"

    def test_objects_of_many_blocks_and_of_none_come_back(self) -> None:
        for data in (b"", bytes(range(256)) * (20 << 12)):
            digest, size_bytes = self._put(data)
            assert size_bytes == len(data)
            assert bytes(self.store().buffer(digest)) == data

    def test_an_equal_object_is_stored_once(self) -> None:
        assert self._put(b"equal") == self._put(b"equal")
        assert [size for _, size, _ in self.store().names("objects")] == [5]

    def test_an_aborted_object_leaves_nothing(self) -> None:
        writer = self.store().create()
        writer.write(b"half" * (1 << 20))
        writer.abort()
        writer.abort()
        assert not list(self.store().names("objects"))

    def test_an_object_of_another_size_is_not_there(self) -> None:
        digest, size_bytes = self._put(b"whole")
        assert not self.store().has(digest, size_bytes + 1)
        assert not self.store().has(digest_bytes(b"other"), 5)

    def test_a_missing_object_is_a_store_error_that_names_the_store(self) -> None:
        for read in (self.store().buffer, self.store().open):
            try:
                read(digest_bytes(b"missing"))
            except StoreError as exc:
                message = str(exc)
            else:
                raise AssertionError("reading a missing object gave no error")
            assert self.store().uri in message

    def test_a_named_file_is_replaced_as_a_whole(self) -> None:
        name = manifest_name(digest_bytes(b"name"))
        assert self.store().get_named(name) is None
        assert not self.store().has_named(name)
        for data in (b"first", b"", b"second"):
            self.store().put_named(name, data)
            assert self.store().get_named(name) == data
        assert self.store().has_named(name)

    def test_a_named_file_that_is_there_is_kept_by_one_that_is_only_created(self) -> None:
        name = manifest_name(digest_bytes(b"created"))
        assert self.store().create_named(name, b"first")
        assert not self.store().create_named(name, b"second")
        assert self.store().get_named(name) == b"first"

    def test_of_many_that_create_a_named_file_at_once_its_content_is_whole(self) -> None:
        name = manifest_name(digest_bytes(b"raced"))
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda n: self.store().create_named(name, bytes([n]) * 2_000), range(4)))
        data = self.store().get_named(name)
        assert data is not None
        assert len(data) == 2_000
        assert len(set(data)) == 1

    def test_a_local_file_is_copied_in(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"a log" * 1000)
            file.flush()
            self.store().put_file("logs/run/step.1.log", Path(file.name))
        assert self.store().get_named("logs/run/step.1.log") == b"a log" * 1000

    def test_names_are_listed_below_a_prefix_with_size_and_age(self) -> None:
        before = time.time()
        digest, _ = self._put(b"listed")
        self.store().put_named("artifacts/ab/abc.json", b"{}")
        (name, size_bytes, changed_at) = next(iter(self.store().names("objects")))
        assert (name, size_bytes) == (object_name(digest), 6)
        assert changed_at == 0 or abs(changed_at - before) < 60
        assert [name for name, _, _ in self.store().names("artifacts")] == ["artifacts/ab/abc.json"]
        assert list(self.store().names("nothing")) == []

    def test_a_deleted_name_is_gone_and_deleting_it_again_is_harmless(self) -> None:
        digest, size_bytes = self._put(b"gone")
        for _ in range(2):
            self.store().delete(object_name(digest))
            assert not self.store().has(digest, size_bytes)
        assert self._put(b"gone") == (digest, size_bytes)

    def test_writers_of_equal_and_of_different_objects_do_not_disturb_each_other(self) -> None:
        pieces = [bytes([n % 4]) * 100_000 for n in range(16)]
        with ThreadPoolExecutor(8) as threads:
            digests = list(threads.map(lambda data: self._put(data)[0], pieces))
        assert digests == [digest_bytes(data) for data in pieces]
        assert len(list(self.store().names("objects"))) == 4

    def test_an_artifact_survives_the_round_trip_and_its_check(self) -> None:
        value = {"rows": list(range(5_000)), "name": "x"}
        manifest = artifacts.save(value, self.store(), table=registry.table())
        found = artifacts.read_manifest(manifest.digest, self.store())
        assert found == manifest
        assert artifacts.exists(manifest, self.store())
        artifacts.verify(manifest, self.store())
        assert artifacts.load(manifest, self.store()) == value

    def test_an_artifact_is_copied_to_another_store_once(self) -> None:
        value = {"rows": list(range(5_000)), "blob": bytes(20_000)}
        with tempfile.TemporaryDirectory() as folder:
            elsewhere = open_store(folder)
            manifest = artifacts.save(value, elsewhere, table=registry.table())
            assert artifacts.copy(manifest, elsewhere, self.store()) > 0
            assert artifacts.copy(manifest, elsewhere, self.store()) == 0
            back = open_store(f"{folder}/back")
            assert artifacts.copy(manifest, self.store(), back) > 0
            artifacts.verify(manifest, back)
        assert artifacts.load(manifest, self.store()) == value

    def _put(self, data: bytes) -> tuple[str, int]:
        writer = self.store().create()
        writer.write(data)
        return writer.commit()


def save(materializer: Materializer, value: Any) -> tuple[MemoryFiles, dict[str, Json]]:
    """Save a value in memory; return the files, and the metadata as it is after a round trip through JSON."""
    files = MemoryFiles()
    metadata = materializer.save(value, files.writer())
    return files, json.loads(json.dumps(dict(metadata or {})))


def round_trip(materializer: Materializer, value: Any) -> Any:
    """Save a value in memory and return what is loaded again."""
    files, metadata = save(materializer, value)
    return materializer.load(files.reader(), type(value), metadata)


class MaterializerContract:
    """The tests a materializer must pass; subclass it in a test module, name the materializer and give values.

    ``values`` and ``refused`` must give equal values in every process that calls them. Override ``is_equal`` where
    ``==`` isn't the equality of the type.
    """

    materializer: ClassVar[type[Materializer]]

    def values(self) -> Mapping[str, Any]:
        """Return values to store, by a name for messages: empty ones, odd ones, one of each kind."""
        raise NotImplementedError

    def refused(self) -> Mapping[str, Any]:
        """Return values that ``save`` must refuse with a ``MaterializerError``."""
        return {}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        """Say whether a loaded value is as good as the one that was saved."""
        return bool(value == loaded)

    def test_is_found_by_its_import_path(self) -> None:
        cls = self.materializer
        assert type(load_materializer(f"{cls.__module__}:{cls.__qualname__}")) is cls

    def test_values_come_back_equal_and_of_the_same_class(self) -> None:
        for name, value in self.values().items():
            loaded = round_trip(self.materializer(), value)
            assert type(loaded) is type(value), f"{name}: saved a {type(value)}, loaded a {type(loaded)}"
            assert self.is_equal(value, loaded), f"{name}: saved {value!r}, loaded {loaded!r}"

    def test_a_value_that_was_loaded_is_saved_as_the_same_bytes(self) -> None:
        for name, value in self.values().items():
            first, metadata = save(self.materializer(), value)
            again, metadata_again = save(
                self.materializer(), self.materializer().load(first.reader(), type(value), metadata)
            )
            assert (again.digests(), metadata_again) == (first.digests(), metadata), name

    def test_equal_values_give_equal_bytes_in_another_process(self) -> None:
        elsewhere = _identities_elsewhere(type(self))
        assert isinstance(elsewhere, dict), f"the other process failed: {elsewhere}"
        for name, value in self.values().items():
            assert _identity(self.materializer(), value) == elsewhere[name], name

    def test_previews_are_small_json(self) -> None:
        for name, value in self.values().items():
            text = json.dumps(dict(self.materializer().preview(value)), allow_nan=False)
            assert len(text) <= MAX_PREVIEW_BYTES, f"{name}: the preview has {len(text)} bytes"

    def test_types_lead_to_the_materializer(self) -> None:
        table = {("=" if self.materializer.is_exact else "") + name: "this" for name in type_names(self.materializer)}
        for name, value in self.values().items():
            assert not table or find(type(value), table) == "this", f"{name}: {type_name(type(value))} is not served"

    def test_classes_are_found_by_name(self) -> None:
        for value in self.values().values():
            assert load_class(type_name(type(value))) is type(value)

    def test_other_values_are_refused(self) -> None:
        for name, value in self.refused().items():
            try:
                save(self.materializer(), value)
            except MaterializerError:
                continue
            raise AssertionError(f"{name}: {value!r} was saved")


def _identity(materializer: Materializer, value: Any) -> Json:
    files, metadata = save(materializer, value)
    return [files.digests(), metadata]


def _identities_elsewhere(contract: type[MaterializerContract]) -> Json:
    """Return the identities of a contract's values as a new process with another hash seed computes them."""
    found = _identities_of_module(contract.__module__, str(sys.modules[contract.__module__].__file__))
    return found[contract.__qualname__]


@functools.cache
def _identities_of_module(module_name: str, file: str) -> Json:
    """Return those of all contracts in a module: one process for them, as imports may take seconds."""
    program = "import sys; from zenray.testing import print_identities; print_identities(*sys.argv[1:])"
    result = subprocess.run(
        [sys.executable, "-c", program, module_name, file],
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(result.stdout)


def print_identities(module_name: str, file: str) -> None:
    """Print the identities of the values of a module's contracts as JSON; the program of the other process."""
    contracts = [
        value
        for value in vars(_load_module(module_name, file)).values()
        if isinstance(value, type) and issubclass(value, MaterializerContract) and hasattr(value, "materializer")
    ]
    print(json.dumps({contract.__qualname__: _identities(contract()) for contract in contracts}))


def _identities(contract: MaterializerContract) -> Json:
    try:
        return {name: _identity(contract.materializer(), value) for name, value in contract.values().items()}
    except Exception as exc:  # noqa: BLE001 - another contract's fault must not hide this one's result
        return repr(exc)


def _load_module(name: str, file: str) -> types.ModuleType:
    """Import a test module from its file, under the name that its classes have in the other process."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
