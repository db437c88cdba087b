"""``zenray integration``: optional parts, and the packages they need.

Runs in: driver.
"""

import shlex
import subprocess
from collections.abc import Sequence
from typing import Annotated

import typer

from zenray.cli.output import JsonOption, confirm, new_app, print_json, table

app = new_app("Integrations: optional parts of ZenRay and the packages they need.")
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Integrations, as `zenray integration list` shows.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the integrations: what each is for, whether it is installed, and with which versions."""
    from dataclasses import asdict

    from zenray import integrations

    found = [integrations.find(name) for name in integrations.PURPOSES]
    if as_json:
        print_json([asdict(i) for i in found])
        return
    rows = [
        (i.name, "yes" if i.is_installed else "no", ", ".join(_package_text(p) for p in i.packages), i.purpose)
        for i in found
    ]
    table(("integration", "installed", "packages", "what for"), rows)


def _package_text(package: object) -> str:
    from zenray.integrations import Package

    assert isinstance(package, Package)
    if package.is_met:
        return f"{_name(package.requirement)} {package.version}"
    return f"{package.requirement} (found {package.version})" if package.version else f"{package.requirement} (missing)"


def _name(requirement: str) -> str:
    return requirement.partition(">")[0].partition("=")[0].partition("[")[0]


@app.command()
def requirements(names: Names) -> None:
    """Print the requirements of integrations, one a line, as pip takes them."""
    from zenray import integrations

    for line in integrations.requirements(names):
        print(line)


@app.command()
def install(names: Names, is_sure: YesOption = False) -> None:
    """Install the packages that integrations need, with pip, or with uv where that made the environment."""
    from zenray import integrations

    lacking = integrations.missing(names)
    if not lacking:
        typer.echo(f"installed already: {', '.join(dict.fromkeys(names))}")
        return
    _run(integrations.install_command(lacking), is_sure=is_sure)


@app.command()
def uninstall(names: Names, is_sure: YesOption = False) -> None:
    """Remove the packages of integrations, except those that something else in this environment needs."""
    from zenray import integrations

    going, kept = integrations.removable(names)
    for name, user in sorted(kept.items()):
        typer.echo(f"{name} stays: {user} needs it")
    if not going:
        typer.echo("there is nothing to remove")
        return
    _run(integrations.uninstall_command(going), is_sure=is_sure)


def _run(command: Sequence[str], *, is_sure: bool) -> None:
    """Show a command, ask, run it, and end with 1 where it failed."""
    typer.echo(shlex.join(command))
    if not is_sure:
        confirm("Run this?")
    done = subprocess.run(command, check=False)
    if done.returncode:
        typer.echo(f"error: the command ended with exit code {done.returncode}", err=True)
        raise typer.Exit(1)
