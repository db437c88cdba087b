"""``zenray profile``: groupings of stacks, each with an active one of its own.

Runs in: driver.
"""

import os
from typing import Annotated

import typer

from zenray.cli.output import JsonOption, confirm, fields, new_app, note, print_json, table
from zenray.cli.stacks import GlobalOption, YesOption

app = new_app("Profiles: groupings of stacks, such as work and personal.")
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A profile's name.")]


@app.command()
def create(
    name: NameArgument,
    is_active: Annotated[bool, typer.Option("--set", help="Make it the active profile.")] = False,
) -> None:
    """Make a new profile, without stacks."""
    from zenray import profile as profiles

    folder = profiles.create_profile(name)
    typer.echo(f"profile {name} created: {folder}")
    if is_active:
        _set(name, is_global=False)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the profiles; the active one is marked."""
    from zenray import profile as profiles
    from zenray.settings import active_profile, active_stack_name

    active = active_profile()
    rows = [
        (n, active_stack_name(n), sum(e.path is not None for e in profiles.entries(n))) for n in profiles.profiles()
    ]
    if as_json:
        print_json([{"name": n, "is_active": n == active, "active_stack": s, "stacks": c} for n, s, c in rows])
        return
    table(("", "profile", "active stack", "stacks"), [("*" if r[0] == active else "", *r) for r in rows])


@app.command("set")
def set_(name: NameArgument, is_global: GlobalOption = False) -> None:
    """Make a profile the active one, in this repository where there is one."""
    _set(name, is_global=is_global)


def _set(name: str, *, is_global: bool) -> None:
    from zenray import profile as profiles
    from zenray.settings import active_stack_name

    folder = profiles.set_profile(name, is_global=is_global)
    typer.echo(f"the active profile is {name}, its stack {active_stack_name(name)} (remembered in {folder})")
    if os.environ.get("ZENRAY_PROFILE", name) != name:
        note(f"warning: ZENRAY_PROFILE={os.environ['ZENRAY_PROFILE']} is set, and wins over it")


@app.command()
def describe(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the active one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a profile and the stacks in it."""
    from zenray import profile as profiles
    from zenray.settings import active_profile, active_stack_name

    name = profiles.check_profile(name or active_profile())
    stacks = [e.name for e in profiles.entries(name) if e.path is not None]
    found = {"profile": name, "is_active": name == active_profile(), "active_stack": active_stack_name(name)}
    if as_json:
        print_json(found | {"stacks": stacks})
        return
    fields(
        {
            "profile": name + (" (active)" if found["is_active"] else ""),
            "active stack": found["active_stack"],
            "stacks": ", ".join(stacks) or "none of its own",
        }
    )


@app.command()
def rename(
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
) -> None:
    """Give a profile another name; where it is the active one, for you or in this repository, it stays that."""
    from zenray import profile as profiles

    typer.echo(f"profile {name} renamed: {profiles.rename_profile(name, new_name)}")
    if os.environ.get("ZENRAY_PROFILE") == name:
        note(f"warning: ZENRAY_PROFILE={name} is set, and there is no such profile any more")


@app.command()
def delete(name: NameArgument, yes: YesOption = False) -> None:
    """Delete a profile with its stacks; what was stored and recorded under them stays."""
    from zenray import profile as profiles

    stacks = [e.name for e in profiles.entries(name) if e.path is not None]
    if not yes:
        confirm(f"Delete profile {name} with its stacks ({', '.join(stacks) or 'none'})?")
    profiles.delete_profile(name)
    typer.echo(f"profile {name} is deleted")
