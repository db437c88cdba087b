"""Profiles: groupings of stacks with an active one each, and where a stack of a name is found.

Runs in: driver.

A stack is a file ``NAME.yaml``: in ``stacks/`` of the repository, or in the folder of a profile. The repository's come
first, then the active profile's, then the two that are built in; any other file is named with its folder. Every profile
remembers its own active stack, and a repository remembers both for itself, so that what is chosen there holds there
only. What is changed here is changed under the lock of the place that it belongs to, the repository's or the user's, so
that nobody's change is lost.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from zenray.errors import ConfigError, NotFoundError, suggest
from zenray.model import Json
from zenray.settings import (
    DEFAULT_PROFILE,
    MARKER,
    Choices,
    active_profile,
    active_stack_name,
    check_name,
    current_folder,
    find_repository,
    is_name,
    local_choices,
    locked,
    read_choices,
    user_home,
    write_choices,
    write_private,
)
from zenray.stack import BUILT_IN, Stack, StackFile, built_in, parse, read, text_of, with_components

Change = Callable[[Choices], Choices]
ComponentsChange = Callable[[Mapping[str, Json]], Mapping[str, Json]]
Check = Callable[[Stack], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A stack: built in (no path), of the repository or in a file that was named (no profile), or of a profile."""

    name: str
    profile: str = ""
    path: Path | None = None

    @property
    def origin(self) -> str:
        """Where it is from, for people."""
        if self.path is None:
            return "built in"
        return f"profile {self.profile}" if self.profile else "repository"


def profiles() -> tuple[str, ...]:
    """Return the names of all profiles; ``default`` is always there."""
    folder = _root()
    found = {p.name for p in folder.iterdir() if p.is_dir() and is_name(p.name)} if folder.is_dir() else set()
    return tuple(sorted(found | {DEFAULT_PROFILE}))


def check_profile(name: str) -> str:
    """Return the name of a profile that is there; NotFoundError lists those that are."""
    check_name("profile", name)
    if name not in profiles():
        raise NotFoundError(f"there is no profile {name!r}; {suggest(name, profiles())}")
    return name


def create_profile(name: str) -> Path:
    """Make an empty profile and return its folder; ConfigError where it is there already."""
    _check_new(name)
    folder = _root() / name
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as exc:
        raise ConfigError(f"cannot create the profile's folder {folder}: {exc.strerror or exc}") from exc
    return folder


def rename_profile(name: str, new_name: str) -> Path:
    """Give a profile with its stacks another name and return its folder; not ``default``.

    Where it is the active one, for the user or in this repository, it stays that.
    """
    check_profile(name)
    if name == DEFAULT_PROFILE:
        raise ConfigError(
            f"the profile {name!r} cannot be renamed: it is there where no other is chosen; `zenray profile create "
            f"{new_name}` and `zenray stack copy NAME NAME --from {name} --to {new_name}` make one of it"
        )

    def renamed(choices: Choices) -> Choices:
        profile = new_name if choices.profile == name else choices.profile
        return Choices(profile, {new_name if p == name else p: s for p, s in choices.stacks.items()})

    folder = _root() / new_name
    with locked(user_home()):
        _check_new(new_name)
        try:
            (_root() / name).rename(folder)
        except OSError as exc:
            raise ConfigError(f"cannot rename {_root() / name}: {exc.strerror or exc}") from exc
        _change(user_home(), renamed)
    local = local_choices()
    if local:
        with locked(local[0]):
            _change(local[0], renamed)
    return folder


def delete_profile(name: str) -> None:
    """Delete a profile with its stacks; not the active one, nor ``default``."""
    check_profile(name)
    if name == DEFAULT_PROFILE:
        raise ConfigError(f"the profile {DEFAULT_PROFILE!r} cannot be deleted: it is there where no other is chosen")
    with locked(user_home()):
        if name in (active_profile(), read_choices(user_home()).profile):
            raise ConfigError(
                f"profile {name!r} is the active one; choose another first, with `zenray profile set NAME`"
            )
        paths = _files(_root() / name)
        others = [path.name for path in paths if not _is_stack(path) or path.is_dir()]
        if others:
            raise ConfigError(f"cannot delete {_root() / name}: {', '.join(others)} in it is no stack; remove it first")
        try:
            for path in paths:
                path.unlink()
            (_root() / name).rmdir()
        except OSError as exc:
            raise ConfigError(f"cannot delete {_root() / name}: {exc.strerror or exc}") from exc
        _change(user_home(), lambda c: replace(c, stacks={p: s for p, s in c.stacks.items() if p != name}))


