"""Optional parts: what they need, what is there, and the commands that install and remove them.

The metadata of ``zenray`` that these tests go by lies in a folder of their own, in front of the installed one.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from zenray import integrations
from zenray.errors import ConfigError, NotFoundError

ROOT = Path(__file__).parents[2]
REQUIREMENTS = {
    "azure": ["zenray-probe>=2"],
    "mysql": ["zenray-driver[rsa]>=1.2"],
    "postgres": ["zenray-driver>=1"],
    "xgboost": ["xgboost>=3.2"],
    "wandb": ["ray>=2"],
}


def write_metadata(folder: Path, name: str, version: str, *lines: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines])
    (info / "METADATA").write_text(text + "\n")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of the path with a distribution ``zenray``."""
    lines = ["Requires-Dist: ray>=2"]
    for extra, needed in REQUIREMENTS.items():
        lines += [f"Provides-Extra: {extra}", *(f'Requires-Dist: {r}; extra == "{extra}"' for r in needed)]
    folder = tmp_path / "place"
    write_metadata(folder, "zenray", "0.1.0", *lines)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def command(place: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return subprocess.run(
        [sys.executable, "-m", "zenray", "integration", *words],
        env=os.environ | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_every_module_that_is_known_comes_from_an_integrations_packages() -> None:
    owners = metadata.packages_distributions()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, name in integrations._MODULES.items():
        lines = [re.split(r"[\[>]", line)[0] for line in declared[name]]
        stand_ins = [integrations._STAND_INS[line] for line in lines if line in integrations._STAND_INS]
        assert {module, *owners.get(module, ())} & {*lines, *stand_ins}, module
        assert integrations.for_module(f"{module}.part") == name
    assert integrations.for_module("nowhere") is None


def test_every_integration_is_an_extra_of_the_distribution_and_the_other_way_round() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.keys() - {"examples"} == integrations.PURPOSES.keys()


def test_every_scheme_leads_to_an_integration_that_there_is() -> None:
    assert set(integrations._SCHEMES.values()) <= integrations.PURPOSES.keys()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/x", "s3"),
        ("gs://bucket", "gcs"),
        ("abfs://c@account/x", "azure"),
        ("postgresql+psycopg://u:p@db/x", "postgres"),
        ("postgresql://db/x", "postgres"),
        ("postgresql+asyncpg://db/x", None),
        ("mysql+pymysql://db/x", "mysql"),
        ("memory://x", None),
        ("/data/store", None),
        ("local", None),
    ],
)
def test_a_url_tells_which_integration_it_needs(url: str, name: str | None) -> None:
    assert integrations.for_url(url) == name


@pytest.mark.usefixtures("place")
def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(NotFoundError, match=r"no integration 'azur'; did you mean 'azure'\?"):
        integrations.find("azur")


@pytest.mark.usefixtures("place")
def test_metadata_older_than_the_code_is_an_error_that_says_to_reinstall() -> None:
    with pytest.raises(ConfigError, match=r"does not know the integration 'kubernetes'.*pip install -e"):
        integrations.find("kubernetes")


def test_what_is_missing_too_old_or_there_is_told_apart(place: Path) -> None:
    assert integrations.missing(["azure", "wandb", "azure"]) == ["azure"]
    write_metadata(place, "zenray-probe", "1.9")
    with pytest.raises(ConfigError, match=r"the store needs the integration 'azure'.*zenray-probe>=2 \(found 1.9\)"):
        integrations.require("azure", for_what="the store")
    write_metadata(place.parent / "newer", "zenray-probe", "2.0")
    sys.path.insert(0, str(place.parent / "newer"))
    try:
        integrations.require("azure", for_what="the store")
    finally:
        sys.path.pop(0)


def test_what_a_requirements_own_extra_adds_has_to_be_there_too(place: Path) -> None:
    write_metadata(place, "zenray-driver", "1.3", "Provides-Extra: rsa", 'Requires-Dist: zenray-rsa; extra == "rsa"')
    assert integrations.missing(["mysql", "postgres"]) == ["mysql"]
    write_metadata(place, "zenray-rsa", "1.0")
    assert integrations.missing(["mysql"]) == []


def test_a_distribution_that_stands_in_for_another_counts(place: Path) -> None:
    write_metadata(place, "xgboost-cpu", "3.2.0")
    assert integrations.missing(["xgboost"]) == []


def test_only_what_nothing_else_needs_is_removed(place: Path) -> None:
    write_metadata(place, "zenray-driver", "1.3", "Provides-Extra: rsa", 'Requires-Dist: zenray-rsa; extra == "rsa"')
    write_metadata(place, "zenray-rsa", "1.0")
    assert integrations.removable(["mysql"]) == (["zenray-rsa"], {"zenray-driver": "the integration 'postgres'"})
    assert integrations.removable(["mysql", "postgres"]) == (["zenray-driver", "zenray-rsa"], {})
    write_metadata(place, "users-package", "1.0", "Requires-Dist: zenray_rsa")
    assert integrations.removable(["mysql", "postgres"]) == (["zenray-driver"], {"zenray-rsa": "users-package"})
    assert integrations.removable(["wandb"])[0] == []


def test_requirements_are_printed_as_pip_takes_them(place: Path) -> None:
    done = command(place, "requirements", "mysql", "azure", "mysql")
    assert done.stdout.splitlines() == ["zenray-driver[rsa]>=1.2", "zenray-probe>=2"]
    assert command(place, "requirements", "mysqll").returncode == 2


def test_install_shows_the_command_runs_it_and_tells_how_it_went(place: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "zenray_probe-2.1-py3-none-any.whl"
    wheel.parent.mkdir()
    info = "zenray_probe-2.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: zenray-probe\nVersion: 2.1\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    offline = {"PIP_NO_INDEX": "1", "PIP_TARGET": str(place), "PIP_CONFIG_FILE": os.devnull}
    refused = command(place, "install", "azure", **offline)
    assert refused.returncode == 2
    assert "Run this? There is no terminal to answer on; add --yes" in refused.stderr
    assert "install 'zenray-probe>=2'" in refused.stdout
    failed = command(place, "install", "azure", "-y", **offline)
    assert failed.returncode == 1
    assert "the command ended with exit code 1" in failed.stderr
    done = command(place, "install", "azure", "-y", PIP_FIND_LINKS=str(wheel.parent), **offline)
    assert done.returncode == 0, done.stderr
    assert (place / info).is_dir()
    assert "installed already: azure" in command(place, "install", "azure").stdout


def test_list_says_what_each_is_for_and_what_is_there() -> None:
    done = command(ROOT, "list", "--json")
    assert done.returncode == 0, done.stderr  # after a change of the extras: pip install -e .
    found = {i["name"]: i for i in json.loads(done.stdout)}
    assert found.keys() == integrations.PURPOSES.keys()
    assert found["s3"]["is_installed"]
    assert found["s3"]["packages"][0]["version"]


def test_importing_integrations_imports_no_packaging() -> None:
    code = "import sys, zenray.integrations; print('packaging' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
