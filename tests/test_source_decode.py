"""Decoding: what each record means, and that the fast reader never says otherwise than the complete one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from decoded import shown
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import InvalidFlow
from flowstate.plan.spec import ScanSpec
from flowstate.source.arrow_rows import ArrowRows
from flowstate.source.decode import Decoder
from flowstate.source.records import Records

MONEY = pa.decimal128(12, 2)
AT = pa.timestamp("ms", "UTC")


def records(raw: Sequence[bytes]) -> Records:
    lengths = np.array([len(each) for each in raw], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    return Records(
        b"".join(each + b"\n" for each in raw), ends - lengths, ends, np.arange(len(raw), dtype=np.int64) * 3
    )


def decode(
    schema: pa.Schema, raw: Sequence[bytes], form: str = "json", fast: bool = True, at: str | None = None
) -> Any:
    # The reader that guesses has tests of its own: it would leave little for the one that is held to `json_rows` here.
    decoder = Decoder(ScanSpec("s", "kafka", schema, at), form, fast=fast, guess=False)
    batch, dead = decoder.decode("s/t/0", records(raw))
    batch.validate(full=True)
    dead.validate(full=True)
    return batch, dead


def one(kind: pa.DataType, value: str, fast: bool = True) -> Any:
    """The value that JSON text gives in a column, or the reason of the dead letter."""
    batch, dead = decode(pa.schema([("a", kind)]), [b'{"a":' + value.encode() + b"}"], fast=fast)
    if dead.num_rows:
        assert not batch.num_rows
        return dead.column("reason")[0].as_py()
    return (
        batch.column("a")[0].as_py()
        if not pa.types.is_timestamp(kind)
        else batch.column("a").view(pa.int64())[0].as_py()
    )


ACCEPTED = [
    (MONEY, "1.37", Decimal("1.37")),
    (MONEY, '"1.37"', Decimal("1.37")),
    (MONEY, "1", Decimal("1.00")),
    (MONEY, "1e2", Decimal("100.00")),
    (MONEY, "1.3700", Decimal("1.37")),
    (MONEY, "-9999999999.99", Decimal("-9999999999.99")),
    (MONEY, "0e500", Decimal("0.00")),
    (
        pa.decimal128(38, 10),
        "1234567890123456789012345678.0123456789",
        Decimal("1234567890123456789012345678.0123456789"),
    ),
    (pa.decimal128(5, -2), "12300", Decimal("12300")),
    (pa.decimal256(60, 2), "1" * 58 + ".25", Decimal("1" * 58 + ".25")),
    (pa.int64(), "-9223372036854775808", -(2**63)),
    (pa.uint64(), "18446744073709551615", 2**64 - 1),
    (pa.int8(), "-0", 0),
    (pa.float64(), "0.1", 0.1),
    (pa.float64(), "1e-400", 0.0),
    (pa.bool_(), "true", True),
    (pa.string(), '"a\\u00e9\\ud83d\\ude00\\n"', "aé😀\n"),
    (pa.string(), '"\\u0000"', "\0"),
    (pa.binary(), '"é"', "é".encode()),
    (AT, "86400000", 86_400_000),
    (AT, '"1970-01-02T00:00:00Z"', 86_400_000),
    (AT, '"1970-01-02"', 86_400_000),
    (AT, '"1970-01-02 00:00:00.5"', 86_400_500),
    (AT, '"1970-01-02T02:00:00+02:00"', 86_400_000),
    (AT, '"1970-01-02T00:00:00.123000Z"', 86_400_123),
    (pa.timestamp("us"), '"1970-01-01T00:00:00.000001"', 1),
    (pa.timestamp("ns"), '"1970-01-01T00:00:00.000000001Z"', 1),
    (pa.list_(pa.int64()), "[1,null]", [1, None]),
    (pa.struct([("x", MONEY), ("y", pa.string())]), '{"x":"1.5","z":[{}]}', {"x": Decimal("1.50"), "y": None}),
    (pa.int64(), "null", None),
]

REFUSED = [
    (MONEY, "12.345", "field 'a': 12.345 has 3 decimals, the type decimal128(12, 2) takes 2"),
    (MONEY, '"12.345"', "field 'a': '12.345' has 3 decimals, the type decimal128(12, 2) takes 2"),
    (MONEY, "12345678901", "field 'a': 12345678901 is out of range for decimal128(12, 2)"),
    (MONEY, "1e11", "field 'a': 1e11 is out of range for decimal128(12, 2)"),
    (MONEY, '"1,37"', "field 'a': '1,37' is not of type decimal128(12, 2)"),
    (MONEY, '" 1"', "field 'a': ' 1' is not of type decimal128(12, 2)"),
    (MONEY, "true", "field 'a': true is not of type decimal128(12, 2)"),
    (pa.decimal128(38, 2), "9" * 37, "field 'a': " + "9" * 37 + " is out of range for decimal128(38, 2)"),
    (pa.int64(), "1.0", "field 'a': 1.0 is not of type int64"),
    (pa.int64(), '"1"', "field 'a': '1' is not of type int64"),
    (pa.int64(), "9223372036854775808", "field 'a': 9223372036854775808 is out of range for int64"),
    (pa.uint8(), "-1", "field 'a': -1 is out of range for uint8"),
    (pa.int8(), "128", "field 'a': 128 is out of range for int8"),
    (pa.float64(), "1e400", "field 'a': 1e400 is out of range for double"),
    (pa.float32(), "1e40", "field 'a': 1e40 is out of range for float"),
    (pa.float64(), "NaN", "not JSON: NaN is no number"),
    (pa.float64(), "-Infinity", "not JSON: -Infinity is no number"),
    (pa.bool_(), "1", "field 'a': 1 is not of type bool"),
    (pa.string(), "1", "field 'a': 1 is not of type string"),
    (pa.string(), '"\\ud800"', "field 'a': the text has half of a surrogate pair, which is not Unicode"),
    (
        AT,
        '"1970-01-02T00:00:00.0001Z"',
        "field 'a': '1970-01-02T00:00:00.0001Z' is finer than the unit of timestamp[ms, tz=UTC]",
    ),
    (AT, '"1970-02-30"', "field 'a': '1970-02-30' is not a date of the calendar, for timestamp[ms, tz=UTC]"),
    (AT, '"1970-01-01T24:00:00"', "field 'a': '1970-01-01T24:00:00' is not of type timestamp[ms, tz=UTC]"),
    (AT, '"86400000"', "field 'a': '86400000' is not of type timestamp[ms, tz=UTC]"),
    (AT, "1.5", "field 'a': 1.5 is not of type timestamp[ms, tz=UTC]"),
    (pa.timestamp("ns"), '"2500-01-01"', "field 'a': '2500-01-01' is out of range for timestamp[ns]"),
    (pa.list_(pa.int64()), "1", "field 'a': 1 is not of type list<item: int64>"),
    (pa.list_(pa.int64()), '[1,"x"]', "field 'a[1]': 'x' is not of type int64"),
    (pa.struct([("x", MONEY)]), '{"x":1.234}', "field 'a.x': 1.234 has 3 decimals, the type decimal128(12, 2) takes 2"),
    (pa.struct([pa.field("x", MONEY, nullable=False)]), "{}", "field 'a.x' is required, but missing or null"),
    (pa.struct([("x", pa.int64())]), '{"x":1,"x":2}', "field 'a.x' is given twice"),
]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("kind", "text", "value"), ACCEPTED, ids=lambda each: str(each)[:40])
def test_values_that_are_read(kind: pa.DataType, text: str, value: Any, fast: bool) -> None:
    assert one(kind, text, fast) == value


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("kind", "text", "reason"), REFUSED, ids=lambda each: str(each)[:40])
def test_values_that_are_dead_letters(kind: pa.DataType, text: str, reason: str, fast: bool) -> None:
    assert one(kind, text, fast) == reason


A = pa.schema([("a", pa.int64())])
RECORDS = [
    b"",
    b"  ",
    b"null",
    b"[1]",
    b"1",
    b'{"a":1}{"a":2}',
    b'{"a":1} null',
    b'{"a":1}null{"a":2}',
    b'{"a":1',
    b',"b":2}',
    b'{"a":1,}',
    b"{'a':1}",
    b'{"a":1} // x',
    b'{"a":01}',
    b'{"a":1,"a":2}',
    b'{"a":null,"a":2}',
    b'{"a":1,"a":null}',
    b'{"a":1,"b":{"a":"x"}}',
    b'{"\\u0061":1}',
    b'{"a":1,"b":NaN}',
    b'{"a":1,"b":"\xff"}',
    b'{"a":1,"b":"\xc3\xa9"}',
    b'{"a":1,"b":1e999}',
    b'{"a":1,"b":"\\ud800"}',
    b'{"a":1,"b":"\\x"}',
    b'{"a":1,"b":"\t"}',
    b'{"a":1,"b":"\x01"}',
    b'{"a":1}\x00',
    b'{"a":1,\n"b":2}',
    b'\xef\xbb\xbf{"a":1}',
    b'{"a":1,"b":1.}',
    b'{"a":1,"b":-}',
    b'{"a":1,"b":tru}',
    b'{"a":1,"b":]}',
    b'{"a":1,"b":[}]',
    b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
    b'{"a":1,"b":' + b"[" * 63 + b"]" * 63 + b"}",
    b'{"a":1,"b":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' + b"9" * 5000 + b"}",
    b"{}",
    b'{"b":1}',
    b'\t {"a":1} ',
]


@pytest.mark.parametrize("raw", RECORDS, ids=lambda each: repr(each[:25]))
def test_a_strange_record_is_the_same_to_both_readers_and_leaves_its_neighbours_alone(raw: bytes) -> None:
    block = [b'{"a":10}', raw, b'{"a":11}', raw, b'{"a":12}']
    fast, slow = decode(A, block), decode(A, block, fast=False)
    assert fast == slow
    values = fast[0].column("a").to_pylist()
    assert [each for each in values if each in (10, 11, 12)] == [10, 11, 12]
    assert fast[0].num_rows + fast[1].num_rows == 5
    assert fast[1].column("raw").to_pylist() in ([], [raw[:65536]] * 2)


def test_two_halves_of_an_object_do_not_make_a_row() -> None:
    batch, dead = decode(A, [b'{"a":1', b',"b":2}', b'{"a":5}{"a":6}', b'{"a":7}'])
    assert batch.column("a").to_pylist() == [7]
    assert dead.num_rows == 3


@pytest.mark.parametrize("power", [-41, -61, -77, -141, -231, -79540726, -999999999, -9, 36, 3])
@pytest.mark.parametrize("form", ['"a":%s', '"a":"%s"', '"b":{"x":[%s]}', '"b":{"x":["%s"]}'])
def test_exponents_of_decimals_stay_with_the_complete_reader(form: str, power: int) -> None:
    inner = pa.struct([("x", pa.list_(pa.decimal128(38, 0)))])
    for kind in (MONEY, pa.decimal128(38, 38), pa.decimal128(38, 0)):
        schema = pa.schema([("a", kind), ("b", inner)])
        for number in ("1", "0.9", "-0.000", "99999999999999999999999999999999999999"):
            texts = [f"{number}E{power}", f"{number}e{power}"]
            if '"%s"' in form:
                texts.append(f"{number}\\u0065{power}")
            raw = [b'{"a":1}', *(("{" + form % each + "}").encode() for each in texts)]
            fast, slow = decode(schema, raw), decode(schema, raw, fast=False)
            assert fast[0].equals(slow[0])
            assert fast[1].equals(slow[1])


@pytest.mark.parametrize("kind", [pa.decimal128(38, each) for each in (1, 4, 18, 38)] + [pa.decimal128(20, 19), MONEY])
def test_decimals_that_would_wrap_are_refused(kind: pa.DataType) -> None:
    dice = random.Random(kind.scale)
    numbers = ["4", "-4", "5", "17", *(str(dice.randrange(10**digits)) for digits in range(1, 78))]
    numbers += [f"{each}.{'0' * dice.randrange(1, 100)}1" for each in numbers] + [f"0.{each}" for each in numbers]
    for nested in (kind, pa.list_(kind)):
        schema = pa.schema([("a", nested)])
        form = '{"a":[%s]}' if pa.types.is_list(nested) else '{"a":%s}'
        for number in numbers:
            raw = [(form % number).encode()]
            fast, slow = decode(schema, raw), decode(schema, raw, fast=False)
            assert fast[0].equals(slow[0])
            assert fast[1].equals(slow[1])
        fast, slow = (decode(schema, [(form % each).encode() for each in numbers], fast=each) for each in (True, False))
        assert fast[0].equals(slow[0])
        assert fast[1].equals(slow[1])


TYPES = [
    pa.int64(),
    pa.int8(),
    pa.uint32(),
    pa.float64(),
    pa.float32(),
    pa.bool_(),
    pa.string(),
    pa.binary(),
    MONEY,
    pa.decimal128(38, 4),
    pa.decimal128(19, 0),
    AT,
    pa.timestamp("s"),
    pa.timestamp("us", "Europe/Berlin"),
    pa.timestamp("ns"),
    pa.date32(),
    pa.time32("ms"),
    pa.list_(MONEY),
    pa.struct([("x", pa.int64()), ("y", pa.list_(pa.string()))]),
]
NUMBERS = st.one_of(
    st.integers(-300, 300).map(str),
    st.integers(-(2**64), 2**65).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.floats(allow_nan=True).map(json.dumps),
    st.sampled_from(
        ["1e5", "1E+2", "-0", "0.10", "1.50", "12345678901", "1e-3", "1e38", "9e37", "3.5e38", "-0.0", "1e37"]
    ),
    st.integers(0, 10**38).map(str),
)
DIGITS = st.integers(0, 99).map(lambda each: f"{each:02}")
ISO = st.builds(
    lambda year, month, day, glue, clock, zone: f"{year}-{month:02}-{day:02}{glue}{clock}{zone}",
    st.sampled_from(["0000", "0001", "1677", "1969", "1970", "2024", "9999", "12024", "-001"]),
    st.integers(0, 13),
    st.integers(0, 32),
    st.sampled_from(["T", " ", "t", ""]),
    st.one_of(
        st.just(""),
        st.builds("{}:{}:{}".format, DIGITS, DIGITS, DIGITS),
        st.sampled_from(
            [
                "12",
                "12:30",
                "12:30:15",
                "12:30:15.1",
                "12:30:15.123",
                "12:30:15.120000",
                "12:30:15.",
                "12:30:60",
                "1230",
                "12:30:15.1234567890",
            ]
        ),
    ),
    st.sampled_from(["", "Z", "z", "+02:00", "-0130", "+02", "+24:00", "+01:60", " Z", "+2"]),
)
GOOD_ISO = st.sampled_from(
    ["2024-02-29", "2024-02-29T10:11:12Z", "1969-12-31 23:59:59", "2024-01-01T00:00:00.250+01:00"]
)
TEXTS = st.one_of(
    st.text(max_size=6), NUMBERS, ISO, GOOD_ISO, st.sampled_from(["", "+1", ".5", "5.", " 1", "NaN", "12:30"])
).map(json.dumps)
SCALARS = st.one_of(NUMBERS, TEXTS, st.sampled_from(["true", "false", "null"]))
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3).map(lambda each: f"[{','.join(each)}]"),
    st.dictionaries(st.sampled_from(["x", "y", "z"]), SCALARS, max_size=3).map(
        lambda each: "{" + ",".join(f'"{name}":{value}' for name, value in each.items()) + "}"
    ),
)


def fitting(kind: pa.DataType) -> st.SearchStrategy[str]:
    """Mostly values that the type takes, so that whole blocks are often clean."""
    if pa.types.is_integer(kind):
        return st.integers(0, 100).map(str)
    if pa.types.is_floating(kind):
        return st.floats(allow_nan=False, allow_infinity=False, width=32).map(json.dumps)
    if pa.types.is_decimal(kind):
        return st.sampled_from(["1.37", '"1.37"', "5", "0.1", '"-3"', "1e1"])
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return st.one_of(st.integers(-1000, 10**6).map(str), GOOD_ISO.map(json.dumps))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return st.text(max_size=8).map(json.dumps)
    return st.sampled_from(["null", "true"])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fast_and_slow_agree(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3))
    schema = pa.schema([pa.field(f"c{i}", kind, nullable=data.draw(st.booleans())) for i, kind in enumerate(kinds)])
    wild = data.draw(st.sampled_from([0, 0, 1, 5, 50]))
    raw = []
    for _ in range(data.draw(st.integers(1, 40))):
        pairs = []
        for each in schema:
            strange = data.draw(st.integers(0, 99)) < wild
            if strange and data.draw(st.integers(0, 9)) == 0:
                continue
            pairs.append(f'"{each.name}":{data.draw(VALUES if strange else fitting(each.type))}')
        line = "{" + ",".join(pairs) + "}"
        if data.draw(st.integers(0, 99)) < wild:
            line = data.draw(st.sampled_from([line[:-1], line + line, "null", line + "x", "", "[" + line + "]"]))
        raw.append(line.encode("utf-8", "surrogatepass"))
    at = data.draw(st.sampled_from([None, *(e.name for e in schema if pa.types.is_timestamp(e.type))]))
    fast, slow = decode(schema, raw, at=at), decode(schema, raw, fast=False, at=at)
    assert fast[1].to_pylist() == slow[1].to_pylist()
    assert fast[0].schema == slow[0].schema
    assert shown(fast[0]) == shown(slow[0])
    assert fast[0].equals(slow[0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_column_of_wild_values_is_the_same_to_both_readers(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(TYPES))
    values = data.draw(st.lists(st.one_of(VALUES, fitting(kind)), min_size=1, max_size=12))
    raw = [f'{{"a":{each}}}'.encode("utf-8", "surrogatepass") for each in values]
    schema = pa.schema([("a", kind)])
    for block in [raw, *([each] for each in raw)]:
        fast, slow = decode(schema, block), decode(schema, block, fast=False)
        assert fast[1].to_pylist() == slow[1].to_pylist()
        assert shown(fast[0]) == shown(slow[0])


@pytest.mark.parametrize("every", [3, 40, 900])
def test_surprises_among_many_records_are_found_and_cost_no_neighbour(every: int) -> None:
    dice = random.Random(every)
    schema = pa.schema([("k", pa.string()), ("m", MONEY), ("at", AT)])
    strange = [
        '{"k":1}',
        '{"m":0.001}',
        '{"m":12345678901}',
        "{",
        "null",
        '{"k":"\\ud800"}',
        '{"at":5}',
        '{"at":"2024-01-01T"}',
    ]
    raw = [b'{"k":"customer","m":"%d.5","at":"2024-02-29T12:00:00Z"}' % number for number in range(5000)]
    for row in range(len(raw)):
        if dice.random() < 1 / every:
            raw[row] = dice.choice(strange).encode()
    fast, slow = decode(schema, raw), decode(schema, raw, fast=False)
    assert fast[0].equals(slow[0])
    assert fast[1].equals(slow[1])
    assert fast[0].num_rows + fast[1].num_rows == 5000
    assert fast[1].num_rows > 0


def test_required_fields_and_event_times() -> None:
    schema = pa.schema([pa.field("k", pa.string(), nullable=False), ("at", AT)])
    raw = [b'{"k":"a","at":1}', b'{"at":1}', b'{"k":null,"at":1}', b'{"k":"b"}', b'{"k":"c","at":253402300800000}']
    batch, dead = decode(schema, raw, at="at")
    assert batch.to_pylist()[0].items() >= {"k": "a", "__offset": 0, "__time": 1000}.items()
    assert batch.num_rows == 1
    assert list(zip(dead.column("offset").to_pylist(), dead.column("reason").to_pylist(), strict=True)) == [
        (3, "field 'k' is required, but missing or null"),
        (6, "field 'k' is required, but missing or null"),
        (9, "event time 'at' is missing or null"),
        (12, "event time 'at' is outside the years 1 to 9999"),
    ]


BILLING = pa.schema([("at", AT), ("customer", pa.string()), ("amount", MONEY), ("kind", pa.string())])


def test_csv_in_the_order_of_the_schema() -> None:
    raw = [
        b"86400000,Emma,1.37,CALL",
        b'1970-01-02T00:00:00Z,"Emma, ""the"" first",1.3700,""\r',
        b"86400000,,5,",
        b"86400000,Emma,1.375,CALL",
        b"86400000,Emma,CALL",
        b'86400000,"Emma,1,CALL',
        b'86400000,Em"ma,1,CALL',
        b'86400000,"Emma"x,1,CALL',
        b"86400000,\xff,1,CALL",
        b"1e3,Emma,1,CALL",
    ]
    batch, dead = decode(BILLING, raw, "csv", at="at")
    assert [tuple(each.values())[1:] for each in batch.drop_columns(["__offset"]).to_pylist()] == [
        ("Emma", Decimal("1.37"), "CALL", 86_400_000_000),
        ('Emma, "the" first', Decimal("1.37"), "", 86_400_000_000),
        (None, Decimal("5.00"), None, 86_400_000_000),
    ]
    assert dead.column("reason").to_pylist() == [
        "field 'amount': '1.375' has 3 decimals, the type decimal128(12, 2) takes 2",
        "not CSV of this schema: 3 fields where 4 are expected",
        "not CSV: a quote is not closed on its line",
        "not CSV: a quote within the unquoted field 2",
        "not CSV: text follows the closing quote of field 2",
        "not UTF-8: invalid start byte at byte 9",
        "field 'at': 1e3 is not of type timestamp[ms, tz=UTC]",
    ]


def test_types_that_a_format_has_no_values_of_are_refused_at_once() -> None:
    with pytest.raises(InvalidFlow, match=r"column='l'"):
        Decoder(ScanSpec("s", "kafka", pa.schema([("l", pa.list_(pa.int64()))])), "csv")
    with pytest.raises(InvalidFlow, match=r"column='m'"):
        Decoder(ScanSpec("s", "kafka", pa.schema([("m", pa.map_(pa.string(), pa.int64()))])), "json")


def test_a_null_list_in_an_arrow_record_is_a_null() -> None:
    schema = pa.schema({"tags": pa.list_(pa.int64()), "name": pa.string()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table({"tags": [None], "name": ["x"]}, schema=schema))
    batch = ArrowRows(schema).read(sink.getvalue())
    assert batch.column("tags").to_pylist() == [None]
