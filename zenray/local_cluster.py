"""The warm local Ray cluster, seen from outside: find it, start it, hold it, describe it, end it.

Runs in: driver.

A keeper process (`zenray.keeper`) owns the cluster, which listens on loopback only and wants a token. Who uses
the cluster holds a shared file lock, a lease; the kernel gives it back however the process ends, so the keeper
knows for sure when nobody is left, waits the idle time, and ends the cluster.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from zenray import processes
from zenray.errors import ClusterError, ConfigError
from zenray.settings import home

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
class ClusterInfo:
    """A running cluster: what a driver needs to join it, and what tells its keeper from a later process of that pid."""

    pid: int
    process_mark: str
    boot_mark: str
    address: str
    directory: str
    log_path: str
    ray_version: str
    packages_mark: str
    started_at: float
    idle_s: float
    num_cpus: float
    num_gpus: float
    dashboard_url: str

    @property
    def token_path(self) -> str:
        """The file with the token that every connection needs."""
        return str(Path(self.directory, "token"))

    @property
    def users_path(self) -> str:
        """The file whose shared lock is a lease; the keeper removes it when the cluster takes no more users."""
        return str(Path(self.directory, "users"))

    @property
    def temp_dir(self) -> str:
        """The directory to name as Ray's ``_temp_dir``."""
        return str(Path(self.directory, "ray"))


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


class Place(NamedTuple):
    """Where the cluster of this user, machine and Python environment keeps its state."""

    root: Path  # short, local and private: sockets, locks and the token live below it
    lock: Path
    state: Path
    log: Path
    ray_version: str
    packages_mark: str


class Lease:
    """A hold on the cluster: it does not end for idleness before `close`, or the end of this process."""

    def __init__(self, fd: int) -> None:
        self._finalizer = weakref.finalize(self, os.close, fd)
        # At exit the kernel does it, after Ray's own exit handlers have left the cluster.
        self._finalizer.atexit = False
        _leases.add(self)

    def close(self) -> None:
        """Give the hold back; a second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


_leases: "weakref.WeakSet[Lease]" = weakref.WeakSet()
_kept: list[Lease] = []  # what `ensure` holds until this process ends


def _close_in_child() -> None:
    # A forked child shares the lock: it would keep the cluster in use after its parent has ended.
    for lease in list(_leases):
        lease.close()


os.register_at_fork(after_in_child=_close_in_child)


class Start:
    """A cluster that is found or on its way; holds a lease for as long as the object lives."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._place = _place()
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
        return self._info is not None and _find(self._place) == self._info

    def _advance(self) -> None:
        if self._keeper is not None:
            self._check_keeper(self._keeper)
            return
        self._take_current()
        if self._info is not None:
            return
        lock_fd = _try_lock(self._place.lock)
        if lock_fd is None:
            return  # another process is starting it
        try:
            self._take_current()
            if self._info is None:
                self._spawn(lock_fd)
        finally:
            os.close(lock_fd)

    def _take_current(self) -> None:
        info = _find(self._place)
        # Workers that wait for work have packages imported, and after an installation they would be the wrong ones.
        if info is not None and info.packages_mark == self._place.packages_mark:
            self.lease = _try_hold(info)
            if self.lease is not None:
                self._info = info

    def _spawn(self, lock_fd: int) -> None:
        place = self._place
        self._directory = _new_directory(place.root)
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
        info = _read(self._place.state)
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
    return _find(_place())


def hold(info: ClusterInfo) -> Lease:
    """Keep the cluster from ending for idleness; raise `ClusterError` if it is ending already."""
    lease = _try_hold(info)
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
    is_in_use = True
    with contextlib.suppress(OSError), _open_users(info) as fd:
        is_in_use = not try_flock(fd, fcntl.LOCK_EX)
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
    place = _place()
    info = _read(place.state)
    if info is None:
        return False
    if processes.mark(info.pid) != info.process_mark:
        _discard(place, info)
        return False
    members = processes.session(info.pid)
    processes.signal_exactly(info.pid, info.process_mark, is_forced=False)
    deadline = time.monotonic() + timeout_s
    while processes.mark(info.pid) == info.process_mark and time.monotonic() < deadline:
        time.sleep(0.02)
    processes.kill([*members, (info.pid, info.process_mark)])
    _discard(place, info)
    return True


