"""Queries of who may see some of the rows are computed in the partitions, too: over her rows alone, whatever is asked."""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from guarded import INTERNAL
from test_sql_tiers import Kept, random_query
from tiered_sql import COUNT, ROUTINGS, VALUES, Harness, Whole, random_table, same

from flowstate.errors import FlowstateError, InvalidFlow
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import Freshness
from flowstate.view.rights import Action, Grant, Principal
from flowstate_flight import FlightReader
from flowstate_flight.expression import DecodedFilter
from flowstate_flight.partial import Partial
from flowstate_flight.visible import RowFilter
from flowstate_sql import Session
from flowstate_sql.partial import PartialQuery, answer_partial
from flowstate_sql.restricted import RestrictedSplitReader
from flowstate_sql.served import ServedSql

ROWS = {
    "a key": pc.field("customer") == "a",
    "of several": pc.field("customer").isin(["b", "ü"]),
    "no key": pc.field("open") & (pc.field("number") > -2),
    "also no customer": (pc.field("customer") != "a") | pc.field("customer").is_null(),
    "a moment": pc.field("month") >= pa.scalar(dt.datetime(2026, 2, 1, tzinfo=dt.UTC), pa.timestamp("ms", "UTC")),
    "nothing": pc.field("id") < 0,
    "what no ticket can say": pc.utf8_upper(pc.field("customer")) == "A",
}


class Somebody:
    """A `rights.Access`: one who shows "her-token"."""

    def __init__(self) -> None:
        self.who = Principal("her", ())

    def sees(self, rows: pc.Expression, *actions: Action) -> Principal:
        self.who = Principal("her", (Grant(frozenset(actions or ("read", "sql")), rows=rows),))
        return self.who

    def of_token(self, token: str) -> Principal | None:
        return self.who if token == "her-token" else None

    def login(self, user: str, password: str) -> str | None:
        return None

    def of_certificate(self, identity: str) -> Principal | None:
        return None


class HerHarness(Harness):
    """A job of which somebody sees some of the rows; `plain` has those and no other."""

    def __init__(self) -> None:
        self.somebody = Somebody()
        super().__init__({"token": INTERNAL}, access=self.somebody, internal=INTERNAL)

    def load_for(self, rows: pc.Expression, table: pa.Table, routing: tuple[str, ...], saved: Any = None) -> None:
        who = self.somebody.sees(rows)
        self.load(table, routing, saved)
        hers = FlightReader(self.service.location, token="her-token", grace=5.0)
        served = ServedSql(self.reader)
        at_a_gateway: Any = RestrictedSplitReader(self.reader, who)
        sessions = [Session(hers), Session(Whole(hers)), Session(Whole(at_a_gateway))]
        self.plain.execute("drop table data")
        self.plain.register("given", table.filter(rows))
        self.plain.execute("create table data as select * from given")
        self.closing = [*sessions, hers, served, *self.closing]

        def at_the_gateway(query: str) -> list[tuple[Any, ...]]:
            statement = served.run(query, who=who)
            return [tuple(row.values()) for each in statement.batches() for row in renamed(each).to_pylist()]

        self.ways: dict[str, Callable[[str], list[tuple[Any, ...]]]] = {
            "at the workers, in parts": lambda query: sessions[0].sql(query).fetchall(),
            "at the workers, in full": lambda query: sessions[1].sql(query).fetchall(),
            "at a gateway, in parts": at_the_gateway,
            "at a gateway, in full": lambda query: sessions[2].sql(query).fetchall(),
        }

    def check_hers(self, query: str) -> dict[str, int]:
        """Every way gives what plain DuckDB gives over her rows. How many partitions computed a part, by way."""
        wanted = self.plain.sql(query).fetchall()
        computed = {}
        for way, ask in self.ways.items():
            before = self.computed
            found = ask(query)
            computed[way] = self.computed - before
            assert same(as_duckdb(found), as_duckdb(wanted)), (way, query)
        return computed


def renamed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Columns of a query may have the same name."""
    return batch.rename_columns([str(at) for at in range(batch.num_columns)])


def as_duckdb(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Arrow gives times in UTC and HUGEINT as decimals, where DuckDB's own rows have other classes of the same."""

    def plain(value: Any) -> Any:
        if isinstance(value, dt.datetime):
            return value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value
        if isinstance(value, Decimal) and value == value.to_integral_value():
            return int(value)
        return value

    return [tuple(map(plain, row)) for row in rows]


@pytest.fixture(scope="module")
def harness() -> Iterator[HerHarness]:
    harness = HerHarness()
    yield harness
    harness.close()
    harness.service.close()


