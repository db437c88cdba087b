"""The warm local Ray cluster, seen from outside: find it, start it, hold it, describe it, end it.

Runs in: driver.

A keeper process (`zenray.keeper`) owns the cluster, which listens on loopback only and wants a token. Who uses the
cluster holds a lease (`zenray.cluster_files`); when nobody does, the keeper waits the idle time, and ends the cluster.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from zenray import cluster_files, processes
from zenray.cluster_files import ClusterInfo, Lease
from zenray.errors import ClusterError, ConfigError

DEFAULT_IDLE_S = 900.0
IDLE_VARIABLE = "ZENRAY_CLUSTER_IDLE_S"
LOG_TAIL_LINES = 20
# What Ray's serialization imports at the first result: 0.15 s that a worker can spend before it has work.
PRELOADED = "numpy,pyarrow,pydantic,starlette.datastructures,ray.cloudpickle,ray._private.arrow_serialization"

# The keeper's environment is what every worker of every later run inherits, so it must not carry one run's secrets.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TZ|TMPDIR|LANG|LANGUAGE|LC_.*|(DY)?LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_.*|SSL_CERT_.*"
    r"|(CUDA|NVIDIA|HIP|ROCR|OMP|MKL|OPENBLAS|RAY)_.*"
)
# What would lead the new cluster to another one, or to its secrets.
_NEVER_PASSED_ON = re.compile(r"RAY_(ADDRESS|AUTH_.*|REDIS_.*|JOB_.*|NAMESPACE|TMPDIR|.*_HOOK)")


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A running cluster and how it is used now; ``idle_for_s`` is 0 while it is in use."""

    info: ClusterInfo
    is_in_use: bool
    idle_for_s: float
    processes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Options:
    """What a new cluster is started with; None stands for all that the machine has."""

    idle_s: float
    num_cpus: int | None
    num_gpus: int | None
    with_dashboard: bool


@dataclass(frozen=True, slots=True)
class KeeperSpec:
    """What the starter tells the keeper; the lock that lets only one keeper start is handed over with it."""

    directory: str
    state_path: str
    lock_path: str
    lock_fd: int
    log_path: str
    ray_version: str
    packages_mark: str
    options: Options


_kept: list[Lease] = []  # what `ensure` holds until this process ends


class Start:
    """A cluster that is found or on its way; holds a lease for as long as the object lives."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._place = cluster_files.place()
        self._info: ClusterInfo | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self.lease: Lease | None = None
        self._advance()

    def wait_ready(self, timeout_s: float = 60.0) -> ClusterInfo:
        """Return once a driver can join; raise `ClusterError` with the end of the log if the cluster cannot start."""
        deadline = time.monotonic() + timeout_s
        while self._info is None:
            if time.monotonic() > deadline:
                self._abandon(f"was not ready after {timeout_s:g} s")
            time.sleep(0.02)
            self._advance()
        return self._info

    def is_alive(self) -> bool:
        """Say whether the cluster that was found or started still is there."""
        return self._info is not None and cluster_files.find(self._place) == self._info

    def _advance(self) -> None:
        if self._keeper is not None:
            self._check_keeper(self._keeper)
            return
        self._take_current()
        if self._info is not None:
            return
        lock_fd = cluster_files.try_lock(self._place.lock)
        if lock_fd is None:
            return  # another process is starting it
        try:
            self._take_current()
            if self._info is None:
                self._spawn(lock_fd)
        finally:
            os.close(lock_fd)

    def _take_current(self) -> None:
        info = cluster_files.find(self._place)
        # Workers that wait for work have packages imported, and after an installation they would be the wrong ones.
        if info is not None and info.packages_mark == self._place.packages_mark:
            self.lease = cluster_files.try_hold(info)
            if self.lease is not None:
                self._info = info

    def _spawn(self, lock_fd: int) -> None:
        place = self._place
        self._directory = cluster_files.new_directory(place.root)
        spec = KeeperSpec(
            directory=str(self._directory),
            state_path=str(place.state),
            lock_path=str(place.lock),
            lock_fd=lock_fd,
            log_path=str(place.log),
            ray_version=place.ray_version,
            packages_mark=place.packages_mark,
            options=self._options,
        )
        # Held from before the keeper lives: without an idle time the cluster ends with the process that started it.
        users_fd = os.open(self._directory / "users", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self.lease = Lease(users_fd)
        fcntl.flock(users_fd, fcntl.LOCK_SH)
        place.state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keeper = _popen_keeper(spec)

    def _check_keeper(self, keeper: "subprocess.Popen[bytes]") -> None:
        info = cluster_files.read_state(self._place.state)
        if info is not None and info.directory == str(self._directory):
            self._info = info
            keeper.returncode = 0  # it is on its own now: Popen would warn that what it started still runs
            self._keeper = None
        elif keeper.poll() is not None:
            self._abandon(f"did not start (its keeper ended with code {keeper.returncode})")

    def _abandon(self, what: str) -> None:
        if self._keeper is not None:
            members = processes.session(self._keeper.pid)
            self._keeper.kill()
            self._keeper.wait()
            processes.kill(members)
            shutil.rmtree(self._directory, ignore_errors=True)
            self._keeper = None
        log = self._place.log
        raise ClusterError(
            f"the local Ray cluster {what}. The end of {log}:\n{_tail(log)}\n"
            "Correct what it names and run again; `ray.init(address='local')` in a Python shell shows whether Ray "
            "itself starts here"
        )


def begin(
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    idle_s: float | None = None,
    with_dashboard: bool = False,
) -> Start:
    """Start the cluster unless it runs, without waiting, so that the caller can import Ray meanwhile.

    Args:
        num_cpus: CPUs of a new cluster; as many as the machine has by default. A running one keeps its own.
        num_gpus: GPUs of a new cluster, likewise.
        idle_s: How long a new cluster stays when nobody uses it; by default ZENRAY_CLUSTER_IDLE_S or 15 minutes.
            With 0 it ends when the process that started it and all that have joined since have ended.
        with_dashboard: Give a new cluster Ray's dashboard, which takes some 3 s and 300 MB more.
    """
    return Start(Options(_idle_s(idle_s), num_cpus, num_gpus, with_dashboard))


def ensure(
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    idle_s: float | None = None,
    with_dashboard: bool = False,
    timeout_s: float = 60.0,
) -> ClusterInfo:
    """Find or start the cluster, and hold it until this process ends; the options are those of `begin`."""
    start = begin(num_cpus=num_cpus, num_gpus=num_gpus, idle_s=idle_s, with_dashboard=with_dashboard)
    info = start.wait_ready(timeout_s)
    if start.lease is not None:
        _kept.append(start.lease)
    return info


def find() -> ClusterInfo | None:
    """Return the running cluster of this user and Python environment, if there is one; takes a millisecond or two."""
    return cluster_files.find(cluster_files.place())


def hold(info: ClusterInfo) -> Lease:
    """Keep the cluster from ending for idleness; raise `ClusterError` if it is ending already."""
    lease = cluster_files.try_hold(info)
    if lease is None:
        raise ClusterError(f"the local Ray cluster at {info.address!r} has ended; run again to start a new one")
    return lease


def join_environment(info: ClusterInfo) -> dict[str, str]:
    """Return the variables that must be set *before Ray is imported* and until ``ray.init`` has returned.

    None of them needs to stay set afterwards. `joining` sets and restores them, also after Ray was imported.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": info.token_path,
        "RAY_AUTH_TOKEN": "",  # a user's own would win over the file
        # Ray's switch for "this machine only": every port binds to loopback, and 127.0.0.1 is taken literally.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@contextlib.contextmanager
