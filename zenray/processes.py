"""Processes of this machine, told apart by more than their number.

Runs in: driver.

A process id alone is not an identity: it is given again. Everything here pairs it with a *mark*, the start time as the
operating system states it.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

Process = tuple[int, str]
_PROC = Path("/proc")


def mark(pid: int) -> str | None:
    """Return the mark of a living process; None if there is none, or it has ended and waits for its parent."""
    if _has_proc():
        try:
            fields = (
                (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            )
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    state, _, started = _ps("state=,lstart=", pid).strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def boot_mark() -> str:
    """Return what changes when the machine starts again, where the system tells it."""
    with contextlib.suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return ""


def session(leader: int) -> list[Process]:
    """List the living processes of a session, its leader included."""
    members = []
    for pid in _all_pids():
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if os.getsid(pid) == leader:
                found = mark(pid)
                if found is not None:
                    members.append((pid, found))
    return members


def command(pid: int) -> str:
    """Return the command line, or nothing."""
    if _has_proc():
        with contextlib.suppress(OSError):
            return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""
    return _ps("command=", pid).strip()


def belongs_to(pid: int, directory: str) -> bool:
    """Tell whether a process works in the directory or was told its name."""
    # Ray's agents and workers write a title over their command line and environment; the working directory stays.
    with contextlib.suppress(OSError):
        if str((_PROC / str(pid) / "cwd").readlink()).removesuffix(" (deleted)") == directory:
            return True
    return directory in command(pid)


def memory_bytes(pid: int) -> int:
    """Return the memory of one process, with pages it shares counted in proportion where the system tells it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
    text = _ps("rss=", pid).strip()
    return int(text) * 1024 if text.isdigit() else 0


def signal_exactly(pid: int, expected_mark: str, *, is_forced: bool) -> None:
    """Ask a process to end, or end it, unless its number now belongs to another one."""
    if mark(pid) == expected_mark:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if is_forced else signal.SIGTERM)


def kill(processes: Iterable[Process], *, timeout_s: float = 2.0) -> None:
    """End these processes at once and wait until they are gone; those that have ended are passed over."""
    left = list(processes)
    for pid, expected_mark in left:
        signal_exactly(pid, expected_mark, is_forced=True)
    deadline = time.monotonic() + timeout_s
    while left and time.monotonic() < deadline:
        left = [p for p in left if mark(p[0]) == p[1]]
        time.sleep(0.005 if left else 0.0)


def _has_proc() -> bool:
    return (_PROC / "self" / "stat").exists()


def _all_pids() -> list[int]:
    if _has_proc():
        return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    listed = subprocess.run(["ps", "-axo", "pid="], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in listed.split()]


def _ps(columns: str, pid: int) -> str:
    return subprocess.run(["ps", "-o", columns, "-p", str(pid)], capture_output=True, text=True, check=False).stdout
