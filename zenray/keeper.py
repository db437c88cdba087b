"""The process that owns the warm local Ray cluster, from its start to its end.

Runs in: a process of its own, started by `zenray.local_cluster`.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._private.grpc_utils import init_grpc_channel
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.resource_isolation_config import ResourceIsolationConfig
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

from zenray import processes
from zenray.cluster_files import ClusterInfo, is_published, try_flock, withdraw, write_state
from zenray.local_cluster import KeeperSpec, Options

LOOPBACK = "127.0.0.1"
POLL_S = 0.25
OBJECT_STORE_BYTES = 2 * 1024**3
READY_WORKERS = 8

_log = logging.getLogger("zenray.keeper")


class LeanNode(Node):  # type: ignore[misc]
    """A Ray head node of what tasks and actors need, without the dashboard: up in 1.5 s instead of 4.5 s."""

    def start_api_server(self, **_: Any) -> None:
        """Leave the dashboard out."""


def main(spec_json: str) -> None:
    """Start the cluster, publish it, keep it until nobody has used it for the idle time, and end it."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    fields = json.loads(spec_json)
    spec = KeeperSpec(**{**fields, "options": Options(**fields["options"])})
    os.set_inheritable(spec.lock_fd, False)
    stop = threading.Event()
    _take_signals(stop)
    node = _start_ray(spec)
    _take_signals(stop)  # ray.init puts its own in place
    info = _describe(spec, node)
    write_state(Path(spec.state_path), info)
    os.close(spec.lock_fd)
    _log.info("the cluster is up at %s", info.address)
    try:
        _log.info("ends: %s", _keep(spec, info, node, stop))
    finally:
        _end(spec, info, node)
    os._exit(0)  # Ray's exit handlers would look for the cluster that has just ended


def _take_signals(stop: threading.Event) -> None:
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _start_ray(spec: KeeperSpec) -> Any:
    if not spec.options.with_dashboard:
        try:
            return _start_lean(spec)
        except (AttributeError, ImportError, TypeError):
            # LeanNode leans on Ray's internals, which another version may have changed.
            _log.exception("this Ray cannot be started without its dashboard; starting all of it")
            processes.kill(p for p in processes.session(os.getpid()) if p[0] != os.getpid())
    return _start_whole(spec)


def _start_lean(spec: KeeperSpec) -> Any:
    params = RayParams(
        node_ip_address=LOOPBACK,
        num_cpus=spec.options.num_cpus,
        num_gpus=spec.options.num_gpus,
        temp_dir=_temp_dir(spec),
        object_store_memory=_object_store_bytes(),
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        dashboard_agent_listen_port=0,  # the default is a fixed port, which another cluster may have
        resource_isolation_config=ResourceIsolationConfig(),
    )
    return LeanNode(params, head=True, shutdown_at_exit=False, spawn_reaper=True)


def _start_whole(spec: KeeperSpec) -> Any:
    ray.init(
        address="local",
        num_cpus=spec.options.num_cpus,
        num_gpus=spec.options.num_gpus,
        include_dashboard=spec.options.with_dashboard,
        object_store_memory=_object_store_bytes(),
        log_to_driver=False,
        _temp_dir=_temp_dir(spec),
        _node_ip_address=LOOPBACK,
    )
    return ray_worker._global_node


def _temp_dir(spec: KeeperSpec) -> str:
    # Ray makes its directory writable for everybody, so it must lie below the private one.
    return str(Path(spec.directory, "ray"))


def _object_store_bytes() -> int:
    """Large data goes through the artifact store; a laptop's memory is better left to the steps."""
    wanted = min(OBJECT_STORE_BYTES, int(ray._private.utils.get_system_memory() * 0.2))
    with contextlib.suppress(OSError):
        free = int(shutil.disk_usage("/dev/shm").free * 0.9)
        if free >= OBJECT_STORE_BYTES // 16:  # below that Ray uses /tmp, which is slow but works
            wanted = min(wanted, free)
    return max(wanted, 100 * 1024**2)


def _describe(spec: KeeperSpec, node: Any) -> ClusterInfo:
    resources = node.get_resource_and_label_spec().to_resource_dict()
    pid = os.getpid()
    return ClusterInfo(
        pid=pid,
        process_mark=processes.mark(pid) or "",
        boot_mark=processes.boot_mark(),
        address=node.gcs_address,
        directory=spec.directory,
        log_path=spec.log_path,
        ray_version=spec.ray_version,
        packages_mark=spec.packages_mark,
        started_at=time.time(),
        idle_s=spec.options.idle_s,
        num_cpus=float(resources.get("CPU", 0)),
        num_gpus=float(resources.get("GPU", 0)),
        dashboard_url=f"http://{node.webui_url}" if node.webui_url else "",
    )


def _keep(spec: KeeperSpec, info: ClusterInfo, node: Any, stop: threading.Event) -> str:
    """Return, with the reason, when the cluster is to end; after an idle time nobody can take a lease any more."""
    users_fd = os.open(info.users_path, os.O_RDWR)
    last_used = time.monotonic()
    has_new_workers = True
    _prestart_workers(info, node)
    while not stop.wait(POLL_S):
        dead = node.dead_processes()
        if dead:
            return f"Ray's {dead[0][0]} has ended by itself\n{_last_words(node)}"
        if not try_flock(users_fd, fcntl.LOCK_EX):
            last_used = time.monotonic()
            os.utime(users_fd)  # for `status`
            has_new_workers = False
            continue
        if not has_new_workers:
            _prestart_workers(info, node)
            has_new_workers = True
        # Once its packages are outdated another cluster takes its place; it stays for those who use it, no longer.
        idle_s = info.idle_s if is_published(Path(spec.state_path), info.pid) else 0.0
        if time.monotonic() - last_used >= idle_s:
            Path(info.users_path).unlink(missing_ok=True)  # while the lock keeps new users out
            return f"nobody has used it for {idle_s:g} s"
        fcntl.flock(users_fd, fcntl.LOCK_UN)
    return "asked to"


def _prestart_workers(info: ClusterInfo, node: Any) -> None:
    """Have workers boot that belong to no job yet, so that the next driver's first task need not wait for one.

    A worker serves one job only, so they are started anew when a driver has gone. The raylet itself ends what exceeds
    the number of CPUs. Ray offers no public call for this; without it a first task takes 0.5 s longer, no more.
    """
    try:
        request = node_manager_pb2.PrestartWorkersRequest(
            language=common_pb2.Language.PYTHON, num_workers=max(1, min(READY_WORKERS, int(info.num_cpus)))
        )
        request.runtime_env_info.serialized_runtime_env = "{}"
        with init_grpc_channel(f"{LOOPBACK}:{node.node_manager_port}") as channel:
            node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=5)
    except Exception:  # noqa: BLE001
        _log.warning("no workers could be started in advance", exc_info=True)


def _last_words(node: Any) -> str:
    lines = []
    for log in sorted(Path(node.get_logs_dir_path()).glob("[gr]*.err")):
        with contextlib.suppress(OSError):
            lines += [f"{log.name}: {line}" for line in log.read_text(errors="replace").splitlines()[-10:]]
    return "\n".join(lines)


def _end(spec: KeeperSpec, info: ClusterInfo, node: Any) -> None:
    Path(info.users_path).unlink(missing_ok=True)
    node.kill_all_processes(check_alive=False, allow_graceful=True)
    processes.kill(p for p in processes.session(os.getpid()) if p[0] != os.getpid())
    withdraw(Path(spec.state_path), Path(spec.lock_path), info)
