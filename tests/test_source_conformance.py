"""The conformance suite over every kind of source."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka_broker import KafkaBroker

from flowstate.plan.spec import ScanSpec
from flowstate.source import Source, make_source
from flowstate.testing.conformance_source import check_source

SCHEMA = pa.schema(
    [
        pa.field("customer", pa.string(), nullable=False),
        pa.field("amount", pa.decimal128(12, 2)),
        pa.field("at", pa.timestamp("ms", "UTC")),
    ]
)
START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {
        "customer": f"customer-{number % 7}-é",
        "amount": None if number % 11 == 0 else Decimal(number).scaleb(-2),
        "at": START + timedelta(milliseconds=37 * number),
    }
    for number in range(120)
]


def made(spec: ScanSpec) -> Callable[[], Source]:
    return lambda: pickle.loads(pickle.dumps(make_source(spec)))


def as_json(row: dict[str, Any]) -> bytes:
    amount = None if row["amount"] is None else str(row["amount"])
    return json.dumps(
        {**row, "amount": amount, "at": row["at"].isoformat(timespec="milliseconds")}, ensure_ascii=False
    ).encode()


def as_csv(row: dict[str, Any]) -> bytes:
    amount = "" if row["amount"] is None else str(row["amount"])
    return f"{row['customer']},{amount},{row['at'].isoformat(timespec='milliseconds')}".encode()


def lines(form: str, rows: list[dict[str, Any]]) -> bytes:
    if form == "csv":
        return b"customer,amount,at\n" + b"\n".join([*map(as_csv, rows), b"broken", b""])
    written = [as_json(each) for each in rows]
    written[3:3] = [b"", b"{broken", b"x" * 500]
    written[20:20] = [b'{"customer":"too exact","amount":0.001,"at":1}\r']
    return b"\n".join(written) + b"\n"


def compressed(data: bytes, compression: str | None) -> bytes:
    if compression == "gzip":
        return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])
    if compression == "bz2":
        return bz2.compress(data)
    if compression == "xz":
        return lzma.compress(data)
    if compression is None:
        return data
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


SUFFIX = {None: "", "gzip": ".gz", "bz2": ".bz2", "xz": ".xz", "zstd": ".zst", "lz4": ".lz4"}


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_arrow(splits: int, seed: int) -> None:
    table = pa.Table.from_pylist(ROWS, schema=SCHEMA)
    spec = ScanSpec("memory", "arrow", SCHEMA, "at", options={"batches": table.to_batches(25), "splits": splits})
    assert len(check_source(made(spec), spec, ROWS, expected_dead=0, seed=seed)) == splits


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("compression", SUFFIX)
@pytest.mark.parametrize("form", ["json", "csv"])
def test_text_files(tmp_path: Path, form: str, compression: str | None, follow: bool) -> None:
    for part, rows in enumerate((ROWS[:50], ROWS[50:])):
        data = compressed(lines(form, rows), compression)
        (tmp_path / f"{part}.{'jsonl' if form == 'json' else form}{SUFFIX[compression]}").write_bytes(data)
    options = {"url": str(tmp_path), "format": form, "follow": follow, "max_line_bytes": 200}
    spec = ScanSpec("files", "files", SCHEMA, "at", options=options)
    check_source(made(spec), spec, ROWS, expected_dead=6 if form == "json" else 2, seed=len(form), rounds=8)


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_columnar_files(tmp_path: Path, form: str, compression: str | None) -> None:
    for part, rows in enumerate((ROWS[:50], ROWS[50:])):
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        sink = pa.BufferOutputStream()
        if form == "parquet":
            pq.write_table(table, sink, row_group_size=17)
        else:
            with (pa.ipc.new_file if form == "file" else pa.ipc.new_stream)(sink, SCHEMA) as writer:
                writer.write_table(table, max_chunksize=13)
        data = compressed(sink.getvalue().to_pybytes(), compression)
        (tmp_path / f"{part}.x{SUFFIX[compression]}").write_bytes(data)
    options = {"url": str(tmp_path / "*.x*"), "format": "parquet" if form == "parquet" else "arrow"}
    spec = ScanSpec("files", "files", SCHEMA, "at", options=options)
    check_source(made(spec), spec, ROWS, expected_dead=0, rounds=8)


@pytest.mark.kafka
@pytest.mark.parametrize("seed", range(3))
def test_kafka_with_gaps(kafka: KafkaBroker, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed:
        monkeypatch.setattr("flowstate.source.kafka.PAUSE_ROWS", 2)  # Pause and resume all the time.
    topic = f"conformance-{seed}"
    kafka.create_topic(topic, 2)
    kafka.produce(topic, map(as_json, ROWS[:30]), 0, transaction="c")
    kafka.produce(topic, [b"lost"] * 5, 0, transaction="c", commit=False)
    kafka.produce(topic, [*map(as_json, ROWS[30:80]), b"{broken", None], 0)
    kafka.produce(topic, map(as_json, ROWS[80:]), 1)
    kafka.produce(topic, [b"lost"] * 5, 1, transaction="c", commit=False)
    options = {"topic": topic, "bootstrap": kafka.bootstrap}
    spec = ScanSpec("events", "kafka", SCHEMA, "at", options=options)
    check_source(made(spec), spec, ROWS, expected_dead=1, rounds=4, seed=seed, patience=60)
