"""What a query computes of key columns is kept, and gives what computing it anew gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tiered_sql import Harness, same

from flowstate.errors import InvalidFlow
from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.state.table import KeyedTable
from flowstate.view.directory import ViewInfo
from flowstate.view.rights import Grant, Principal
from flowstate_flight.partial import given_again
from flowstate_flight.ticket import Ticket
from flowstate_sql import partial
from flowstate_sql.key_values import MOST_SMALL, Held, KeyValues
from flowstate_sql.partial import PartialQuery

SPEC = TableSpec(
    "totals",
    (pa.field("customer", pa.string()), pa.field("number", pa.int64())),
    None,
    (
        AggregateSpec(name="total", function="sum", input="amount", input_type=pa.int64(), result_type=pa.int64()),
        AggregateSpec(name="events", function="len", input=None, input_type=None, result_type=pa.int64()),
    ),
)
KEYS = ("customer", "number")
QUERIES = [
    "select left(customer, 3) as g, sum(total) as s, count(*) as n from __rows group by left(customer, 3)",
    "select customer as c, number % 3 as r, max(total) as m, count_if(number > 50) as n from __rows group by customer, number % 3",
    "select upper(customer) || '!' as u, sum(events) as s from __rows where number <> 7 group by upper(customer) || '!'",
    "select max(length(customer) + number) as m, min(total) as t from __rows where customer is not null",
    "select case when number > 5 then customer else 'x' end as c, max(events + number) as m from __rows "
    "group by case when number > 5 then customer else 'x' end",
    "select number / 2.0 as f, number > 5 as b, count(*) as n from __rows group by number / 2.0, number > 5",
]


@pytest.fixture(scope="module")
def engine() -> partial._Engine:
    return partial._Engine("UTC")


def values_of(engine: partial._Engine, most: int = 1 << 20) -> tuple[KeyValues, Held]:
    held = Held(most)
    return KeyValues(engine.cursor, engine.readings, held, "UTC"), held


def rows(chance: random.Random, count: int, of: int) -> pa.RecordBatch:
    customers = [None if chance.random() < 0.1 else f"c{chance.randrange(of)}-ü" for _ in range(count)]
    numbers = [None if chance.random() < 0.1 else chance.randrange(100) for _ in range(count)]
    amounts = [chance.randrange(-50, 50) for _ in range(count)]
    return pa.record_batch(
        {"customer": pa.array(customers, pa.string()), "number": pa.array(numbers, pa.int64()), "amount": amounts}
    )


def run(
    engine: partial._Engine, values: KeyValues, sql: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema
) -> tuple[bool, list[tuple[object, ...]]]:
    """Whether it was taken apart, and what came of it."""
    taken, read, given = values.taken(sql, schema, KEYS, batches)
    with engine.readings.of(read) as reading:
        found = partial.compute(reading, given, PartialQuery(taken))
    return taken != sql, [tuple(row.values()) for row in found.to_pylist()]


def plainly(whole: pa.Table, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect() as plain:
        plain.register("__rows", whole)
        return [tuple(row.values()) for row in plain.sql(sql).to_arrow_table().to_pylist()]


@pytest.mark.parametrize("sql", QUERIES)
def test_kept_values_give_what_computing_gives_while_keys_come(engine: partial._Engine, sql: str) -> None:
    chance = random.Random(5)
    table = KeyedTable(SPEC, seed=1, chunk_rows=256)
    values, held = values_of(engine)
    kept = []
    for number in range(8):
        if number not in (4, 5):
            table.apply(rows(chance, 300, 20 if number < 5 else 200))
        view = table.view()
        whole = pa.Table.from_batches(list(view.batches()))
        wanted = plainly(whole, sql)
        apart, got = run(engine, values, sql, view.batches(), whole.schema)
        assert apart is (number > 0)
        assert same(got, wanted)
        kept.append(held.nbytes)
        view.release()
    assert (
        kept[0] == 0 < kept[1] < kept[3] == kept[4] == kept[5] < kept[6]
    )  # nothing is computed again of keys that were there


def test_what_needs_no_values_of_keys_is_run_as_it_is(engine: partial._Engine) -> None:
    batch = pa.record_batch({"customer": ["a"], "number": [1], "total": [2]})
    values, held = values_of(engine)
    for sql in (
        "select count(*) from __rows",
        "select max(customer), number, sum(total) from __rows group by number",
        "select sum(total + number) from __rows",
        "select left(customer, 1) as a from __rows group by left(customer, 1) order by 1",
    ):
        for _ in range(3):
            apart, _ = run(engine, values, sql, iter([batch]), batch.schema)
            assert not apart, sql
    assert held.nbytes == 0


def test_more_values_than_may_be_kept_are_not_kept(engine: partial._Engine) -> None:
    batches = [pa.record_batch({"customer": [f"c{each}-{row}" for row in range(2000)]}) for each in range(4)]
    sql = "select left(customer, 2) as c, count(*) as n from __rows group by left(customer, 2)"
    values, held = values_of(engine, 40_000)
    took = [run(engine, values, sql, iter(batches), batches[0].schema) for _ in range(4)]
    assert [apart for apart, _ in took] == [False, True, False, False]
    assert all(same(found, took[0][1]) for _, found in took)
    assert 0 < held.nbytes <= 40_000


def test_small_pieces_are_run_as_they_are(engine: partial._Engine) -> None:
    batches = [pa.record_batch({"customer": [f"c{each}"]}) for each in range(MOST_SMALL + 1)]
    sql = "select left(customer, 2) as c, count(*) as n from __rows group by left(customer, 2)"
    values, _ = values_of(engine)
    few, all_of_them = batches[:3], batches
    took = [
        run(engine, values, sql, iter(each), batches[0].schema)[0] for each in (few, few, few, all_of_them, few, few)
    ]
    assert took == [False, True, True, True, False, False]
    other, _ = values_of(engine)
    assert [run(engine, other, sql, iter(batches), batches[0].schema)[0] for _ in range(3)] == [False, False, False]


def test_a_value_that_cannot_be_computed_is_left_to_the_condition() -> None:
    harness = Harness()
    table = pa.table(
        {"customer": ["1", "2", "x", "22"] * 50, "id": list(range(200)), "open": [True, True, False, True] * 50}
    )
    harness.load(table, ("customer",))
    try:
        for _ in range(5):
            assert harness.check(
                "select customer::int % 2 as c, count(*) from data where open or open is null group by all"
            )
    finally:
        harness.close()
        harness.service.close()


def test_nothing_is_kept_of_rows_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setattr(partial, "_held", held)
    monkeypatch.setattr(partial, "_engines", {})
    harness = Harness()
    harness.load(pa.table({"customer": ["a", "b"] * 20, "id": list(range(40))}), ("customer",))
    text = PartialQuery("select upper(customer) as c, count(*) as n from __rows group by upper(customer)").to_text()
    some = Principal("some", (Grant(rows=pc.field("customer") == "a"),))

    def ask(requests: object, **fields: object) -> int:
        ticket = Ticket("j", "data", 0, ("customer",), partial=text, **fields)  # type: ignore[arg-type]
        _, batches = requests.read(ticket)  # type: ignore[attr-defined]
        return sum(row["n"] for batch in batches for row in batch.to_pylist())

    try:
        requests = harness.service.requests
        for _ in range(3):
            ask(requests.seen_by(some))
            ask(requests, limit=1)
        assert held.nbytes == 0
        assert {ask(requests) for _ in range(3)} == {harness.partitions[0].tables["data"].num_rows}
        assert held.nbytes > 0 or harness.partitions[0].tables["data"].num_rows == 0
    finally:
        harness.close()
        harness.service.close()


def test_columns_of_a_window_are_made_by_each_scan() -> None:
    schema = pa.schema(
        [("customer", pa.string()), ("month", pa.date32()), ("month_end", pa.date32()), ("n", pa.int64())]
    )
    info = ViewInfo("v", schema, "keyed", ("customer", "month", "month_end"), ("customer",), "month")
    assert given_again(info, pa.schema([schema.field(each) for each in ("n", "month", "customer")])) == ["customer"]
    assert given_again(ViewInfo("v", schema, "append"), schema) == []


def test_from_several_threads_at_once(engine: partial._Engine) -> None:
    chance = random.Random(9)
    table = KeyedTable(SPEC, seed=1, chunk_rows=256)
    table.apply(rows(chance, 3000, 500))
    values, held = values_of(engine, 30_000)
    view = table.view()
    whole = pa.Table.from_batches(list(view.batches()))
    wanted = {sql: plainly(whole, sql) for sql in QUERIES}

    def ask(number: int) -> bool:
        sql = QUERIES[number % len(QUERIES)]
        try:
            return same(run(engine, values, sql, view.batches(), whole.schema)[1], wanted[sql])
        except InvalidFlow:
            return False

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(120)))
    assert held.nbytes <= 30_000
