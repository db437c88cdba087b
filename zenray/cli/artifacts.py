"""``zenray artifact``: what is stored, what it is made of, whether it is whole, and what can go.

Runs in: driver.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zenray.cli.output import JsonOption, StackOption, fields, new_app, note, print_json, table, time_text

if TYPE_CHECKING:
    from zenray.metadata.records import ArtifactRecord
    from zenray.model import Manifest
    from zenray.store import Store
    from zenray.views import Books

_RECORD_EVERY_S = 60.0  # while copying; well below the grace time of garbage collection
SAMPLED = "statistics_of_first_rows"  # a fact about another fact
app = new_app("Artifacts: list, show, export, copy, verify, gc.")
DigestArgument = Annotated[str, typer.Argument(metavar="DIGEST", help="An artifact's digest, or the beginning of it.")]


@app.command("list")
def list_(
    type_name: Annotated[
        str | None, typer.Option("--type", help="Only artifacts of this type, such as pyarrow.lib.Table, or Table.")
    ] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only outputs of this run.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many artifacts, the newest first.")] = 50,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """List artifacts, newest first."""
    from zenray.progress import size_text

    books = _books(stack)
    found = _listed(books, type_name, run, limit)
    if as_json:
        print_json([_as_json(r) for r in found])
        return
    rows = [
        (
            r.digest[:12],
            r.manifest.type_name,
            size_text(r.manifest.size_bytes),
            time_text(r.created_at),
            _made_by(books, r),
        )
        for r in found
    ]
    table(
        ("digest", "type", "size", "created", "made by"),
        rows,
        empty="" if found else _nothing(books),
        optional=("created", "size"),
    )


def _nothing(books: "Books") -> str:
    """Say that there is nothing to list, and where there is."""
    elsewhere = books.ledger.list_artifacts(limit=1)
    if not elsewhere or elsewhere[0].store == books.store.uri:
        return "there are no artifacts"
    return f"there are no artifacts in {books.store.uri}; the ledger has some of other stores: {elsewhere[0].store}"


def _listed(books: "Books", type_name: str | None, run: str | None, limit: int) -> "list[ArtifactRecord]":
    """Return the newest artifacts of a type, which may be named by its last part, or of a run."""
    is_short = type_name is not None and "." not in type_name
    if run is None and not is_short:
        return list(books.ledger.list_artifacts(store=books.store.uri, type_name=type_name, limit=limit))
    found = sorted(_chosen(books, None, run), key=lambda r: r.created_at, reverse=True)
    names = ((r, r.manifest.type_name) for r in found)
    return [r for r, n in names if type_name in (None, n, n.rpartition(".")[2])][:limit]


def _made_by(books: "Books", record: "ArtifactRecord") -> str:
    """Return the output that an artifact was first, as ``RUN/STEP.OUTPUT``."""
    made = record.manifest.producer
    outputs = [o for o in books.ledger.producers(record.digest) if f"{o.run_id}/{o.name}" == made]
    return f"{made}.{outputs[0].output}" if outputs else made


@app.command()
def show(digest: DigestArgument, stack: StackOption = None, as_json: JsonOption = False) -> None:
    """Show an artifact: type, size, who made and who took it, a preview, and its files."""
    from zenray.progress import size_text

    books = _books(stack)
    record = books.artifact(digest)
    manifest = record.manifest
    producers = [f"{o.run_id}/{o.name}.{o.output}" for o in books.ledger.producers(record.digest)]
    consumers = [f"{i.run_id}/{i.name}({i.argument})" for i in books.ledger.consumers(record.digest)]
    if as_json:
        print_json(_as_json(record) | {"producers": producers, "consumers": consumers})
        return
    fields(
        {
            "artifact": record.digest,
            "type": manifest.type_name,
            "size": size_text(manifest.size_bytes),
            "created": time_text(record.created_at),
            "format": f"{manifest.materializer}, version {manifest.format_version}"
            + (", a pickle" if manifest.is_pickle else ""),
            "made by": _shortened(producers) or manifest.producer,
            "taken by": _shortened(consumers),
            "store": record.store,
        }
    )
    if manifest.preview:
        print("\npreview")
        _print_preview(manifest.preview)
    print()
    rows = [
        (f.name, size_text(f.size_bytes), f.digest[:12], "object" if f.data is None else "manifest")
        for f in manifest.files
    ]
    table(("file", "size", "digest", "kept in"), rows, empty="it has no files: its value is in its metadata")


def _shortened(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[-limit:]) + more


def _print_preview(preview: Mapping[str, Any]) -> None:
    """Print facts: texts of several lines and lists of named things as blocks."""
    sampled = preview.get(SAMPLED)
    for name, value in preview.items():
        if name == SAMPLED:
            continue
        heading = f"{name} of the first {sampled:,} rows" if sampled and name == "statistics" else name
        lines = _lines(value)
        print(f"  {heading}: {lines[0]}" if len(lines) == 1 else "\n    ".join([f"  {heading}:", *lines]))


def _lines(value: Any) -> list[str]:
    """Return JSON-like data as text for people: pairs of a list and entries of a mapping one a line, aligned."""
    if isinstance(value, str):
        return value.splitlines() or [""]
    is_named = isinstance(value, list) and all(isinstance(v, list) and len(v) == 2 for v in value)
    pairs = [(str(k), v) for k, v in value] if is_named else list(value.items()) if isinstance(value, dict) else []
    if pairs:
        width = max(len(str(k)) for k, _ in pairs)
        return [f"{str(k).ljust(width)}  {_inline(v)}".rstrip() for k, v in pairs]
    if isinstance(value, list) and value and all(isinstance(v, dict | list) for v in value):
        return [_inline(v) for v in value]
    return [_inline(value)]


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_inline(v)}" for k, v in value.items())
    return ", ".join(map(_inline, value)) if isinstance(value, list) else str(value)


def _as_json(record: "ArtifactRecord") -> dict[str, Any]:
    raw = record.manifest.to_json()
    raw["files"] = [{k: v for k, v in f.items() if k != "data"} for f in raw["files"]]
    return raw | {"store": record.store, "created_at": record.created_at, "size": record.manifest.size_bytes}


@app.command()
def export(
    digest: DigestArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder; of a single file also a new file's name.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    stack: StackOption = None,
) -> None:
    """Write an artifact's files, as they are stored, to a folder of this machine, after checking them."""
    from zenray.artifacts import REPAIR, Reader, verify
    from zenray.errors import CorruptedObjectError, NotFoundError

    books = _books(stack)
    record = books.artifact(digest)
    manifest, store = record.manifest, books.store_at(record.store)
    if not manifest.files:
        raise NotFoundError(f"artifact {manifest.digest[:12]} has no files; `zenray artifact show` shows its value")
    try:
        verify(manifest, store)
    except CorruptedObjectError as exc:
        raise CorruptedObjectError(f"{exc}; {REPAIR}") from exc
    targets = _targets(manifest, path)
    if not force:
        _refuse_existing(list(targets.values()))
    reader = Reader(manifest.files, store)
    for name, target in targets.items():
        _make_folder(target.parent)
        reader.extract(name, target)
        typer.echo(f"{target}")


