"""Optional parts: what each is for, which packages it needs, whether they are there, and what installs them.

Runs in: driver.

An integration is an extra of the distribution ``zenray``; its requirements are read from the installed metadata, so
that pip, uv and this module go by the same lines.
"""

import importlib.util
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from zenray.errors import ConfigError, NotFoundError, suggest

if TYPE_CHECKING:  # 20 ms: only who asks about packages pays for it
    from packaging.requirements import Requirement

PURPOSES = {
    "s3": "artifact stores at s3://, also on servers that speak S3",
    "gcs": "artifact stores at gs://",
    "azure": "artifact stores at az:// and abfs://",
    "postgres": "metadata stores on PostgreSQL",
    "mysql": "metadata stores on MySQL and MariaDB",
    "sklearn": "scikit-learn's models as artifacts",
    "torch": "PyTorch's tensors and modules as artifacts",
    "polars": "Polars' frames as artifacts",
    "pandas": "pandas' frames as artifacts",
    "xgboost": "XGBoost in steps, on CPU and GPU",
    "lightgbm": "LightGBM in steps",
    "huggingface": "Hugging Face's transformers and datasets in steps",
    "mlflow": "experiment tracker: an MLflow server",
    "wandb": "experiment tracker: Weights & Biases",
    "kubernetes": "Kubernetes' client, for steps and components that talk to a cluster",
}
_SCHEMES = {
    "s3": "s3", "s3a": "s3",
    "gs": "gcs", "gcs": "gcs",
    "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure",
    "postgresql": "postgres", "postgresql+psycopg": "postgres",
    "mysql": "mysql", "mysql+pymysql": "mysql", "mariadb": "mysql", "mariadb+pymysql": "mysql",
    "mlflow": "mlflow", "wandb": "wandb",
}  # fmt: skip
_MODULES = {
    "s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure",
    "psycopg": "postgres", "pymysql": "mysql",
    "sklearn": "sklearn", "skops": "sklearn", "torch": "torch", "safetensors": "torch",
    "polars": "polars", "pandas": "pandas", "xgboost": "xgboost", "lightgbm": "lightgbm",
    "transformers": "huggingface", "datasets": "huggingface",
    "mlflow": "mlflow", "wandb": "wandb", "kubernetes": "kubernetes",
}  # fmt: skip
# Distributions that bring the same modules: installing both would overwrite one with the other.
_STAND_INS = {"xgboost": "xgboost-cpu", "mlflow-skinny": "mlflow", "psycopg-binary": "psycopg-c"}


@dataclass(frozen=True, slots=True)
class Package:
    """One requirement of an integration and the version that is installed, None where there is none."""

    requirement: str
    version: str | None
    is_met: bool


@dataclass(frozen=True, slots=True)
class Integration:
    """An optional part of ZenRay."""

    name: str
    purpose: str
    is_installed: bool
    packages: tuple[Package, ...]


def for_url(url: str) -> str | None:
    """Return the integration that a component's URL needs, told by its scheme; None where it needs none of ours.

    A database URL that names a driver of its own (``postgresql+asyncpg``) needs none.
    """
    return _SCHEMES.get(url.partition("://")[0].lower() if "://" in url else "")


def for_module(module: str) -> str | None:
    """Return the integration that brings a top-level module, where it is one that steps import."""
    return _MODULES.get(module.partition(".")[0])


def find(name: str) -> Integration:
    """Return an integration by name; NotFoundError suggests near ones."""
    packages = tuple(_package(r) for r in _requirements(name))
    return Integration(name, PURPOSES[name], all(p.is_met for p in packages), packages)


def requirements(names: Iterable[str]) -> list[str]:
    """Return what pip is to be given for these integrations, without repetition."""
    return list(dict.fromkeys(_line(r) for name in names for r in _requirements(name)))


def missing(names: Iterable[str]) -> list[str]:
    """Return those of the integrations that are not, or not fully, installed here."""
    return [name for name in dict.fromkeys(names) if not find(name).is_installed]


def require(name: str, *, for_what: str) -> None:
    """Raise ConfigError, with the command that helps, where an integration is not installed."""
    found = find(name)
    if not found.is_installed:
        lacks = ", ".join(
            p.requirement + (f" (found {p.version})" if p.version else "") for p in found.packages if not p.is_met
        )
        raise ConfigError(
            f"{for_what} needs the integration {name!r}, which is not installed: it lacks {lacks}; "
            f"run `zenray integration install {name}`"
        )