def joining(info: ClusterInfo) -> Iterator[None]:
    """Let a ``ray.init(address=info.address, _temp_dir=info.temp_dir)`` in the block join the cluster.

    Works whether or not Ray was imported before, and leaves these variables of ``os.environ`` as they were.
    """
    wanted = join_environment(info)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    constants = sys.modules.get("ray._private.ray_constants")
    binary = sys.modules.get("ray._raylet")
    was_networked = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    try:
        if constants is not None and binary is not None:
            # Ray read these variables when it was imported; this is how it applies them later itself.
            constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
            binary.Config.initialize("")
            binary.AuthenticationTokenLoader.instance().reset_cache()
        yield
    finally:
        if constants is not None:
            constants.ENABLE_RAY_CLUSTER = was_networked  # type: ignore[attr-defined]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def status() -> ClusterStatus | None:
    """Describe the running cluster, or return None; does not import Ray."""
    info = find()
    if info is None:
        return None
    members = processes.session(info.pid)
    is_in_use = cluster_files.is_in_use(info)
    last_used = info.started_at
    with contextlib.suppress(OSError):
        last_used = Path(info.users_path).stat().st_mtime
    return ClusterStatus(
        info=info,
        is_in_use=is_in_use,
        idle_for_s=0.0 if is_in_use else max(0.0, time.time() - last_used),
        processes=len(members),
        memory_bytes=sum(processes.memory_bytes(pid) for pid, _ in members),
    )


def down(timeout_s: float = 10.0) -> bool:
    """End the cluster with everything that runs in it, and nothing else; return whether there was one."""
    place = cluster_files.place()
    info = cluster_files.read_state(place.state)
    if info is None:
        return False
    if processes.mark(info.pid) != info.process_mark:
        cluster_files.discard(place, info)
        return False
    members = processes.session(info.pid)
    processes.signal_exactly(info.pid, info.process_mark, is_forced=False)
    deadline = time.monotonic() + timeout_s
    while processes.mark(info.pid) == info.process_mark and time.monotonic() < deadline:
        time.sleep(0.02)
    processes.kill([*members, (info.pid, info.process_mark)])
    cluster_files.discard(place, info)
    return True


def _popen_keeper(spec: KeeperSpec) -> "subprocess.Popen[bytes]":
    # Found like in this process, also from a source checkout, and without a changed import order for anything else.
    package_root = str(Path(__file__).parent.parent)
    code = f"import sys; sys.path.append({package_root!r}); from zenray.keeper import main; main(sys.argv[1])"
    log_fd = os.open(spec.log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, json.dumps(asdict(spec))],
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=(spec.lock_fd,),
            cwd=spec.directory,
            env=_keeper_environment(spec),
            start_new_session=True,  # a Ctrl-C in the terminal is for the driver alone
        )
    finally:
        os.close(log_fd)


def _keeper_environment(spec: KeeperSpec) -> dict[str, str]:
    names = [name for name in os.environ if _PASSED_ON.fullmatch(name) and not _NEVER_PASSED_ON.fullmatch(name)]
    return {name: os.environ[name] for name in names} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(Path(spec.directory, "token")),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # the keeper does it for every driver
        "RAY_preload_python_modules": PRELOADED,
    }


def _idle_s(chosen: float | None) -> float:
    text = os.environ.get(IDLE_VARIABLE)
    if chosen is None and text:
        try:
            chosen = float(text)
        except ValueError as exc:
            raise ConfigError(f"{IDLE_VARIABLE} must be a number of seconds such as 900, got {text!r}") from exc
    idle_s = DEFAULT_IDLE_S if chosen is None else chosen
    if not idle_s >= 0:
        raise ConfigError(f"the idle time of the local cluster must be 0 s or more, got {idle_s!r}")
    return idle_s


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as exc:
        return f"  ({exc})"
    return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or "  (empty)"
