"""However a query is answered, by owners, by parts computed in the partitions, or over all rows, it is plain DuckDB's answer."""

from __future__ import annotations

import datetime as dt
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from flight_memory import directory_of
from tiered_sql import COUNT, ROUTINGS, VALUES, Harness, random_table, same

from flowstate.errors import Behind, InvalidFlow
from flowstate.view.directory import Directory, LivePartition
from flowstate.view.freshness import Freshness
from flowstate.view.saved import Saved
from flowstate_flight import FlightReader
from flowstate_sql import Session, tiers
from flowstate_sql.partial import answer_partial
from flowstate_sql.split import SPLIT


@pytest.fixture(scope="module")
def shared() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()
    harness.service.close()


@pytest.fixture
def harness(shared: Harness) -> Harness:
    """For tests that only ask."""
    if not shared.standing:
        shared.load(random_table(random.Random(3), 60), ("customer",))
        shared.standing = True
    return shared


@pytest.fixture
def changing(shared: Harness) -> Iterator[Harness]:
    """For tests that change what is there."""
    shared.load(random_table(random.Random(3), 60), ("customer",))
    yield shared
    shared.service.set_partial_handler(shared.answer)


# random queries

GROUPS = [
    "customer", "number", "open", "day", "month", "total", "raw", "seen", "odd", "big", "data.customer", "Number", "number % 2",
    "upper(customer)", "date_trunc('month', month)", "total > 1", "coalesce(customer, '-')", "case when open then 'o' else day::text end",
    "number is null", "share between 0 and 1",
]  # fmt: skip
AGGREGATES = [
    "count(*)", "count(number)", "sum(number)", "sum(total)", "sum(large)", "sum(big)", "sum(share)", "sum(open::int)", "avg(total)",
    "avg(number)", "avg(share)", "min(customer)", "max(month)", "min(total)", "max(odd)", "bool_and(open)", "bit_xor(number)",
    "count_if(open)", "stddev(number)", "var_pop(share)", "sum(case when open then total end)", "max(raw)", "avg(seen)",
    "sum(number + small)",
    "count(*) filter (where open)", "sum(total) filter (where number > 0 and customer <> 'a')", "sum(data.total)",
    "max(total) - min(total)",
    "sum(share) / nullif(count(share), 0)", "coalesce(sum(price), 0)", "round(sum(total) * 1.5, 1)", "corr(number, share)",
    "approx_count_distinct(customer)", "count(distinct customer)", "list_sort(list(number))", "median(number)",
]  # fmt: skip
CONDITIONS = [
    "customer = 'a'", "customer in ('a', 'ü')", "customer is null", "customer = 'b' and number = 1", "month = '2026-02-01'", "total = 1.5",
    "total = 1.5 and day = '2026-01-01'", "big = 18446744073709551615", "not open", "open", "share > 0.2", "customer like '%a%'",
    "raw = 'a'::blob",
    "number + 1 = 2", "customer = 'a' or number = 2", "false", "number in (1, null)", "customer = 'a' or customer = 'c'",
    "customer > number::text",
    "month >= timestamptz '2026-02-01' and day is not null", "odd = 'nan'::double",
]  # fmt: skip


def random_query(chance: random.Random) -> str:
    groups = chance.sample(GROUPS, chance.choice([0, 0, 1, 1, 1, 2, 3]))
    named = [(each, f"g{at}" if chance.random() < 0.4 else None) for at, each in enumerate(groups)]
    aggregates = chance.sample(AGGREGATES, chance.randint(1, 3))
    select = [each + (f" as {alias}" if alias else "") for each, alias in named]
    select += [each + (f" as a{at}" if chance.random() < 0.5 else "") for at, each in enumerate(aggregates)]
    query = f"select {', '.join(select)} from data"
    if chance.random() < 0.6:
        conditions = chance.sample(CONDITIONS, chance.randint(1, 2))
        query += " where " + chance.choice([" and ", " or "]).join(f"({each})" for each in conditions)
    if groups:
        how = chance.randint(0, 3)
        by = [
            str(at) if how == 1 else alias if how == 2 and alias else each for at, (each, alias) in enumerate(named, 1)
        ]
        query += " group by all" if how == 0 else " group by " + ", ".join(by)
    if chance.random() < 0.3:
        query += chance.choice(
            [
                " having count(*) > 1",
                " having sum(total) > 1 or max(number) < 2",
                f" having {aggregates[0]} is not null",
            ]
        )
    if chance.random() < 0.4 and groups:
        order = [str(at) for at in range(1, len(groups) + 1)]
        if chance.random() < 0.5:
            order = ["count(*) desc", *order]
        query += " order by " + ("all" if chance.random() < 0.2 else ", ".join(order))
        if chance.random() < 0.6:
            query += f" limit {chance.randint(1, 5)}" + chance.choice(["", " offset 1"])
    return query


