"""Runs on the inline launcher: what steps give, what is cached, and what happens when they fail."""

import logging
import os
import pickle
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import zenray_materializers

import zenray
from zenray import File, Folder, Materializer, artifacts, cache, pipeline, step
from zenray.cli.explanation import Explainer
from zenray.errors import (
    CorruptedObjectError,
    DefinitionError,
    MaterializerError,
    NotFoundError,
    RunLostError,
    StepFailed,
    StoreError,
    UnfinishedArtifactError,
)
from zenray.fingerprint import fingerprint
from zenray.materializer import registry
from zenray.metadata.records import RunRecord, RunState
from zenray.metadata.writer import LedgerWriter
from zenray.model import Status
from zenray.runner import owner_name
from zenray.store import open_store
from zenray.submit import parse_parameters, run_pipeline
from zenray.views import Books

PACKAGE_FOLDERS = [Path(p.__file__ or "").parents[1] for p in (zenray, zenray_materializers)]
CALLS: list[str] = []
FAIL_BELOW = {"attempts": 0}


@pytest.fixture(autouse=True)
def _inline_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZENRAY_STACK", "inline")
    CALLS.clear()
    yield
    CALLS.clear()


def note(name: str) -> None:
    sys.modules[__name__].CALLS.append(name)


@step(cache=False)
def number(n: int) -> int:
    return n


@step
def double(n: int) -> int:
    return 2 * n


@step
def parts(n: int) -> tuple[Annotated[int, "half"], Annotated[str, "text"]]:
    return n // 2, f"n={n}"


@step
def total(numbers: list[int]) -> int:
    return sum(numbers)


@step
def broken(n: int) -> int:
    raise ValueError(f"no {n}")


def reason(run: Any, step: str) -> str:
    return Books().ledger.step_run(run.run_id, step).reason


def explained(step: str) -> str:
    ledger = Books().ledger
    return Explainer(ledger).explain(ledger.step_run(zenray.get_run("latest").run_id, step)).partition("\n")[0]


def statuses(run: Any) -> dict[str, str]:
    return {name: str(s.status) for name, s in run.steps.items()}


def test_a_step_called_outside_a_pipeline_is_just_the_function() -> None:
    assert double(4) == 8
    with pytest.raises(ValueError, match="no 1"):
        broken(1)


def test_a_step_called_inside_a_step_is_just_the_function_too() -> None:
    @step
    def outer(n: int) -> int:
        return double(n) + 1

    @pipeline
    def nested():
        outer(number(2))

    run = nested()
    assert list(run.steps) == ["number", "outer"]
    assert run.steps["outer"].output.load() == 5


def test_a_static_pipeline_runs_and_reads_back() -> None:
    @pipeline
    def static(n: int = 3):
        half, _ = parts(double(number(n)))
        return {"half": half, "all": total([half, double(7), 5])}

    run = static(n=4)
    assert run.status == "succeeded"
    assert statuses(run) == dict.fromkeys(["number", "double", "parts", "double_2", "total"], "succeeded")
    assert run.steps["parts"].outputs["text"].load() == "n=8"
    assert run.steps["total"].output.load() == 4 + 14 + 5
    again = zenray.get_pipeline("static").runs[-1]
    assert again.run_id == run.run_id
    assert again.parameters == {"n": 4}
    assert zenray.get_run(run.run_id[:17]).run_id == run.run_id


def test_what_a_pipeline_returned_is_read_back_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    returns: dict[str, Callable[[], Any]] = {
        "single": lambda: double(4),
        "named": lambda: parts(9),
        "several": lambda: (double(1), double(2), parts(4)[0], 7),
        "dictionary": lambda: {"best": double(3), "rest": [double(5), {"step": parts(8)[0], "output": "x"}]},
        "nothing": lambda: None,
    }
    found = {}
    for name, give in returns.items():
        run = run_pipeline(pipeline(lambda give=give: give(), name=name), {"give": give})
        found[name] = {k: v.load() if hasattr(v, "load") else v for k, v in run.outputs.items()}
    assert found == {
        "single": {"double": 8},
        "named": {"half": 4, "text": "n=9"},
        "several": {"double": 2, "double_2": 4, "half": 2, "value": 7},
        "dictionary": {"best": 6, "rest.0": 10, "rest.1.step": 4, "rest.1.output": "x"},
        "nothing": {},
    }
    assert "returned: half = 4, text = 'n=9'\n" in capfd.readouterr().err
    assert zenray.list_runs("single")[0].output.load() == 8
    with pytest.raises(NotFoundError, match="returned no 'haf'; did you mean 'half'"):
        zenray.list_runs("named")[0].outputs["haf"]
    with pytest.raises(NotFoundError, match="returned 2 values"):
        _ = zenray.list_runs("named")[0].output


def test_loops_and_branches_on_real_values() -> None:
    @pipeline
    def dynamic():
        value = number(1)
        while value.load() < 20:
            value = double(value)
        return parts(value) if value.load() > 30 else total([value])

    run = dynamic()
    assert list(run.steps) == ["number", "double", "double_2", "double_3", "double_4", "double_5", "parts"] or (
        run.steps["double_5"].output.load() == 32
    )
    assert "total" not in run.steps


