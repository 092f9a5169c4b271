"""The reader that guesses: what it takes is what the complete reader accepts, to the bit; everything else it leaves alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from decoded import shown
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.plan.spec import ScanSpec
from flowstate.source.decode import Decoder
from flowstate.source.json_guess import ASIDE, SAMPLES, JsonGuess
from flowstate.source.json_rows import JsonRows
from flowstate.source.json_template import template_of
from flowstate.source.records import Records
from flowstate.source.values import Unreadable
from flowstate.testing.billing import SCHEMA, events

MONEY = pa.decimal128(12, 2)
TYPES = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary()),
    *(MONEY, pa.decimal128(38, 18), pa.decimal128(19, 0), pa.decimal128(38, 38), pa.decimal128(3, 3)),
    *(pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("ns")),
    *(pa.date32(), pa.duration("ms")),
]
ALL = pa.schema([pa.field(f"c{index}", kind) for index, kind in enumerate(TYPES)])


def block(raw: Sequence[bytes], glue: bytes = b"\n") -> Records:
    lengths = np.array([len(each) for each in raw], np.int64)
    ends = np.cumsum(lengths + len(glue)) - len(glue)
    numbers = np.arange(len(raw), dtype=np.int64)
    return Records(b"".join(each + glue for each in raw), ends - lengths, ends, numbers)


def slowly(schema: pa.Schema, raw: Sequence[bytes]) -> pa.RecordBatch:
    """Raises `Unreadable`."""
    reader = JsonRows(schema)
    rows = [reader.read(each) for each in raw]
    columns = [pa.array([row[each.name] for row in rows], each.type) for each in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def check(guess: JsonGuess, schema: pa.Schema, records: Records) -> int:
    """That what it takes of these records is right. Returns how many it takes."""
    read = guess.read(records)
    if read is None:
        return 0
    batch, taken = read
    batch.validate(full=True)
    raw = [records.raw(row) for row in np.flatnonzero(taken).tolist()]
    assert batch.num_rows == len(raw) > 0
    try:
        expected = slowly(schema, raw)
    except Unreadable as reason:
        raise AssertionError(f"taken, but refused by the complete reader: {reason}: {raw}") from None
    assert batch.schema == expected.schema
    assert shown(batch) == shown(expected)
    assert batch.equals(expected)
    return len(raw)


def learned(schema: pa.Schema, raw: bytes) -> JsonGuess:
    """A reader that has learned from this record alone, and takes it."""
    guess = JsonGuess(schema)
    assert check(guess, schema, block([raw])) == 1
    return guess


def reads(kind: pa.DataType, value: str, example: str) -> Any:
    """What a reader that knows ``{"a":<example>}`` makes of a value: `None` if it leaves it, else a list of it."""
    guess = learned(pa.schema([("a", kind)]), b'{"a":%s}' % example.encode())
    read = guess.read(block([b'{"a":%s}' % value.encode("utf-8", "surrogatepass")] * 2))
    if read is None or not read[1].all():
        return None
    check(guess, pa.schema([("a", kind)]), block([b'{"a":%s}' % value.encode("utf-8", "surrogatepass")]))
    column = read[0].column("a")
    return [(column.view(pa.int64()) if pa.types.is_timestamp(kind) else column)[0].as_py()]


AT = pa.timestamp("ms", "UTC")
TAKEN = [
    (pa.int64(), "9223372036854775807", 2**63 - 1),
    (pa.int64(), "-9223372036854775808", -(2**63)),
    (pa.uint64(), "18446744073709551615", 2**64 - 1),
    (pa.uint64(), "10000000000000000000", 10**19),
    (pa.int8(), "-128", -128),
    (pa.int8(), "127", 127),
    (pa.int8(), "-0", 0),
    (pa.uint8(), "255", 255),
    (pa.int64(), "null", None),
    (MONEY, "-9999999999.99", Decimal("-9999999999.99")),
    (MONEY, '"1.3"', Decimal("1.30")),
    (MONEY, "-0.00", Decimal("0.00")),
    (pa.decimal128(38, 18), "-1234567.25", Decimal("-1234567.25")),
    (pa.decimal128(38, 18), "9999999999999999999", Decimal("9999999999999999999")),
    (pa.float64(), "0.8444218515250481", 0.8444218515250481),
    (pa.float64(), "1e-07", 1e-07),
    (pa.float64(), "-1.7976931348623157E+50", -1.7976931348623157e50),
    (pa.float32(), "0.1", 0.10000000149011612),
    (pa.bool_(), "false", False),
    (pa.string(), '""', ""),
    (pa.string(), '"Zoë, 愛, 😀, \x7f"', "Zoë, 愛, 😀, \x7f"),
    (pa.binary(), '"é"', "é".encode()),
    (AT, "-1", -1),
    (AT, '"1970-01-02"', 86_400_000),
    (AT, '"1970-01-02T00:00:00"', 86_400_000),
    (AT, '"1970-01-02 00:00:00.5Z"', 86_400_500),
    (AT, '"1970-01-02T02:30:00.000000+02:30"', 86_400_000),
    (AT, '"1970-01-01T22:00:00-0200"', 86_400_000),
    (AT, '"0001-01-01T00:00:00Z"', -62_135_596_800_000),
    (AT, '"9999-12-31T23:59:59.999Z"', 253_402_300_799_999),
    (pa.timestamp("ns"), '"1969-12-31T23:59:59.123456789Z"', -876_543_211),
]
EXAMPLES = {pa.string(): '"x"', pa.binary(): '"x"', pa.bool_(): "true"}


@pytest.mark.parametrize(("kind", "text", "value"), TAKEN, ids=lambda each: str(each)[:40])
def test_values_that_are_taken(kind: pa.DataType, text: str, value: Any) -> None:
    assert reads(kind, text, EXAMPLES.get(kind, "1")) == [value]


LEFT = [
    *((pa.int64(), each) for each in ("9223372036854775808", "-9223372036854775809", "01", "-01", "1.0", "1e2", "-")),
    *(
        (pa.int64(), each)
        for each in ("", '"1"', "+1", "1 2", "true", "nul", "nulll", "9" * 20, "9" * 30, "[1]", "NaN")
    ),
    *((pa.uint64(), each) for each in ("18446744073709551616", "-1", "99999999999999999999")),
    *((pa.int8(), each) for each in ("128", "-129")),
    *(
        (MONEY, each)
        for each in ("12345678901", "1e1", "1.234", "1.3700", '"+1"', '" 1"', '"1', "01.0", ".5", "1.", '""')
    ),
    (pa.decimal128(38, 18), "12345678901234567890"),
    *(
        (pa.float64(), each)
        for each in ("9007199254740993", "1e400", "1e-400", "NaN", "-Infinity", "1.", ".5", "01", "1e", '"1"')
    ),
    (pa.float32(), "1.00000005960464477539"),
    (pa.float32(), "3.5e38"),
    (pa.float32(), "1e-40"),
    *((pa.bool_(), each) for each in ("1", '"true"', "tru", "True", "falsy")),
    *((pa.string(), each) for each in ('"\\n"', '"\\ud800"', '"\t"', '"\x00"', '"', "1", '"\ud800"', '"a"b"')),
    *((AT, f'"{each}"') for each in ("1970-02-30", "1900-02-29", "1970-01-01T24:00:00", "1970-01-01T00:00:00.0001Z")),
    *((AT, f'"{each}"') for each in ("0000-01-01", "1970-00-01", "1970-01-00", "1970-13-01", "1970-01-01t00:00:00Z")),
    *((AT, f'"{each}"') for each in ("1970-01-01T00:00:00+24:00", "1970-01-01T00:00:00+01:60", "86400000", "")),
    *(
        (AT, f'"{each}"')
        for each in ("1970-01-01T00:00:00.Z", "1970-01-01Z", "1970-01-01T00:00:00ZZ", "1970-01-01T00:0a:00")
    ),
    (AT, "-9223372036854775808"),
    (pa.timestamp("ns"), '"2500-01-01"'),
    (pa.date32(), '"1970-01-01T00:00:00"'),
]


@pytest.mark.parametrize(("kind", "text"), LEFT, ids=lambda each: ascii(str(each)[:40]))
def test_values_that_are_left_to_the_other_readers(kind: pa.DataType, text: str) -> None:
    assert reads(kind, text, EXAMPLES.get(kind, "1")) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"\xff",
            b"\xc0\x80",
            b"\xc1\xbf",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\xf0\x80\x80\x80",
            b"\xf4\x90\x80\x80",
        ),
        *(b"\xf5\x80\x80\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"\xc3(", b"\xe2\x82("),
    ],
)
@pytest.mark.parametrize("name", [b"a", b"unknown"])
def test_text_that_is_not_utf_8_is_left(text: bytes, name: bytes) -> None:
    schema = pa.schema([("a", pa.string())])
    guess = learned(schema, b'{"%s":"x"}' % name)
    for before in range(10):
        assert guess.read(block([b'{"%s":"%s%s"}' % (name, b"x" * before, text)])) is None


def test_every_character_of_unicode_is_taken_or_left_as_the_complete_reader_says() -> None:
    schema = pa.schema([("a", pa.string())])
    guess = learned(schema, b'{"a":"x"}')
    codes = [*range(0x800), *range(0x800, 0x110000, 61), 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    raw = [b'{"a":"%s"}' % chr(each).encode("utf-8", "surrogatepass") for each in codes]
    forbidden = [each for each in codes if each < 32 or chr(each) in '"\\' or 0xD800 <= each < 0xE000]
    assert check(guess, schema, block(raw)) == len(raw) - len(forbidden)


A = pa.schema([("a", pa.int64()), ("b", pa.string())])
STRANGE = [
    *(b"", b" ", b"null", b"[]", b"{}", b'{"a":1}', b'{"b":"x","a":1}', b'{"a":1,"b":"x"', b'{"a":1,"b":"x"}}'),
    *(
        b'{"a":1,"b":"x"}{"a":1,"b":"x"}',
        b'{"a":1,"b":"x"}\n{"a":1,"b":"x"}',
        b'{"a":1,"b":"x"} ',
        b'{"a":1,"b":"x"}\r',
    ),
    *(b' {"a":1,"b":"x"}', b'{"a": 1,"b":"x"}', b'{"a":1,\n"b":"x"}', b'{"a":1,"b":"x\n"}', b'{"a":1,"b":"x"}\x00'),
    *(
        b'{"a":1,"a":1,"b":"x"}',
        b'{"a":1,"b":"x","c":1}',
        b'{"a":1,"b":{}}',
        b'{"a":1,"b":["x"]}',
        b'\xef\xbb\xbf{"a":1,"b":"x"}',
    ),
    *(
        b'{"a":1,"b":"x\\"}',
        b'{"a":1,"b":"x,"a":1}',
        b'{"a":1 ,"b":"x"}',
        b'{"\\u0061":1,"b":"x"}',
        b'{"a":1,"b":nullnull}',
    ),
]


@pytest.mark.parametrize("raw", STRANGE, ids=lambda each: ascii(each[:25]))
def test_a_record_that_departs_is_left_and_its_neighbours_are_taken(raw: bytes) -> None:
    guess = learned(A, b'{"a":1,"b":"x"}')
    good = [b'{"a":%d,"b":"name %d"}' % (each, each) for each in range(20)]
    for place in (0, 7, 20):
        records = block([*good[:place], raw, *good[place:]])
        read = guess.read(records)
        assert read is not None
        assert np.flatnonzero(~read[1]).tolist() == [place]
        assert read[0].column("a").to_pylist() == list(range(20))
        assert check(guess, A, records) == 20


def test_a_record_ends_where_it_ends_whatever_follows_it_in_memory() -> None:
    good = b'{"a":12345678,"b":"some text that is long"}'
    for kind, raw in [
        (A, good),
        (A, b'{"a":12345678}'),
        (pa.schema([("n", pa.int64())]), b'{"n":1,"z":[1,true,"t",null,1e5]}'),
    ]:
        guess = learned(kind, raw)
        whole = raw * 3
        for end in range(len(raw) + 1):
            # A piece of a record whose other piece comes next, at the block's end and before it.
            for buffer in (whole[: end + len(raw)], whole[:end], whole):
                stop = min(end, len(buffer))
                records = Records(buffer, np.array([0]), np.array([stop]), np.array([0]))
                assert (guess.read(records) is not None) == (end == len(raw))
    numbers = pa.schema([("n", pa.int64())])
    guess = learned(numbers, b'{"n":1}')
    records = Records(b'{"n":123456}7}', np.array([0, 0, 0]), np.array([12, 11, 14]), np.arange(3))
    assert check(guess, numbers, records) == 1


#: A block at the end of a page, behind which nothing may be read: reading there ends the process.
AT_THE_END = r"""
import ctypes, mmap
import numpy as np, pyarrow as pa
from flowstate.source.json_guess import JsonGuess
from flowstate.source.records import Records

