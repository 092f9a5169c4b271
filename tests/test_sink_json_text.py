"""What goes out as JSON is read back, by our own reader, as the same values; and it is JSON to everybody else."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.plan.spec import ScanSpec
from flowstate.sink import json_text
from flowstate.source.decode import Decoder
from flowstate.source.records import Records

KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    (pa.float32(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    (pa.decimal128(12, 2), st.decimals("-9999999999.99", "9999999999.99", places=2)),
    (pa.decimal128(38, 20), st.decimals("-999999999999999999", "999999999999999999", places=20)),
    (pa.string(), st.text(st.characters(codec="utf-8"))),
    (pa.large_string(), st.sampled_from(['"', "\\", "a\nb", "\x00", "\x7f", "ä\u2028😀", ""])),
    (pa.binary(), st.text(st.characters(codec="utf-8")).map(str.encode)),
    (pa.timestamp("ms", "UTC"), st.integers(-62135596800000 - 1, 253402300799999 + 1)),
    (pa.timestamp("us", "Europe/Berlin"), st.integers(-62135596800000000 + 10**12, 253402300799999999 - 10**12)),
    (pa.timestamp("ns"), st.integers(-(2**63) + 1, 2**63 - 1)),
    (pa.timestamp("s"), st.integers(-(10**14), 10**14)),
    (pa.date32(), st.dates()),
    (pa.date32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.date64(), st.dates()),
    (pa.time32("ms"), st.times().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000))),
    (pa.time64("us"), st.times()),
    (pa.duration("us"), st.integers(-(2**62), 2**62)),
]  # fmt: skip


def nested(kind: pa.DataType, values: st.SearchStrategy[Any]) -> list[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    some = st.none() | values
    return [
        (pa.list_(kind), st.lists(some, max_size=4)),
        (pa.struct({"a": kind, 'b"': pa.list_(kind)}), st.fixed_dictionaries({"a": some, 'b"': st.none() | st.lists(some, max_size=2)})),
    ]  # fmt: skip


EVERY = KINDS + [each for kind, values in KINDS for each in nested(kind, values)]


def read_back(lines: list[bytes], schema: pa.Schema) -> pa.RecordBatch:
    lengths = np.array([len(each) for each in lines], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    records = Records(b"".join(each + b"\n" for each in lines), ends - lengths, ends, np.arange(len(lines)))
    batch, dead = Decoder(ScanSpec("back", "kafka", schema), "json").decode("back/0", records)
    assert dead.num_rows == 0, dead.to_pylist()
    return batch.select(schema.names)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_reads_back_as_the_same_values(data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.sampled_from(EVERY), min_size=1, max_size=4))
    count = data.draw(st.integers(1, 6))
    columns = {
        f"c{number}ä": pa.array(data.draw(st.lists(st.none() | values, min_size=count, max_size=count)), kind)
        for number, (kind, values) in enumerate(picked)
    }
    table = pa.table(columns)
    # Slices: buffers do not begin where the rows do.
    table = pa.concat_tables([table, table.slice(1), table.slice(0, 1)])
    lines = json_text.rows(table)
    for line in lines:
        assert b"\n" not in line
        json.loads(line)
    assert read_back(lines, table.schema).equals(table.combine_chunks().to_batches()[0])


def test_money_and_time_are_written_in_full() -> None:
    schema = pa.schema({"customer": pa.string(), "total": pa.decimal128(12, 2), "month": pa.timestamp("ms", "UTC")})
    table = pa.table({"customer": ["anna"], "total": [Decimal("12.50")], "month": [0]}, schema=schema)
    assert json_text.rows(table) == [b'{"customer":"anna","total":12.50,"month":"1970-01-01T00:00:00.000Z"}']
    assert json_text.rows(table.slice(0, 0)) == []


def test_what_json_has_no_words_for_still_goes_out() -> None:
    table = pa.table({
        "x": [math.nan, math.inf, -math.inf, None],
        "raw": pa.array([b"\xff", b"plain", None, b'"'], pa.binary()),
        "d": pa.array(["a", None, "a", "b"]).dictionary_encode(),
        "n": pa.nulls(4),
    })  # fmt: skip
    assert [json.loads(each) for each in json_text.rows(table)] == [
        {"x": "NaN", "raw": {"base64": "/w=="}, "d": "a", "n": None},
        {"x": "Infinity", "raw": "plain", "d": None, "n": None},
        {"x": "-Infinity", "raw": None, "d": "a", "n": None},
        {"x": None, "raw": '"', "d": "b", "n": None},
    ]


@pytest.mark.parametrize("kind", [pa.map_(pa.string(), pa.int64()), pa.list_(pa.month_day_nano_interval())])
def test_says_what_it_cannot_write(kind: pa.DataType) -> None:
    assert not json_text.supports(kind)
    assert all(json_text.supports(each) for each, _ in EVERY)
