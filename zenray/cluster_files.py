"""The files by which drivers and the keeper of a local cluster find each other: its state, its users, locks, a token.

Runs in: driver; the keeper's process.

The state file, published by the keeper, says where the cluster is. A shared lock on its file of users is a lease. The
kernel gives it back however a process ends, so the keeper knows for sure when nobody is left.
"""

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
import sys
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from zenray import processes
from zenray.errors import ClusterError, ConfigError
from zenray.settings import home


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


def _close_in_child() -> None:
    # A forked child shares the lock: it would keep the cluster in use after its parent has ended.
    for lease in list(_leases):
        lease.close()


os.register_at_fork(after_in_child=_close_in_child)


def place() -> Place:
    """Return where the files are; neither imports Ray nor makes anything but the private folder below /tmp."""
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


def find(place: Place) -> ClusterInfo | None:
    """Return the cluster that runs there; what a keeper that has died left behind is removed."""
    info = read_state(place.state)
    if info is None:
        return None
    if processes.mark(info.pid) != info.process_mark or info.boot_mark != processes.boot_mark():
        discard(place, info)
        return None
    return info if Path(info.users_path).exists() and _accepts(info.address) else None  # else its keeper cleans up


def try_hold(info: ClusterInfo) -> Lease | None:
    """Return a hold on the cluster, or None where it takes no more users."""
    try:
        fd = os.open(info.users_path, os.O_RDWR)
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_SH)  # waits for the instant in which the keeper looks whether anybody holds it
    if os.fstat(fd).st_nlink == 0:  # the keeper removed it before letting go: it has decided to end
        os.close(fd)
        return None
    return Lease(fd)


def is_in_use(info: ClusterInfo) -> bool:
    """Say whether anybody holds the cluster; also True of one that is ending."""
    try:
        fd = os.open(info.users_path, os.O_RDWR)
    except OSError:
        return True
    try:
        return not try_flock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def read_state(state: Path) -> ClusterInfo | None:
    """Return the cluster that was published last, whether or not it still is there."""
    try:
        return ClusterInfo(**json.loads(state.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None  # not there, or written by another version of ZenRay
    except OSError as exc:
        raise ConfigError(f"{state} cannot be read: {exc.strerror}; check its permissions, or set ZENRAY_HOME") from exc


def write_state(state: Path, info: ClusterInfo) -> None:
    """Publish the cluster: from now on drivers find it."""
    scratch = state.with_suffix(f".{info.pid}")
    scratch.write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")
    scratch.chmod(0o600)
    scratch.replace(state)


def is_published(state: Path, pid: int) -> bool:
    """Tell whether drivers still find the keeper with this pid, rather than a successor."""
    info = read_state(state)
    return info is not None and info.pid == pid


def withdraw(state: Path, lock: Path, info: ClusterInfo) -> None:
    """Remove the files of an ended cluster; the state only if the next cluster is not already starting."""
    shutil.rmtree(info.directory, ignore_errors=True)
    lock_fd = try_lock(lock)
    if lock_fd is None:
        return
    try:
        if read_state(state) == info:
            state.unlink(missing_ok=True)
    finally:
        os.close(lock_fd)


def discard(place: Place, info: ClusterInfo) -> None:
    """Clean up after a keeper that has not done it itself."""
    if info.boot_mark == processes.boot_mark():
        # The kernel ends the raylet with its keeper, but not the raylet's agents. Only what belongs to our directory is
        # ended, because the number of the dead keeper's session may have been given to somebody else.
        processes.kill(m for m in processes.session(info.pid) if processes.belongs_to(m[0], info.directory))
    withdraw(place.state, place.lock, info)


def new_directory(root: Path) -> Path:
    """Make the folder of a new cluster, with its token."""
    directory = root / os.urandom(4).hex()
    directory.mkdir(mode=0o700)
    token_fd = os.open(directory / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(token_fd, "w") as token:
        token.write(os.urandom(32).hex())
    return directory


def try_lock(path: Path) -> int | None:
    """Return the descriptor that holds a file's lock, or None where another process has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if not try_flock(fd, fcntl.LOCK_EX):
        os.close(fd)
        return None
    return fd


def try_flock(fd: int, kind: int) -> bool:
    """Take a lock without waiting; return whether it was free."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except OSError:
        return False


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