PAGE = mmap.PAGESIZE
pages = mmap.mmap(-1, 2 * PAGE)
base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
library = ctypes.CDLL(None, use_errno=True)
assert library.mprotect(ctypes.c_void_p(base + PAGE), ctypes.c_size_t(PAGE), 0) == 0

def place(raw, number):
    whole = raw * number
    pages[PAGE - len(whole) : PAGE] = whole
    buffer = (ctypes.c_char * len(whole)).from_address(base + PAGE - len(whole))
    starts = np.arange(number, dtype=np.int64) * len(raw)
    return Records(buffer, starts, starts + len(raw), starts)

kinds = [pa.string(), pa.int64(), pa.decimal128(38, 4), pa.float64(), pa.bool_(), pa.timestamp("ns"), pa.date32()]
values = [b'"a text of more than eight bytes \xc3\xa9"', b"123456789012", b'"1234567890123.25"', b"0.123456789012345", b"false"]
values += [b'"2024-02-29T12:30:15.123456789+01:00"', b'"2024-02-29"']
for kind, value in [*zip(kinds, values), (pa.int8(), None)]:
    name, value = (b"a", value) if value is not None else (b"unknown", b'[1.5e3,true,"text of some length",null]')
    raw = b'{"%s":%s}' % (name, value)
    guess = JsonGuess(pa.schema([("a", kind)]))
    first = np.array([0]), np.array([len(raw)]), np.array([0])
    assert guess.read(Records(raw, *first))[0].num_rows == 1
    guess._wait = 1 << 40
    for number in (1, 2, 5, 40):
        batch, taken = guess.read(place(raw, number))
        assert taken.all() and batch.column(0).unique() == guess.read(Records(raw, *first))[0].column(0)
    for end in range(1, len(raw)):
        assert guess.read(place(raw[:end], 1)) is None
