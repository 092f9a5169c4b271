"""Expressions: types told when built are those that come out, rows stand alone, values are Python's, errors say what to do."""

from __future__ import annotations

import datetime as dt
import operator
import pickle
import random
import re
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowstate.errors import InvalidFlow
from flowstate.plan import expr as expressions
from flowstate.plan.expr import Aggregate, Call, Expr, call, col, lit
from flowstate.plan.expr_choice import When, when
from flowstate.plan.expr_functions import FUNCTIONS, OPERATORS

BERLIN = ZoneInfo("Europe/Berlin")
SCHEMA = pa.schema(
    {
        "i8": pa.int8(), "i32": pa.int32(), "i64": pa.int64(), "u8": pa.uint8(), "u64": pa.uint64(), "f32": pa.float32(),
        "f64": pa.float64(), "d2": pa.decimal128(12, 2), "d0": pa.decimal128(38, 0), "d9": pa.decimal128(30, 9), "b": pa.bool_(),
        "s": pa.string(), "ls": pa.large_string(), "bin": pa.binary(), "day": pa.date32(), "naive": pa.timestamp("ms"),
        "utc": pa.timestamp("us", "UTC"), "zoned": pa.timestamp("s", "Europe/Berlin"), "span": pa.duration("ms"),
        "st": pa.struct({"x": pa.int32(), "y": pa.string()}), "l": pa.list_(pa.int64()), "n": pa.null(),
    }
)  # fmt: skip


def values_of(type_: pa.DataType) -> st.SearchStrategy[Any]:
    """Values that JSON or a program might bring, extremes included."""
    kinds = pa.types
    if kinds.is_null(type_):
        return st.none()
    if kinds.is_boolean(type_):
        some: st.SearchStrategy[Any] = st.booleans()
    elif kinds.is_integer(type_):
        bits = type_.bit_width
        low, high = (0, 2**bits - 1) if kinds.is_unsigned_integer(type_) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        some = st.one_of(st.integers(max(low, -5), 5), st.sampled_from([low, high]), st.integers(low, high))
    elif kinds.is_floating(type_):
        some = st.floats(width=32)
    elif kinds.is_decimal(type_):
        limit = 10**type_.precision - 1
        whole = st.one_of(st.integers(-500, 500), st.sampled_from([limit, -limit]))
        some = whole.map(lambda each: Decimal(f"{each}E-{type_.scale}"))
    elif kinds.is_string(type_) or kinds.is_large_string(type_):
        some = st.sampled_from(["", "a", "Ab c", " 12 ", "-3", "straße", "日本", "2024-03-31"])
    elif kinds.is_binary(type_):
        some = st.binary(max_size=3)
    elif kinds.is_date32(type_):
        some = st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1))
    elif kinds.is_timestamp(type_):
        instants = st.integers(-2_000_000_000, 4_000_000_000)
        per = {"s": 1, "ms": 1000, "us": 1_000_000}[type_.unit]
        some = instants.map(lambda each: pa.scalar(each * per, pa.int64()).cast(type_).as_py())
    elif kinds.is_duration(type_):
        some = st.integers(-100_000, 100_000).map(lambda each: dt.timedelta(milliseconds=each))
    elif kinds.is_struct(type_):
        some = st.fixed_dictionaries({each.name: values_of(each.type) for each in type_})
    else:
        some = st.lists(values_of(type_.value_type), max_size=3)
    return st.one_of(st.none(), some)


def pool_of(type_: pa.DataType) -> list[Any]:
    """A few dozen values of a type, the same in every run; drawing each value of each example anew would be slow for nothing."""
    found: list[Any] = []

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(values_of(type_))
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found


POOLS = {each.name: pool_of(each.type) for each in SCHEMA}


