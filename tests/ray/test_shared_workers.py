"""A worker process serves many steps: what one of them does to it must not reach the results of the next."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = {
    "config.py": """
MODE = "file"
TABLE = {"rate": 1}

class Options:
    depth = 1

OPTIONS = Options()
""",
    "lazy.py": """
FACTOR = 3
SEEN = []

def scaled(n):
    return n * FACTOR
""",
    "late.py": "X = 1",
    "flow.py": """
import functools, os, sys
from pathlib import Path
import config, pydantic
from zenray import pipeline, step

ALL = 2  # CPUs: one worker process does everything

@step(num_cpus=ALL)
def mutate(x: int) -> int:
    match x:
        case 1: config.MODE = "mutated"
        case 2: config.TABLE["rate"] = 2
        case 3: config.Options.depth = 2
        case 4: config.Options.__init__ = lambda self: None
        case 7: config.OPTIONS.depth = 2
        case 5: os.chdir("/"); os.environ["LEAK"] = "yes"; sys.path.insert(0, "/leak"); del os.environ["KEPT"]
    return x

@step(num_cpus=ALL)
def read(x: int, after: int) -> list[object]:
    return [x, os.getpid(), config.MODE, config.TABLE["rate"], config.Options.depth]

@step(num_cpus=ALL)
def where(x: int, after: int) -> list[object]:
    return [os.getpid(), os.getcwd(), os.environ.get("LEAK"), "/leak" in sys.path, os.environ.get("KEPT")]

@pipeline
def poison(how: int):
    first = read(1, 0)
    first.load()
    return read(2, mutate.options(cache=False)(how))

@pipeline
def place():
    first = where(1, 0)
    return first, where(2, mutate.options(cache=False)(5))

COUNT = 0
MEMO = {}

@functools.lru_cache
def doubled(n):
    return 2 * n

@step(num_cpus=ALL)
def counter(n: int) -> int:
    global COUNT
    COUNT += 1
    return 100 * COUNT + n

@step(num_cpus=ALL)
def memo(n: int) -> int:
    return MEMO.setdefault(n, 2 * n)

@step(num_cpus=ALL)
def remembers(n: int) -> int:
    return doubled(n)

@step(num_cpus=ALL)
def imports(n: int) -> int:
    from lazy import scaled
    return scaled(n)

@step(num_cpus=ALL)
def imports_and_changes(n: int) -> int:
    import lazy
    lazy.SEEN.append(n)
    return lazy.scaled(n) + len(lazy.SEEN)

@step(num_cpus=ALL)
def imports_late(n: int, how: str) -> int:
    edit(how, "before")
    try:
        import late
    except ZeroDivisionError:
        return 0
    edit(how, "after")
    return late.X

def edit(how, when):
    texts = {"before": "X = 22", "after": "X = 333", "before, to fail": "1 / 0"}
    if how.partition(",")[0] == when:
        Path("late.py").write_text(texts[how])

@step(num_cpus=ALL)
def makes(n: int) -> object:
    if Path("edited").exists():
        Path("late.py").write_text(Path("edited").read_text())
    import late
    return late.Made(n)

@step(num_cpus=ALL)
def takes(made: object) -> str:
    return made.told()

@pipeline
def instances(n: int):
    return takes(makes(n))

@pipeline
def late(n: int, how: str):
    return imports_late(n, how)

@pipeline
def loop(name: str, first: int):
    return [globals()[name](first + n) for n in range(3)]

class Empty:
    __slots__ = ()

class Settings(pydantic.BaseModel):
    x: int = 1
    y: dict[str, float] = {}

EMPTY, SETTINGS = Empty(), Settings(y={"rate": 0.5})

@step(num_cpus=ALL)
def reads_slots() -> str:
    return type(EMPTY).__name__

@step(num_cpus=ALL)
def reads_model() -> list[float]:
    return [SETTINGS.x, *SETTINGS.y.values(), len(Settings().y)]

@pipeline
def constants(salt: str):  # so that each stack has a cache of its own
    return reads_slots.options(salt=salt)(), reads_model.options(salt=salt)()