print("read to the end")
"""


def test_nothing_is_read_behind_the_block() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "read to the end\n"), done.stderr


def test_records_need_no_bytes_between_them() -> None:
    guess = learned(A, b'{"a":1,"b":"x"}')
    raw = [b'{"a":%d,"b":"%s"}' % (10**each, b"x" * each) for each in range(18)]
    assert check(guess, A, block(raw, b"")) == 18
    halves = [piece for each in raw for piece in (each[: len(each) // 2], each[len(each) // 2 :])]
    assert guess.read(block(halves, b"")) is None


def test_names_beside_those_of_the_schema_may_hold_anything_of_one_shape() -> None:
    schema = pa.schema([("a", pa.int64()), ("z", MONEY)])
    first = b'{"x":{"a":"t","l":[1,2.5e+3,true,null,{"a":{}},[]]},"a":5,"y":"w","y":-0.0}'
    guess = learned(schema, first)
    others = [
        b'{"x":{"a":null,"l":["w",-0,false,"",{"a":{}},[]]},"a":6,"y":1234567890123456789012345678901234567890,"y":"x"}',
        b'{"x":{"a":0,"l":[0,0.0,0e0,0E-0,{"a":{}},[]]},"a":null,"y":true,"y":false}',
    ]
    assert check(guess, schema, block([first, *others])) == 3
    for value in (
        b"01",
        b"1.",
        b"-",
        b"1e",
        b"1e+",
        b"tru",
        b"fals",
        b"nul",
        b"NaN",
        b"+1",
        b".5",
        b"",
        b"{}",
        b"[]",
        b'"\\n"',
        b'"\n"',
    ):
        assert guess.read(block([first.replace(b'"w"', value)])) is None


def test_the_same_name_twice_is_no_template() -> None:
    guess = JsonGuess(A)
    assert guess.read(block([b'{"a":1,"b":"x","a":2}'] * 50)) is None
    assert guess.read(block([b'{"a":1,"b":"x","\\u0061":2}'] * 50)) is None


def test_some_ways_to_write_the_same_are_followed_at_once() -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", MONEY)])
    forms = [b'{"a":%d,"b":"x"}', b'{"b": "y", "a": %d}\r', b'\t{"c":"1.5","a":%d}', b'{"c":null,"b":"","a":%d}']
    dice = random.Random(3)
    guess = JsonGuess(schema)
    raw = [dice.choice(forms) % number for number in range(2000)]
    check(guess, schema, block(raw))
    assert check(guess, schema, block(raw)) == 2000


def test_a_log_that_changes_its_form_is_learned_anew() -> None:
    guess = JsonGuess(A)
    forms = [
        b'{"a":%d,"b":"x"}',
        b'{ "a" : %d , "b" : "x" }',
        b'{"b":"x","a":%d}',
        b'{"v":1,"a":%d}',
        b'{"v":2,"a":%d}',
        b'{"a":%d}',
    ]
    for form in forms:
        raw = [form % number for number in range(5000)]
        for _ in range(3):
            taken = check(guess, A, block(raw))
        assert taken == 5000


def test_single_records_of_two_kinds_are_learned_too() -> None:
    guess = JsonGuess(A)
    taken = 0
    for number in range(400):
        form = b'{"a":%d,"b":"x"}' if number % 2 else b'{"b":"x","a":%d}'
        taken += check(guess, A, block([form % number]))
    assert taken > 350


def test_where_nothing_can_be_learned_it_stands_aside() -> None:
    dice = random.Random(5)
    names = [f"n{index}" for index in range(12)]
    raw = []
    for _ in range(ASIDE):
        dice.shuffle(names)
        raw.append(json.dumps({"a": 1, **dict.fromkeys(names, 1)}).encode())
    guess = JsonGuess(A)
    tried = 0
    original = guess._learn

    def counted(records: Records, rows: Any) -> bool:
        nonlocal tried
        tried += 1
        return original(records, rows)

    guess._learn = counted  # type: ignore[method-assign]
    for _ in range(60):
        guess.read(block(raw))
    assert 2 <= tried <= 12


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.struct([("x", pa.int64())]), pa.time32("s"), pa.decimal256(40, 2), pa.date64()]
)
def test_schemas_with_other_types_are_left_alone(kind: pa.DataType) -> None:
    guess = JsonGuess(pa.schema([("a", pa.int64()), ("b", kind)]))
    assert guess.read(block([b'{"a":1,"b":null}'] * 100)) is None


def test_templates_say_what_is_between_values() -> None:
    template = template_of(b' {"a" : 1,"b":{"a":[true,"x,}\\""]},"c":[] ,"\\u0062":null}', {"a": 0, "b": 1})
    assert template is not None
    assert template.literals == (b' {"a" : ', b',"b":{"a":[', b",", b']},"c":[] ,"\\u0062":', b"}")
    assert template.columns == (0, None, None, 1)


def number_texts(dice: random.Random) -> str:
    digits = "".join(dice.choices("0123456789", k=dice.choice([1, 2, 5, 8, 9, 15, 16, 17, 18, 19, 20, 21])))
    choice = dice.randrange(8)
    if choice == 0:
        return repr(dice.random() * 10.0 ** dice.randrange(-20, 20))
    if choice == 1:
        return repr(np.frombuffer(dice.randbytes(8), np.float64)[0].item())
    if choice == 2:
        return repr(float(np.float32(dice.random() * 10.0 ** dice.randrange(-40, 39))))
    if choice == 3:
        # The middle between two floats, and its neighbours.
        middle = (2 * dice.randrange(1 << 52, 1 << 53) + 1) << dice.randrange(6)
        return str(middle + dice.choice([-1, 0, 0, 1])) + dice.choice(["", ".0", ".5", "e0", ".00"])
    if choice == 4:
        single = (2 * dice.randrange(1 << 23, 1 << 24) + 1) * 2.0 ** dice.randrange(-30, 30)
        return str(Decimal(single) + Decimal(dice.choice([0, 0, 1, -1])) * Decimal(10) ** -19)[:22]
    if choice == 5:
        return str(int(digits))
    whole = str(int(digits[: dice.randrange(1, len(digits) + 1)]))
    return (
        f"{'-' * dice.randrange(2)}{whole}.{digits}{dice.choice(['', '', 'e-7', 'E+12', 'e22', 'e-30', 'e99', 'e-99'])}"
    )


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.float32(), MONEY, pa.decimal128(38, 18), pa.int64(), pa.uint64()], ids=str
)
def test_numbers_of_all_kinds_mean_the_same(kind: pa.DataType) -> None:
    dice = random.Random(11)
    schema = pa.schema([("a", kind)])
    guess = learned(schema, b'{"a":1}')
    raw = [b'{"a":%s}' % number_texts(dice).encode() for _ in range(4000)]
    guess._wait = 1 << 40  # however many depart
    taken = check(guess, schema, block(raw))
    assert taken > 200
    if kind == pa.float64():
        plain = [repr(dice.random() * 100) for _ in range(4000)]
        guess = learned(schema, b'{"a":1}')
        read = guess.read(block([b'{"a":%s}' % each.encode() for each in plain]))
        assert read is not None
        assert read[0].num_rows > 3900
        assert read[0].column("a").to_pylist() == [float(each) for each, one in zip(plain, read[1], strict=True) if one]


def good_value(dice: random.Random, kind: pa.DataType) -> str:
    is_ = pa.types
    if dice.randrange(12) == 0:
        return "null"
    if is_.is_boolean(kind):
        return dice.choice(["true", "false"])
    if is_.is_integer(kind):
        bits = dice.randrange(1, kind.bit_width)
        number = dice.randrange(1 << bits)
        return str(-number if is_.is_signed_integer(kind) and dice.randrange(2) else number)
    if is_.is_floating(kind):
        return repr(float(np.float32(dice.gauss(0, 1000)))) if dice.randrange(2) else repr(dice.random())
    if is_.is_decimal(kind):
        whole = kind.precision - kind.scale
        text = "0" if whole == 0 else str(dice.randrange(10 ** min(whole, 8)))
        text += (
            "." + "".join(dice.choices("0123456789", k=dice.randrange(1, min(kind.scale, 9) + 1))) if kind.scale else ""
        )
        return dice.choice(["", "-"]) + text if dice.randrange(2) else f'"{text}"'
    if is_.is_date(kind):
        return f'"{dice.randrange(1, 10000):04}-{dice.randrange(1, 13):02}-{dice.randrange(1, 29):02}"'
    if is_.is_timestamp(kind):
        date = f"{dice.randrange(1900, 2100):04}-{dice.randrange(1, 13):02}-{dice.randrange(1, 29):02}"
        clock = f"{dice.randrange(24):02}:{dice.randrange(60):02}:{dice.randrange(60):02}"
        fraction = dice.choice(["", ".000", "" if kind.unit == "s" else ".120000"])
        return dice.choice(
            [
                str(dice.randrange(-(10**12), 10**12)),
                f'"{date}T{clock}{fraction}{dice.choice(["", "Z", "+01:30", "-0800"])}"',
            ]
        )
    if is_.is_duration(kind):
        return str(dice.randrange(-(10**12), 10**12))
    return json.dumps("".join(dice.choices("abcdefgh ß愛😀é/", k=dice.randrange(20))), ensure_ascii=False)


SCRAPS = [
    *b'" \\ , : { } [ ] 0 9 - + . e E5 e-7 00 null true false NaN Infinity Z +01:00 T24: {} [] //'.split(),
    *(
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"\x00",
        b"\x1f",
        b"\x7f",
        b"\x80",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
    ),
    *(b"\\u0041", b"\\ud800", b"\\n", b"9" * 20, b"1e400", b'"c0":1,', b',"c1":2'),
]


def mutated(dice: random.Random, raw: bytes, other: bytes) -> bytes:
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        at = dice.randrange(len(raw) + 1)
        to = min(len(raw), at + dice.choice([0, 1, 1, 2, 5]))
        action = dice.randrange(6)
        if action == 0:
            raw = raw[:at] + raw[to:]
        elif action == 1:
            raw = raw[:at] + dice.choice(SCRAPS) + raw[at:]
        elif action == 2:
            raw = raw[:at] + dice.choice(SCRAPS) + raw[to:]
        elif action == 3:
            raw = raw[:at] + bytes([dice.randrange(256)]) + raw[at + 1 :]
        elif action == 4:
            raw = raw[:at] + other[at:]
        else:
            raw = raw[:at] + raw[at:to] * 2 + raw[to:]
    return raw


@pytest.mark.parametrize("seed", range(4))
def test_no_mutation_of_a_record_makes_the_readers_disagree(seed: int) -> None:
    dice = random.Random(seed)
    left = taken = 0
    for _ in range(12):
        schema = pa.schema([ALL.field(each) for each in dice.sample(range(len(TYPES)), dice.randrange(1, 7))])
        comma, colon = dice.choice([(",", ":"), (", ", ": "), (" ,\n", " :\t")])
        names = [*schema.names, *dice.sample(["unknown", "ünbekannt", "c"], dice.randrange(3))]
        kinds = [*(each.type for each in schema), *dice.choices(TYPES, k=3)]
        raw = []
        for _ in range(150):
            pairs = [f'"{name}"{colon}{good_value(dice, kind)}' for name, kind in zip(names, kinds, strict=False)]
            raw.append(f"{{{comma.join(pairs)}}}".encode())
        guess = JsonGuess(schema)
        taken += check(guess, schema, block(raw))
        changed = [mutated(dice, each, dice.choice(raw)) for each in raw for _ in range(2)]
        guess._wait = 1 << 40  # however many depart
        both = check(guess, schema, block([*changed, *raw], dice.choice([b"\n", b""])))
        left += len(changed) + len(raw) - both
        spec = ScanSpec("s", "kafka", schema, None)
        fast, slow = (
            Decoder(spec, "json", fast=each).decode("s/t/0", block([*raw, *changed])) for each in (True, False)
        )
        assert fast[1].equals(slow[1])
        assert shown(fast[0]) == shown(slow[0])
    assert taken > 1000
    assert left > 1000


VALUES = st.one_of(
    st.text(max_size=12).map(lambda each: json.dumps(each, ensure_ascii=False)),
    st.text(max_size=6).map(json.dumps),
    st.integers(-(2**65), 2**65).map(str),
    st.floats().map(json.dumps),
    st.decimals(allow_nan=False, allow_infinity=False, places=2).map(str),
    st.datetimes().map(lambda each: json.dumps(each.isoformat())),
    st.dates().map(lambda each: json.dumps(each.isoformat())),
    st.sampled_from(
        ["null", "true", "false", "-0", "0.0", "-0.0", "1e5", "[]", "{}", '"\\u00e9"', '"2024-02-29T12:30"']
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_was_learned_what_is_taken_is_right(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3))
    schema = pa.schema([pa.field(f"c{i}", kind, nullable=data.draw(st.booleans())) for i, kind in enumerate(kinds)])
    names = data.draw(st.permutations([*schema.names, "other"]))
    seed = data.draw(st.integers(0, 2**32))
    dice = random.Random(seed)
    wild = data.draw(st.sampled_from([0, 5, 30]))
    raw = []
    for _ in range(data.draw(st.integers(1, 30))):
        shown_names = [each for each in names if data.draw(st.integers(0, 99)) >= wild // 3]
        pairs = []
        for name in shown_names:
            strange = data.draw(st.integers(0, 99)) < wild
            kind = pa.string() if name == "other" else schema.field(name).type
            pairs.append(f'"{name}":{data.draw(VALUES) if strange else good_value(dice, kind)}')
        raw.append(("{" + ",".join(pairs) + "}").encode("utf-8", "surrogatepass"))
    guess = JsonGuess(schema)
    for size in (1, 3, len(raw)):
        for start in range(0, len(raw), size):
            check(guess, schema, block(raw[start : start + size]))
    spec = ScanSpec("s", "kafka", schema, None)
    fast, slow = (Decoder(spec, "json", fast=each).decode("s/t/0", block(raw)) for each in (True, False))
    assert fast[1].to_pylist() == slow[1].to_pylist()
    assert shown(fast[0]) == shown(slow[0])


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_records_that_depart_are_read_in_their_places(share: float) -> None:
    dice = random.Random(7)
    source = events(dice)
    raw = [next(source).json() for _ in range(3000)]
    departing = [
        b'{"kind":"CALL"}',
        b"{",
        b'{"amount":1.375}',
        b'{"customer":"\\u0041"}',
        b'{"at":1,"customer":"x"}',
        b"",
    ]
    raw = [dice.choice(departing) if dice.random() < share else each for each in raw]
    spec = ScanSpec("s", "kafka", SCHEMA, None)
    fast, slow = (Decoder(spec, "json", fast=each).decode("s/t/0", block(raw)) for each in (True, False))
    assert fast[0].equals(slow[0])
    assert fast[1].equals(slow[1])
    assert 0 < fast[1].num_rows < fast[0].num_rows


def test_billing_events_are_all_taken() -> None:
    source = events(random.Random(1))
    raw = [next(source).json() for _ in range(3000)]
    assert len(raw) > SAMPLES
    assert check(JsonGuess(SCHEMA), SCHEMA, block(raw)) == 3000
