"""`zenray run stop` of a run on Ray: the step's worker is interrupted, and nothing of it is committed."""

from pathlib import Path

import pytest

from tests.e2e.test_stop import begin, check_stopped, stop


def test_a_run_on_ray_is_stopped(cluster_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENRAY_HOME", str(cluster_home))
    monkeypatch.setenv("ZENRAY_STACK", "local")
    process = begin(tmp_path, "-m", "zenray", "submit", "flow.py:computing")
    done = stop("latest")
    assert done.returncode == 0, done.stderr
    check_stopped(process, "computes")
