"""Reading back: pipelines, runs, step runs and artifacts as they are recorded.

Runs in: anywhere.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenray.errors import NotFoundError, StoreError, suggest
from zenray.model import Status
from zenray.profile import active_stack, usable_stacks
from zenray.recovery import mark_lost_runs
from zenray.returned import named
from zenray.stack import Stack
from zenray.stored import StoredArtifact

if TYPE_CHECKING:  # SQLAlchemy costs 0.3 s: only who reads the ledger pays for it
    from zenray.metadata.ledger import Ledger
    from zenray.metadata.records import ArtifactRecord, AttemptRecord, RunRecord, StepRunRecord
    from zenray.store import Store


class Books:
    """The ledger and the artifact store of a stack, opened when first needed."""

    def __init__(self, stack: Stack | None = None) -> None:
        self.stack = stack or active_stack()
        self._others: dict[str, Store] = {}

    @cached_property
    def ledger(self) -> "Ledger":
        """The metadata store."""
        from zenray.metadata.ledger import Ledger

        return Ledger(self.stack.metadata_store, **self.stack.metadata_store_options)

    @cached_property
    def store(self) -> "Store":
        """The artifact store."""
        from zenray.store import open_store

        return open_store(self.stack.artifact_store, self.stack.artifact_store_options)

    def store_at(self, uri: str) -> "Store":
        """Return the store of an address: this stack's, or another, with the options of a stack that leads to it."""
        if uri == self.store.uri:
            return self.store
        if uri not in self._others:
            self._others[uri] = _open(uri)
        return self._others[uri]

    def artifact(self, digest: str) -> "ArtifactRecord":
        """Return a recorded artifact by its digest or the beginning of it; see ``artifacts``."""
        found = self.ledger.artifact(digest)
        return self.artifacts([found.digest])[found.digest]

    def artifacts(self, digests: Sequence[str]) -> dict[str, "ArtifactRecord"]:
        """Return recorded artifacts by digest: this stack's copy where there is one, else another store's."""
        found = self.ledger.artifacts(digests, store=self.store.uri)
        return self.ledger.artifacts([d for d in digests if d not in found]) | found

    def log(self, log_uri: str) -> bytes | None:
        """Return a recorded log, from its store or from this machine's disk; None where it is in neither."""
        if "://" not in log_uri:
            try:
                return Path(log_uri).read_bytes() if log_uri else None
            except FileNotFoundError:
                return None
            except OSError as exc:
                raise StoreError(
                    f"the log {log_uri!r} cannot be read: {exc.strerror or exc}; check the permissions of its folder"
                ) from exc
        uri, _, name = log_uri.rpartition("/logs/")
        return self.store_at(uri).get_named(f"logs/{name}")


def _open(uri: str) -> "Store":
    """Open the store of an address that a ledger has recorded."""
    from zenray.store import address_of, open_store

    for stack in usable_stacks():
        if address_of(stack.artifact_store, stack.artifact_store_options) == uri:
            return open_store(stack.artifact_store, stack.artifact_store_options)
    if address_of(uri) != uri:  # it would be the same bucket, and another server
        raise StoreError(
            f"no stack here leads to the artifact store {uri!r}; make one with its 'artifact_store' and "
            "'endpoint_url', with `zenray stack register`"
        )
    return open_store(uri)


