"""Runs on a Ray cluster elsewhere: the repository is sent to its Jobs API, and the job there is followed from here.

Runs in: driver.

The job is ``zenray submit`` once more, in the cluster, with the run's id chosen here. It gets the stack's file with
references such as ``${env:NAME}`` as they stand, resolves them there, and finds ``this-cluster`` in the place of the
orchestrator.
"""

import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from zenray import bundle
from zenray.errors import ClusterError, ConfigError, DefinitionError, RunCancelled
from zenray.head import RAYS_OWN, Head, NoAnswerError, is_elsewhere
from zenray.masking import masked_url
from zenray.model import Json
from zenray.profile import called
from zenray.settings import IGNORE_FILE, current_folder, find_repository, home
from zenray.stack import THIS_CLUSTER, Stack, StackFile, with_components

PATIENCE_S = 120.0  # without an answer, before a job is followed no more
POLL_S, LONGEST_POLL_S = 0.5, 10.0
LAST_WORDS_S = 10.0  # for what a job printed last, once it has ended
USUAL_START_S = 10.0  # after that it is said what a job waits for
PENDING_STOP_S = 5.0  # Ray stops no job before it has begun
STOP_S = 30  # what a run has to close its records before Ray kills it; by itself Ray gives it 3 s
MAX_COMMAND = 100_000  # characters: Linux takes 128 KiB in one word
_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
FAILED, USAGE, CANCELLED = 1, 2, 130  # exit codes of the command line


@dataclass(frozen=True, slots=True)
class Call:
    """What is to run: a pipeline of a file, its only one where no name is given."""

    file: Path
    pipeline: str = ""
    use_cache: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """What a job is told of its run; ``texts`` are parameters as on the command line, ``parameters`` as values."""

    run_id: str
    user: str
    git_revision: str
    source_file: str
    texts: Sequence[str] = ()
    parameters: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> "Order":
        """Return the order that ``write`` made a text of."""
        return cls(**json.loads(text))

    def write(self) -> str:
        """Return one line of text."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Job:
    """A run that was submitted; its job on the cluster has the run's id."""

    head: Head
    run_id: str
    stack: str

    def follow(self, out: TextIO | None = None) -> int:
        """Print what the job prints until it ends, and return its exit code.

        Ctrl-C has the job stopped, and then waits for its end; another one does not. Raises RunCancelled where the job
        was stopped, and ClusterError where the cluster could not run it or is silent for too long.
        """
        follower = _Follower(self, out or sys.stderr)
        interrupt: KeyboardInterrupt | None = None
        is_stopped = False
        while True:
            try:
                if interrupt is not None and not is_stopped:
                    with suppress(NoAnswerError):  # the next look says so
                        is_stopped = self.head.stop(self.run_id)
                info = follower.look()
                if info is not None:
                    return self._exit_code(info, interrupt)
                if is_stopped and follower.waits_since_s() > PENDING_STOP_S:
                    raise RunCancelled(
                        f"run {self.run_id} has not begun; the cluster ends it when it does"
                    ) from interrupt
                time.sleep(follower.pause_s)
            except KeyboardInterrupt as exc:
                if interrupt is not None:
                    raise RunCancelled(f"run {self.run_id} is being stopped by the cluster") from exc
                interrupt = exc
                follower.say(f"run {self.run_id} is being stopped; Ctrl-C again leaves that to the cluster")

    def standing(self) -> str:
        """Return how a job stands that has recorded no run, for people."""
        info = self.head.job(self.run_id)
        lines = [n for n in str(info.get("message") or "").splitlines() if any(c.isalnum() for c in n)]
        why = f": {lines[-1].strip()}" if lines else ""  # of a job that failed, what it has printed last
        if info["status"] in _ENDED:
            return f"run {self.run_id} never began, its job on {self.head.url} has {info['status'].lower()}{why}"
        if info["status"] == "PENDING":
            return f"run {self.run_id} is submitted to {self.head.url} and has not begun{why}"
        return f"run {self.run_id} is submitted to {self.head.url}; its job is starting and has recorded nothing yet"

    def end(self, wait_s: float) -> bool:
        """Have the job stopped and wait for its end; False for one not begun, which the cluster ends when it begins.

        Raises ClusterError where it goes on for longer.
        """
        began_at, is_stopped = time.monotonic(), False
        while True:
            is_stopped = is_stopped or self.head.stop(self.run_id)
            status = self.head.job(self.run_id)["status"]
            waited_s = time.monotonic() - began_at
            if status in _ENDED or (is_stopped and status == "PENDING" and waited_s > PENDING_STOP_S):
                return status in _ENDED
            if waited_s > wait_s:
                raise ClusterError(
                    f"the job of run {self.run_id} was asked to stop {wait_s:g} s ago and is {status.lower()} still; "
                    f"look again with `zenray run show {self.run_id} --stack {self.stack}`"
                )
            time.sleep(POLL_S)

    def _exit_code(self, info: Mapping[str, Any], interrupt: KeyboardInterrupt | None) -> int:
        code = info.get("driver_exit_code")
        if info["status"] == "STOPPED" or code == CANCELLED:
            raise RunCancelled(f"run {self.run_id} was cancelled") from interrupt
        if info["status"] == "SUCCEEDED":
            return 0
        if code is None:
            lines = str(info.get("message") or "").strip().splitlines() or ["no reason is given"]
            reason = ": ".join(dict.fromkeys((lines[0], lines[-1])))  # between them there is a traceback of Ray's
            raise ClusterError(
                f"the cluster at {self.head.url!r} could not run the job: {reason}; "
                "correct the orchestrator's options, such as 'runtime_env', or look into the cluster's dashboard"
            )
        if code not in (FAILED, USAGE):
            raise ClusterError(
                f"the driver of run {self.run_id} on the cluster ended with code {code}: it was killed, as for its "
                "memory, or (127) there is no `python` in the PATH that Ray was started with"
            )
        return int(code)


