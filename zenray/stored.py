"""A finished artifact outside of any run: what reading back gives, and what may be handed to a step of another run.

Runs in: anywhere.
"""

from dataclasses import dataclass
from typing import Any

from zenray import artifacts
from zenray.materializer import register_repository
from zenray.model import Manifest
from zenray.store import Store


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """An artifact that a step run gave or took; pass it to a step, or ``load()`` it."""

    name: str
    manifest: Manifest
    store: Store

    def load(self, *, allow_pickle: bool = False) -> Any:
        """Return the value; a pickle only where ``allow_pickle`` says that its origin is trusted."""
        register_repository()
        return artifacts.load(self.manifest, self.store, allow_pickle=allow_pickle)

    @property
    def digest(self) -> str:
        """The artifact's identity."""
        return self.manifest.digest

    def __repr__(self) -> str:
        return (
            f"<artifact {self.name}: {self.manifest.type_name}, {self.manifest.size_bytes} bytes, {self.digest[:12]}>"
        )
