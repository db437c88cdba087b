"""Cache keys: what a step run's result depends on, as named parts, and why two of them differ.

Runs in: driver.
"""

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zenray.files import File, Folder
from zenray.fingerprint import Fingerprint, release_of
from zenray.hashing import digest_value, encode, framed
from zenray.model import Json, Slot
from zenray.step import Step

MAX_FILES = 1000  # of a folder, of which explain can say what changed
UNKNOWN_CODE = "unknown"  # in the place of a digest: whatever needs that code has no key
RECIPE = 3  # of the key itself: raised when the same inputs must no longer give the same key


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A key and the parts it was made of; an empty key means that nothing may be taken from, or put into, the cache."""

    key: str
    parts: Mapping[str, Json]
    reason: str = ""


def key_of(
    step: Step[Any],
    arguments: Mapping[str, Any],
    inputs: Sequence[str],
    code: Fingerprint,
    materializers: Mapping[str, Json],
    heritage: Iterable[str] = (),
    libraries: Mapping[str, Json] | None = None,
) -> CacheKey:
    """Return the key of one step run.

    Args:
        step: the step; of its options only ``ignore``, ``salt`` and the output names count.
        arguments: its bound arguments by name, artifacts replaced by Slots.
        inputs: the digests of the input artifacts, by Slot index.
        code: the fingerprint of its code.
        materializers: the registrations beyond the built-in ones that can matter for it, with digests of their code.
        heritage: digests of the code that made those inputs which may hold instances of the user's classes, or
            ``UNKNOWN_CODE``.
        libraries: the distributions whose objects it takes, by name.
    """
    counted = {n: v for n, v in arguments.items() if n not in step.settings.ignore}
    parts: dict[str, Json] = {
        "recipe": RECIPE,
        "code": code.digest,
        "arguments": {name: digest_value(["argument", tree_bytes(v, inputs)]) for name, v in counted.items()},
        "outputs": [o.name for o in step.outputs] if step.is_multiple else step.outputs[0].name,
        # a registration beyond the built-in ones decides how an output is stored
        "environment": {"platform": platform.machine(), **materializers},
        "salt": step.settings.salt,
        "classes": sorted(heritage),
    }
    if libraries:
        parts["libraries"] = dict(libraries)
    if code.problems:
        return CacheKey("", parts, "its code cannot be followed: " + "; ".join(code.problems))
    if UNKNOWN_CODE in parts["classes"]:
        return CacheKey("", parts, _UNKNOWN_INSTANCES)
    key = digest_value(["step", parts])
    files = {name: _files_of(value) for name, value in counted.items() if type(value) is Folder}
    return CacheKey(key, parts | ({"files": files} if files else {}))  # for explain: the key has the folder's digest


_UNKNOWN_INSTANCES = (
    "it takes instances of classes whose code is not recorded: they come from another run, or from code that cannot be "
    "followed; give plain values or tables, or call the step that makes them in this pipeline"
)


def libraries(type_names: Iterable[str]) -> dict[str, Json]:
    """Return the distributions that classes come from, with their versions.

    A step that only calls methods of a data frame names nothing of the frame's library.
    """
    tops = sorted({name.rpartition(".")[0] for name in type_names})
    releases = (release_of(top) for top in tops if top.partition(".")[0] not in sys.stdlib_module_names)
    return {found[0]: list(found[1:]) for found in releases if found is not None}


def _files_of(folder: Folder) -> dict[str, str]:
    """Return the files of a folder with the beginnings of their digests; of a large folder none."""
    if len(folder) > MAX_FILES:
        return {}
    return {file.url.removeprefix(f"{folder.url}/"): file.digest[:12] for file in folder}


def tree_bytes(tree: Any, inputs: Sequence[str]) -> bytes:
    """Encode an argument tree, artifacts and outside files by their digests."""
    kind = type(tree)
    if kind is Slot:
        return framed(b"artifact", inputs[tree.index].encode())
    if kind in (File, Folder):
        return framed(b"outside", tree.digest.encode())
    if kind in (list, tuple):
        return framed(kind.__name__.encode(), b"".join(tree_bytes(v, inputs) for v in tree))
    if kind is dict:
        return framed(b"dict", b"".join(framed(encode(k), tree_bytes(v, inputs)) for k, v in tree.items()))
    return encode(tree)


def differences(
    now: Mapping[str, Json],
    before: Mapping[str, Json],
    code_now: Sequence[Mapping[str, Json]],
    code_before: Sequence[Mapping[str, Json]],
) -> list[str]:
    """Say for people in what two step runs' keys differ, the code down to the function."""
    found: list[str] = []
    if now.get("code") != before.get("code"):
        found += code_differences(code_now, code_before) or ["code changed"]
    groups = (("arguments", "argument"), ("environment", "environment"), ("libraries", "distribution"))
    for group, word in groups:
        old, new = before.get(group) or {}, now.get(group) or {}
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                change = "is new" if name not in old else "is gone" if name not in new else "changed"
                files = _changed_files(now, before, name) if word == "argument" and change == "changed" else ""
                found.append(f"{_named(word, name, new.get(name, old.get(name)))} {change}{files}")
    for group, text in (
        ("outputs", "output names changed"),
        ("salt", "salt changed"),
        ("classes", "the code behind instances that it takes changed"),
        ("recipe", "ZenRay's key changed"),
    ):
        if now.get(group) != before.get(group):
            found.append(text)
    return found


