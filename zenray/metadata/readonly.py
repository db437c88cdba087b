"""A SQLite file that this process may only read: of another user, or on a medium that takes no writes.

Runs in: driver.

Who may write such a file may be at work on it. Then its write-ahead log is there, and SQLite reads both under its locks
(https://www.sqlite.org/wal.html#read_only_databases). Without a log SQLite would have to make one, or to be told that
nothing ever changes the file: it is, and whoever reads compares the file's ``state`` before and afterwards.
"""

import os
import sqlite3
from pathlib import Path

from zenray.errors import MetadataError

State = tuple[int, ...]


def is_read_only(path: Path) -> bool:
    """Say whether there is a file to which this process cannot write.

    SQLite could still make a log in a folder that it may write to. It would be ours, and lock out the file's owner.
    """
    files = [f for f in (path, _beside(path, "-wal"), _beside(path, "-shm")) if os.access(f, os.F_OK)]
    if path not in files:
        return False
    is_forbidden = any(not os.access(f, os.W_OK) for f in files)
    return is_forbidden or (len(files) < 3 and not os.access(path.parent, os.W_OK))


def state(path: Path) -> State:
    """Return what tells the file's content from a later one; empty while there is a log, whose locks do."""
    try:
        if _beside(path, "-wal").stat().st_size:
            return ()
    except FileNotFoundError:
        pass
    try:
        info = path.stat()
    except FileNotFoundError:
        return (0,)  # opening it says so
    return info.st_ino, info.st_size, info.st_mtime_ns


def connect(path: Path, name: str, found: State, *, timeout_s: float) -> sqlite3.Connection:
    """Open the file as it was found by ``state``, for reading; nothing is made beside it."""
    if not found and not _beside(path, "-shm").exists():
        raise MetadataError(
            f"cannot read {name!r}: its last commits are in {path.name}-wal, and that needs a {path.name}-shm, which "
            "may not be made there; copy the files into a folder of yours, and read them there"
        )
    uri = f"{path.as_uri()}?mode=ro{'&immutable=1' if found else ''}"
    return sqlite3.connect(uri, uri=True, timeout=timeout_s, check_same_thread=False)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
