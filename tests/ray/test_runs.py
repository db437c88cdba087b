"""Whole runs on Ray, each driver a process of its own, as a user starts them."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zenray
from zenray import local_cluster

PROJECT = {
    "helpers.py": """
def clean(n):
    return n + 1
""",
    "flow.py": """
import os, sys, time
from pathlib import Path
from typing import Annotated
import helpers
from zenray import pipeline, step

@step
def load(n: int) -> int:
    return n

@step
def features(n: int) -> int:
    return helpers.clean(n) * 10

@step
def train(n: int) -> tuple[Annotated[int, "model"], Annotated[float, "score"]]:
    print("training on", n)
    return n, n / 2

@pipeline
def flow(n: int = 1):
    model, score = train(features(load(n)))
    return score

@step(cache=False)
def where(n: int, seconds: float) -> dict[str, str]:
    time.sleep(seconds)
    return {"pid": str(os.getpid()), "cwd": os.getcwd(), "var": os.environ.get("MY_SECRET", "none"),
            "cuda": os.environ.get("CUDA_VISIBLE_DEVICES", "unset")}

@pipeline
def parallel(count: int = 2):
    for i in range(count):
        where(i, 0.5)

@pipeline
def with_devices():
    where(0, 0.0)
    where.options(num_gpus=1)(1, 0.0)
    where(2, 0.0)

@step
def broken(n: int) -> int:
    print("about to fail")
    raise KeyError("missing column")

@step
def dies(path: str, lives: int) -> int:
    count = len(Path(path).read_text()) if Path(path).exists() else 0
    Path(path).write_text("x" * (count + 1))
    if count < lives:
        os._exit(3)
    return count

@pipeline
def failing():
    load(broken(1))
    load(7)

@pipeline
def dying(path: str, lives: int):
    return dies(path, lives)

@step(cache=False)
def slow(path: str, after: int) -> None:
    Path(path).write_text("started")
    time.sleep(600)

@pipeline
def hanging(path: str):
    slow(path, load(5))

@pipeline
def greedy():
    load.options(num_cpus=1000)(987654)

@step
def one_of(i: int, salt: int) -> int:
    return i

@pipeline
def many(count: int, salt: int):
    for i in range(count):
        one_of(i, salt)
""",
}

FLAKY = """
from pathlib import Path
from zenray import pipeline, step

class Flaky(Exception):
    pass

def count(name):
    with Path(name).open("a") as file:
        file.write("x")
    if len(Path(name).read_text()) < 3:
        raise Flaky("again")
    return len(Path(name).read_text())

@step(retries=2, retry_on=Flaky)
def imported(name: str) -> int:
    return count(name)

def cell():
    @step(retries=2, retry_on=Flaky)
    def pickled(name: str) -> int:
        return count(name)
    return pickled

@pipeline
def flaky():
    imported("a"), cell()("b")

if __name__ == "__main__":
    print("gave", *(s.output.load() for s in flaky().steps.values()))
"""


UNSENT = """
import threading
from flow import load
from zenray import pipeline, step

def make():
    lock = threading.Lock()
    @step
    def locked(n: int) -> int:
        with lock:
            return n
    return locked

@pipeline
def unsent():
    load(41), make()(1)

@pipeline
def fractions():
    load(42), load.options(name="half", resources={"node:__internal_head__": 0.00001}, cache=False)(43)
"""

NOTEBOOK = """
import importlib, linecache, time
from pathlib import Path

CELL = '''
import helpers
from dataclasses import dataclass
from zenray import pipeline, step

@dataclass
class Item:
    n: int
    kind: str = "a"
    def cleaned(self):
        return helpers.clean(self.n)

@step
def direct(n: int) -> int:
    return helpers.clean(n)

@step
def through(n: int) -> int:
    return Item(n).cleaned()

@pipeline
def cell():
    direct(5), through(5)
'''

def play(main):
    linecache.cache["<cell 1>"] = len(CELL), None, CELL.splitlines(True), "<cell 1>"
    for factor in (2, 100):
        Path("helpers.py").write_text(f"FACTOR = {factor}\\ndef clean(n):\\n    return n * FACTOR\\n")
        import helpers
        importlib.reload(helpers)
        for _ in range(2):
            exec(compile(CELL, "<cell 1>", "exec"), main)
            print({n: (str(s.status), s.output.load()) for n, s in main["cell"]().steps.items()})
        time.sleep(1.1)  # the time in a .pyc has whole seconds
