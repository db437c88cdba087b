"""Runs on a Ray cluster elsewhere: a real one, to which only its Jobs API leads, with stores in S3 and PostgreSQL."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers.databases import PASSWORD, USER, PostgreSQL
from tests.servers.object_stores import KEY, SECRET, ObjectStore
from tests.servers.proxy import FaultProxy, fault_proxy
from tests.servers.ray_heads import TOKEN, Head, ray_head

FLOW = """
import os
import time
from pathlib import Path

import zenray
from zenray import pipeline, step
from lib.words import shouted

@step
def made(text: str) -> str:
    print("making", text)
    return shouted(text)

@step
def where() -> list[str]:
    return [zenray.__file__, str(Path.cwd()), os.environ["ZENRAY_STACK"], os.environ["GREETING"]]

@pipeline
def telling(text: str = "hello", times: int = 1):
    where()
    return made(text * times)

@step
def broken(n: int) -> int:
    raise ValueError(f"no use for {n}")

@pipeline
def failing():
    return broken(7)

@step
def slow(seconds: float) -> float:
    print("slept too little", flush=True)
    time.sleep(seconds)
    return seconds

@pipeline
def sleeping(seconds: float = 600.0):
    print("about to sleep", flush=True)
    return slow(seconds)

if __name__ == "__main__":
    run = telling("from a script ", times=2)
    print(run.status, run.output.load())
    try:
        failing()
    except zenray.ZenRayError as exc:
        print(type(exc).__name__, exc)
"""
STACK = """
# Of no interest to the cluster.
orchestrator:
  url: {head}
  token: ${{env:TEST_RAY_TOKEN}}
  env: [TEST_STORE_KEY, TEST_STORE_SECRET]
  runtime_env: {{env_vars: {{GREETING: hello}}}}
artifact_store:
  url: {store}
  endpoint_url: {endpoint}
  key: ${{env:TEST_STORE_KEY}}
  secret: ${{env:TEST_STORE_SECRET}}
metadata_store: postgresql+psycopg://{user}:${{env:TEST_DB_PASSWORD}}@127.0.0.1:{port}/{database}
"""
SECRETS = {"TEST_RAY_TOKEN": TOKEN, "TEST_STORE_KEY": KEY, "TEST_STORE_SECRET": SECRET}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # The cluster has the password of the database itself; the secret of the store is forwarded.
    with ray_head({"TEST_DB_PASSWORD": PASSWORD}) as found:
        yield found


@dataclass(frozen=True)
class Project:
    """A repository of a user, and the environment its commands run in."""

    folder: Path
    environment: Mapping[str, str]

    def call(self, *words: str, code: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run ``zenray`` to its end."""
        return self.ended(self.start("-m", "zenray", *words, **environment), code)

    def start(self, *words: str, cwd: Path | None = None, **environment: str) -> "subprocess.Popen[str]":
        """Start a Python process."""
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=cwd or self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, process: "subprocess.Popen[str]", code: int = 0) -> "subprocess.CompletedProcess[str]":
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, f"{process.returncode}: {out}\n{err}"
        return subprocess.CompletedProcess(process.args, code, out, err)


@pytest.fixture(scope="module")
def project(
    head: Head, s3_server: ObjectStore, postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "lib").mkdir()
    (folder / "lib" / "words.py").write_text("def shouted(text: str) -> str:\n    return text.upper()\n")
    (folder / "flow.py").write_text(FLOW)
    (folder / ".zenrayignore").write_text("private/\n")
    for name in (".env", "private/key.txt", ".git/config", ".venv/pyvenv.cfg", "stacks/other.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("orchestrator: local  # sesame-open\n")
    home = tmp_path_factory.mktemp("home")
    with postgresql.database() as database:
        text = STACK.format(
            head=head.url,
            store=f"{s3_server.uri}/jobs",
            endpoint=s3_server.options["endpoint_url"],
            user=USER,
            port=postgresql.port,
            database=database,
        )
        (folder / "stacks" / "prod.yaml").write_text(text)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ZENRAY_CACHE_DIR": str(home / "cache"),
            **SECRETS,
        }
        yield Project(folder, environment)


