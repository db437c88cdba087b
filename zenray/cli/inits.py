"""``zenray init``: make a folder a repository.

Runs in: driver.
"""

from pathlib import Path
from typing import Annotated

import typer

_STACK = """\
# The built-in stack `local`, written out: copy it under another name and change what should live elsewhere.
# Every key may be a URL, or a mapping with `url` and options; what is left out is as in `local`.
orchestrator: local
# artifact_store: s3://bucket/prefix
# metadata_store: postgresql://user@host/database
"""

_MATERIALIZERS = """\
Files here say how values of your own types are stored: each a Python file with a subclass of `zenray.Materializer`.
They are imported with every run; `zenray materializer list` shows them, and the error for a type without one a draft.
"""

_IGNORE = """\
# What is not sent to a cluster with the code of this folder; the syntax is that of .gitignore.
.git/
.zenray/
.venv/
__pycache__/
"""

_PIPELINE = '''\
"""An example: which words are the most frequent in a text."""

from zenray import pipeline, step

TEXT = "the cat sat on the mat and the dog sat on the cat"


@step
def words(text: str) -> list[str]:
    return text.split()


@step
def count(words: list[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


@step
def top(counts: dict[str, int], limit: int) -> list[str]:
    found = sorted(counts, key=lambda word: (-counts[word], word))[:limit]
    print("most frequent:", ", ".join(found))
    return found


@pipeline
def frequent_words(text: str = TEXT, limit: int = 3):
    return top(count(words(text)), limit)


if __name__ == "__main__":
    run = frequent_words()
    print(run.steps["top"].output.load())
'''


def init(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The folder; default: the current one.")] = Path(),
    force: Annotated[
        bool, typer.Option("--force", help="Add what is missing to a repository that exists; allow a home folder or /.")
    ] = False,
) -> None:
    """Make a folder a ZenRay repository: a marker, a stack file and an example; no file of yours is overwritten."""
    from zenray.errors import ConfigError
    from zenray.settings import IGNORE_FILE, MARKER

    marker = path / MARKER
    if not force and Path.home().resolve().is_relative_to(path.resolve()):
        raise ConfigError(
            f"{path.resolve()} holds everything of yours: all projects below would be one repository, with one ledger "
            "and one stack; run `zenray init` in the folder of a project, or with --force here"
        )
    if marker.is_dir() and (path / "stacks").is_dir() and not force:
        raise ConfigError(f"{path.absolute()} is a ZenRay repository already; --force adds the files that are missing")
    try:
        marker.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = [_write(path / "stacks" / "local.yaml", _STACK), _write(path / IGNORE_FILE, _IGNORE)]
        made.append(_write(path / "materializers" / "README.md", _MATERIALIZERS))
        if not list(path.glob("*.py")):
            made.append(_write(path / "pipeline.py", _PIPELINE))
        made.append(_ignore_marker(path / ".gitignore", f"{MARKER}/"))
    except OSError as exc:
        raise ConfigError(f"cannot set up {path.absolute()}: {exc.strerror or exc} ({exc.filename})") from exc
    typer.echo(f"{path.absolute()} is a ZenRay repository now")
    for name in filter(None, made):
        typer.echo(f"  {name}")
    if (path / "pipeline.py").is_file():
        typer.echo(f"try it: zenray submit {path / 'pipeline.py'}")


def _write(path: Path, text: str) -> str:
    """Write a file unless it is there; returns its name where it was written."""
    if path.exists():
        return ""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def _ignore_marker(path: Path, line: str) -> str:
    """Append a line to .gitignore unless it is there."""
    text = path.read_text() if path.exists() else ""
    if line in (existing.strip() for existing in text.splitlines()):
        return ""
    path.write_text(text + ("" if not text or text.endswith("\n") else "\n") + line + "\n")
    return str(path)
