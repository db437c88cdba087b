"""Which of the materializers beyond the built-in ones can matter for what a step gives.

Runs in: driver.

How a value is stored is decided by its class, which is known only once the step has run. So a materializer counts for
a step unless no value that it serves can come up there: it serves a class of the project, and neither the step's code,
nor the code of a materializer that counts, nor that of the steps whose outputs it takes, reaches that class. What the
code of the project cannot tell, such as which classes of a library come up, counts for every step that uses a library.
"""

import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zenray.fingerprint import Fingerprint, fingerprint
from zenray.fingerprint.origin import Origin, display_name, locate, origin, origin_of_module
from zenray.materializer import load_materializer, main_module_name, registry
from zenray.model import Json, Manifest

_EVERYWHERE = ("", "")
_LIBRARY = ("distribution", "")


@dataclass(frozen=True, slots=True)
class _Custom:
    path: str
    digest: str
    code: Fingerprint
    mark: tuple[str, str]  # the part of a code closure that tells that such a value may come up


class CustomMaterializers:
    """The registrations of this process as they were when a run first asked for them."""

    def __init__(self) -> None:
        self._known = {name: _custom(name, path) for name, path in registry.custom().items()}

    def relevant(self, code: Fingerprint, inputs: Iterable[tuple[Manifest, Iterable[str] | None]]) -> dict[str, Json]:
        """Return those that can matter for a step, by type name: the path, and the digest of the materializer's code.

        Each input comes with what was relevant for the step that made it, or None where that is not known.
        """
        if not self._known:
            return {}
        pending = [name for name in self._known if self._is_reached(name, code)]
        for manifest, inherited in inputs:
            pending += [name for name, custom in self._known.items() if custom.path == manifest.materializer]
            if manifest.may_hold_instances:
                pending += self._known if inherited is None else inherited
        found: dict[str, Json] = {}
        while pending:
            name = pending.pop()
            custom = self._known.get(name)
            if custom is None or name in found:
                continue
            found[name] = [custom.path, custom.digest]
            pending += [other for other in self._known if self._is_reached(other, custom.code)]
        return {name: found[name] for name in sorted(found)}

    def _is_reached(self, name: str, code: Fingerprint) -> bool:
        kind, part = self._known[name].mark
        if not kind or code.problems:
            return True
        for found in code.parts:
            if found.kind == "module" and "(" not in found.name:
                return True  # of a module that is not loaded yet only the text is known
            if (kind == _LIBRARY[0] and found.kind == kind) or (found.name == part and found.kind in (kind, "step")):
                return True
        return False


def unforeseen(manifest: Manifest, environment: Mapping[str, Any]) -> str:
    """Return the type name of an output whose materializer is not part of the key that it was found under."""
    custom = registry.custom()
    serves = custom.get(manifest.type_name, manifest.materializer)
    is_moved = serves != manifest.materializer and manifest.type_name not in environment
    known = {entry[0] for entry in environment.values() if isinstance(entry, list)}
    is_missed = manifest.materializer in custom.values() and manifest.materializer not in known
    return manifest.type_name if is_moved or is_missed else ""


def _custom(name: str, path: str) -> _Custom:
    code = fingerprint(type(load_materializer(path)))
    return _Custom(path, secrets.token_hex(16) if code.problems else code.digest, code, _mark(name))


def _mark(name: str) -> tuple[str, str]:
    """Return kind and name of the part that code has which can come to a value of a type; of any code: nothing."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        module = sys.modules.get(module_name)
        if module is None and module_name == main_module_name():
            module = sys.modules["__main__"]
        if module is not None:
            whose = origin_of_module(module)
            if whose is Origin.FIRST_PARTY:
                found: Any = module
                for part in parts[cut:]:
                    found = vars(found).get(part) if isinstance(found, type) or found is module else None
                is_named = isinstance(found, type) and found.__qualname__ == ".".join(parts[cut:])
                return ("class", f"{display_name(found.__module__)}.{found.__qualname__}") if is_named else _EVERYWHERE
            return _LIBRARY if whose is Origin.INSTALLED else _EVERYWHERE
        located = locate(module_name)
        if located is not None:
            whose = origin(module_name, located.file)
            if whose is Origin.FIRST_PARTY:
                return ("module", module_name)  # reached only through a module that is not loaded yet
            return _LIBRARY if whose is Origin.INSTALLED else _EVERYWHERE
    return _EVERYWHERE
