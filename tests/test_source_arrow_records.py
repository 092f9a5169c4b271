"""Arrow IPC records of several rows: each row is what it would be in a record of its own, and a record counts as a whole or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.plan.spec import ScanSpec
from flowstate.source.arrow_rows import ArrowRows
from flowstate.source.decode import Decoder
from flowstate.source.records import Records
from flowstate.source.values import Unreadable

SCHEMA = pa.schema(
    [pa.field("n", pa.int64(), nullable=False), ("name", pa.string()), ("at", pa.timestamp("ms", "UTC"))]
)
SPEC = ScanSpec("s", "kafka", SCHEMA, "at", max_ahead=1_000_000)
SENT = SCHEMA.set(0, pa.field("n", pa.int64()))
NOW = 1_700_000_000_000


def record(rows: list[tuple[int | None, str | None, int | None]], *, file: bool = False, cut: int = 0) -> bytes:
    columns = [list(each) for each in zip(*rows, strict=True)] or [[], [], []]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(each, field.type) for each, field in zip(columns, SENT, strict=True)], schema=SENT
    )
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, SENT) as writer:
        for part in (batch.slice(0, cut), batch.slice(cut)):
            writer.write_batch(part)
    return sink.getvalue().to_pybytes()


def decoded(raws: list[bytes], offsets: list[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    ends = np.cumsum([len(each) + 1 for each in raws]) - 1
    starts = ends - [len(each) for each in raws]
    recorded = np.full(len(raws), NOW * 1000, np.int64)
    records = Records(b"\n".join(raws), starts, ends, np.array(offsets, np.int64), recorded)
    rows, dead = Decoder(SPEC, "arrow").decode("a", records)
    assert rows.schema.names == [*SCHEMA.names, "__offset", "__time"]
    return rows.to_pylist(), dead.to_pylist()


ROW = st.tuples(
    st.integers(0, 99) | st.none(),
    st.none() | st.text(max_size=5),
    st.sampled_from([NOW, NOW - 5, NOW + 1000, NOW + 1001, None, -(2**50)]),
)
GOOD = st.tuples(st.integers(0, 99), st.none() | st.text(max_size=5), st.sampled_from([NOW, NOW - 5, NOW + 1000]))


@given(st.lists(st.lists(GOOD, max_size=5) | st.lists(ROW, max_size=3), min_size=1, max_size=6), st.data())
@settings(deadline=None, max_examples=50)
def test_rows_of_a_record_are_those_of_records_of_one_row(records: list[list[Any]], data: st.DataObject) -> None:
    raws = [record(rows, file=data.draw(st.booleans()), cut=data.draw(st.integers(0, len(rows)))) for rows in records]
    offsets = [3 * place + 7 for place in range(len(raws))]
    rows, dead = decoded(raws, offsets)
    wanted: list[dict[str, Any]] = []
    refused: list[tuple[int, bytes, str]] = []
    for offset, raw, each in zip(offsets, raws, records, strict=True):
        alone = [decoded([record([row])], [offset]) for row in each]
        reasons = [(place, letters[0]["reason"]) for place, (_, letters) in enumerate(alone, 1) if letters]
        if reasons:
            place, reason = reasons[0]
            refused.append((offset, raw, reason if len(each) == 1 else f"row {place} of {len(each)}: {reason}"))
        else:
            wanted += [found for good, _ in alone for found in good]
    assert rows == wanted
    assert [(each["offset"], each["raw"], each["reason"]) for each in dead] == refused


def test_what_is_no_record_is_one_letter_and_disturbs_nobody() -> None:
    good = record([(1, "a", NOW), (2, None, NOW)])
    rows, dead = decoded([good, b"nonsense", good[:40], b"", good], [1, 2, 3, 4, 5])
    assert [each["__offset"] for each in rows] == [1, 1, 5, 5]
    assert [each["offset"] for each in dead] == [2, 3, 4]
    assert all(each["reason"].startswith("not an Arrow IPC stream") for each in dead)


@given(st.binary(min_size=1, max_size=4), st.integers(0, 10**6))
@settings(deadline=None, max_examples=300)
def test_damaged_bytes_are_refused_or_valid(damage: bytes, place: int) -> None:
    raw = bytearray(record([(1, "anna", NOW), (None, None, None), (3, "\u00e4", 0)]))
    place %= len(raw)
    raw[place : place + len(damage)] = damage
    try:
        ArrowRows(SCHEMA).read(pa.py_buffer(bytes(raw))).validate(full=True)
    except Unreadable:
        pass


def test_columns_by_name_cast_where_that_is_safe() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table(
        {"at": pa.array([5], pa.timestamp("s", "UTC")), "more": [1], "n": pa.array([7], pa.int8()),
         "name": pa.array(["x"]).dictionary_encode()}
    )  # fmt: skip
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert ArrowRows(SCHEMA).read(sink.getvalue()).to_pylist()[0]["n"] == 7
    assert ArrowRows(pa.schema({"absent": pa.int64()})).read(sink.getvalue()).column(0).to_pylist() == [None]
    with pytest.raises(Unreadable, match="field 'name'"):
        ArrowRows(pa.schema({"name": pa.int64()})).read(sink.getvalue())


def test_a_few_bytes_cannot_ask_for_any_amount_of_memory() -> None:
    sink = pa.BufferOutputStream()
    schema = pa.schema([("nothing", pa.null())])
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(
            pa.RecordBatch.from_arrays([pa.Array.from_buffers(pa.null(), 1 << 30, [None])], schema=schema)
        )
    with pytest.raises(Unreadable, match="send at most"):
        ArrowRows(SCHEMA).read(sink.getvalue())


def test_a_decimal_that_would_have_to_be_moved_by_more_digits_than_there_are_is_refused() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"n": pa.nulls(1, pa.decimal128(20, -30))})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(Unreadable, match=r"a decimal128\(20, -30\) cannot be a decimal128\(38, 30\)"):
        ArrowRows(pa.schema({"n": pa.decimal128(38, 30)})).read(sink.getvalue())
