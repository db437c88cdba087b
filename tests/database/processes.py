"""What tests run in processes of their own, to use one database at once."""

import os
import subprocess
import sys
from pathlib import Path

import zenray.metadata

PACKAGE_PARENT = str(Path(zenray.metadata.__file__).parents[2])
PROLOGUE = """
import sys, time
from zenray.metadata.ledger import Ledger
from zenray.metadata.records import *
from zenray.metadata.writer import LedgerWriter
from zenray.model import Manifest, Status, StoredFile

url, run_id = sys.argv[1:]

def a_step(name, position):
    return StepRunRecord(run_id, name, "train", Status.SUCCEEDED, position, started_at=1.0)

def a_result(position):
    name, digest = f"train_{position}", f"{run_id}-{position}"
    manifest = Manifest("builtins.int", "json", 1, (StoredFile("v", 1, digest, b"1"),), {}, digest)
    return (
        a_step(name, position),
        AttemptRecord(run_id, name, 1, Status.SUCCEEDED),
        ArtifactRecord(manifest, "s", 1.0),
        StepOutputs(run_id, name, (StepOutput(run_id, name, "output", 0, digest),)),
        CacheEntry(digest, "s", run_id, name, (("output", digest),), 1.0),
    )

"""
WRITE_200 = """
with Ledger(url) as ledger:
    fence = ledger.create_run(RunRecord(run_id, "p", Status.RUNNING, 1.0), owner=run_id, ttl_s=60)
    with LedgerWriter(ledger, run_id, fence, ttl_s=60, delay_s=0) as writer:
        for position in range(200):
            writer.record(*a_result(position))
            if position % 10 == 0:
                writer.flush()
                assert len(ledger.find_cache_entries([f"{run_id}-{position}"], "s")) == 1
"""
WRITE_FOR_EVER = """
ledger = Ledger(url)
fence = ledger.create_run(RunRecord(run_id, "p", Status.RUNNING, 1.0), owner="me", ttl_s=60)
writer = LedgerWriter(ledger, run_id, fence, ttl_s=60, delay_s=0.001)
print("ready", flush=True)
for position in range(1_000_000):
    writer.record(*a_result(position))
    if position % 50 == 0:
        time.sleep(0.002)
"""
CREATE = "Ledger(url).create_run(RunRecord(run_id, 'p', Status.RUNNING, 1.0))"


def start(code, url, run_id):
    environment = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code, url, run_id],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
