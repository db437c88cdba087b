import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "import sys; from zenray.cli import main; sys.exit(main())"]

FLOW = """
import time

import helpers
from zenray import pipeline, step


@step
def ingest(n: int) -> list[int]:
    print("reading", n, "rows")
    return list(range(n))


@step
def clean(rows: list[int]) -> list[int]:
    return helpers.clean(rows)


@step
def total(rows: list[int], is_broken: bool) -> int:
    if is_broken:
        raise ValueError("no good")
    return sum(rows)


@step
def after(x: int) -> bytes:
    return b"x" * 10_000


@step(cache=False)
def always(x: int) -> int:
    return x


@step
def endless(n: int) -> int:
    print("going on", flush=True)
    time.sleep(120)
    return n


@pipeline
def flow(n: int = 3, is_broken: bool = False):
    return after(total(clean(ingest(n)), is_broken))


@pipeline
def never_cached():
    return always(1)


@pipeline
def stuck():
    return endless(1)


@pipeline
def raises():
    ingest(1).load()
    raise KeyError("mine")


@pipeline
def wrong():
    if ingest(1):
        pass
"""
HELPERS = """
def clean(rows):
    return [r for r in rows if r > 0]
"""


class Shell:
    """A user's folder and a home of its own; runs the real command line there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.home = folder / "home"
        self.folder.mkdir()
        self.write("flow.py", FLOW)
        self.write("helpers.py", HELPERS)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("ZENRAY_", "RAY_"))}
        self.environment |= {"ZENRAY_HOME": str(self.home), "ZENRAY_STACK": "inline"}

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def __call__(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def json(self, *arguments: str) -> object:
        return json.loads(self(*arguments, "--json").stdout)


@pytest.fixture
def zenray(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def wait_for_line(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} never came: {''.join(seen)}")


# -- submit ------------------------------------------------------------------------------------------------------------


def test_submit_runs_the_named_pipeline_and_says_where(zenray):
    done = zenray("submit", "flow.py:flow", "-p", "n=4")
    assert "of pipeline 'flow' on stack 'inline'" in done.stderr.splitlines()[0]
    assert "reading 4 rows" in done.stdout
    assert "4 succeeded" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_second_submit_finds_everything_in_the_cache(zenray):
    zenray("submit", "flow.py:flow")
    done = zenray("submit", "flow.py:flow")
    assert "all 4 steps were cached" in done.stderr
    assert "reading" not in done.stdout


def test_no_cache_runs_every_step_again(zenray):
    zenray("submit", "flow.py:flow")
    assert "4 succeeded" in zenray("submit", "flow.py:flow", "--no-cache").stderr


def test_a_failed_step_ends_with_code_1_and_the_users_traceback_only(zenray):
    done = zenray("submit", "flow.py:flow", "-p", "is_broken=true", code=1)
    assert 'raise ValueError("no good")' in done.stderr
    assert done.stderr.splitlines()[-1] == "error: step 'total' failed in attempt 1: ValueError: no good"
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert f"{os.sep}zenray{os.sep}" not in done.stderr
    assert "after  skipped (total failed)" in done.stderr


def test_an_exception_of_the_pipeline_function_is_shown_from_the_users_line_on(zenray):
    done = zenray("submit", "flow.py:raises", code=1)
    assert "KeyError: 'mine'" in done.stderr
    first = done.stderr[done.stderr.index("Traceback") :].splitlines()[1]
    assert "flow.py" in first
    assert "in raises" in first
    assert "defect" not in done.stderr


def test_a_wrong_use_of_an_artifact_names_the_users_line(zenray):
    done = zenray("submit", "flow.py:wrong", code=2)
    assert "in wrong" in done.stderr
    assert "if ingest(1):" in done.stderr
    assert ".load()" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["flow.py"], "name one: flow.py:"),
        (["flow.py:flwo"], "did you mean 'flow'"),
        (["nothing.py"], "there is no file 'nothing.py'"),
        (["flow.py:flow", "-p", "m=3"], "no parameter 'm'"),
        (["flow.py:flow", "-p", "n"], "must be NAME=VALUE"),
        (["flow.py:flow", "-p", "n=many"], "'many' does not fit"),
        (["flow.py:flow", "--stack", "mars"], "there is no stack 'mars'"),
        ([], "Missing argument"),
        (["flow.py:flow", "--nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_says_what_is_wrong(zenray, arguments, text):
    done = zenray("submit", *arguments, code=2)
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_and_a_missing_parameter_are_answered_with_what_to_write(zenray):
    zenray.write(
        "needs.py", "from zenray import pipeline\n@pipeline\ndef needing(n: int, m: int, k: int = 1):\n    pass\n"
    )
    assert "'.' is a folder; name a file in it: flow.py, helpers.py, needs.py" in zenray("submit", ".", code=2).stderr
    done = zenray("submit", "needs.py", "-p", "m=1", code=2)
    assert "pipeline 'needing' needs 'n': add -p n=..." in done.stderr


def test_lists_given_as_parameters_are_recorded_as_lists(zenray):
    zenray.write(
        "lists.py", "from zenray import pipeline\n@pipeline\ndef lists(m: list[int], s: set[int]):\n    pass\n"
    )
    zenray("submit", "lists.py", "-p", "m=[1, 2]", "-p", "s=[3]")
    assert zenray.json("run", "list")[0]["parameters"] == {"m": [1, 2], "s": "{3}"}


def test_a_pipeline_from_standard_input_is_refused_before_anything_runs(zenray):
    text = "import flow\nfrom zenray import pipeline\n@pipeline\ndef typed():\n    flow.ingest(1)\ntyped()\n"
    for stack, code in (("local", 1), ("inline", 0)):
        done = subprocess.run(
            [sys.executable, "-"],
            cwd=zenray.folder,
            env=zenray.environment | {"ZENRAY_STACK": stack},
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert ("was read from <stdin>, which the workers cannot: write it into a file" in done.stderr) is bool(code)
    assert len(zenray.json("run", "list")) == 1


def test_a_file_that_cannot_be_imported_shows_the_users_traceback(zenray):
    zenray.write("broken_flow.py", "def f():\n    return 1 / 0\n\nf()\n")
    done = zenray("submit", "broken_flow.py", code=2)
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "broken_flow.py" in lines[1]
    assert "line 4" in lines[1]
    assert "ZeroDivisionError" in done.stderr
    assert "importlib" not in done.stderr


def test_a_missing_package_of_an_integration_says_what_installs_it(zenray):
    zenray.write("broken_flow.py", "import sys\nsys.modules['polars'] = None\nimport polars\n")
    assert "run `zenray integration install polars`" in zenray("submit", "broken_flow.py", code=2).stderr
    zenray.write("broken_flow.py", "import nowhere_to_be_found\n")
    assert "integration install" not in zenray("submit", "broken_flow.py", code=2).stderr


def test_a_syntax_error_shows_the_line(zenray):
    zenray.write("broken_flow.py", "x = 1\ndef f(:\n")
    done = zenray("submit", "broken_flow.py", code=2)
    assert "def f(:" in done.stderr
    assert "Traceback" not in done.stderr


def test_traceback_shows_our_own_frames(zenray):
    assert "load_pipeline" in zenray("submit", "nothing.py", "--traceback", code=2).stderr
    assert "load_pipeline" in zenray("submit", "nothing.py", code=2, ZENRAY_TRACEBACK="1").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_code_130_and_is_recorded_as_cancelled(zenray, number):
    process = zenray.start("submit", "flow.py:stuck")
    wait_for_line(process, "going on")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "cancelled" in output
    assert "Traceback" not in output
    assert [r["status"] for r in zenray.json("run", "list")] == ["cancelled"]


def test_a_script_that_is_interrupted_raises_a_short_keyboard_interrupt(zenray):
    zenray.write("script.py", "import flow\ntry:\n    flow.stuck()\nexcept Exception:\n    print('went on')\n")
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=zenray.folder,
        env=zenray.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_line(process, "going on")
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT  # which a shell shows as 130
    assert "went on" not in text
    assert text[text.index("Traceback") :].count("  File") == 2
    run = zenray.json("run", "list")[0]
    assert text.endswith(f"KeyboardInterrupt: run {run['run_id']} was cancelled\n")
    assert run["status"] == "cancelled"


def test_an_interrupt_before_the_run_begins_is_one_line(zenray):
    zenray.write("early.py", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    assert zenray("submit", "early.py", code=130).stderr == "cancelled\n"


# -- run ---------------------------------------------------------------------------------------------------------------


def test_run_list_shows_the_newest_first_and_can_be_narrowed(zenray):
    zenray("submit", "flow.py:flow")
    zenray("submit", "flow.py:never_cached")
    rows = zenray("run", "list").stdout.splitlines()
    assert rows[0].split()[:3] == ["RUN", "PIPELINE", "STATUS"]
    assert [row.split()[1] for row in rows[1:]] == ["never_cached", "flow"]
    assert [r["pipeline"] for r in zenray.json("run", "list", "--limit", "1")] == ["never_cached"]
    assert [r["pipeline"] for r in zenray.json("run", "list", "--pipeline", "flow")] == ["flow"]
    assert "did you mean 'flow'" in zenray("run", "list", "--pipeline", "flwo", code=2).stderr


def test_run_list_of_an_empty_home_says_how_to_begin(zenray):
    done = zenray("run", "list")
    assert done.stdout == ""
    assert "zenray submit" in done.stderr


def test_run_show_tells_status_cache_source_attempts_and_error(zenray):
    zenray("submit", "flow.py:flow")
    first = zenray.json("run", "show", "latest")["run_id"]
    zenray("submit", "flow.py:flow", "-p", "is_broken=true", code=1)
    text = zenray("run", "show", "latest").stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert f"from run {first}" in rows["ingest"]
    assert "ValueError: no good" in rows["total"]
    assert re.search(r"failed +[\d.]+ s +1 ", rows["total"])
    assert "total failed" in rows["after"]


def test_run_show_lists_outputs_what_was_returned_and_one_step_in_full(zenray):
    zenray("submit", "flow.py:flow")
    digest = artifact_of(zenray, "total")[:12]
    text = zenray("run", "show", "latest").stdout
    assert f"output {digest}" in text
    assert re.search(r"RETURNED +ARTIFACT +TYPE +VALUE\nafter +[0-9a-f]{12} +builtins.bytes", text)
    one = zenray("run", "show", "latest", "total").stdout
    assert re.search(rf"output +{digest} +builtins.int +3\n", one)
    assert re.search(r"rows +[0-9a-f]{12} +clean\n", one)
    assert "is_broken=False" in one
    assert re.search(r"1 +succeeded", one)
    assert zenray.json("run", "show", "latest", "total")["outputs"][0]["digest"].startswith(digest)
    assert "has no step 'totl'" in zenray("run", "show", "latest", "totl", code=2).stderr


def test_artifact_list_names_outputs_and_is_narrowed_by_run_and_type(zenray):
    zenray("submit", "flow.py:flow")
    run = zenray.json("run", "list")[0]["run_id"]
    zenray("submit", "flow.py:flow", "-p", "n=5")
    assert f"{run}/total.output" in zenray("artifact", "list", "--run", run).stdout
    assert len(zenray.json("artifact", "list", "--run", run)) == 4
    for name in ("bytes", "builtins.bytes"):
        assert {a["type"] for a in zenray.json("artifact", "list", "--type", name)} == {"builtins.bytes"}
    assert {a["type"] for a in zenray.json("artifact", "list", "--type", "int", "--run", run)} == {"builtins.int"}


def test_a_run_is_found_by_a_unique_beginning_of_its_id(zenray):
    zenray("submit", "flow.py:flow")
    run_id = zenray.json("run", "list")[0]["run_id"]
    assert zenray.json("run", "show", run_id[:-2])["run_id"] == run_id
    zenray("submit", "flow.py:flow")
    assert "more than one run" in zenray("run", "show", run_id[:4], code=2).stderr
    assert "stack 'inline': there is no run 'zzz'" in zenray("run", "show", "zzz", code=2).stderr


def test_run_logs_prints_what_the_steps_printed(zenray):
    zenray("submit", "flow.py:flow", "-p", "is_broken=true", code=1)
    assert zenray("run", "logs", "latest", "ingest").stdout == "reading 3 rows\n"
    both = zenray("run", "logs", "latest").stdout
    assert both.startswith("== ingest\nreading 3 rows\n== total\nTraceback")
    assert "nothing was printed" in zenray("run", "logs", "latest", "clean").stderr
    assert "did you mean 'clean'" in zenray("run", "logs", "latest", "claen", code=2).stderr


def test_run_logs_of_a_cached_step_are_those_of_the_run_it_came_from(zenray):
    zenray("submit", "flow.py:flow")
    source = zenray.json("run", "list")[0]["run_id"]
    zenray("submit", "flow.py:flow")
    for words in (("latest",), ("latest", "ingest")):
        text = zenray("run", "logs", *words).stdout
        assert text == f"== ingest was cached; this was printed by ingest of run {source}\nreading 3 rows\n"


def test_run_logs_shows_a_step_that_is_still_running(zenray):
    process = zenray.start("submit", "flow.py:stuck")
    try:
        wait_for_line(process, "going on")
        assert zenray("run", "logs", "latest", "endless").stdout == "going on\n"
    finally:
        process.kill()
        process.communicate()


def test_a_run_whose_process_was_killed_is_shown_as_failed(zenray):
    process = zenray.start("submit", "flow.py:stuck")
    wait_for_line(process, "going on")
    assert [r["status"] for r in zenray.json("run", "list")] == ["running"]
    process.kill()
    process.communicate()
    assert [r["status"] for r in zenray.json("run", "list")] == ["failed"]
    assert "ended without finishing it" in zenray("run", "show", "latest").stdout


def test_explain_says_that_a_first_run_has_no_earlier_one(zenray):
    zenray("submit", "flow.py:flow")
    lines = zenray("run", "explain", "latest").stdout.splitlines()
    assert lines == [f"{s} ran because: there is no earlier run of it" for s in ("ingest", "clean", "total", "after")]


def test_explain_without_a_run_explains_the_latest(zenray):
    zenray("submit", "flow.py:flow")
    assert zenray("run", "explain").stdout == zenray("run", "explain", "latest").stdout != ""


def test_where_to_look_closer_is_a_command_that_finds_a_run_on_another_stack(zenray):
    zenray("stack", "register", "prod", "--orchestrator", "inline", "--artifact-store", str(zenray.folder / "s"))
    zenray("stack", "update", "prod", "--metadata-store", f"sqlite:///{zenray.folder / 'l.db'}")
    look = zenray("submit", "flow.py:flow", "--stack", "prod").stderr.splitlines()[-1]
    command = look.removeprefix("look closer: zenray ").split()
    assert command[-2:] == ["--stack", "prod"]
    assert "stack 'inline': there is no run" in zenray(*command[:-2], code=2).stderr
    assert command[2] in zenray(*command).stdout


def test_a_taken_name_of_a_stack_says_what_replaces_it(zenray):
    zenray("stack", "register", "prod", "--orchestrator", "inline")
    zenray("stack", "export", "prod", "new.yaml")
    assert "--force" in zenray("stack", "import", "new.yaml", "prod", code=2).stderr
    zenray("stack", "import", "new.yaml", "prod", "--force")


def test_explain_names_the_edited_helper_and_what_followed_from_it(zenray):
    zenray("submit", "flow.py:flow")
    zenray.write("helpers.py", HELPERS.replace("r > 0", "r > 1"))
    zenray("submit", "flow.py:flow")
    lines = zenray("run", "explain", "latest").stdout.splitlines()
    assert lines[0].startswith("ingest was cached: the result of ingest of run ")
    assert lines[1] == "clean ran because: function 'helpers.clean' in helpers.py changed"
    assert "total ran because: argument 'rows' changed (it comes from clean)" in lines


def test_explain_compares_a_submitted_script_with_the_same_one_run_directly(zenray):
    zenray.write("flow.py", FLOW + "\nif __name__ == '__main__':\n    flow()\n")
    subprocess.run([sys.executable, "flow.py"], cwd=zenray.folder, env=zenray.environment, check=True, timeout=120)
    zenray.write("helpers.py", HELPERS.replace("r > 0", "r > 1"))
    zenray("submit", "flow.py:flow")
    line = zenray("run", "explain", "latest", "clean").stdout.splitlines()[0]
    assert line == "clean ran because: function 'helpers.clean' in helpers.py changed"


def test_explain_compares_with_the_nearest_earlier_run_not_with_the_last(zenray):
    zenray("submit", "flow.py:flow", "-p", "n=7")
    zenray.write("helpers.py", HELPERS.replace("r > 0", "r > 1"))
    zenray("submit", "flow.py:flow", "-p", "n=5")
    zenray.write("helpers.py", HELPERS)
    zenray("submit", "flow.py:flow", "-p", "n=5")
    line = zenray("run", "explain", "latest", "clean").stdout.splitlines()[0]
    assert line == "clean ran because: function 'helpers.clean' in helpers.py changed"


def test_explain_says_when_the_cache_was_not_asked(zenray):
    zenray("submit", "flow.py:flow")
    zenray("submit", "flow.py:flow", "--no-cache")
    text = zenray("run", "explain", "latest", "ingest").stdout
    assert text == "ingest ran because: the run was started without cache\n"
    zenray("submit", "flow.py:never_cached")
    assert zenray("run", "explain", "latest").stdout == "always ran because: the step says cache=False\n"


def test_explain_says_that_the_earlier_run_left_no_result(zenray):
    zenray("submit", "flow.py:flow", "-p", "is_broken=true", code=1)
    zenray("submit", "flow.py:flow", "-p", "is_broken=true", code=1)
    assert "left no result: it is failed" in zenray("run", "explain", "latest", "total").stdout
    assert zenray("run", "explain", "latest", "after").stdout == "after was skipped: total failed\n"


# -- artifact ----------------------------------------------------------------------------------------------------------


def artifact_of(zenray: Shell, step: str) -> str:
    return next(a["digest"] for a in zenray.json("artifact", "list") if a["producer"].endswith(f"/{step}"))


def test_artifact_show_tells_type_size_producer_consumer_and_files(zenray):
    zenray("submit", "flow.py:flow")
    text = zenray("artifact", "show", artifact_of(zenray, "ingest")[:10]).stdout
    assert re.search(r"^type +builtins.list$", text, re.MULTILINE)
    assert re.search(r"^made by +\S+/ingest\.", text, re.MULTILINE)
    assert re.search(r"^taken by +\S+/clean\(rows\)$", text, re.MULTILINE)
    assert "preview" in text
    assert "FILE" in text


TABLE = """
import pyarrow as pa
from zenray import pipeline, step


