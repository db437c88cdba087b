"""``zenray materializer``: which types can be stored, and how.

Runs in: driver.
"""

from zenray.cli.output import JsonOption, new_app, print_json, table

app = new_app("Materializers: how values of a type are stored.")


@app.callback()
def _group() -> None:
    """Keep ``list`` a command of its own: typer folds an app with a single one."""


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the types that can be stored, each with its materializer, where that comes from, and whether it pickles."""
    from dataclasses import asdict

    from zenray.materializer import register_repository, registry

    register_repository()
    found = registry.registrations()
    if as_json:
        print_json([asdict(r) for r in found])
        return
    rows = [(r.type_name, r.materializer, r.origin, "yes" if r.is_pickle else "no") for r in found]
    table(("type", "materializer", "origin", "pickle"), rows)
