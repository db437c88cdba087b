"""Artifacts on an S3 server of this machine: a 1 GiB table against pyarrow's own S3 client, small ones against puts.

Every write and read of the table has a process of its own, so that its peak memory is known; reads start with an empty
read cache. Small artifacts are the outputs of 1,000 calls in one worker, as it runs a unit.
"""

import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.servers.object_stores import BUCKET, ObjectStore, seaweedfs
from zenray import artifacts
from zenray.materializer import registry
from zenray.model import CodeRef, Manifest, StepCall
from zenray.store import Store, object_name, open_store
from zenray.store.transfer import PART_BYTES
from zenray.worker import WRITES_AT_ONCE, begin_step

ROWS = 16 * 2**20
COLUMNS = 8  # of 8 bytes: 1 GiB
SIZE_MIB = ROWS * COLUMNS * 8 / 2**20
SMALL = 1_000
ROUNDS = 3
SMALL_ROUNDS = 7
COMMITTED_AT_ONCE = 200


def table(seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table({f"c{i}": random.random(ROWS) for i in range(COLUMNS)})


# -- in a process of its own ------------------------------------------------------------------------------------------


def arrow_s3(options: dict[str, Any]) -> pa.fs.S3FileSystem:
    return pa.fs.S3FileSystem(
        scheme="http",
        endpoint_override=options["endpoint_url"].removeprefix("http://"),
        access_key=options["key"],
        secret_key=options["secret"],
        region=options["region"],
    )


def write_zenray(uri: str, options: dict[str, Any], seed: int, data: pa.Table) -> Any:
    manifest = artifacts.save(data, open_store(uri, options), table=registry.table())
    return manifest.to_json()


def read_zenray(uri: str, options: dict[str, Any], manifest: Any) -> pa.Table:
    return artifacts.load(Manifest.from_json(manifest), open_store(uri, options))


def write_pyarrow(uri: str, options: dict[str, Any], seed: int, data: pa.Table) -> Any:
    path = f"{uri.removeprefix('s3://')}/by-pyarrow-{seed}.arrow"
    with (
        arrow_s3(options).open_output_stream(path, buffer_size=PART_BYTES) as sink,
        pa.ipc.new_file(sink, data.schema) as writer,
    ):
        writer.write_table(data)
    return path


def read_pyarrow(uri: str, options: dict[str, Any], path: str) -> pa.Table:
    with arrow_s3(options).open_input_file(path) as source:
        return pa.ipc.open_file(source).read_all()


def child(name: str, uri: str, options: dict[str, Any], argument: Any) -> None:
    if name.startswith("write"):
        data = table(argument)
        begin = time.perf_counter()
        found = globals()[name](uri, options, argument, data)
    else:
        begin = time.perf_counter()
        data = globals()[name](uri, options, argument)
        found = [data.num_rows, *data["c0"].slice(0, 1000).to_pylist()]
    seconds = time.perf_counter() - begin
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib, "found": found}))


def apart(name: str, store: ObjectStore, argument: Any, cache: Path) -> dict[str, Any]:
    words = [sys.executable, __file__, name, store.uri, json.dumps(dict(store.options)), json.dumps(argument)]
    environment = os.environ | {"ZENRAY_CACHE_DIR": str(cache)}
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -- the large table --------------------------------------------------------------------------------------------------