def test_a_nested_pipeline_becomes_part_of_the_run() -> None:
    @pipeline
    def inner(n: int):
        return double(n)

    @pipeline
    def outer():
        return total([inner(1), inner(2)])

    run = outer()
    assert run.steps["total"].output.load() == 6
    assert list(run.steps) == ["double", "double_2", "total"]


def test_a_pipeline_that_nests_itself_for_ever_is_refused_as_a_cycle() -> None:
    @pipeline
    def ouroboros():
        return ouroboros()

    with pytest.raises(DefinitionError, match="cycle"):
        ouroboros()


def test_the_second_run_is_cached_and_a_changed_argument_runs_what_depends_on_it() -> None:
    @pipeline
    def chain(n: int):
        return double(double(n))

    chain(3)
    assert statuses(chain(3)) == {"double": "cached", "double_2": "cached"}
    changed = chain(4)
    assert statuses(changed) == {"double": "succeeded", "double_2": "succeeded"}
    assert changed.steps["double_2"].output.load() == 16


def test_equal_outputs_leave_what_is_below_cached() -> None:
    @pipeline
    def cutoff(n: int):
        return double(number(n // n))

    cutoff(3)
    assert statuses(cutoff(7)) == {"number": "succeeded", "double": "cached"}


def test_equal_calls_in_one_run_are_computed_once() -> None:
    @pipeline
    def twice():
        return double(21), double(21), double(21)

    run = twice()
    assert sorted(statuses(run).values()) == ["cached", "cached", "succeeded"]
    assert {s.output.load() for s in run.steps.values()} == {42}


def test_int_true_float_and_text_do_not_share_a_cache_entry() -> None:
    @step
    def kind(value: Any) -> str:
        return type(value).__name__

    @pipeline
    def kinds():
        for value in (1, True, 1.0, "1", b"1", [1], (1,), None):
            kind(value)

    found = [s.output.load() for s in kinds().steps.values()]
    assert found == ["int", "bool", "float", "str", "bytes", "list", "tuple", "NoneType"]


def test_a_failure_skips_what_depends_on_it_and_lets_other_branches_finish() -> None:
    @pipeline
    def branches():
        bad = broken(number(5))
        total([bad, 1])
        double(9)

    with pytest.raises(StepFailed, match="'broken' failed in attempt 1: ValueError: no 5") as caught:
        branches()
    assert isinstance(caught.value.__cause__, ValueError)
    assert "raise ValueError" in "".join(caught.value.__cause__.__notes__)
    run = zenray.get_pipeline("branches").runs[-1]
    assert run.status == "failed"
    assert statuses(run) == {"number": "succeeded", "broken": "failed", "total": "skipped", "double": "succeeded"}
    assert run.steps["total"].record.cause == "broken"
    assert "no 5" in run.steps["broken"].logs


def test_a_failure_that_the_pipeline_waits_for_still_lets_other_branches_finish() -> None:
    @pipeline
    def waits():
        bad = broken(1)
        double(9)
        return bad.load()

    with pytest.raises(StepFailed):
        waits()
    assert statuses(zenray.get_pipeline("waits").runs[-1]) == {"broken": "failed", "double": "succeeded"}


def test_the_error_of_a_run_names_every_step_that_failed() -> None:
    @pipeline
    def failing():
        broken(1), double(1), broken(2), broken(3)

    with pytest.raises(
        StepFailed, match=r"'broken' failed in attempt 1: .*no 1\nalso failed: 'broken_2', 'broken_3'\nsee"
    ):
        failing()


def test_retries_follow_the_exception_classes(tmp_path: Path) -> None:
    counter = str(tmp_path / "count")

    @step(retries=2, retry_on=OSError)
    def flaky(path: str, kind: str) -> int:
        from pathlib import Path

        with Path(path).open("a") as file:
            file.write("x")
        count = len(Path(path).read_text())
        if count < 3:
            raise {"os": FileNotFoundError, "value": ValueError}[kind](count)
        return count

    @pipeline
    def retried(kind: str):
        return flaky(counter, kind)

    assert retried("os").steps["flaky"].output.load() == 3
    assert [str(a.status) for a in zenray.get_run("latest").steps["flaky"].attempts] == [
        "failed",
        "failed",
        "succeeded",
    ]
    Path(counter).unlink()
    with pytest.raises(StepFailed, match="attempt 1: ValueError"):
        retried("value")


def test_what_a_step_prints_and_logs_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    @step(cache=False)
    def talks() -> None:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        logging.getLogger("mine").warning("logged")

    @pipeline
    def talking():
        talks()

    logs = talking().steps["talks"].logs
    assert "to stdout\n" in logs
    assert "to stderr\n" in logs
    assert "WARNING mine: logged\n" in logs
    assert "to stdout" in capfd.readouterr().out


@pytest.mark.parametrize(
    "use", [bool, iter, len, lambda a: a + 1, lambda a: a > 1, lambda a: a.columns, lambda a: a == 1]
)
def test_an_unfinished_artifact_is_not_taken_for_a_value(use: Any) -> None:
    @pipeline
    def misuse():
        use(double(1))

    with pytest.raises(UnfinishedArtifactError, match=r"\.load\(\)"):
        misuse()


def test_wrong_calls_are_refused_before_anything_runs() -> None:
    @pipeline
    def wrong_type():
        number(1)
        double("three")

    @pipeline
    def wrong_name():
        number(1)
        double(m=3)

    @pipeline
    def wrong_flow():
        _, text = parts(3)
        double(text)

    for made, message in ((wrong_type, "'double': argument 'n' must be int"), (wrong_name, "'m'"), (wrong_flow, "str")):
        with pytest.raises(DefinitionError, match=message):
            made()
        run = zenray.get_run("latest")
        assert run.status == "failed"
        assert {str(s.status) for s in run.steps.values()} <= {"cancelled"}


def test_an_output_without_materializer_is_refused_before_anything_runs() -> None:
    class Custom:
        pass

    @step
    def custom() -> Custom:
        note("custom")
        return Custom()

    @pipeline
    def unstorable():
        number(1)
        custom()

    with pytest.raises(
        DefinitionError, match=r"(?s)step 'custom', output 'output'.*Custom.*types = .*allow_pickle=True"
    ):
        unstorable()
    assert CALLS == []


def test_an_output_that_no_materializer_takes_is_refused_before_anything_runs() -> None:
    @step
    def lazy(n: int) -> pl.LazyFrame:
        return pl.LazyFrame({"n": [n]})

    @pipeline
    def querying():
        lazy(number(1))

    with pytest.raises(DefinitionError, match=r"step 'lazy', output 'output': .* return lazy_frame\.collect"):
        querying()
    assert zenray.list_runs() == []


def test_an_output_that_does_not_fit_its_annotation_fails_the_step() -> None:
    @step
    def wrong() -> int:
        return "text"

    @step
    def short() -> tuple[Annotated[int, "a"], Annotated[int, "b"]]:
        return (1,)

    @pipeline
    def misfits(which: int):
        wrong() if which == 0 else short()

    with pytest.raises(StepFailed, match="annotated int"):
        misfits(0)
    with pytest.raises(StepFailed, match="declares 2 outputs"):
        misfits(1)


def test_the_same_output_name_twice_is_refused_at_decoration() -> None:
    with pytest.raises(DefinitionError, match="'a' 2 times"):

        @step
        def twice() -> tuple[Annotated[int, "a"], Annotated[int, "a"]]:
            return 1, 2


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": -1},
        *({"memory": memory} for memory in ("lots", "1.2.3GiB", "-1GiB", float("nan"), float("inf"), True)),
        *({"cache_expiry": expiry} for expiry in ("1.2.3h", "-7d", "7y", -1, float("nan"), True)),
        *({"resources": asked} for asked in (5, ["disk"], {1: 1}, {"disk": "much"}, {"CPU": 1}, {"memory": 1})),
        {"accelerator_type": 5},
        {"retrys": 1},
        {"retries": -1},
        {"name": "a/b"},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=next(iter(options))):
        double.options(**options)


@pytest.mark.parametrize(
    ("annotation", "texts"),
    [
        (str, {"2024": "2024", "null": "null", '"a"': '"a"'}),
        (str | None, {"2024": "2024", "null": None, "true": "true", '"a"': '"a"'}),
        (int | str, {"2024": 2024, "x": "x", '"7"': "7"}),
        (Literal["1", "2"], {"1": "1"}),
        (Literal[1, "1"], {"1": 1}),
        (Path, {"2024": Path("2024"), "a/b": Path("a/b")}),
        (bool, {"true": True, "0": False}),
        (float | None, {"3e-4": 3e-4, "null": None}),
        (list[str], {'["1"]': ["1"]}),
        (Any, {"1": 1, "x": "x"}),
    ],
    ids=str,
)
def test_a_parameter_on_the_command_line_becomes_what_is_annotated(annotation: Any, texts: dict[str, Any]) -> None:
    def given(value: Any) -> None: ...

    given.__annotations__ = {"value": annotation}
    read = {text: parse_parameters(pipeline(given), [f"value={text}"])["value"] for text in texts}
    assert [(type(v), v) for v in read.values()] == [(type(v), v) for v in texts.values()]


@pytest.mark.parametrize(("annotation", "text"), [(int, "true"), (Literal["1", "2"], "3"), (list[int], "x")], ids=str)
def test_a_parameter_on_the_command_line_that_does_not_fit_is_refused(annotation: Any, text: str) -> None:
    def given(value: Any) -> None: ...

    given.__annotations__ = {"value": annotation}
    with pytest.raises(DefinitionError, match=f"'{text}' does not fit: Input should be"):
        parse_parameters(pipeline(given), [f"value={text}"])


@pytest.mark.parametrize("name", ["queue", "sys", "numpy"])
def test_a_file_of_materializers_named_as_another_module_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / f"{name}.py").write_text("raise AssertionError\n")
    with pytest.raises(MaterializerError, match="rename the file"):
        registry.register_folder(tmp_path)