class StepRun:
    """One step run as recorded."""

    def __init__(self, record: "StepRunRecord", books: Books) -> None:
        self.record = record
        self._books = books

    @property
    def name(self) -> str:
        """Its name in the run."""
        return self.record.name

    @property
    def status(self) -> Status:
        """Where it is."""
        return self.record.status

    @cached_property
    def outputs(self) -> Mapping[str, StoredArtifact]:
        """The outputs by name, in the order of declaration."""
        books = self._books
        rows = books.ledger.outputs(self.record.run_id, self.name)
        found = books.artifacts([r.digest for r in rows])
        return _Named(
            {
                r.output: StoredArtifact(
                    r.output, found[r.digest].manifest, self._books.store_at(found[r.digest].store)
                )
                for r in rows
                if r.digest in found
            },
            f"step {self.name!r} ({self.status}) has no output",
        )

    @property
    def output(self) -> StoredArtifact:
        """The only output; NotFoundError where there are several, or none yet."""
        if len(self.outputs) != 1:
            raise NotFoundError(
                f"step {self.name!r} ({self.status}) has {len(self.outputs)} outputs ({', '.join(self.outputs)}); "
                'take one by name: .outputs["..."]'
            )
        return next(iter(self.outputs.values()))

    @property
    def attempts(self) -> "tuple[AttemptRecord, ...]":
        """The tries, in order."""
        return self._books.ledger.attempts(self.record.run_id, self.name)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the step kept with ``zenray.log_metadata``; empty where its result came from the cache."""
        return self.record.metadata

    @property
    def logs(self) -> str:
        """What the attempts printed, one after another."""
        found = (self._books.log(a.log_uri) for a in self.attempts)
        return "".join(data.decode(errors="replace") for data in found if data)

    def __repr__(self) -> str:
        return f"<step run {self.name}: {self.status}>"


class Run:
    """One execution of a pipeline as recorded."""

    def __init__(self, record: "RunRecord", books: Books) -> None:
        self.record = record
        self._books = books

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.record.run_id

    @property
    def pipeline(self) -> str:
        """The pipeline's name."""
        return self.record.pipeline

    @property
    def status(self) -> Status:
        """Where it is, read anew."""
        return self._books.ledger.find_run(self.run_id).status

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The pipeline's parameters."""
        return self.record.parameters

    @property
    def steps(self) -> Mapping[str, StepRun]:
        """The step runs by name, in the order they were called."""
        rows = self._books.ledger.step_runs(self.run_id)
        return _Named({r.name: StepRun(r, self._books) for r in rows}, f"run {self.run_id} has no step")

    @property
    def outputs(self) -> Mapping[str, Any]:
        """What the pipeline returned, by name: artifacts to ``load()``, and plain values as they are.

        A dictionary's values have their keys; what was returned in a tuple or list, or alone, has the name of the
        output, or, where the step does not name it, that of the step run. Empty until the run has succeeded.
        """
        found = named(self._books.ledger.find_run(self.run_id).outputs)
        steps = self.steps
        values = {name: steps[r.step_run].outputs[r.output] if r.step_run else r.value for name, r in found.items()}
        return _Named(values, f"run {self.run_id} ({self.status}) returned no")

    @property
    def output(self) -> Any:
        """The only thing that the pipeline returned; NotFoundError where it is several, or nothing."""
        found = self.outputs
        if len(found) != 1:
            raise NotFoundError(
                f"run {self.run_id} ({self.status}) returned {len(found)} values ({', '.join(found)}); "
                'take one by name: .outputs["..."]'
            )
        return next(iter(found.values()))

    def __repr__(self) -> str:
        return f"<run {self.run_id} of {self.pipeline}: {self.record.status}>"


class PipelineRuns:
    """A pipeline that has run."""

    def __init__(self, name: str, books: Books) -> None:
        self.name = name
        self._books = books

    @property
    def runs(self) -> list[Run]:
        """Its runs, oldest first."""
        found = self._books.ledger.list_runs(self.name, limit=1_000_000)
        return [Run(r, self._books) for r in sorted(found, key=lambda r: r.started_at)]

    def __repr__(self) -> str:
        return f"<pipeline {self.name}: {len(self.runs)} runs>"


def get_pipeline(name: str, *, stack: str | None = None) -> PipelineRuns:
    """Return a pipeline that has runs on a stack; NotFoundError lists those there are."""
    books = _current_books(stack)
    known = [p.name for p in books.ledger.pipelines()]
    if name not in known:
        raise NotFoundError(f"no pipeline {name!r} has run on stack {books.stack.name!r}; {suggest(name, known)}")
    return PipelineRuns(name, books)


def get_run(run_id: str, *, stack: str | None = None) -> Run:
    """Return a run by its id or the beginning of it; ``latest`` is the newest."""
    return find_run(run_id, _current_books(stack))


def find_run(run_id: str, books: Books) -> Run:
    """Return a run of opened books; see ``get_run``."""
    if run_id == "latest":
        newest = books.ledger.list_runs(limit=1)
        if not newest:
            raise NotFoundError(
                f"there are no runs on stack {books.stack.name!r} yet; start one with `zenray submit FILE`"
            )
        return Run(newest[0], books)
    try:
        return Run(books.ledger.find_run(run_id), books)
    except NotFoundError as exc:
        raise NotFoundError(f"stack {books.stack.name!r}: {exc}") from None


def list_runs(pipeline: str | None = None, *, limit: int = 100, stack: str | None = None) -> list[Run]:
    """Return the newest runs, newest first."""
    books = _current_books(stack)
    return [Run(r, books) for r in books.ledger.list_runs(pipeline, limit=limit)]


def _current_books(stack: str | None) -> Books:
    """Return the books of a stack in which no run is unfinished whose process is gone."""
    books = Books(active_stack(stack))
    mark_lost_runs(books.ledger)
    return books


class _Named(dict[str, Any]):
    """A dictionary whose KeyError says what is there."""

    def __init__(self, values: Mapping[str, Any], message: str) -> None:
        super().__init__(values)
        self._message = message

    def __missing__(self, name: str) -> Any:
        raise NotFoundError(f"{self._message} {name!r}; {suggest(str(name), self)}")
