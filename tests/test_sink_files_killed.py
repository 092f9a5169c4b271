"""Sinks of files on a real disk: processes that are killed for good, disks that are full, what dead writers leave behind."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sink_folder import everything, files

from flowstate.errors import Unavailable
from flowstate.plan.spec import SinkSpec
from flowstate.sink.base import Stage
from flowstate.sink.files import FileSink
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store
from flowstate.testing.conformance_sink import PREFIX, SCHEMA, rows
from flowstate.testing.tormentor import SmallDisk

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

KILLED = """
import sys
from dataclasses import replace
import pyarrow as pa
from flowstate.plan.spec import SinkSpec
from flowstate.sink import Stage, make_sink
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.retention import retain_partition
from flowstate.store import Store

store, kind, saves = Store.open(sys.argv[1]), sys.argv[3], int(sys.argv[4])
options = {"partition_by": "kind"}
if sys.argv[5] == "rolling":
    options |= {"roll_bytes": 3000, "roll_after": 30_000_000}
sink = make_sink(SinkSpec(kind, "totals", sys.argv[2], "append", options))
chain = PartitionChain(store, 1, 0)
manifest, number = chain.claim(), 0
print("claimed", flush=True)
while True:
    for each in manifest.staged:
        if not each.open:
            sink.publish(store, each)
    done = manifest.handed.get("0", 0)
    if done == saves and not manifest.staged:
        break
    number += 1
    rows = None
    if done < saves:
        rows = pa.table({"kind": ["a", "b", "b"], "number": [done, done, done + 1000], "flag": [True, None, False]})
    open = [each for each in manifest.staged if each.open]
    stage = Stage(store, "g0001/p0000", 0, manifest.epoch, number, float(done), last=done + 1 >= saves)
    staged = tuple(sink.prepare(stage, rows, open))
    manifest = chain.commit(manifest.version, replace(manifest, staged=staged, handed={"0": min(done + 1, saves)}))
    assert manifest is not None
    if number % 20 == 0:
        retain_partition(store, 1, 0, 2)
retain_partition(store, 1, 0, 2)
"""


@pytest.mark.parametrize(
    ("kind", "rolling"), [("parquet", "each save"), ("parquet", "rolling"), ("csv", "rolling"), ("json", "rolling")]
)
def test_killed_again_and_again(kind: str, rolling: str, tmp_path: Path) -> None:
    """A real process, killed for good at random moments: every row is published once, and every file is whole at every moment."""
    chance, deaths, saves = random.Random(f"{kind}{rolling}"), 0, 40
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(tmp_path / "snapshots"),
        str(tmp_path / "out"),
        kind,
        str(saves),
        rolling,
    ]
    wanted = Counter([(each, n) for n in range(saves) for each in "ab"] + [("b", n + 1000) for n in range(saves)])
    while True:
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"claimed\n"
            try:
                process.wait(chance.uniform(0.0, 0.1) if deaths < 3 else 120)
            except subprocess.TimeoutExpired:
                process.kill()
                deaths += 1
                process.wait()
                assert _found(tmp_path) <= wanted
                continue
        assert process.returncode == 0
        break
    assert _found(tmp_path) == wanted
    assert deaths > 1
    manifest = PartitionChain(Store.open(tmp_path / "snapshots"), 1, 0).load()
    assert manifest is not None
    assert manifest.epoch == deaths + 1
    assert not manifest.staged
    count = len(files(Store.open(tmp_path / "out")))
    assert count == 2 * saves if rolling == "each save" else count < saves


def _found(folder: Path) -> Counter[Any]:
    return Counter((row["kind"], row["number"]) for row in everything(Store.open(folder / "out")))


# The file size limit stands for a disk that is full: a write stops in the middle.
FULL = """
import resource, sys
import pyarrow as pa
from flowstate.errors import Unavailable
from flowstate.plan.spec import SinkSpec
from flowstate.sink import Stage, make_sink
from flowstate.store import Store

store = Store.open(sys.argv[1])
sink = make_sink(SinkSpec("json", "totals", sys.argv[2]))
rows = pa.table({"text": ["x" * 100] * 10_000})
(staged,) = sink.prepare(Stage(store, "g0001/p0000", 0, 1, 1), rows)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    sink.publish(store, staged)
except Unavailable as error:
    print(error)
print(sorted(Store.open(sys.argv[2]).list()))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink.publish(store, staged)
print(Store.open(sys.argv[2]).list())
"""


def test_disk_stops_in_the_middle(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "snapshots"), str(tmp_path / "out")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True)
    said, before, after = done.stdout.splitlines()
    assert "the disk failed" in said
    assert before == "[]"
    assert after == "['p0000-g0001-e000001-000001-totals.jsonl']"
    assert len(everything(Store.open(tmp_path / "out"))) == 10_000
    assert not [each for each in os.listdir(tmp_path / "out") if each.startswith(".")]


def test_full_disk(tmp_path: Path, small_disk: Callable[[int], SmallDisk]) -> None:
    """No space at the target: nothing half is visible, and publishing succeeds once there is some."""
    disk = small_disk(256 << 10)
    out = disk.folder / "out"
    out.mkdir()
    disk.fill(leave=60_000)
    store, sink = Store.open(tmp_path / "snapshots"), FileSink(SinkSpec("csv", "totals", str(out)))
    (staged,) = sink.prepare(Stage(store, PREFIX, 0, 1, 1), rows(1, 9_000))
    assert staged.bytes > 60_000
    for _ in range(3):
        with pytest.raises(Unavailable, match="no space left"):
            sink.publish(store, staged)
        assert os.listdir(out) == []
    disk.clear()
    sink.publish(store, staged)
    assert everything(sink.target) == rows(1, 9_000).to_pylist()


def test_what_dead_writers_left_is_swept(tmp_path: Path) -> None:
    """Half a file of a writer that died is hidden, and goes once it is old; a young one may still be written."""
    sink, store = (
        FileSink(SinkSpec("json", "totals", str(tmp_path / "out"), options={"partition_by": "kind"})),
        Store.open(tmp_path / "snapshots"),
    )
    sink.check(SCHEMA)
    old, young = (tmp_path / "out" / "kind=k0" / f".{name * 16}.tmp" for name in "ab")
    root = tmp_path / "out" / f".{'c' * 16}.tmp"
    old.parent.mkdir()
    for each in (old, young, root):
        each.write_bytes(b"half")
    for each in (old, root):
        os.utime(each, (1, 1))
    assert everything(Store.open(tmp_path / "out")) == []
    for number in range(70):
        for staged in sink.prepare(Stage(store, PREFIX, 0, 1, number), rows(number)):
            sink.publish(store, staged)
    assert not old.exists()
    assert young.exists()
    FileSink(SinkSpec("json", "totals", str(tmp_path / "out"))).check(SCHEMA)
    assert not root.exists()