def test_sizes_and_durations_are_read_as_people_write_them() -> None:
    sizes = {"8GiB": 8 << 30, "1.5 gb": 1_500_000_000, "2k": 2000, "512": 512, 1e9: 1_000_000_000}
    assert {size: double.options(memory=size).settings.resources.memory_bytes for size in sizes} == sizes
    durations = {"250ms": 0.25, "90s": 90, "15min": 900, "2m": 120, "12 h": 43_200, "7d": 604_800, "1w": 604_800, 5: 5}
    assert {d: double.options(cache_expiry=d).settings.cache_expiry_s for d in durations} == durations


def test_a_changed_file_runs_again_and_a_touched_one_does_not(tmp_path: Path) -> None:
    @step
    def lines(file: File) -> int:
        return len(file.read_text().splitlines())

    @step
    def names(folder: Folder) -> list[str]:
        return [f.name for f in folder]

    @pipeline
    def counting(path: str):
        lines(File(path))
        names(Folder(str(tmp_path), glob="*.csv"))

    path = tmp_path / "data.csv"
    path.write_text("a\nb\n")
    counting(str(path))
    path.touch()
    assert set(statuses(counting(str(path))).values()) == {"cached"}
    path.write_text("a\nc\nd\n")
    run = counting(str(path))
    assert set(statuses(run).values()) == {"succeeded"}
    assert run.steps["lines"].output.load() == 3
    assert explained("names") == "names ran because: argument 'folder' changed (data.csv changed)"
    (tmp_path / "more.csv").write_text("1")
    counting(str(path))
    assert explained("names") == "names ran because: argument 'folder' changed (more.csv added)"
    (tmp_path / "more.csv").rename(tmp_path / "other.csv")
    counting(str(path))
    assert "(other.csv added; more.csv removed)" in explained("names")
    path.unlink()
    with pytest.raises(StoreError, match=r"argument 'file': .*data\.csv.* cannot be read"):
        counting(str(path))