class _Follower:
    """What was printed of a job so far."""

    def __init__(self, job: Job, out: TextIO) -> None:
        self._job = job
        self._out = out
        self._start = f"Running entrypoint for job {job.run_id}: "
        self._printed = 0
        self._began_at = self._heard_at = time.monotonic()
        self._info: dict[str, Any] = {"status": "PENDING"}
        self._is_away = False
        self._is_pending = True
        self._waits_for = ""
        self.pause_s = POLL_S
        self._is_announced = False

    def look(self) -> dict[str, Any] | None:
        """Print what is new; return what is known of the job once it has ended."""
        began = time.monotonic()
        if not self._is_announced:  # here, where a Ctrl-C is heard already
            self._is_announced = True
            self.say(f"run {self._job.run_id} is submitted to {self._job.head.url}")
        try:
            info = self._info = self._job.head.job(self._job.run_id)
            self._print(info)
        except NoAnswerError as exc:
            return self._silence(exc)
        self._heard_at = time.monotonic()
        if self._is_away:
            self.say("connected again")
            self._is_away = False
        # The output comes as a whole each time: a long one is asked for less often.
        self.pause_s = min(LONGEST_POLL_S, max(POLL_S, 20 * (self._heard_at - began)))
        return info if info["status"] in _ENDED else None

    def waits_since_s(self) -> float:
        """Return for how long the job has waited for its beginning; 0 once it has begun."""
        return time.monotonic() - self._began_at if self._is_pending else 0.0

    def say(self, text: str) -> None:
        """Say something that the job did not."""
        print(text, file=self._out, flush=True)

    def _print(self, info: Mapping[str, Any]) -> None:
        self._is_pending = info["status"] == "PENDING"
        if self._is_pending:
            reason = str(info.get("message") or "")
            if reason != self._waits_for and self.waits_since_s() > USUAL_START_S:
                self._waits_for = reason
                self.say(f"waiting: {reason}")
            return
        # Before that line there is what Ray says of the environment, and in it what is in the dashboard as well.
        _, _, text = self._job.head.output(self._job.run_id).partition(self._start)
        text = text.partition("\n")[2]
        self._out.write(text[self._printed :])
        self._out.flush()
        self._printed = max(self._printed, len(text))

    def _silence(self, exc: NoAnswerError) -> dict[str, Any] | None:
        """Bear that there is no answer for a while; what is known of a job that has ended is enough after seconds."""
        silent_s = time.monotonic() - self._heard_at
        run_id, stack = self._job.run_id, self._job.stack
        has_ended = self._info["status"] in _ENDED
        if has_ended and silent_s > LAST_WORDS_S:
            self.say(
                f"what the job printed last cannot be read: {exc} `zenray run show {run_id} --stack {stack}` has what "
                "is recorded"
            )
            return self._info
        if silent_s > PATIENCE_S:
            raise ClusterError(
                f"{exc} The run may be going on there: `zenray run show {run_id} --stack {stack}`"
            ) from exc
        if not self._is_away:
            rest = "the run has ended there" if has_ended else "the run goes on there"
            self.say(f"the connection to {self._job.head.url} is lost, trying again; {rest}")
        self._is_away = True
        return None


