from __future__ import annotations

import datetime
import os
import random
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import S3Server, s3_server

from flowstate.errors import InvalidFlow, Unavailable
from flowstate.plan.spec import SinkSpec
from flowstate.sink import hive
from flowstate.sink.files import ParquetSink
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store
from flowstate.testing.conformance_sink import CHECKS, PREFIX, SCHEMA, SinkUnderTest, rows
from flowstate.testing.interrupted_store import InterruptedStore
from flowstate.testing.stepped_store import interleave

UTC = datetime.UTC


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def sink(url: str | os.PathLike[str], **options: Any) -> ParquetSink:
    return ParquetSink(SinkSpec("parquet", "totals", os.fspath(url), options=options))


def everything(store: Store, folder: str = "") -> list[dict[str, Any]]:
    """All rows of all visible files, with the values of their folders."""
    found: list[dict[str, Any]] = []
    for name in store.list(folder):
        path = f"{folder}/{name}" if folder else name
        if not store.exists(path):
            found += everything(store, path)
            continue
        folders = dict(part.split("=", 1) for part in folder.split("/") if part)
        found += [{**row, **folders} for row in pq.read_table(pa.BufferReader(store.read(path))).to_pylist()]
    return found


@pytest.mark.parametrize("by", [None, "kind"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_local(check: Callable[[SinkUnderTest], None], by: str | None, tmp_path: Path) -> None:
    target = Store.open(tmp_path / "out")
    check(
        SinkUnderTest(
            lambda: sink(target.url, partition_by=by), Store.open(tmp_path / "snapshots"), lambda: everything(target)
        )
    )


@pytest.mark.s3
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_s3(check: Callable[[SinkUnderTest], None], server: S3Server) -> None:
    bucket, options = server.bucket(check.__name__.replace("_", "-")), server.storage_options
    target = Store.open(f"{bucket}/out", **options)
    check(
        SinkUnderTest(
            lambda: sink(target.url, partition_by=["kind"], storage_options=options),
            Store.open(f"{bucket}/snapshots", **options),
            lambda: everything(target),
        )
    )


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_incarnations_publish_exactly_once(seed: int) -> None:
    """Three incarnations of a partition take one another's place at any store operation; each goes on where the newest manifest says,
    publishes what is staged (also zombies do), and the rows are there once."""
    store, target = Store.open(f"memory://{uuid.uuid4().hex}"), Store.open(f"memory://{uuid.uuid4().hex}")

    def incarnation(own: Store) -> None:
        output, chain = sink(target.url, partition_by="kind"), PartitionChain(own, 1, 0)
        try:
            manifest = chain.claim()
            number = 0
            while True:
                for each in manifest.staged:
                    output.publish(own, each)
                done = manifest.handed.get("0", 0)
                staged = (
                    tuple(output.prepare(own, PREFIX, 0, manifest.epoch, number, rows(done + 1))) if done < 4 else ()
                )
                if not staged and not manifest.staged:
                    return
                handed = {"0": min(done + 1, 4)}
                committed = chain.commit(manifest.version, Manifest(0, manifest.epoch, None, staged, handed))
                if committed is None:
                    return
                manifest, number = committed, number + 1
        except Unavailable:
            return

    trace = interleave(store, [incarnation] * 3, random.Random(seed), faults=0.03)
    last = PartitionChain(store, 1, 0)
    incarnation(store)
    assert (last.load() or Manifest(0, 0)).handed == {"0": 4}
    wanted = sorted(row["number"] for first in range(1, 5) for row in rows(first).to_pylist())
    assert sorted(row["number"] for row in everything(target)) == wanted, trace


@pytest.mark.parametrize("after", [False, True])
def test_death_at_every_step_of_the_target(after: bool, tmp_path: Path) -> None:
    """The target's own operations fail: nothing half is visible, and publishing again completes."""
    for step in range(100):
        store, target = Store.open(tmp_path / f"{step}-snapshots"), Store.open(tmp_path / f"{step}-out")
        output = sink(target.url, partition_by="kind")
        staged = output.prepare(store, PREFIX, 0, 1, 1, rows(1))
        broken = InterruptedStore(target, step, after=after)
        output.target = broken
        try:
            for each in staged:
                output.publish(store, each)
            finished = True
        except Unavailable:
            finished = False
        seen = [row["number"] for row in everything(target)]
        assert len(seen) == len(set(seen))
        for each in staged:
            sink(target.url).publish(store, each)
        assert sorted(row["number"] for row in everything(target)) == rows(1)["number"].to_pylist()
        if finished:
            assert step >= 6
            return


def test_hive_folders_are_read_by_others(tmp_path: Path) -> None:
    months = pa.array([datetime.datetime(2017, 1, 1), datetime.datetime(2017, 2, 1), None], pa.timestamp("ms", "UTC"))
    table = pa.table(
        {"customer": ["anna", "björn", "c/d"], "month": months, "total": pa.array([1, 2, 3], pa.decimal128(12, 2))}
    )
    output, store = sink(tmp_path / "invoices", partition_by=["month", "customer"]), Store.open(tmp_path / "snapshots")
    staged = output.prepare(store, "g0002/p0007", 7, 5, 12, table)
    for each in staged:
        output.publish(store, each)
    name = "p0007-g0002-e000005-000012-totals.parquet"
    assert [each.target for each in staged] == [
        f"month=2017-01-01/customer=anna/{name}",
        f"month=2017-02-01/customer=bj%C3%B6rn/{name}",
        f"month=__HIVE_DEFAULT_PARTITION__/customer=c%2Fd/{name}",
    ]
    assert [each.rows for each in staged] == [1, 1, 1]
    pattern = f"{tmp_path}/invoices/**/*.parquet"
    found = duckdb.sql(
        f"select customer, month, total from read_parquet('{pattern}', hive_partitioning=true) order by total"
    )
    assert found is not None
    assert found.fetchall() == [
        ("anna", datetime.date(2017, 1, 1), Decimal(1)),
        ("björn", datetime.date(2017, 2, 1), Decimal(2)),
        ("c/d", None, Decimal(3)),
    ]
    data = pyarrow.dataset.dataset(tmp_path / "invoices", partitioning="hive").to_table().sort_by("total")
    assert data["customer"].to_pylist() == ["anna", "björn", "c/d"]
    assert data["month"].to_pylist() == ["2017-01-01", "2017-02-01", None]


# The clocks of Havana go back at one in the morning: that midnight comes twice.
@pytest.mark.parametrize(
    ("values", "folders"),
    [
        (pa.array([0, 86_400, 86_401], pa.timestamp("s")), ["1970-01-01", "1970-01-02", "1970-01-02T00:00:01"]),
        (pa.array([-1], pa.timestamp("s")), ["1969-12-31T23:59:59"]),
        (pa.array([0], pa.timestamp("ms", "Europe/Berlin")), ["1970-01-01T01:00:00+01:00"]),
        (pa.array([1_485_903_600_000_000], pa.timestamp("us", "Europe/Berlin")), ["2017-02-01"]),
        (
            pa.array([1, 500], pa.timestamp("ns", "UTC")),
            ["1970-01-01T00:00:00.000000001Z", "1970-01-01T00:00:00.000000500Z"],
        ),
        (pa.array([-19_800], pa.timestamp("s", "+05:30")), ["1970-01-01"]),
        (pa.array([1_541_304_000], pa.timestamp("s", "America/Havana")), ["2018-11-04T00:00:00-04:00"]),
        (pa.array([1_541_307_600], pa.timestamp("s", "America/Havana")), ["2018-11-04T00:00:00-05:00"]),
        (pa.array([datetime.date(2017, 3, 1)]), ["2017-03-01"]),
        (pa.array(["", ".x", "a b", "a=b", "%", None]), ["", "%2Ex", "a b", "a%3Db", "%25", hive.NULL]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([-1, 2], pa.int8()), ["-1", "2"]),
        (pa.array([Decimal("1.50")], pa.decimal128(5, 2)), ["1.50"]),
        (pa.array(["x", "y"]).cast(pa.large_string()), ["x", "y"]),
        (pa.array(["x", "y"]).cast(pa.string_view()), ["x", "y"]),
    ],
)
def test_folder_names(values: pa.Array, folders: list[str]) -> None:
    table = pa.table({"v": values, "row": list(range(len(values)))})
    found = {part["row"][0].as_py(): folder for folder, part in hive.split(table, ["v"])}
    assert [found[index] for index in range(len(values))] == ["v=" + folder.replace(":", "%3A") for folder in folders]


@given(
    data=st.lists(
        st.tuples(st.sampled_from([None, "a", "b/c", ""]), st.sampled_from([None, True, False]), st.integers(0, 9))
    ),
    chunk=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_split_loses_nothing(data: list[tuple[str | None, bool | None, int]], chunk: int) -> None:
    schema = pa.schema({"text": pa.string(), "flag": pa.bool_(), "number": pa.int64()})
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in data], schema)
    table = pa.Table.from_batches(table.to_batches(max_chunksize=chunk), schema)
    naive: dict[str, list[int]] = {}
    texts = {None: hive.NULL, "a": "a", "b/c": "b%2Fc", "": "", True: "true", False: "false"}
    for text, flag, number in data:
        naive.setdefault(f"text={texts[text]}/flag={texts[flag]}", []).append(number)
    assert {folder: part["number"].to_pylist() for folder, part in hive.split(table, ["text", "flag"])} == naive


def test_many_folders_quickly() -> None:
    table = pa.table({"customer": [f"c{number % 20_000}" for number in range(60_000)], "number": list(range(60_000))})
    parts = list(hive.split(table, ["customer"]))
    assert len(parts) == 20_000
    assert all(
        part["number"].to_pylist() == [int(folder[10:]) + each for each in (0, 20_000, 40_000)]
        for folder, part in parts
    )


KILLED = """
import os, sys
from dataclasses import replace
import pyarrow as pa
from flowstate.plan.spec import SinkSpec
from flowstate.sink.files import ParquetSink
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.retention import retain_partition
from flowstate.store import Store

store = Store.open(sys.argv[1])
sink = ParquetSink(SinkSpec("parquet", "totals", sys.argv[2], options={"partition_by": "kind"}))
chain = PartitionChain(store, 1, 0)
manifest, number = chain.claim(), 0
print("claimed", flush=True)
while True:
    for each in manifest.staged:
        sink.publish(store, each)
    done = manifest.handed.get("0", 0)
    if done == 100 and not manifest.staged:
        break
    number, staged = number + 1, ()
    if done < 100:
        rows = pa.table({"kind": ["a", "b"], "number": [done, done]})
        staged = tuple(sink.prepare(store, "g0001/p0000", 0, manifest.epoch, number, rows))
    manifest = chain.commit(manifest.version, replace(manifest, staged=staged, handed={"0": min(done + 1, 100)}))
    assert manifest is not None
    if number % 20 == 0:
        retain_partition(store, 1, 0, 2)
"""


def test_killed_again_and_again(tmp_path: Path) -> None:
    """A real process, killed for good at random moments: every row is published once."""
    chance, deaths = random.Random(5), 0
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "snapshots"), str(tmp_path / "out")]
    while True:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"claimed\n"
            try:
                process.wait(chance.uniform(0.01, 0.15) if deaths < 3 else 120)
            except subprocess.TimeoutExpired:
                process.kill()
                deaths += 1
                continue
        assert process.returncode == 0
        break
    found = everything(Store.open(tmp_path / "out"))
    assert sorted((row["number"], row["kind"]) for row in found) == [(n, kind) for n in range(100) for kind in "ab"]
    assert deaths > 1
    manifest = PartitionChain(Store.open(tmp_path / "snapshots"), 1, 0).load()
    assert manifest is not None and manifest.epoch == deaths + 1


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidFlow, match="cannot change later"):
        ParquetSink(SinkSpec("parquet", "totals", str(tmp_path), mode="changes"))
    with pytest.raises(InvalidFlow, match="did you mean 'partition_by'"):
        sink(tmp_path, partition="kind")
    with pytest.raises(InvalidFlow, match="did you mean 'kind'"):
        sink(tmp_path, partition_by="kinds").check(SCHEMA)
    with pytest.raises(InvalidFlow, match="column of text, whole numbers"):
        sink(tmp_path, partition_by="x").check(pa.schema({"x": pa.float64(), "y": pa.int64()}))
    with pytest.raises(InvalidFlow, match="leaves no column"):
        sink(tmp_path, partition_by=["kind", "number"]).check(SCHEMA)
    with pytest.raises(InvalidFlow, match="names a column twice"):
        sink(tmp_path, partition_by=["kind", "kind"]).check(SCHEMA)
    with pytest.raises(InvalidFlow, match=r"Parquet cannot hold this column.*column='gap'"):
        sink(tmp_path).check(pa.schema({"kind": pa.string(), "gap": pa.month_day_nano_interval()}))
    with pytest.raises(InvalidFlow, match="did you mean 'zstd'"):
        sink(tmp_path, compression="std")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidFlow, match="cannot be used"):
        sink(tmp_path / "file" / "out").check(SCHEMA)


def test_folder_of_another_job(tmp_path: Path) -> None:
    """Two jobs that write into one folder would have the same names; the second is told, nothing is overwritten or passed over."""
    for number, name in enumerate(("one", "two")):
        store, output = Store.open(tmp_path / name), sink(tmp_path / "out")
        (staged,) = output.prepare(store, PREFIX, 0, 1, 1, rows(number))
        if name == "one":
            output.publish(store, staged)
        else:
            with pytest.raises(InvalidFlow, match="output folder of its own"):
                output.publish(store, staged)
    assert everything(Store.open(tmp_path / "out")) == rows(0).to_pylist()


def test_output_folder_vanishes(tmp_path: Path) -> None:
    store, output = Store.open(tmp_path / "snapshots"), sink(tmp_path / "out", partition_by="kind")
    for each in output.prepare(store, PREFIX, 0, 1, 1, rows(1)):
        output.publish(store, each)
    shutil.rmtree(tmp_path / "out")
    for each in output.prepare(store, PREFIX, 0, 1, 2, rows(2)):
        output.publish(store, each)
    assert sorted(row["number"] for row in everything(output.target)) == rows(2)["number"].to_pylist()
