"""``zenray run``: what ran, how it went, what it printed, and why.

Runs in: driver.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zenray.cli.details import show_step
from zenray.cli.output import JsonOption, StackOption, duration_text, fields, new_app, print_json, table, time_text

if TYPE_CHECKING:
    from zenray.jobs import Job
    from zenray.metadata.records import AttemptRecord, RunRecord, StepOutput, StepRunRecord
    from zenray.views import Books, Run

MANY_STEPS = 1000  # the outputs of more are not listed
app = new_app("Runs: list, show, logs, stop, explain.")
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the beginning of it, or 'latest'.")]
StepArgument = Annotated[str | None, typer.Argument(metavar="[STEP]", help="A step run's name.")]


@app.command("list")
def list_(
    pipeline: Annotated[str | None, typer.Option("--pipeline", help="Only runs of this pipeline.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many runs, the newest first.")] = 20,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    ledger = _books(stack).ledger
    found = ledger.list_runs(pipeline, limit=limit)
    if pipeline is not None and not found:
        _check_pipeline(pipeline, [p.name for p in ledger.pipelines()])
    counts = ledger.step_counts([r.run_id for r in found])
    if as_json:
        print_json([asdict(r) | {"steps": counts[r.run_id]} for r in found])
        return
    rows = [
        (
            r.run_id,
            r.pipeline,
            r.status,
            time_text(r.started_at),
            duration_text(r.started_at, r.ended_at),
            r.stack,
            ", ".join(f"{n} {s}" for s, n in counts[r.run_id].items()),
        )
        for r in found
    ]
    headers = ("run", "pipeline", "status", "started", "took", "stack", "steps")
    empty = "there are no runs yet; start one with `zenray submit FILE`"
    table(headers, rows, empty=empty, optional=("stack", "took", "steps", "started"))


@app.command()
def show(run: RunArgument, step: StepArgument = None, stack: StackOption = None, as_json: JsonOption = False) -> None:
    """Show a run, what it returned and its steps; or one of its steps with what it took and gave."""
    books = _books(stack)
    record = _find(run, books).record
    if step is not None:
        show_step(books, record.run_id, step, as_json=as_json)
        return
    steps = books.ledger.step_runs(record.run_id)
    attempts = Counter(a.name for a in books.ledger.attempts(record.run_id))
    if as_json:
        print_json(asdict(record) | {"steps": [asdict(s) | {"attempts": attempts[s.name]} for s in steps]})
        return
    outputs = books.ledger.outputs(record.run_id)
    _show_run(record)
    _show_returned(record, books, outputs)
    print()
    gave = {s.name: [o for o in outputs if o.name == s.name] for s in steps} if len(steps) <= MANY_STEPS else {}
    rows = [
        (
            s.name,
            s.status,
            duration_text(s.started_at, s.ended_at),
            attempts[s.name] or "",
            ", ".join(f"{o.output} {o.digest[:12]}" for o in gave.get(s.name, ())),
            _remark(s, record.run_id),
        )
        for s in steps
    ]
    table(
        ("step", "status", "took", "attempts", "outputs", "remark"),
        rows,
        empty="no step was called",
        optional=("attempts", "outputs", "took"),
    )


def _show_returned(record: "RunRecord", books: "Books", outputs: "Sequence[StepOutput]") -> None:
    """Print what the pipeline returned: the digest of an artifact, and small values as they are."""
    from zenray.returned import brief, named

    digests = {(o.name, o.output): o.digest for o in outputs}
    found = named(record.outputs)
    stored = books.artifacts([d for r in found.values() if (d := digests.get((r.step_run, r.output)))])
    rows = []
    for returned in found.values():
        digest = digests.get((returned.step_run, returned.output), "")
        if digest in stored:
            manifest = stored[digest].manifest
            rows.append((returned.name, digest[:12], manifest.type_name, brief(manifest)))
        else:
            rows.append((returned.name, digest[:12], "", "" if returned.step_run else repr(returned.value)))
    if rows:
        print()
        table(("returned", "artifact", "type", "value"), rows)


def _show_run(record: "RunRecord") -> None:
    fields(
        {
            "run": record.run_id,
            "pipeline": record.pipeline,
            "status": record.status,
            "started": time_text(record.started_at),
            "took": duration_text(record.started_at, record.ended_at),
            "parameters": ", ".join(f"{k}={v!r}" for k, v in record.parameters.items()),
            "stack": record.stack,
            "by": f"{record.user}@{record.host}",
            "versions": ", ".join(f"{k} {v}" for k, v in record.versions.items()),
            "file": record.source_file,
            "commit": record.git_revision,
            "error": _error_text(record.error),
        }
    )


def _remark(step: "StepRunRecord", run_id: str) -> str:
    if step.cache_source:
        source_run, source_step = step.cache_source
        return f"same work as {source_step}" if source_run == run_id else f"from run {source_run}"
    if step.cause:
        return f"{step.cause} failed"
    return _error_text(step.error) or step.reason


def _error_text(error: Any) -> str:
    if not error:
        return ""
    from zenray.progress import shortened

    return shortened(f"{error.get('type', '')}: {error.get('message', '')}", 200)


@app.command()
def logs(run: RunArgument, step: StepArgument = None, stack: StackOption = None) -> None:
    """Print what a run's steps, or one of them, have printed."""
    books = _books(stack)
    record = _find(run, books).record
    steps = books.ledger.step_runs(record.run_id)
    if step is not None:
        steps = (books.ledger.step_run(record.run_id, step),)
    names = [s.name for s in steps]
    attempts: dict[str, list[AttemptRecord]] = {name: [] for name in names}
    for attempt in books.ledger.attempts(record.run_id, step):
        attempts[attempt.name].append(attempt)
    is_empty = True
    for found in steps:
        name, is_silent = found.name, True
        for number, data in _logs(books, record.run_id, name, attempts[name]):
            is_empty = is_silent = False
            if len(names) > 1 or number > 1:
                typer.echo(f"== {name}" + (f" (attempt {number})" if number > 1 else ""))
            _print(data.decode(errors="replace"))
        if is_silent and found.cache_source:
            source_run, source = found.cache_source
            for _, data in _logs(books, source_run, source, list(books.ledger.attempts(source_run, source))):
                is_empty = False
                typer.echo(f"== {name} was cached; this was printed by {source} of run {source_run}")
                _print(data.decode(errors="replace"))
        if is_silent and found.error:
            is_empty = False
            typer.echo(f"== {name} printed nothing and failed: {found.error.get('type')}: {found.error.get('message')}")
    if is_empty:
        typer.echo(f"nothing was printed by {'step ' + step if step else 'the steps'} of run {record.run_id}", err=True)


