"""Every store of ours against the contract."""

import uuid
from pathlib import Path

import pytest

from zenray.store import Store, open_store
from zenray.testing import StoreContract


class TestLocalFolder(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.uri = str(tmp_path / "store")

    def store(self) -> Store:
        return open_store(self.uri)


class TestMemory(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self) -> None:
        self.uri = f"memory://{uuid.uuid4().hex}"

    def store(self) -> Store:
        return open_store(self.uri)
