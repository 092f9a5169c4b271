"""Filters on the wire: what Substrait carries means the same there, keys are never missed, and no bytes can hurt the process."""

from __future__ import annotations

import datetime as dt
import random
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import InvalidFlow
from flowstate.view.directory import ViewInfo
from flowstate_flight.expression import decode_filter, encode_filter
from flowstate_flight.key_filter import allowed_keys

BERLIN = pa.timestamp("us", "Europe/Berlin")
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "text": (pa.string(), ["a", "b", "", "ü"]),
    "number": (pa.int32(), [0, 1, -1, 2**31 - 1]),
    "large": (pa.uint64(), [0, 1, 2**64 - 1]),
    "time": (pa.timestamp("ms", "UTC"), [dt.datetime(2026, 1, day, tzinfo=dt.UTC) for day in (1, 2)]),
    "local": (BERLIN, [dt.datetime(2026, 1, day, tzinfo=dt.UTC) for day in (1, 2)]),
    "money": (pa.decimal128(12, 2), [Decimal("1.50"), Decimal("-0.01"), Decimal("0.00")]),
    "share": (pa.float64(), [0.0, -0.0, 1.5, float("nan")]),
    "flag": (pa.bool_(), [True, False]),
    "day": (pa.date32(), [dt.date(2026, 1, 1), dt.date(1969, 1, 1)]),
    "raw": (pa.binary(), [b"", b"\xff"]),
    "wide": (pa.large_string(), ["a", "b"]),
    "fixed": (pa.binary(2), [b"ab", b"\x00\x00"]),
}
SCHEMA = pa.schema([pa.field(name, kind) for name, (kind, _) in VALUES.items()])


def terms() -> st.SearchStrategy[pc.Expression]:
    def one(name: str) -> st.SearchStrategy[pc.Expression]:
        kind, values = VALUES[name]
        scalars = st.sampled_from([pa.scalar(each, kind) for each in values])
        field = pc.field(name)
        listed = st.lists(st.sampled_from(values), min_size=1, max_size=3).map(
            lambda it: field.isin(pa.array(it, kind))
        )
        return st.one_of(
            scalars.map(lambda value: field == value),
            scalars.map(lambda value: pc.scalar(value) == field),
            scalars.map(lambda value: field != value),
            scalars.map(lambda value: field < value) if name != "flag" else scalars.map(lambda value: field == value),
            listed,
            listed.map(lambda inside: pc.if_else(field.is_valid(), inside, pa.scalar(None, pa.bool_()))),
            scalars.map(lambda value: field.isin(pa.array([None, value.as_py()], kind))),
            st.just(field.is_null()),
            st.just(field.is_valid()),
        )

    return st.one_of([one(name) for name in VALUES]) | st.sampled_from([pc.scalar(True), pc.scalar(False)])


filters = st.recursive(
    terms(),
    lambda each: (
        st.builds(lambda a, b, both: a & b if both else a | b, each, each, st.booleans()) | each.map(lambda a: ~a)
    ),
    max_leaves=6,
)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(1, 6))
    columns = [
        pa.array([draw(st.none() | st.sampled_from(values)) for _ in range(rows)], kind)
        for kind, values in VALUES.values()
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


@given(filters, tables(), st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=2, unique=True))
@settings(deadline=None, max_examples=80)
def test_a_filter_means_the_same_there_and_keys_are_never_missed(
    expression: pc.Expression, table: pa.Table, routing: list[str]
) -> None:
    encoded, names = encode_filter(expression, SCHEMA)
    wanted = table.filter(expression)
    if encoded is None:
        return
    received = decode_filter(encoded, SCHEMA)
    assert received.names == names
    got = received.apply(table.select([*names, *(name for name in SCHEMA.names if name not in names)]))
    assert repr(got.select(SCHEMA.names).to_pylist()) == repr(wanted.to_pylist())
    keys = allowed_keys(encoded, names, ViewInfo("v", SCHEMA, "keyed", tuple(routing), tuple(routing)))
    if keys is not None:
        allowed = {tuple(row.values()) for row in keys.to_pylist()}
        assert {tuple(row.values()) for row in wanted.select(routing).to_pylist()} <= allowed


def keys_of(expression: pc.Expression, *routing: str) -> list[Any] | None:
    encoded, names = encode_filter(expression, SCHEMA)
    assert encoded is not None
    keys = allowed_keys(encoded, names, ViewInfo("v", SCHEMA, "keyed", routing, routing))
    return None if keys is None else sorted((tuple(row.values()) for row in keys.to_pylist()), key=repr)


