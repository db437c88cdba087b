"""A driver process as its user sees it: what it prints, line by line, while servers come and go."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WAIT_S = 90.0


class Driver:
    """``zenray submit`` in a process of its own, whose output is read as it comes."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zenray", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def shown(self) -> str:
        """What it has printed so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, text: str) -> None:
        """Wait until a text was printed."""
        with self._changed:
            is_there = self._changed.wait_for(lambda: text in "".join(self._lines) or self._has_ended(), WAIT_S)
        assert is_there, f"{text!r} never came: {self.shown}"
        assert text in self.shown, f"it ended without {text!r}: {self.shown}"

    def end(self, within_s: float = WAIT_S) -> int:
        """Wait for its end and return the exit code."""
        code = self.process.wait(within_s)
        self._reader.join(WAIT_S)
        return code

    def _has_ended(self) -> bool:
        return not self._reader.is_alive()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@contextmanager
def driver(folder: Path, *words: str) -> Iterator[Driver]:
    """Start a driver, and end it where the test has not waited for it."""
    found = Driver(folder, words)
    try:
        yield found
    finally:
        found.process.kill()
        found.end()


def wait_for_file(path: Path) -> None:
    """Wait until a step has left its mark."""
    until = time.monotonic() + WAIT_S
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)
