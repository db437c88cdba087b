"""``zenray submit``: run a pipeline of a file.

Runs in: driver.
"""

import signal
from typing import Annotated

import typer


def submit(
    target: Annotated[str, typer.Argument(metavar="FILE[:PIPELINE]", help="A Python file, and which pipeline of it.")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A parameter of the pipeline.")
    ] = None,
    stack: Annotated[str | None, typer.Option("--stack", help="The stack to run on; default: the active one.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step, whatever is in the cache.")] = False,
) -> None:
    """Run a pipeline and wait for its end."""
    from zenray.errors import StepFailed
    from zenray.profile import active_stack
    from zenray.submit import load_pipeline, parse_parameters, run_pipeline

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped by a supervisor, a run is closed as by Ctrl-C
    chosen = active_stack(stack)
    pipeline = load_pipeline(target)
    values = parse_parameters(pipeline, parameter or [])
    try:
        run_pipeline(pipeline, values, stack=chosen, use_cache=not no_cache)
    except StepFailed as exc:
        # The step's traceback is on this terminal already, and so is where to look closer.
        raise StepFailed(str(exc).rpartition("\nsee ")[0] or str(exc)) from exc
