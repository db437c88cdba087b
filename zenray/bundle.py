"""What of a repository goes to a cluster: its files but for those left out, as archives that are equal for equal files.

Runs in: driver.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING

from zenray.errors import ConfigError
from zenray.settings import IGNORE_FILE, MARKER

LIMIT_BYTES = 100 << 20  # of a request to Ray's dashboard: DASHBOARD_CLIENT_MAX_SIZE in ray/_private/ray_constants.py
_MANY_BYTES = 1 << 30  # of files before they are compressed: not worth the try
_GIT = ".gitignore"
_IGNORE_FILES = (_GIT, IGNORE_FILE)  # the second has the last word
_LEFT_OUT = frozenset(
    {".git", ".hg", ".svn", MARKER, "__pycache__", "node_modules", ".ipynb_checkpoints", ".tox", ".nox"}
    | {".ssh", ".aws", ".netrc", ".pypirc"}
)
_SECRET = ".env"  # .envrc and .env.production too
_MARKS = ("pyvenv.cfg", "CACHEDIR.TAG")  # of a virtual environment, and of a cache: pytest, mypy and ruff leave one
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that an archive can hold
_SHOWN = 5

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

Specs = Sequence[tuple[str, Path, "GitIgnoreSpec"]]  # of which kind of file, and where it lies


def repository_files(root: Path) -> dict[str, Path]:
    """Return the files below a folder that go along, by their names there, sorted.

    ``.gitignore`` and ``.zenrayignore``, in any folder, leave files out, and the second has the last word: ``!data/``
    there takes along what git ignores. In a part of a git repository the ``.gitignore`` above it count too, unless they
    leave out the whole part. Never do version control, virtual environments, caches, and files such as ``.env`` and
    ``.ssh`` go along.
    """
    return dict(sorted(_below(root, root, _outer_specs(root), ())))


def _below(folder: Path, root: Path, specs: Specs, outer: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(folder.iterdir())
        specs = [*specs, *_specs_of(folder, _IGNORE_FILES)]
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{folder} cannot be read: {getattr(exc, 'strerror', None) or exc}; the folder's files go to the cluster: "
            f"name it in {root / IGNORE_FILE}, or correct its permissions"
        ) from exc
    outer = [*outer, folder.resolve()]
    for path in entries:
        is_folder = path.is_dir()
        if path.name in _LEFT_OUT or path.name.startswith(_SECRET) or _is_ignored(path, specs, is_folder=is_folder):
            continue
        if not is_folder:
            if path.is_file():  # no socket, pipe or broken link
                yield path.relative_to(root).as_posix(), path
        elif path.resolve() not in outer and not any((path / mark).is_file() for mark in _MARKS):
            yield from _below(path, root, specs, outer)


def _outer_specs(root: Path) -> Specs:
    """Return what the git repository around a folder says of it; nothing where git ignores the whole folder."""
    root = root.absolute()
    around = [root, *root.parents]
    top = next((n for n, folder in enumerate(around) if (folder / ".git").exists()), 0)
    try:
        specs = [s for folder in reversed(around[1 : top + 1]) for s in _specs_of(folder, [_GIT])]
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"a {_GIT} above {root} cannot be read: {getattr(exc, 'strerror', None) or exc}; it says which files stay "
            f"here: correct it, or its permissions"
        ) from exc
    return () if _is_ignored(root, specs, is_folder=True) else specs


def _specs_of(folder: Path, names: Sequence[str]) -> "Iterator[tuple[str, Path, GitIgnoreSpec]]":
    from pathspec import GitIgnoreSpec

    for name in names:
        if (folder / name).is_file():
            yield name, folder, GitIgnoreSpec.from_lines((folder / name).read_text(encoding="utf-8").splitlines())


def _is_ignored(path: Path, specs: Specs, *, is_folder: bool) -> bool:
    is_ignored = False
    for _, folder, spec in sorted(specs, key=lambda s: _IGNORE_FILES.index(s[0])):  # stable: the inner come last
        found = spec.check_file(path.relative_to(folder).as_posix() + ("/" if is_folder else "")).include
        is_ignored = is_ignored if found is None else found
    return is_ignored


def write_archive(target: IO[bytes], files: Mapping[str, Path], texts: Mapping[str, str], *, root: Path) -> None:
    """Write files and texts as a zip whose bytes depend on names, contents and permissions only.

    Raises ConfigError, with the largest files, where that is more than a cluster takes.
    """
    import zipfile

    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > _MANY_BYTES:
        raise _too_large(sizes, sum(sizes.values()), root)
    packed: dict[str, int] = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in sorted({*files, *texts}):
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            is_run = name in files and files[name].stat().st_mode & 0o100
            info.external_attr = (0o755 if is_run else 0o644) << 16
            archive.writestr(info, texts[name] if name in texts else _content(files[name], root))
            packed[name] = info.compress_size
            if sum(packed.values()) > LIMIT_BYTES:
                raise _too_large({n: sizes.get(n, 0) for n in packed}, sum(sizes.values()), root)
    if target.tell() > LIMIT_BYTES:
        raise _too_large(packed, target.tell(), root)


def _content(path: Path, root: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(
            f"{path} cannot be read: {exc.strerror or exc}; it would go to the cluster: name it in "
            f"{root / IGNORE_FILE}, or correct its permissions"
        ) from exc


def _too_large(sizes: Mapping[str, int], total: int, root: Path) -> ConfigError:
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_SHOWN]
    shown = ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in largest)
    return ConfigError(
        f"the files of {root} come to {total / 2**20:,.0f} MiB, and a cluster takes {LIMIT_BYTES >> 20} MiB of them, "
        f"compressed; the largest are {shown}: name what the pipeline does not need in {root / IGNORE_FILE}, and read "
        "data from the artifact store or another object store"
    )


def own_files() -> dict[str, Path]:
    """Return ZenRay's own files by their names in a folder of ``sys.path``: both packages, and their metadata."""
    package = Path(__file__).parent
    materializers = _materializers(package)
    found = {f"{p.name}/{name}": path for p in (package, materializers) for name, path in _below(p, p, (), ())}
    distribution = metadata.distribution("zenray")
    folder = f"zenray-{distribution.version}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        found[f"{folder}/{name}"] = Path(str(distribution.locate_file(f"{folder}/{name}")))
    return found


def _materializers(package: Path) -> Path:
    beside = package.parent / "zenray_materializers"
    return beside if beside.is_dir() else package.parent / "materializers" / "zenray_materializers"  # a checkout