def test_a_relative_file_that_is_not_there_is_named_with_the_place_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @step
    def size(file: File) -> int:
        return len(file.read_bytes())

    @pipeline
    def sized():
        size(File("data/x.csv"))

    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StoreError, match=rf"looked for at {re.escape(str(tmp_path))}/data/x\.csv, relative to the folder"
    ):
        sized()


def test_an_input_that_changes_while_it_is_read_fails_the_step(tmp_path: Path) -> None:
    @step
    def rewrites(file: File) -> int:
        file.path.write_text("something else")
        return 1

    @pipeline
    def rewriting(path: str):
        rewrites(File(path))

    (tmp_path / "x").write_text("before")
    with pytest.raises(StepFailed, match="changed while"):
        rewriting(str(tmp_path / "x"))


class Server(BaseHTTPRequestHandler):
    """Tells size and content of one file, and ``told`` beside."""

    content = b""
    told: ClassVar[dict[str, str]] = {}

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(self.content)), **self.told}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.content, Server.told = b"before", {}
    yield f"http://127.0.0.1:{server.server_address[1]}/data.csv"
    server.shutdown()
    server.server_close()


def test_a_file_on_a_web_server_is_told_by_what_the_server_tells(url: str) -> None:
    with pytest.raises(DefinitionError, match="neither a time nor an ETag"):
        File(url, by="stat").identified()
    for name, values in {"ETag": ('"1"', '"2"'), "Last-Modified": ("Mon, 01 Jun 2026 10:00:00 GMT", "later")}.items():
        Server.told = {name: values[0]}
        file = File(url, by="stat").identified()
        assert file.is_unchanged()
        Server.told = {name: values[1]}
        assert not file.is_unchanged()
        assert file.digest != File(url, by="stat").identified().digest


def test_a_change_that_the_server_does_not_tell_is_seen_in_the_content(url: str) -> None:
    file = File(url).identified()
    assert file.is_unchanged()
    Server.content = b"after!"
    assert not file.is_unchanged()
    assert file.digest != File(url).identified().digest


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (File("oss://container/x"), "ImportError.*ossfs"),
        (Folder("oss://container/x"), "ImportError.*ossfs"),
        (File("nosuch://u:hunter2@x/y?key=hunter2"), "Protocol not known"),
        (Folder("nosuch://u:hunter2@x/y?key=hunter2"), "Protocol not known"),
        (File("http://u:hunter2@127.0.0.1:1/x?key=hunter2"), "check the URL"),
    ],
    ids=str,
)
def test_an_input_that_cannot_be_read_is_named_whatever_its_library_raises(given: File | Folder, match: str) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        given.identified()
    assert str(caught.value).startswith("the input '")
    for shown in (str(caught.value), repr(given)):
        assert "hunter2" not in shown
        assert "artifact store" not in shown


