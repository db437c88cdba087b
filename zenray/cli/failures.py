"""How errors are shown: one line for ZenRay's own, the user's traceback for the user's, and an exit code for each.

Runs in: driver.
"""

import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from zenray.errors import ConfigError, DefinitionError, NotFoundError, RunCancelled, ZenRayError

ISSUES = "https://github.com/zenray/zenray/issues"
FAILED, USAGE, CANCELLED = 1, 2, 130
_OURS = (
    str(Path(__file__).parent.parent) + os.sep,
    *(f"{os.sep}{package}{os.sep}" for package in ("zenray_materializers", "typer", "importlib")),
    "<frozen ",
)
_STDLIB = sysconfig.get_path("stdlib") + os.sep


def report(error: BaseException, *, is_traced: bool) -> int:
    """Write an error to stderr as its kind deserves, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if is_traced:
        traceback.print_exception(error)
    if isinstance(error, RunCancelled | KeyboardInterrupt):
        _say(f"cancelled: {error}" if str(error) else "cancelled")
        return CANCELLED
    if isinstance(error, ZenRayError):
        if not is_traced:
            _show_users_part(error)
        _say(f"error: {error}")
        return USAGE if isinstance(error, DefinitionError | ConfigError | NotFoundError) else FAILED
    return _report_foreign(error, is_traced=is_traced)


def _report_foreign(error: BaseException, *, is_traced: bool) -> int:
    """Show an exception of the pipeline function from the user's first line on; any other is a defect of ZenRay."""
    start = _first_foreign(error.__traceback__)
    if start is not None:
        if not is_traced:
            _say("".join(traceback.format_exception(type(error), error, start)).rstrip())
        return FAILED
    if isinstance(error, OSError):
        where = "" if error.filename is None else f" ({error.filename})"
        _say(f"error: {error.strerror or error}{where}; check that it is there, and that this user may use it")
        return FAILED
    if not is_traced:
        traceback.print_exception(error)
    _say(f"error: this is a defect of ZenRay; please report it with the lines above at {ISSUES}")
    return FAILED


def _show_users_part(error: ZenRayError) -> None:
    """Show what lies in the user's files: the exception behind an import that failed, or the line that was wrong."""
    cause = error.__cause__
    if isinstance(error, DefinitionError) and cause is not None and not isinstance(cause, ZenRayError):
        start = _first_foreign(cause.__traceback__)
        _say("".join(traceback.format_exception(type(cause), cause, start)).rstrip())
        return
    if not isinstance(error, DefinitionError):
        return
    found = [f for f in traceback.extract_tb(error.__traceback__) if not _is_ours(f.filename)]
    if found:
        last = found[-1]
        _say(f'  File "{last.filename}", line {last.lineno}, in {last.name}\n    {last.line}')


def _first_foreign(tb: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame on that is neither ZenRay's nor of the machinery around it."""
    while tb is not None and _is_ours(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    # A frame of an installed library below ZenRay's, or of Python's own, is not the user's.
    file = "" if tb is None else tb.tb_frame.f_code.co_filename
    return None if "site-packages" in file or file.startswith(_STDLIB) else tb


def _is_ours(file: str) -> bool:
    return file.endswith(f"{os.sep}bin{os.sep}zenray") or any(part in file for part in _OURS)


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return