def batches(rows: int = 4) -> st.SearchStrategy[pa.RecordBatch]:
    def made(seed: int) -> pa.RecordBatch:
        chance = random.Random(seed)
        columns = [pa.array(chance.choices(POOLS[each.name], k=rows), each.type) for each in SCHEMA]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    return st.integers(0, 2**32).map(made)


LITERALS = st.sampled_from(
    [None, True, 0, 3, -1, 200, 2**40, 2**63, 1.5, Decimal("1.10"), "a", b"x", dt.date(2024, 2, 29), dt.datetime(2024, 3, 31, 2, 30),
     dt.datetime(2024, 3, 31, 2, 30, tzinfo=BERLIN), dt.timedelta(hours=1)]
)  # fmt: skip
LEAVES = st.one_of(st.sampled_from(SCHEMA.names).map(col), LITERALS.map(lit))
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "cast": [{"type": type_} for type_ in (pa.int8(), pa.int64(), pa.float64(), pa.string(), pa.decimal128(20, 4), pa.date32(),
                                           pa.timestamp("us", "UTC"), pa.bool_(), pa.uint16())],
    "is_in": [{"values": (1, 2)}, {"values": ("a", None)}, {"values": ()}],
    "contains": [{"pattern": "^a|b", "literal": False}, {"pattern": ".", "literal": True}],
    "starts_with": [{"prefix": "a"}],
    "ends_with": [{"suffix": "c"}],
    "slice": [{"offset": 1, "length": 2}, {"offset": -2, "length": None}, {"offset": -3, "length": 3}, {"offset": 0, "length": 0}],
    "strip": [{"characters": None}, {"characters": "a "}],
    "truncate": [{"every": each} for each in ("15m", "1h", "6h", "1d", "1w", "1mo", "1y")],
    "field": [{"name": "x"}, {"name": "y"}],
}  # fmt: skip


