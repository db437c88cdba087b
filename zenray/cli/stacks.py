"""``zenray stack``: where runs go and where their data lies.

Runs in: driver.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zenray.cli.output import JsonOption, confirm, fields, new_app, note, print_json, table

if TYPE_CHECKING:
    from zenray.profile import Entry
    from zenray.stack import Stack, StackFile

app = new_app("Stacks: orchestrator, artifact store, metadata store and other components under one name.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A stack's name.")]
OptionalName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A stack; default: the active one.")]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="A profile; default: the repository, else the active profile.")
]
GlobalOption = Annotated[bool, typer.Option("--global", help="For this user, not only for this repository.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a stack of that name.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Url = Annotated[str | None, typer.Option(metavar="URL", help="'' in `update` goes back to the default.")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--option", metavar="COMPONENT.KEY=VALUE", help="As in artifact_store.region=eu-1; no VALUE removes it."
    ),
]


@app.command()
def register(
    name: NameArgument,
    orchestrator: Url = None,
    artifact_store: Url = None,
    metadata_store: Url = None,
    model_deployer: Annotated[str | None, typer.Option(metavar="PORT", help="Where models are served.")] = None,
    experiment_tracker: Annotated[str | None, typer.Option(metavar="FLAVOR", help="mlflow or wandb.")] = None,
    option: Options = None,
    is_active: Annotated[bool, typer.Option("--set", help="Make it the active stack.")] = False,
    profile: ProfileOption = None,
    force: ForceOption = False,
) -> None:
    """Write a new stack's file: in stacks/ of the repository, else in the active profile.

    What is left out is as in the built-in stack `local`. Secrets stay out of the file as ${env:NAME} or ${file:/path}.
    """
    from zenray import checks
    from zenray import profile as stacks

    given = _given(orchestrator, artifact_store, metadata_store, model_deployer, experiment_tracker)
    components = _with_options({k: v for k, v in given.items() if v is not None}, option)
    made = stacks.save(name, components, profile=profile, is_replacing=force, check=checks.validate)
    _say_made("registered", made)
    if is_active:
        _set(name, profile=profile, is_global=False)


@app.command("list")
def list_(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """List the stacks of the repository, of the active profile, and those built in; the active one is marked."""
    from zenray import profile as stacks
    from zenray.settings import active_stack_name

    active = active_stack_name(profile)
    rows = [(e, *_summary(e)) for e in stacks.entries(profile)]
    if active not in {e.name for e, *_ in rows}:
        note(f"warning: the active stack {active!r} is not there; choose one with `zenray stack set NAME`")
    for text in stacks.oddities(profile):
        note(f"warning: {text}")
    if as_json:
        keys = ("orchestrator", "artifact_store", "metadata_store")
        print_json(
            [
                {"name": e.name, "origin": e.origin, "is_active": e.name == active, **dict(zip(keys, r, strict=True))}
                for e, *r in rows
            ]
        )
        return
    headers = ("", "stack", "from", "orchestrator", "artifact store", "metadata store")
    table(headers, [("*" if e.name == active else "", e.name, e.origin, *r) for e, *r in rows])


def _summary(entry: "Entry") -> tuple[str, str, str]:
    """Return the three main components, without secrets; of a broken file what is wrong with it."""
    from zenray.errors import ConfigError
    from zenray.profile import file_of
    from zenray.stack import built_in

    try:
        found = None if entry.path is None else file_of(entry)
        shown = {} if found is None else found.masked()
        default = built_in(entry.name if found is None else "local")
        if found is not None:
            found.as_written()
    except ConfigError as exc:
        return "broken", str(exc), ""
    urls = [shown.get(c, getattr(default, c)) for c in ("orchestrator", "artifact_store", "metadata_store")]
    first, second, third = (str(u.get("url", "")) if isinstance(u, dict) else str(u) for u in urls)
    return first, second, third


@app.command()
def describe(name: OptionalName = None, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Show a stack's components with their options; secrets are masked."""
    from zenray import profile as stacks
    from zenray.settings import active_stack_name
    from zenray.stack import COMPONENTS, built_in

    entry = stacks.find(name or active_stack_name(profile), profile=profile)
    default = built_in(entry.name if entry.path is None else "local")
    shown: dict[str, Any] = {c: getattr(default, c) for c in COMPONENTS}
    if entry.path is not None:
        found = stacks.file_of(entry)
        found.as_written()
        shown |= found.masked()
    is_active = entry.name == active_stack_name(profile)
    if as_json:
        print_json({"name": entry.name, "origin": entry.origin, "file": entry.path, "is_active": is_active, **shown})
        return
    fields(
        {
            "stack": entry.name + (" (active)" if is_active else ""),
            "from": entry.path or entry.origin,
            **{name.replace("_", " "): _described(value) for name, value in shown.items()},
        }
    )


