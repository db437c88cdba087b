"""A stack: which orchestrator, artifact store, metadata store and other components a run uses, as a YAML file says.

Runs in: driver.

A file is read in two steps: ``StackFile`` is what it says, with references such as ``${env:NAME}`` as they stand, to be
shown and copied; ``StackFile.resolve`` puts in what they refer to and gives the ``Stack`` that a run uses.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zenray import masking
from zenray.errors import ConfigError, suggest
from zenray.model import Json
from zenray.settings import home
from zenray.waiting import retry_s_of

BUILT_IN = ("local", "inline")
THIS_CLUSTER = "this-cluster"  # the orchestrator of a stack that a job has brought into its Ray cluster
COMPONENTS = ("orchestrator", "artifact_store", "metadata_store", "model_deployer", "experiment_tracker")
MAX_BYTES, MAX_DEPTH, MAX_DIGITS = 1 << 16, 20, 100  # of a file, of lists and mappings in it, of a number
_TYPES = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_REFERENCES = re.compile(r"(\$\{[^}]*\})+")


@dataclass(frozen=True, slots=True)
class Stack:
    """Named components; nothing secret is in its repr.

    Options of the artifact store go to its fsspec file system, but for ``retry_s``, the only one of the metadata store:
    for how long one that is away is waited for.
    """

    name: str
    orchestrator: str = field(repr=False)
    artifact_store: str = field(repr=False)
    metadata_store: str = field(repr=False)
    artifact_store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    metadata_store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    orchestrator_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    model_deployer: Mapping[str, Any] | None = field(default=None, repr=False)
    experiment_tracker: Mapping[str, Any] | None = field(default=None, repr=False)
    profile: str = ""
    source: str = ""  # the file it was read from; empty for a built-in one


def built_in(name: str, profile: str = "") -> Stack:
    """Return ``local``, which runs steps on a Ray cluster of this machine, or ``inline``, in this process.

    Both keep their data in the folder of ``zenray.settings.home``.
    """
    root = home()
    return Stack(name, name, str(root / "store"), f"sqlite:///{root / 'ledger.db'}", profile=profile)


@dataclass(frozen=True, slots=True)
class StackFile:
    """A stack as its file says.

    ``root`` is where relative paths start, None where there are none; ``lines`` are where components and options stand.
    """

    path: Path
    components: Mapping[str, Json] = field(repr=False)
    root: Path | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    is_shown: bool = False  # only to be looked at: references are not followed

    @property
    def name(self) -> str:
        """The stack's name: that of the file."""
        return self.path.stem

    def resolve(self, profile: str = "") -> Stack:
        """Return the stack with its references replaced; ConfigError names the file and line of what is wrong."""
        default = built_in("local")
        orchestrator, orchestrator_options = self.orchestrator()
        store, store_options = self._component("artifact_store", default.artifact_store)
        metadata, metadata_options = self._component("metadata_store", default.metadata_store)
        for name in metadata_options.keys() - {"retry_s"}:
            raise self.error(
                f"'metadata_store' has no option {name!r}, only 'retry_s': put it into the URL, as in "
                "'postgresql+psycopg://user:${env:PASSWORD}@host/database'",
                f"metadata_store.{name}",
            )
        return Stack(
            name=self.name,
            orchestrator=orchestrator,
            artifact_store=self._located("artifact_store", store),
            metadata_store=self._located("metadata_store", metadata),
            artifact_store_options=self._patient("artifact_store", store_options),
            metadata_store_options=self._patient("metadata_store", metadata_options),
            orchestrator_options=orchestrator_options,
            model_deployer=self._deployer(),
            experiment_tracker=self._tracker(),
            profile=profile,
            source=str(self.path),
        )

    def orchestrator(self) -> tuple[str, Mapping[str, Any]]:
        """Return the orchestrator and its options with references replaced, whatever the other components refer to."""
        value, options = self._component("orchestrator", "local")
        return self._checked_orchestrator(value), options

    def as_written(self) -> Stack:
        """Return the stack with references as they stand; ConfigError for a component of a wrong form."""
        return replace(self, is_shown=True).resolve()

    def masked(self) -> dict[str, Json]:
        """Return the components for people: literal secrets as ``***``, references as they stand."""
        return dict(_without_secrets(self.components, lambda path: masking.MASK))

    def literal_secrets(self) -> tuple[str, ...]:
        """Return where secrets are written out, such as ``artifact_store.secret``."""
        found: list[str] = []

        def note(path: masking.Path) -> str:
            found.append(".".join(path))
            return ""

        _without_secrets(self.components, note)
        return tuple(dict.fromkeys(found))

    def error(self, text: str, place: str) -> ConfigError:
        """Return an error that points at a component or option of the file."""
        line = self.lines.get(place) or self.lines.get(place.partition(".")[0])
        return ConfigError(f"{self.path}{f':{line}' if line else ''}: {text}")

    def _component(self, name: str, default: str) -> tuple[str, Mapping[str, Any]]:
        raw = self._resolved(name, self.components.get(name))
        if raw is None:
            return default, {}
        if isinstance(raw, Mapping):
            url, options = raw.get("url"), {k: v for k, v in raw.items() if k != "url"}
        else:
            url, options = raw, {}
        if not isinstance(url, str) or not url:
            raise self.error(
                f"{name!r} must be a URL, or a mapping with 'url' and options, got {self._written(name)!r}", name
            )
        return url, options

    def _patient(self, name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return options with ``retry_s`` as a number."""
        if "retry_s" not in options or self.is_shown:
            return options
        try:
            return {**options, "retry_s": retry_s_of(options["retry_s"], repr(name))}
        except ConfigError as exc:
            raise self.error(str(exc), f"{name}.retry_s") from None

    def _checked_orchestrator(self, value: str) -> str:
        if value in (*BUILT_IN, THIS_CLUSTER) or re.match(r"[A-Za-z][\w+.-]*://", value) or self._is_open(value):
            return value
        raise self.error(
            "'orchestrator' must be 'local', 'inline', or the URL of a Ray cluster, such as 'http://head:8265', or of "
            f"what an installed package provides, got {self._written('orchestrator')!r}; {suggest(value, BUILT_IN)}",
            "orchestrator",
        )

    def _located(self, name: str, value: str) -> str:
        """Return a URL or an absolute path: a relative one starts at the repository, and a profile has none."""
        scheme, colon, rest = value.partition("://")
        if not colon:
            if value.startswith(("/", "~", "./", "../", ".zenray/")) and name == "artifact_store":
                return self._absolute(name, value)
            if self._is_open(value):
                return value
            example = "'s3://bucket/prefix'" if name == "artifact_store" else "'sqlite:////path/ledger.db'"
            raise self.error(f"{name!r} must be a URL such as {example}, got {self._written(name)!r}", name)
        if scheme.startswith("sqlite") and rest.startswith("/") and not rest.startswith("//") and rest != "/":
            return f"{scheme}:///{self._absolute(name, rest[1:])}"
        return value

    def _absolute(self, name: str, value: str) -> str:
        path = Path(value).expanduser()
        if path.is_absolute():
            return str(path)
        if self.root is None and self._is_open(value):
            return value
        if self.root is None:
            raise self.error(f"{name!r} must be absolute in a profile, got {self._written(name)!r}", name)
        return str(self.root / path)

    def _is_open(self, value: str) -> bool:
        """Say whether a text that is only shown has a reference, and so any form once that is replaced."""
        return self.is_shown and _REFERENCE.search(value) is not None

    def _written(self, name: str) -> Json:
        """Return a component for a message, as it stands in the file."""
        return self.masked().get(name)

    def _tracker(self) -> Mapping[str, Any] | None:
        raw = self._resolved("experiment_tracker", self.components.get("experiment_tracker"))
        if raw is None:
            return None
        options = {"flavor": raw} if isinstance(raw, str) else raw
        if not isinstance(options, Mapping) or not isinstance(options.get("flavor"), str):
            raise self.error(
                "'experiment_tracker' must be a mapping with 'flavor', as in {flavor: mlflow, tracking_uri: http://...}",
                "experiment_tracker",
            )
        return dict(options)

    def _deployer(self) -> Mapping[str, Any] | None:
        raw = self._resolved("model_deployer", self.components.get("model_deployer"))
        if raw is None:
            return None
        port = raw.get("port") if isinstance(raw, Mapping) else None
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise self.error("'model_deployer' must be a mapping with 'port', as in {port: 8000}", "model_deployer")
        assert isinstance(raw, Mapping)
        for key in raw:
            if key != "port":
                raise self.error(
                    f"'model_deployer' has no option {key!r}; {suggest(key, ['port'])}", f"model_deployer.{key}"
                )
        return dict(raw)

    def _resolved(self, place: str, value: Json) -> Json:
        if isinstance(value, str) and not self.is_shown:
            if "${" in _REFERENCE.sub("", value):
                raise self.error(f"{place!r} has a reference without its end; write ${{env:NAME}}", place)
            return _REFERENCE.sub(lambda found: self._referred(place, value, found), value)
        if isinstance(value, Mapping):
            return {k: self._resolved(f"{place}.{k}", v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._resolved(place, v) for v in value]
        return value

    def _referred(self, place: str, text: str, found: re.Match[str]) -> str:
        kind, colon, name = found[1].partition(":")
        if kind == "env" and colon:
            value = os.environ.get(name)
            if value is None:
                advice = f"export {name}=..."
                if self.components.get("orchestrator") == THIS_CLUSTER:
                    advice = (
                        f"set it on the cluster, or name it in the orchestrator's 'env: [{name}]', with which "
                        "everybody who sees the cluster's jobs sees its value"
                    )
                raise self.error(f"{place!r} refers to the variable {name!r}, which is not set: {advice}", place)
        elif kind == "file" and colon:
            try:
                value = text_of(Path(name).expanduser(), kind="a secret's file is one of text").rstrip("\n")
            except ConfigError as exc:
                raise self.error(f"{place!r} refers to a file: {exc}", place) from exc
        else:
            raise self.error(
                f"{place!r} has a reference {found[0]!r} of no known kind; use ${{env:NAME}} or ${{file:/path}}", place
            )
        # A password within a URL may hold any character; a reference that stands for a whole value is taken as it is.
        before, after = text[: found.start()], text[found.end() :]
        is_in_url = "://" in before and ("?" in before or "@" in after.partition("/")[0])
        return quote(value, safe="") if is_in_url else value


def read(path: Path, root: Path | None = None) -> StackFile:
    """Read a stack's file; ConfigError with file and line for what is no YAML, an unknown component or a wrong form."""
    return parse(path, text_of(path), root)


def parse(path: Path, text: str, root: Path | None = None) -> StackFile:
    """Read the text of a stack's file; see ``read``."""
    import yaml  # only a stack from a file needs it

    try:
        _check_shape(text, path)
        loader = yaml.SafeLoader(text)
        node: Any = loader.get_single_node()
        lines = dict(_lines(node, "", path)) if isinstance(node, yaml.MappingNode) else {}
        raw = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: cannot be read as YAML: {getattr(exc, 'problem', None) or exc}") from exc
    if raw is None:
        raw = {}
    elif not isinstance(raw, dict):
        raise ConfigError(f"{path}: a stack is a mapping with {', '.join(COMPONENTS)}")
    found = StackFile(path, raw, root, lines)
    for key in raw:
        if key not in COMPONENTS:
            raise found.error(f"unknown component {key!r}; {suggest(str(key), COMPONENTS)}", str(key))
    return found


def collection(text: str) -> Json:
    """Return the list or mapping that a text is in YAML when it begins like one; any other text as it stands."""
    import yaml

    if not text.startswith(("[", "{")):
        return text
    try:
        _check_shape(text, Path("option"))
        found: Json = yaml.safe_load(text)
    except (yaml.YAMLError, ConfigError, ValueError, RecursionError):
        return text
    return found


def _check_shape(text: str, path: Path) -> None:
    """Refuse aliases, and lists within lists without end, before anything is built: a few lines can fill the memory."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{path}:{line}: a stack has no aliases; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path}:{line}: lists and mappings lie more than {MAX_DEPTH} deep; make it flatter")


def exported(path: Path | None, name: str) -> tuple[str, tuple[str, ...]]:
    """Return a stack's text without secrets, and the variables that stand for them."""
    variables: list[str] = []

    def variable(place: str) -> str:
        made = re.sub(r"\W", "_", f"{name}_{place}").upper()
        made = f"STACK_{made}" if made[0].isdigit() else made
        count = sum(v == made or v.startswith(f"{made}_AGAIN") for v in variables)
        variables.append(f"{made}_AGAIN{count}" if count else made)
        return variables[-1]

    if path is None:
        return _dumped({"orchestrator": name}), ()
    found = read(path)
    if not found.literal_secrets():
        return text_of(path), ()
    text = text_of(path)
    changed = _without_secrets(found.components, lambda path: "${env:" + variable("_".join(path)) + "}")
    changes = {k: v for k, v in changed.items() if v != found.components[k]}
    return with_components(text, changes, path), tuple(variables)


def with_components(text: str, changes: Mapping[str, Json], path: Path) -> str:
    """Return a stack's text with some components replaced, added or (None) removed; the rest, comments too, stays."""
    import yaml

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    spans = {key.value: (key.start_mark.index, _end(value)) for key, value in node.value} if node else {}
    lines = {name: "" if value is None else _dumped({name: value}) for name, value in changes.items()}
    wanted = {**(yaml.safe_load(text) or {}), **changes}
    for name in sorted(spans.keys() & changes.keys(), key=lambda n: -spans[n][0]):
        start, end = spans[name]
        end -= text[start:end].endswith("\n")  # a block of text ends with its line
        text = text[:start] + lines.pop(name).rstrip("\n") + text[end:]
    text = text + ("\n" if text and not text.endswith("\n") else "") + "".join(lines.values())
    try:
        is_right = parse(path, text).components == {k: v for k, v in wanted.items() if v is not None}
    except ConfigError:
        is_right = False
    if not is_right:
        parse(
            path, _dumped({k: v for k, v in wanted.items() if v is not None})
        )  # what is wrong may be the change itself
        raise ConfigError(f"{path} is written in a way that cannot be changed in place; edit it by hand")
    return text


def _end(node: Any) -> int:
    """Return where a YAML value ends: a block's own end mark lies behind the comments that follow it."""
    while isinstance(node.value, list) and node.value and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)