def deeper(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    def function(name: str) -> st.SearchStrategy[Expr]:
        inputs = [inner] * (2 if name in OPERATORS or name == "fill_null" else 1)
        return st.tuples(st.sampled_from(OPTIONS.get(name, [{}])), *inputs).map(
            lambda drawn: call(name, *drawn[1:], **drawn[0])
        )

    choice = st.tuples(inner, inner, inner).map(lambda three: when(three[0]).then(three[1]).otherwise(three[2]))
    return st.one_of(st.sampled_from(sorted(FUNCTIONS)).flatmap(function), choice)


def builds(expr: Expr) -> bool:
    try:
        expr.type_in(SCHEMA)
    except InvalidFlow:
        return False
    return True


@cache
def building() -> list[Expr]:
    """Every function over every column, or some pairs of columns and constants, that fits: most random ones do not."""
    chance = random.Random(1)
    columns = [col(name) for name in SCHEMA.names]
    constants = [
        lit(value) for value in (None, True, 3, 1.5, Decimal("1.10"), "a", dt.timedelta(hours=1), dt.date(2024, 2, 29))
    ]
    found = []
    for name in sorted(FUNCTIONS):
        two = name in OPERATORS or name == "fill_null"
        others = [(each,) for each in [*columns, *constants]] if two else [()]
        trials = [
            call(name, one, *rest, **options)
            for one in columns
            for rest in others
            for options in OPTIONS.get(name, [{}])
        ]
        found += [each for each in chance.sample(trials, min(len(trials), 200)) if builds(each)]
    return found


EXPRESSIONS = st.deferred(
    lambda: st.one_of(
        st.sampled_from(building()),
        deeper(st.one_of(st.sampled_from(building()), LEAVES)).filter(builds),
        st.recursive(LEAVES, deeper, max_leaves=5),
    )
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(expr=EXPRESSIONS, batch=batches())
def test_type_told_is_type_given_and_rows_stand_alone(expr: Expr, batch: pa.RecordBatch) -> None:
    try:
        told = expr.type_in(SCHEMA)
    except InvalidFlow:
        return
    rows: list[Any] = []
    for at in range(batch.num_rows):
        try:
            rows.append(expr.evaluate(batch.slice(at, 1)))
        except pa.ArrowException:
            rows.append(None)
    for row in rows:
        assert row is None or (row.type == told and len(row) == 1)
    if all(row is not None for row in rows):
        whole = expr.evaluate(batch)
        assert whole.type == told and len(whole) == batch.num_rows
        alone = pa.concat_arrays([whole.slice(0, 0), *rows])
        # As text, because nan is not nan, and Python has no date for every date32.
        assert whole.to_string(window=len(whole)) == alone.to_string(window=len(whole))
    else:
        with pytest.raises(pa.ArrowException):
            expr.evaluate(batch)
    again = pickle.loads(pickle.dumps(expr))
    assert str(again) == str(expr) and again.type_in(SCHEMA) == told


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_every_function_can_be_built_on_something(function: str) -> None:
    """So that the property above is not true for want of anything that builds."""
    two = function in OPERATORS or function == "fill_null"
    built = 0
    for options in OPTIONS.get(function, [{}]):
        for name in SCHEMA.names:
            try:
                call(function, *([col(name)] * (2 if two else 1)), **options).type_in(SCHEMA)
                built += 1
            except InvalidFlow:
                pass
    assert built


def python_value(function: Callable[[Any, Any], Any], left: Any, right: Any, type_: pa.DataType) -> Any:
    """What Python makes of it; an overflow of `type_` and a division by zero are "fails"."""
    if left is None or right is None:
        return None
    try:
        with localcontext() as exact:
            exact.prec = 200
            return pa.scalar(function(left, right), type_).as_py()
    except (ZeroDivisionError, OverflowError, pa.ArrowInvalid):
        return "fails"


@pytest.mark.parametrize("symbol", ["+", "-", "*", "//", "%", "/", "==", "<", ">="])
@pytest.mark.parametrize(
    "names", [("i32", "i32"), ("i64", "i64"), ("u8", "i32"), ("u64", "u64"), ("d2", "d9"), ("d2", "i64")]
)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_numbers_are_computed_as_python_does(symbol: str, names: tuple[str, str], data: st.DataObject) -> None:
    function = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
                "/": operator.truediv, "==": operator.eq, "<": operator.lt, ">=": operator.ge}[symbol]  # fmt: skip
    expr = call(symbol, col("left"), col("right"))
    types = [SCHEMA.field(name).type for name in names]
    schema = pa.schema([("left", types[0]), ("right", types[1])])
    if symbol in ("/", "//", "%") and "d2" in names:
        with pytest.raises(InvalidFlow, match="not exact"):
            expr.type_in(schema)
        return
    for left, right in data.draw(st.lists(st.tuples(*(values_of(type_) for type_ in types)), min_size=1, max_size=10)):
        batch = pa.RecordBatch.from_arrays([pa.array([left], types[0]), pa.array([right], types[1])], schema=schema)
        expected = python_value(function, left, right, expr.type_in(schema))
        if symbol in ("//", "%") and left == -(2 ** (types[0].bit_width - 1)) and right == -1:
            expected = "fails"  # the quotient does not fit
        try:
            assert expr.evaluate(batch).to_pylist() == [expected]
        except pa.ArrowInvalid:
            assert expected == "fails"


def one(expr: Expr, **columns: Any) -> Any:
    """The value for one row, whose columns are scalars or plain values."""
    scalars = {name: value if isinstance(value, pa.Scalar) else pa.scalar(value) for name, value in columns.items()}
    batch = pa.RecordBatch.from_pydict(
        {name: pa.repeat(value, 1) for name, value in scalars.items()} or {"_": pa.array([0])}
    )
    assert expr.type_in(batch.schema) == expr.evaluate(batch).type
    return expr.evaluate(batch)[0].as_py()


def test_conditions_know_three_values() -> None:
    null = pa.scalar(None, pa.bool_())
    a, b = col("a"), col("b")
    assert one(a & b, a=False, b=null) is False
    assert one(a & b, a=True, b=null) is None
    assert one(a | b, a=True, b=null) is True
    assert one(a | b, a=False, b=null) is None
    assert one(~a, a=null) is None
    assert one(col("x").is_null(), x=pa.scalar(None, pa.int8())) is True
    assert one(col("x").is_not_null(), x=1) is True
    assert one(when(a).then(1).otherwise(2), a=null) == 2
    assert one(col("x").is_in([1, 2]), x=pa.scalar(None, pa.int8())) is None


def test_a_branch_is_computed_for_the_rows_that_take_it() -> None:
    batch = pa.RecordBatch.from_pydict({"a": [7, 8, 9, None], "b": [2, 0, 3, 1]})
    guarded = when(col("b") == 0).then(-1).when(col("a") > 8).then(col("a")).otherwise(col("a") // col("b"))
    assert guarded.evaluate(batch).to_pylist() == [3, -1, 9, None]
    with pytest.raises(pa.ArrowInvalid, match="divide by zero"):
        (col("a") // col("b")).evaluate(batch)


def test_text() -> None:
    s = col("s")
    assert one(s.str.to_uppercase(), s="élan") == one(s.str.upper(), s="élan") == "ÉLAN"
    assert one(s.str.lower(), s="ÄB") == "äb"
    assert one(s.str.contains("^a.c"), s="abc") is True
    assert one(s.str.contains("a.c", literal=True), s="abc") is False
    assert [one(s.str.slice(*each), s="日本語x") for each in [(1,), (1, 2), (-2,), (-3, 2), (-2, 2), (0, 0)]] == [
        "本語x", "本語", "語x", "本語", "語x", ""
    ]  # fmt: skip
    assert one(s.str.len_chars(), s="日本語") == 3
    assert one(s.str.strip() + "!", s="  a ") == "a!"
    assert one(s.str.starts_with("a") & s.str.ends_with("c"), s="abc") is True


def test_times_are_read_in_the_zone_of_the_column() -> None:
    moment = pa.scalar(dt.datetime(2024, 3, 31, 22, 30, 15, tzinfo=dt.UTC), pa.timestamp("ms", "Europe/Berlin"))
    t = col("t").dt
    parts = [t.year(), t.month(), t.day(), t.hour(), t.minute(), t.second(), t.weekday()]
    assert [one(part, t=moment) for part in parts] == [2024, 4, 1, 0, 30, 15, 1]
    assert one(t.date(), t=moment) == one(col("t").cast(pa.date32()), t=moment) == dt.date(2024, 4, 1)
    assert one(t.truncate("1mo"), t=moment) == dt.datetime(2024, 4, 1, tzinfo=BERLIN)
    assert one(t.date(), t=pa.scalar(dt.datetime(1969, 12, 31, 23, 59))) == dt.date(1969, 12, 31)


@pytest.mark.parametrize(
    ("zone", "utc", "every", "expected"),
    [
        # The clock is set forward at 01:00 UTC: six hours before 05:30 summer time is midnight, in winter time.
        ("Europe/Berlin", dt.datetime(2024, 3, 31, 3, 30), "6h", dt.datetime(2024, 3, 30, 23)),
        # Both hours that the clock shows as 02:xx keep their own.
        ("Europe/Berlin", dt.datetime(2024, 10, 27, 0, 30), "1h", dt.datetime(2024, 10, 27, 0)),
        ("Europe/Berlin", dt.datetime(2024, 10, 27, 1, 30), "1h", dt.datetime(2024, 10, 27, 1)),
        ("Asia/Kolkata", dt.datetime(2024, 1, 1, 0, 15), "1h", dt.datetime(2023, 12, 31, 23, 30)),
        ("Europe/Berlin", dt.datetime(2024, 10, 27, 5, 30), "1d", dt.datetime(2024, 10, 26, 22)),
        ("Australia/Lord_Howe", dt.datetime(2024, 4, 6, 15, 10), "1h", dt.datetime(2024, 4, 6, 14)),
    ],
)
def test_truncate_where_clocks_are_set(zone: str, utc: dt.datetime, every: str, expected: dt.datetime) -> None:
    moment = pa.scalar(utc.replace(tzinfo=dt.UTC), pa.timestamp("us", zone))
    got = one(col("t").dt.truncate(every), t=moment).astimezone(dt.UTC)
    assert got == expected.replace(tzinfo=dt.UTC)


@settings(max_examples=100, deadline=None)
@given(
    second=st.integers(0, 1_800_000_000),
    zone=st.sampled_from(["Europe/Berlin", "America/Havana", "Asia/Kolkata", "Australia/Lord_Howe"]),
    every=st.sampled_from([15, 60, 360]),
)
def test_truncate_shows_a_round_clock_not_after_the_time(second: int, zone: str, every: int) -> None:
    moment = pa.scalar(second, pa.int64()).cast(pa.timestamp("s", zone))
    got = one(col("t").dt.truncate(f"{every}m"), t=moment)
    assert got <= moment.as_py()
    local = moment.as_py().replace(tzinfo=None)
    floor = local - dt.timedelta(minutes=(local.hour * 60 + local.minute) % every, seconds=local.second)
    # Where the clock jumped over the round time, the start is the instant of the jump.
    assert got.replace(tzinfo=None) == floor or floor.replace(tzinfo=ZoneInfo(zone)).astimezone(dt.UTC).astimezone(
        ZoneInfo(zone)
    ).replace(tzinfo=None) != floor  # fmt: skip


def test_struct_fields_and_names() -> None:
    schema = pa.schema({"st": pa.struct({"x": pa.int32()})})
    field = col("st").struct.field("x")
    assert field.name == "x" and field.type_in(schema) == pa.int32()
    batch = pa.RecordBatch.from_pylist([{"st": {"x": 1}}, {"st": None}, {"st": {"x": None}}], schema=schema)
    assert field.evaluate(batch).to_pylist() == [1, None, None]
    assert (col("a") + col("b")).name == "a"
    assert (1 + col("b")).alias("c").name == "c"
    with pytest.raises(InvalidFlow, match="did you mean 'x'"):
        col("st").struct.field("xx").type_in(schema)


def test_text_of_an_expression_is_stable() -> None:
    expr = when(col("a b") > 1).then(col("x").cast(pa.int64()) * Decimal("1.10")).otherwise(None)
    assert str(expr) == "when((col('a b') > 1)).then((cast(x, type=int64) * Decimal('1.10'))).otherwise(None)"
    assert str(col("x").is_in({"b", "a"})) == "is_in(x, values=['a', 'b'])"
    assert str(lit(1, pa.int8())) == "1::int8"


def test_aggregates_have_types_and_names() -> None:
    types = {
        "i8": ("int64", "double"), "u8": ("uint64", "double"), "f32": ("double", "double"), "d2": ("decimal128(38, 2)", "double"),
    }  # fmt: skip
    for name, (total, mean) in types.items():
        column = col(name)
        assert str(column.sum().type_in(SCHEMA)) == total
        assert {str(each.type_in(SCHEMA)) for each in (column.mean(), column.var(), column.std(ddof=0))} == {mean}
        assert all(
            each.type_in(SCHEMA) == SCHEMA.field(name).type for each in (column.min(), column.max(), column.first())
        )
        assert column.count().type_in(SCHEMA) == expressions.len().type_in(SCHEMA) == pa.int64()
    assert col("b").sum().type_in(SCHEMA) == pa.int64()
    assert str((col("d2") * col("i8")).sum().type_in(SCHEMA)) == "decimal128(38, 2)"
    assert (
        (col("a") * 2).sum().name == "a" and expressions.len().name == "len" and col("a").sum().alias("t").name == "t"
    )
    assert pickle.loads(pickle.dumps(col("a").std(ddof=0))).options == (("ddof", 0),)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: col("i33").type_in(SCHEMA), "no column 'i33'; did you mean 'i32'"),
        (lambda: col("zzzzzz").type_in(pa.schema({"a": pa.int8()})), "there is 'a'"),
        (lambda: bool(col("a") > 1), "combine conditions with"),
        (lambda: 1 < col("a") < 3, "no truth value"),
        (lambda: col("a") in [1, 2], "no truth value"),
        (lambda: (col("s") + 1).type_in(SCHEMA), "needs numbers; cast"),
        (lambda: (col("d2") * 1.5).type_in(SCHEMA), "float and a decimal do not mix"),
        (lambda: (col("d2") / 2).type_in(SCHEMA), "multiply by a decimal.Decimal"),
        (lambda: (col("i8") & col("b")).type_in(SCHEMA), "put comparisons in brackets"),
        (lambda: (col("naive") > col("utc")).type_in(SCHEMA), "do not go together; cast"),
        (lambda: (col("naive") > "2024-01-01").type_in(SCHEMA), "do not go together; cast"),
        (lambda: (-col("u8")).type_in(SCHEMA), "needs signed numbers"),
        (lambda: col("i32").fill_null(0.5).type_in(SCHEMA), "fill_null keeps the type"),
        (lambda: col("i32").str.upper().type_in(SCHEMA), "cast the column to pa.string"),
        (lambda: col("s").dt.year().type_in(SCHEMA), "needs a timestamp or date32"),
        (lambda: col("day").dt.hour().type_in(SCHEMA), "cannot be computed"),
        (lambda: col("s").struct.field("x").type_in(SCHEMA), "needs a struct"),
        (lambda: col("l").cast(pa.int64()).type_in(SCHEMA), "cannot be computed"),
        (lambda: col("i32").is_in(["x"]).type_in(SCHEMA), "not of the column's type"),
        (lambda: col("i32").is_in("x"), "takes a list"),
        (lambda: col("s").str.contains("("), "not a regular expression"),
        (lambda: col("s").str.slice(0, -1), "length of 0 or more"),
        (lambda: col("at").dt.truncate("1x"), "written like"),
        (lambda: col("__offset"), "reserved"),
        (lambda: col("a").alias("__x"), "reserved"),
        (lambda: col(""), "at least one letter"),
        (lambda: lit(object()), "a constant is"),
        (lambda: lit(300, pa.int8()), "does not fit"),
        (lambda: lit(2**70), "at most 64 bits"),
        (lambda: lit(Decimal("NaN")), "finite"),
        (lambda: col("a").cast("int64"), "takes an Arrow type"),
        (lambda: col("a") + when(col("b")).then(1), "ends with .otherwise"),
        (lambda: when(col("i32")).then(1).otherwise(2).type_in(SCHEMA), "condition that is true or false"),
        (lambda: when(col("b")).then("x").otherwise(2).type_in(SCHEMA), "do not go together"),
        (lambda: col("l").explode(), "stream.explode"),
        (lambda: col("a").sum() + 1, "compute on its input"),
        (lambda: 1 - col("a").sum(), "compute on its input"),
        (lambda: col("a") + col("b").sum(), "compute on its input"),
        (lambda: col("a").sum().fill_null(0), "compute on its input"),
        (lambda: col("s").sum().type_in(SCHEMA), "sum needs numbers"),
        (lambda: col("l").max().type_in(SCHEMA), "take a field of it"),
        (lambda: col("a").var(ddof=-1), "0 or more"),
        (lambda: list(col("a")), "looped"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_to_do(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidFlow, match=re.escape(message)):
        build()


def test_classes_are_what_they_say() -> None:
    assert isinstance(col("a") + 1, Call) and isinstance(when(col("a")), When) and isinstance(col("a").sum(), Aggregate)
