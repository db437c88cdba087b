"""Modules that are imported while a step runs, noticed when they are found, and when their import has ended.

Runs in: anywhere.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from itertools import dropwhile
from types import ModuleType
from typing import Any


class Imports:
    """An entry of ``sys.meta_path`` that finds what the next ones find, and calls back about certain modules.

    For each it tells the file, once it was read, and also where its import fails; None where there is no file. When
    they are there it calls again: while modules import one another once, at the end.
    """

    def __init__(
        self, names: Collection[str], *, on_read: Callable[[str, str | None], None], on_loaded: Callable[[], None]
    ) -> None:
        self._names, self._on_read, self._on_loaded = names, on_read, on_loaded
        self._depth = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the next finders have; its loader executes the module as it would, and then calls back."""
        if name not in self._names:
            return None
        # Those before it may be like this one, of a run that a step of another run has begun: they ask it.
        others = list(dropwhile(lambda finder: finder is not self, sys.meta_path))[1:]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((one for one in found if one is not None), None)
        file = spec.origin if spec is not None and spec.has_location else None
        if spec is not None and hasattr(spec.loader, "exec_module"):
            with suppress(AttributeError):  # a loader may have no room for it: its module counts as one that changed
                self._follow(spec.loader, file)
                return spec
        self._on_read(name, file)
        return spec

    def _follow(self, loader: Any, file: str | None) -> None:
        execute = loader.exec_module

        def followed(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)  # only its own: the loader is what it was
            self._depth += 1
            try:
                execute(module)
            finally:
                self._depth -= 1
                self._on_read(module.__name__, file)
            parent, _, child = module.__name__.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, module)  # as the import system does next
            if not self._depth:
                self._on_loaded()

        loader.exec_module = followed