def _changed_files(now: Mapping[str, Json], before: Mapping[str, Json], argument: str) -> str:
    """Name the files that were added to a folder, removed from it or changed."""
    new, old = ((parts.get("files") or {}).get(argument) or {} for parts in (now, before))
    if not new or not old:
        return ""
    kinds = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in new.keys() & old.keys() if new[name] != old[name]),
    }
    texts = [f"{', '.join(names[:5])}{' ...' if names[5:] else ''} {kind}" for kind, names in kinds.items() if names]
    return f" ({'; '.join(texts)})" if texts else ""


def _named(word: str, name: str, value: Json) -> str:
    """Name a part of a key: an argument, the platform, or a materializer with the type that it serves."""
    is_materializer = word == "environment" and isinstance(value, list)
    return f"materializer {value[0]!r} of {name!r}" if is_materializer else f"{word} {name!r}"


def change(in_worker: Sequence[Mapping[str, Json]], now: Fingerprint, before: Fingerprint) -> str:
    """Say what of a step's code was not, or after it has run is not, what its key was made of; empty if nothing.

    Args:
        in_worker: the parts of its code in a worker, where they differed.
        now: its code in this process after it has run.
        before: its code as the key has it.
    """
    if in_worker:
        return (
            f"{_differing(in_worker, before)} differs between the worker and this process: a step has changed it "
            "there, or it is another in each process; so the result is not kept in the cache. Pass it to the step as a "
            "parameter, and return what the step changes"
        )
    if now.digest != before.digest:
        return (
            f"it changes {_differing(map(asdict, now.parts), before)}, which its own code uses, so its next call is "
            "another one to the cache; pass it to the step as a parameter, and return what the step changes"
        )
    return ""


def _differing(parts: Iterable[Mapping[str, Json]], code: Fingerprint) -> str:
    one = {(p["kind"], p["name"], p["digest"]) for p in parts}
    other = {(p.kind, p.name, p.digest) for p in code.parts}
    names = sorted({(kind, name) for kind, name, _ in one ^ other})
    names = [named for named in names if named[0] in ("constant", "instance")] or names  # most likely the cause
    return ", ".join(f"{kind} {name!r}" for kind, name in names[:5]) or "something that its code uses"


def code_differences(now: Sequence[Mapping[str, Json]], before: Sequence[Mapping[str, Json]]) -> list[str]:
    """Name the functions, classes, constants and distributions that differ between two code closures."""
    new = {(p["kind"], p["name"]): p for p in now}
    old = {(p["kind"], p["name"]): p for p in before}
    found = []
    for key in sorted(new.keys() | old.keys()):
        kind, name = key
        place = f" in {(new.get(key) or old[key])['file']}" if (new.get(key) or old[key]).get("file") else ""
        if key not in old:
            found.append(f"{kind} {name!r}{place} is new")
        elif key not in new:
            found.append(f"{kind} {name!r}{place} is no longer used")
        elif new[key]["digest"] != old[key]["digest"]:
            found.append(f"{kind} {name!r}{place} changed")
    return found
