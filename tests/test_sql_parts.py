"""What a partition computes of a query, for whom, within what bounds, and what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import flight
from tiered_sql import Harness, random_table

from flowstate.errors import InvalidFlow, Unavailable
from flowstate.view.rights import Grant, Principal
from flowstate_flight.ticket import Ticket
from flowstate_sql import partial, reading
from flowstate_sql.locked import LOCKED
from flowstate_sql.partial import PartialQuery, answer_partial


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    harness = Harness()
    harness.load(random_table(random.Random(3), 60), ("customer",))
    yield harness
    harness.close()
    harness.service.close()


def asked(harness: Harness, text: str, who: Principal | None = None) -> pa.Table:
    ticket = Ticket("j", "data", 0, ("id",), partial=text)
    requests = harness.service.requests if who is None else harness.service.requests.seen_by(who)
    schema, batches = requests.read(ticket)
    return pa.Table.from_batches(batches, schema.remove_metadata())


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "select count(*) from '/etc/passwd'",
        "select count(*) from duckdb_settings()",
        "select count(*) from __rows a, __rows b, __rows c",
        "select count(*) from other",
        "select (select count(*) from __rows)",
        "select sleep_ms(100000) from __rows",
        "select current_setting('memory_limit') from __rows",
        "select max(rpad('x', 2000000000, 'y')) from __rows",
        "select max(format('{:>2000000000}', 'x')) from __rows",
        "select unnest(range(1000000000)) from __rows",
        "create table x as select 1",
        "set threads = 4",
        "select 1; select 2",
        "select finalize(to_aggregate_state(1.5, 'sum', ['BIGINT'])) from __rows",
        "select list(id) from __rows",
        "select getenv('HOME') from __rows",
        f"select {'(' * 200}id{')' * 200} from __rows",
        f"select max(id + {'1 + ' * 1000}1) from __rows",
        f"select max(id), '{'x' * 300_000}' from __rows",
        "copy (select 1) to '/tmp/x'",
        "attach '/tmp/x'",
        "with recursive r as (select 1 union all select 1 from r) select count(*) from r",
        "selec",
        "",
    ],
)
def test_a_partition_computes_nothing_else(harness: Harness, sql: str) -> None:
    with pytest.raises(InvalidFlow, match="does not compute this query"):
        asked(harness, json.dumps({"engine": partial.ENGINE, "sql": sql, "zone": "UTC"}))


def test_a_partition_computes_within_bounds(harness: Harness) -> None:
    assert asked(harness, PartialQuery("select count(*) as n from __rows").to_text()).column("n").to_pylist() == [
        harness.partitions[0].tables["data"].num_rows
    ]
    names = [*LOCKED, "lock_configuration", "memory_limit", "threads", "temp_directory", "TimeZone"]
    with partial._engine("UTC").cursor() as cursor:
        query = "select " + ", ".join(f"current_setting('{name}')" for name in names)
        assert cursor.sql(query).fetchall() == [(*[False] * len(LOCKED), True, "953.6 MiB", 1, "", "UTC")]
    with pytest.raises(InvalidFlow, match="no time zone"):
        asked(harness, PartialQuery("select 1 from __rows", {}, "Mars/Olympus").to_text())
    for text in (
        "",
        "[]",
        "{}",
        '{"engine": 1}',
        "x" * 100,
        '{"engine": "duckdb 1", "sql": "select 1", "zone": "UTC"}',
    ):
        with pytest.raises(InvalidFlow, match="ask for the rows"):
            asked(harness, text)


def test_a_part_that_takes_too_long_is_ended_and_the_next_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pa.record_batch({"id": pa.array(range(1000), pa.int64())})
    text = PartialQuery("select sum(id) as n from __rows").to_text()
    ended = []

    def endless() -> Iterator[pa.RecordBatch]:
        try:
            while True:
                yield batch
        finally:
            ended.append(True)

    monkeypatch.setattr(partial, "LONGEST", 0.1)
    with pytest.raises(InvalidFlow, match=r"(?i)interrupt"):
        answer_partial(batch.schema, endless(), text)
    assert ended
    monkeypatch.undo()
    for count in (1, 2):
        _, batches = answer_partial(batch.schema, iter([batch] * count), text)
        assert [int(row["n"]) for each in batches for row in each.to_pylist()] == [499_500 * count]


def test_any_number_of_time_zones_may_be_asked_in_one_after_the_other(harness: Harness) -> None:
    query = "select hour(timestamptz '2026-01-01 00:00:00+00') as h from __rows limit 1"
    for hours in [*range(12), 3]:
        found = asked(harness, PartialQuery(query, {}, f"Etc/GMT-{hours}").to_text())
        assert found.column("h").to_pylist() == [hours]


def test_parts_of_several_queries_and_schemas_at_once() -> None:
    kinds = [pa.int32(), pa.int64(), pa.float64()]

    def ask(at: int) -> bool:
        kind, count = kinds[at % 3], at % 7
        batch = pa.record_batch({"id": pa.array(range(count), kind)})
        params = {"1": at} if at % 2 else {}
        sql = "select count(*) + $1 as n from __rows" if params else "select count(*) as n from __rows"
        _, batches = answer_partial(batch.schema, iter([batch] * 3), PartialQuery(sql, params).to_text())
        return [row["n"] for each in batches for row in each.to_pylist()] == [3 * count + (at if params else 0)]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(200)))
    assert len(partial._engine("UTC").readings._idle) <= reading.KEPT


def test_rows_that_cannot_be_read_leave_nothing_behind() -> None:
    batch = pa.record_batch({"id": pa.array([1], pa.int64())})
    text = PartialQuery("select count(*) as n from __rows").to_text()

    def torn() -> Iterator[pa.RecordBatch]:
        yield batch
        raise Unavailable("this partition stops", retry_after=0.2)

    with pytest.raises(Unavailable, match="this partition stops"):
        answer_partial(batch.schema, torn(), text)
    _, batches = answer_partial(batch.schema, iter([batch]), text)
    assert [each.to_pylist() for each in batches] == [[{"n": 1}]]


def test_a_partition_computes_over_what_may_be_seen(harness: Harness) -> None:
    text = PartialQuery("select count(*) as n from __rows").to_text()
    some = Principal("some", (Grant(rows=pc.field("id") < 30),))
    rows = harness.partitions[0].tables["data"].filter(pc.field("id") < 30).num_rows
    assert asked(harness, text, some).column("n").to_pylist() == [rows]
    reads = Principal("reads", (Grant(frozenset({"read"})),))
    with pytest.raises(InvalidFlow, match="no right to run queries"):
        asked(harness, text, reads)


def test_a_command_has_no_partial(harness: Harness) -> None:
    with flight.connect(harness.service.location) as client:
        command = json.dumps({"v": 1, "job": "j", "view": "data", "partial": "x"}).encode()
        with pytest.raises(flight.FlightServerError, match="asks one partition of a worker"):
            client.get_flight_info(flight.FlightDescriptor.for_command(command))
        with pytest.raises(flight.FlightServerError, match="'partial' of a ticket is text"):
            client.do_get(
                flight.Ticket(json.dumps({"v": 1, "job": "j", "view": "data", "partition": 0, "partial": 1}).encode())
            )
