"""What every server here needs: free ports of loopback, a folder, the wait until it answers, and its end.

A server that is not installed is a ``MissingServer``; ``running`` skips the test then, or fails it where ``CI`` is set.
"""

import os
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

READY_S = 90.0
Process = subprocess.Popen[bytes]
S = TypeVar("S")
_bases = iter(range(20_500 + os.getpid() % 200 * 10, 32_000, 10))  # never twice: a server that is down keeps its port


class MissingServer(Exception):
    """Raised where the programs of a server are not installed."""


def required(program: Path, command: str) -> Path:
    """Return a program that is there, or say by which command it would be."""
    if not program.is_file():
        raise MissingServer(f"{program} is not there: `{command}`")
    return program


def running(server: AbstractContextManager[S]) -> Iterator[S]:
    """Give what a server's context gives: ``yield from`` it in a fixture."""
    try:
        opened = server.__enter__()
    except MissingServer as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))
    try:
        yield opened
    finally:
        server.__exit__(None, None, None)


def free_ports(count: int = 1) -> int:
    """Return the first of some free ports in a row; each has the port 10,000 above it free too, which gRPC takes."""
    for base in _bases:
        if all(_is_free(port) for n in range(count) for port in (base + n, base + n + 10_000)):
            return base
    raise RuntimeError("there are no free ports")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """Give a folder directly below /tmp: those of pytest are closed to other users, and too deep for sockets."""
    with tempfile.TemporaryDirectory(prefix=f"zenray-{name}-", dir="/tmp", ignore_cleanup_errors=True) as made:
        yield Path(made)


def start(
    command: Sequence[str | Path],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path = "/",
    is_leader: bool = False,
) -> Process:
    """Start a server that writes to a log; a leader has a session of its own, by which all it started can be ended."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, cwd=cwd, start_new_session=is_leader
        )


def wait_ready(server: Process, is_ready: Callable[[], bool], log: Path) -> None:
    """Wait until a server answers; where it ends, or never does, its log's end is in the error."""
    until = time.monotonic() + READY_S
    while server.poll() is not None or not is_ready():
        if server.poll() is not None or time.monotonic() > until:
            words = shlex.join(map(str, server.args))  # type: ignore[arg-type]
            raise RuntimeError(f"{words} did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


@contextmanager
def serving(
    command: Sequence[str | Path], log: Path, is_ready: Callable[[], bool], *, env: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Run a server of one process, and end it at once: its data is thrown away."""
    server = start(command, log, env=env, cwd=log.parent)
    try:
        wait_ready(server, is_ready, log)
        yield server
    finally:
        server.kill()
        server.wait()
