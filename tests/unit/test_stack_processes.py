"""Stacks, profiles and what is chosen, changed by several processes at once."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zenray import profile, settings
from zenray.errors import ConfigError

PROCESSES, ROUNDS = 4, 12
UPDATE = """
def work(number, i):
    def change(before):
        return {"orchestrator": {**before["orchestrator"], f"k{number}_{i}": i}}

    profile.update(profile.find("shared"), change)
"""
CHOOSE = """
def work(number, i):
    profile.set_stack(("local", "inline")[i % 2], profile=f"p{number}_{i}")
    profile.set_profile(f"p{number}_{i}", is_global=True)
"""
REGISTER = """
def work(number, i):
    try:
        profile.save(f"s{i}", {"orchestrator": {"url": "inline", "by": number}}, profile=None)
        print(i)
    except ConfigError as exc:
        assert "already" in str(exc), exc
"""
RENAME = """
def work(number, i):
    if number % 2:
        profile.rename(profile.find(f"a{number}_{i}", profile="default"), f"b{number}_{i}")
    else:
        profile.set_stack("inline", profile=f"p{number}_{i}", is_global=True)
"""
PROGRAM = """
import sys

from zenray import profile
from zenray.errors import ConfigError
{work}
print("ready", flush=True)
sys.stdin.readline()
for i in range({rounds}):
    work(int(sys.argv[1]), i)
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ZENRAY_HOME", "ZENRAY_STACK", "ZENRAY_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    (tmp_path / "work" / ".zenray").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def at_once(work: str) -> list[str]:
    """Run the function ``work`` in several processes, which begin together; returns the lines that they printed."""
    program = PROGRAM.format(work=work, rounds=ROUNDS)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(PROCESSES)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    shown = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES
    return [line for text in shown for line in text.splitlines()]


@pytest.mark.usefixtures("repository")
def test_every_change_of_a_stack_by_several_processes_is_there() -> None:
    profile.save("shared", {"orchestrator": {"url": "inline", "first": 1}}, profile=None)
    at_once(UPDATE)
    found = profile.load(profile.find("shared")).orchestrator_options
    assert len(found) == 1 + PROCESSES * ROUNDS


def test_every_choice_made_by_several_processes_is_there(repository: Path) -> None:
    for n in range(PROCESSES):
        for i in range(ROUNDS):
            profile.create_profile(f"p{n}_{i}")
    at_once(CHOOSE)
    assert len(settings.read_choices(repository / ".zenray").stacks) == PROCESSES * ROUNDS
    assert settings.read_choices(settings.user_home()).profile.endswith(f"_{ROUNDS - 1}")


@pytest.mark.usefixtures("repository")
def test_of_several_that_register_a_name_one_does_and_the_others_are_told() -> None:
    made = at_once(REGISTER)
    assert sorted(made, key=int) == [str(i) for i in range(ROUNDS)]


@pytest.mark.usefixtures("repository")
def test_a_renamed_stack_stays_the_active_one_while_others_choose() -> None:
    for n in range(PROCESSES):
        for i in range(ROUNDS):
            profile.create_profile(f"p{n}_{i}")
            profile.save(f"a{n}_{i}", {"orchestrator": "inline"}, profile="default")
    profile.set_stack("a1_0", is_global=True)
    at_once(RENAME)
    chosen = settings.read_choices(settings.user_home()).stacks
    assert chosen.pop("default") == "b1_0"
    assert len(chosen) == PROCESSES // 2 * ROUNDS


@pytest.mark.parametrize(
    "change",
    [
        lambda: profile.set_stack("inline"),
        lambda: profile.save("new", {"orchestrator": "inline"}, profile=None),
        lambda: profile.update(profile.find("old"), lambda before: {"orchestrator": "local"}),
        lambda: profile.rename(profile.find("old"), "new"),
        lambda: profile.delete(profile.find("old")),
    ],
)
def test_a_place_whose_lock_cannot_be_had_is_not_changed(repository: Path, change: Callable[[], object]) -> None:
    profile.save("old", {"orchestrator": "inline"}, profile=None)
    lock = repository / ".zenray" / "settings.lock"
    lock.unlink()
    lock.mkdir()
    before = (repository / "stacks" / "old.yaml").read_text()
    with pytest.raises(ConfigError, match=r"cannot write .*settings\.lock: Is a directory; check its folder"):
        change()
    assert (repository / "stacks" / "old.yaml").read_text() == before
    assert not (repository / ".zenray" / "settings.json").exists()


def test_a_lock_that_is_never_let_go_of_is_an_error_that_names_it(tmp_path: Path) -> None:
    message = r"has been locked by another process for 0\.1 s; end that one \(`fuser .*settings\.lock`"
    with settings.locked(tmp_path), pytest.raises(ConfigError, match=message), settings.locked(tmp_path, wait_s=0.1):
        pass
    with settings.locked(tmp_path, wait_s=0.1):
        pass