def _targets(manifest: "Manifest", path: str) -> dict[str, Path]:
    folder = Path(path)
    if len(manifest.files) == 1 and not folder.is_dir() and not path.endswith(os.sep):
        return {manifest.files[0].name: folder}
    from zenray.errors import StoreError

    for file in manifest.files:
        pure = PurePosixPath(file.name)
        if pure.is_absolute() or ".." in pure.parts:
            raise StoreError(f"artifact {manifest.digest[:12]} has a file {file.name!r}, which would leave {path}")
    return {f.name: folder / f.name for f in manifest.files}


def _refuse_existing(targets: list[Path]) -> None:
    for target in targets:
        if target.exists():
            raise typer.BadParameter(f"{target} exists; --force overwrites it")


def _make_folder(folder: Path) -> None:
    from zenray.errors import StoreError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(f"cannot create the folder {folder}: {exc.strerror or exc}") from exc


@app.command()
def verify(
    digests: Annotated[list[str] | None, typer.Argument(metavar="[DIGEST]...", help="Default: all artifacts.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that the steps that made it run again.")
    ] = False,
    stack: StackOption = None,
) -> None:
    """Read artifacts' bytes and compare them with their digests; exit code 1 where something stays wrong."""
    from zenray import artifacts
    from zenray.profile import describe

    books = _books(stack)
    note(describe(books.stack))
    uri = books.store.uri
    if digests:
        records = [books.artifact(d) for d in digests]
    else:
        records = list(books.ledger.list_artifacts(store=uri, limit=1_000_000_000))
    problems = {r.digest: text for r in records if (text := _problem(r.manifest, books.store_at(r.store)))}
    for record in records:
        if record.digest in problems:
            makers = [f"{o.run_id}/{o.name}" for o in books.ledger.producers(record.digest)]
            typer.echo(f"{problems[record.digest]}\n  made by {_shortened(makers) or record.manifest.producer}")
            if repair:
                typer.echo(f"  repaired: {artifacts.repair(record.manifest, books.store_at(record.store))}")
    typer.echo(f"{len(records) - len(problems):,} artifacts are whole, {len(problems):,} are not")
    if problems and not repair:
        typer.echo(artifacts.REPAIR)
        raise typer.Exit(1)