def _described(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    options = [f"{k}={v}" for k, v in value.items() if k != "url"]
    return " ".join([*([str(value["url"])] if "url" in value else []), *options])


@app.command("set")
def set_(name: NameArgument, profile: ProfileOption = None, is_global: GlobalOption = False) -> None:
    """Make a stack the active one, in this repository where there is one."""
    _set(name, profile=profile, is_global=is_global)


def _set(name: str, *, profile: str | None, is_global: bool) -> None:
    from zenray import profile as stacks
    from zenray.errors import ConfigError

    folder = stacks.set_stack(name, profile=profile, is_global=is_global)
    typer.echo(f"the active stack is {name} (remembered in {folder})")
    if os.environ.get("ZENRAY_STACK", name) != name:
        note(f"warning: ZENRAY_STACK={os.environ['ZENRAY_STACK']} is set, and wins over it")
    try:
        stacks.load(stacks.find(name, profile=profile))
    except ConfigError as exc:
        note(f"warning: {exc}")


@app.command()
def get(profile: ProfileOption = None) -> None:
    """Print the name of the active stack."""
    from zenray import profile as stacks
    from zenray.settings import active_stack_name

    typer.echo(stacks.find(active_stack_name(profile), profile=profile).name)


@app.command()
def update(
    name: NameArgument,
    orchestrator: Url = None,
    artifact_store: Url = None,
    metadata_store: Url = None,
    model_deployer: Annotated[str | None, typer.Option(metavar="PORT", help="'' removes it.")] = None,
    experiment_tracker: Annotated[str | None, typer.Option(metavar="FLAVOR", help="'' removes it.")] = None,
    option: Options = None,
    profile: ProfileOption = None,
) -> None:
    """Change components of a stack; the rest of its file, comments too, stays as it is."""
    from zenray import checks
    from zenray import profile as stacks

    given = _given(orchestrator, artifact_store, metadata_store, model_deployer, experiment_tracker)
    given = {component: value for component, value in given.items() if value is not None}
    if not given and not option:
        raise typer.BadParameter("nothing to change: give a component, such as --artifact-store, or an option")

    def change(before: Mapping[str, Any]) -> dict[str, Any]:
        changes = {c: None if v == "" else _with_old_options(v, before.get(c)) for c, v in given.items()}
        return _with_options(changes, option, before)

    made = stacks.update(stacks.find(name, profile=profile), change, check=checks.validate)
    _say_made("updated", made)


def _with_old_options(value: Any, old: Any) -> Any:
    """Return a component's new URL together with the options that it had beside the old one."""
    options = {k: v for k, v in old.items() if k != "url"} if isinstance(old, dict) and "url" in old else {}
    return {"url": value, **options} if options else value


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The stack to copy.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The new stack's name.")],
    source_profile: Annotated[str | None, typer.Option("--from", help="The profile that SOURCE is in.")] = None,
    target_profile: Annotated[str | None, typer.Option("--to", help="The profile to copy it to.")] = None,
) -> None:
    """Copy a stack under another name, or from one profile to another."""
    from zenray import checks
    from zenray import profile as stacks

    entry = stacks.find(source, profile=source_profile)
    _say_made("copied", stacks.copy(entry, target, profile=target_profile, check=checks.validate))


@app.command()
def rename(
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    profile: ProfileOption = None,
) -> None:
    """Give a stack another name."""
    from zenray import profile as stacks

    _say_made("renamed", stacks.rename(stacks.find(name, profile=profile), new_name))


@app.command()
def delete(name: NameArgument, profile: ProfileOption = None, yes: YesOption = False) -> None:
    """Delete a stack's file; what was stored and recorded under it stays."""
    from zenray import profile as stacks

    entry = stacks.find(name, profile=profile)
    if not yes and entry.path is not None:
        confirm(f"Delete {entry.path}?")
    stacks.delete(entry)
    typer.echo(f"stack {name} ({entry.origin}) is deleted; its artifacts and records are where they were")


