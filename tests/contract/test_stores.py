"""Every store of ours against the contract."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.object_stores import ObjectStore, fake_gcs, seaweedfs
from tests.servers.starting import running
from zenray.store import Store, open_store
from zenray.testing import StoreContract


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    yield from running(seaweedfs())


@pytest.fixture(scope="module")
def gcs() -> Iterator[ObjectStore]:
    yield from running(fake_gcs())


class TestLocalFolder(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.uri = str(tmp_path / "store")

    def store(self) -> Store:
        return open_store(self.uri)


class Remote(StoreContract):
    options: dict[str, object] = {}

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ZENRAY_CACHE_DIR", str(tmp_path / "cache"))

    def store(self) -> Store:
        return open_store(self.uri, self.options)


class TestMemory(Remote):
    @pytest.fixture(autouse=True)
    def _place(self) -> None:
        self.uri = f"memory://{uuid.uuid4().hex}"


class TestS3(Remote):
    @pytest.fixture(autouse=True)
    def _place(self, s3: ObjectStore) -> None:
        self.uri, self.options = f"{s3.uri}/{uuid.uuid4().hex}", dict(s3.options)


class TestS3WithoutACache(TestS3):
    @pytest.fixture(autouse=True)
    def _no_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ZENRAY_CACHE_SIZE", "0")


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs gives aiohttp plain bytes
class TestGcs(Remote):
    @pytest.fixture(autouse=True)
    def _place(self, gcs: ObjectStore) -> None:
        self.uri, self.options = f"{gcs.uri}/{uuid.uuid4().hex}", dict(gcs.options)


class TestAzure(Remote):
    @pytest.fixture(autouse=True)
    def _place(self, azure_server: ObjectStore) -> None:
        self.uri, self.options = f"{azure_server.uri}/{uuid.uuid4().hex}", dict(azure_server.options)
