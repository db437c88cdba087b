"""One warm local cluster for all runs on Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from zenray import local_cluster


@pytest.fixture(scope="session")
def cluster_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ZENRAY_HOME whose cluster serves every test that names it, and ends with the tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENRAY_HOME", str(home))
        local_cluster.begin(num_cpus=2).wait_ready()
    yield home
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENRAY_HOME", str(home))
        local_cluster.down()
