"""``zenray stack``: where runs go and where their data lies.

Runs in: driver.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from zenray.cli.output import JsonOption, fields, new_app, print_json, table

if TYPE_CHECKING:
    from zenray.stack import Stack

app = new_app("Stacks: orchestrator, artifact store and metadata store under one name.")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the built-in stacks and those of the repository; the active one is marked."""
    from zenray.errors import ConfigError, NotFoundError
    from zenray.stack import active_stack

    try:
        active = active_stack().name
    except (ConfigError, NotFoundError) as exc:
        active = ""
        typer.echo(f"warning: {exc}", err=True)
    rows: list[tuple[str, str, str, str, str]] = []
    for name in _names():
        mark = "*" if name == active else ""
        try:
            stack = active_stack(name)
            rows.append((mark, name, stack.orchestrator, stack.artifact_store, _shown_url(stack)))
        except ConfigError as exc:
            rows.append((mark, name, "broken", str(exc), ""))
    if as_json:
        keys = ("orchestrator", "artifact_store", "metadata_store")
        print_json([{"name": r[1], "is_active": bool(r[0]), **dict(zip(keys, r[2:], strict=True))} for r in rows])
        return
    table(("", "stack", "orchestrator", "artifact store", "metadata store"), rows)


@app.command()
def describe(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the active one.")] = None,
) -> None:
    """Show a stack; passwords and options are left out."""
    from zenray.stack import BUILT_IN, active_stack

    stack = active_stack(name)
    fields(
        {
            "stack": stack.name + (" (built in)" if stack.name in BUILT_IN else ""),
            "orchestrator": stack.orchestrator,
            "artifact store": stack.artifact_store,
            "options": ", ".join(sorted(stack.artifact_store_options)),
            "metadata store": _shown_url(stack),
        }
    )


def _names() -> list[str]:
    from pathlib import Path

    from zenray.settings import find_repository
    from zenray.stack import BUILT_IN

    folder = (find_repository() or Path.cwd()) / "stacks"
    return [*BUILT_IN, *sorted(p.stem for p in folder.glob("*.yaml") if p.stem not in BUILT_IN)]


def _shown_url(stack: "Stack") -> str:
    """Return the metadata store's URL without its password."""
    head, at, tail = stack.metadata_store.rpartition("@")
    if not at or "://" not in head:
        return stack.metadata_store
    scheme, _, login = head.partition("://")
    return f"{scheme}://{login.partition(':')[0]}@{tail}"
