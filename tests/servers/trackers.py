"""A real MLflow server on loopback, from an environment of its own: the whole of MLflow is 800 MB."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

READY_S = 90.0
PROGRAM = Path(__file__).parents[2] / ".venv-mlflow" / "bin" / "mlflow"  # `make .venv-mlflow/bin/mlflow` makes it


class MissingServer(Exception):
    """Raised where the program of the server is not installed."""


class MlflowServer:
    """An MLflow server on SQLite; ``stop`` ends it as a crash would, ``start`` brings it back on the same port."""

    def __init__(self, folder: Path) -> None:
        if not PROGRAM.exists():
            raise MissingServer(f"{PROGRAM} is not installed; run `make {PROGRAM.relative_to(PROGRAM.parents[2])}`")
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

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
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdout=log, stderr=log, env=environment | calm, cwd=self._folder, start_new_session=True
            )
        until = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"the MLflow server did not start:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
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
