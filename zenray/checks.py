"""Checks of a stack: what can be known from its file alone, and whether each component really works.

Runs in: driver.
"""

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

from zenray import integrations, local_cluster
from zenray.errors import ConfigError, MetadataError, ZenRayError
from zenray.head import Head, is_elsewhere
from zenray.jobs import refuse_local_ledger, refuse_local_store
from zenray.launcher import launcher_factory
from zenray.masking import masked_text, masked_url
from zenray.metadata.ledger import Ledger
from zenray.metadata.schema import HEAD
from zenray.stack import BUILT_IN, THIS_CLUSTER, Stack
from zenray.store import open_store
from zenray.trackers import open_tracker


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one component; where it does not work, the text says what to do."""

    component: str
    is_ok: bool
    text: str


def validate(stack: Stack) -> None:
    """Refuse a stack with a component that can never work here: of no known kind, or whose package is missing.

    Nothing is opened. Raises ConfigError that names the component, and the command that installs what is missing.
    """
    for component, (check, _) in _CHECKS.items():
        if getattr(stack, component) is not None:
            try:
                check(stack)
            except (ConfigError, MetadataError) as exc:
                raise ConfigError(f"{stack.source or f'stack {stack.name!r}'}: {exc}") from exc


def probe(stack: Stack) -> Iterator[Finding]:
    """Open every component for real and give a finding for each, as it is there; never raises for what is wrong."""
    for component, (check, open_it) in _CHECKS.items():
        if getattr(stack, component) is not None:
            yield _found(component, stack, check, open_it)


def _found(component: str, stack: Stack, check: Callable[[Stack], None], open_it: Callable[[Stack], str]) -> Finding:
    began = time.monotonic()
    try:
        check(stack)
        text = open_it(stack)
    except ZenRayError as exc:
        return Finding(component, False, str(exc))
    except Exception as exc:  # noqa: BLE001 - whatever a foreign component raises is what the check was asked for
        return Finding(component, False, f"{type(exc).__name__}: {masked_text(str(exc))}")
    return Finding(component, True, f"{text} ({(time.monotonic() - began) * 1000:.0f} ms)")


def _require(stack: Stack, component: str) -> None:
    name = integrations.for_url(getattr(stack, component))
    if name is not None:
        integrations.require(name, for_what=f"{component!r}")


def _is_shared(stack: Stack) -> bool:
    """Say whether runs take place on a cluster elsewhere; in its job a reference may have led to a local place."""
    return stack.orchestrator == THIS_CLUSTER or is_elsewhere(stack.orchestrator)


def _check_orchestrator(stack: Stack) -> None:
    if is_elsewhere(stack.orchestrator):
        Head(stack.orchestrator, stack.orchestrator_options)
    elif stack.orchestrator not in (*BUILT_IN, THIS_CLUSTER):
        launcher_factory(stack.orchestrator)


def _open_orchestrator(stack: Stack) -> str:
    if stack.orchestrator == "inline":
        return "inline: steps run in the calling process"
    if stack.orchestrator == "local":
        found = local_cluster.status()
        if found is None:
            return f"local: Ray {version('ray')}, not running, the next run starts it"
        return f"local: Ray {found.info.ray_version} at {found.info.address}, {found.info.num_cpus:g} CPUs"
    if is_elsewhere(stack.orchestrator):
        head = Head(stack.orchestrator, stack.orchestrator_options)
        return f"{head.url}: Ray {head.check()} there, {version('ray')} here"
    if stack.orchestrator == THIS_CLUSTER:
        return f"{THIS_CLUSTER}: the Ray cluster that this process runs on as a job"
    return f"{masked_url(stack.orchestrator)}: provided by an installed package"


def _check_artifact_store(stack: Stack) -> None:
    _require(stack, "artifact_store")
    if _is_shared(stack):
        refuse_local_store(stack)
    open_store(stack.artifact_store, stack.artifact_store_options)
    if stack.artifact_store.startswith("memory://") and stack.orchestrator != "inline":
        raise ConfigError(
            f"'artifact_store' {stack.artifact_store!r} lives in one process, and {stack.orchestrator!r} runs steps in "
            "others: use it with the orchestrator 'inline' only"
        )


def _open_artifact_store(stack: Stack) -> str:
    store = open_store(stack.artifact_store, stack.artifact_store_options)
    store.reach()
    name = f"tmp/check-{secrets.token_hex(4)}"
    store.put_named(name, b"probe")
    is_read = store.get_named(name) == b"probe"
    store.delete(name)
    if not is_read:
        raise ConfigError(f"{store.uri}: a file that was written is not there; is the store consistent?")
    if store.has_named(name):
        raise ConfigError(f"{store.uri}: a file that was deleted is still there; check the permission to delete")
    return f"{store.uri}: wrote, read and deleted an object"


def _check_metadata_store(stack: Stack) -> None:
    _require(stack, "metadata_store")
    if _is_shared(stack):
        refuse_local_ledger(stack)
    Ledger(stack.metadata_store, **stack.metadata_store_options).database.check_driver()


def _open_metadata_store(stack: Stack) -> str:
    with Ledger(stack.metadata_store, **stack.metadata_store_options) as ledger:
        count = sum(p.run_count for p in ledger.pipelines())
        ledger.database.check_writable()
        return f"{ledger.database.name}: schema {HEAD}, {count:,} runs"


def _check_experiment_tracker(stack: Stack) -> None:
    open_tracker(stack.experiment_tracker or {})


def _open_experiment_tracker(stack: Stack) -> str:
    return open_tracker(stack.experiment_tracker or {}).check()


def _check_model_deployer(stack: Stack) -> None:
    """Accept it: its form was checked when the file was read."""


def _open_model_deployer(stack: Stack) -> str:
    port = (stack.model_deployer or {})["port"]
    with socket.socket() as probed:
        probed.settimeout(1.0)
        is_taken = probed.connect_ex(("127.0.0.1", port)) == 0
    return f"port {port}: {'something answers there' if is_taken else 'free'} on this machine"


_CHECKS: dict[str, tuple[Callable[[Stack], None], Callable[[Stack], str]]] = {
    "orchestrator": (_check_orchestrator, _open_orchestrator),
    "artifact_store": (_check_artifact_store, _open_artifact_store),
    "metadata_store": (_check_metadata_store, _open_metadata_store),
    "experiment_tracker": (_check_experiment_tracker, _open_experiment_tracker),
    "model_deployer": (_check_model_deployer, _open_model_deployer),
}
