"""What all commands share: apps, tables, JSON, times and the choice of a stack.

Runs in: driver.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

StackOption = Annotated[str | None, typer.Option("--stack", help="The stack to look at; default: the active one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def new_app(text: str) -> typer.Typer:
    """Return an app without rich: help has to come fast, and errors are shown by ``zenray.cli.failures``."""
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "", optional: Sequence[str] = ()
) -> None:
    """Print rows under headers: a table on a terminal, aligned text elsewhere.

    On a narrow terminal the columns in `optional` go first, in that order, and the name of a row is never cut.
    """
    texts = [["" if v is None else str(v) for v in row] for row in rows]
    if not texts and empty:
        print(empty, file=sys.stderr)
        return
    if sys.stdout.isatty():
        _rich_table(headers, texts, optional)
        return
    widths = [max(len(r[i]) for r in [list(headers), *texts]) for i in range(len(headers))]
    for row in [[h.upper() for h in headers], *texts]:
        print("  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip())


def _rich_table(headers: Sequence[str], texts: Sequence[Sequence[str]], optional: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns
    widths = {h: max(len(h), *(len(row[i]) for row in texts)) for i, h in enumerate(headers)}
    dropped: list[str] = []
    for header in optional:
        if sum(widths.values()) + 3 * len(widths) > width:
            dropped.append(header)
            del widths[header]
    kept = [i for i, header in enumerate(headers) if header in widths]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Where it is narrow the others wrap: what a row is named by has to be whole, to be copied.
    for position in kept:
        made.add_column(headers[position], no_wrap=position == 0, overflow="fold")
    for row in texts:
        made.add_row(*(Text(row[i], style=_STYLES.get(row[i], "")) for i in kept))
    Console(highlight=False, width=width).print(made)
    if dropped:
        note(f"not shown, as the terminal is narrow: {', '.join(dropped)}")


_STYLES = {
    "succeeded": "green",
    "cached": "blue",
    "running": "cyan",
    "failed": "red",
    "skipped": "yellow",
    "cancelled": "yellow",
}


def note(text: str) -> None:
    """Say something beside the output: on stderr, so that what is piped on stays clean."""
    print(text, file=sys.stderr)


def confirm(question: str) -> None:
    """Ask, and end the command for a no; without a terminal nobody can answer, and the error says what to add."""
    from zenray.errors import ConfigError

    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(f"{question} There is no terminal to answer on; add --yes to do it without being asked")
    typer.confirm(question, abort=True)


def fields(values: Mapping[str, Any]) -> None:
    """Print names and values, aligned; what is empty is left out."""
    shown = {k: v for k, v in values.items() if v not in (None, "", {}, [])}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name.ljust(width)}  {value}")


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, default=str))


def time_text(seconds: float | None) -> str:
    """Return a time of this machine's zone, or nothing."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def duration_text(started_at: float | None, ended_at: float | None) -> str:
    """Return how long something took, or nothing."""
    from zenray.units import seconds_text

    return seconds_text(ended_at - started_at) if started_at and ended_at else ""
