"""The mark that a step leaves when it really runs; copied into the project.

Runs in: the peer's own environment.
"""

import os
from pathlib import Path


def ran(step: str) -> None:
    with Path(os.environ["PEERS_TRACE"]).open("a") as file:
        file.write(f"{step}\n")
