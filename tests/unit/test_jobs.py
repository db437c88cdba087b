"""What is refused before anything goes to a cluster elsewhere; the rest is in tests/remote/test_jobs.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from zenray import checks, pipeline
from zenray.errors import ConfigError, DefinitionError
from zenray.jobs import Call, Order, submit
from zenray.stack import THIS_CLUSTER, Stack, StackFile, parse, read
from zenray.submit import run_pipeline

NOBODY = "http://127.0.0.1:1"
STORES = "artifact_store: s3://bucket/prefix\nmetadata_store: postgresql+psycopg://me:${env:NOT_SET_HERE}@db/zenray\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    (root / ".zenray").mkdir(parents=True)
    (root / "stacks").mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("ZENRAY_HOME", raising=False)
    return root


def stack_file(repository: Path, text: str) -> StackFile:
    return parse(repository / "stacks" / "prod.yaml", text, repository)


def order() -> Order:
    return Order("20260101-000000-abcdef", "me", "", "flow.py")


def resolved(store: str, ledger: str, options: Mapping[str, Any] | None = None) -> Stack:
    return Stack("prod", NOBODY, store, ledger, orchestrator_options=options or {})


@pytest.mark.parametrize("place", ["{root}/.zenray/store", "{root}/data", "file://{root}/data"])
def test_a_store_that_a_cluster_elsewhere_cannot_reach_is_refused(repository: Path, place: str) -> None:
    with pytest.raises(ConfigError, match=r"a folder of this machine, which the cluster 'http://127.0.0.1:1' cannot"):
        checks.validate(resolved(place.format(root=repository), "postgresql+psycopg://me@db/zenray"))


def test_a_ledger_in_a_file_is_refused_and_a_folder_outside_may_be_shared(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"'metadata_store' 'sqlite:////shared/ledger.db' is a file of this machine"):
        checks.validate(resolved("/shared/store", "sqlite:////shared/ledger.db"))
    checks.validate(resolved("/shared/store", "postgresql+psycopg://me@db/zenray"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokn": "x"}, "no option 'tokn' for a Ray cluster; did you mean 'token'"),
        ({"env": "NAME"}, r"'orchestrator.env' must be as in \{env: \[NAME, ...\]\}"),
        (
            {"entrypoint_num_cpus": "two"},
            r"'orchestrator.entrypoint_num_cpus' must be as in \{entrypoint_num_cpus: 1\}",
        ),
        ({"runtime_env": {"py_modules": ["lib"]}}, r"a folder goes along as a part of the repository"),
        ({"runtime_env": {"working_dir": "."}}, "cannot have 'working_dir': the repository is what goes"),
    ],
)
def test_options_of_the_orchestrator_that_are_none_are_refused(
    repository: Path, options: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        checks.validate(resolved("s3://bucket/x", "postgresql+psycopg://me@db/zenray", options))


def test_a_secret_that_is_written_out_is_refused_before_the_cluster_is_asked(repository: Path) -> None:
    (repository / "flow.py").write_text("")
    text = f"orchestrator: {NOBODY}\n{STORES}".replace("${env:NOT_SET_HERE}", "sesame")
    with pytest.raises(ConfigError, match=r"'metadata_store' is written out, and everybody") as error:
        submit(stack_file(repository, text), Call(Path("flow.py")), order())
    assert "sesame" not in str(error.value)


def test_a_file_that_is_ignored_and_a_home_folder_are_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "flow.py").write_text("")
    (repository / ".zenrayignore").write_text("flow.py\n")
    file = stack_file(repository, f"orchestrator: {NOBODY}\n{STORES}")
    with pytest.raises(ConfigError, match=r"flow.py does not go to the cluster: .gitignore or .zenrayignore leaves"):
        submit(file, Call(Path("flow.py")), order())
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flow.py").write_text("")
    with pytest.raises(ConfigError, match=r"would go to the cluster as a whole"):
        submit(file, Call(tmp_path / "flow.py"), order())


def test_parameters_that_are_no_json_are_refused_for_a_run_elsewhere(repository: Path) -> None:
    stack = resolved("s3://bucket/x", "postgresql+psycopg://me@db/zenray")
    with pytest.raises(DefinitionError, match=r"parameter 'day' is .*cannot go to a cluster elsewhere as JSON"):
        run_pipeline(counting, {"day": Path("x"), "times": 1}, stack=stack)


@pipeline
def counting(day: Path, times: int = 1):
    return times


def test_an_order_reads_back_what_was_written() -> None:
    made = Order("id", "me", "abc", "flow.py", ["text=a\nb"], {"lr": 0.1, "names": ["ä", None]})
    assert "\n" not in made.write()
    assert Order.read(made.write()) == made


def test_a_variable_that_a_job_misses_is_explained_with_the_option_that_forwards_it(tmp_path: Path) -> None:
    (tmp_path / "prod.yaml").write_text(f"orchestrator: {THIS_CLUSTER}\n{STORES}")
    with pytest.raises(ConfigError, match=r"NOT_SET_HERE', which is not set: name it in the orchestrator's 'env: "):
        read(tmp_path / "prod.yaml").resolve()


def test_headers_of_the_orchestrator_are_masked(tmp_path: Path) -> None:
    found = parse(tmp_path / "prod.yaml", f"orchestrator: {{url: '{NOBODY}', headers: {{X-Proxy: sesame}}}}\n")
    assert "sesame" not in str(found.masked())
    assert found.literal_secrets() == ("orchestrator.headers.X-Proxy",)