"""


LOGGING = """
import logging, os
from zenray import pipeline, step

log = logging.getLogger(__name__)
PID = os.getpid()

@step
def logs(n: int) -> int:
    log.info("n is %s", n)
    return n

@step
def differs(n: int) -> bool:
    return PID > n

@pipeline
def flow():
    logs(1), differs(1)

if __name__ == "__main__":
    print([name for name, s in flow().steps.items() if s.status == "cached"])
"""


RAISING = """
from zenray import pipeline, step
from zenray.errors import StepFailed

class Pair(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a}-{b}")

def fail():
    try:
        raise KeyError("why")
    except KeyError as exc:
        raise Pair(1, 2) from exc

@step
def imported() -> int:
    return fail()

def cell():
    @step
    def pickled() -> int:
        return fail()
    return pickled

@pipeline
def raising(is_cell: bool):
    (cell() if is_cell else imported)()

if __name__ == "__main__":
    for is_cell in (False, True):
        try:
            raising(is_cell)
        except StepFailed as exc:
            cause = exc.__cause__
            print("caught", isinstance(cause, Pair), cause, repr(cause.__cause__))
"""


@pytest.fixture
def project(tmp_path: Path, cluster_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZENRAY_HOME", str(cluster_home))
    monkeypatch.delenv("ZENRAY_STACK", raising=False)
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def begin(project: Path, target: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "zenray", "submit", target, *arguments]
    return subprocess.Popen(
        words, cwd=project, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def submit(project: Path, target: str, *arguments: str, code: int = 0, **environment: str) -> str:
    process = begin(project, target, *arguments, **environment)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def statuses(pipeline: str) -> dict[str, str]:
    return {n: str(s.status) for n, s in zenray.get_pipeline(pipeline).runs[-1].steps.items()}


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_an_edited_helper_runs_what_uses_it_and_explain_names_it(project: Path) -> None:
    assert "[train] training on 20" in submit(project, "flow.py:flow")
    assert statuses("flow") == {"load": "succeeded", "features": "succeeded", "train": "succeeded"}
    submit(project, "flow.py:flow")
    assert set(statuses("flow").values()) == {"cached"}
    (project / "helpers.py").write_text("def clean(n):\n    return n + 2  # edited\n")
    submit(project, "flow.py:flow")
    assert statuses("flow") == {"load": "cached", "features": "succeeded", "train": "succeeded"}
    words = [sys.executable, "-m", "zenray", "run", "explain", "latest", "features"]
    shown = subprocess.run(words, cwd=project, text=True, capture_output=True, check=True).stdout
    assert "clean" in shown
    assert "helpers.py" in shown


def test_a_script_run_directly_shares_the_cache_with_submit(project: Path) -> None:
    (project / "flow.py").write_text(
        PROJECT["flow.py"] + "\nif __name__ == '__main__':\n    print(flow(n=50).status)\n"
    )
    done = subprocess.run([sys.executable, "flow.py"], cwd=project, text=True, capture_output=True, check=False)
    assert done.stdout.endswith("succeeded\n"), done.stderr
    submit(project, "flow.py:flow", "-p", "n=50")
    assert set(statuses("flow").values()) == {"cached"}


def test_a_logger_of_a_script_is_no_constant_that_differs_and_one_that_does_is_named(project: Path) -> None:
    (project / "script.py").write_text(LOGGING)
    words = [sys.executable, "script.py"]
    first, second = (subprocess.run(words, cwd=project, text=True, capture_output=True, check=True) for _ in range(2))
    assert "constant 'script.PID' differs between the worker and this process" in first.stderr
    assert first.stderr.count("differs between") == 1
    assert second.stdout == "['logs']\n"


def test_a_script_run_directly_retries_on_its_own_exceptions(project: Path) -> None:
    (project / "script.py").write_text(FLAKY)
    done = subprocess.run([sys.executable, "script.py"], cwd=project, text=True, capture_output=True, check=False)
    assert done.stdout.endswith("gave 3 3\n"), done.stderr


def test_a_script_run_directly_catches_its_own_exceptions(project: Path) -> None:
    (project / "script.py").write_text(RAISING)
    done = subprocess.run([sys.executable, "script.py"], cwd=project, text=True, capture_output=True, check=False)
    assert done.stdout.splitlines() == ["caught True 1-2 KeyError('why')"] * 2, done.stderr


def test_independent_steps_run_in_processes_of_their_own_with_the_drivers_surroundings(project: Path) -> None:
    submit(project, "flow.py:parallel", MY_SECRET="for this run")
    found = [s.output.load() for s in zenray.get_pipeline("parallel").runs[-1].steps.values()]
    assert len({f["pid"] for f in found}) == 2
    assert {(f["cwd"], f["var"], f["cuda"]) for f in found} == {(str(project), "for this run", "")}
    submit(project, "flow.py:parallel")
    assert {s.output.load()["var"] for s in zenray.get_pipeline("parallel").runs[-1].steps.values()} == {"none"}


HOMES = """
import os
from zenray import pipeline, step
from zenray.settings import home

