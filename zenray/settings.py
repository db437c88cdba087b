"""Where ZenRay keeps its state, and the repository a command runs in.

Runs in: anywhere.
"""

import os
from pathlib import Path

MARKER = ".zenray"


def find_repository(start: Path | None = None) -> Path | None:
    """Return the nearest folder upwards that ``zenray init`` marked, or None."""
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if (folder / MARKER).is_dir() and folder != Path.home():
            return folder
    return None


def home() -> Path:
    """Return where state lives: ZENRAY_HOME, else ``.zenray`` in the repository, else ``~/.zenray``."""
    chosen = os.environ.get("ZENRAY_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    repository = find_repository()
    return (repository or Path.home()) / MARKER