def _check_new(name: str) -> None:
    check_name("profile", name)
    if name in profiles():
        raise ConfigError(f"there is a profile {name!r} already; `zenray profile set {name}` makes it the active one")


def set_profile(name: str, *, is_global: bool = False) -> Path:
    """Make a profile the active one, in this repository where there is one; returns the folder that remembers it."""

    def chosen(choices: Choices) -> Choices:
        return replace(choices, profile=check_profile(name))

    return _choose(chosen, is_global=is_global)


def set_stack(name: str, *, profile: str | None = None, is_global: bool = False) -> Path:
    """Make a stack the active one of a profile (default: the active one), where ``set_profile`` would."""
    owner = profile or active_profile()

    if "/" in name:
        raise ConfigError(f"{name!r} is a file: `zenray stack import {name}` gives it a name that can be chosen")

    def chosen(choices: Choices) -> Choices:
        find(name, profile=owner if is_global else profile)  # a repository's is not there for the user elsewhere
        return replace(choices, stacks={**choices.stacks, owner: name})

    return _choose(chosen, is_global=is_global)


def entries(profile: str | None = None) -> tuple[Entry, ...]:
    """Return the stacks that can be named: all, or those of one profile."""
    found: dict[str, Entry] = {name: Entry(name) for name in BUILT_IN}
    for owner, folder in _folders(profile):
        found |= {path.stem: Entry(path.stem, owner, path) for path in _files(folder) if _is_stack(path)}
    return tuple(found.values())


def oddities(profile: str | None = None) -> tuple[str, ...]:
    """Say what lies among the stacks that ``entries`` gives, and looks like one, but cannot be named."""
    return tuple(
        f"{path} is not read: a stack's file is called NAME.yaml, with a NAME of letters, digits, '_', '-' and single "
        "'.'; rename it"
        for _, folder in _folders(profile)
        for path in _files(folder)
        if path.suffix.lower() in (".yaml", ".yml") and not path.name.startswith(".") and not _is_stack(path)
    )


def _folders(profile: str | None) -> list[tuple[str, Path]]:
    """Return where the stacks that can be named lie, and whose they are; the later ones hide the earlier."""
    owner = check_profile(profile or active_profile())
    repository = None if profile else _repository_folder()
    return [(owner, _root() / owner), *([("", repository)] if repository else [])]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise ConfigError(f"cannot read {folder}: {exc.strerror or exc}; check its permissions") from exc


def _is_stack(path: Path) -> bool:
    return path.suffix == ".yaml" and is_name(path.stem)


def find(name: str, *, profile: str | None = None) -> Entry:
    """Return the stack of a name, or in a file that is named with its folder; NotFoundError suggests near ones."""
    if profile is None and "/" in name:
        return _in_file(Path(name).expanduser().absolute())
    check_name("stack", name)
    known = {e.name: e for e in entries(profile)}
    if name in known:
        return known[name]
    where = f" in profile {profile!r}" if profile else ""
    odd = "".join(f"; {text}" for text in oddities(profile) if f"/{name}." in text)
    if _repository_folder() is None and (current_folder() / "stacks" / f"{name}.yaml").is_file():
        odd += f"; name its file, 'stacks/{name}.yaml', or make this folder a repository with `zenray init`"
    raise NotFoundError(f"there is no stack {name!r}{where}; {suggest(name, known)}{odd}")


def _in_file(path: Path) -> Entry:
    if not _is_stack(path):
        raise ConfigError(
            f"{path} is no stack's file: that is called NAME.yaml, with a NAME of letters, digits, '_', '-', single '.'"
        )
    if not path.is_file():
        raise NotFoundError(f"there is no stack's file {path}; `zenray stack list` shows the stacks that have names")
    return Entry(path.stem, path=path)


def load(entry: Entry) -> Stack:
    """Return a stack with its references resolved."""
    profile = entry.profile or active_profile()
    return built_in(entry.name, profile) if entry.path is None else file_of(entry).resolve(profile)