def _logs(books: "Books", run_id: str, name: str, attempts: "list[AttemptRecord]") -> Iterator[tuple[int, bytes]]:
    """Give the logs of a step run's attempts, in order, also of one that goes on: it is recorded when it ends."""
    from zenray.settings import home
    from zenray.store import log_name

    for attempt in attempts:
        data = books.log(attempt.log_uri)
        if data:
            yield attempt.number, data
    number = max((a.number for a in attempts), default=0) + 1
    path = (books.store.local_path("") or home()) / log_name(run_id, name, number)
    if path.is_file():
        yield number, path.read_bytes()


def _print(text: str) -> None:
    typer.echo(text, nl=not text.endswith("\n"))


@app.command()
def stop(
    run: RunArgument,
    timeout: Annotated[
        str, typer.Option("--timeout", help="How long to wait for its end, such as 60 or '5min'.")
    ] = "60",
    stack: StackOption = None,
) -> None:
    """End a run of any process or machine as Ctrl-C would, and wait until it has ended; what was committed stays."""
    import time

    from zenray.errors import ClusterError
    from zenray.recovery import mark_lost_runs
    from zenray.runner import owner_name
    from zenray.units import duration_s

    wait_s = duration_s(timeout)
    if wait_s is None:
        raise typer.BadParameter(f"--timeout {timeout!r} is no duration; write it like 60 or '5min'")
    books = _books(stack)
    job = _unbegun(run, books)
    if job is not None:
        has_ended = job.end(wait_s)
        if _unbegun(run, books) is not None:
            typer.echo(job.standing() if has_ended else f"run {run} has not begun; the cluster ends it when it does")
            return
    run_id = _find(run, books).run_id
    is_asked = books.ledger.ask_to_stop(run_id, owner_name().rpartition(":")[0])
    give_up_at = time.monotonic() + wait_s
    while not (found := books.ledger.find_run(run_id)).status.is_finished:
        if time.monotonic() > give_up_at:
            raise ClusterError(
                f"run {run_id} was asked to stop {wait_s:g} s ago and is {found.status} still: its pipeline may be at "
                f"work between two steps; look again with `zenray run show {run_id}`"
            )
        time.sleep(0.2)
        mark_lost_runs(books.ledger)
    typer.echo(f"run {run_id} {'is' if is_asked else 'had ended before:'} {found.status}")


@app.command()
def explain(run: RunArgument = "latest", step: StepArgument = None, stack: StackOption = None) -> None:
    """Say for each step why it ran, down to the function that was edited, or where its result came from."""
    from zenray.cli.explanation import Explainer

    books = _books(stack)
    record = _find(run, books).record
    explainer = Explainer(books.ledger)
    steps = books.ledger.step_runs(record.run_id)
    if step is not None:
        steps = (books.ledger.step_run(record.run_id, step),)
    for found in steps:
        typer.echo(explainer.explain(found))


def _books(stack: str | None) -> "Books":
    """Open the books of a stack, and mark the runs that nobody works on any more."""
    from zenray.profile import active_stack
    from zenray.recovery import mark_lost_runs
    from zenray.views import Books

    books = Books(active_stack(stack))
    mark_lost_runs(books.ledger)
    return books


def _find(run: str, books: "Books") -> "Run":
    from zenray.errors import NotFoundError
    from zenray.jobs import job_of
    from zenray.views import find_run

    try:
        return find_run(run, books)
    except NotFoundError:
        job = job_of(run, books.stack)
        if job is None:
            raise
    raise NotFoundError(job.standing())


def _unbegun(run: str, books: "Books") -> "Job | None":
    """Return the job of a run that was submitted to a cluster elsewhere, and has recorded nothing."""
    from zenray.errors import NotFoundError
    from zenray.jobs import job_of
    from zenray.views import find_run

    try:
        find_run(run, books)
    except NotFoundError:
        return job_of(run, books.stack)
    return None


def _check_pipeline(name: str, known: list[str]) -> None:
    from zenray.errors import NotFoundError, suggest

    if name not in known:
        raise NotFoundError(f"no pipeline {name!r} has run here; {suggest(name, known)}")
