"""The warm local cluster: real processes, each test with a state directory of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zenray import cluster_files, local_cluster, processes
from zenray.cluster_files import ClusterInfo
from zenray.errors import ClusterError, ConfigError

JOIN = """
import os, ray
from zenray.local_cluster import ClusterInfo, joining
info = {info!r}
with joining(info):
    ray.init(address=info.address, _temp_dir=info.temp_dir, log_to_driver=False, logging_level="error")
"""
HOLD = """
import sys, time
from zenray import local_cluster
print(local_cluster.ensure(idle_s={idle_s}).pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterInfo]:
    """One cluster for the tests that only look at it, started by a run that has secrets in its environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENRAY_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("MY_PASSWORD", "hunter2")
        patch.setenv("RAY_REDIS_PASSWORD", "hunter2")
        patch.setenv("CUDA_HOME", "/opt/cuda")
        pending, info = start(num_cpus=2)
    yield info
    assert pending.lease is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENRAY_HOME", str(Path(info.log_path).parent.parent.parent))
        local_cluster.down()
        cluster_files.place().lock.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ZENRAY_HOME", str(tmp_path))
    monkeypatch.delenv(local_cluster.IDLE_VARIABLE, raising=False)
    yield tmp_path
    local_cluster.down()
    cluster_files.place().lock.unlink(missing_ok=True)


def run(code: str, *, timeout_s: float = 40) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def until(condition: Callable[[], bool], *, timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def start(**options: float) -> tuple[local_cluster.Start, ClusterInfo]:
    """Start a cluster that this test holds only as long as it keeps the first result."""
    pending = local_cluster.begin(**options)  # type: ignore[arg-type]
    return pending, pending.wait_ready()


def has_ended(info: ClusterInfo) -> bool:
    return not processes.session(info.pid) and not Path(info.directory).exists() and local_cluster.find() is None


def joined(info: ClusterInfo, code: str) -> str:
    """Run a driver on the cluster and return all that it prints."""
    return run(JOIN.format(info=info) + code)


def test_a_driver_joins_and_nothing_is_printed(cluster: ClusterInfo) -> None:
    assert joined(cluster, "assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42; ray.shutdown()") == ""
    assert (cluster.num_cpus, cluster.num_gpus) == (2, 0)


def test_a_driver_that_imported_ray_earlier_joins_and_keeps_its_environment(cluster: ClusterInfo) -> None:
    code = "import ray" + JOIN.format(info=cluster)
    code += "assert not {'RAY_AUTH_MODE', 'RAY_AUTH_TOKEN_PATH'} & set(os.environ)\n"
    code += "print(ray.get(ray.remote(lambda: os.environ['RAY_AUTH_TOKEN_PATH']).remote()))"
    assert run(code).strip() == cluster.token_path


def test_a_driver_that_is_killed_leaves_no_work_behind(cluster: ClusterInfo) -> None:
    code = "import time; r = ray.remote(lambda: time.sleep(300)).remote(); time.sleep(1); print('x'); os._exit(0)"
    assert joined(cluster, code) == "x\n"
    wait = "import time; end = time.monotonic() + 20\n"
    wait += "while ray.available_resources().get('CPU') != 2 and time.monotonic() < end: time.sleep(0.1)\n"
    assert joined(cluster, wait + "print(ray.available_resources()['CPU'])") == "2.0\n"


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss is not installed")
def test_all_ports_are_on_loopback(cluster: ClusterInfo) -> None:
    joined(cluster, "ray.get(ray.remote(lambda: 1).remote())")
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = {str(pid) for pid, _ in processes.session(cluster.pid)}
    addresses = [line.split()[3].rpartition(":")[0] for line in listening if ours & set(re.findall(r"pid=(\d+)", line))]
    assert len(addresses) >= 6
    assert {a.removeprefix("[::ffff:").removesuffix("]") for a in addresses} == {"127.0.0.1"}


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_without_the_right_token_nobody_gets_in(cluster: ClusterInfo, token: str) -> None:
    code = f"""
import os
os.environ.update({local_cluster.join_environment(cluster)!r})
del os.environ["RAY_AUTH_TOKEN_PATH"]
os.environ.update(RAY_AUTH_TOKEN={token!r}, RAY_AUTH_MODE="token" if {token!r} else "disabled")
from ray._raylet import GcsClient
try:
    GcsClient(address={cluster.address!r})
except Exception as error:
    print(type(error).__name__)
"""
    assert "AuthenticationError" in run(code)
    assert Path(cluster.token_path).stat().st_mode & 0o777 == 0o600
    assert Path(cluster.directory).stat().st_mode & 0o777 == 0o700


def test_secrets_of_the_first_run_do_not_reach_the_workers(cluster: ClusterInfo) -> None:
    seen = json.loads(
        joined(cluster, "import json; print(json.dumps(ray.get(ray.remote(lambda: dict(os.environ)).remote())))")
    )
    assert seen["CUDA_HOME"] == "/opt/cuda"
    assert "hunter2" not in seen.values()


def test_processes_that_start_at_once_share_one_cluster() -> None:
    code = "from zenray import local_cluster; print(local_cluster.ensure().pid)"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    pids = {process.communicate(timeout=60)[0] for process in started}
    assert len(pids) == 1
    assert local_cluster.ensure().pid == int(pids.pop())


def test_it_ends_when_nobody_uses_it_for_the_idle_time() -> None:
    pending, info = start(idle_s=1)
    time.sleep(1.5)
    status = local_cluster.status()
    assert status is not None
    assert status.is_in_use
    assert status.processes >= 4
    assert status.memory_bytes > 50 * 1024**2
    assert pending.lease is not None
    pending.lease.close()
    assert until(lambda: has_ended(info))
    with pytest.raises(ClusterError, match="run again"):
        local_cluster.hold(info)


def test_a_forked_child_does_not_keep_it_in_use() -> None:
    pending, info = start(idle_s=0)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        assert pending.lease is not None
        pending.lease.close()
        assert until(lambda: has_ended(info))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_without_idle_time_it_ends_with_the_process_that_started_it_even_if_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD.format(idle_s=0)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        info = local_cluster.find()
        assert info is not None
        assert info.pid == pid
        holder.kill()
    assert until(lambda: has_ended(info))


def test_down_ends_it_and_leaves_other_clusters_alone(tmp_path: Path) -> None:
    code = """
import sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
print("up", flush=True)
sys.stdin.readline()
print(ray.get(ray.remote(lambda: "still here").remote()), flush=True)
"""
    other_dir = f"/tmp/o{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", code, other_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as other:
        pending, info = start()
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        assert local_cluster.down()
        assert has_ended(info)
        assert local_cluster.status() is None
        assert not local_cluster.down()
        output, _ = other.communicate("go\n", timeout=40)
    shutil.rmtree(other_dir, ignore_errors=True)
    assert output == "still here\n"
    assert pending.lease is not None
    pending.lease.close()


def test_the_next_run_recovers_from_a_killed_keeper() -> None:
    pending, info = start()
    members = processes.session(info.pid)
    assert len(members) >= 4
    os.kill(info.pid, signal.SIGKILL)
    assert until(lambda: processes.mark(info.pid) is None)
    again, new = start()
    assert new.pid != info.pid
    assert until(lambda: not [m for m in members if processes.mark(m[0]) == m[1]])
    assert not Path(info.directory).exists()
    joined(new, "ray.get(ray.remote(lambda: 1).remote())")
    assert pending.lease is not None
    assert again.lease is not None


def test_a_dead_raylet_takes_the_cluster_down_and_the_log_says_so() -> None:
    pending, info = start()
    # A child that it has just forked has its command line too, until it becomes a worker.
    raylet = min(
        pid for pid, _ in processes.session(info.pid) if "raylet/raylet" in processes.command(pid).split(" ")[0]
    )
    os.kill(raylet, signal.SIGKILL)
    assert until(lambda: has_ended(info))
    assert "raylet has ended by itself" in Path(info.log_path).read_text()
    assert pending.lease is not None
    pending.lease.close()


def test_down_gets_rid_of_a_keeper_that_does_not_answer() -> None:
    pending, info = start()
    os.kill(info.pid, signal.SIGSTOP)
    assert local_cluster.down(timeout_s=0.5)
    assert until(lambda: has_ended(info))
    assert pending.lease is not None
    pending.lease.close()


def test_a_cluster_older_than_an_installation_is_replaced() -> None:
    pending, info = start()
    state = next(Path(os.environ["ZENRAY_HOME"]).glob("clusters/*/cluster.json"))
    outdated = json.loads(state.read_text()) | {"packages_mark": "before"}
    state.write_text(json.dumps(outdated))
    again, new = start()
    assert new.pid != info.pid
    assert processes.mark(info.pid) == info.process_mark  # its users go on
    assert pending.lease is not None
    pending.lease.close()
    assert until(lambda: not processes.session(info.pid))
    assert local_cluster.find() == new
    assert again.lease is not None
    again.lease.close()


def test_a_cluster_that_cannot_start_says_why_and_where_the_log_is(home: Path) -> None:
    with pytest.raises(ClusterError) as caught:
        local_cluster.ensure(num_cpus=-1)
    assert "keeper.log" in str(caught.value)
    assert "Error" in str(caught.value)
    assert "run again" in str(caught.value)
    assert local_cluster.find() is None


def test_with_the_dashboard_drivers_join_too() -> None:
    pending = local_cluster.begin(with_dashboard=True)
    info = pending.wait_ready()
    assert info.dashboard_url.startswith("http://127.0.0.1:")
    assert joined(info, "assert ray.get(ray.remote(lambda: 1).remote()) == 1") == ""
    assert local_cluster.down()
    assert has_ended(info)


def test_an_idle_time_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local_cluster.IDLE_VARIABLE, "soon")
    with pytest.raises(ConfigError, match="ZENRAY_CLUSTER_IDLE_S must be a number of seconds"):
        local_cluster.begin()
    with pytest.raises(ConfigError, match="0 s or more"):
        local_cluster.begin(idle_s=-1)


def test_looking_for_a_cluster_leaves_nothing_behind(home: Path) -> None:
    assert local_cluster.find() is None
    assert local_cluster.status() is None
    assert not local_cluster.down()
    assert list(home.iterdir()) == []
    assert "ray" not in run(
        "import sys; from zenray import local_cluster; print(*[m for m in sys.modules if m == 'ray'])"
    )


def test_a_process_id_that_was_given_again_is_not_ended(home: Path) -> None:
    _pending, info = start()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as stranger:
        state = next(home.glob("clusters/*/cluster.json"))
        state.write_text(json.dumps(json.loads(state.read_text()) | {"pid": stranger.pid}))
        assert not local_cluster.down()
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    del _pending
    assert until(lambda: not processes.session(info.pid))
