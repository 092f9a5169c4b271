"""SQL sessions: what reaches the partitions, what is refused, cuts, answers, and many relations at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from flight_memory import Worker, directory_of, partitions_of
from flight_tables import TABLES, VIEWS, ordered

from flowstate.errors import InvalidFlow
from flowstate.view.freshness import Freshness
from flowstate_flight import FlightReader, FlightService, connect
from flowstate_sql import Session

COUNT = 4


class Here:
    def __init__(self) -> None:
        self.service = FlightService()
        self.partitions = partitions_of("billing", VIEWS, TABLES, COUNT)
        for each in self.partitions:
            self.service.register(each)
        self.service.set_directory(directory_of("billing", VIEWS, [self.service.location] * COUNT))
        self.reader: FlightReader = connect(self.service.location, patience=3.0)
        self.session = Session(self.reader)

    def asked(self) -> list[tuple[str, tuple[str, ...]]]:
        """The scans since the last time, (view, columns), each as often as a partition was asked."""
        found = [(view, tuple(columns)) for each in self.partitions for view, columns in each.scanned]
        for each in self.partitions:
            each.scanned.clear()
        return found


@pytest.fixture
def here() -> Iterator[Here]:
    here = Here()
    yield here
    here.session.close()
    here.reader.close()
    here.service.close()


def test_from_another_process() -> None:
    worker = Worker("billing", VIEWS, TABLES, COUNT, range(COUNT))
    try:
        worker.set_directory(directory_of("billing", VIEWS, [worker.location] * COUNT))
        with connect(worker.location) as reader, Session(reader) as session:
            assert ordered(session.sql("from subtotals").to_arrow_table()) == ordered(TABLES["subtotals"])
            query = "select kind, sum(total) from subtotals group by kind order by kind"
            with duckdb.connect() as plain:
                plain.register("subtotals", TABLES["subtotals"])
                assert session.sql(query).fetchall() == plain.sql(query).fetchall()
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("condition", "params", "partitions"),
    [
        ("customer = 'customer-3' and kind = 'b'", None, 1),
        ("kind = $1 and customer = $2", ["b", "customer-3"], 1),
        ("customer = $who and kind in ('b')", {"who": "customer-3"}, 1),
        ("customer is null and kind = 'a'", None, 1),
        ("customer = 'customer-3' and kind = 'b' and events > 0 and month = '2026-01-01'", None, 1),
        ("customer = 'customer-3'", None, COUNT),
        ("customer = 'customer-3' or kind = 'b'", None, COUNT),
        ("events = 3", None, COUNT),
    ],
)
def test_a_key_asks_its_owner_alone(here: Here, condition: str, params: Any, partitions: int) -> None:
    got = here.session.sql(f"select customer, total from subtotals where {condition}", params).to_arrow_table()
    with duckdb.connect() as plain:
        plain.execute("set TimeZone = 'UTC'")
        plain.register("subtotals", TABLES["subtotals"])
        wanted = plain.sql(f"select customer, total from subtotals where {condition}", params=params).to_arrow_table()
    assert wanted.num_rows > 0
    assert ordered(got) == ordered(wanted)
    by_index = partitions == 1 and "null" not in condition
    asked = here.asked()
    assert len(asked) == (0 if by_index else partitions)
    assert {"month_end"}.isdisjoint(name for _, columns in asked for name in columns)
    assert len(here.session.last_answers["subtotals"].parts) == partitions


def test_only_the_columns_asked_for_are_read(here: Here) -> None:
    assert here.session.sql("select sum(events) from subtotals").fetchall()[0][0] == sum(range(61)) * 2
    assert here.asked() == [("subtotals", ("events",))] * COUNT
    assert here.session.sql("select count(*) from subtotals").fetchall() == [(122,)]
    assert here.asked() == [("subtotals", ("customer",))] * COUNT


def test_names(here: Here) -> None:
    sql = here.session.sql
    assert sql("select count(*) from SubTotals_LATE").fetchall() == [(30,)]
    assert sql("with subtotals as (select 1 as x) select x from subtotals").fetchall() == [(1,)]
    assert sql("with q as (from subtotals) select count(*) from q").fetchall() == [(122,)]
    assert len(sql("describe subtotals").fetchall()) == 6
    assert {row[0] for row in sql("show tables").fetchall()} == set(TABLES)
    assert {row[0] for row in sql("select table_name from information_schema.tables").fetchall()} == set(TABLES)
    assert sql("select a.events from subtotals a join subtotals_late b on a.events = b.offset").fetchall()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select * from subtotal", "there is no view 'subtotal'; did you mean 'subtotals'"),
        ("select totl from subtotals", 'Referenced column "totl" not found'),
        ("selec 1", "syntax error"),
        ("", "one SELECT at a time statements=0"),
        ("select 1; select 2", "one SELECT at a time statements=2"),
        ("drop table subtotals", "read only.*statement='DROP'"),
        ("create table x as select 1", "read only"),
        ("insert into subtotals values (1)", "read only"),
        ("set threads = 1", "read only"),
        ("copy subtotals to '/tmp/x'", "read only"),
        ("attach ':memory:' as other", "read only"),
        ("install httpfs", "read only"),
        ("pragma version", "read only|one SELECT"),
        ("select * from read_csv('/etc/passwd')", "disabled by configuration"),
        ("select * from '/etc/passwd'", "no view '/etc/passwd'"),
        ("select * from glob('/*')", "disabled by configuration"),
        ("select * from here", "no view 'here'"),  # a Python variable of the caller
        ("select * from subtotals where customer = $1", "parameters: 1"),
    ],
)
def test_refusals(here: Here, query: str, message: str) -> None:
    with pytest.raises(InvalidFlow, match=message):
        here.session.sql(query).fetchall()


def test_what_is_locked_stays_locked(here: Here) -> None:
    query = "select current_setting('enable_external_access'), current_setting('lock_configuration')"
    assert here.session.sql(query).fetchall() == [(False, True)]
    assert here.session.sql("select current_setting('TimeZone')").fetchall() == [("UTC",)]
    with pytest.raises(InvalidFlow, match="no time zone"):
        Session(here.reader, time_zone="Mars/Olympus")


def test_a_cut_is_read_again_and_again_the_same(here: Here) -> None:
    for each in here.partitions:
        each.cuts[5] = dict(each.tables)
    at_cut = Session(here.reader, Freshness(cut=5))
    query = "select count(*), sum(total) from subtotals"
    before = here.session.sql(query).fetchall()
    for each in here.partitions:
        each.tables["subtotals"] = each.tables["subtotals"].slice(1)
    assert at_cut.sql(query).fetchall() == before
    assert at_cut.last_answers["subtotals"].consistent
    assert here.session.sql(query).fetchall() != before
    assert not here.session.last_answers["subtotals"].consistent
    at_cut.close()


def test_relations_live_side_by_side_and_read_anew(here: Here) -> None:
    first = here.session.sql("select count(*) from subtotals")
    second = here.session.sql("select events from subtotals order by events")
    stream = second.to_arrow_reader(10)
    assert stream.read_next_batch().num_rows > 0
    assert first.fetchall() == [(122,)]
    assert first.filter("true").fetchall() == [(122,)]
    stream.close()
    for each in here.partitions:
        each.tables["subtotals"] = each.tables["subtotals"].slice(0, 1)
    assert first.fetchall() == [(COUNT,)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs cores to choose from")
def test_duckdb_takes_no_more_threads_than_the_process_has_cores(here: Here) -> None:
    query, before = "select current_setting('threads')", os.sched_getaffinity(0)
    with duckdb.connect() as plain:
        usual = plain.sql(query).fetchall()
    os.sched_setaffinity(0, {min(before)})
    try:
        with Session(here.reader) as session:
            assert session.sql(query).fetchall() == [(1,)]
    finally:
        os.sched_setaffinity(0, before)
    if len(before) == os.cpu_count():
        assert here.session.sql(query).fetchall() == usual


def test_many_threads(here: Here) -> None:
    def ask(number: int) -> bool:
        query = "select count(*), sum(events) from subtotals where events < $1"
        return bool(here.session.sql(query, [number]).fetchall()[0][0] == 2 * min(number, 61))

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask, range(1, 60)))


def test_a_partition_that_is_away_is_an_error_of_the_query_and_not_a_smaller_answer(here: Here) -> None:
    here.partitions[2].loading = True
    with pytest.raises(duckdb.Error, match="did not answer in time"):
        here.session.sql("select count(*) from subtotals").fetchall()
    here.partitions[2].loading = False
    assert here.session.sql("select count(*) from subtotals").fetchall() == [(122,)]


def test_an_empty_view_is_a_view(here: Here) -> None:
    for each in here.partitions:
        each.tables["subtotals"] = each.tables["subtotals"].slice(0, 0)
    assert here.session.sql("select count(*), sum(total) from subtotals").fetchall() == [(0, None)]
    got = here.session.sql("select * from subtotals where customer = 'x' and kind = 'a'").to_arrow_table()
    assert got.num_rows == 0
    assert isinstance(got, pa.Table)
