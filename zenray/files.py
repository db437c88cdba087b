"""Inputs from outside: files and folders that a step reads, identified by what is in them.

Runs in: anywhere.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from blake3 import blake3

from zenray.errors import DefinitionError, StoreError
from zenray.hashing import digest_value
from zenray.masking import secrets_of, without

if TYPE_CHECKING:
    from zenray.store.remote import Outside

_BY = ("content", "stat")


@dataclass(frozen=True, slots=True)
class File:
    """A file outside ZenRay, given to a step as an argument; a change of it runs the step again.

    ``by="content"`` reads and hashes every byte at each run. ``by="stat"`` trusts size and modification time, or the
    ETag of an object store: it costs nothing, and misses a change that leaves both as they were. It is refused where
    a server tells neither.
    The file's name is part of its identity, the folder it lies in is not.
    """

    url: str
    by: str = "content"
    digest: str = ""
    signature: str = ""

    def __post_init__(self) -> None:
        if self.by not in _BY:
            raise DefinitionError(f"{self!r}: by is 'content' or 'stat'")

    def __repr__(self) -> str:
        return f"File({_shown_url(self.url)!r}, by={self.by!r})"

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rstrip("/").rpartition("/")[2]

    def open(self) -> IO[bytes]:
        """Open the file for reading bytes."""
        return _open(self.url)

    def read_bytes(self) -> bytes:
        """Return the whole content."""
        with self.open() as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole content as text."""
        return self.read_bytes().decode(encoding)

    @property
    def path(self) -> Path:
        """The file on this machine's disk; StoreError for one that lies elsewhere, which ``open`` reads."""
        path = _local(self.url)
        if path is None:
            raise StoreError(f"{self!r} is not on this machine's disk; read it with .open()")
        return path

    def identified(self) -> "File":
        """Return a copy that carries the digest of what is there now; StoreError where nothing is."""
        signature = _signature(self.url)
        if self.by == "content":
            with self.open() as file, _reading(self.url):
                digest = digest_value(("file", self.name, _digest(file)))
        elif _is_weak(signature):
            raise DefinitionError(
                f"{self!r}: its server tells neither a time nor an ETag, so that a change would be missed; "
                "use by='content'"
            )
        else:
            digest = digest_value(("stat", self.name, signature))
        return replace(self, url=_absolute(self.url), digest=digest, signature=signature)

    def is_unchanged(self) -> bool:
        """Say whether size and time, or ETag, still are what they were when the file was identified.

        Where its server tells none of them, the content is hashed again.
        """
        try:
            if _is_weak(self.signature):
                return self.identified().digest == self.digest
            return _signature(self.url) == self.signature
        except StoreError:
            return False


@dataclass(frozen=True, slots=True)
class Folder:
    """All files below a folder, or those whose relative path matches a pattern, as one input of a step."""

    url: str
    glob: str = "*"
    by: str = "content"
    files: tuple[File, ...] = ()

    def __repr__(self) -> str:
        return f"Folder({_shown_url(self.url)!r}, glob={self.glob!r}, by={self.by!r})"

    def identified(self) -> "Folder":
        """Return a copy with every file identified, in the order of their relative paths."""
        url = _absolute(self.url)
        found = tuple(
            File(f"{url}/{name}", self.by).identified() for name in sorted(_names(url)) if fnmatch(name, self.glob)
        )
        if not found:
            raise StoreError(f"no file below {_shown_url(self.url)!r} matches {self.glob!r}")
        return replace(self, url=url, files=found)

    @property
    def digest(self) -> str:
        """The digest of all relative paths and contents."""
        return digest_value(("folder", [(f.url.removeprefix(self.url), f.digest) for f in self.files]))

    def is_unchanged(self) -> bool:
        """Say whether the same files are there, unchanged."""
        names = {f"{self.url}/{n}" for n in _names(self.url) if fnmatch(n, self.glob)}
        return names == {f.url for f in self.files} and all(f.is_unchanged() for f in self.files)

    def __iter__(self) -> Iterator[File]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _local(url: str) -> Path | None:
    scheme = urlsplit(url).scheme
    if scheme in ("", "file") or len(scheme) == 1:
        return Path(url.removeprefix("file://")).expanduser()
    return None


def _absolute(url: str) -> str:
    path = _local(url)
    return url.rstrip("/") if path is None else str(path.absolute())


def _digest(file: IO[bytes]) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    while chunk := file.read(4 << 20):
        hasher.update(chunk)
    return hasher.hexdigest()


def _open(url: str) -> IO[bytes]:
    path = _local(url)
    with _reading(url):
        if path is not None:
            return path.open("rb")
        return _remote(url).open()


# What tells that a file has changed, as the file systems of fsspec call it.
_CHANGES = (
    "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "sha", "LastModified", "last_modified", "Last-Modified",
    "updated", "created", "mtime", "modify", "last_write_time", "modificationTime",
)  # fmt: skip


def _signature(url: str) -> str:
    path = _local(url)
    with _reading(url):
        if path is not None:
            info = path.stat()
            if stat.S_ISDIR(info.st_mode):
                raise StoreError(f"the input {url!r} is a folder; give it as zenray.Folder({url!r})")
            if not stat.S_ISREG(info.st_mode):
                raise StoreError(
                    f"the input {url!r} is no regular file (a pipe, socket or device), so that what is in it can be "
                    "read only once, if at all; write its content to a file and give that"
                )
            return f"{info.st_size} {info.st_mtime_ns}"
        facts = _remote(url).facts()
    return " ".join(f"{k}={facts[k]}" for k in ("size", *_CHANGES) if facts.get(k) is not None)


def _is_weak(signature: str) -> bool:
    return re.fullmatch("(size=[0-9]+)?", signature) is not None


def _names(url: str) -> Iterator[str]:
    path = _local(url)
    if path is None:
        with _reading(url):
            found = _remote(url).names()
        yield from found
        return
    for folder, _, files in os.walk(path):
        yield from ((Path(folder) / f).relative_to(path).as_posix() for f in files)


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Translate whatever the file system of a URL raises; each client library has exceptions of its own."""
    try:
        yield
    except StoreError:
        raise  # ours: of a local file
    except Exception as exc:
        cause = getattr(exc, "strerror", None) or f"{type(exc).__name__}: {exc}"
        advice = "check the URL and the credentials for it, and that the package that reads it is installed"
        text = f"the input {url!r} cannot be read: {cause}" + ("" if _local(url) is not None else f"; {advice}")
        raise StoreError(_masked(text, url)) from exc


def _shown_url(url: str) -> str:
    """Return a URL without what may be secret in it: user, password and query."""
    return _masked(url, url)


def _masked(text: str, url: str) -> str:
    if _local(url) is not None:
        return text
    login, query = re.match(r"[^/?#]*://([^/?#]*)@", url), url.partition("?")[2]
    # The query as a whole: which of its names sign an address, its server alone knows.
    return without(text, {*secrets_of(url), login[1] if login else "", query, query.partition("#")[0]})


def _remote(url: str) -> "Outside":
    from zenray.store.remote import Outside  # fsspec costs 0.15 s, which local files do not need

    return Outside(url)
