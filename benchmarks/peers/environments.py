"""The peers, and a virtual environment and a clean process for each.

Runs in: the harness.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
INSTALL_TIMEOUT_S = 900


class PeerError(Exception):
    """Raised when a peer can't be installed or a process of it fails; the message is its own last words."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A tool: what to install (nothing: it is in the harness's own environment) and the settings of its processes.

    In a setting's value `{home}` stands for the fresh folder of the workload. `after` is the command of the tool's
    own program that ends what it keeps running between processes.
    """

    name: str
    distribution: str
    requirements: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return ROOT / ".venv-peers" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python" if self.requirements else Path(sys.executable)

    @property
    def adapter(self) -> Path:
        return HERE / f"{self.name}_flow.py"


RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}
FRAMES = ("pandas", "pyarrow")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("ray", "ray", settings=RAY_SETTINGS),
        Peer("zenray", "zenray", settings=RAY_SETTINGS | {"ZENRAY_HOME": "{home}/zenray"}, after=("cluster", "down")),
        Peer(
            "zenml",
            "zenml",
            ("zenml[local]", *FRAMES),
            {"ZENML_ANALYTICS_OPT_IN": "false", "ZENML_CONFIG_PATH": "{home}/zenml", "AUTO_OPEN_DASHBOARD": "false"},
        ),
        Peer(
            "prefect",
            "prefect",
            # Prefect 3.8 fails to import with newer FastAPI releases: Body() has lost `min_items`.
            ("prefect", "fastapi<0.150", *FRAMES),
            {
                "PREFECT_HOME": "{home}/prefect",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 s are short on a busy machine
            },
        ),
        Peer(
            "dagster",
            "dagster",
            ("dagster", *FRAMES),
            {"DAGSTER_HOME": "{home}", "DAGSTER_DISABLE_TELEMETRY": "yes"},
        ),
        Peer(
            "metaflow",
            "metaflow",
            ("metaflow", *FRAMES),
            {"USERNAME": "peers", "METAFLOW_DATASTORE_SYSROOT_LOCAL": "{home}"},
        ),
        Peer("flyte", "flytekit", ("flytekit", *FRAMES)),
        Peer("redun", "redun", ("redun", *FRAMES)),
        Peer("joblib", "joblib", ("joblib",)),
    )
}


def prepare(peer: Peer) -> str:
    """Install the peer unless that is done, and return the version of it.

    Raises:
        PeerError: With the last line that pip or the interpreter said.
    """
    marker = peer.folder / "peers-requirements.txt"
    wanted = "\n".join(peer.requirements)
    if peer.requirements and not (marker.exists() and marker.read_text() == wanted):
        print(f"installing {' '.join(peer.requirements)} ...", file=sys.stderr, flush=True)
        venv.create(peer.folder, with_pip=True, symlinks=True, clear=True)
        _output([str(peer.python), "-m", "pip", "install", "--quiet", *peer.requirements])
        marker.write_text(wanted)
    code = f"import importlib.metadata as m; print(m.version({peer.distribution!r}))"
    return _output([str(peer.python), "-c", code]).strip()


def run_process(
    peer: Peer,
    arguments: Sequence[str],
    *,
    home: Path,
    timeout_s: float,
    settings: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> float:
    """Run a script of the peer in a process group of its own and return the wall seconds of the whole process.

    Nothing of the caller's environment reaches it but the path; its home, caches and temporary files lie under
    `home`, and HTTP to any host but this one is refused.

    Raises:
        PeerError: On a failure, with the last line the process printed, or when `timeout_s` have passed.
    """
    (home / "t").mkdir(exist_ok=True)
    log = home / "output.log"
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(peer.python), *arguments],
            cwd=cwd or home,
            env=_environment(peer, home) | dict(settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise PeerError(f"not finished after {timeout_s:g} s") from None
        finally:
            wall_s = time.perf_counter() - started
            _end_group(process)
    if code:
        raise PeerError(f"exit code {code}: {_last_line(log.read_text(errors='replace'))}")
    return wall_s


def _environment(peer: Peer, home: Path) -> dict[str, str]:
    closed = "http://127.0.0.1:9"
    settings = {name: value.format(home=home) for name, value in peer.settings.items()}
    return {
        "PATH": f"{peer.python.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(home / "t"),
        "LANG": "C.UTF-8",
        "DO_NOT_TRACK": "1",
        "HTTP_PROXY": closed,
        "HTTPS_PROXY": closed,
        "NO_PROXY": "127.0.0.1,localhost",
        **settings,
    }


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what the process left behind; a group that is gone is what we want."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    if done.returncode:
        raise PeerError(_last_line(done.stderr))
    return done.stdout


def _last_line(text: str) -> str:
    """Return the last line, or the last that names an error, since tools go on to talk about their shutting down."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Failed|ERROR)\w*: ", line)]
    return (errors or lines or ["no output"])[-1][:200]
