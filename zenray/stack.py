"""A stack: which orchestrator, artifact store and metadata store a run uses.

Runs in: driver.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zenray.errors import ConfigError, NotFoundError, suggest
from zenray.settings import find_repository, home

BUILT_IN = ("local", "inline")
ORCHESTRATORS = ("local", "inline")
_KEYS = ("orchestrator", "artifact_store", "metadata_store")


@dataclass(frozen=True, slots=True)
class Stack:
    """Named components; options of the artifact store go to its fsspec file system."""

    name: str
    orchestrator: str
    artifact_store: str
    metadata_store: str
    artifact_store_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    experiment_tracker: Mapping[str, Any] | None = field(default=None, repr=False)


def active_stack(name: str | None = None) -> Stack:
    """Return the stack of that name, else of ZENRAY_STACK, else ``local``.

    ``local`` and ``inline`` are built in and share their data, in the folder of ``zenray.settings.home``: the first
    runs steps on a Ray cluster of this machine, the second one after another in this process. Any other name is a file
    ``stacks/NAME.yaml`` of the repository.
    """
    name = name or os.environ.get("ZENRAY_STACK") or "local"
    if name in BUILT_IN:
        root = home()
        return Stack(name, name, str(root / "store"), f"sqlite:///{root / 'ledger.db'}")
    folder = (find_repository() or Path.cwd()) / "stacks"
    path = folder / f"{name}.yaml"
    if "/" in name or ".." in name or not path.is_file():
        known = [*BUILT_IN, *(p.stem for p in folder.glob("*.yaml"))]
        raise NotFoundError(f"there is no stack {name!r} ({path} does not exist); {suggest(name, known)}")
    return _read(name, path)


def _read(name: str, path: Path) -> Stack:
    import yaml  # only a stack from a file needs it

    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read as YAML: {exc}") from exc
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a stack is a mapping with {', '.join(_KEYS)}")
    for key in raw:
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown component {key!r}; {suggest(str(key), _KEYS)}")
    default = active_stack("local")
    store, options = _component(path, "artifact_store", raw.get("artifact_store", default.artifact_store))
    orchestrator, _ = _component(path, "orchestrator", raw.get("orchestrator", "local"))
    metadata, _ = _component(path, "metadata_store", raw.get("metadata_store", default.metadata_store))
    if orchestrator not in ORCHESTRATORS:
        raise ConfigError(f"{path}: orchestrator must be one of {', '.join(ORCHESTRATORS)}, got {orchestrator!r}")
    return Stack(name, orchestrator, store, metadata, options)


def _component(path: Path, key: str, value: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and isinstance(value.get("url"), str):
        return value["url"], {k: v for k, v in value.items() if k != "url"}
    raise ConfigError(f"{path}: {key!r} must be a URL, or a mapping with 'url' and options, got {value!r}")
