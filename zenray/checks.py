"""Checks of a stack: what can be known from its file alone, and whether each component really works.

Runs in: driver.
"""

import json
import secrets
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zenray import integrations, local_cluster
from zenray.errors import ConfigError, MetadataError, ZenRayError
from zenray.launcher import launcher_factory
from zenray.metadata.ledger import Ledger
from zenray.metadata.schema import HEAD
from zenray.stack import BUILT_IN, Stack, masked_url, scheme_of
from zenray.store import open_store
from zenray.trackers import open_tracker

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one component; ``advice`` says what to do where it does not work."""

    component: str
    is_ok: bool
    text: str
    advice: str = ""


def validate(stack: Stack) -> None:
    """Refuse a stack with a component that can never work here: of no known kind, or whose package is missing.

    Nothing is opened. Raises ConfigError that names the component, and the command that installs what is missing.
    """
    where = stack.source or f"stack {stack.name!r}"
    try:
        for component in ("orchestrator", "artifact_store", "metadata_store"):
            name = integrations.for_url(getattr(stack, component))
            if name is not None:
                integrations.require(name, for_what=f"{component!r}")
        _check_orchestrator(stack)
        if stack.experiment_tracker is not None:
            open_tracker(stack.experiment_tracker)
        open_store(stack.artifact_store, stack.artifact_store_options)
        Ledger(stack.metadata_store).database.check_driver()
    except (ConfigError, MetadataError) as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def probe(stack: Stack) -> Iterator[Finding]:
    """Open every component for real and give a finding for each, as it is there; never raises for what is wrong."""
    yield _found("orchestrator", stack, _orchestrator)
    yield _found("artifact_store", stack, _artifact_store)
    yield _found("metadata_store", stack, _metadata_store)
    if stack.experiment_tracker is not None:
        yield _found("experiment_tracker", stack, _experiment_tracker)
    if stack.model_deployer is not None:
        yield _found("model_deployer", stack, _model_deployer)


def _found(component: str, stack: Stack, check: Callable[[Stack], str]) -> Finding:
    began = time.monotonic()
    try:
        text = check(stack)
    except ZenRayError as exc:
        return Finding(component, False, str(exc))
    except Exception as exc:  # noqa: BLE001 - whatever a foreign component raises is what the check was asked for
        return Finding(component, False, f"{type(exc).__name__}: {exc}")
    return Finding(component, True, f"{text} ({(time.monotonic() - began) * 1000:.0f} ms)")


def _check_orchestrator(stack: Stack) -> None:
    if stack.orchestrator not in BUILT_IN and scheme_of(stack.orchestrator) not in ("http", "https"):
        launcher_factory(stack.orchestrator)


def _orchestrator(stack: Stack) -> str:
    url = stack.orchestrator
    if url == "inline":
        return "inline: steps run in the calling process"
    if url == "local":
        found = local_cluster.status()
        if found is None:
            return "local: not running, the next run starts it"
        return f"local: Ray {found.info.ray_version} at {found.info.address}, {found.info.num_cpus:g} CPUs"
    if scheme_of(url) in ("http", "https"):
        return f"{masked_url(url)}: Ray {_ray_version(url, stack.orchestrator_options)}"
    launcher_factory(url)
    return f"{masked_url(url)}: provided by an installed package"


def _ray_version(url: str, options: Any) -> str:
    """Ask a cluster's dashboard for its version: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/api.html"""
    request = urllib.request.Request(f"{url.rstrip('/')}/api/version")
    if options.get("token"):
        request.add_header("Authorization", f"Bearer {options['token']}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as exc:
        advice = "set its option 'token'" if exc.code in (401, 403) else "is it the address of Ray's dashboard?"
        raise ConfigError(f"the Ray cluster at {masked_url(url)!r} answered {exc.code} {exc.reason}: {advice}") from exc
    except (OSError, ValueError, KeyError) as exc:
        reason = getattr(exc, "reason", exc)
        raise ConfigError(
            f"no Ray cluster answers at {masked_url(url)!r} ({reason}): check the address and Ray's dashboard"
        ) from exc


def _artifact_store(stack: Stack) -> str:
    store = open_store(stack.artifact_store, stack.artifact_store_options)
    name = f"tmp/check-{secrets.token_hex(4)}"
    store.put_named(name, b"probe")
    is_read = store.get_named(name) == b"probe"
    store.delete(name)
    if not is_read:
        raise ConfigError(f"{store.uri}: a file that was written is not there; is the store consistent?")
    if store.has_named(name):
        raise ConfigError(f"{store.uri}: a file that was deleted is still there; check the permission to delete")
    return f"{store.uri}: wrote, read and deleted an object"


def _metadata_store(stack: Stack) -> str:
    with Ledger(stack.metadata_store) as ledger:
        count = sum(p.run_count for p in ledger.pipelines())
        return f"{ledger.database.name}: schema {HEAD}, {count:,} runs"


def _experiment_tracker(stack: Stack) -> str:
    assert stack.experiment_tracker is not None
    return open_tracker(stack.experiment_tracker).check()


def _model_deployer(stack: Stack) -> str:
    assert stack.model_deployer is not None
    port = stack.model_deployer["port"]
    with socket.socket() as probe_socket:
        probe_socket.settimeout(1.0)
        is_taken = probe_socket.connect_ex(("127.0.0.1", port)) == 0
    return f"port {port}: {'something answers there' if is_taken else 'free'} on this machine"