@pytest.mark.parametrize("seed", range(12))
def test_every_tier_gives_the_answer_of_plain_duckdb(shared: Harness, seed: int) -> None:
    chance = random.Random(seed)
    shared.load(random_table(chance, chance.choice([0, 1, 9, 40])), chance.choice(ROUTINGS))
    in_parts = sum(shared.check(random_query(chance)) for _ in range(26))
    assert 10 <= in_parts < 26  # both ways were taken


# functions one by one


@pytest.mark.parametrize("function", sorted(SPLIT))
def test_a_function_that_is_split(harness: Harness, function: str) -> None:
    if function == "count_star":
        calls = ["count(*)", "count()"]
    elif function.startswith(("arg", "min_by", "max_by")):
        calls = [f"{function}({name}, id)" for name in VALUES]  # by what is in one row alone
    else:
        calls = [f"{function}({name})" for name in VALUES]
        calls += [
            f"{function}({one}, {two})" for one, two in [("number", "share"), ("total", "large"), ("short", "big")]
        ]
    calls = [each for each in calls if takes(harness, each)]
    assert calls
    whole = ", ".join(calls)
    named = ", ".join(f"{call} as x{at}" for at, call in enumerate(calls))
    assert harness.check(f"select {whole} from data")
    assert harness.check(f"select open, {named} from data where number >= 0 group by open")
    assert harness.check(f"select {whole} from data where id > 99")


def takes(harness: Harness, call: str) -> bool:
    """Whether there is such a function of these types, and it has a value."""
    try:
        harness.plain.sql(f"select {call} from data").fetchall()
        return True
    except duckdb.Error:
        return False


# what is not split, and what is


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("select count(distinct customer) from data", "count is over DISTINCT values"),
        ("select list(number order by id) from data", "list is over ordered values"),
        ("select median(number), sum(total) from data", "median needs all values at once"),
        ("select max(number, 2) from data", "max is called in another way"),
        ("select sum(number) over () from data", "it has a window function"),
        ("select sum(number) from data where number > (select min(number) from data)", "it has a query within"),
        ("select sum(a.number) from data a join data b using (id)", "it does not read one view alone"),
        ("with d as (from data) select sum(number) from d", "it does not read one view alone"),
        ("select sum(number) from data union all select 1", "it is more than one SELECT"),
        ("select distinct count(*) from data group by customer", "it has DISTINCT"),
        ("select customer, count(*) from data group by rollup (customer)", "it has grouping sets"),
        ("select customer from data where number = 1", "it has no aggregate"),
        ("select id, customer as c, sum(total) from data group by c, 1", "each of its groups is a row of the view"),
        ("select count(*) from data where month < now()", "now is not computed in parts"),
        ("select count(*) from data where day < current_date", "current_date is no column of the view"),
        (
            "select count(*) from data where seen < current_localtimestamp()",
            "current_localtimestamp is not computed in parts",
        ),
        ("select count(*) from data where age(month) > interval 1 day", "age is not computed in parts"),
        ("select count(*) as n from data where random() < 2", "random is not computed in parts"),
        ("select count(*) from data using sample 100%", "it has USING SAMPLE"),
        ("select 7 as seven, count(*) from data group by seven", "it groups by a constant"),
        ("select sum(number) as n, n + 1 as m from data", "n is no column of the view"),
        ("select count(x) from data as d(x)", "it does not read the view as it is"),
        ("select count(*) from data qualify count(*) over () > 0", "it has QUALIFY"),
    ],
)
def test_what_is_not_split_says_why(harness: Harness, query: str, reason: str) -> None:
    told = harness.told(f"explain {query}")
    assert told[0].startswith("tier 3")
    assert told[-1] == f"not computed in parts: {reason}"
    try:
        harness.plain.sql(query)
    except duckdb.Error:  # as wrong in parts as in full
        with pytest.raises(InvalidFlow):
            harness.session.sql(query)
    else:
        if "median" not in query and "sample" not in query:
            assert not harness.check(query)


