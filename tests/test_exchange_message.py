"""Exchange messages: what is encoded is what is decoded, and bytes that are no message are refused."""

from __future__ import annotations

import datetime
import decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import CorruptData
from flowstate.exchange.message import ALIGNMENT, Batch, Closed, Marker, Start, StreamId, decode, encode
from flowstate.plan.position import FOREVER, NEVER, Floor, Place

UTC = datetime.UTC
VALUES = {
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=12),
    pa.large_string(): st.text(max_size=12),
    pa.binary(): st.binary(max_size=12),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.date32(): st.dates(),
    pa.timestamp("us", "UTC"): st.datetimes(timezones=st.just(UTC)),
    pa.timestamp("ms"): st.just(datetime.datetime(2017, 1, 31, 23, 59, 59, 999000)),
    pa.duration("us"): st.timedeltas(datetime.timedelta(-9), datetime.timedelta(9)),
    pa.decimal128(12, 2): st.decimals(-(10**9), 10**9, places=2),
    pa.decimal256(50, 4): st.just(decimal.Decimal("12345678901234567890.1234")),
    pa.list_(pa.int64()): st.lists(st.integers(-9, 9), max_size=3),
    pa.struct({"a": pa.int32(), "b": pa.string()}): st.fixed_dictionaries(
        {"a": st.integers(0, 9), "b": st.text(max_size=3)}
    ),
    pa.map_(pa.string(), pa.int64()): st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9)), max_size=2),
    pa.dictionary(pa.int32(), pa.string()): st.text(max_size=3),
    pa.null(): st.none(),
}
whole = st.integers(NEVER, FOREVER)
places = st.builds(Place, st.integers(0, FOREVER), st.integers(0, 1000))
streams = st.builds(StreamId, st.text(max_size=20), *[st.integers(0, 2**40)] * 4)


@st.composite
def record_batches(draw: st.DrawFn) -> pa.RecordBatch:
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=5))
    rows = draw(st.integers(0, 9))
    columns = [pa.array(draw(st.lists(st.none() | VALUES[kind], min_size=rows, max_size=rows)), kind) for kind in kinds]
    batch = pa.RecordBatch.from_arrays(columns, [f"c{number}" for number in range(len(columns))])
    start = draw(st.integers(0, rows))
    return batch.slice(start, draw(st.integers(0, rows - start)))


batches = st.builds(
    Batch, places, places, whole, whole, st.dictionaries(st.text(max_size=10), record_batches(), max_size=3)
)
messages = st.one_of(
    st.builds(Start, places, whole, st.lists(st.builds(Floor, st.integers(0, 2**60), whole), max_size=4).map(tuple)),
    st.builds(Marker, st.integers(0, 2**40)),
    st.just(Closed()),
    batches,
)


def same(one: object, other: object) -> bool:
    if isinstance(one, Batch) and isinstance(other, Batch):
        plain = (one.since, one.to, one.newest, one.floor) == (other.since, other.to, other.newest, other.floor)
        return (
            plain
            and list(one.rows) == list(other.rows)
            and all(
                one.rows[name].schema.equals(other.rows[name].schema) and one.rows[name].equals(other.rows[name])
                for name in one.rows
            )
        )
    return one == other


@settings(max_examples=150, deadline=None)
@given(streams, messages, st.integers(0, 80))
def test_round_trip(stream: StreamId, message: Start | Batch | Marker | Closed, shift: int) -> None:
    """Also out of a buffer that begins anywhere, as Flight hands it over."""
    data = encode(stream, message)
    buffer = pa.py_buffer(b"\0" * shift + data.to_pybytes()).slice(shift)
    found_stream, found = decode(buffer)
    assert found_stream == stream
    assert same(found, message)
    if isinstance(found, Batch):
        for rows in found.rows.values():
            rows.validate(full=True)


@settings(max_examples=25, deadline=None)
@given(record_batches(), st.integers(1, 63))
def test_columns_out_of_an_unaligned_buffer_are_aligned(rows: pa.RecordBatch, shift: int) -> None:
    stream = StreamId("s", 1, 0, 1, 1)
    data = encode(stream, Batch(Place(0), Place(9), 5, NEVER, {"t": rows}))
    memory = pa.allocate_buffer(data.size + ALIGNMENT + shift)
    offset = -memory.address % ALIGNMENT + shift
    memoryview(memory)[offset : offset + data.size] = memoryview(data)
    _, found = decode(memory.slice(offset, data.size))
    assert isinstance(found, Batch)
    for column in found.rows["t"].columns:
        for buffer in column.buffers():
            assert buffer is None or buffer.size == 0 or buffer.address % 8 == 0


def test_a_header_only_batch_has_no_body() -> None:
    stream = StreamId("events/0", 3, 1, 2, 5)
    data = encode(stream, Batch(Place(5, 1), Place(9, 1), 100, NEVER))
    assert data.size < 250
    assert decode(data) == (stream, Batch(Place(5, 1), Place(9, 1), 100, NEVER))


def test_places_and_floors_come_back_as_what_they_are() -> None:
    stream = StreamId("events/0", 3, 1, 2, 5)
    _, found = decode(encode(stream, Start(Place(4, 2), NEVER, (Floor(1, 7), Floor(4, FOREVER)))))
    assert isinstance(found, Start)
    assert type(found.at) is Place and type(found.floors[0]) is Floor and isinstance(found.floors, tuple)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        b"\4\0\0\0nope",
        b"\2\0\0\0{}",
        b"\xff\xff\xff\xff{}",
        b'\x28\0\0\0{"stream": ["s", 1, 0, 1, 1], "kind": 5 }',
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptData):
        decode(pa.py_buffer(data))


@settings(max_examples=60, deadline=None)
@given(batches, st.data())
def test_a_message_that_is_cut_short_is_refused(message: Batch, data: st.DataObject) -> None:
    encoded = encode(StreamId("s", 1, 0, 1, 1), message)
    short = encoded.slice(0, data.draw(st.integers(0, encoded.size - 1)))
    try:
        _, found = decode(short)
    except CorruptData:
        return
    assert same(found, message)  # only the end mark of the last IPC stream was missing
