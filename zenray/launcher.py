"""How step calls get executed: the protocol between the run engine and what runs the steps.

Runs in: driver.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

from zenray.errors import ConfigError, suggest
from zenray.masking import masked_url
from zenray.model import AttemptResult, CodeRef, Resources, StepCall
from zenray.step import Step

Done = Callable[[Sequence[AttemptResult]], None]


class Launcher(Protocol):
    """Runs step calls somewhere. ``on_done`` may be called from any thread, once for every call handed in.

    ``zenray.workplace`` has what one that runs them in other processes needs.
    """

    is_blocking: bool  # True where launch() returns only after the calls have ended

    def reference(self, step: Step[Any]) -> CodeRef:
        """Return how a worker of this launcher finds the step's function."""
        ...

    def check(self, step_name: str, resources: Resources) -> None:
        """Raise ClusterError for a request that can never be granted: what was asked, what there is."""
        ...

    def width(self, resources: Resources) -> int:
        """Return how many units that ask for this are worth handing over before one has come back."""
        ...

    def launch(self, calls: Sequence[StepCall], resources: Resources, on_done: Done) -> None:
        """Start calls that ask for the same resources, as one unit of work, one after another."""
        ...

    def cancel(self, *, is_forced: bool) -> None:
        """Interrupt everything in flight; forced ends the worker processes."""
        ...

    def close(self) -> None:
        """Let go of what the launcher holds."""
        ...


ENTRY_POINT_GROUP = "zenray.orchestrators"


class LauncherFactory(Protocol):
    """What a package offers under the entry point group ``zenray.orchestrators``, named by the scheme of its URLs."""

    def __call__(
        self,
        url: str,
        options: Mapping[str, Any],
        *,
        store_uri: str,
        store_options: Mapping[str, Any],
        tracker: Mapping[str, Any],
    ) -> Launcher:
        """Return a launcher for the orchestrator at a URL.

        ``options`` are those of the stack's component, ``tracker`` what its workers open an experiment tracker with.
        """
        ...


def launcher_factory(url: str) -> LauncherFactory:
    """Return what makes launchers for an orchestrator's URL; ConfigError where no installed package does."""
    scheme = url.partition("://")[0]
    points = {p.name: p for p in entry_points(group=ENTRY_POINT_GROUP)}
    if scheme not in points:
        known = ["local", "inline", "http://HOST:8265", *(f"{name}://" for name in points)]
        raise ConfigError(
            f"no orchestrator is known for {masked_url(url)!r}; {suggest(scheme, known)} "
            f"(a package adds one with an entry point of the group {ENTRY_POINT_GROUP!r})"
        )
    try:
        factory = points[scheme].load()
    except Exception as exc:
        raise ConfigError(
            f"the orchestrator {scheme!r} ({points[scheme].value}) cannot be loaded: {exc}; "
            "repair or uninstall the distribution that offers it"
        ) from exc
    return factory  # type: ignore[no-any-return]
