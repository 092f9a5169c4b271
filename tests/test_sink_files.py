from __future__ import annotations

import contextlib
import datetime
import os
import random
import shutil
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sink_folder import Folder, everything, watch_target

from flowstate.errors import InvalidFlow, Unavailable
from flowstate.plan.spec import SinkSpec
from flowstate.sink import hive
from flowstate.sink.base import Stage
from flowstate.sink.files import FileSink
from flowstate.store import Store
from flowstate.testing.conformance_sink import CHANGES_CHECKS, CHECKS, PREFIX, SCHEMA, SinkUnderTest, rows
from flowstate.testing.heap_store import HeapStore
from flowstate.testing.sink_incarnation import SinkIncarnation, Steps
from flowstate.testing.stepped_store import interleave

UTC = datetime.UTC


ROLLING: dict[str, Any] = {"roll_bytes": 1500, "roll_after": 2_000_000}


def sink(url: str | os.PathLike[str], kind: Any = "parquet", mode: Any = "final", **options: Any) -> FileSink:
    return FileSink(SinkSpec(kind, "totals", os.fspath(url), mode=mode, options=options))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("parquet", {"partition_by": "kind"}),
        ("parquet", {"partition_by": "kind"} | ROLLING),
        ("csv", {"compression": "gzip"}),
        ("csv", ROLLING),
        ("json", {"partition_by": "kind", "compression": "zstd"}),
        ("json", {"partition_by": "kind"} | ROLLING),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Callable[[SinkUnderTest], None], kind: str, options: dict[str, Any]) -> None:
    target = Store.open(f"memory://{uuid.uuid4().hex}")
    check(
        SinkUnderTest(
            lambda: sink(target.url, kind, **options),
            HeapStore(),
            Folder(target).rows,
            watch_target,
            rolls="roll_bytes" in options,
            deaths=1000 if kind == "parquet" else 25,
            histories=6,
        )
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance_on_disk(check: Callable[[SinkUnderTest], None], tmp_path: Path) -> None:
    target = Store.open(tmp_path / "out")
    options = {"partition_by": "kind"} | ROLLING
    check(
        SinkUnderTest(
            lambda: sink(target.url, **options),
            Store.open(tmp_path / "snapshots"),
            Folder(target).rows,
            watch_target,
            rolls=True,
            deaths=40,
            histories=4,
        )
    )


@pytest.mark.parametrize("options", [{}, ROLLING], ids=["each save", "rolling"])
@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
@pytest.mark.parametrize("check", CHANGES_CHECKS, ids=lambda check: check.__name__)
def test_changes(check: Callable[[SinkUnderTest], None], kind: str, options: dict[str, Any]) -> None:
    target = Store.open(f"memory://{uuid.uuid4().hex}")
    check(
        SinkUnderTest(
            lambda: sink(target.url, kind, "changes", **options),
            HeapStore(),
            Folder(target).rows,
            watch_target,
            deaths=8,
        )
    )


@given(seed=st.integers(0, 2**32), rolling=st.booleans())
@settings(max_examples=25, deadline=None)
def test_incarnations_publish_exactly_once(seed: int, rolling: bool) -> None:
    """Three incarnations of a partition take one another's place at any operation on the stage or on the target."""
    store, target = HeapStore(), Store.open(f"memory://{uuid.uuid4().hex}")

    def incarnation(own: Store) -> None:
        output = sink(target.url, partition_by="kind", **(ROLLING if rolling else {}))
        watch_target(output, lambda name: own.exists("turn") and None)
        with contextlib.suppress(Unavailable):
            SinkIncarnation(output, own, Steps(), lambda done, epoch: rows(done), 4).run()

    trace = interleave(store, [incarnation] * 3, random.Random(seed), faults=0.03)
    assert SinkIncarnation(sink(target.url), store, Steps(), lambda done, epoch: rows(done), 4).run()
    wanted = sorted(row["number"] for first in range(4) for row in rows(first).to_pylist())
    assert sorted(row["number"] for row in everything(target)) == wanted, trace


def test_hive_folders_are_read_by_others(tmp_path: Path) -> None:
    months = pa.array([datetime.datetime(2017, 1, 1), datetime.datetime(2017, 2, 1), None], pa.timestamp("ms", "UTC"))
    table = pa.table(
        {"customer": ["anna", "björn", "c/d"], "month": months, "total": pa.array([1, 2, 3], pa.decimal128(12, 2))}
    )
    output, store = sink(tmp_path / "invoices", partition_by=["month", "customer"]), Store.open(tmp_path / "snapshots")
    staged = output.prepare(Stage(store, "g0002/p0007", 7, 5, 12), table)
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


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
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
        (staged,) = output.prepare(Stage(store, PREFIX, 0, 1, 1), rows(number))
        if name == "one":
            output.publish(store, staged)
        else:
            with pytest.raises(InvalidFlow, match="output folder of its own"):
                output.publish(store, staged)
    assert everything(Store.open(tmp_path / "out")) == rows(0).to_pylist()


def test_output_folder_vanishes(tmp_path: Path) -> None:
    store, output = Store.open(tmp_path / "snapshots"), sink(tmp_path / "out", partition_by="kind")
    for each in output.prepare(Stage(store, PREFIX, 0, 1, 1), rows(1)):
        output.publish(store, each)
    shutil.rmtree(tmp_path / "out")
    for each in output.prepare(Stage(store, PREFIX, 0, 1, 2), rows(2)):
        output.publish(store, each)
    assert sorted(row["number"] for row in everything(output.target)) == rows(2)["number"].to_pylist()