@step(num_cpus=ALL, cache=False)
def forks(x: int, path: str, how: str) -> int:
    if os.fork() == 0:
        print("the child is here")
        if how == "raises":
            raise ValueError("in the child")
        if how == "returns":
            return -1
        sys.exit(3)
    pid, status = os.wait()
    Path(path).write_text(str(os.waitstatus_to_exitcode(status)))
    return x

@pipeline
def forking(path: str, how: str):
    return forks(1, path, how)
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def drive(folder: Path, home: Path, code: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ZENRAY_", "RAY_"))}
    environment |= {"ZENRAY_HOME": str(home), "ZENRAY_STACK": "local", "KEPT": "kept"}
    script = f"import os\nimport flow\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def told(ran: "subprocess.CompletedProcess[str]") -> object:
    assert ran.returncode == 0, ran.stderr
    return ast.literal_eval(ran.stdout.splitlines()[-1])


POISON = """
for _ in range(2):
    run = flow.poison({how})
    print([str(s.status) for s in run.steps.values()], run.steps["read_2"].output.load())
print([str(s.status) for s in run.steps.values()], run.steps["read_2"].output.load()[2:])
"""


@pytest.mark.parametrize("how", [1, 2, 3, 4])
def test_what_a_step_changes_poisons_no_key_of_another(project: Path, cluster_home: Path, how: int) -> None:
    ran = drive(project, cluster_home, POISON.format(how=how))
    assert ran.returncode == 0, ran.stderr
    assert "differs between the worker and this process" in ran.stderr
    again = drive(project, cluster_home, "run = flow.poison(0)\nprint(run.steps['read_2'].output.load()[2:])")
    assert told(again) == ["file", 1, 1], again.stderr


@pytest.mark.parametrize(
    ("name", "kept", "note"),
    [
        ("counter", 1, "step 'counter': constant 'flow.COUNT' differs"),
        ("memo", 1, "step 'memo': constant 'flow.MEMO' differs"),
        ("imports_and_changes", 1, "step 'imports_and_changes': "),
        ("remembers", 3, ""),
        ("imports", 3, ""),
    ],
)
@pytest.mark.parametrize("stack", ["local", "inline"])
def test_a_step_that_changes_what_its_code_reads_is_kept_once_a_process_and_noted_once(
    project: Path, cluster_home: Path, name: str, kept: int, note: str, stack: str
) -> None:
    run = f"run = flow.loop({name!r}, {10 * len(stack)})\nprint([str(s.status) for s in run.steps.values()])"
    code = f"os.environ['ZENRAY_STACK'] = {stack!r}\n{run}"
    first = drive(project, cluster_home, code)
    assert told(first) == ["succeeded"] * 3
    assert first.stderr.count("pass it to the step") + first.stderr.count("Pass it to the step") == bool(note)
    assert stack == "inline" or note in first.stderr
    again = drive(project, cluster_home, code)
    assert told(again) == ["cached"] * kept + ["succeeded"] * (3 - kept), again.stderr


PICKLED = """
import config
from zenray import pipeline, step

COUNT = config.Options()

@step(num_cpus=2)
def count(x: int) -> int:
    COUNT.depth += 1
    return COUNT.depth

@step(num_cpus=2)
def peek(x: int, after: int) -> int:
    return config.OPTIONS.depth

@pipeline
def counting():
    return [count(n).load() for n in range(2)]

@pipeline
def poison(how: int):
    peek(1, 0).load()
    return peek(2, flow.mutate.options(cache=False)(how))

run = {call}
print([s.output.load() for n, s in run.steps.items() if n != "mutate"])
"""


def test_what_a_pickled_step_changes_in_what_came_with_it_poisons_no_key_of_its_next_call(
    project: Path, cluster_home: Path
) -> None:
    assert told(drive(project, cluster_home, PICKLED.format(call="counting()"))) == [2, 3]
    assert told(drive(project, cluster_home, PICKLED.format(call="counting()"))) == [2, 2]


def test_what_a_step_changes_in_an_instance_poisons_no_key_of_a_pickled_step(project: Path, cluster_home: Path) -> None:
    ran = drive(project, cluster_home, PICKLED.format(call="poison(7)"))
    assert told(ran) == [1, 2]
    assert "instance 'config.OPTIONS' differs between the worker and this process" in ran.stderr
    assert told(drive(project, cluster_home, PICKLED.format(call="poison(0)"))) == [1, 1]


LATE = """
os.environ["ZENRAY_STACK"] = {stack!r}
run = flow.late({n}, {how!r})
print([(str(s.status), s.output.load()) for s in run.steps.values()])
"""


@pytest.mark.parametrize(
    ("how", "first", "is_kept"),
    [("before", 22, False), ("before, to fail", 0, False), ("after", 1, True), ("never", 1, True)],
)
@pytest.mark.parametrize("stack", ["local", "inline"])
def test_a_module_that_is_edited_before_a_step_imports_it_poisons_no_key(
    project: Path, cluster_home: Path, stack: str, how: str, first: int, is_kept: bool
) -> None:
    code = LATE.format(stack=stack, how=how, n=len(stack))
    for status in ("succeeded", "cached" if is_kept else "succeeded"):
        (project / "late.py").write_text("X = 1")
        ran = drive(project, cluster_home, code)
        assert told(ran) == [(status, first)], ran.stderr
        assert ran.stderr.count(f"module 'late' ({project / 'late.py'}) is not what the step's key has") == (
            not is_kept
        )
        assert "changes module" not in ran.stderr


MADE = """
from dataclasses import dataclass
@dataclass
class Made:
    n: int
    def told(self):
        return "before"
"""


@pytest.mark.parametrize("stack", ["local", "inline"])
def test_an_instance_of_a_class_that_was_edited_in_a_running_step_poisons_no_key(
    project: Path, cluster_home: Path, stack: str
) -> None:
    code = f"os.environ['ZENRAY_STACK'] = {stack!r}\nrun = flow.instances({len(stack)})\n"
    code += "print([run.steps['takes'].output.load()])"
    (project / "edited").write_text(MADE.replace("before", "after an edit"))
    for expected in ("after an edit", "before"):
        (project / "late.py").write_text(MADE)
        ran = drive(project, cluster_home, code)
        assert told(ran) == [expected], ran.stderr
        (project / "edited").unlink(missing_ok=True)


@pytest.mark.parametrize("stack", ["local", "inline"])
def test_a_constant_of_a_class_without_state_and_a_pydantic_model_are_kept(
    project: Path, cluster_home: Path, stack: str
) -> None:
    run = "print([str(s.status) for s in run.steps.values()], [s.output.load() for s in run.steps.values()], sep=', ')"
    code = f"os.environ['ZENRAY_STACK'] = {stack!r}\nrun = flow.constants({stack!r})\n{run}"
    values = ["Empty", [1, 0.5, 0]]
    for status in ("succeeded", "cached"):
        ran = drive(project, cluster_home, code)
        assert told(ran) == ([status] * 2, values)
        assert "never cached" not in ran.stderr
        assert "differs" not in ran.stderr


def test_what_changes_nothing_that_a_step_uses_is_kept(project: Path, cluster_home: Path) -> None:
    code = "run = flow.poison(6)\nprint([str(s.status) for s in run.steps.values()])"
    told(drive(project, cluster_home, code))
    assert told(drive(project, cluster_home, code)) == ["cached", "succeeded", "cached"]


def test_folder_environment_and_path_are_the_drivers_for_every_step(project: Path, cluster_home: Path) -> None:
    code = "run = flow.place()\nprint([s.output.load() for n, s in run.steps.items() if n.startswith('where')])"
    first, second = told(drive(project, cluster_home, code))  # type: ignore[misc]
    assert first == second
    assert first[1:] == [str(project), None, False, "kept"]


@pytest.mark.parametrize(("how", "code"), [("returns", 0), ("raises", 1), ("exits", 3)])
def test_a_forked_child_gives_no_result(project: Path, cluster_home: Path, how: str, code: int) -> None:
    driven = f"run = flow.forking({str(project / 'code')!r}, {how!r})\nprint(run.steps['forks'].output.load())"
    for stack in ("local", "inline"):
        ran = drive(project, cluster_home, f"os.environ['ZENRAY_STACK'] = {stack!r}\n{driven}")
        assert told(ran) == 1
        assert (project / "code").read_text() == str(code)