def _problem(manifest: "Manifest", store: "Store") -> str:
    from zenray import artifacts
    from zenray.errors import StoreError

    try:
        artifacts.verify(manifest, store)
        if manifest.is_inline:
            return ""
        stored = artifacts.read_manifest(manifest.digest, store)
        if stored is None:
            return f"artifact {manifest.digest[:12]}: its manifest is missing in {store.uri}"
        if not artifacts.is_same(stored, manifest):
            return f"artifact {manifest.digest[:12]}: its manifest in {store.uri} is not the one that was recorded"
    except StoreError as exc:  # a corrupted object is one too
        return str(exc)
    return ""


@app.command()
def copy(
    to: Annotated[str, typer.Option("--to", metavar="STACK", help="The stack whose artifact store gets them.")],
    digests: Annotated[list[str] | None, typer.Argument(metavar="[DIGEST]...", help="Which artifacts.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="All outputs of a run.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="All artifacts of the store.")] = False,
    stack: StackOption = None,
) -> None:
    """Copy artifacts to another stack's store, checking every digest; what is there already is skipped.

    Cache entries for them are copied too, so that the other stack does not compute them again. Copies stay as long as
    runs in the other stack's ledger or these entries name them; entries that no run needs go with its `zenray artifact
    gc --older-than` or `--keep-runs`.
    """
    from dataclasses import replace

    from zenray import artifacts
    from zenray.errors import CorruptedObjectError
    from zenray.masking import masked_url
    from zenray.profile import active_stack, describe
    from zenray.progress import size_text
    from zenray.store import ledger_name
    from zenray.views import Books

    if sum((bool(digests), run is not None, is_all)) != 1:
        raise typer.BadParameter("say which artifacts: their digests, --run RUN, or --all")
    source, target = _books(stack), Books(active_stack(to))
    if source.store.uri == target.store.uri:
        raise typer.BadParameter(
            f"stacks {source.stack.name!r} and {to!r} share the store {source.store.uri}; say where the artifacts are "
            "with --stack"
        )
    note(f"from {describe(source.stack)} to {describe(target.stack)}")
    target.store.create_named(ledger_name(target.ledger.ledger_id()), masked_url(target.stack.metadata_store).encode())
    records, problems, size_bytes, recorded, recorded_at = [], [], 0, 0, time.monotonic()
    try:
        for record in _chosen(source, digests, run):
            try:
                size_bytes += artifacts.copy(record.manifest, source.store_at(record.store), target.store)
            except CorruptedObjectError as exc:
                problems.append(str(exc))  # one that is damaged must not keep the others back
            else:
                records.append(replace(record, store=target.store.uri, created_at=time.time()))
            if time.monotonic() > recorded_at + _RECORD_EVERY_S:
                _record_copies(source, target, records, recorded)
                recorded, recorded_at = len(records), time.monotonic()
    finally:
        entries = _record_copies(source, target, records, recorded)
    for problem in problems:
        note(problem)
    typer.echo(
        f"{len(records):,} artifacts are in {target.store.uri}: {size_text(size_bytes)} copied, "
        f"{entries:,} cache entries" + (f"; {len(problems):,} could not be copied" if problems else "")
    )
    if problems:
        raise typer.Exit(1)