def test_keys_are_found() -> None:
    text, number = pc.field("text"), pc.field("number")
    assert keys_of(text == "a", "text") == [("a",)]
    assert keys_of((text == "a") & (number > 1), "text") == [("a",)]
    assert keys_of(text.isin(["a", "b"]) & (number == 1), "text", "number") == [("a", 1), ("b", 1)]
    assert keys_of((text == "a") | text.is_null(), "text") == [("a",), (None,)]
    assert keys_of((text == "a") & (text == "b"), "text") in ([("a",)], [("b",)])
    assert keys_of((text == "a") | (number == 1), "text") is None
    assert keys_of(~(text == "a"), "text") is None
    assert keys_of(text > "a", "text") is None
    assert keys_of(text == "a", "text", "number") is None
    assert keys_of(pc.scalar(False) & (text > "a"), "text") == []
    for name, (kind, values) in VALUES.items():
        assert keys_of(pc.field(name) == pa.scalar(values[0], kind), name) == [(pa.scalar(values[0], kind).as_py(),)]


def test_a_filter_that_does_not_fit() -> None:
    with pytest.raises(InvalidFlow, match="does not fit the columns text, number"):
        encode_filter(pc.field("nothing") == 1, SCHEMA)
    encoded, _ = encode_filter(pc.field("number") == 1, SCHEMA)
    assert encoded is not None
    with pytest.raises(InvalidFlow, match="unknown column 'number'"):
        decode_filter(encoded, SCHEMA.remove(1))
    with pytest.raises(InvalidFlow, match="another type"):
        decode_filter(encoded, SCHEMA.set(1, pa.field("number", pa.int64())))


def test_what_depends_on_more_than_the_values_is_not_sent() -> None:
    """An hour depends on the zone, which Substrait drops; the asker applies such a filter itself."""
    encoded, _ = encode_filter(pc.hour(pc.field("local")) == 1, SCHEMA)
    assert encoded is None
    assert encode_filter(pc.field("number") + 1 == 2, SCHEMA)[0] is None


def test_a_known_killer_is_refused() -> None:
    """Arrow aborts the process on a decimal of precision 46."""
    encoded, _ = encode_filter(pc.field("money") == pa.scalar(Decimal("1.50"), pa.decimal128(12, 2)), SCHEMA)
    assert encoded is not None
    for precision in (0, 39, 46, 127):
        with pytest.raises(InvalidFlow, match="not a Substrait extended expression of the allowed kind"):
            decode_filter(encoded.replace(bytes([0x10, 12]), bytes([0x10, precision])), SCHEMA)


def damage(seed: int, rounds: int) -> None:
    """Run in a process of its own: a crash is what must not happen."""
    chance = random.Random(seed)
    table = pa.Table.from_arrays([pa.array([values[0], None], kind) for kind, values in VALUES.values()], schema=SCHEMA)
    sound = []
    for name, (kind, values) in VALUES.items():
        field, value = pc.field(name), pa.scalar(values[0], kind)
        inside = pc.if_else(field.is_valid(), field.isin(pa.array(values, kind)), pa.scalar(None, pa.bool_()))
        for expression in (field == value, (field == value) | ~inside, field.is_null() & (pc.field("number") < 3)):
            encoded, _ = encode_filter(expression, SCHEMA)
            if encoded is not None:
                sound.append(encoded)
    accepted = 0
    for _ in range(rounds):
        raw = bytearray(chance.choice(sound))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(raw))
            how = chance.random()
            if how < 0.75:
                raw[at] = chance.randrange(256)
            elif how < 0.85:
                del raw[at : at + chance.randint(1, 6)]
            else:
                start = chance.randrange(len(raw))
                raw[at:at] = raw[start : start + chance.randint(1, 30)]
        try:
            received = decode_filter(bytes(raw), SCHEMA)
            rest = [name for name in SCHEMA.names if name not in received.names]
            received.apply(table.select([*received.names, *rest]))
            accepted += 1
        except InvalidFlow:
            pass
    print("survived", rounds, accepted)


def test_damaged_filters_are_refused_and_crash_nothing() -> None:
    program = "import sys; import test_flight_filter; test_flight_filter.damage(int(sys.argv[1]), int(sys.argv[2]))"
    folder = __file__.rpartition("/")[0]
    paths = f"import sys; sys.path[:0] = {[folder, *sys.path]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", paths + program, "1", "4000"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("survived 4000")
