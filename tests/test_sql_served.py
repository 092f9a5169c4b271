"""SQL for others: the same answers as plain DuckDB, what a query is said to give, limits, cancellation, and rights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_tables import TABLES, ordered
from served_sql import ALL_TABLES, COUNT, ENDLESS, WIDE, Served, served, table_of

from flowstate.clock import SystemClock
from flowstate.errors import Behind, FlowstateError, InvalidFlow, Unavailable, did_you_mean
from flowstate.view.freshness import checked
from flowstate.view.rights import Grant, Principal
from flowstate_sql.limits import Limits
from flowstate_sql.system import SCHEMAS

QUERIES = [
    "from subtotals",
    "select customer, total from subtotals where customer = 'customer-3' and kind = 'b'",
    "select kind, sum(total), count(*), max(month), avg(events) from subtotals group by kind",
    "select kind, sum(total) s from subtotals group by all having s > 3 order by s desc limit 1",
    "select a.customer, b.reason from subtotals a join subtotals_late b on a.events = b.offset",
    "with x as (select customer, sum(events) e from subtotals group by 1) select max(e), min(customer) from x",
    "select customer, row_number() over (partition by kind order by events, month) from subtotals",
    "select distinct kind, month from subtotals qualify dense_rank() over (order by kind) = 1",
    "select list(events order by events) l, {'a': max(kind)} s, map([1], [2]) m, null n, 1.5 d from subtotals",
    "select 1 as a, 2 as a, 'x'::blob b, interval 1 day i, current_date is not null c",
    "select * from subtotals where total > (select avg(total) from subtotals) and month < timestamptz '2026-02-01'",
    "values (1, 'a'), (2, null)",
]


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    with served() as here:
        yield here


def plainly(query: str, params: Any = None, tables: Any = ALL_TABLES) -> pa.Table:
    with duckdb.connect() as plain:
        plain.execute("set TimeZone = 'UTC'")
        for name, table in tables.items():
            plain.register(name, table)
        return plain.sql(query, params=params).to_arrow_table()


def soon(true: Callable[[], bool]) -> None:
    clock, pause = SystemClock(), threading.Event()
    until = clock.monotonic() + 20
    while not true():
        assert clock.monotonic() < until
        pause.wait(0.01)


@pytest.mark.parametrize("query", QUERIES)
def test_the_same_as_plain_duckdb_and_as_described(here: Served, query: str) -> None:
    before = here.scans()
    described = here.sql.describe(query)
    assert here.scans() == before, "describing read rows"
    statement = here.sql.run(query)
    assert statement.schema == described.schema
    got, wanted = table_of(statement), plainly(query)
    assert got.schema.names == wanted.schema.names
    unnamed = [str(each) for each in range(got.num_columns)]
    assert ordered(got.rename_columns(unnamed)) == ordered(wanted.rename_columns(unnamed))
    assert len(described.parameters) == 0


def test_parameters(here: Served) -> None:
    query = "select customer, events from subtotals where customer = $1 and events between $2 and $3"
    wanted = ordered(plainly(query, ["customer-3", 1, 9]))
    assert len(wanted) == 2
    assert ordered(table_of(here.sql.run(query, ["customer-3", 1, 9]))) == wanted
    assert (
        ordered(
            table_of(here.sql.run(query.replace("$1", "?").replace("$2", "?").replace("$3", "?"), ["customer-3", 1, 9]))
        )
        == wanted
    )
    named = query.replace("$1", "$who").replace("$2", "$low").replace("$3", "$high")
    assert ordered(table_of(here.sql.run(named, {"who": "customer-3", "low": 1, "high": 9}))) == wanted
    assert here.sql.describe(named).parameters.names == ["who", "low", "high"]
    with pytest.raises(InvalidFlow, match="parameters"):
        here.sql.run(query, ["customer-3"])
    with pytest.raises(InvalidFlow, match="parameters"):
        here.sql.run(query)
    with pytest.raises(InvalidFlow, match="Could not convert"):
        here.sql.run("select events + $1::int from subtotals", ["no number"])


@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("from subtotals where customer = $1 and events > $2", [pa.string(), pa.int64()]),
        ("from subtotals where total >= $1 and month = $2", [pa.decimal128(12, 2), pa.timestamp("ms", "UTC")]),
        ("from subtotals s where s.kind in ($1, $2) and $3 < s.events", [pa.string(), pa.string(), pa.int64()]),
        ("from subtotals where month between $1 and $2", [pa.timestamp("ms", "UTC")] * 2),
        ("select $1::date, cast($2 as decimal(10, 3))", [pa.date32(), pa.decimal128(10, 3)]),
        ("from subtotals where customer like $1 limit $2 offset $3", [pa.string(), pa.int64(), pa.int64()]),
        ("select customer from subtotals group by 1 having sum(total) > $1 and count(*) > $2", [pa.decimal128(38, 2), pa.int64()]),
        ("select events * $1, strftime(month, $2), $3 from subtotals", [pa.int64(), pa.string(), pa.string()]),
        ("select case when events = $1 then 'a' else $2 end from subtotals", [pa.int64(), pa.string()]),
    ],
)  # fmt: skip
def test_types_of_parameters(here: Served, query: str, kinds: list[pa.DataType]) -> None:
    found = here.sql.describe(query).parameters
    assert found.names == [f"${each}" for each in range(1, len(kinds) + 1)]
    assert found.types == kinds


def test_values_decide_what_a_query_gives(here: Served) -> None:
    assert here.sql.describe("select $1 as x", [1]).schema.types == [pa.int32()]
    assert here.sql.describe("select $1 as x", ["a"]).schema.types == [pa.string()]
    assert here.sql.describe("select $1 as x", ["a"]).parameters.types == [pa.string()]


def test_large_results_come_in_pieces(here: Served) -> None:
    statement = here.sql.run("from wide")
    sizes = [(each.num_rows, each.nbytes) for each in statement.batches()]
    assert sum(rows for rows, _ in sizes) == WIDE.num_rows
    assert len(sizes) > 3
    assert max(size for _, size in sizes) <= 5 << 20
    (one,) = list(here.sql.run("select string_agg(text, '') from wide").batches())
    assert one.num_rows == 1


def test_answers_tell_how_fresh_they_are(here: Served) -> None:
    statement = here.sql.run("select count(*) from subtotals")
    list(statement.batches())
    assert len(statement.answers["subtotals"].parts) == COUNT
    assert not statement.answers["subtotals"].consistent
    statement = here.sql.run("select sum(events) from subtotals", fresh=checked(consistent=True))
    list(statement.batches())
    assert statement.answers["subtotals"].consistent
    with pytest.raises(Behind, match="not come as far"):
        here.sql.run("from subtotals", fresh=checked(at_least={"events-0": 10_000}), timeout=20)
    assert here.rows("select count(*) n from subtotals", fresh=checked(at_least={"events-0": 100})) == [{"n": 122}]


def test_what_goes_wrong_is_told_at_once_and_as_what_it_is(here: Served) -> None:
    for query, message in [
        ("select kind::int from subtotals", "Could not convert string"),
        ("select totl from subtotals", 'Referenced column "totl" not found'),
        ("selec 1", "syntax error"),
        ("from nothing", "there is no view 'nothing'"),
        ("select 1; select 2", "one SELECT at a time statements=2"),
        (" ", "one SELECT at a time statements=0"),
        ("delete from subtotals", "read only"),
        ("explain delete from subtotals", "read only|SELECT"),
        ("select 1\0", "without null characters"),
        ("select '\ud800'", "UTF-8"),
        ("select " + "1, " * 200_000 + "1", "not too long"),
    ]:
        with pytest.raises(InvalidFlow, match=message):
            here.sql.run(query)
    with pytest.raises(InvalidFlow, match="a query is text"):
        here.sql.run(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidFlow, match="positive number of seconds"):
        here.sql.run("select 1", timeout=0)
    here.partitions[2].loading = True
    try:
        with pytest.raises(Unavailable, match="did not answer in time") as refused:
            here.sql.run("from subtotals")
        assert refused.value.facts["partition"] == 2
    finally:
        here.partitions[2].loading = False
    assert here.rows("select count(*) n from subtotals") == [{"n": 122}]


def test_limits() -> None:
    with served(Limits(rows=1000, memory=60 << 20, at_once=2, each=1, wait=0.1)) as here:
        statement = here.sql.run("from wide")
        with pytest.raises(Unavailable, match="more rows than it may") as refused:
            list(statement.batches())
        assert refused.value.facts["limit_rows"] == 1000
        assert len(here.rows("from wide limit 1000")) == 1000
        with pytest.raises(Unavailable, match="more memory than it may") as refused:
            here.rows("select count(*) from (select distinct hash(range), range from range(30000000))")
        assert refused.value.facts["limit_bytes"] == 60 << 20
        with pytest.raises(Unavailable, match="longer than its timeout") as refused:
            here.rows(ENDLESS, timeout=0.2)
        assert refused.value.facts["limit_seconds"] == 0.2
        soon(lambda: here.sql._slots.taken() == 0)
        with ThreadPoolExecutor(1) as other:
            running = other.submit(here.rows, ENDLESS, timeout=15)
            soon(lambda: here.sql._slots.taken() == 1 and not running.done())
            with pytest.raises(Unavailable, match="too many statements") as refused:
                here.sql.run("select 1")
            assert refused.value.facts["limit_each"] == 1
            assert here.sql.run("select 1", who=Principal("bob")).schema.names == ["1"]
            here.sql.close()
            with pytest.raises(Unavailable, match="cancelled"):
                running.result(20)
        with pytest.raises(Unavailable, match="no SQL is served here any more"):
            here.sql.run("select 1")
    with served(Limits(seconds=0.2)) as here, pytest.raises(Unavailable, match="longer than it may"):
        here.rows(ENDLESS, timeout=100)
    with pytest.raises(InvalidFlow, match="the limit rows is a positive number"):
        Limits(rows=0)


def test_cancelled_from_another_thread(here: Served) -> None:
    gone = threading.Event()
    with ThreadPoolExecutor(2) as others:
        one = others.submit(here.rows, ENDLESS, cancelled=gone.is_set)
        two = others.submit(here.sql.describe, "from subtotals")
        assert two.result(20).schema.names[0] == "customer"
        soon(lambda: here.sql._slots.taken() == 1)
        gone.set()
        with pytest.raises(Unavailable, match="cancelled"):
            one.result(20)
        soon(lambda: here.sql._slots.taken() == 0)

        statement = here.sql.run("from wide")
        batches = statement.batches()
        assert next(batches).num_rows > 0
        others.submit(statement.cancel).result(20)
        statement.cancel()
        with pytest.raises(Unavailable, match="cancelled"):
            list(batches)
        soon(lambda: here.sql._slots.taken() == 0)

    statement = here.sql.run("select 1 as one")
    assert table_of(statement).to_pylist() == [{"one": 1}]
    statement.cancel()
    assert table_of(here.sql.run("select 2 as two")).to_pylist() == [{"two": 2}]

    def broken() -> bool:
        raise RuntimeError("nobody is there")

    with pytest.raises(Unavailable, match="cancelled"):
        here.rows(ENDLESS, cancelled=broken)


def test_one_who_has_gone_keeps_nothing(here: Served) -> None:
    statement = here.sql.run("from wide")
    next(statement.batches())  # and the iterator is gone
    soon(lambda: here.sql._slots.taken() == 0)
    statement = here.sql.run("from wide", timeout=0.3)  # and nobody asks
    soon(lambda: here.sql._slots.taken() == 0)
    with pytest.raises(Unavailable, match="longer than its timeout"):
        list(statement.batches())


def test_many_at_once(here: Served) -> None:
    def ask(number: int) -> bool:
        query = f"select count(*) n, sum(events) s from subtotals where events < $1 -- {number % 7}"
        found = here.rows(query, [number], who=Principal(f"user-{number % 3}") if number % 2 else ANNA)
        return bool(found)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(1, 60)))
    soon(lambda: here.sql._slots.taken() == 0)


ANNA = Principal("anna", (Grant(frozenset(["sql"]), frozenset(["subtotals"]), pc.field("customer") == "customer-3"),))
HERS = TABLES["subtotals"].filter(pc.field("customer") == "customer-3")


@pytest.mark.parametrize(
    "query",
    [
        "from subtotals",
        "select count(*), sum(total), min(customer) from subtotals",
        "select kind, sum(total) from subtotals group by kind",
        "select * from subtotals where customer = 'customer-3' and kind = 'b'",
        "select * from subtotals where customer = 'customer-4' and kind = 'a'",
        "select * from subtotals where customer <> 'customer-3'",
        "select * from subtotals where customer is null",
        "select * from subtotals where customer = 'customer-4' or events > 0",
        "select a.customer, b.customer from subtotals a join subtotals b on a.month = b.month",
        "select count(*) from subtotals where total / (events - 4) > 0",
        "select (select max(events) from subtotals), exists (from subtotals where customer = 'customer-5')",
        "with x as (from subtotals) select customer, count(*) from x group by 1",
        "summarize subtotals",
        "select count(distinct customer), approx_count_distinct(customer), max(events) from subtotals",
        "select 1 from subtotals limit 5",
    ],
)
def test_a_principal_sees_her_rows_alone(here: Served, query: str) -> None:
    got = table_of(here.sql.run(query, who=ANNA))
    wanted = plainly(query, tables={"subtotals": HERS})
    assert ordered(got) == ordered(wanted)
    assert here.sql.describe(query, who=ANNA).schema == got.schema


def test_what_is_not_there_for_a_principal_is_not_there(here: Served) -> None:
    def refusal(query: str, **how: Any) -> str:
        with pytest.raises(InvalidFlow) as refused:
            here.rows(query, who=ANNA, **how)
        return str(refused.value)

    hers = ["subtotals", *(each for each in SCHEMAS if each != "flowstate_sinks")]
    for query in (
        "from {}",
        "from {} a, {} b",
        "describe {}",
        "from {} at (snapshot => 2)",
        "explain from {}",
        "from main.{}",
    ):
        for hidden in ("wide", "dead_letters", "subtotals_late", "flowstate_sinks", "there_is_none"):
            told = f"there is no view {hidden!r}{did_you_mean(hidden, hers)}"
            assert refusal(query.format(hidden, hidden)) == told
        with pytest.raises(InvalidFlow, match="there is no view 'wide'"):
            here.sql.describe(query.format("wide", "wide"), who=ANNA)
    seen = {each["name"] for each in here.rows("show tables", who=ANNA)}
    assert "subtotals" in seen
    assert seen.isdisjoint(["wide", "dead_letters", "subtotals_late", "flowstate_sinks"])
    listed = "select distinct table_name from information_schema.columns"
    assert {each["table_name"] for each in here.rows(listed, who=ANNA)} == seen
    assert {each["view"] for each in here.rows("from flowstate_views", who=ANNA)} == {"subtotals"}
    assert len(here.rows("from subtotals at (snapshot => 2)", who=ANNA)) < len(
        here.rows("from subtotals at (snapshot => 2)")
    )
    lines = [each["explanation"] for each in here.rows("explain select sum(total) from subtotals", who=ANNA)]
    assert lines[0].startswith("tier 2")
    assert not any("customer" in each for each in lines)  # nothing of the condition on her rows
    reading = Principal("reader", (Grant(frozenset(["read"])),))
    with pytest.raises(InvalidFlow, match="no right to SQL"):
        here.sql.run("select 1", who=reading)
    with pytest.raises(InvalidFlow, match="no right to SQL"):
        here.sql.describe("select 1", who=reading)


def test_two_of_one_name_do_not_share_rights(here: Served) -> None:
    other = Principal("anna", (Grant(frozenset(["sql"]), frozenset(["wide"])),))
    query = "select count(*) n from subtotals"
    assert here.rows(query, who=ANNA) == [{"n": 2}]
    with pytest.raises(InvalidFlow, match="there is no view 'subtotals'"):
        here.rows(query, who=other)
    assert here.rows(query, who=ANNA) == [{"n": 2}]
    assert here.rows("select count(*) n from wide", who=other) == [{"n": WIDE.num_rows}]


def test_a_view_as_it_was(here: Served) -> None:
    for moment in ("at (snapshot => 2)", "AT (VERSION => 2)", "at  ( SnapShot\n=> 2)"):
        assert here.rows(f"select count(*) n from subtotals {moment}") == [{"n": 10}]
    mixed = (
        "select 'é' e, (select count(*) from subtotals) now, (select count(*) from subtotals at (snapshot => 2)) two, "
        "(select count(*) from subtotals x at (snapshot => 1)) one"
    )
    assert here.rows(mixed) == [{"e": "é", "now": 122, "two": 10, "one": 0}]
    joined = (
        "select count(*) n from subtotals join subtotals as old(c, k) at (snapshot => 2) "
        "on subtotals.customer = old.c and subtotals.month = old.month where subtotals.total = old.total"
    )
    assert here.rows(joined) == [{"n": 10}]
    named = here.rows(
        "select subtotals.kind k from subtotals at (snapshot => 2) where subtotals.customer = $1", ["customer-3"]
    )
    assert named == [{"k": "b"}] * 2
    summed = "select kind, sum(total) s from subtotals {} group by kind order by kind"
    wanted = plainly(summed.format(""), tables={"subtotals": TABLES["subtotals"].slice(0, 10)}).to_pylist()
    assert here.rows(summed.format("at (snapshot => 2)")) == wanted
    assert here.sql.describe(summed.format("at (snapshot => 2)")).schema.names == ["kind", "s"]
    assert here.rows("select snapshot from (select 'at (snapshot => 2)' as snapshot)") == [
        {"snapshot": "at (snapshot => 2)"}
    ]
    statement = here.sql.run("from subtotals at (snapshot => 2)")
    list(statement.batches())
    assert list(statement.answers) == ["subtotals AT (SNAPSHOT => 2)"]
    for query, message in [
        ("from subtotals at (snapshot => 9)", "there is no such cut.*cuts="),
        ("from subtotals at (snapshot => -1)", "with the number of a saved snapshot"),
        ("from subtotals at (timestamp => now())", "with the number of a saved snapshot"),
        ("from subtotals at (version => $1)", "with the number of a saved snapshot"),
        ("with x as (select 1) from x at (snapshot => 1)", "only a view has snapshots"),
        ("from subtotals at (snapshot => 2) tablesample 10%", "a sample of a snapshot"),
        ("from flowstate_views at (snapshot => 2)", "tells of the present"),
    ]:  # fmt: skip
        with pytest.raises(InvalidFlow, match=message):
            here.rows(query, [1] if "$1" in query else None)


def test_a_view_that_came_later_is_found(here: Served) -> None:
    """And a query that was refused before is read again."""
    with pytest.raises(FlowstateError, match="no view 'newer'"):
        here.rows("select count(*) n from newer")
    with served() as other:
        views = {**other.reader.directory().views}
        views["newer"] = views["subtotals"].__class__("newer", views["subtotals"].schema, "append")
        with pytest.raises(InvalidFlow, match="no view 'newer'"):
            other.rows("select count(*) n from newer")
        directory = other.reader.directory()
        other.service.set_directory(
            directory.__class__(
                "billing", directory.version + 1, directory.seed, directory.key_groups, views, directory.partitions
            )
        )
        for each in other.partitions:
            each.tables["newer"] = each.tables["subtotals"]
        assert other.rows("select count(*) n from newer") == [{"n": 122}]
