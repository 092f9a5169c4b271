"""Whatever is pushed down, SQL over partitions gives what plain DuckDB gives over the whole table: random data, random queries."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from flight_memory import MemoryPartition, directory_of, divide
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.view.directory import ViewInfo
from flowstate_flight import FlightReader, FlightService
from flowstate_sql import Session

COUNT = 3
DAYS = [dt.datetime(2026, 1, day, hour, tzinfo=dt.UTC) for day in (1, 2, 3) for hour in (0, 12)]
NAN = float("nan")

#: Column: type, values as Arrow takes them, the same as SQL literals.
COLUMNS: dict[str, tuple[pa.DataType, list[Any], list[str]]] = {
    "customer": (pa.string(), ["a", "b", "c", "", "ü"], ["'a'", "'b'", "'zz'", "''", "'ü'"]),
    "number": (pa.int32(), [0, 1, 2, -5], ["0", "1", "-5", "7", "1.0", "1.5"]),
    "month": (
        pa.timestamp("ms", "UTC"),
        DAYS,
        ["timestamptz '2026-01-01 00:00:00+00'", "timestamptz '2026-01-02 12:00:00.0005+00'", "'2026-01-03'"],
    ),
    "total": (
        pa.decimal128(12, 2),
        [Decimal("0.00"), Decimal("1.50"), Decimal("-3.25"), Decimal("9999999999.99")],
        ["1.5", "0", "-3.25", "1.505", "9999999999.99"],
    ),
    "share": (pa.float64(), [0.0, -0.0, 1.5, NAN, -1e300], ["0", "1.5", "'nan'::double", "-1e300", "2"]),
    "open": (pa.bool_(), [True, False], ["true", "false"]),
    "day": (pa.date32(), [dt.date(2026, 1, 1), dt.date(2026, 1, 2)], ["date '2026-01-01'", "'2026-01-02'"]),
    "seen": (
        pa.timestamp("us"),
        [dt.datetime(2026, 1, 1, 0, 0, 0, 1), dt.datetime(2026, 1, 1)],
        ["timestamp '2026-01-01 00:00:00.000001'", "'2026-01-01'"],
    ),
    "raw": (pa.binary(), [b"", b"a", b"\x00\xff"], ["'a'::blob", "''::blob", "'\\x00\\xff'::blob"]),
    "big": (pa.uint64(), [0, 2**64 - 1, 5], ["0", "18446744073709551615", "5"]),
}
ROUTINGS = [
    ("customer",),
    ("customer", "number"),
    ("month",),
    ("total", "day"),
    ("share",),
    ("open",),
    ("raw", "big"),
    (),
]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 25))
    arrays = {
        name: pa.array([draw(st.none() | st.sampled_from(values)) for _ in range(rows)], kind)
        for name, (kind, values, _) in COLUMNS.items()
    }
    return pa.table(arrays)


@st.composite
def terms(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(list(COLUMNS)))
    literals = st.sampled_from(COLUMNS[name][2])
    one, other = draw(literals), draw(literals)
    return draw(
        st.sampled_from(
            [
                f"{name} = {one}",
                f"{name} = {one}",
                f"{one} = {name}",
                f"{name} <> {one}",
                f"{name} < {one}",
                f"{name} >= {one}",
                f"{name} between {one} and {other}",
                f"{name} in ({one}, {other})",
                f"{name} in ({one}, {other})",
                f"{name} not in ({one}, {other})",
                f"{name} in ({one}, null)",
                f"{name} is null",
                f"{name} is not null",
                f"{name} is not distinct from {one}",
                f"({name} = {one} or {name} is null)",
                f"({name} = {one} or {name} = {other})",
                "number + 1 = 2",
                "customer like 'a%'",
                "coalesce(number, 0) = 0",
                "true",
            ]
        )
    )


conditions = st.recursive(
    terms(),
    lambda each: (
        st.builds(lambda a, b, how: f"({a} {how} {b})", each, each, st.sampled_from(["and", "and", "or"]))
        | each.map(lambda a: f"not ({a})")
    ),
    max_leaves=4,
)
selections = st.sampled_from(
    [
        "select * from data where {}",
        "select total, customer from data where {}",
        "select count(*), count(number), sum(total), min(month), max(seen) from data where {}",
        "select customer, number, sum(total), count(*) from data where {} group by all",
        "select month, count(distinct customer) from data where {} group by month having count(*) > 0",
        "select a.customer, b.total from data a join data b using (customer, number) where a.open and (b.day is null or {b})",
        "select customer from data where {} and customer in (select customer from data where open)",
    ]
)


class Harness:
    """One service for all examples: the tables are replaced, which a real partition does all the time."""

    def __init__(self) -> None:
        self.service = FlightService()
        self.version = 0
        self.table = pa.table({})
        self.reader: FlightReader | None = None

    def load(self, table: pa.Table, routing: tuple[str, ...]) -> Session:
        if self.reader is not None:
            self.reader.close()
        self.version += 1
        kind = "keyed" if routing else "append"
        info = ViewInfo("data", table.schema, kind, routing, routing)  # type: ignore[arg-type]
        for number, part in enumerate(divide(info, table, COUNT)):
            held = MemoryPartition("j", number, self.version, {"data": info}, {"data": part}, rows_per_batch=4)
            self.service.register(held)
        locations = [self.service.location] * COUNT
        self.service.set_directory(directory_of("j", {"data": info}, locations, self.version, self.version))
        self.reader = FlightReader(self.service.location)
        return Session(self.reader)


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    if harness.reader is not None:
        harness.reader.close()
    harness.service.close()


def plain(table: pa.Table, query: str) -> Counter[str]:
    with duckdb.connect(config={"threads": "1"}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.register("given", table)
        connection.execute("create table data as select * from given")  # DuckDB's own table: nothing of Arrow's filters
        return bag(connection.sql(query).fetchall())


def bag(rows: list[tuple[Any, ...]]) -> Counter[str]:
    return Counter(
        repr(tuple(0.0 if value == 0 and isinstance(value, float) else value for value in row)) for row in rows
    )


@given(tables(), st.sampled_from(ROUTINGS), st.lists(st.tuples(selections, conditions), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_sql_over_partitions_is_sql_over_the_table(
    harness: Harness, table: pa.Table, routing: tuple[str, ...], queries: list[tuple[str, str]]
) -> None:
    with harness.load(table, routing) as session:
        for selection, condition in queries:
            query = selection.replace("{b}", "b.number is null or b.total > 0") if "{b}" in selection else selection
            query = query.format(condition)
            assert bag(session.sql(query).fetchall()) == plain(table, query), query


@given(tables(), st.sampled_from(ROUTINGS[:-1]), st.data())
@settings(deadline=None, max_examples=25)
def test_a_key_as_parameter(harness: Harness, table: pa.Table, routing: tuple[str, ...], data: st.DataObject) -> None:
    values = [data.draw(st.sampled_from(COLUMNS[name][1])) for name in routing]
    condition = " and ".join(f"{name} = ${at + 1}" for at, name in enumerate(routing))
    with harness.load(table, routing) as session, duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.register("given", table)
        connection.execute("create table data as select * from given")
        query = f"select * from data where {condition}"
        wanted = connection.sql(query, params=values).fetchall()
        assert bag(session.sql(query, values).fetchall()) == bag(wanted)
