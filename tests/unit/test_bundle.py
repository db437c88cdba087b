"""What of a repository goes to a cluster."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from zenray import bundle
from zenray.errors import ConfigError


def write(root: Path, *names: str, text: str = "x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def packed(root: Path) -> bytes:
    target = io.BytesIO()
    bundle.write_archive(target, bundle.repository_files(root), {"added.txt": "text"}, root=root)
    return target.getvalue()


def test_version_control_environments_caches_and_secret_files_never_go_along(tmp_path: Path) -> None:
    write(tmp_path, "flow.py", "lib/words.py", "data/.keep")
    write(tmp_path, ".git/config", ".zenray/ledger.db", "lib/__pycache__/words.pyc", ".env", ".env.local", ".ssh/id")
    write(tmp_path, "env/pyvenv.cfg", "env/bin/python", "cache/CACHEDIR.TAG", "cache/big", "node_modules/a.js")
    assert list(bundle.repository_files(tmp_path)) == ["data/.keep", "flow.py", "lib/words.py"]


def test_ignore_files_of_any_folder_count_and_zenrayignore_has_the_last_word(tmp_path: Path) -> None:
    write(tmp_path, "flow.py", "data/a.csv", "data/keep.csv", "made/x.py", "lib/a.log", "lib/tmp/b.py", "notes.md")
    write(tmp_path, ".gitignore", text="*.log\nmade/\nlib/tmp\n")
    write(tmp_path, ".zenrayignore", text="# data stays here\ndata/*\n!data/keep.csv\n!made/\n")
    write(tmp_path, "lib/.gitignore", text="!a.log\n")
    found = set(bundle.repository_files(tmp_path)) - {".gitignore", ".zenrayignore", "lib/.gitignore"}
    assert found == {"flow.py", "data/keep.csv", "made/x.py", "lib/a.log", "notes.md"}


def shipped(root: Path) -> set[str]:
    return {name for name in bundle.repository_files(root) if not name.endswith("ignore")}


def test_zenrayignore_has_the_last_word_over_a_gitignore_further_down(tmp_path: Path) -> None:
    write(tmp_path, "flow.py", "sub/weights.bin", "sub/private.txt")
    write(tmp_path, ".zenrayignore", text="!sub/weights.bin\nsub/private.txt\n")
    write(tmp_path, "sub/.gitignore", text="weights.bin\n!private.txt\n")
    assert shipped(tmp_path) == {"flow.py", "sub/weights.bin"}


@pytest.mark.parametrize("mark", [".git/HEAD", ".git"])  # a worktree and a submodule have a file
def test_in_a_part_of_a_git_repository_what_is_ignored_above_it_stays_here(tmp_path: Path, mark: str) -> None:
    top, part = tmp_path / "top", tmp_path / "top" / "teams" / "ml"
    write(top, mark)
    write(tmp_path, ".gitignore", text="*.py\n")  # outside of the repository
    write(top, ".gitignore", text="secrets.json\n*.pem\n/teams/ml/data\n/flow.py\n*.md\n")
    write(top / "teams", ".gitignore", text="!notes.md\n*.bin\n")
    write(part, ".zenrayignore", text="!weights.bin\n")
    write(part, "flow.py", "secrets.json", "sub/key.pem", "data/a.csv", "notes.md", "weights.bin", "other.bin")
    assert shipped(part) == {"flow.py", "notes.md", "weights.bin"}


@pytest.mark.parametrize("text", ["*\n", "ml/\n", "*.json\n/teams\n"])
def test_a_folder_that_git_ignores_as_a_whole_goes_along_by_its_own_rules(tmp_path: Path, text: str) -> None:
    write(tmp_path, ".git/HEAD")
    write(tmp_path, ".gitignore", text=text)
    write(tmp_path / "teams" / "ml", "flow.py", "a.json", "b.csv")
    write(tmp_path / "teams" / "ml", ".gitignore", text="*.csv\n")
    assert shipped(tmp_path / "teams" / "ml") == {"flow.py", "a.json"}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, "flow.py")
    write(outside, "shared.py")
    (root / "common").symlink_to(outside)
    (root / "round").symlink_to(root)
    (root / "gone.py").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe")
    assert list(bundle.repository_files(root)) == ["common/shared.py", "flow.py"]


def test_equal_files_give_equal_bytes_whenever_and_wherever_they_were_written(tmp_path: Path) -> None:
    for name, time in (("one", 1_700_000_000), ("two", 1_800_000_000)):
        write(tmp_path / name, "flow.py", "run.sh")
        (tmp_path / name / "run.sh").chmod(0o700)
        os.utime(tmp_path / name / "flow.py", (time, time))
    assert packed(tmp_path / "one") == packed(tmp_path / "two")
    with zipfile.ZipFile(io.BytesIO(packed(tmp_path / "one"))) as archive:
        assert archive.namelist() == ["added.txt", "flow.py", "run.sh"]
        assert archive.getinfo("run.sh").external_attr >> 16 == 0o755
    write(tmp_path / "two", "flow.py", text="y")
    assert packed(tmp_path / "one") != packed(tmp_path / "two")


def test_too_much_for_a_cluster_is_refused_with_the_largest_files_named(tmp_path: Path) -> None:
    write(tmp_path, "flow.py")
    for name, size in (("model.bin", 70 << 20), ("table.bin", 40 << 20)):
        (tmp_path / name).write_bytes(os.urandom(size))
    with pytest.raises(ConfigError, match=r"model.bin \(70.0 MiB\), table.bin \(40.0 MiB\), flow.py") as error:
        packed(tmp_path)
    assert ".zenrayignore" in str(error.value)
    with (tmp_path / "sparse.bin").open("wb") as file:
        file.truncate(1 << 40)  # is not read to see that
    with pytest.raises(ConfigError, match=r"sparse.bin \(1048576.0 MiB\)"):
        packed(tmp_path)


def test_zenrays_own_files_are_both_packages_and_their_metadata() -> None:
    found = bundle.own_files()
    assert {"zenray/__init__.py", "zenray/cli/__init__.py", "zenray_materializers/__init__.py"} <= found.keys()
    assert {name.partition("/")[2] for name in found if ".dist-info" in name} == {"METADATA", "entry_points.txt"}
    assert all(path.is_file() for path in found.values())