os.chdir("/")

@step(cache=False)
def state(n: int) -> str:
    os.chdir("/tmp")
    return str(home())

@pipeline
def homes():
    return state(1)

if __name__ == "__main__":
    print(homes().steps["state"].output.load())
"""


def test_a_relative_home_is_one_place_for_driver_cluster_and_steps_whatever_folders_they_are_in(
    project: Path, cluster_home: Path
) -> None:
    (project / "script.py").write_text(HOMES)
    environment = os.environ | {"ZENRAY_HOME": os.path.relpath(cluster_home, project)}
    words = [sys.executable, "script.py"]
    done = subprocess.run(words, cwd=project, env=environment, text=True, capture_output=True, check=False)
    assert Path(done.stdout.strip()).resolve() == cluster_home, done.stderr
    assert statuses("homes") == {"state": "succeeded"}


def test_a_step_sees_the_devices_that_ray_gave_it_whatever_the_driver_sees(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path_factory.mktemp("home")))
    pending = local_cluster.begin(num_cpus=2, num_gpus=2)  # which need not be there: Ray only counts them
    pending.wait_ready()
    try:
        submit(project, "flow.py:with_devices", CUDA_VISIBLE_DEVICES="7", HIP_VISIBLE_DEVICES="7")
        seen = [s.output.load()["cuda"] for s in zenray.get_pipeline("with_devices").runs[-1].steps.values()]
        assert seen in (["", "0", ""], ["", "1", ""])
    finally:
        local_cluster.down()


def test_a_failed_step_shows_its_own_traceback_and_other_branches_finish(project: Path) -> None:
    shown = submit(project, "flow.py:failing", code=1)
    assert 'raise KeyError("missing column")' in shown
    assert "zenray/worker.py" not in shown
    assert statuses("failing") == {"broken": "failed", "load": "skipped", "load_2": "succeeded"}
    assert "about to fail" in zenray.get_pipeline("failing").runs[-1].steps["broken"].logs


def test_a_lost_worker_is_replaced_and_a_step_that_always_dies_fails_as_such(project: Path) -> None:
    submit(project, "flow.py:dying", "-p", f"path={project}/count", "-p", "lives=2")
    step = zenray.get_pipeline("dying").runs[-1].steps["dies"]
    assert [str(a.status) for a in step.attempts] == ["failed", "failed", "succeeded"]
    submit(project, "flow.py:dying", "-p", f"path={project}/count2", "-p", "lives=99", code=1)
    error = zenray.get_pipeline("dying").runs[-1].steps["dies"].record.error
    assert error is not None
    assert error["kind"] == "worker"
    words = [sys.executable, "-m", "zenray", "run", "logs", "latest", "dies"]
    shown = subprocess.run(words, cwd=project, text=True, capture_output=True, check=True).stdout
    assert "failed: WorkerCrashedError: the step's process ended while it ran" in shown


def test_a_lost_process_is_told_by_zenray_alone_and_in_whole_words(project: Path) -> None:
    shown = submit(project, "flow.py:dying", "-p", f"path={project}/count", "-p", "lives=99", code=1)
    assert "raylet" not in shown
    assert shown.count("lost its process, which counts as no retry, trying again") == 3
    assert "failed in attempt 4: WorkerCrashedError: the step's process ended while it ran" in shown
    assert shown.endswith("as for its memory (4 times)\n")


def test_ctrl_c_cancels_the_tasks_and_the_run(project: Path) -> None:
    process = begin(project, "flow.py:hanging", "-p", f"path={project}/started")
    wait_for(project / "started")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert zenray.get_pipeline("hanging").runs[-1].status == "cancelled"
    assert statuses("hanging") == {"load": "succeeded", "slow": "cancelled"}


def test_a_killed_driver_leaves_no_half_artifact_and_the_next_run_goes_on_from_what_is_committed(project: Path) -> None:
    process = begin(project, "flow.py:hanging", "-p", f"path={project}/again")
    wait_for(project / "again")
    time.sleep(0.5)  # the record of `load` is committed within a tenth of a second
    process.kill()
    process.communicate()
    from zenray import artifacts
    from zenray.views import Books

    books = Books()
    for record in books.ledger.list_artifacts(limit=10_000):
        artifacts.verify(record.manifest, books.store)
    process = begin(project, "flow.py:hanging", "-p", f"path={project}/third")
    wait_for(project / "third")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert statuses("hanging")["load"] == "cached"


def test_a_request_that_no_node_can_grant_is_refused(project: Path) -> None:
    shown = submit(project, "flow.py:greedy", code=1)
    assert "CPU 1000" in shown
    assert "CPU 2" in shown


def test_a_step_that_cannot_be_sent_fails_alone_and_says_why(project: Path) -> None:
    (project / "unsent.py").write_text(UNSENT)
    shown = submit(project, "unsent.py:unsent", code=1)
    assert statuses("unsent") == {"load": "succeeded", "locked": "failed"}
    assert "step 'locked' is defined inside of a function" in shown
    assert "its variable 'lock' cannot be pickled: TypeError" in shown


def test_what_ray_does_not_take_fails_the_step_in_our_words(project: Path) -> None:
    (project / "unsent.py").write_text(UNSENT)
    shown = submit(project, "unsent.py:fractions", code=1)
    assert statuses("fractions") == {"load": "succeeded", "half": "failed"}
    assert "step 'half': Ray does not take a task with" in shown


def test_a_session_of_rays_own_is_left_alone(project: Path) -> None:
    code = """
