"""Runs each step of the edited project on its own, through `peer_dsl`; copied into the project.

Runs in: the peer's own environment.
"""

import json
import sys
from pathlib import Path
from typing import Any

import peer_dsl
from pipeline import features, load, train

INPUTS = json.loads(Path("inputs.json").read_text())


@peer_dsl.pipeline
def each() -> Any:
    return load(**INPUTS["load"]), features(**INPUTS["features"]), train(**INPUTS["train"])


if __name__ == "__main__":
    values = peer_dsl.run(each)
    Path(sys.argv[1]).write_text(json.dumps({name: repr(value) for name, value in zip(INPUTS, values, strict=True)}))