@pytest.mark.parametrize(
    ("query", "params"),
    [
        (
            "select upper(customer) as name, sum(total) as total from data d group by name order by total desc, name limit 2",
            None,
        ),
        (
            "select customer, sum(total) as number from data group by customer having sum(number) > -100 order by number, customer",
            None,
        ),
        ("select DATA.customer as who, count(*) n from Data group by WHO having n > 1 order by n, who", None),
        ("from data select max(id)", None),
        ("select left(customer, 1) as c, count(*), max(id) from data group by all order by all", None),
        ("select number, sum(id) as id from data group by number order by all desc nulls last limit 2", None),
        ("select customer from data group by customer", None),
        ("select open, count(*) from data group by open order by count(*) desc, sum(id) nulls first", None),
        (
            "select number + $1 as n, sum(id * $2) from data where id > $3 group by number + $1 having count(*) > $4 limit $5",
            [1, 2, 3, 0, 99],
        ),
        (
            "select open, sum(total * $rate) from data where customer = $who group by open",
            {"rate": Decimal("1.5"), "who": "a"},
        ),
        (f"select sum(id + {'1 + ' * 20}1) from data", None),
        ("select count(*) from data where month = ? and raw = ?", [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), b"a"]),
    ],
)
def test_forms_that_are_split(harness: Harness, query: str, params: Any) -> None:
    assert harness.check(query, params)
    assert harness.check(query, params)  # by the plan that is kept


def test_the_owner_alone_computes_and_is_told(harness: Harness) -> None:
    query = "select sum(total), count(*) from data where customer = $1"
    assert harness.check(query, ["a"])
    (part,) = harness.session.last_answers["data"].parts
    told = harness.told(f"EXPLAIN {query}", ["a"])
    assert told[0].startswith("tier 2")
    assert told[1].startswith(
        f"view data: asks 1 of 3 partitions [{part.partition}]; columns: customer, total; filter: (customer == "
    )
    assert "FROM __rows WHERE (customer = $1)" in told[2]
    told = harness.told("explain select id from data where customer in ('a', 'b') and id > 3")
    assert told[0].startswith("tier 1")
    assert "asks 3 of 3 partitions" in harness.told("explain select sum(id) from data")[1]
    told = harness.told("explain analyze select sum(id) from data")
    assert told[-2].startswith("ran: 1 rows in ")
    assert told[-1] == "view data: 3 partitions answered"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("explain drop table data", "explain a SELECT"),
        ("explain (format json) select 1", "without options"),
        ("explain select 1; select 2", "one SELECT at a time"),
        ("explain select sum(idd) from data", '"idd" not found'),
        ("explain select * from dat", "no view 'dat'"),
    ],
)
def test_what_is_not_explained(harness: Harness, query: str, message: str) -> None:
    with pytest.raises(InvalidFlow, match=message):
        harness.session.sql(query)


def test_a_relation_is_computed_anew_each_time(changing: Harness) -> None:
    relation = changing.session.sql("select count(*) as n from data")
    assert relation.fetchall() == [(60,)]
    for each in changing.partitions:
        each.tables["data"] = each.tables["data"].slice(0, 1)
    assert relation.filter("n > 0").fetchall() == [(COUNT,)]


def test_a_query_that_is_nested_deeply_is_computed_in_full(harness: Harness) -> None:
    query = f"select sum(id + {'1 + ' * 250}1) from data"
    assert not harness.check(query)
    assert harness.told(f"explain {query}")[-1] == "not computed in parts: it is nested deeply"


# parts that are nearly as many as rows


def test_parts_that_are_nearly_as_many_as_rows_are_rows_the_next_time(
    changing: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "FEW_GROUPS", 10)
    monkeypatch.setattr(tiers, "MANY_FOR", 3)
    query = "select id % $1 as g, sum(total) as total, avg(number) from data group by g order by g limit 7"
    assert changing.check(query, [40])
    told = changing.told(f"explain {query}", [40])
    assert told[0].startswith("tier 3")
    (groups,) = re.findall(r"it made (\d+) groups of 60 rows when it was computed in parts last", told[-1])
    assert int(groups) > 30  # 40 of all, and of each partition those that it has rows of
    assert not changing.check(query, [40])
    assert not changing.check(query, [2])  # by the parts, whatever is asked
    assert changing.check(query, [2])  # tried again
    assert changing.check(query, [2])  # and worth its while


def test_many_groups_of_many_more_rows_stay_parts(changing: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "FEW_GROUPS", 2)
    for query in ("select id % 5 as g, count(*) from data group by g", "select sum(id) from data"):
        assert changing.check(query)
        assert changing.check(query)


