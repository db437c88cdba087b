"""What a pipeline function returned: recorded by reference, and read back by name.

Runs in: driver.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zenray.annotations import DEFAULT_OUTPUT
from zenray.errors import is_huge, shown
from zenray.futures import Artifact
from zenray.model import Json, Manifest


class Returned(NamedTuple):
    """One thing that was returned: an output of a step run, or, without one, a plain value."""

    name: str
    step_run: str = ""
    output: str = ""
    value: Json = None


def references(returned: Any) -> Json:
    """Return what a pipeline's function returned as JSON: artifacts by reference, and plain values short."""
    if isinstance(returned, Artifact):
        return {"step": returned.step_run, "output": returned.output}
    if isinstance(returned, list | tuple):
        return [references(r) for r in returned]
    if isinstance(returned, dict):
        return {str(k): references(v) for k, v in returned.items()}
    if returned is None or (isinstance(returned, bool | int | float | str) and not is_huge(returned)):
        return {"value": returned}
    return {"value": shown(returned)}


def named(recorded: Json) -> dict[str, Returned]:
    """Return what was recorded by name: a dictionary's keys, else names of outputs, else of steps, else numbers."""
    found: dict[str, Returned] = {}
    for returned in _flat(recorded, ""):
        name, count = returned.name, 1
        while name in found:
            count += 1
            name = f"{returned.name}_{count}"
        found[name] = returned._replace(name=name)
    return found


def _flat(recorded: Json, key: str) -> Iterator[Returned]:
    if isinstance(recorded, list):
        for number, inner in enumerate(recorded):
            yield from _flat(inner, f"{key}.{number}" if key else "")
    elif isinstance(recorded, Mapping):
        if recorded.keys() == {"step", "output"} and isinstance(recorded["step"], str):
            step_run, output = recorded["step"], recorded["output"]
            yield Returned(key or (step_run if output == DEFAULT_OUTPUT else output), step_run, output)
        elif recorded.keys() == {"value"} and not isinstance(recorded["value"], Mapping | list):
            if key or recorded["value"] is not None:  # a function without a return statement returned nothing
                yield Returned(key or "value", value=recorded["value"])
        else:
            for name, inner in recorded.items():
                yield from _flat(inner, f"{key}.{name}" if key else name)


def brief(manifest: Manifest, limit: int = 60) -> str:
    """Return a small value as text, from its preview; nothing for what is large or has no short form."""
    text = manifest.preview.get("value")
    return text if isinstance(text, str) and len(text) <= limit and "\n" not in text else ""