@step
def make(n: int) -> pa.Table:
    return pa.table({"number": pa.array(range(n)), "text": ["x"] * n})


@pipeline
def tables(n: int):
    make(n)
"""


def test_artifact_show_prints_a_table_in_rows_and_says_what_its_statistics_are_of(zenray):
    zenray.write("table.py", TABLE)
    zenray("submit", "table.py", "-p", "n=100001")
    text = zenray("artifact", "show", artifact_of(zenray, "make")).stdout
    assert "  schema:\n    number  int64\n    text    string\n" in text
    assert "  statistics of the first 100,000 rows:\n    number  min 0, max 99999, mean 49999.5\n" in text
    zenray("submit", "table.py", "-p", "n=2")
    text = zenray("artifact", "show", artifact_of(zenray, "make")).stdout
    assert "  statistics:\n    number  min 0, max 1, mean 0.5\n" in text


def test_artifact_export_writes_the_bytes_and_never_overwrites_unasked(zenray):
    zenray("submit", "flow.py:flow")
    digest = artifact_of(zenray, "after")
    zenray("artifact", "export", digest, "out.bin")
    target = zenray.folder / "out.bin"
    assert target.read_bytes() == b"x" * 10_000
    target.write_bytes(b"mine")
    assert "--force" in zenray("artifact", "export", digest, "out.bin", code=2).stderr
    assert target.read_bytes() == b"mine"
    zenray("artifact", "export", digest, "out.bin", "--force")
    assert target.read_bytes() == b"x" * 10_000
    zenray("artifact", "export", digest, "folder/")
    assert [p.read_bytes() for p in (zenray.folder / "folder").iterdir()] == [b"x" * 10_000]


def test_artifact_verify_names_the_file_and_the_step_run_of_changed_bytes(zenray):
    zenray("submit", "flow.py:flow")
    assert "4 artifacts are whole, 0 are not" in zenray("artifact", "verify").stdout
    stored = next((zenray.home / "store" / "objects").rglob("*/*"))
    stored.chmod(0o644)
    stored.write_bytes(b"y" * 10_000)
    refused = zenray("artifact", "export", artifact_of(zenray, "after"), "out.bin", code=1).stderr
    assert "have changed since they were written" in refused
    assert "`zenray artifact verify --repair` removes what is damaged" in refused
    text = zenray("artifact", "verify", code=1).stdout
    assert "file " in text
    assert "have changed" in text
    assert "/after" in text
    assert "3 artifacts are whole, 1 are not" in text
    assert "zenray artifact verify --repair" in text
    stored.unlink()
    assert "missing" in zenray("artifact", "verify", artifact_of(zenray, "after"), code=1).stdout
    assert "1 artifacts are whole" in zenray("artifact", "verify", artifact_of(zenray, "ingest")).stdout


@pytest.mark.parametrize("how", ["--repair", "--no-cache"])
def test_a_damaged_artifact_is_mended_by_repair_and_by_a_run_that_writes_it_again(zenray, how):
    zenray("submit", "flow.py:flow")
    stored = next((zenray.home / "store" / "objects").rglob("*/*"))
    stored.chmod(0o644)
    stored.write_bytes(b"y" * 10_000)
    if how == "--repair":
        assert "1 damaged or missing object(s) removed; its step runs" in zenray("artifact", "verify", how).stdout
        assert "1 succeeded, 3 cached" in zenray("submit", "flow.py:flow").stderr
    else:
        zenray("submit", "flow.py:flow", how)
    assert "4 artifacts are whole, 0 are not" in zenray("artifact", "verify").stdout


def test_a_damaged_manifest_is_written_anew_by_repair(zenray):
    zenray("submit", "flow.py:flow")
    next((zenray.home / "store" / "artifacts").rglob("*.json")).write_text("{")
    assert "not readable" in zenray("artifact", "verify", code=1).stdout
    assert "its manifest was written anew" in zenray("artifact", "verify", "--repair").stdout
    assert "4 artifacts are whole, 0 are not" in zenray("artifact", "verify").stdout


def test_artifact_gc_removes_only_with_yes(zenray):
    zenray("submit", "flow.py:flow", "-p", "n=9")
    zenray("submit", "flow.py:flow")
    asked = ("artifact", "gc", "--keep-runs", "1", "--grace", "0s")
    kept = "1 runs are kept as they are younger than --grace"
    assert kept in zenray("artifact", "gc", "--keep-runs", "1").stdout
    assert kept not in zenray(*asked).stdout
    assert "would remove 1 runs" in zenray(*asked).stdout
    assert len(zenray.json("run", "list")) == 2
    assert "removed 1 runs" in zenray(*asked, "--yes").stdout
    assert len(zenray.json("run", "list")) == 1
    assert "whole, 0 are not" in zenray("artifact", "verify").stdout
    assert "all 4 steps were cached" in zenray("submit", "flow.py:flow").stderr
    for wrong in ("soon", "-7d", "1.2.3h"):
        assert "no duration" in zenray("artifact", "gc", f"--older-than={wrong}", code=2).stderr


# -- the other nouns ---------------------------------------------------------------------------------------------------


def test_init_makes_a_repository_whose_example_works_at_once(zenray):
    zenray("init", "new")
    new = zenray.folder / "new"
    assert {p.name for p in new.iterdir()} == {
        ".zenray",
        ".zenrayignore",
        ".gitignore",
        "pipeline.py",
        "stacks",
        "materializers",
    }
    assert ".zenray/" in (new / ".gitignore").read_text().splitlines()
    zenray.folder = new
    zenray.environment.pop("ZENRAY_HOME")
    assert "3 succeeded" in zenray("submit", "pipeline.py").stderr
    assert (new / ".zenray" / "ledger.db").is_file()


def test_init_refuses_to_run_twice_and_never_overwrites(zenray):
    new = zenray.folder / "new"
    new.mkdir()
    (new / "mine.py").write_text("x = 1\n")
    (new / ".gitignore").write_text("*.pyc")
    zenray("init", "new")
    assert not (new / "pipeline.py").exists()
    assert (new / ".gitignore").read_text() == "*.pyc\n.zenray/\n"
    assert "already" in zenray("init", "new", code=2).stderr
    (new / "stacks" / "local.yaml").write_text("orchestrator: inline\n")
    (new / ".zenrayignore").unlink()
    zenray("init", "new", "--force")
    assert (new / "stacks" / "local.yaml").read_text() == "orchestrator: inline\n"
    assert (new / ".zenrayignore").is_file()
    assert (new / ".gitignore").read_text() == "*.pyc\n.zenray/\n"


def test_init_of_everything_a_user_has_is_refused_and_can_be_forced(zenray):
    home = zenray.folder / "users" / "me"
    (home / "project").mkdir(parents=True)
    zenray.environment["HOME"] = str(home)
    zenray.environment.pop("ZENRAY_HOME")
    (zenray.folder / "link").symlink_to(home)
    for folder in ("/", str(home), str(home.parent), "link"):
        assert "would be one repository" in zenray("init", folder, code=2).stderr
    assert not Path("/.zenray").exists()
    assert [p.name for p in home.iterdir()] == ["project"]
    zenray("init", str(home / "project"))
    zenray("init", str(home), "--force")
    zenray.folder = home / "project"
    assert f"repository: {home / 'project'}" in zenray("doctor").stdout
    zenray.folder = home / "other"
    zenray.folder.mkdir()
    assert f"repository: {home}" in zenray("doctor").stdout.splitlines()[2]
    assert "3 succeeded" in zenray("submit", "../pipeline.py").stderr


def test_materializer_list_says_which_are_pickles(zenray):
    found = {m["type_name"]: m for m in zenray.json("materializer", "list")}
    assert found["builtins.bytes"]["is_pickle"] is False
    assert found["builtins.bytes"]["origin"] == "built in"
    assert "PICKLE" in zenray("materializer", "list").stdout.splitlines()[0]


def test_components_that_are_references_are_followed_by_a_run_and_shown_as_they_stand(zenray):
    zenray("init")
    zenray.write("stacks/mine.yaml", "orchestrator: ${env:HEAD}\nartifact_store: {url: '${env:STORE}'}\n")
    places = {"HEAD": "inline", "STORE": str(zenray.folder / "data")}
    zenray("submit", "flow.py:flow", "--stack", "mine", **places)
    assert (zenray.folder / "data" / "objects").is_dir()
    found = next(s for s in zenray.json("stack", "list") if s["name"] == "mine")
    assert (found["orchestrator"], found["artifact_store"]) == ("${env:HEAD}", "${env:STORE}")
    refused = zenray("submit", "flow.py:flow", "--stack", "mine", code=2, **{**places, "HEAD": "http://127.0.0.1:1"})
    assert "'metadata_store' 'sqlite:" in refused.stderr
    assert "is a file of this machine" in refused.stderr


def test_stack_list_marks_the_active_one_and_survives_a_broken_file(zenray):
    zenray.write(".zenrayignore", "")
    (zenray.folder / "stacks").mkdir()
    zenray.write("stacks/mine.yaml", "orchestrator: inline\nmetadata_store: postgresql://me:secret@host/db\n")
    zenray.write("stacks/bad.yaml", "orchestrator: mars\n")
    zenray.write("stacks/old.yml", "orchestrator: inline\n")
    os.mkfifo(zenray.folder / "stacks" / "pipe.yaml")
    found = {s["name"]: s for s in zenray.json("stack", "list")}
    assert found.keys() == {"local", "inline", "mine", "bad", "pipe"}
    assert "pipe.yaml is no file" in found["pipe"]["artifact_store"]
    assert "stacks/old.yml is not read" in zenray("stack", "list").stderr
    assert "stacks/old.yml is not read" in zenray("doctor").stdout
    assert found["inline"]["is_active"] is True
    assert found["bad"]["orchestrator"] == "broken"
    text = zenray("stack", "describe", "mine").stdout
    assert "postgresql://me:***@host/db" in text
    assert "secret" not in text


def test_cluster_status_and_down_say_when_there_is_none(zenray):
    assert "no local cluster is running" in zenray("cluster", "status").stdout
    assert "no local cluster is running" in zenray("cluster", "down").stdout


def test_doctor_finds_a_working_machine_well(zenray):
    lines = zenray("doctor").stdout.splitlines()
    assert all(line.startswith(("ok", "warn")) for line in lines)
    assert any("wrote, read and deleted an object" in line for line in lines)
    assert any("schema " in line for line in lines)
    assert not list((zenray.home / "store" / "tmp").iterdir())


@pytest.mark.parametrize(
    ("types", "code", "text"),
    [
        ("(helpers.Thing,)", 0, "ok    materializers: 1 of this repository: helpers.Thing"),
        ("(1,)", 1, "FAIL  materializers: mine:Mine (PATH): types = (1,) must be a tuple of classes"),
        ("('x.Y')", 1, "FAIL  materializers: mine:Mine (PATH): types = 'x.Y' must be a tuple of classes"),
        ("missing", 1, "FAIL  materializers: PATH cannot be imported: NameError: name 'missing' is not defined"),
    ],
)
def test_a_materializer_may_name_classes_and_doctor_says_what_is_wrong_with_one(zenray, types, code, text):
    zenray("init")
    path = zenray.folder / "materializers" / "mine.py"
    path.parent.mkdir(exist_ok=True)
    zenray.write("helpers.py", "class Thing:\n    pass\n")
    path.write_text(
        f"import helpers\nfrom zenray import Materializer\nclass Mine(Materializer):\n    types = {types}\n"
    )
    assert text.replace("PATH", str(path)) in zenray("doctor", code=code).stdout


def test_doctor_fails_where_the_store_cannot_be_written(zenray):
    zenray.home.mkdir()
    (zenray.home / "store").write_text("a file where the folder should be")
    done = zenray("doctor", code=1)
    assert any(line.startswith("FAIL  artifact store") for line in done.stdout.splitlines())
    assert any(line.startswith("ok    metadata store") for line in done.stdout.splitlines())


# -- the edges ---------------------------------------------------------------------------------------------------------


def test_version_and_help_import_nothing_heavy(zenray):
    assert re.fullmatch(r"zenray \d+\.\d+\.\d+\S*\n", zenray("--version").stdout)
    code = (
        "import sys; from zenray.cli import main; sys.argv = ['zenray', '--help']; assert main() == 0; "
        "heavy = {'ray', 'sqlalchemy', 'pyarrow', 'fsspec', 'rich', 'yaml', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for noun in ("init", "submit", "run", "artifact", "stack", "cluster", "materializer", "doctor"):
        assert re.search(rf"^  {noun} +\w", done.stdout, re.MULTILINE), noun


def test_a_fully_cached_submit_imports_neither_ray_nor_rich(zenray):
    zenray("submit", "flow.py:flow")
    code = (
        "import sys; from zenray.cli import main; sys.argv = ['zenray', 'submit', 'flow.py:flow', '--stack', 'local']; "
        "assert main() == 0; assert not {'ray', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=zenray.folder,
        env=zenray.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "all 4 steps were cached" in done.stderr


def test_a_closed_pipe_is_quiet(zenray):
    zenray("submit", "flow.py:flow")
    script = f'"{sys.executable}" -c "from zenray.cli import main; main()" materializer list | head -n 1'
    done = subprocess.run(
        ["bash", "-c", script], cwd=zenray.folder, env=zenray.environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("TYPE")
    assert done.stderr == ""


def test_a_terminal_gets_a_live_table_and_lists_as_tables(zenray):
    pexpect = pytest.importorskip("pexpect")
    environment = zenray.environment | {"TERM": "xterm-256color"}
    terminal = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "submit", "flow.py:flow"],
        cwd=str(zenray.folder),
        env=environment,
        dimensions=(40, 160),
        timeout=60,
        encoding="utf-8",
    )
    terminal.expect("4 succeeded")
    terminal.expect(pexpect.EOF)
    listing = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "run", "list"],
        cwd=str(zenray.folder),
        env=environment,
        dimensions=(40, 160),
        timeout=60,
        encoding="utf-8",
    )
    listing.expect("─────")
    listing.expect(pexpect.EOF)
    narrow = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "run", "list"],
        cwd=str(zenray.folder),
        env=environment,
        dimensions=(40, 60),
        timeout=60,
        encoding="utf-8",
    )
    narrow.expect_exact(zenray.json("run", "list")[0]["run_id"])
    narrow.expect("not shown, as the terminal is narrow: stack, took")
    narrow.expect(pexpect.EOF)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_home_that_cannot_be_written_is_an_error_with_advice(zenray, tmp_path):
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    zenray.home.mkdir(mode=0o755)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *COMMAND, "submit", "flow.py:flow"],
        cwd=zenray.folder,
        env=zenray.environment | {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert str(zenray.home) in done.stderr


def test_an_owner_on_another_host_is_not_taken_for_dead(zenray):
    from zenray.recovery import is_owner_dead

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    assert is_owner_dead(f"{here}:{gone.pid}:1")
    assert is_owner_dead(f"{here}:{os.getpid()}:1")  # the number was given to another process
    assert not is_owner_dead(f"elsewhere.{here}:{gone.pid}:1")
    assert not is_owner_dead("")


def test_a_run_that_is_going_on_is_left_alone(zenray):
    process = zenray.start("submit", "flow.py:stuck")
    try:
        wait_for_line(process, "going on")
        for _ in range(2):
            assert zenray.json("run", "show", "latest")["status"] == "running"
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()


def test_a_project_moves_to_another_stack_with_four_words(zenray):
    zenray(
        "stack", "register", "prod", "--orchestrator", "inline", "--artifact-store", str(zenray.folder / "elsewhere")
    )
    zenray("submit", "flow.py:flow")
    assert "4 succeeded" in zenray("submit", "flow.py:flow", "--stack", "prod").stderr
    zenray.environment.pop("ZENRAY_STACK")
    zenray("stack", "set", "prod")
    done = zenray("submit", "flow.py:flow")
    assert "on stack 'prod', profile 'default'" in done.stderr.splitlines()[0]
    assert "all 4 steps were cached" in done.stderr
    assert zenray("stack", "get").stdout == "prod\n"


def test_stacks_and_profiles_are_managed_from_the_command_line(zenray):
    zenray.environment.pop("ZENRAY_STACK")
    zenray("profile", "create", "work")
    zenray(
        "stack",
        "register",
        "a",
        "--artifact-store",
        "s3://x",
        "-o",
        "artifact_store.secret=hid",
        "--profile",
        "work",
    )
    zenray("stack", "copy", "a", "b", "--from", "work", "--to", "default")
    zenray("stack", "update", "b", "--orchestrator", "inline", "--artifact-store", str(zenray.folder / "s"))
    zenray("stack", "rename", "b", "c")
    assert "hid" not in zenray("stack", "describe", "c").stdout + zenray("stack", "list").stdout
    assert zenray.json("stack", "describe", "c")["orchestrator"] == "inline"
    exported = zenray("stack", "export", "c", "c.yaml")
    assert "C_ARTIFACT_STORE_SECRET" in exported.stderr
    assert "is not set" in zenray("stack", "import", "c.yaml", "d", code=2).stderr
    zenray.environment["C_ARTIFACT_STORE_SECRET"] = "hid"
    zenray("stack", "import", "c.yaml", "d", "--profile", "work")
    assert zenray("stack", "check", "c").stdout.count("ok  ") == 3
    zenray("profile", "rename", "work", "job")
    renamed = zenray("profile", "rename", "job", "work", ZENRAY_PROFILE="job")
    assert "warning: ZENRAY_PROFILE=job is set" in renamed.stderr
    zenray("profile", "set", "work")
    assert [p["name"] for p in zenray.json("profile", "list") if p["is_active"]] == ["work"]
    assert "a, d" in zenray("profile", "describe").stdout
    assert "active one" in zenray("profile", "delete", "work", "-y", code=2).stderr
    zenray("stack", "delete", "d", "-y")
    zenray("profile", "set", "default")
    zenray("profile", "delete", "work", "-y")
    assert "did you mean 'c'" in zenray("stack", "set", "cc", code=2).stderr
    assert "is no name for a stack" in zenray("stack", "register", "../x", code=2).stderr


def test_where_nobody_can_answer_the_question_names_the_option(zenray):
    zenray("stack", "register", "a", "--orchestrator", "inline")
    zenray("profile", "create", "work")
    for words in (("stack", "delete", "a"), ("profile", "delete", "work")):
        done = zenray(*words, code=2)
        assert "? There is no terminal to answer on; add --yes to do it without being asked" in done.stderr
        assert "Traceback" not in done.stderr
    assert "a" in {s["name"] for s in zenray.json("stack", "list")}


def test_on_a_terminal_a_deletion_asks(zenray):
    pexpect = pytest.importorskip("pexpect")
    zenray("stack", "register", "a", "--orchestrator", "inline")
    for answer, is_there in (("n", True), ("y", False)):
        terminal = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], "stack", "delete", "a"],
            cwd=str(zenray.folder),
            env=zenray.environment,
            dimensions=(40, 160),
            timeout=60,
            encoding="utf-8",
        )
        terminal.expect(r"a\.yaml\? \[y/N\]")
        terminal.sendline(answer)
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert ("a" in {s["name"] for s in zenray.json("stack", "list")}) is is_there


def test_updates_of_a_stack_by_several_commands_at_once_are_all_there(zenray):
    zenray("stack", "register", "shared", "--orchestrator", "inline")
    running = [zenray.start("stack", "update", "shared", "-o", f"orchestrator.k{n}={n}") for n in range(5)]
    for process in running:
        assert process.wait(timeout=60) == 0, process.communicate()
        process.communicate()
    shown = zenray.json("stack", "describe", "shared")["orchestrator"]
    assert shown == {"url": "inline", **{f"k{n}": n for n in range(5)}}


def test_a_stack_check_says_what_fails_and_exits_with_one(zenray):
    (zenray.folder / "blocked").write_text("a file where a folder should be")
    zenray("stack", "register", "gone", "--artifact-store", str(zenray.folder / "blocked"))
    done = zenray("stack", "check", "gone", code=1)
    assert [line[:20] for line in done.stdout.splitlines()] == [
        "ok    orchestrator: ",
        "FAIL  artifact store",
        "ok    metadata store",
    ]
    assert done.stderr.startswith("profile default, stack gone")