#: Queries of rows, and of keys; with what fails on others' rows, or would count them.
POINTS = [
    "select id, customer, total, open from data where customer = 'a'", "select id, total from data where customer = 'b' and number = 1",
    "select id from data where customer in ('a', 'ü') and number = 2", "select number, customer from data where customer = 'c' limit 100",
    "select count(*) from data where customer = 'a' and number = 0", "select id, big, day from data where big = 5",
    "select id from data where open",
    "select id from data where customer = 'a' and 10 / id >= 0", "select id from data where id = 7",
    "select a.id, b.id from data a join data b on a.customer = b.customer and a.number < b.number",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(14))
def test_any_query_on_any_way_is_one_over_her_rows(harness: HerHarness, seed: int) -> None:
    chance = random.Random(seed)
    kind = list(ROWS)[seed % len(ROWS)]
    table = random_table(chance, chance.choice([9, 40, 60]))
    harness.load_for(ROWS[kind], table, chance.choice(ROUTINGS))
    computed = dict.fromkeys(harness.ways, 0)
    for _ in range(12):
        for way, parts in harness.check_hers(random_query(chance)).items():
            computed[way] += parts > 0
    for query in chance.sample(POINTS, 4):
        harness.check_hers(query)
    assert computed["at the workers, in parts"] >= 3
    assert computed["at the workers, in full"] == computed["at a gateway, in full"] == 0
    assert computed["at a gateway, in parts"] == (
        0 if kind == "what no ticket can say" else computed["at the workers, in parts"]
    )


def test_the_owner_of_her_key_alone_computes(harness: HerHarness) -> None:
    harness.load_for(ROWS["a key"], random_table(random.Random(3), 60), ("customer",))
    told = harness.ways["at a gateway, in parts"]("explain select open, sum(total) from data group by open")
    assert told[0][0].startswith("tier 2") and "asks 1 of " in told[1][0]
    assert harness.check_hers("select open, sum(total) from data group by open")["at a gateway, in parts"] == 1
    harness.load_for(ROWS["no key"], random_table(random.Random(3), 60), ("customer",))
    assert harness.check_hers("select open, sum(total) from data group by open")["at a gateway, in parts"] == COUNT


def test_what_a_partition_saved_is_computed_over_her_rows(harness: HerHarness) -> None:
    harness.load_for(ROWS["no key"], random_table(random.Random(5), 60), ("customer",), Kept(harness))
    query = "select open, sum(total), avg(number), count(*) from data where id > 3 group by open"
    wanted = harness.plain.sql(query).fetchall()
    served, who = ServedSql(harness.reader), harness.somebody.who
    harness.service.unregister("j", 1)
    harness.version += 1
    harness.place([harness.service.location, None, harness.service.location])
    for fresh in (Freshness(), Freshness(snapshot=7)):
        rows = [
            tuple(row.values())
            for each in served.run(query, who=who, fresh=fresh).batches()
            for row in renamed(each).to_pylist()
        ]
        assert len(rows) == 1 and same(as_duckdb(rows), as_duckdb(wanted))
    served.close()


# what others have that hers do not


MANY = 3000
#: Her row is harmless to each of these; any other is not.
POISONED = [
    "select sum(word::int) from data",
    "select count(*) from data where word::int > 0",
    "select sum(case when word::int = 12 then 1 end) from data group by customer",
    "select sum(large * 4) from data",
    "select sum((large + number)::tinyint) from data",
    "select max(abs(small)) from data",
    "select max(strptime(word, '%d')) from data",
    "select count(*) from data having max(word::int) > 0",
    "select sum(number) from data where error(word) is null or number = 12",
    "select sum(list_value(number)[1]) from data where (word::int) between 1 and 99",
    "select count(*) filter (where word::decimal(4, 2) > 1) from data",
    "select word::int from data order by 1 limit 1",
    "select id from data where customer = 'a' or word::int = 1",
    "select median(word::int) from data",
    "select sum(number) over (order by word::int) from data",
    "select a.id from data a join data b on a.word::int = b.word::int",
    "select (select max(word::int) from data)",
]  # fmt: skip


def poisoned(others: bool) -> pa.Table:
    """A row of hers, and, perhaps, many of others."""
    count = MANY if others else 0
    columns: dict[str, pa.Array] = {name: pa.nulls(1 + count, kind) for name, (kind, _) in VALUES.items()}
    columns["customer"] = pa.array(["a"] + [f"c{at % 50}" for at in range(count)])
    columns["word"] = pa.array(["12"] + ["secret"] * count)
    columns["number"] = pa.array([12] + [-1] * count, pa.int32())
    columns["large"] = pa.array([100] + [2**62] * count, pa.int64())
    columns["small"] = pa.array([100] + [-128] * count, pa.int8())
    columns["id"] = pa.array(range(1 + count), pa.int64())
    return pa.table(columns)


