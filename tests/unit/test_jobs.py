"""What is refused before anything goes to a cluster elsewhere; the rest is in tests/remote/test_jobs.py."""

import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from zenray import checks, pipeline, profile
from zenray.errors import ClusterError, ConfigError, DefinitionError
from zenray.head import Head
from zenray.jobs import Call, Order, submit
from zenray.stack import THIS_CLUSTER, Stack, StackFile, parse, read
from zenray.submit import load_pipeline, run_pipeline

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
        ({"runtime_env": {"py_modules": 5}}, r"must be URLs such as 's3://bucket/package.zip'"),
        ({"headers": {"X-Key": None}}, "'orchestrator.headers.X-Key' cannot be sent"),
        ({"headers": {"X Key": "x"}}, "'orchestrator.headers.X Key' cannot be sent"),
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
    assert "set that variable on the cluster" in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:sesame open@127.0.0.1:99999",
        "http://me:sesame#open@127.0.0.1:1",
        "http://me:sesame/open@127.0.0.1:1",
        "http://me:12/sesame@127.0.0.1:1",  # by the rules port 12 of the host 'me', which would get the token
        "http://me:sesame@127.0.0.1:x",
    ],
)
def test_a_url_of_a_cluster_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"URL 'http://me:\*\*\*@127.0.0.1.* cannot be used: write it as") as error:
        Head(url, {}).check()
    assert not {"sesame", "open"} & set(re.findall(r"\w+", str(error.value)))


@pytest.mark.parametrize("secret", ["sesame\nopen", "sesame\r", "sesame \u2013"])
def test_what_no_header_can_hold_is_refused_without_being_shown(secret: str) -> None:
    for options in ({"token": f"{secret}x"}, {"headers": {"X-Key": secret}}):
        with pytest.raises(ConfigError, match="cannot be sent") as error:
            Head(NOBODY, options)
        assert "sesame" not in str(error.value)


class Echo(BaseHTTPRequestHandler):
    """A server that refuses, and says what it was asked."""

    def do_GET(self) -> None:
        body = f"no: {self.headers['Authorization']} {self.headers['X-Key']}".encode()
        self.send_response(418)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep silent."""


def test_secrets_that_a_server_repeats_are_masked() -> None:
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        head = Head(f"http://127.0.0.1:{server.server_port}", {"token": "sesame1", "headers": {"X-Key": "sesame2"}})
        with pytest.raises(ClusterError, match=r"refuses \(418\): no: Bearer \*\*\* \*\*\*;"):
            head.check()
        thread.join()


def test_a_job_whose_references_lead_to_places_of_one_machine_is_refused(repository: Path) -> None:
    stack = resolved(f"{repository}/data", "sqlite:////shared/ledger.db")
    with pytest.raises(ConfigError, match=r"'artifact_store' .* is a folder of this machine"):
        checks.validate(replace(stack, orchestrator=THIS_CLUSTER))
    with pytest.raises(ConfigError, match=r"'metadata_store' .* is a file of this machine"):
        checks.validate(replace(stack, orchestrator=THIS_CLUSTER, artifact_store="s3://bucket/x"))


def test_a_stack_is_called_by_its_name_only_where_that_leads_to_it(repository: Path) -> None:
    for folder in ("stacks", "ci", "other/stacks"):
        (repository / folder).mkdir(parents=True, exist_ok=True)
        (repository / folder / "prod.yaml").write_text("orchestrator: inline\n")
    for name, called in (("prod", "prod"), ("./stacks/prod.yaml", "prod"), ("ci/prod.yaml", None)):
        path = profile.find(name).path
        assert path is not None
        assert profile.called(path) == called or str(path)
        assert profile.find(profile.called(path)).path == path
    assert profile.called(repository / "other" / "stacks" / "prod.yaml").startswith("/")


def test_relative_places_of_a_stack_named_by_its_file_start_there_for_a_script_too(
    repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "prod.yaml").write_text(
        f"orchestrator: {NOBODY}\nartifact_store: ./shared\nmetadata_store: postgresql+psycopg://me@db/zenray\n"
    )
    (repository / "counted.py").write_text("from zenray import pipeline\n\n@pipeline\ndef counted():\n    return 1\n")
    with pytest.raises(ClusterError, match="nobody answers at"):
        run_pipeline(load_pipeline("counted.py"), {}, stack=profile.active_stack(f"{tmp_path}/ci/prod.yaml"))


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
    with pytest.raises(ConfigError, match=r"NOT_SET_HERE', which is not set: set it on the cluster"):
        read(tmp_path / "prod.yaml").resolve()


def test_headers_of_the_orchestrator_are_masked(tmp_path: Path) -> None:
    found = parse(tmp_path / "prod.yaml", f"orchestrator: {{url: '{NOBODY}', headers: {{X-Proxy: sesame}}}}\n")
    assert "sesame" not in str(found.masked())
    assert found.literal_secrets() == ("orchestrator.headers.X-Proxy",)
