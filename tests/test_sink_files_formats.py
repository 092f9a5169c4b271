"""What stands in files: read back by ourselves and by others."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sink_folder import files

from flowstate.errors import InvalidFlow
from flowstate.plan.spec import ScanSpec, SinkSpec
from flowstate.sink.base import Stage
from flowstate.sink.file_formats import FORMATS
from flowstate.sink.files import FileSink
from flowstate.source.files import FilesSource
from flowstate.store import Store
from flowstate.testing.conformance_sink import PREFIX

COMMON: dict[str, tuple[pa.DataType, Any]] = {
    "flag": (pa.bool_(), st.booleans()),
    "small": (pa.int8(), st.integers(-128, 127)),
    "large": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "unsigned": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "money": (pa.decimal128(38, 10), st.decimals(-(10**20), 10**20, places=10)),
    "cents": (pa.decimal64(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    "wide": (pa.decimal256(60, 30), st.decimals(-(10**10), 10**10, places=30)),
    "ratio": (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    "single": (pa.float32(), st.floats(allow_nan=False, allow_infinity=False, width=32)),
    "at": (pa.timestamp("us", "UTC"), st.datetimes(datetime.datetime(1, 1, 2), timezones=st.just(datetime.UTC))),
    "there": (
        pa.timestamp("ms", "Europe/Berlin"),
        st.datetimes(datetime.datetime(1900, 1, 1)).map(
            lambda each: each.replace(microsecond=1000, tzinfo=datetime.UTC)
        ),
    ),
    "bare": (pa.timestamp("ns"), st.integers(-(2**63) + 1, 2**63 - 1)),
    "far": (pa.timestamp("s"), st.integers(-62_135_596_800, 253_402_300_799)),
    "day": (pa.date32(), st.dates()),
    "noon": (pa.time64("us"), st.times()),
    "lasts": (pa.duration("ms"), st.integers(-(2**60), 2**60)),
}
WORDS = st.sampled_from(["", " ", "ä€😀", 'a"b', "a,b", "null", "true", "-1.5", "\\n", "'"])
LINES = st.text(st.characters(codec="utf-8")) | st.sampled_from(["a\nb", "\r\n", "\0", "\x7f", "\u2028"])
LINE = WORDS | LINES.map(lambda each: "".join(char for char in each if char not in "\r\n\0"))


def written(tmp: Store, kind: Any, table: pa.Table, **options: Any) -> Store:
    sink = FileSink(SinkSpec(kind, "rows", tmp.url + "/out", "append", options))
    sink.check(table.schema)
    for each in sink.prepare(Stage(tmp, PREFIX, 0, 1, 1), table):
        sink.publish(tmp, each)
    return sink.target


def scanned(target: Store, kind: Any, schema: pa.Schema) -> tuple[pa.Table, int]:
    """What scan_files reads, and how many records it could not read."""
    source = FilesSource(ScanSpec("back", kind, schema, options={"url": target.url, "format": kind}))  # type: ignore[arg-type]
    reader, found, dead = source.open(), [], 0
    try:
        splits = source.splits()
        for each in splits:
            reader.assign(each, 0)
        waiting = {each.name: each.end for each in splits}
        while waiting:
            for rows in reader.poll(waiting, max_rows=100_000, timeout=1.0):
                found.append(rows.batch.select(schema.names))
                dead += rows.dead.num_rows
                end = waiting[rows.split]
                if end is not None and rows.to >= end:
                    del waiting[rows.split]
    finally:
        reader.close()
    return pa.Table.from_batches(found, schema), dead


def a_table(draw: Any, columns: dict[str, tuple[pa.DataType, Any]], texts: Any) -> pa.Table:
    count = draw(st.integers(1, 8))
    chosen = {**columns, "text": (pa.string(), texts), "long": (pa.large_string(), texts)}
    arrays = {
        name: pa.array(draw(st.lists(st.none() | values, min_size=count, max_size=count)), kind)
        for name, (kind, values) in chosen.items()
    }
    return pa.table({"row": list(range(count)), **arrays})


@given(data=st.data(), compression=st.sampled_from(["none", "gzip", "zstd"]))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_read_back_by_ourselves(kind: str, data: st.DataObject, compression: str) -> None:
    """Text with newlines comes back from JSON; CSV is read back line by line, so its texts have none here."""
    table = a_table(data.draw, COMMON, LINES | WORDS if kind == "json" else LINE)
    target = written(Store.open(f"memory://{uuid.uuid4().hex}"), kind, table, compression=compression)
    (path,) = files(target)
    assert path.endswith({"none": "", "gzip": ".gz", "zstd": ".zst"}[compression])
    found, dead = scanned(target, kind, table.schema)
    assert not dead
    assert found.equals(table)


def test_nested_json_is_read_back(tmp_path: Path) -> None:
    kind = pa.struct({"tags": pa.list_(pa.string()), "price": pa.decimal128(5, 2)})
    rows = [{"tags": ["a", None, '"'], "price": Decimal("1.50")}, None, {"tags": None, "price": None}, {"tags": []}]
    table = pa.table({"order": pa.array(rows, kind)})
    found, dead = scanned(written(Store.open(tmp_path), "json", table), "json", table.schema)
    assert not dead
    assert found.equals(table)


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_read_by_others(kind: str, compression: str, tmp_path: Path) -> None:
    texts = ["a\nb", None, "", 'q",é', "\r\n"]
    table = pa.table(
        {
            "row": list(range(5)),
            "text": texts,
            "money": pa.array([Decimal("12.34"), None, Decimal("-0.01"), Decimal(0), None], pa.decimal128(38, 2)),
            "large": [2**63 - 1, None, -(2**63), 0, 1],
            "at": pa.array([0, None, 1, 1_700_000_000_123, -1], pa.timestamp("ms", "UTC")),
        }
    )
    (path,) = files(written(Store.open(tmp_path), kind, table, compression=compression))
    types = "{'row': 'BIGINT', 'text': 'VARCHAR', 'money': 'DECIMAL(38,2)', 'large': 'BIGINT', 'at': 'TIMESTAMPTZ'}"
    place = tmp_path / "out" / path
    read = {
        "parquet": f"read_parquet('{place}')",
        "csv": f"read_csv('{place}', header=true, allow_quoted_nulls=false, columns={types})",
        "json": f"read_json('{place}', format='newline_delimited', columns={types})",
    }[kind]
    query = f'select "row", text, money, large, epoch_ms("at") from {read} order by 1'
    found = duckdb.sql(query).fetchall()
    at = table["at"].cast(pa.int64()).to_pylist()
    wanted = zip(*(table[name].to_pylist() for name in ("row", "text", "money", "large")), at, strict=True)
    assert found == list(wanted)


def test_csv_text() -> None:
    table = pa.table(
        {
            'na"me': ["x", None, "", 'q",\n'],
            "raw": pa.array([b"ok", b"\xff", b"base64:x", None], pa.binary()),
            "year": pa.array([0, 10**12, None, -(10**12)], pa.timestamp("s", "Europe/Berlin")),
            "word": pa.array(["a", "b", None, "a"]).dictionary_encode(),
            "none": pa.nulls(4),
        }
    )
    data = FORMATS["csv"](None).encode(table).decode()
    assert data == (
        '"na""me","raw","year","word","none"\n'
        '"x","ok","1970-01-01T00:00:00Z","a",\n'
        ',"base64:/w==","1000000000000","b",\n'
        '"","base64:YmFzZTY0Ong=",,,\n'
        '"q"",\n",,"-1000000000000","a",\n'
    )


def test_a_header_in_every_file(tmp_path: Path) -> None:
    table = pa.table({"kind": ["a", "b"], "number": [1, 2], "text": ["x", "y"]})
    target = written(Store.open(tmp_path), "csv", table, partition_by="kind")
    assert [data.split(b"\n")[0] for data in files(target).values()] == [b'"number","text"'] * 2


@pytest.mark.parametrize(
    ("kind", "schema", "said"),
    [
        (
            "csv",
            {"tags": pa.list_(pa.int8()), "n": pa.int8()},
            "take the fields apart with select, or use sink_json.*'tags'",
        ),
        ("csv", {"gap": pa.month_day_nano_interval(), "n": pa.int8()}, "CSV has no text for this column.*'gap'"),
        ("csv", {"text": pa.string()}, "add a column, or use sink_json.*'text'"),
        ("json", {"gap": pa.month_day_nano_interval()}, "JSON has no text for this column.*'gap'"),
        ("parquet", {"gap": pa.month_day_nano_interval()}, "Parquet cannot hold this column.*'gap'"),
    ],
)
def test_what_cannot_be_held_is_refused(kind: Any, schema: dict[str, pa.DataType], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFlow, match=said):
        FileSink(SinkSpec(kind, "rows", str(tmp_path))).check(pa.schema(schema))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("csv", {"compression": "zst"}, "sink_csv has no compression 'zst'; did you mean 'zstd'"),
        ("json", {"compression": "snappy"}, "sink_json has no compression 'snappy'"),
        ("json", {"roll_byte": 1}, "sink_json has no option 'roll_byte'; did you mean 'roll_bytes'"),
        ("csv", {"roll_bytes": 0}, "roll_bytes is a whole number above 0"),
        ("parquet", {"roll_after": "1h"}, "roll_after is a whole number above 0"),
    ],
)
def test_wrong_options_are_refused(kind: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFlow, match=said):
        FileSink(SinkSpec(kind, "rows", str(tmp_path), options=options))