def withdraw(state: Path, lock: Path, info: ClusterInfo) -> None:
    """Remove the files of an ended cluster; the state only if the next cluster is not already starting."""
    shutil.rmtree(info.directory, ignore_errors=True)
    lock_fd = _try_lock(lock)
    if lock_fd is None:
        return
    try:
        if _read(state) == info:
            state.unlink(missing_ok=True)
    finally:
        os.close(lock_fd)


def write_state(state: Path, info: ClusterInfo) -> None:
    """Publish the cluster: from now on drivers find it."""
    scratch = state.with_suffix(f".{info.pid}")
    scratch.write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")
    scratch.chmod(0o600)
    scratch.replace(state)


def is_published(state: Path, pid: int) -> bool:
    """Tell whether drivers still find the keeper with this pid, rather than a successor."""
    info = _read(state)
    return info is not None and info.pid == pid


def try_flock(fd: int, kind: int) -> bool:
    """Take a lock without waiting; return whether it was free."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


def _find(place: Place) -> ClusterInfo | None:
    info = _read(place.state)
    if info is None:
        return None
    if processes.mark(info.pid) != info.process_mark or info.boot_mark != processes.boot_mark():
        _discard(place, info)
        return None
    return info if Path(info.users_path).exists() and _accepts(info.address) else None  # else its keeper cleans up


def _try_hold(info: ClusterInfo) -> Lease | None:
    try:
        fd = os.open(info.users_path, os.O_RDWR)
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_SH)  # waits for the instant in which the keeper looks whether anybody holds it
    if os.fstat(fd).st_nlink == 0:  # the keeper removed it before letting go: it has decided to end
        os.close(fd)
        return None
    return Lease(fd)


@contextlib.contextmanager
def _open_users(info: ClusterInfo) -> Iterator[int]:
    fd = os.open(info.users_path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def _discard(place: Place, info: ClusterInfo) -> None:
    """Clean up after a keeper that has not done it itself."""
    if info.boot_mark == processes.boot_mark():
        # The kernel ends the raylet with its keeper, but not the raylet's agents. Only what belongs to our directory is
        # ended, because the number of the dead keeper's session may have been given to somebody else.
        processes.kill(m for m in processes.session(info.pid) if processes.belongs_to(m[0], info.directory))
    withdraw(place.state, place.lock, info)


def _read(state: Path) -> ClusterInfo | None:
    try:
        return ClusterInfo(**json.loads(state.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None  # not there, or written by another version of ZenRay
    except OSError as exc:
        raise ConfigError(f"{state} cannot be read: {exc.strerror}; check its permissions, or set ZENRAY_HOME") from exc


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def _try_lock(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if not try_flock(fd, fcntl.LOCK_EX):
        os.close(fd)
        return None
    return fd


def _place() -> Place:
    package = _ray_package()
    version = re.search(r'^version = "(.+)"', (package / "_version.py").read_text(encoding="utf-8"), re.MULTILINE)
    ray_version = version.group(1) if version else "unknown"
    base = home()
    # A home folder may be shared by machines: the name of this one is part of the identity.
    identity = (str(base), sys.prefix, sys.version, ray_version, platform.node())
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    directory = base / "clusters" / name
    root = _private_root()
    return Place(
        root=root,
        lock=root / f"{name}.lock",
        state=directory / "cluster.json",
        log=directory / "keeper.log",
        ray_version=ray_version,
        # Installing or removing any distribution changes the folder that holds them.
        packages_mark=str(package.parent.stat().st_mtime_ns),
    )


def _ray_package() -> Path:
    found = importlib.util.find_spec("ray")  # locates the package without importing it
    if found is None or found.origin is None:
        raise ClusterError(
            "Ray is not installed in this Python environment; install it with `pip install 'ray[default]'`"
        )
    return Path(found.origin).parent


def _private_root() -> Path:
    # Not TMPDIR: below this come Ray's sockets, whose whole path may have 103 characters on macOS.
    root = Path(f"/tmp/zenray-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ClusterError(
            f"{str(root)!r} must be a directory of your own that nobody else can enter (mode 700), and it is not; "
            "somebody else may have made it to read along. Remove it, or have an administrator do so, then run again"
        )
    return root


def _new_directory(root: Path) -> Path:
    directory = root / os.urandom(4).hex()
    directory.mkdir(mode=0o700)
    token_fd = os.open(directory / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(token_fd, "w") as token:
        token.write(os.urandom(32).hex())
    return directory


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