def large(store: ObjectStore, folder: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {
        n: [] for n in ("write_zenray", "write_pyarrow", "read_zenray", "read_pyarrow")
    }
    for seed in range(ROUNDS):
        order = ("pyarrow", "zenray") if seed % 2 else ("zenray", "pyarrow")
        written = {who: apart(f"write_{who}", store, seed, folder / f"w{seed}") for who in order}
        read = {who: apart(f"read_{who}", store, written[who]["found"], folder / f"r{seed}") for who in order}
        assert read["zenray"]["found"] == read["pyarrow"]["found"]
        for who in order:
            found[f"write_{who}"].append(written[who])
            found[f"read_{who}"].append(read[who])
        remove(store, written, folder)
    for verb in ("write", "read"):
        ours, theirs = found[f"{verb}_zenray"], found[f"{verb}_pyarrow"]
        rates = [[SIZE_MIB / f["seconds"] for f in side] for side in (ours, theirs)]
        ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
        peaks = [max(f["peak_mib"] for f in side) for side in (ours, theirs)]
        print(
            f"{verb} a table of {SIZE_MIB:,.0f} MiB: {shown(rates[0])} MiB/s; pyarrow {shown(rates[1])} MiB/s; "
            f"ratio {ratio:.2f}; peak memory {peaks[0]:,.0f} MiB ({peaks[0] / SIZE_MIB:.2f} of the table), "
            f"pyarrow {peaks[1]:,.0f} MiB"
        )


def remove(store: ObjectStore, written: dict[str, dict[str, Any]], folder: Path) -> None:
    opened = open_store(store.uri, store.options)
    for file in Manifest.from_json(written["zenray"]["found"]).files:
        opened.delete(object_name(file.digest))
    opened.delete(written["pyarrow"]["found"].removeprefix(store.uri.removeprefix("s3://")).lstrip("/"))
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def shown(rates: list[float]) -> str:
    return " ".join(f"{rate:.0f}" for rate in rates)


# -- small artifacts --------------------------------------------------------------------------------------------------


def value(n: int) -> bytes:
    return n.to_bytes(8, "big") * 128


def small_artifacts(store: ObjectStore, folder: Path, first: int) -> float:
    """Save values as a run does: made in one thread by a worker, and packed by the driver before they are recorded."""
    opened = open_store(store.uri, store.options)
    opened.has_named("warm up")
    begin = time.perf_counter()
    made = [artifacts.save(value(n), opened, table=registry.table()) for n in range(first, first + SMALL)]
    pack_all(made, opened)
    return SMALL / (time.perf_counter() - begin)


def pack_all(manifests: list[Manifest], opened: Store) -> None:
    """Pack what comes in about a tenth of a second, the pause between two commits of a run, at a time."""
    for start in range(0, len(manifests), COMMITTED_AT_ONCE):
        artifacts.pack(manifests[start : start + COMMITTED_AT_ONCE], opened, run_id="bench")


def small_steps(store: ObjectStore, folder: Path, first: int) -> float:
    """Run calls as a worker runs a unit: what is printed is captured too."""
    opened = open_store(store.uri, store.options)
    opened.has_named("warm up")
    calls = [
        StepCall(
            f"run/value_{n}", 1, "value", CodeRef("", ""), "", "", pickle.dumps(((n,), {})), (), (), False,
            str(folder / f"{n}.log"), is_tiny=True,
        )
        for n in range(first, first + SMALL)
    ]  # fmt: skip
    begin = time.perf_counter()
    attempts = [begin_step(call, value, opened, worker="bench") for call in calls]
    results = [attempt.result() for attempt in attempts]
    pack_all([m for r in results for m in r.outputs], opened)
    seconds = time.perf_counter() - begin
    assert all(r.failure is None for r in results)
    return SMALL / seconds


def small_puts(store: ObjectStore, folder: Path, first: int) -> float:
    """Put the same bytes with s3fs alone."""
    client = {"client_kwargs": {"region_name": "us-east-1"}, "config_kwargs": {"max_pool_connections": 32}}
    fs = fsspec.filesystem("s3", **client, **{k: v for k, v in store.options.items() if k != "region"})
    fs.exists(f"{BUCKET}/warm-up")
    begin = time.perf_counter()
    with ThreadPoolExecutor(WRITES_AT_ONCE) as threads:
        list(threads.map(lambda n: fs.pipe_file(f"{BUCKET}/puts/{n:06}", value(n)), range(first, first + SMALL)))
    return SMALL / (time.perf_counter() - begin)


def small(store: ObjectStore, folder: Path) -> None:
    """Take turns: the server and this process share the machine with whatever else runs."""
    sides = (small_puts, small_artifacts, small_steps)
    rates: dict[str, list[float]] = {side.__name__: [] for side in sides}
    for n in range(SMALL_ROUNDS):
        for k in range(len(sides)):
            side = sides[(n + k) % len(sides)]
            rates[side.__name__].append(side(store, folder, (n * len(sides) + k) * SMALL))
    puts = rates["small_puts"]
    for name, what in (("small_artifacts", "artifacts of 1 KiB"), ("small_steps", "steps that return 1 KiB")):
        ratio = statistics.median(rates[name]) / statistics.median(puts)
        print(
            f"{SMALL:,} {what}: {shown(rates[name])}/s; plain puts, {WRITES_AT_ONCE} at a time: {shown(puts)}/s; "
            f"ratio of medians {ratio:.2f}"
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, seaweedfs() as store:
        small(store, Path(folder))
        large(store, Path(folder))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main()