# how fresh


def test_a_cut_is_one_over_all_parts(changing: Harness) -> None:
    for each in changing.partitions:
        each.cuts[5] = {"data": each.tables["data"].slice(0, 2)}
    with Session(changing.reader, Freshness(cut=5)) as session:
        before = changing.computed
        assert session.sql("select count(*) from data").fetchall() == [(2 * COUNT,)]
        assert changing.computed == before + COUNT
        assert session.last_answers["data"].consistent


def test_parts_wait_for_the_position_that_is_asked_for(harness: Harness) -> None:
    with FlightReader(harness.service.location, grace=0.1, patience=0.5) as reader, Session(reader) as session:
        query = "select sum(id) from data"
        assert session.sql(query, at_least={"events-0": (100, 0)}).fetchall() == [(sum(range(60)),)]
        with pytest.raises((duckdb.Error, Behind), match="events-0"):
            session.sql(query, at_least={"events-0": (1000, 0)}).fetchall()


class Kept:
    """The saved states of a job that has just saved."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    def announced(self) -> Directory | None:
        return None

    def directory(self) -> Directory:
        return directory_of("j", {"data": self.harness.info}, [None] * COUNT, 0)

    def find(self, partition: int, view: str, oldest: float) -> Saved:
        return Saved(self.harness.partitions[partition], 1e12, None, COUNT)

    def snapshot(self, number: int) -> tuple[Directory, Mapping[int, LivePartition]]:
        return self.directory(), dict(enumerate(self.harness.partitions))

    def close(self) -> None:
        pass


def test_what_a_partition_saved_is_computed_here(shared: Harness) -> None:
    shared.load(random_table(random.Random(5), 40), ("customer",), Kept(shared))
    query = "select open, sum(total), avg(number), stddev(id) from data where id > 3 group by open"
    assert shared.check(query)
    shared.service.unregister("j", 1)
    shared.version += 1
    shared.place([shared.service.location, None, shared.service.location])
    before = shared.computed
    assert same(shared.session.sql(query).fetchall(), shared.plain.sql(query).fetchall())
    assert shared.computed == before + COUNT - 1
    keyed = "select id, total from data where customer = $1 and id > 3"
    wanted = [shared.plain.sql(keyed, params=[each]).fetchall() for each in ("a", "b", "c", "ü")]
    assert all(
        same(shared.session.sql(keyed, [each]).fetchall(), rows) for each, rows in zip("abcü", wanted, strict=True)
    )
    with Session(shared.reader, Freshness(snapshot=7)) as session:
        assert same(session.sql(query).fetchall(), shared.plain.sql(query).fetchall())
        assert all(same(session.sql(keyed, [each]).fetchall(), rows) for each, rows in zip("abcü", wanted, strict=True))
    assert shared.computed == before + COUNT - 1


# partitions that do not compute


def test_rows_are_asked_for_where_nobody_computes(changing: Harness) -> None:
    changing.service.set_partial_handler(None)
    assert not changing.check("select open, sum(total), avg(number) from data where customer <> 'a' group by open")
    assert len(changing.session.last_answers["data"].parts) == COUNT


def test_another_version_of_the_engine_does_not_compute(changing: Harness) -> None:
    def other(schema: pa.Schema, batches: Iterator[pa.RecordBatch], text: str, keys: Sequence[str]) -> Any:
        return answer_partial(schema, batches, json.dumps({**json.loads(text), "engine": "duckdb 1.0"}), keys)

    changing.service.set_partial_handler(other)
    assert not changing.check("select stddev(number) from data")


def test_an_error_of_a_value_is_that_of_the_query(harness: Harness) -> None:
    with pytest.raises(duckdb.Error, match="Could not convert string"):
        harness.session.sql("select sum(customer::int) from data").fetchall()


def test_rows_of_a_view_are_never_mixed_with_the_names_of_parts(shared: Harness) -> None:
    table = pa.table({"__g0": ["a", "b", "a"], "__a0": [1, 2, 3], "__n": [7, 7, 8], "id": [1, 2, 3]})
    shared.load(table, ())
    for query in (
        "select __a0 as __g0, sum(id) as __a0 from data group by __a0",
        "select __g0, sum(__a0) from data group by __g0",
        "select __n, sum(__n) as __n from data where __n > 6 group by __n",
    ):
        assert shared.check(query)
