"""Edit a small project in many ways and count, for each tool, stale results and needless re-runs.

The project's steps are run each on its own, with fixed inputs, so that what ran is what the tool held to be changed.
For each tool the project is run once, which fills the cache. Then, for each edit, project and cache are put back as
they were, the edit is applied in place, and the project is run again in a new process.

Runs in: the harness.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from environments import HERE, Peer, PeerError, run_process

sys.path.append(str(HERE.parent))
from edits import EDITS, INPUTS, PROJECT, STEPS, Edit, write_project

DSL = HERE / "edits_dsl"
TOOLS = ("zenray", "zenml", "prefect", "redun", "joblib")
TIMEOUT_S = 300
PLAIN = Peer("plain", "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of the project gave: what each step returned, as its repr, and the steps that really ran."""

    values: dict[str, str]
    ran: frozenset[str]


@dataclass(slots=True)
class Tally:
    """What came of a tool's edits, by the names of the edits; an edit can be stale and needless at once."""

    stale: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    correct: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Bench:
    """A project of one tool, at one path for all edits."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._root = Path(tempfile.mkdtemp(prefix="edits-"))
        self._home = self._root / "home"
        self._project = self._home / "project"
        self._project.mkdir(parents=True)

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def fill(self) -> Outcome:
        """Run the project as it is, and keep what that leaves for all edits to come."""
        self._write(None)
        outcome = self._run(None)
        self._home.rename(self._root / "filled")
        return outcome

    def after(self, edit: Edit) -> Outcome:
        """Put project and cache back, apply the edit and run again."""
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.copytree(self._root / "filled", self._home, symlinks=True)
        for path in PROJECT:
            (self._project / path).unlink()
        self._write(edit)
        return self._run(edit)

    def _write(self, edit: Edit | None) -> None:
        write_project(self._project, edit)
        (self._project / "inputs.json").write_text(json.dumps(INPUTS))
        for source, name in ((f"{self._peer.name}.py", "peer_dsl.py"), ("main.py",) * 2, ("peer_trace.py",) * 2):
            shutil.copyfile(DSL / source, self._project / name)
        if self._peer.name != "zenray":
            pipeline = self._project / "pipeline.py"
            pipeline.write_text(_traced(pipeline.read_text()))

    def _run(self, edit: Edit | None) -> Outcome:
        trace, result = self._home / "trace", self._home / "result.json"
        trace.write_text("")
        settings = {
            "PEERS_TRACE": str(trace),
            "PYTHONPATH": str(self._project / "site-packages"),
            "PYTHONDONTWRITEBYTECODE": "1",  # an edit within one second must not find the old byte code
            "ZENRAY_STACK": "inline",
            **dict(edit.environment if edit else ()),
        }
        arguments = [str(self._project / "main.py"), str(result)]
        run_process(self._peer, arguments, home=self._home, cwd=self._project, timeout_s=TIMEOUT_S, settings=settings)
        found = json.loads(result.read_text())
        return Outcome(found, frozenset(trace.read_text().split()))


def expectations(limit: int | None) -> dict[Edit, dict[str, str]]:
    """Run the edited projects without any cache; an edit of a data file is no edit of code and left out."""
    edits = _spread([edit for edit in EDITS if edit.kind != "input"], limit)
    with Bench(PLAIN) as bench:
        bench.fill()
        return {edit: bench.after(edit).values for edit in edits}


def compare(peer: Peer, expected: dict[Edit, dict[str, str]]) -> Tally:
    """Run a tool through the edits.

    Raises:
        PeerError: If the tool can't run the project as it is.
    """
    tally = Tally()
    with Bench(peer) as bench:
        if bench.fill().ran != frozenset(STEPS):
            raise PeerError("not every step ran in the first run")
        for edit, values in expected.items():
            try:
                outcome = bench.after(edit)
            except PeerError as exc:
                tally.failed.append(f"{edit.name}: {exc}")
                continue
            is_stale, is_needless = outcome.values != values, bool(outcome.ran - edit.must_rerun)
            if is_stale:
                tally.stale.append(edit.name)
            if is_needless:
                tally.needless.append(edit.name)
            if not is_stale and not is_needless:
                tally.correct.append(edit.name)
    return tally


def edits_table(tallies: dict[str, Tally], versions: dict[str, str], edits: int) -> str:
    lines = [f"{'tool':<20}{'edits':>8}{'stale hits':>12}{'needless re-runs':>18}{'correct':>9}{'failed':>8}"]
    for name, t in tallies.items():
        counts = f"{len(t.stale):>12}{len(t.needless):>18}{len(t.correct):>9}{len(t.failed):>8}"
        lines.append(f"{f'{name} {versions[name]}':<20}{edits:>8}{counts}")
    return "\n".join(lines)


def edits_details(tallies: dict[str, Tally]) -> list[str]:
    kinds = ("stale", "needless", "failed")
    return [f"- {name}, {kind}: {', '.join(getattr(t, kind))}" for name, t in tallies.items() for kind in kinds]


def _traced(text: str) -> str:
    """Write the pipeline in the peer's terms, each step with a mark as its first statement."""
    text = text.replace(
        "from zenray import pipeline, step", "from peer_dsl import pipeline, step\nfrom peer_trace import ran"
    )
    lines, step = [], ""
    for line in text.splitlines(keepends=True):
        lines.append(line)
        step = next((name for name in STEPS if line.startswith(f"def {name}(")), step)
        if step and line.startswith('    """'):
            lines.append(f'    ran("{step}")\n')
            step = ""
    return "".join(lines)


def _spread(edits: Sequence[Edit], limit: int | None) -> list[Edit]:
    """Return at most `limit` edits, taken evenly from the whole table."""
    count = min(limit or len(edits), len(edits))
    return [edits[i * len(edits) // count] for i in range(count)]