def test_cache_options_do_what_they_say() -> None:
    @pipeline
    def options(salt: str, verbose: bool):
        double.options(salt=salt)(1)
        double.options(name="expired", cache_expiry=0.0)(2)

    options("a", True)
    again = options("a", True)
    assert statuses(again) == {"double": "cached", "expired": "succeeded"}
    assert "had expired" in reason(again, "expired")
    assert statuses(options("b", True))["double"] == "succeeded"

    @step(ignore=["verbose"])
    def quiet(n: int, verbose: bool) -> int:
        return n

    @pipeline
    def ignoring(verbose: bool):
        quiet(1, verbose)

    ignoring(True)
    assert statuses(ignoring(False)) == {"quiet": "cached"}


def test_a_missing_object_runs_its_step_again(tmp_path: Path) -> None:
    @step
    def big() -> bytes:
        return b"x" * 100_000

    @pipeline
    def stored():
        big()

    stored()
    assert statuses(stored()) == {"big": "cached"}
    for path in (tmp_path / "home" / "store" / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    run = stored()
    assert statuses(run) == {"big": "succeeded"}
    assert "no longer in the store" in reason(run, "big")
    assert run.steps["big"].output.load() == b"x" * 100_000


def test_a_pickle_needs_the_readers_consent() -> None:
    @step(allow_pickle=True)
    def odd() -> Any:
        return Odd(7)

    @step
    def use(odd: Any) -> int:
        return odd.n

    @pipeline
    def pickling():
        return use(odd())

    run = pickling()
    assert run.steps["use"].output.load() == 7
    with pytest.raises(MaterializerError, match="allow_pickle=True"):
        run.steps["odd"].output.load()
    assert run.steps["odd"].output.load(allow_pickle=True).n == 7


class Odd:
    def __init__(self, n: int) -> None:
        self.n = n


def test_ctrl_c_cancels_the_run() -> None:
    @step
    def interrupted() -> int:
        raise KeyboardInterrupt

    @pipeline
    def cancelling():
        double(interrupted())

    with pytest.raises(KeyboardInterrupt, match="was cancelled"):
        cancelling()
    run = zenray.get_run("latest")
    assert run.status == "cancelled"
    assert statuses(run) == {"interrupted": "cancelled", "double": "cancelled"}


def test_a_run_is_lost_when_its_process_is_gone_and_not_before() -> None:
    """On this host the process decides; of another host's only the lease is known."""
    ledger, here, past = Books().ledger, socket.gethostname(), time.time() - 3600
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owners = {"here": owner_name(), "gone": f"{here}:{gone.pid}:1", "far": f"far.{here}:1:1", "cut": f"far.{here}:1:1"}
    for run_id, owner in owners.items():
        ttl_s = {"here": -60, "cut": -3600}.get(run_id, 60)
        ledger.create_run(RunRecord(run_id, "lost", Status.RUNNING, started_at=past), owner=owner, ttl_s=ttl_s)
    assert [str(zenray.get_run(r).record.status) for r in owners] == ["running", "failed", "running", "failed"]
    assert {r.run_id for r in zenray.list_runs() if r.record.status == "running"} == {"here", "far"}
    lost = pytest.raises(RunLostError, match="'gone' was given up for lost by another process")
    with lost, LedgerWriter(ledger, "gone", 1, delay_s=0) as writer:
        writer.record(RunState("gone", Status.SUCCEEDED))


def test_unknown_names_say_what_is_known() -> None:
    @pipeline
    def known():
        parts(number(2))

    run = known()
    with pytest.raises(NotFoundError, match="did you mean 'known'"):
        zenray.get_pipeline("knwon")
    with pytest.raises(NotFoundError, match="did you mean 'parts'"):
        run.steps["part"]
    with pytest.raises(NotFoundError, match="half, text"):
        _ = run.steps["parts"].output
    with pytest.raises(NotFoundError, match="'half'"):
        run.steps["parts"].outputs["hal"]


def test_classes_known_to_type_checkers_only_leave_names_and_other_annotations_intact() -> None:
    @step
    def fit(data: "Unknown", n: int) -> tuple[Annotated["Unknown", "model"], Annotated[int, "rows"]]:  # noqa: F821
        return [data], n

    @pipeline
    def unresolved():
        fit("x", 3)

    assert list(unresolved().steps["fit"].outputs) == ["model", "rows"]
    assert fit.annotations["n"] is int


def test_the_set_up_of_logging_in_a_step_ends_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    streams = []

    @step(cache=False)
    def configures() -> int:
        logging.basicConfig(level=logging.DEBUG, force=True)
        logging.debug("one")
        streams.append(sys.stderr)
        return 1

    @step(cache=False)
    def logs(n: int) -> int:
        logging.info("two")
        print("three", file=streams[0])
        return n

    @pipeline
    def configured():
        logs(configures())

    root = logging.getLogger()
    before = root.level, root.handlers.copy()
    run = configured()
    assert run.steps["configures"].logs == "DEBUG:root:one\n"
    assert run.steps["logs"].logs == "INFO root: two\n"
    assert (root.level, root.handlers) == before
    assert "Logging error" not in capfd.readouterr().err


def test_what_tiny_steps_print_is_kept_apart() -> None:
    @step(cache=False)
    def says(n: int) -> None:
        if n % 2:
            print("number", n)

    @pipeline
    def saying():
        for n in range(6):
            says(n)

    logs = [s.logs for s in saying().steps.values()]
    assert logs == ["", "number 1\n", "", "number 3\n", "", "number 5\n"]


class Scale:
    """Its instances reach a step that does not name it."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, n: int) -> int:
        return n * self.by


def test_an_edited_method_of_an_instance_that_arrives_as_input_runs_the_step_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @step(allow_pickle=True)
    def make(by: int) -> list[Any]:
        return [Scale(by)]

    @step
    def apply(scales: list[Any], n: int) -> int:
        return scales[0](n)

    @step(allow_pickle=True)
    def apply_given(scale: Any, n: int) -> int:
        return scale(n)

    @pipeline
    def scaling():
        apply(make(2), 5)
        apply_given(Scale(2), 5)

    def call(self: Scale, n: int) -> int:
        return n * self.by + 1

    assert [scaling().steps[s].output.load() for s in ("apply", "apply_given")] == [10, 10]
    assert set(statuses(scaling()).values()) == {"cached"}
    monkeypatch.setattr(Scale, "__call__", call)
    assert [scaling().steps[s].output.load() for s in ("apply", "apply_given")] == [11, 11]


SHOPS = {
    "a class that a function imports": (
        "@step\ndef make() -> Any:\n    from shop import Item\n    return Item(3)\n",
        "item.total()",
    ),
    "a class that a third module makes": (
        "import maker\n@step\ndef make() -> Any:\n    return maker.make()\n",
        "item.total()",
    ),
    "a class found by a name that is computed": (
        "import importlib\n@step\ndef make() -> Any:\n    return importlib.import_module(''.join('shop')).Item(3)\n",
        "item.total()",
    ),
    "a function in a pickle": (
        "from shop import helper\n@step(allow_pickle=True)\ndef make() -> Any:\n    return helper\n",
        "item(3)",
    ),
    "a function in a value with a materializer": (
        "import calls, shop\nfrom vendor import Call\n@step\ndef make() -> Any:\n    return Call(shop.helper)\n",
        "item.target(3)",
    ),
}
SHOP = """
from dataclasses import dataclass

@dataclass
class Item:
    price: int
    def total(self):
        return self.price * {by}

def helper(n):
    return n * {by}
"""
CALLS_MODULE = """
import pickle
from zenray import Materializer
from zenray.fingerprint import fingerprint
from zenray.materializer import registry

@registry.register
class CallMaterializer(Materializer):
    types = ("vendor.Call",)
    def save(self, value, writer):
        writer.put("target", pickle.dumps(value.target))
    def load(self, reader, cls, metadata):
        return cls(pickle.loads(reader.read("target")))
"""


@pytest.mark.parametrize("make", SHOPS)
def test_edited_code_behind_what_a_step_takes_runs_it_again(make: str, tmp_path: Path) -> None:
    """In processes of their own: which modules are loaded already is part of the matter."""
    made, used = SHOPS[make]
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "vendor.py").write_text("class Call:\n    def __init__(self, target):\n        self.target = target\n")
    (tmp_path / "maker.py").write_text("def make():\n    from shop import Item\n    return Item(3)\n")
    (tmp_path / "calls.py").write_text(CALLS_MODULE)
    (tmp_path / "flow.py").write_text(
        f"from typing import Any\nfrom zenray import pipeline, step\n{made}\n"
        f"@step\ndef use(item: Any) -> int:\n    return {used}\n\n@pipeline\ndef p():\n    use(make())\n"
    )
    code = "import flow; print('gave', flow.p().steps['use'].output.load())"
    paths = os.pathsep.join([str(tmp_path), str(installed), *map(str, PACKAGE_FOLDERS)])

    def run(by: int) -> str:
        (tmp_path / "shop.py").write_text(SHOP.format(by=by))
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert [run(2), run(100)] == ["gave 6", "gave 300"]


@dataclass(frozen=True)
class Priced:
    """Its instances travel inside containers, arrays and frames."""

    price: int

    def total(self) -> int:
        return self.price * 2


def priced_frame() -> pd.DataFrame:
    frame = pd.DataFrame({"n": [1]})
    frame.attrs["item"] = Priced(3)
    return frame


HOLDERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a list": (lambda: [Priced(3)], lambda held: held[0]),
    "a nested container": (lambda: {"a": ({"b": Priced(3)},)}, lambda held: held["a"][0]["b"]),
    "an array of objects": (lambda: np.array([Priced(3)], dtype=object), lambda held: held[0]),
    "the cells of a frame": (lambda: pd.DataFrame({"a": [Priced(3)]}), lambda held: held["a"][0]),
    "the cells of a series": (lambda: pd.Series([Priced(3)]), lambda held: held[0]),
    "the name of a series": (lambda: pd.Series([1], name=Priced(3)), lambda held: held.name),
    "the attributes of a frame": (priced_frame, lambda held: held.attrs["item"]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_edited_method_is_followed_to_instances_inside_of(holder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put, take = HOLDERS[holder]

    @step
    def make() -> Any:
        return put()

    @step
    def total(held: Any) -> int:
        return take(held).total()

    @pipeline
    def pricing():
        total(make())

    assert pricing().steps["total"].output.load() == 6
    assert set(statuses(pricing()).values()) == {"cached"}
    monkeypatch.setattr(Priced, "total", lambda self: self.price * 5)
    assert pricing().steps["total"].output.load() == 15


@pytest.mark.parametrize(
    "value",
    [
        3,
        "text",
        [1, 2.5],
        {"a": (None, [date(2026, 1, 31)])},
        np.arange(3),
        np.float32(1),
        pa.table({"a": [1]}),
        pd.DataFrame({"a": [1.5], "b": ["x"]}),
        pd.DataFrame({"a": pd.array([None], dtype="Int64")}),
        pl.DataFrame({"a": [1]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_that_holds_no_instances_lets_equal_outputs_of_edited_code_stay_cached_below(value: Any) -> None:
    def flow_with(edit: int) -> Any:
        @step
        def make() -> Any:
            return (value, Priced(edit))[0]

        @step
        def below(held: Any) -> int:
            return 1

        @pipeline
        def flow():
            below(make())

        return flow

    flow_with(1)()
    assert statuses(flow_with(2)()) == {"make": "succeeded", "below": "cached"}


def test_a_file_that_cannot_be_written_whole_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""

    @step
    def big(n: int) -> Any:
        return np.zeros(n)

    @pipeline
    def storing(n: int):
        big(n)

    storing(10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, hard))
    try:
        with pytest.raises(StepFailed, match="cannot write to the artifact store"):
            storing(4 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store = tmp_path / "home" / "store"
    left = [path for folder in ("objects", "tmp") for path in (store / folder).rglob("*") if path.is_file()]
    assert left == []
    run = storing(4 << 20)
    assert statuses(run) == {"big": "succeeded"}
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, hard))
    try:
        with pytest.raises(StepFailed, match="cannot write to the artifact store"):
            run_pipeline(storing, {"n": 4 << 20}, use_cache=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    artifacts.verify(run.steps["big"].output.manifest, Books().store)  # the whole object was not replaced


class Severe(BaseException):
    """Not an Exception, as some libraries have them."""


def test_a_step_may_raise_anything_and_close_its_output() -> None:
    @step
    def severe() -> int:
        raise Severe("too bad")

    @step
    def silent() -> int:
        logging.getLogger().setLevel(logging.ERROR)
        return 1

    @pipeline
    def odd():
        severe()
        silent()

    level = logging.getLogger().level
    with pytest.raises(StepFailed, match="Severe: too bad"):
        odd()
    assert logging.getLogger().level == level


def test_an_artifact_of_another_run_is_taken_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @pipeline
    def making():
        number(4)
        parts(9)

    @pipeline
    def taking(given: Any):
        double(given)

    @pipeline
    def taking_many(given: list[Any]):
        total(given)

    made = making()
    four, text = made.steps["number"].output, made.steps["parts"].outputs["text"]
    assert taking(four).steps["double"].output.load() == 8
    assert statuses(taking(four)) == {"double": "cached"}
    assert taking_many([four, 1, four]).steps["total"].output.load() == 9
    with pytest.raises(DefinitionError, match=r"'n' is annotated int.*builtins.str"):
        taking(text)
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path / "elsewhere"))
    assert taking(four).steps["double"].output.load() == 8  # copied to the other store


def test_an_artifact_of_another_run_that_is_gone_is_refused(tmp_path: Path) -> None:
    @step
    def big() -> bytes:
        return b"x" * 100_000

    @step
    def size(data: bytes) -> int:
        return len(data)

    @pipeline
    def making():
        big()

    @pipeline
    def taking(given: Any):
        size(given)

    given = making().steps["big"].output
    for path in (tmp_path / "home" / "store" / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(StoreError, match="no longer in the store"):
        taking(given)


def test_a_manifest_that_was_changed_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    whole = artifacts.save(7, store, table=registry.table())
    (file,) = whole.files
    pickled = replace(
        whole, materializer=artifacts.PICKLE, files=(replace(file, name="value.pickle", data=pickle.dumps(8)),)
    )
    elsewhere = replace(whole, files=(replace(file, digest="../../../etc/passwd", data=None),))
    for changed in (pickled, elsewhere, replace(whole, files=(replace(file, data=b"8"),))):
        with pytest.raises(CorruptedObjectError, match="manifest has changed"):
            artifacts.load(changed, store)
    honest = artifacts.save(Odd(1), store, table=registry.table(), allow_pickle=True)
    with pytest.raises(MaterializerError, match="is a pickle"):
        artifacts.load(replace(honest, is_pickle=False), store)


class Color(Enum):
    RED = 1

    def times(self, n: int) -> int:
        return n


@pytest.mark.parametrize("given", [{Color.RED: 3}, {Color.RED}, frozenset({Color.RED}), {(1, Color.RED): 3}], ids=repr)
def test_members_of_an_enum_bring_their_code_also_as_keys(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @step
    def times(given: Any) -> int:
        first = next(iter(given))
        return (first[1] if isinstance(first, tuple) else first).times(2)

    @pipeline
    def flow():
        times(given)

    assert flow().steps["times"].output.load() == 2
    assert statuses(flow()) == {"times": "cached"}
    monkeypatch.setattr(Color, "times", lambda self, n: n * 5)
    assert flow().steps["times"].output.load() == 10


@dataclass(frozen=True)
class Holder:
    file: File


HIDING: dict[str, Callable[[File], Any]] = {
    "field": Holder,
    "set": lambda file: {file},
    "ordered": lambda file: OrderedDict(a=file),
}


@pytest.mark.parametrize("hold", HIDING.values(), ids=HIDING)
def test_a_file_where_its_content_would_not_be_seen_is_refused(hold: Callable[[File], Any], tmp_path: Path) -> None:
    @step
    def read(held: Any) -> int:
        return 1

    @step
    def give() -> Any:
        return File(str(tmp_path / "x"))

    @pipeline
    def taking():
        read(hold(File(str(tmp_path / "x"))))

    @pipeline
    def giving():
        give()

    (tmp_path / "x").write_text("1")
    with pytest.raises(MaterializerError, match="outside of the store"):
        taking()
    with pytest.raises(StepFailed, match="outside of the store"):
        giving()


def test_an_edited_materializer_runs_again_what_it_loads_for(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(TemperatureMaterializer)

    @step
    def make() -> Temperature:
        return Temperature(20)

    @step
    def show(t: Temperature) -> int:
        return t.degrees

    @pipeline
    def flow():
        show(make())

    assert flow().steps["show"].output.load() == 20
    assert set(statuses(flow()).values()) == {"cached"}
    monkeypatch.setattr(TemperatureMaterializer, "load", lambda self, reader, cls, metadata: Temperature(21))
    assert flow().steps["show"].output.load() == 21


def test_an_argument_counts_as_it_was_when_the_step_was_called() -> None:
    @step
    def ordered(values: Any) -> list[int]:
        return sorted(values)

    @pipeline
    def changing():
        values, data = {1}, bytearray(b"\1")
        ordered(values)
        ordered(data)
        values.add(2)
        data += b"\2"

    run = changing()
    assert [run.steps[s].output.load() for s in ("ordered", "ordered_2")] == [[1], [1]]


class Temperature:
    def __init__(self, degrees: int) -> None:
        self.degrees = degrees


class TemperatureMaterializer(Materializer):
    types = (f"{__name__}.Temperature",)

    def save(self, value: Any, writer: Any) -> None:
        writer.put("data", str(value.degrees).encode())

    def load(self, reader: Any, cls: type, metadata: Any) -> Any:
        return cls(int(reader.read("data")))


def test_a_giant_message_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    @step
    def shouting() -> int:
        raise ValueError("z" * 5_000_000)

    @pipeline
    def flow():
        shouting()

    with pytest.raises(StepFailed, match="characters") as caught:
        flow()
    assert len(str(caught.value)) < 20_000
    assert len(capfd.readouterr().err) < 500_000


def test_a_step_that_is_not_cached_neither_takes_nor_gives_a_result() -> None:
    @step
    def sample(n: int) -> int:
        return n

    @pipeline
    def twice():
        sample(1)
        sample.options(cache=False)(1)
        sample.options(cache=False)(1)

    assert statuses(twice()) == {"sample": "succeeded", "sample_2": "succeeded", "sample_3": "succeeded"}
    assert statuses(twice()) == {"sample": "cached", "sample_2": "succeeded", "sample_3": "succeeded"}

    @pipeline
    def never():
        sample.options(cache=False)(2)

    @pipeline
    def now_cached():
        sample(2)

    never()
    assert statuses(now_cached()) == {"sample": "succeeded"}


def test_the_version_of_the_library_of_an_input_is_in_the_key() -> None:
    @step
    def total(frame) -> int:  # type: ignore[no-untyped-def]
        return int(frame["a"].sum())

    found = cache.libraries(["pandas.DataFrame", "pandas.core.frame.DataFrame", "builtins.int", "pathlib.Path"])
    assert found == {"pandas": [pd.__version__, ""]}
    code = fingerprint(total.function)
    keys = [cache.key_of(total, {}, [], code, {}, libraries=libraries) for libraries in (found, {"pandas": ["0", ""]})]
    assert keys[0].key != keys[1].key
    assert cache.differences(keys[1].parts, keys[0].parts, [], []) == ["distribution 'pandas' changed"]
