"""The fast reader of Arrow records agrees with the complete one, whatever comes, and takes what is built alike."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.plan.spec import ScanSpec
from flowstate.source.arrow_guess import ArrowGuess
from flowstate.source.decode import Decoder
from flowstate.source.records import Records

SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "raw": pa.binary(),
        "yes": pa.bool_(),
        "small": pa.int16(),
        "size": pa.float64(),
        "amount": pa.decimal128(20, 2),
        "day": pa.date32(),
        "at": pa.timestamp("ms", "UTC"),
    }
)
VALUES = {
    "name": st.text(max_size=9),
    "raw": st.binary(max_size=9),
    "yes": st.booleans(),
    "small": st.integers(-(2**15), 2**15 - 1),
    "size": st.floats(),
    "amount": st.integers(-(10**20) + 1, 10**20 - 1).map(lambda number: Decimal(number).scaleb(-2)),
    "day": st.dates(),
    "at": st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 1, 1)).map(
        lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000, tzinfo=datetime.UTC)
    ),
}
ROWS = st.lists(st.fixed_dictionaries({name: st.none() | value for name, value in VALUES.items()}), max_size=12)
FULL = st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=12)


def written(batches: list[pa.RecordBatch], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for each in batches:
            writer.write_batch(each)
    return bytes(sink.getvalue().to_pybytes())


def block(raws: list[bytes]) -> Records:
    ends = np.cumsum([len(each) + 1 for each in raws], dtype=np.int64) - 1
    starts = ends - np.array([len(each) for each in raws], np.int64)
    return Records(b"\n".join(raws), starts, ends, np.arange(len(raws), dtype=np.int64) * 3)


def seen(rows: pa.RecordBatch) -> list[str]:
    """Also of dates that Python has none for."""
    numbers = {pa.date32(): pa.int32(), SCHEMA.field("at").type: pa.int64()}
    return [repr(each.view(numbers.get(each.type, each.type)).to_pylist()) for each in rows.columns]


def agree(raws: list[bytes], schema: pa.Schema = SCHEMA) -> None:
    """Both readers give the same rows and letters; the fast one when it has learned, too."""
    spec = ScanSpec("s", "kafka", schema)
    slow, fast = Decoder(spec, "arrow", guess=False), Decoder(spec, "arrow")
    wanted = [seen(each) for each in slow.decode("a", block(raws))]
    for _ in range(2):
        rows, dead = fast.decode("a", block(raws))
        rows.validate(full=True)
        assert [seen(each) for each in (rows, dead)] == wanted


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """Of one batch or more, some of them slices, some with other columns around, some compressed."""
    rows = draw(FULL | ROWS)
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    first, cut = (draw(st.integers(0, batch.num_rows)) for _ in range(2))
    batches = draw(st.sampled_from([[batch], [batch.slice(first)], [batch.slice(0, cut), batch.slice(cut)]]))
    if draw(st.integers(0, 5)) == 0:
        batches = [each.append_column("more", each.column("name").dictionary_encode()) for each in batches[:1]]
    raw = written(batches, compression=draw(st.sampled_from([None, None, None, "lz4"])))
    return raw[: draw(st.sampled_from([len(raw), len(raw), len(raw) - 8, len(raw) - 9]))]


@given(st.lists(records(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_both_readers_agree(raws: list[bytes]) -> None:
    agree(raws)


GOOD = written(
    [
        pa.record_batch(
            [
                pa.array(["anna", "b\u00e4rbel", None]), pa.array([b"x", None, b""], pa.binary()), pa.array([True, False, None]),
                pa.array([1, 2, 3], pa.int16()), pa.array([1.5, None, -0.0]),
                pa.array([Decimal("1.25"), None, Decimal("-7.00")], pa.decimal128(20, 2)),
                pa.array([1, 2, 3], pa.int32()).cast(pa.date32()), pa.array([1, 2, 3]).cast(SCHEMA.field("at").type),
            ],
            schema=SCHEMA,
        )
    ]
)  # fmt: skip


@given(st.binary(min_size=1, max_size=9), st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=150)
def test_both_readers_agree_about_damaged_records(damage: bytes, place: int, behind_head: bool) -> None:
    raw = bytearray(GOOD)
    place = place % len(raw) if not behind_head else len(raw) - 1 - place % 1100  # the batch, not the schema
    raw[place : place + len(damage)] = damage
    agree([GOOD, bytes(raw), GOOD])


def test_what_is_not_valid_is_left_to_the_complete_reader() -> None:
    def changed(column: str, values: pa.Array) -> bytes:
        batch = pa.RecordBatch.from_pylist([dict.fromkeys(SCHEMA.names)] * len(values), schema=SCHEMA)
        return written([batch.set_column(SCHEMA.names.index(column), SCHEMA.field(column), values)])

    words = np.array([[10**18, 2**40], [5, 0]], np.uint64)
    too_large = pa.Array.from_buffers(SCHEMA.field("amount").type, 2, [None, pa.py_buffer(words)])
    split = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer("\u00e4".encode())]
    )
    falling = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 1], np.int32)), pa.py_buffer(b"ab")]
    )
    bad = [changed("amount", too_large), changed("name", split), changed("name", falling)]
    for each in bad:
        agree([GOOD, each, GOOD])
        dead = Decoder(ScanSpec("s", "kafka", SCHEMA), "arrow").decode("a", block([GOOD, each, GOOD]))[1]
        assert dead.column("offset").to_pylist() == [3]
    agree([*bad, GOOD, GOOD + b"more", GOOD[:-3], b"", GOOD])


def test_streams_of_two_producers_are_taken_and_only_the_columns_that_are_wanted() -> None:
    wanted = pa.schema({"n": pa.int64(), "name": pa.string()})
    ours = pa.record_batch({"n": pa.array(range(5)), "name": pa.array(["a", "b", None, "\u00e4", ""])}, schema=wanted)
    theirs = pa.record_batch(
        {"name": ours.column("name"), "more": pa.array([b"\xff"] * 5), "n": pc.add(ours.column("n"), 7)},
        schema=pa.schema({"name": pa.string(), "more": pa.binary(), "n": pa.int64()}),
    )
    raws = [written([each.slice(place % 3)]) for place, each in enumerate([ours, theirs] * 10)]
    guess = ArrowGuess(wanted)
    for _ in range(3):
        pieces = guess.read(block(raws))
    taken = sorted({each for _, rows in pieces for each in rows.tolist()})
    assert taken == list(range(len(raws)))
    agree(raws, wanted)


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.large_string(), pa.list_(pa.int8()), pa.null(), pa.date64()])
def test_other_types_are_left(kind: pa.DataType) -> None:
    schema = pa.schema({"n": pa.int64(), "other": kind})
    raw = written([pa.record_batch({"n": [1], "other": pa.nulls(1, kind)}, schema=schema)])
    assert ArrowGuess(schema).read(block([raw, raw])) == []
    agree([raw, raw], schema)
