"""A real MLflow server on loopback, from an environment of its own: the whole of MLflow is 800 MB."""

import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.starting import Process, free_ports, required, start, wait_ready

PROGRAM = Path(__file__).parents[2] / ".venv-mlflow" / "bin" / "mlflow"  # `make .venv-mlflow/bin/mlflow` makes it


class MlflowServer:
    """An MLflow server on SQLite; ``stop`` ends it as a crash would, ``start`` brings it back on the same port."""

    def __init__(self, folder: Path) -> None:
        required(PROGRAM, f"make {PROGRAM.relative_to(PROGRAM.parents[2])}")
        self._folder = folder
        self.port = free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Process | None = None

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> "Iterator[MlflowServer]":
        """Run a server for as long as the block."""
        server = cls(folder)
        try:
            yield server.start()
        finally:
            server.stop()

    @property
    def pid(self) -> int:
        """The process that runs, which leads a group of its own."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> "MlflowServer":
        """Start the server and wait until it answers."""
        # Without the first switch it starts seven more processes.
        calm = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        words = [PROGRAM, "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        words += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("MLFLOW_")}
        log = self._folder / "log"
        self._process = start(words, log, env=environment | calm, cwd=self._folder, is_leader=True)
        wait_ready(self._process, self._answers, log)
        return self

    def stop(self) -> None:
        """End the server and its workers at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
