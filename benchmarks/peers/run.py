"""Run the same workloads in ZenRay and in each peer framework, and print the times and their ratios.

Each peer has a virtual environment of its own under `.venv-peers/`, made on demand. Each workload is a whole process
with a fresh home, telemetry off and no network. `ms/step` and `frame` are measured around the steps inside that
process, after a warm-up; `cached` and the second table are the whole process.

    python benchmarks/peers/run.py [--only zenml,prefect] [--workloads chain,cached] [--json FILE]
    python benchmarks/peers/run.py --edits [--edits-limit N]

Runs in: the harness.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edits_compare import TOOLS, Tally, compare, edits_details, edits_table, expectations
from environments import PEERS, Peer, PeerError, prepare, run_process
from workloads import STEPS

COLUMNS = {"chain": "chain ms/step", "fan_out": "fan-out ms/step", "cached": "cached run s", "frame": "frame s"}
PROCESS_COLUMNS = {"chain": "chain s", "fan_out": "fan-out s", "cached": "cached run s", "frame": "frame s"}
ADAPTERS = [name for name, peer in PEERS.items() if peer.adapter.exists()]
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Result:
    """One workload in one peer: the seconds of the steps and of the process, or why there are none."""

    peer: str
    workload: str
    steps_s: float | None = None
    process_s: float | None = None
    why_not: str = ""

    @property
    def value(self) -> float | None:
        if self.workload in ("chain", "fan_out"):
            return self.steps_s and self.steps_s * 1000 / STEPS[self.workload]
        return self.process_s if self.workload == "cached" else self.steps_s


def measure(peer: Peer, workload: str, repeat: int) -> Result:
    """Return the best of `repeat` runs of a workload, each in a home of its own."""
    results = [_measure_once(peer, workload) for _ in range(repeat)]
    good = [result for result in results if result.value is not None]
    return min(good, key=lambda result: result.value or 0.0, default=results[-1])


def _measure_once(peer: Peer, workload: str) -> Result:
    home = Path(tempfile.mkdtemp(prefix="peer-"))
    trace, answer = home / "trace", home / "result.json"
    arguments, settings = [str(peer.adapter), workload, str(answer)], {"PEERS_TRACE": str(trace)}
    try:
        for _ in range(2 if workload == "cached" else 1):
            steps_before = _count_lines(trace)
            process_s = run_process(peer, arguments, home=home, timeout_s=TIMEOUT_S, settings=settings)
        found = json.loads(answer.read_text())
        if "unsupported" in found:
            return Result(peer.name, workload, why_not=found["unsupported"])
        if workload == "cached" and not _count_lines(trace) == steps_before == STEPS[workload]:
            return Result(
                peer.name, workload, why_not=f"{_count_lines(trace)} steps ran in two runs, not {STEPS[workload]}"
            )
        return Result(peer.name, workload, found["steps_s"], process_s - found["check_s"])
    except PeerError as exc:
        return Result(peer.name, workload, why_not=str(exc))
    finally:
        if peer.after:
            _end_services(peer, home)
        shutil.rmtree(home, ignore_errors=True)


def _count_lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def _end_services(peer: Peer, home: Path) -> None:
    """End what the tool keeps running between processes; a failure means that there is nothing to end."""
    try:
        run_process(peer, [str(peer.python.parent / peer.name), *peer.after], home=home, timeout_s=60)
    except PeerError as exc:
        print(f"{peer.name} {' '.join(peer.after)}: {exc}", file=sys.stderr)


def table(
    title: str,
    results: Sequence[Result],
    versions: dict[str, str],
    *,
    columns: Mapping[str, str],
    value: Callable[[Result], float | None],
) -> str:
    """Return a table with a row for each peer; `(x)` after a number is its ratio to the first row that has one."""
    peers = list(dict.fromkeys(result.peer for result in results))
    workloads = list(dict.fromkeys(result.workload for result in results))
    cells = {(result.peer, result.workload): value(result) for result in results}
    base = {w: next((cells[p, w] for p in sorted(peers, key=_base_order) if cells[p, w]), None) for w in workloads}
    lines = [title, f"{'tool':<20}" + "".join(f"{columns[workload]:>24}" for workload in workloads)]
    for peer in peers:
        row = "".join(f"{_cell(cells[peer, workload], base[workload]):>24}" for workload in workloads)
        lines.append(f"{f'{peer} {versions[peer]}':<20}{row}")
    return "\n".join(lines)


def _base_order(peer: str) -> int:
    return ["zenray", "ray"].index(peer) if peer in ("zenray", "ray") else 2


def _cell(value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} ({value / base:.1f}x)" if base else f"{value:.2f}"


def footnotes(results: Sequence[Result]) -> list[str]:
    return [f"- {r.peer}, {r.workload}: {r.why_not}" for r in results if r.why_not]


def main() -> int:
    options = _options()
    versions = _versions(options.only or (TOOLS if options.edits else ADAPTERS))
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before, Python {platform.python_version()}\n")
    found = _edits(options, versions) if options.edits else _workloads(options, versions)
    if options.json:
        everything = {"versions": versions, "cores": os.cpu_count(), **found}
        options.json.write_text(json.dumps(everything, indent=2) + "\n")
    return 0


def _versions(names: Sequence[str]) -> dict[str, str]:
    """Install the peers; one that can't be is left out, with what pip said."""
    versions = {}
    for name in names:
        try:
            versions[name] = prepare(PEERS[name])
        except PeerError as exc:
            print(f"{name}: left out: {exc}", file=sys.stderr)
    return versions


def _workloads(options: argparse.Namespace, versions: dict[str, str]) -> dict[str, object]:
    results: list[Result] = []
    for name in versions:
        for workload in options.workloads:
            result = measure(PEERS[name], workload, options.repeat)
            results.append(result)
            print(f"{name} {workload}: {result.why_not or _cell(result.value, None)}", file=sys.stderr, flush=True)
    print(table("Steps", results, versions, columns=COLUMNS, value=lambda result: result.value))
    print(table("\nWhole process", results, versions, columns=PROCESS_COLUMNS, value=lambda result: result.process_s))
    print("\n".join(footnotes(results)))
    return {"results": [asdict(result) for result in results]}


def _edits(options: argparse.Namespace, versions: dict[str, str]) -> dict[str, object]:
    expected = expectations(options.edits_limit)
    tallies: dict[str, Tally] = {}
    for name in versions:
        try:
            tallies[name] = compare(PEERS[name], expected)
        except PeerError as exc:
            print(f"{name}: left out: {exc}", file=sys.stderr)
    print(edits_table(tallies, versions, len(expected)))
    print("\n".join(edits_details(tallies)))
    return {"edits": {name: asdict(tally) for name, tally in tallies.items()}}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare ZenRay with its peers.")
    parser.add_argument("--only", type=_one_of(list(PEERS)), metavar="NAME,...", help=", ".join(PEERS))
    parser.add_argument("--edits", action="store_true", help=f"compare caches instead ({', '.join(TOOLS)})")
    parser.add_argument("--edits-limit", type=int, metavar="N", help="take only so many of the edits")
    parser.add_argument("--workloads", type=_one_of(list(STEPS)), default=list(STEPS), help=", ".join(STEPS))
    parser.add_argument("--repeat", type=int, default=1, help="best of so many runs of each workload")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    return parser.parse_args()


def _one_of(known: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