def job_of(run_id: str, stack: Stack) -> Job | None:
    """Return the job of a run that is not recorded; None where the stack's orchestrator has no such job."""
    if not is_elsewhere(stack.orchestrator) or not _RUN_ID.fullmatch(run_id):
        return None
    job = Job(Head(stack.orchestrator, stack.orchestrator_options), run_id, stack.name)
    try:
        job.head.job(run_id)
    except NoAnswerError:
        raise
    except ClusterError:
        return None
    return job


def submit(file: StackFile, call: Call, order: Order) -> Job:
    """Send the repository of a file to the stack's cluster and start a run there; returns when the job is taken.

    Raises ConfigError for what cannot be sent: a secret that is written out, a store of this machine, too many bytes.
    """
    refuse_local_store(file.as_written())
    refuse_local_ledger(file.as_written())
    url, options = file.orchestrator()
    head = Head(url, options)
    root = _root_of(call.file)
    files = bundle.repository_files(root)
    texts = {f"stacks/{file.name}.yaml": _stack_text(file)}
    if IGNORE_FILE not in files:
        texts[IGNORE_FILE] = ""  # makes it a repository there too
    environment = _environment(options, root)
    # What else the job does with ZenRay, its steps too, is on that stack as well.
    environment["env_vars"]["ZENRAY_STACK"] = file.name
    command = _command(_place(files, call.file, root), call, file.name, order)
    head.check()
    # The other stacks are not needed there, and may hold secrets.
    sent = {n: path for n, path in files.items() if not (n.startswith("stacks/") and n.endswith(".yaml"))}
    environment["working_dir"] = _uploaded(head, sent, texts, root)
    own = _uploaded(head, bundle.own_files(), {}, root)
    environment["py_modules"] = [own, *environment.get("py_modules", ())]
    request = {name: options[name] for name in RAYS_OWN if name in options}
    request |= {"submission_id": order.run_id, "entrypoint": command, "runtime_env": environment}
    job = Job(head, order.run_id, called(file.path))
    _start(job, request)
    return job


def _start(job: Job, request: Mapping[str, Any]) -> None:
    """Start a job; that it was not, is only said where the cluster does not have it."""
    try:
        job.head.start(request)
    except KeyboardInterrupt:
        with suppress(ClusterError):
            job.head.stop(job.run_id)
        raise
    except ClusterError as exc:
        try:
            job.head.job(job.run_id)  # then it was the answer that was lost
        except ClusterError as missing:
            if not isinstance(exc, NoAnswerError):
                raise exc from None
            raise ClusterError(
                f"{exc} Run {job.run_id} may have been started all the same: look with `zenray run show {job.run_id} "
                f"--stack {job.stack}` before you run again"
            ) from missing


def refuse_local_ledger(stack: Stack) -> None:
    """Refuse a metadata store that is a file of this machine for runs elsewhere; ConfigError says what to use."""
    if stack.metadata_store.startswith("sqlite"):
        raise ConfigError(
            f"'metadata_store' {masked_url(stack.metadata_store)!r} is a file of this machine, which the cluster "
            f"{masked_url(stack.orchestrator)!r} cannot share: use PostgreSQL or MySQL, as in "
            "'postgresql+psycopg://user:${env:PASSWORD}@host/database'"
        )


