"""``zenray submit``: run a pipeline of a file.

Runs in: driver.
"""

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from zenray.cli.output import note

if TYPE_CHECKING:
    from zenray.stack import StackFile


def submit(
    target: Annotated[str, typer.Argument(metavar="FILE[:PIPELINE]", help="A Python file, and which pipeline of it.")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A parameter of the pipeline.")
    ] = None,
    stack: Annotated[str | None, typer.Option("--stack", help="The stack to run on; default: the active one.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step, whatever is in the cache.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for a run on a cluster elsewhere.")] = False,
    order: Annotated[str | None, typer.Option(hidden=True, help="What the job of a cluster is told.")] = None,
) -> None:
    """Run a pipeline and wait for its end."""
    from zenray.errors import StepFailed
    from zenray.head import is_elsewhere
    from zenray.jobs import Order
    from zenray.profile import file_of, find, load
    from zenray.settings import active_stack_name
    from zenray.submit import load_pipeline, parse_parameters, run_pipeline

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped by a supervisor, a run is closed as by Ctrl-C
    entry = find(stack or active_stack_name())
    if entry.path is not None and is_elsewhere(file_of(entry).orchestrator()[0]):
        _submit_elsewhere(file_of(entry), target, parameter or [], use_cache=not no_cache, is_detached=detach)
        return
    if detach:
        raise typer.BadParameter(f"--detach is for a stack whose orchestrator is a URL, and {entry.name!r} has none")
    chosen = load(entry)
    pipeline = load_pipeline(target)
    told = Order.read(order) if order else None
    if told and told.parameters:
        values = pipeline.bind((), dict(told.parameters))
    else:
        values = parse_parameters(pipeline, told.texts if told else parameter or [])
    try:
        run_pipeline(pipeline, values, stack=chosen, use_cache=not no_cache, order=told)
    except StepFailed as exc:
        # The step's traceback is on this terminal already, and so is where to look closer.
        raise StepFailed(str(exc).rpartition("\nsee ")[0] or str(exc)) from exc


def _submit_elsewhere(file: "StackFile", target: str, texts: list[str], *, use_cache: bool, is_detached: bool) -> None:
    """Run a pipeline on a cluster; it is not imported here, where what it needs may not be installed."""
    from zenray.jobs import Call
    from zenray.submit import locate, submit_elsewhere

    path, name = locate(target)
    job = submit_elsewhere(file, Call(path, name, use_cache), texts=texts)
    if not is_detached:
        code = job.follow()
        if code:
            raise typer.Exit(code)
        return
    typer.echo(job.run_id)
    note(f"run {job.run_id} is submitted to {job.head.url}")
    note(f"look at it: zenray run show {job.run_id} --stack {job.stack}")
    token = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... " if job.head.has_token else ""
    note(f"follow it:  {token}ray job logs --follow {job.run_id} --address {job.head.url}")
    note(f"stop it:    zenray run stop {job.run_id} --stack {job.stack}")
