"""The command line: ``zenray``; commands live in one file per noun, and import what they need when they run.

Runs in: driver.
"""

import os
import sys
from typing import Annotated

import typer

import zenray
from zenray.cli import (
    artifacts,
    clusters,
    doctor,
    inits,
    integrations,
    materializers,
    profiles,
    runs,
    stacks,
    submits,
)
from zenray.cli.failures import CANCELLED, report
from zenray.cli.output import new_app

app = new_app("Machine-learning pipelines as plain Python, executed by Ray.")
app.command("init")(inits.init)
app.command("submit")(submits.submit)
app.add_typer(runs.app, name="run")
app.add_typer(artifacts.app, name="artifact")
app.add_typer(stacks.app, name="stack")
app.add_typer(profiles.app, name="profile")
app.add_typer(clusters.app, name="cluster")
app.add_typer(materializers.app, name="materializer")
app.add_typer(integrations.app, name="integration")
app.command("doctor")(doctor.doctor)


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"zenray {zenray.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show ZenRay's own traceback of an error.")] = False,
) -> None:
    pass


def main() -> int:
    """Run the command line; returns 0 for success, 1 for a failed run or store, 2 for wrong usage, 130 for Ctrl-C."""
    arguments = sys.argv[1:]
    is_traced = "--traceback" in arguments or os.environ.get("ZENRAY_TRACEBACK", "") not in ("", "0")
    try:
        app([a for a in arguments if a != "--traceback"], prog_name="zenray")
    except SystemExit as exc:
        if exc.code == CANCELLED:  # typer's way with a Ctrl-C before the run has begun
            return _flushed(report(KeyboardInterrupt(), is_traced=is_traced))
        return _flushed(exc.code if isinstance(exc.code, int) else int(exc.code is not None))
    except BaseException as exc:  # noqa: BLE001 - this is where every error ends
        return _flushed(report(exc, is_traced=is_traced))
    return _flushed(0)


def _flushed(code: int) -> int:
    """Flush stdout here: a pipe that was closed by its reader (``| head``) is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