def installer() -> list[str]:
    """Return the command that changes this environment's packages, up to ``install``: uv where it made it, else pip."""
    uv = shutil.which("uv")
    has_pip = importlib.util.find_spec("pip") is not None
    if uv and (not has_pip or _is_made_by_uv()):
        return [uv, "pip"]
    if has_pip:
        return [sys.executable, "-m", "pip"]
    raise ConfigError(
        f"the environment {sys.prefix!r} has no pip, and there is no uv on the path; "
        "install one of them, or give the lines of `zenray integration requirements` to the tool you use"
    )


def install_command(names: Iterable[str]) -> list[str]:
    """Return the command that installs integrations."""
    command = installer()
    target = [] if _is_pip(command) else ["--python", sys.executable]
    return [*command, "install", *target, *requirements(names)]


def _is_pip(command: Sequence[str]) -> bool:
    return command[0] == sys.executable  # else it is uv, which has to be told whose environment it changes


def uninstall_command(distributions: Sequence[str]) -> list[str]:
    """Return the command that removes distributions, without asking."""
    command = installer()
    if _is_pip(command):
        return [*command, "uninstall", "--yes", *distributions]
    return [*command, "uninstall", "--python", sys.executable, *distributions]


def removable(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Return the distributions of integrations that nothing else needs, and the others, each with who needs it.

    Whatever is installed here counts, not only ZenRay and its other integrations.
    """
    going = set(names)
    wanted = {n for name in going for n in _distributions(_requirements(name))}
    candidates = {n for n in wanted if _version(n) is not None}
    others = [n for n in PURPOSES if n not in going and n in _extras() and find(n).is_installed]
    kept: dict[str, str] = {}
    for name in others:
        kept |= {n: f"the integration {name!r}" for n in _distributions(_requirements(name)) if n in candidates}
    needs = {_normal(d.name): set(_distributions(_base_requirements(d))) for d in metadata.distributions() if d.name}
    while True:
        leaving = candidates - kept.keys()
        found = {
            n: user for user, needed in sorted(needs.items()) if user not in leaving for n in sorted(needed & leaving)
        }
        if not found:
            return sorted(leaving), kept
        kept |= found


def _extras() -> list[str]:
    return metadata.metadata("zenray").get_all("Provides-Extra") or []


def _requirements(name: str) -> "list[Requirement]":
    """Return the requirements that an extra adds, without its marker."""
    if name not in PURPOSES:
        raise NotFoundError(f"there is no integration {name!r}; {suggest(name, PURPOSES)}")
    distribution = metadata.distribution("zenray")
    found = [r for r in _parsed(distribution) if r.marker is not None and _holds(r, name) and not _holds(r, "")]
    if not found:
        raise ConfigError(
            f"the installed metadata of zenray {distribution.version} does not know the integration {name!r}: it is "
            "older than this code; install ZenRay again from where you have it, in a checkout with `pip install -e .`"
        )
    return found


def _parsed(distribution: metadata.Distribution) -> "Iterator[Requirement]":
    from packaging.requirements import InvalidRequirement, Requirement

    for line in distribution.requires or ():
        try:
            yield Requirement(line)
        except InvalidRequirement:  # of a package that is not ours to judge
            continue


def _holds(requirement: "Requirement", extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _base_requirements(distribution: metadata.Distribution) -> "list[Requirement]":
    return [r for r in _parsed(distribution) if _holds(r, "")]


def _line(requirement: "Requirement") -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _package(requirement: "Requirement") -> Package:
    names = [requirement.name, *filter(None, [_STAND_INS.get(_normal(requirement.name))])]
    versions = [v for v in map(_version, names) if v is not None]
    is_met = any(requirement.specifier.contains(v, prereleases=True) for v in versions)
    parts = [r for r in _with_extras(requirement) if r is not requirement]
    return Package(
        _line(requirement), versions[0] if versions else None, is_met and all(_package(r).is_met for r in parts)
    )


def _with_extras(requirement: "Requirement") -> "Iterator[Requirement]":
    """Give a requirement, and what its own extras add where it is installed."""
    yield requirement
    try:
        distribution = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return
    for extra in requirement.extras:
        yield from (r for r in _parsed(distribution) if r.marker and _holds(r, extra) and not _holds(r, ""))


def _distributions(found: "Iterable[Requirement]") -> list[str]:
    return [_normal(part.name) for requirement in found for part in _with_extras(requirement)]


def _normal(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_made_by_uv() -> bool:
    config = Path(sys.prefix, "pyvenv.cfg")
    return config.is_file() and any(line.split("=")[0].strip() == "uv" for line in config.read_text().splitlines())
