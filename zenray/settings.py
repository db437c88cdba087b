"""Where ZenRay keeps its state, the repository a command runs in, and which profile and stack are chosen there.

Runs in: anywhere.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from zenray.errors import ConfigError

MARKER = ".zenray"
IGNORE_FILE = ".zenrayignore"  # marks a repository too: it is committed, and so is there in every clone
DEFAULT_PROFILE = "default"
_CHOICES, _LOCK = "settings.json", "settings.lock"
LOCK_S = 30.0  # how long a change waits for others; each takes well under a second
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")


def current_folder() -> Path:
    """Return the folder this process is in; ConfigError where somebody has removed it."""
    try:
        return Path.cwd()
    except FileNotFoundError as exc:
        raise ConfigError("the current folder is not there any more; change to one that is, and run again") from exc


def find_repository(start: Path | None = None) -> Path | None:
    """Return the nearest folder upwards that ``zenray init`` marked, or None."""
    here = (start or current_folder()).absolute()
    for folder in (here, *here.parents):
        is_marked = (folder / MARKER).is_dir() and folder != Path.home()  # there it is the user's own state
        if is_marked or (folder / IGNORE_FILE).is_file():
            return folder
    return None


def home() -> Path:
    """Return where state lives: ZENRAY_HOME, else ``.zenray`` in the repository, else ``~/.zenray``."""
    return chosen_folder("ZENRAY_HOME") or (find_repository() or Path.home()) / MARKER


def user_home() -> Path:
    """Return where a user's profiles live: ZENRAY_HOME, else ``~/.zenray``."""
    return chosen_folder("ZENRAY_HOME") or Path.home() / MARKER


def chosen_folder(variable: str) -> Path | None:
    """Return the folder that a variable of the environment names; None where it is not set.

    A relative one starts where this process is now. It is made absolute in the environment: this process, its workers
    and what they start may go to other folders, and mean the same one.
    """
    chosen = os.environ.get(variable)
    if not chosen:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_absolute():
        folder = current_folder() / folder
        os.environ[variable] = str(folder)
    return folder


def is_name(name: str) -> bool:
    """Say whether a name of a profile or stack is one that is safe as a file's name."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def check_name(kind: str, name: str) -> str:
    """Return a name that is safe as a file's name; ConfigError says what is allowed."""
    if not is_name(name):
        raise ConfigError(
            f"{name!r} is no name for a {kind}: use letters, digits, '_', '-' and single '.' between them, "
            "64 characters at most"
        )
    return name


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen with ``zenray profile set`` and ``zenray stack set`` in one place: a repository, or by a user."""

    profile: str = ""
    stacks: Mapping[str, str] = field(default_factory=dict)  # profile to its active stack


def read_choices(folder: Path) -> Choices:
    """Return what is chosen in a repository's marker folder or in the user's; nothing where no file is."""
    path = folder / _CHOICES
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        stacks = {str(k): str(v) for k, v in raw.get("stacks", {}).items()}
        return Choices(str(raw.get("profile", "")), stacks)
    except FileNotFoundError:
        return Choices()
    except (OSError, ValueError, AttributeError) as exc:
        raise ConfigError(
            f"{path} cannot be read ({exc}): remove it, and choose again with `zenray stack set NAME`"
        ) from exc


def write_choices(folder: Path, choices: Choices) -> None:
    """Replace what is chosen in a place, as a whole."""
    text = json.dumps({"profile": choices.profile, "stacks": dict(choices.stacks)}, indent=2) + "\n"
    write_private(folder / _CHOICES, text)


@contextmanager
def locked(folder: Path, *, wait_s: float = LOCK_S) -> Iterator[None]:
    """Be the only one who changes what is chosen in a place, and the stacks that belong to it.

    Whoever reads one of them to write it again does both under this lock, or another's change in between is lost.
    Raises ConfigError where the place has no locks, cannot be written, or is not let go of within ``wait_s``.
    """
    path = folder / _LOCK
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {exc.strerror or exc}; check its folder's permissions") from exc
    try:
        _lock(descriptor, path, wait_s)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(
                    f"cannot lock {path}: {exc.strerror or exc}; its file system has no locks, and changes need one: "
                    "move the folder to a local disk, or set ZENRAY_HOME to a folder on one"
                ) from exc
            if time.monotonic() > until:
                raise ConfigError(
                    f"{path} has been locked by another process for {wait_s:g} s; end that one (`fuser {path}` "
                    "names it), and try again"
                ) from exc
        time.sleep(0.01)


def write_private(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a file so that it is there as a whole or as it was before; folders are made for this user only."""
    path = path.resolve() if path.is_symlink() else path  # the link stays, what it names is replaced
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # else a crash of the machine may leave the new name on an empty file
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {exc.strerror or exc}; check its folder's permissions") from exc


def local_choices() -> tuple[Path, Choices] | None:
    """Return the marker folder of this repository with what is chosen there; None outside of one."""
    repository = find_repository()
    return None if repository is None else (repository / MARKER, read_choices(repository / MARKER))


def active_profile() -> str:
    """Return ZENRAY_PROFILE, else the repository's, else the user's profile, else ``default``."""
    local = local_choices()
    return (
        os.environ.get("ZENRAY_PROFILE")
        or (local[1].profile if local else "")
        or read_choices(user_home()).profile
        or DEFAULT_PROFILE
    )


def active_stack_name(profile: str | None = None) -> str:
    """Return ZENRAY_STACK, else what is chosen for the profile in the repository, else by the user, else ``local``.

    For a profile that is named, only what is chosen for it counts.
    """
    if profile is None and os.environ.get("ZENRAY_STACK"):
        return os.environ["ZENRAY_STACK"]
    profile = profile or active_profile()
    local = local_choices()
    chosen = local[1].stacks.get(profile) if local else None
    return chosen or read_choices(user_home()).stacks.get(profile) or "local"


# Scripts import ZenRay first, and then go to another folder: that must not move their state.
with suppress(ConfigError):  # said when it is used
    for _variable in ("ZENRAY_HOME", "ZENRAY_CACHE_DIR"):
        chosen_folder(_variable)