def file_of(entry: Entry) -> StackFile:
    """Read a stack's file."""
    assert entry.path is not None
    return read(entry.path, _base(entry.profile, entry.path))


def _base(owner: str, path: Path) -> Path | None:
    """Return where a stack's relative paths start: at the folder that has ``stacks``; a profile has no such place."""
    folder = path.absolute().parent
    return None if owner else folder.parent if folder.name == "stacks" else folder


def of_file(path: Path) -> StackFile:
    """Read the file that a stack was resolved from."""
    owner = path.parent.name if path.parent.parent == _root() else ""
    return file_of(Entry(path.stem, owner, path))


def called(path: Path) -> str:
    """Return by what ``find`` finds the stack of a file: its name where that leads there, else the path."""
    return path.stem if any(entry.path == path for entry in entries()) else str(path)


def option_for(stack: Stack) -> str:
    """Return `` --stack NAME``, by which a command finds what ran on the stack; nothing for the active one."""
    try:
        active = find(active_stack_name())
        if (active.name, str(active.path or "")) == (stack.name, stack.source):
            return ""
        name = called(Path(stack.source)) if stack.source else stack.name
    except (ConfigError, NotFoundError):  # what is active is broken or gone
        name = stack.source or stack.name
    return f" --stack {shlex.quote(name)}"


def active_stack(name: str | None = None) -> Stack:
    """Return the stack of that name, else the active one: see ``zenray.settings.active_stack_name``."""
    return load(find(name or active_stack_name()))


def usable_stacks() -> Iterator[Stack]:
    """Give the stacks of this repository and of every profile that can be read here, for what else they know."""
    for entry in {e.path: e for e in (*entries(), *(e for p in profiles() for e in entries(p)))}.values():
        with suppress(ConfigError):  # a file that is broken, or a secret that is not set here: it can help with nothing
            yield load(entry)


def describe(stack: Stack) -> str:
    """Say in one line which profile and stack a command uses."""
    origin = stack.source or "built in"
    return f"profile {stack.profile or active_profile()}, stack {stack.name} ({origin})"


def folder_of(profile: str | None) -> tuple[str, Path]:
    """Return where new stacks go, and whose: a profile that is named, else the repository, else the active one."""
    if profile is not None:
        return check_profile(profile), _root() / profile
    repository = _repository_folder()
    if repository is not None:
        return "", repository
    return active_profile(), _root() / check_profile(active_profile())


def save(
    name: str,
    components: Mapping[str, Json],
    *,
    profile: str | None,
    is_replacing: bool = False,
    check: Check = lambda stack: None,
) -> StackFile:
    """Write a new stack's file and return it; ConfigError where the name is taken or something in it is wrong.

    ``check`` may refuse the stack before anything is written.
    """
    text = with_components("", components, Path(f"{name}.yaml"))
    return _write(name, text, profile, is_replacing=is_replacing, check=check)


def import_file(
    source: Path,
    name: str,
    *,
    profile: str | None,
    is_replacing: bool = False,
    check: Check = lambda stack: None,
) -> StackFile:
    """Copy a stack's file in, as it is, under a name; its content is checked first."""
    text = text_of(source)
    parse(source, text)
    return _write(name, text, profile, is_replacing=is_replacing, check=check)


def update(entry: Entry, change: ComponentsChange, *, check: Check = lambda stack: None) -> StackFile:
    """Replace components of a stack's file: ``change`` gets those that are there and returns the new ones among them.

    What it gives as None goes back to its default.
    """
    path = _own_path(entry, "changed")
    with locked(_place(entry.profile)):
        before = file_of(entry)
        text = with_components(text_of(path), change(before.components), path)
        made = parse(path, text, before.root)
        check(made.resolve(entry.profile))
        write_private(path, text, mode=0o600 if made.literal_secrets() else path.stat().st_mode & 0o777)
    return made


def copy(entry: Entry, name: str, *, profile: str | None, check: Check = lambda stack: None) -> StackFile:
    """Copy a stack under another name, or into another profile."""
    if entry.path is None:
        found = built_in(entry.name)
        components = {
            "orchestrator": found.orchestrator,
            "artifact_store": found.artifact_store,
            "metadata_store": found.metadata_store,
        }
        return save(name, components, profile=profile, check=check)
    return import_file(entry.path, name, profile=profile, check=check)


