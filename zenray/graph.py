"""The pure state machine of a run: which step runs wait for which, and what follows from each event.

Runs in: driver.

No clock, no input or output: every method takes one event and returns what it caused, so that any interleaving
can be tested. A step run waits until all it depends on has outputs, becomes ready once, and ends once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from zenray.errors import DefinitionError
from zenray.model import Status


@dataclass(slots=True)
class Node:
    """One step run in the graph."""

    name: str
    depends_on: tuple[str, ...]
    status: Status = Status.WAITING
    missing: set[str] = field(default_factory=set)
    dependants: list[str] = field(default_factory=list)


class Graph:
    """Step runs and their order."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._ready: list[str] = []
        self._open_count = 0

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    @property
    def is_finished(self) -> bool:
        """True where every step run added so far has ended."""
        return self._open_count == 0

    def status(self, name: str) -> Status:
        """Return where a step run is."""
        return self._nodes[name].status

    def add(self, name: str, depends_on: Iterable[str]) -> str | None:
        """Add a step run; returns the name of the step run that makes it impossible, if one has failed already.

        Raises DefinitionError for a name that is taken and for a dependency that is not there: an edge can only
        lead back to what was added before, so the graph cannot have a cycle.
        """
        wanted = tuple(dict.fromkeys(depends_on))
        if name in self._nodes:
            raise DefinitionError(f"the run has a step run {name!r} already")
        for other in wanted:
            if other not in self._nodes:
                raise DefinitionError(f"step run {name!r} depends on {other!r}, which would come after it: a cycle")
        node = Node(name, wanted)
        self._nodes[name] = node
        self._open_count += 1
        for other in wanted:
            before = self._nodes[other]
            if not before.status.is_finished:
                node.missing.add(other)
                before.dependants.append(name)
            elif not before.status.has_outputs:
                self._end(node, Status.SKIPPED)
                return other
        if not node.missing:
            self._ready.append(name)
        return None

    def take_ready(self) -> list[str]:
        """Return the step runs that have become ready since the last call; each is given once."""
        ready = [n for n in self._ready if self._nodes[n].status is Status.WAITING]
        self._ready = []
        return ready

    def start(self, name: str) -> None:
        """Note that an attempt is on its way."""
        node = self._nodes[name]
        if not node.status.is_finished:
            node.status = Status.RUNNING

    def succeed(self, name: str, *, is_cached: bool = False) -> bool:
        """Note that the outputs are there; False where the step run had ended before, and nothing changed."""
        node = self._nodes[name]
        if node.status.is_finished:
            return False
        self._end(node, Status.CACHED if is_cached else Status.SUCCEEDED)
        for other in node.dependants:
            dependant = self._nodes[other]
            dependant.missing.discard(name)
            if not dependant.missing and dependant.status is Status.WAITING:
                self._ready.append(other)
        return True

    def fail(self, name: str) -> list[str]:
        """Note a failure; returns the step runs that are skipped because of it, nearest first."""
        node = self._nodes[name]
        if node.status.is_finished:
            return []
        self._end(node, Status.FAILED)
        skipped: list[str] = []
        front = list(node.dependants)
        while front:
            other = self._nodes[front.pop(0)]
            if other.status is Status.WAITING:
                self._end(other, Status.SKIPPED)
                skipped.append(other.name)
                front.extend(other.dependants)
        return skipped

    def cancel(self) -> list[str]:
        """End everything that has not ended; returns the names, in the order they were added."""
        ended = [n for n in self._nodes.values() if not n.status.is_finished]
        for node in ended:
            self._end(node, Status.CANCELLED)
        return [n.name for n in ended]

    def _end(self, node: Node, status: Status) -> None:
        node.status = status
        self._open_count -= 1
