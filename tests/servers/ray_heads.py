"""A real Ray cluster of one node on loopback, with Jobs API and token, as a cluster elsewhere is seen from a client."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from tests.servers.starting import folder as new_folder
from tests.servers.starting import free_ports, start, wait_ready
from zenray import processes

TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Head:
    """A running head: the URL of its dashboard, and where its files are, uploaded packages unpacked among them."""

    url: str
    folder: Path

    def ask(self, path: str) -> bytes:
        """Return what the Jobs API says."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def answers(self) -> bool:
        """Say whether the Jobs API is up."""
        try:
            return bool(self.ask("/api/jobs/"))
        except OSError:
            return False


@contextmanager
def ray_head(environment: Mapping[str, str]) -> Iterator[Head]:
    """Run a head, without ZenRay installed, whose processes have the given environment and hardly anything else."""
    with new_folder("head") as folder:
        yield from _ray_head(folder, environment)


def _ray_head(folder: Path, environment: Mapping[str, str]) -> Iterator[Head]:
    (folder / "home").mkdir()
    base = free_ports(8)
    python = _environment_without_zenray(folder / "venv")
    command = [
        str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={base}", "--dashboard-host=127.0.0.1", f"--dashboard-port={base + 1}",
        f"--dashboard-agent-listen-port={base + 2}", f"--dashboard-agent-grpc-port={base + 3}",
        f"--runtime-env-agent-port={base + 4}", f"--metrics-export-port={base + 5}",
        f"--ray-client-server-port={base + 6}", "--min-worker-port=32000", "--max-worker-port=32700",
        "--object-store-memory=100000000", f"--temp-dir={folder / 't'}",
    ]  # fmt: skip
    given = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
        **environment,
    }
    server = start(command, folder / "log", env=given, cwd=folder, is_leader=True)
    head = Head(f"http://127.0.0.1:{base + 1}", folder)
    try:
        wait_ready(server, head.answers, folder / "log")
        yield head
    finally:
        members = processes.session(server.pid)
        server.kill()
        server.wait()
        processes.kill(members)


def _environment_without_zenray(folder: Path) -> Path:
    """Make a virtual environment with what ZenRay depends on, by links, but without itself; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    target = next((folder / "lib").glob("python*/site-packages"))
    for path in Path(ray.__file__).parents[1].iterdir():
        if "zenray" not in path.name and not (target / path.name).exists():
            (target / path.name).symlink_to(path)
    return folder / "bin" / "python"
