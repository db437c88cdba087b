"""The ``Artifact`` that a step call returns inside a pipeline: a future for a stored value.

Runs in: driver.
"""

from typing import Any, NoReturn, Protocol

from zenray.errors import UnfinishedArtifactError
from zenray.model import Manifest


class Resolver(Protocol):
    """The run that an artifact belongs to."""

    run_id: str

    def manifest(self, step_run: str, index: int) -> Manifest:
        """Wait for a step run and return the manifest of one of its outputs."""
        ...

    def load(self, step_run: str, index: int) -> Any:
        """Wait for a step run and return the value of one of its outputs."""
        ...


class Artifact:
    """An output of a step run that may not be there yet: pass it on to other steps, or ``load()`` it."""

    def __init__(self, resolver: Resolver, step_run: str, index: int, *, output: str, annotation: Any) -> None:
        self._resolver = resolver
        self.step_run = step_run
        self.index = index
        self.output = output
        self.annotation = annotation

    @property
    def run_id(self) -> str:
        """The run it belongs to."""
        return self._resolver.run_id

    @property
    def manifest(self) -> Manifest:
        """What it is made of; waits until its step has finished."""
        return self._resolver.manifest(self.step_run, self.index)

    def load(self) -> Any:
        """Wait for the step and return the value; raises StepFailed where the step, or one before it, failed."""
        return self._resolver.load(self.step_run, self.index)

    def __repr__(self) -> str:
        return f"<artifact {self.step_run}.{self.output}>"

    def __reduce__(self) -> NoReturn:
        raise UnfinishedArtifactError(f"{self!r} cannot be pickled; pass its value, {self.output}.load()")

    def _refuse(self, *_: Any) -> NoReturn:
        raise UnfinishedArtifactError(
            f"{self!r} is not a value yet: pass it to a step as it is, or call .load() to wait for its value"
        )

    __bool__ = __iter__ = __len__ = __getitem__ = __contains__ = __call__ = __int__ = __float__ = __index__ = _refuse
    __format__ = _refuse  # in an f-string; print and repr show which artifact it is
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __pow__ = __mod__ = __floordiv__ = __matmul__ = _refuse

    def __eq__(self, other: object) -> bool:
        return self is other if isinstance(other, Artifact) else self._refuse()

    def __hash__(self) -> int:
        return id(self)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnfinishedArtifactError(
            f"{self!r} has no attribute {name!r}: it stands for a value that may not be there yet; "
            f"call .load() first, or use .{name} inside a step"
        )
