"""Turns the arguments of one step call into a tree for its worker: artifacts become Slots, odd values artifacts.

Runs in: driver.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from zenray import artifacts
from zenray.annotations import describe, may_flow
from zenray.cache import UNKNOWN_CODE
from zenray.errors import DefinitionError, MaterializerError, StoreError
from zenray.files import File, Folder
from zenray.fingerprint import fingerprint
from zenray.futures import Artifact
from zenray.hashing import encode
from zenray.materializer import load_class, registry
from zenray.metadata.records import ArtifactRecord
from zenray.model import Manifest, Slot
from zenray.step import Step
from zenray.store import Store
from zenray.stored import StoredArtifact


class Input(NamedTuple):
    """An artifact that an argument holds: of a step run of this run, or, without a producer, the one given."""

    argument: str
    producer: str
    output_index: int
    given: Manifest | None = None


class ArgumentTree:
    """Collects the inputs of one step call while its arguments are walked."""

    def __init__(self, run_id: str, step: Step[Any], store: Store) -> None:
        self.inputs: list[Input] = []  # by Slot index
        self.stored: list[ArtifactRecord] = []
        self.heritage: set[str] = set()  # digests of the code behind instances that were given
        self._run_id, self._step, self._store = run_id, step, store

    def take(self, argument: str, value: Any) -> Any:
        """Return an argument as a tree of plain values and Slots.

        Raises DefinitionError where it is not what its annotation says, MaterializerError where it cannot be stored.
        """
        try:
            self._check(argument, value)
            return self._tree(argument, value)
        except RecursionError:
            raise DefinitionError(
                f"step {self._step.name!r}: argument {argument!r} contains itself or is nested too deeply; give it flat"
            ) from None  # its traceback is a thousand times the same

    def _check(self, argument: str, value: Any) -> None:
        target = self._step.annotations.get(argument)
        if isinstance(value, Artifact):
            source, told = value.annotation, describe(value.annotation)
        elif type(value) is StoredArtifact:
            source, told = load_class(value.manifest.type_name), value.manifest.type_name
        else:
            if next(artifacts_in(value), None) is None:
                self._step.check_argument(argument, value)
            return
        if target is not None and source is not None and not may_flow(source, target):
            raise DefinitionError(
                f"step {self._step.name!r}: argument {argument!r} is annotated {describe(target)}, and {value!r} is "
                f"{told}"
            )

    def _tree(self, argument: str, value: Any) -> Any:
        kind = type(value)
        if kind is Artifact:
            return self._artifact(argument, value)
        if kind is StoredArtifact:
            return self._stored(argument, value)
        if kind in (File, Folder):
            return self._outside(argument, value)
        if kind in (list, tuple):
            return kind(self._tree(argument, v) for v in value)
        if kind is dict and _has_encoding(list(value)):
            return {k: self._tree(argument, v) for k, v in value.items()}
        if kind is dict and next(artifacts_in(value), None) is not None:
            raise DefinitionError(
                f"step {self._step.name!r}, argument {argument!r}: a dict that holds artifacts needs plain keys, "
                f"such as texts or numbers, and one of {sorted({type(k).__qualname__ for k in value})} is not"
            )
        if not _has_encoding(value):
            return self._literal(argument, value)
        return kind(value) if kind in (set, bytearray) else value  # as it is now: the pipeline may change it

    def _artifact(self, argument: str, artifact: Artifact) -> Slot:
        if artifact.run_id == self._run_id:
            return self._slot(Input(argument, artifact.step_run, artifact.index))
        return self._foreign(argument, artifact.manifest)

    def _outside(self, argument: str, value: File | Folder) -> File | Folder:
        try:
            return value.identified()
        except StoreError as exc:
            path = Path(value.url).expanduser()
            is_relative = "://" not in value.url and not path.is_absolute()
            where = f"; it was looked for at {path.absolute()}, relative to the folder of this process"
            raise StoreError(
                f"step {self._step.name!r}, argument {argument!r}: {exc}" + (where if is_relative else "")
            ) from exc

    def _stored(self, argument: str, artifact: StoredArtifact) -> Slot:
        if artifact.store.uri != self._store.uri:
            artifacts.copy(artifact.manifest, artifact.store, self._store)
            self.stored.append(ArtifactRecord(artifact.manifest, self._store.uri, time.time()))
        if not artifacts.exists(artifact.manifest, self._store):
            raise StoreError(
                f"step {self._step.name!r}: argument {argument!r} is {artifact!r}, which is no longer in the store "
                f"{self._store.uri}; run what made it again"
            )
        return self._foreign(argument, artifact.manifest)

    def _foreign(self, argument: str, manifest: Manifest) -> Slot:
        if manifest.may_hold_instances:
            self.heritage.add(UNKNOWN_CODE)
        return self._slot(Input(argument, "", 0, manifest))

    def _literal(self, argument: str, value: Any) -> Slot:
        allow_pickle = self._step.settings.allow_pickle
        held = next(artifacts_in(value), None)
        if held is not None:
            raise DefinitionError(
                f"step {self._step.name!r}, argument {argument!r}: a {type(value).__qualname__} holds {held!r}; "
                "artifacts can be given alone and in lists, tuples and dicts, so give it in one of these or as an "
                "argument of its own"
            )
        try:
            manifest = artifacts.save(
                value, self._store, table=registry.table(), allow_pickle=allow_pickle, producer=self._run_id
            )
        except MaterializerError as exc:
            raise MaterializerError(f"step {self._step.name!r}, argument {argument!r}: {exc}") from exc
        self.stored.append(ArtifactRecord(manifest, self._store.uri, time.time()))
        if manifest.may_hold_instances:
            found = fingerprint(partial(id, value))
            self.heritage.add(UNKNOWN_CODE if found.problems else found.digest)
        return self._slot(Input(argument, "", 0, manifest))

    def _slot(self, found: Input) -> Slot:
        self.inputs.append(found)
        return Slot(len(self.inputs) - 1)


def _has_encoding(value: Any) -> bool:
    try:
        encode(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def artifacts_in(value: Any) -> Iterator[Artifact | StoredArtifact]:
    """Yield the artifacts that an argument holds: in lists, tuples and dicts, and where they cannot be taken from."""
    if isinstance(value, Artifact | StoredArtifact):
        yield value
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            yield from artifacts_in(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from artifacts_in(key)
            yield from artifacts_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from artifacts_in(getattr(value, field.name, None))