def outcomes(harness: HerHarness, query: str) -> dict[str, str]:
    """What each way says: rows or error, without what depends on the clock."""
    found = {}
    for way, ask in harness.ways.items():
        try:
            text = repr(sorted(ask(query), key=repr))
        except (FlowstateError, duckdb.Error) as error:
            text = f"{type(error).__name__}: {error}"
        found[way] = re.sub(r"[0-9.]+ ms", "TIME", text)
    return found


@pytest.fixture(scope="module")
def worlds() -> Iterator[tuple[HerHarness, HerHarness]]:
    """One in which there is nothing but her row, and one that is full of others'."""
    with ExitStack() as stack:
        made = []
        for others in (False, True):
            harness = HerHarness()
            stack.callback(harness.service.close)
            stack.callback(harness.close)
            harness.load_for(ROWS["a key"], poisoned(others), ("customer",))
            made.append(harness)
        yield made[0], made[1]


@pytest.mark.parametrize("query", POISONED)
def test_no_error_is_about_a_row_of_others(worlds: tuple[HerHarness, HerHarness], query: str) -> None:
    alone, among = worlds
    with pytest.raises((duckdb.Error, FlowstateError)):  # so it is a way to tell them
        Session(among.reader).sql(query).fetchall()
    told = outcomes(among, query)
    assert told == outcomes(alone, query)
    for way, text in told.items():
        assert "secret" not in text, way
        if "error(" not in query:  # which is refused to everybody who is served
            assert text.startswith("["), (way, text)


def test_others_take_no_part_in_counts_limits_or_bounds(worlds: tuple[HerHarness, HerHarness]) -> None:
    alone, among = worlds
    for query in (
        "select count(*) from data",
        "select count(*), approx_count_distinct(word), max(id), min(id) from data",
        "select word, count(*) from data group by all order by 2 desc limit 3",
        "select count(*) from data where customer <> 'a' or customer is null",
        "select customer, count(*) from data where customer like 'c%' group by all",
        "select * from data limit 2 offset 1",
        "select count(*) from data using sample 3 rows",
        "select sum(length(repeat(word, number * 1000000 + 1))) from data where number > 12 or number < 0",
        "select no_such_column from data",
        "explain select max(word), count(*) from data where number > 3 or customer = 'c7' group by open",
        "explain analyze select count(*) from data where customer <> 'a'",
        "explain analyze select id from data where number > 3",
        "select view, kind from flowstate_views",
    ):
        assert outcomes(among, query) == outcomes(alone, query), query


def test_who_may_read_all_but_ask_for_hers_alone(harness: HerHarness) -> None:
    """Each way has rights of its own: what is served as SQL is chosen by those to SQL."""
    table = random_table(random.Random(8), 60)
    harness.load(table, ("customer",))
    grants = (Grant(frozenset({"read"})), Grant(frozenset({"sql"}), rows=ROWS["no key"]))
    served = ServedSql(harness.reader)
    statement = served.run("select count(*) as n from data", who=Principal("her", grants))
    assert [row for each in statement.batches() for row in each.to_pylist()] == [
        {"n": table.filter(ROWS["no key"]).num_rows}
    ]
    served.close()


def test_her_filter_is_never_left_out(harness: HerHarness) -> None:
    """A filter that no ticket can say is left out, since it is a help alone. Hers is none, also where the view has changed meanwhile."""
    harness.load_for(ROWS["a key"], random_table(random.Random(9), 40), ("number",))
    text = PartialQuery("select max(id) as m from __rows").to_text()
    partial = Partial(text, pa.schema([("m", pa.int64())]), answer_partial)
    before = harness.computed
    harness.reader.partial_reader("data", partial, ["id"], ROWS["what no ticket can say"]).read_all()
    assert harness.computed == before + COUNT
    of_another = ViewInfo("data", pa.schema([("customer", pa.large_string())]), "append")
    hers = RowFilter(ROWS["a key"], of_another).decoded(of_another)
    with pytest.raises(InvalidFlow, match="takes a column for another type"):
        harness.reader.partial_reader("data", partial, ["id"], hers)
    assert harness.computed == before + COUNT
    for also in (None, pc.field("id") > 3, ROWS["what no ticket can say"]):
        reader = RestrictedSplitReader(harness.reader, harness.somebody.who)
        assert isinstance(reader._chosen("data", also), DecodedFilter)