def rename(entry: Entry, name: str) -> StackFile:
    """Give a stack another name; where it is the active one it stays that."""
    path = _own_path(entry, "renamed")

    def renamed(choices: Choices) -> Choices:
        owners = [entry.profile] if entry.profile else list(choices.stacks)
        return replace(
            choices, stacks={p: name if s == entry.name and p in owners else s for p, s in choices.stacks.items()}
        )

    with locked(_place(entry.profile)):
        _check_free(name, path.parent)
        try:
            path.rename(path.with_name(f"{name}.yaml"))
        except OSError as exc:
            raise ConfigError(f"cannot rename {path}: {exc.strerror or exc}") from exc
        if entry.profile:
            _change(user_home(), renamed)
    local = local_choices()
    if local and (not entry.profile or not (local[0].parent / "stacks" / path.name).exists()):  # else it means that one
        with locked(local[0]):
            _change(local[0], renamed)
    return file_of(replace(entry, name=name, path=path.with_name(f"{name}.yaml")))


def delete(entry: Entry) -> None:
    """Delete a stack's file; not of the active one. Artifacts and records stay where they are."""
    path = _own_path(entry, "deleted")
    profile = entry.profile or active_profile()
    with locked(_place(entry.profile)):
        chosen = {read_choices(place).stacks.get(profile) for place in _places()} | {active_stack_name()}
        if entry.name in chosen:
            raise ConfigError(
                f"stack {entry.name!r} is the active one of profile {profile!r}; choose another first, "
                "with `zenray stack set NAME`"
            )
        try:
            path.unlink()
        except OSError as exc:
            raise ConfigError(f"cannot delete {path}: {exc.strerror or exc}") from exc


def _own_path(entry: Entry, verb: str) -> Path:
    if entry.path is None:
        raise ConfigError(
            f"stack {entry.name!r} is built in and cannot be {verb}; `zenray stack copy {entry.name} NAME` makes one "
            "that can"
        )
    if not entry.profile and entry.path.parent != _repository_folder():
        raise ConfigError(f"{entry.path} is a file of your own, and is not {verb} here; do so by hand")
    return entry.path


def _write(name: str, text: str, profile: str | None, *, is_replacing: bool, check: Check) -> StackFile:
    owner, folder = folder_of(profile)
    with locked(_place(owner)):
        _check_free(name, folder, is_replacing=is_replacing)
        path = folder / f"{name}.yaml"
        made = parse(path, text, _base(owner, path))
        check(made.resolve(owner))
        write_private(path, text, mode=0o600 if owner or made.literal_secrets() else 0o644)
    return made


def _check_free(name: str, folder: Path, *, is_replacing: bool = False) -> None:
    check_name("stack", name)
    if name in BUILT_IN:
        raise ConfigError(f"the name {name!r} is that of a built-in stack; take another")
    if not is_replacing and (folder / f"{name}.yaml").exists():
        raise ConfigError(
            f"there is a stack {name!r} already ({folder / f'{name}.yaml'}); `zenray stack update {name}` changes it, "
            "and `register` and `import` replace it with --force"
        )


def _choose(change: Change, *, is_global: bool) -> Path:
    local = None if is_global else local_choices()
    folder = local[0] if local else user_home()
    with locked(folder):
        _change(folder, change)
    return folder


def _change(folder: Path, change: Change) -> None:
    """Change what is chosen in a place whose lock is held."""
    before = read_choices(folder)
    after = change(before)
    if after != before:
        write_choices(folder, after)


def _place(owner: str) -> Path:
    """Return the folder whose lock guards the stacks of a profile, or (empty) of the repository."""
    repository = None if owner else find_repository()
    return user_home() if repository is None else repository / MARKER


def _places() -> Sequence[Path]:
    local = local_choices()
    return [user_home(), *([local[0]] if local else [])]


def _repository_folder() -> Path | None:
    """Return where the repository's stacks lie: a ``stacks`` folder of anything else says nothing about ZenRay."""
    repository = find_repository()
    return repository and repository / "stacks"


def _root() -> Path:
    return user_home() / "profiles"