def run_id_in(text: str) -> str:
    found = re.search(r"\d{8}-\d{6}-[0-9a-f]{6}", text)
    assert found is not None, text
    return found[0]


def recorded(project: Project, run_id: str) -> dict[str, Any]:
    words = ["run", "show", run_id, "--stack", "prod", "--json"]
    return dict(json.loads(project.call(*words, TEST_DB_PASSWORD=PASSWORD).stdout))


def told(process: "subprocess.Popen[str]", text: str) -> str:
    """Return what a process says on stderr until it says a text."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"{text!r} is not in:\n{''.join(lines)}")


def files_on(head: Head) -> dict[str, bytes]:
    """Return the files of the packages that were sent to a cluster and unpacked there."""
    folder = next((head.folder / "t").glob("session_*-*")) / "runtime_resources"
    packed = [p for p in folder.glob("*/_ray_pkg_*/**/*") if p.is_file() and p.suffix != ".pyc"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in packed}


def test_a_run_uses_the_code_that_was_sent_and_is_cached_the_second_time(project: Project, head: Head) -> None:
    words = ("submit", "flow.py:telling", "--stack", "prod", "-p", "text=it's")
    first = project.call(*words).stderr
    assert 'returned: made = "IT\'S"' in first
    assert "2 succeeded" in first
    steps = recorded(project, run_id_in(first))
    assert (steps["source_file"], steps["stack"]) == (str(project.folder / "flow.py"), "prod")
    sent = len(list((head.folder / "t").glob("session_*-*/runtime_resources/*/_ray_pkg_*.zip")))
    second = project.call(*words).stderr
    assert "all 2 steps were cached" in second
    assert len(list((head.folder / "t").glob("session_*-*/runtime_resources/*/_ray_pkg_*.zip"))) == sent
    packages = {name.split("/")[1] for name in files_on(head)}
    assert len(packages) == 2, "equal content was sent once: the repository's, and ZenRay's own"


def test_no_secret_is_sent_but_those_that_the_stack_forwards(project: Project, head: Head) -> None:
    run_id = project.call("submit", "flow.py:telling", "--stack", "prod", "--detach").stdout.strip()
    job = head.ask(f"/api/jobs/{run_id}").decode()
    assert f'"TEST_STORE_SECRET": "{SECRET}"' in job, "forwarded as the stack says"
    for secret in (TOKEN, PASSWORD, "sesame-open"):
        assert secret not in job
    assert SECRET not in json.loads(job)["entrypoint"]
    files = files_on(head)
    names = {name.partition("/_ray_pkg_")[2].partition("/")[2] for name in files}
    assert {"flow.py", "lib/words.py", "stacks/prod.yaml", "zenray/cluster.py"} <= names
    assert not names & {".env", "private/key.txt", ".git/config", ".venv/pyvenv.cfg", "stacks/other.yaml"}
    for name, content in files.items():
        assert not any(s.encode() in content for s in (TOKEN, PASSWORD, SECRET, "sesame-open")), name
    logs = [p for p in (head.folder / "t").glob("session_*-*/logs/job-driver-*") if p.is_file()]
    assert logs
    assert not any(s in p.read_text() for s in (TOKEN, PASSWORD, SECRET) for p in logs)


def test_a_step_that_fails_gives_its_traceback_and_code_1_and_a_wrong_parameter_code_2(project: Project) -> None:
    words = ("-m", "zenray", "submit", "../flow.py:failing", "--stack", "prod")
    failed = project.ended(project.start(*words, cwd=project.folder / "lib"), 1).stderr
    assert "ValueError: no use for 7" in failed
    assert "in broken" in failed
    assert recorded(project, run_id_in(failed))["status"] == "failed"
    refused = project.call("submit", "flow.py:failing", "--stack", "prod", "-p", "n=1", code=2).stderr
    assert "has no parameter 'n'" in refused


def test_ctrl_c_stops_the_job_and_what_the_cancelled_run_did_is_recorded(project: Project) -> None:
    client = project.start("-m", "zenray", "submit", "flow.py:sleeping", "--stack", "prod")
    run_id = run_id_in(told(client, "slept too little"))
    client.send_signal(signal.SIGINT)
    done = project.ended(client, 130)
    assert f"cancelled: run {run_id} was cancelled" in done.stderr
    assert recorded(project, run_id)["status"] == "cancelled"
    words = ("run", "logs", run_id, "slow", "--stack", "prod")
    assert project.call(*words, TEST_DB_PASSWORD=PASSWORD).stdout == "slept too little\n"
    assert [s["attempts"] for s in recorded(project, run_id)["steps"]] == [1]


def test_a_run_that_was_only_submitted_is_shown_and_stopped_by_its_job(project: Project) -> None:
    file = project.folder / "stacks" / "queued.yaml"
    text = (project.folder / "stacks" / "prod.yaml").read_text()
    file.write_text(text.replace("  token:", "  entrypoint_num_cpus: 100\n  token:"))
    words = ("--stack", "queued")
    submitted = project.call("submit", "flow.py:telling", *words, "--detach")
    run_id = submitted.stdout.strip()
    assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... ray job logs --follow {run_id} --address" in submitted.stderr
    for verb in ("show", "logs"):
        shown = project.call("run", verb, run_id, *words, code=2, TEST_DB_PASSWORD=PASSWORD)
        assert f"run {run_id} is submitted to" in shown.stderr
        assert "has not begun" in shown.stderr
    stopped = project.call("run", "stop", run_id, *words, TEST_DB_PASSWORD=PASSWORD).stdout
    assert stopped.startswith((f"run {run_id} has not begun; the cluster ends it", f"run {run_id} never began"))
    file.unlink()


def test_a_run_is_stopped_right_after_it_was_submitted(project: Project, head: Head) -> None:
    run_id = project.call("submit", "flow.py:sleeping", "--stack", "prod", "--detach").stdout.strip()
    project.call("run", "stop", run_id, "--stack", "prod", TEST_DB_PASSWORD=PASSWORD)
    assert json.loads(head.ask(f"/api/jobs/{run_id}"))["status"] == "STOPPED"


def test_a_job_that_failed_before_its_run_began_is_shown_with_why(project: Project, head: Head) -> None:
    words = ("--stack", "prod", "-p", "n=1", "--detach")
    run_id = project.call("submit", "flow.py:failing", *words).stdout.strip()
    while json.loads(head.ask(f"/api/jobs/{run_id}"))["status"] in ("PENDING", "RUNNING"):
        time.sleep(0.2)
    shown = project.call("run", "show", run_id, "--stack", "prod", code=2, TEST_DB_PASSWORD=PASSWORD).stderr
    assert f"run {run_id} never began" in shown
    assert "has no parameter 'n'" in shown


def test_a_job_that_never_begins_is_left_to_the_cluster_at_ctrl_c(project: Project) -> None:
    file = project.folder / "stacks" / "waiting.yaml"
    text = (project.folder / "stacks" / "prod.yaml").read_text()
    file.write_text(text.replace("  token:", "  entrypoint_num_cpus: 100\n  token:"))
    client = project.start("-m", "zenray", "submit", "flow.py:telling", "--stack", "waiting")
    told(client, "is submitted")
    client.send_signal(signal.SIGINT)
    assert "has not begun; the cluster ends it when it does" in project.ended(client, 130).stderr
    file.unlink()


@pytest.fixture
def far(project: Project, head: Head) -> Iterator[FaultProxy]:
    """A proxy before the cluster, which the stack ``far`` leads through."""
    stacks = project.folder / "stacks"
    with fault_proxy(int(head.url.rpartition(":")[2])) as proxy:
        text = (stacks / "prod.yaml").read_text().replace(head.url, f"http://127.0.0.1:{proxy.port}")
        (stacks / "far.yaml").write_text(text)
        yield proxy
    (stacks / "far.yaml").unlink()


def test_a_connection_that_is_lost_is_tried_again_while_the_run_goes_on(project: Project, far: FaultProxy) -> None:
    client = project.start("-m", "zenray", "submit", "flow.py:sleeping", "--stack", "far", "-p", "seconds=8")
    told(client, "slow  running")
    far.is_refusing = True
    far.reset()
    told(client, "is lost, trying again")
    far.heal()
    told(client, "connected again")
    assert "1 succeeded" in project.ended(client).stderr


def test_a_job_whose_beginning_was_not_confirmed_is_followed_where_it_is_there(
    project: Project, far: FaultProxy
) -> None:
    far.lost_answer_to = b"POST /api/jobs/ "
    done = project.call("submit", "flow.py:telling", "--stack", "far")
    assert far.resets == 1
    assert "returned: made = 'HELLO'" in done.stderr


def test_a_job_that_may_have_begun_is_named_with_how_to_look(project: Project, head: Head, far: FaultProxy) -> None:
    far.lost_answer_to, far.http_status, far.http_only = b"POST /api/jobs/ ", 503, b"GET /api/jobs/"
    failed = project.call("submit", "flow.py:telling", "--stack", "far", code=1).stderr
    run_id = run_id_in(failed)
    assert (
        f"Run {run_id} may have been started all the same: look with `zenray run show {run_id} --stack far`" in failed
    )
    assert json.loads(head.ask(f"/api/jobs/{run_id}"))["submission_id"] == run_id


def test_a_run_that_has_ended_is_told_so_though_its_output_cannot_be_read(project: Project, far: FaultProxy) -> None:
    far.http_status, far.http_only = 500, b"/logs "
    done = project.call("submit", "flow.py:telling", "--stack", "far", "-p", "text=unseen")
    assert "what the job printed last cannot be read: the cluster at" in done.stderr
    assert f"`zenray run show {run_id_in(done.stderr)} --stack far` has what is recorded" in done.stderr


def test_a_script_that_calls_a_pipeline_gets_the_run_with_its_outputs(project: Project) -> None:
    done = project.ended(project.start("flow.py", ZENRAY_STACK="prod", TEST_DB_PASSWORD=PASSWORD))
    first, second = done.stdout.splitlines()[:2]
    assert first == "succeeded FROM A SCRIPT FROM A SCRIPT "
    assert second.startswith("StepFailed step 'broken'")


def test_a_stack_is_checked_by_asking_the_cluster_for_its_version_of_ray(project: Project, head: Head) -> None:
    def said(code: int, **changes: str) -> str:
        text = (project.folder / "stacks" / "prod.yaml").read_text()
        for old, new in changes.items():
            text = text.replace({"url": head.url, "token": "TEST_RAY_TOKEN"}[old], new)
        (project.folder / "stacks" / "tried.yaml").write_text(text)
        given = {"TEST_DB_PASSWORD": PASSWORD, "WRONG": "f" * 32}
        found = project.call("stack", "check", "tried", code=code, **given).stdout
        (project.folder / "stacks" / "tried.yaml").unlink()
        return found.splitlines()[0]

    assert said(0).startswith(f"ok    orchestrator: {head.url}: Ray 2.60.0 there, 2.60.0 here")
    assert "does not take the token" in said(1, token="WRONG")
    assert "nobody answers at 'http://127.0.0.1:1': Connection refused" in said(1, url="http://127.0.0.1:1")
    with fault_proxy(int(head.url.rpartition(":")[2])) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        for status in (200, 302, 404):
            proxy.http_status = status
            assert f"'{url}' is not the dashboard of a Ray cluster" in said(1, url=url)
    project.call("submit", "flow.py:telling", "--stack", "prod", code=2, TEST_RAY_TOKEN="f" * 32)