@app.command()
def export(
    name: OptionalName = None,
    path: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: standard output.")] = None,
    profile: ProfileOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a stack as YAML for others; secrets that are written out in it become ${env:NAME}."""
    from zenray import profile as stacks
    from zenray.settings import active_stack_name, write_private
    from zenray.stack import exported

    entry = stacks.find(name or active_stack_name(profile), profile=profile)
    text, variables = exported(entry.path, entry.name)
    if path is None:
        typer.echo(text, nl=False)
    elif path.exists() and not force:
        raise typer.BadParameter(f"{path} exists; --force overwrites it")
    else:
        write_private(path, text, mode=0o644)
        typer.echo(f"exported to {path}")
    if variables:
        note(f"secrets were left out; whoever imports it sets {', '.join(variables)}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A stack's YAML file.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the file's name.")] = None,
    profile: ProfileOption = None,
    force: ForceOption = False,
) -> None:
    """Check a stack's file and copy it in."""
    from zenray import checks
    from zenray import profile as stacks

    made = stacks.import_file(file, name or file.stem, profile=profile, is_replacing=force, check=checks.validate)
    _say_made("imported", made)


@app.command()
def check(name: OptionalName = None, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Open every component for real, one line each; exit code 1 where one does not work."""
    from zenray import checks
    from zenray import profile as stacks
    from zenray.settings import active_stack_name

    stack = stacks.load(stacks.find(name or active_stack_name(profile), profile=profile))
    say_stack(stack)
    findings = []
    for found in checks.probe(stack):
        findings.append(found)
        if not as_json:
            typer.echo(f"{'ok  ' if found.is_ok else 'FAIL'}  {found.component.replace('_', ' ')}: {found.text}")
    if as_json:
        print_json([{"component": f.component, "is_ok": f.is_ok, "text": f.text} for f in findings])
    if not all(f.is_ok for f in findings):
        raise typer.Exit(1)


def say_stack(stack: "Stack") -> None:
    """Say which profile and stack a command uses, beside its output."""
    from zenray.profile import describe as described

    note(described(stack))


def _given(
    orchestrator: str | None,
    artifact_store: str | None,
    metadata_store: str | None,
    deployer: str | None,
    tracker: str | None,
) -> dict[str, Any]:
    return {
        "orchestrator": orchestrator,
        "artifact_store": artifact_store,
        "metadata_store": metadata_store,
        "model_deployer": {"port": _value(deployer)} if deployer else deployer,
        "experiment_tracker": {"flavor": tracker} if tracker else tracker,
    }


def _with_options(
    components: dict[str, Any], options: list[str] | None, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Add ``COMPONENT.KEY=VALUE`` texts to components; a component that is not given is taken from ``before``."""
    from zenray.stack import COMPONENTS

    for text in options or []:
        place, equals, raw = text.partition("=")
        component, dot, key = place.partition(".")
        if not (equals and dot and key) or component not in COMPONENTS:
            raise typer.BadParameter(
                f"-o {place!r} must be COMPONENT.KEY=VALUE, with a component of {', '.join(COMPONENTS)}"
            )
        old = components.get(component, (before or {}).get(component))
        if old is None:
            raise typer.BadParameter(f"-o {place!r}: give the component itself too, as --{component.replace('_', '-')}")
        mapping = dict(old) if isinstance(old, dict) else {"url": old}
        if raw:
            mapping[key] = _value(raw)
        else:
            mapping.pop(key, None)
        components[component] = mapping["url"] if mapping.keys() == {"url"} else mapping
    return components


def _value(raw: str) -> Any:
    """Read an option as JSON where it is a number or a truth value, else as a list or mapping; else it is text."""
    import json

    from zenray.stack import collection

    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return collection(raw)
    return raw if isinstance(found, str) or found is None else found


def _say_made(verb: str, made: "StackFile") -> None:
    typer.echo(f"stack {made.name} {verb}: {made.path}")
    secrets = made.literal_secrets()
    if secrets:
        note(
            f"warning: {', '.join(secrets)} is written out in the file; keep it out of git, or name it there as "
            "${env:NAME} or ${file:/path}"
        )
