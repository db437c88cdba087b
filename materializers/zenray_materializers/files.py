"""Files and directories that a step produces: the ``pathlib.Path`` it returns stands for the content.

Runs in: anywhere.

Kept are contents, names, executable bits, empty directories, and symbolic links that point inside the directory (as
relative links). Refused are links that point outside or nowhere, sockets and devices. Not kept are times, owners and
other permissions. A loaded path is a private copy in a temporary directory, removed when the process ends.
"""

import atexit
import fcntl
import functools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from zenray.errors import MaterializerError
from zenray.materializer import ArtifactReader, ArtifactWriter, Materializer
from zenray.model import Json

_DATA = "data"
_MAX_LISTED = 20
_PREFIX = "zenray-files-"
_NEW_S = 60


class PathMaterializer(Materializer):
    """Serves paths of the local disk, by content."""

    types = ("pathlib.Path",)

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Copy the file, or everything in the directory, in order of names."""
        root = _existing(value)
        name = _safe_name(Path(os.path.abspath(value)).name)  # noqa: PTH100 (resolve() would follow a link's name)
        if root.is_file():
            writer.copy(root, f"{_DATA}/{name}")
            return {"kind": "file", "name": name, "executable": _is_executable(root)}
        directories, executables = [], []
        links = {}
        for relative, path in _walk(root):
            if path.is_symlink():
                links[relative] = _inner_target(root, path)
            elif path.is_dir():
                directories.append(relative)
            else:
                writer.copy(path, f"{_DATA}/{relative}")
                if _is_executable(path):
                    executables.append(relative)
        kept: dict[str, Json] = {"kind": "directory", "name": name}
        return kept | {"directories": directories, "executables": executables, "links": links}

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Json]) -> Path:
        """Copy everything to a temporary directory and return the path there, with the name it had."""
        root = Path(tempfile.mkdtemp(dir=_temporary_root())).resolve() / _safe_name(metadata["name"])
        if metadata["kind"] == "file":
            (name,) = reader.names
            reader.extract(name, root)
            if metadata["executable"]:
                _make_executable(root)
            return root
        root.mkdir()
        for relative in metadata["directories"]:
            (root / _safe_relative(relative)).mkdir(parents=True, exist_ok=True)
        for name in reader.names:
            target = root / _safe_relative(name.removeprefix(f"{_DATA}/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            reader.extract(name, target)
        for relative in metadata["executables"]:
            _make_executable(root / _safe_relative(relative))
        for relative, pointed in metadata["links"].items():  # last: nothing is ever written through a link
            _link(root, root / _safe_relative(relative), pointed)
        return root

    def preview(self, value: Any) -> Mapping[str, Json]:
        """Return the size, and of a directory the first files with theirs."""
        root = _existing(value)
        if root.is_file():
            return {"name": root.name, "size_bytes": root.stat().st_size}
        sizes = {relative: path.stat().st_size for relative, path in _walk(root) if path.is_file()}
        listed = {name[-200:]: sizes[name] for name in list(sizes)[:_MAX_LISTED]}
        return {"name": root.name, "size_bytes": sum(sizes.values()), "file_count": len(sizes), "files": listed}

    def may_hold_instances(self, value: Any, metadata: Mapping[str, Json]) -> bool:
        """Say so never."""
        return False


class OutsideMaterializer(Materializer):
    """Refuses files and folders from outside, and says what to do: stored, they would be names without content."""

    types = ("zenray.files.File", "zenray.files.Folder")

    def save(self, value: Any, writer: ArtifactWriter) -> Mapping[str, Json] | None:
        """Raise MaterializerError."""
        raise MaterializerError(
            f"{value!r} stands for data outside of the store; give it to a step as an argument of its own, or in a "
            "list, tuple or dict, and return a pathlib.Path where its content shall be stored"
        )


def _existing(value: Path) -> Path:
    try:
        path = value.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise MaterializerError(
            f"the path {str(value)!r} is not there (working directory {str(Path.cwd())!r}); a Path that a step returns "
            "stands for its content: write the file first, or return str(path) for the mere name"
        ) from exc
    if not (path.is_file() or path.is_dir()):
        raise MaterializerError(f"{str(value)!r} is neither a file nor a directory; only these can be stored")
    return path


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield everything below a directory, sorted, links not followed; all but files, directories and links refused."""
    stack = [root]
    while stack:
        path = stack.pop()
        if path != root:
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise MaterializerError(f"{str(path)!r} is neither a file nor a directory; remove it from the output")
            relative = path.relative_to(root).as_posix()
            _safe_relative(relative)
            yield relative, path
        if path.is_dir() and not path.is_symlink():
            stack += sorted(path.iterdir(), reverse=True)


def _inner_target(root: Path, link: Path) -> str:
    """Return where a link points, relative to it; an error where that is outside of the root or not there."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise MaterializerError(
            f"the link {str(link)!r} points to nothing: {str(link.readlink())!r}; remove it"
        ) from exc
    if not target.is_relative_to(root):
        raise MaterializerError(
            f"the link {str(link)!r} points outside of {str(root)!r}, to {str(target)!r}; copy the file there instead"
        )
    return os.path.relpath(target, link.parent.resolve())


def _link(root: Path, link: Path, pointed: str) -> None:
    target = Path(os.path.normpath(link.parent / pointed))
    if Path(pointed).is_absolute() or not target.is_relative_to(root) or link.parent.resolve() != link.parent:
        raise MaterializerError(f"the stored link {str(link)!r} points outside of its directory: {pointed!r}; refused")
    link.symlink_to(pointed)


def _safe_name(name: str) -> str:
    if not name or "/" in name or name in (".", ".."):
        raise MaterializerError(f"{name!r} is not the name of a file; return a path that ends in a name")
    _safe_relative(name)
    return name


def _safe_relative(name: str) -> str:
    """Return a name that stays below the directory it is put in; an error for any other."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name or "\\" in name:
        raise MaterializerError(f"the file name {name!r} is not safe: it must be relative, without '..' and '\\'")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise MaterializerError(f"the file name {name!r} is not valid UTF-8; rename the file") from None
    return name


def _is_executable(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXUSR)


def _make_executable(path: Path) -> None:
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


@functools.cache
def _temporary_root() -> Path:
    """Return this process's directory for loaded files; it goes with the process, if need be by the next one's hand."""
    for stale in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_if_left(stale)
    root = Path(tempfile.mkdtemp(prefix=_PREFIX))
    _lock(root)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child must not remove what its parent still reads
            shutil.rmtree(root, ignore_errors=True)

    atexit.register(remove)
    return root


def _lock(root: Path) -> int:
    """Lock a directory for as long as this process lives, and return the descriptor; OSError where another has it."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_if_left(root: Path) -> None:
    """Remove the directory of a process that was killed: nobody holds its lock, and it isn't just being made."""
    try:
        if time.time() - root.stat().st_mtime < _NEW_S:
            return
        descriptor = _lock(root)
    except OSError:  # another user's, in use, or gone already
        return
    shutil.rmtree(root, ignore_errors=True)
    os.close(descriptor)