def _record_copies(source: "Books", target: "Books", records: "list[ArtifactRecord]", begin: int) -> int:
    """Record the copies from number ``begin`` on, and the cache entries of them all; returns how many entries.

    Not only at the end: what is in a store for long and not recorded is garbage, and a copy may take hours, or fail.
    """
    from dataclasses import replace

    from zenray import artifacts

    artifacts.pack([r.manifest for r in records[begin:]], target.store, run_id="copies")
    known, found = {r.digest for r in records}, source.ledger.cache_entries(source.store.uri)
    entries = [replace(e, store=target.store.uri) for e in found if known.issuperset(d for _, d in e.outputs)]
    target.ledger.add_copies(records[begin:], entries)
    return len(entries)


def _chosen(books: "Books", digests: list[str] | None, run: str | None) -> "list[ArtifactRecord]":
    if digests:
        return [books.artifact(d) for d in digests]
    if run is None:
        return list(books.ledger.list_artifacts(store=books.store.uri, limit=1_000_000_000))
    from zenray.views import find_run

    outputs = books.ledger.outputs(find_run(run, books).run_id)
    return list(books.artifacts([o.digest for o in outputs]).values())


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Really remove.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed: the default.")] = False,
    keep_runs: Annotated[
        int | None, typer.Option("--keep-runs", min=0, help="Delete each pipeline's finished runs beyond its newest N.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="7d", help="Delete finished runs older than this.")
    ] = None,
    grace: Annotated[str, typer.Option("--grace", metavar="1h", help="Never touch what is younger than this.")] = "1h",
    stack: StackOption = None,
) -> None:
    """Remove what no run and no cache entry needs; says only what would go, unless --yes is given.

    With --keep-runs or --older-than, cache entries go too, also copied ones, whose outputs no remaining run made or
    took.
    """
    from zenray import garbage
    from zenray.profile import describe
    from zenray.progress import size_text
    from zenray.recovery import mark_lost_runs

    if yes and dry_run:
        raise typer.BadParameter("--yes and --dry-run exclude each other")
    books = _books(stack)
    note(describe(books.stack))
    mark_lost_runs(books.ledger)
    report = garbage.collect(
        books,
        keep_runs=keep_runs,
        older_than_s=None if older_than is None else _duration_s(older_than),
        grace_s=_duration_s(grace),
        is_dry=not yes,
    )
    for line in garbage.describe(report, size_text(report.size_bytes)):
        typer.echo(line)
    if not yes:
        typer.echo("nothing was removed: this was a dry run, --yes removes")


def _duration_s(text: str) -> float:
    from zenray.units import duration_s

    found = duration_s(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration such as 90s, 15min, 12h, 7d")
    return found


def _books(stack: str | None) -> "Books":
    from zenray.profile import active_stack
    from zenray.views import Books

    return Books(active_stack(stack))
