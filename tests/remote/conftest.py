"""One S3 server for all tests of this folder, a place of its own on it for each test, and a proxy before it."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.object_stores import ObjectStore, seaweedfs
from tests.servers.proxy import FaultProxy, fault_proxy
from tests.servers.starting import running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    yield from running(seaweedfs())


@pytest.fixture
def s3(s3_server: ObjectStore) -> ObjectStore:
    return ObjectStore(f"{s3_server.uri}/{uuid.uuid4().hex}", s3_server.options, s3_server.port)


@pytest.fixture
def proxy(s3_server: ObjectStore) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.port) as found:
        yield found


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZENRAY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