def refuse_local_store(stack: Stack) -> None:
    """Refuse an artifact store of this machine for runs elsewhere; ConfigError says what to use.

    A folder that is neither ZenRay's own nor in the repository may be one that all machines share.
    """
    place = stack.artifact_store.removeprefix("file://")
    owned = [home(), *filter(None, [find_repository()])]
    if "://" not in place and any(Path(place).is_relative_to(folder) for folder in owned):
        raise ConfigError(
            f"'artifact_store' {place!r} is a folder of this machine, which the cluster "
            f"{masked_url(stack.orchestrator)!r} cannot reach: use an object store such as 's3://bucket/prefix', or a "
            "folder outside of the repository that every machine of the cluster and this one have mounted"
        )


def _environment(options: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Return Ray's runtime environment of the job, with the variables that the stack has forwarded."""
    names = [str(name) for name in options.get("env", ())]
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(
            f"'orchestrator.env' names the variable {missing[0]!r}, which is not set: export {missing[0]}=..., or take "
            "it from the list where the cluster has it"
        )
    given = dict(options.get("runtime_env", {}))
    for name, value in given.items():  # a file of requirements
        if isinstance(value, str) and (root / value).is_file():
            given[name] = str(root / value)
    if given:
        from ray.runtime_env import RuntimeEnv

        try:
            given = RuntimeEnv(**given).to_dict()
        except Exception as exc:
            raise ConfigError(f"'orchestrator.runtime_env' is not one that Ray takes: {exc}") from exc
    variables = {**given.get("env_vars", {}), **{name: os.environ[name] for name in names}}
    return {**given, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **variables}}


def _stack_text(file: StackFile) -> str:
    """Return what the job gets as the stack's file: no comments, no secrets, and not what only a client needs."""
    components = {**file.components, "orchestrator": THIS_CLUSTER}
    text = with_components("", components, file.path)
    sent = StackFile(file.path, components, file.root, file.lines)
    if sent.literal_secrets():
        place = sent.literal_secrets()[0]
        raise sent.error(
            f"{place!r} is written out, and everybody who may see the cluster's jobs could read it: write it as "
            "${env:NAME}, and set that variable on the cluster; the orchestrator's 'env' would forward yours, but what "
            "it forwards is seen by the same people",
            place,
        )
    return text


def _root_of(file: Path) -> Path:
    """Return the folder that goes along: the repository, else the one that the file's modules are imported from."""
    folder = Path(os.path.abspath(file)).parent  # noqa: PTH100 - without '..', but symbolic links stay
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    root = find_repository(folder) or folder
    if root in (Path(tempfile.gettempdir()), Path.home(), *Path.home().parents):
        raise ConfigError(
            f"{root} would go to the cluster as a whole: put {file.name} into a folder of its own, and mark that with "
            "`zenray init`"
        )
    return root


def _place(files: Mapping[str, Path], file: Path, root: Path) -> tuple[str, str]:
    """Return the folder that the job starts in, which is the one we are in, and the file as seen from there."""
    name = Path(os.path.abspath(file)).relative_to(root).as_posix()  # noqa: PTH100 - symbolic links stay
    if name not in files:
        raise ConfigError(f"{file} does not go to the cluster: .gitignore or {IGNORE_FILE} leaves it out")
    here = current_folder()
    folder = here.relative_to(root).as_posix() if here.is_relative_to(root) else "."
    if not any(n.startswith(f"{folder}/") for n in files):  # the root itself, or one that stays here
        folder = "."
    return folder, os.path.relpath(name, folder)


def _command(place: tuple[str, str], call: Call, stack: str, order: Order) -> str:
    folder, file = place
    target = f"{file}:{call.pipeline}" if call.pipeline else file
    words = ["python", "-m", "zenray", "submit", target, "--stack", stack, "--order", order.write()]
    words += [] if call.use_cache else ["--no-cache"]
    start = "" if folder == "." else f"cd {shlex.quote(folder)} && "
    command = f"{start}exec {shlex.join(words)}"  # in the place of the shell, so that signals come to it alone
    if len(command.encode()) > MAX_COMMAND:
        raise DefinitionError(
            f"the parameters come to {len(command):,} characters, and a job takes {MAX_COMMAND:,}: let a step read "
            "what is so large, from a zenray.File(url)"
        )
    return command


def _uploaded(head: Head, files: Mapping[str, Path], texts: Mapping[str, str], root: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "files.zip")
        with archive.open("wb") as target:
            bundle.write_archive(target, files, texts, root=root)
        return head.upload(archive)