def _dumped(value: Json) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False))


def _without_secrets(components: Mapping[str, Json], instead: Callable[[masking.Path], str]) -> Mapping[str, Json]:
    """Return components with ``instead(path)`` for every secret that is written out; a reference stays."""

    def changed(path: masking.Path, secret: Json) -> Json:
        return secret if isinstance(secret, str) and _REFERENCES.fullmatch(secret) else instead(path)

    return masking.replaced(components, changed)  # type: ignore[no-any-return]


def _lines(node: Any, prefix: str, path: Path) -> Iterator[tuple[str, int]]:
    """Give the line of every key of a YAML node; refuse a key that stands twice, and what JSON does not have."""
    import yaml

    is_long = node.tag.endswith(":int") and len(node.value) > MAX_DIGITS
    if node.tag not in _TYPES or is_long:
        kind = f"number of {len(node.value)} digits" if is_long else node.tag.removeprefix("tag:yaml.org,2002:")
        raise ConfigError(
            f"{path}:{node.start_mark.line + 1}: {prefix.rstrip('.')!r} is read by YAML as a {kind!r}, and a stack has "
            "texts, plain numbers, lists and mappings; put it in quotes"
        )
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _lines(item, prefix, path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if prefix and key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{path}:{line}: {prefix.rstrip('.')!r} has an option whose name is not text; quote it")
        if str(key.value) in seen:
            raise ConfigError(f"{path}:{line}: {key.value!r} stands there twice; keep one")
        seen.add(str(key.value))
        yield f"{prefix}{key.value}", line
        yield from _lines(value, f"{prefix}{key.value}.", path)


def text_of(path: Path, *, kind: str = "a stack is one, of YAML; remove it, or give it another name") -> str:
    """Read a small file of text; ConfigError for what is no file, or is too large to be one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            raise ConfigError(f"{path} is no file: {kind}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(
                f"{path} has more than {MAX_BYTES:,} bytes, and should be a page of text: is it the right one?"
            )
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
