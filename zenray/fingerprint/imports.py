"""Modules that are imported while a step runs, noticed at the moment that their import has ended.

Runs in: anywhere.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Imports:
    """An entry of ``sys.meta_path`` that finds what the others find, and calls back when certain modules are there.

    While modules import one another, it calls once, at the end.
    """

    def __init__(self, names: Collection[str], on_loaded: Callable[[], None]) -> None:
        self._names, self._on_loaded = names, on_loaded
        self._depth = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders have; its loader executes the module as it would, and then calls back."""
        if name not in self._names:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            with suppress(AttributeError):  # a loader may have no room for it: its module counts as one that changed
                self._follow(spec.loader)
        return spec

    def _follow(self, loader: Any) -> None:
        execute = loader.exec_module

        def followed(module: ModuleType) -> None:
            del loader.exec_module  # only its own: the loader is what it was
            self._depth += 1
            try:
                execute(module)
            finally:
                self._depth -= 1
            parent, _, child = module.__name__.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, module)  # as the import system does next
            if not self._depth:
                self._on_loaded()

        loader.exec_module = followed
