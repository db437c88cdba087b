"""One step run in full: what it took, what it gave, its tries, and why it ran.

Runs in: driver.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zenray.cli.output import duration_text, fields, print_json, table, time_text

if TYPE_CHECKING:
    from zenray.views import Books


def show_step(books: "Books", run_id: str, name: str, *, as_json: bool) -> None:
    """Print a step run."""
    ledger = books.ledger
    step = ledger.step_run(run_id, name)
    attempts, inputs = ledger.attempts(run_id, step.name), ledger.inputs(run_id, step.name)
    outputs = ledger.outputs(run_id, step.name)
    if as_json:
        print_json(
            asdict(step)
            | {"attempts": list(map(asdict, attempts)), "inputs": list(map(asdict, inputs))}
            | {"outputs": list(map(asdict, outputs))}
        )
        return
    fields(
        {
            "step": step.name + (f" (of {step.step})" if step.step != step.name else ""),
            "run": run_id,
            "status": step.status,
            "started": time_text(step.started_at),
            "took": duration_text(step.started_at, step.ended_at),
            "arguments": ", ".join(f"{k}={v!r}" for k, v in step.parameters.items() if v != "<artifact>"),
            "resources": ", ".join(f"{k}={v}" for k, v in step.resources.items()),
            "tags": ", ".join(step.tags),
            "metadata": ", ".join(f"{k}={v!r}" for k, v in step.metadata.items()),
            "cached from": " ".join(step.cache_source or ()),
            "skipped for": step.cause,
            "reason": step.reason,
            "error": f"{step.error.get('type')}: {step.error.get('message')}" if step.error else "",
        }
    )
    _part(
        ("input", "artifact", "from"),
        [(i.argument, i.digest[:12], i.producer or "outside of the run") for i in inputs],
    )
    stored = books.artifacts([o.digest for o in outputs])
    _part(
        ("output", "artifact", "type", "value"),
        [(o.output, o.digest[:12], *_described(stored.get(o.digest))) for o in outputs],
    )
    _part(
        ("attempt", "status", "took", "worker", "error"),
        [
            (a.number, a.status, duration_text(a.started_at, a.ended_at), a.worker, (a.error or {}).get("type", ""))
            for a in attempts
        ],
    )


def _part(headers: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    if rows:
        print()
        table(headers, rows)


def _described(record: Any) -> tuple[str, str]:
    from zenray.returned import brief

    return ("", "no longer stored") if record is None else (record.manifest.type_name, brief(record.manifest))
