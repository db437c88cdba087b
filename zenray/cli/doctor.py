"""``zenray doctor``: what works here and what does not.

Runs in: driver.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from zenray.stack import Stack

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
Line = tuple[str, str, str, str]  # ok | warn | fail, what, how it is, what to do
_PACKAGES = ("zenray", "ray", "pyarrow", "sqlalchemy", "fsspec", "typer", "rich", "pydantic", "blake3")
_GB = 1e9


def doctor() -> None:
    """Check this machine and the active stack, one line each; exit code 1 where something fails."""
    has_failed = False
    for check in (_python, _packages, _home, _materializers, _stack, _shared_memory):
        for level, what, found, advice in _checked(check):
            has_failed |= level == "fail"
            typer.echo(f"{_MARKS[level]}  {what}: {found}" + (f" -> {advice}" if advice and level != "ok" else ""))
    if has_failed:
        raise typer.Exit(1)


def _checked(check: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """Turn an error of a check into a line: the doctor goes on."""
    from zenray.errors import ZenRayError

    try:
        yield from check()
    except ZenRayError as exc:
        yield "fail", check.__name__.strip("_"), str(exc), ""
    except Exception as exc:  # noqa: BLE001 - whatever is wrong here is what the doctor was asked for
        yield "fail", check.__name__.strip("_"), f"{type(exc).__name__}: {exc}", ""


def _python() -> Iterator[Line]:
    version = ".".join(map(str, sys.version_info[:3]))
    level = "ok" if sys.version_info >= (3, 11) else "fail"
    yield level, "python", f"{version} ({sys.executable})", "ZenRay needs Python 3.11 or newer"


def _packages() -> Iterator[Line]:
    from importlib.metadata import PackageNotFoundError, version

    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield "ok", "packages", ", ".join(found), ""
    if missing:
        yield (
            "fail",
            "packages",
            f"not installed: {', '.join(missing)}",
            "install ZenRay again from where you have it, in a checkout with `pip install -e .`",
        )


def _home() -> Iterator[Line]:
    from zenray.settings import find_repository, home

    repository = find_repository()
    yield (
        ("ok", "repository", str(repository), "")
        if repository
        else ("warn", "repository", "none here", "`zenray init`")
    )
    folder = home()
    yield "ok", "home", str(folder) + (" (from ZENRAY_HOME)" if os.environ.get("ZENRAY_HOME") else ""), ""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    usage = shutil.disk_usage(existing)
    share = usage.free / usage.total
    # Ray refuses to write on a disk that is 95 % full.
    level = "fail" if usage.free < 0.2 * _GB else "warn" if share < 0.05 or usage.free < 2 * _GB else "ok"
    yield level, "disk", f"{usage.free / _GB:.1f} GB free ({share:.0%})", "free some space: `zenray artifact gc`"


def _materializers() -> Iterator[Line]:
    from zenray.materializer import register_repository, registry
    from zenray.settings import find_repository

    register_repository()
    repository = find_repository()
    folder = str(repository / "materializers") if repository else ""
    found = [r.type_name for r in registry.registrations() if folder and r.origin.startswith(folder)]
    yield "ok", "materializers", f"{len(found)} of this repository" + (f": {', '.join(found)}" if found else ""), ""


def _stack() -> Iterator[Line]:
    from zenray import checks
    from zenray.profile import active_stack, describe, oddities

    stack = active_stack()
    yield "ok", "stack", describe(stack), ""
    for text in oddities():
        yield "warn", "stacks", text, ""
    for found in checks.probe(stack):
        yield "ok" if found.is_ok else "fail", found.component.replace("_", " "), found.text, ""
        if found.component == "experiment_tracker" and found.is_ok:
            yield from _ended_runs(stack)


def _ended_runs(stack: "Stack") -> Iterator[Line]:
    """End the tracker's runs that are over."""
    from zenray.recovery import how_ended
    from zenray.trackers import Sweeper, open_tracker
    from zenray.views import Books

    tracker = open_tracker(stack.experiment_tracker or {})
    if isinstance(tracker, Sweeper) and (count := tracker.sweep(partial(how_ended, Books(stack).ledger))):
        yield "ok", "experiment tracker", f"{count} runs that went on there and are over were ended there", ""


def _shared_memory() -> Iterator[Line]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield "ok", "shared memory", "no /dev/shm on this system", ""
        return
    usage = shutil.disk_usage(folder)
    level = "ok" if usage.free >= 1 * _GB else "warn"
    advice = "Ray's object store falls back to the disk; in Docker use --shm-size"
    yield level, "shared memory", f"{usage.free / _GB:.1f} GB free of {usage.total / _GB:.1f} GB", advice