import ray
from flow import flow
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
try:
    flow(n=31)
finally:
    assert ray.is_initialized()
    ray.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert "call ray.shutdown() first" in done.stderr


def test_a_session_goes_on_after_its_cluster_has_ended(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path_factory.mktemp("home")))
    code = """
from flow import flow
from zenray import local_cluster
for n in (1, 2, 3):
    assert flow(n=n).status == "succeeded"
    print("cluster", local_cluster.find().pid, flush=True)
    if n == 2:
        assert local_cluster.down()
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=project, text=True, capture_output=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        first, second, third = done.stdout.splitlines()
        assert first == second != third
    finally:
        local_cluster.down()


def test_processes_that_share_a_ledger_all_succeed(project: Path) -> None:
    running = [begin(project, "flow.py:many", "-p", "count=20", "-p", f"salt={i // 2}") for i in range(3)]
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert "locked" not in output
    for run in zenray.get_pipeline("many").runs[-3:]:
        assert {s.status.has_outputs for s in run.steps.values()} == {True}
        assert len(run.steps) == 20


def test_a_cached_run_does_not_touch_ray(project: Path) -> None:
    submit(project, "flow.py:flow", "-p", "n=77")
    code = (
        "import sys; from zenray.submit import load_pipeline; r = load_pipeline('flow.py:flow')(n=77); "
        "assert {str(s.status) for s in r.steps.values()} == {'cached'}; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, timeout=60)


def test_a_module_that_is_edited_in_a_long_session_runs_as_edited(project: Path) -> None:
    code = """
import importlib, sys, pathlib
sys.path.insert(0, ".")
import helpers, flow
def total():
    return flow.flow(n=123).steps["features"].output.load()
before = total()
pathlib.Path("helpers.py").write_text("def clean(n):\\n    return n + 1000\\n")
importlib.reload(helpers)
assert (before, total()) == (1240, 11230), total()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_cells_of_a_notebook_run_with_the_modules_that_the_notebook_has(project: Path) -> None:
    """What cannot be imported travels as a pickle, and names the modules of the project that it uses."""
    (project / "notebook.py").write_text(NOTEBOOK)
    code = "import notebook, sys; notebook.play(vars(sys.modules['__main__']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [ast.literal_eval(line) for line in done.stdout.splitlines()] == [
        {"direct": (status, value), "through": (status, value)}
        for value in (10, 500)
        for status in ("succeeded", "cached")
    ]


def test_the_cluster_of_these_runs_is_one_and_still_there(project: Path) -> None:
    status = local_cluster.status()
    assert status is not None
    assert status.info.num_cpus == 2
