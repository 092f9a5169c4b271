"""A condition that fixes the keys is a lookup: what is taken for one, and that its rows are those of a scan."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_memory import directory_of, partitions_of
from hypothesis import given
from hypothesis import strategies as st
from tiered_sql import Harness, random_table

from flowstate.errors import Behind
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import Freshness
from flowstate_flight import FlightReader, FlightService
from flowstate_sql import Session
from flowstate_sql.keyed import MOST_KEYS, keyed

MONTHS = [dt.datetime(2026, month, 1, tzinfo=dt.UTC) for month in (1, 2)]
SCHEMA = pa.schema(
    [
        ("customer", pa.string()),
        ("number", pa.int32()),
        ("month", pa.timestamp("us", "UTC")),
        ("total", pa.int64()),
    ]
)
INFO = ViewInfo("data", SCHEMA, "keyed", ("customer", "number", "month"), ("customer", "number"))
ROWS = pa.table(
    [
        ["a", "a", "b", "b", None, "c"],
        pa.array([1, 1, 1, 2, 1, None], pa.int32()),
        [*MONTHS, *MONTHS, *MONTHS],
        [1, 2, 3, 4, 5, 6],
    ],
    schema=SCHEMA,
)
who, which = pc.field("customer"), pc.field("number")


def number(value: int | None) -> pa.Scalar:
    return pa.scalar(value, pa.int32())


@pytest.mark.parametrize(
    ("filter", "keys", "exact"),
    [
        ((who == "a") & (which == number(1)), [("a", 1)], True),
        ((which == number(1)) & (who == "a"), [("a", 1)], True),
        ((who == "a") & (which == number(1)) & (pc.field("total") > 1), [("a", 1)], False),
        ((who == "a") & (which == number(1)) & (who == "b"), [("a", 1)], False),
        ((who == "a") & (which == number(1)) & pc.field("month").is_valid(), [("a", 1)], False),
        (
            ((who == "a") | (who == "b")) & (which == number(1)),
            [("a", 1), ("b", 1)],
            False,
        ),
        (who == "a", None, False),
        ((who == "a") | (which == number(1)), None, False),
        (~((who == "a") & (which == number(1))), None, False),
        ((who == "a") & (which != number(1)), None, False),
        ((who == "a") & which.is_null(), None, False),
        ((who == "a") & (which == number(None)), None, False),
        ((who == "1") & (pc.field("total") == pa.scalar(1)), None, False),
        (who.isin(pa.array([f"c{at}" for at in range(MOST_KEYS + 1)])) & (which == number(1)), None, False),
        (pc.scalar(True), None, False),
    ],
)
def test_what_is_taken_for_keys(filter: pc.Expression, keys: list[tuple[str, int]] | None, exact: bool) -> None:
    found = keyed(filter, INFO)
    if keys is None:
        assert found is None
        return
    assert found is not None
    assert sorted(zip(*found.keys.to_pydict().values(), strict=True)) == keys
    assert found.keys.schema.equals(pa.schema([SCHEMA.field("customer"), SCHEMA.field("number")]))
    assert found.exact is exact


def test_an_index_finds_not_what_a_comparison_of_floats_finds() -> None:
    info = ViewInfo("data", pa.schema([("share", pa.float64())]), "keyed", ("share",), ("share",))
    assert keyed(pc.field("share") == 0.0, info) is None


@given(
    st.permutations(["customer", "number", "month"]),
    st.lists(st.sampled_from(["a", "b", "c", "zz"]), min_size=1, max_size=2),
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["and", "or"]),
)
def test_keys_and_the_filter_give_the_rows_of_the_filter(
    order: list[str], customers: list[str], at: int, how: str
) -> None:
    among = who == customers[0]
    for each in customers[1:]:
        among = among | (who == each)
    said = {"customer": among, "number": which == number(at), "month": pc.field("month") == pa.scalar(MONTHS[0])}
    terms = [said[each] for each in order]
    filter = terms[0] & terms[1] & terms[2] if how == "and" else (terms[0] & terms[1]) | terms[2]
    found = keyed(filter, INFO)
    wanted = ROWS.filter(filter).to_pylist()
    if found is None:
        assert how == "or"
        return
    keys = set(zip(*found.keys.to_pydict().values(), strict=True))
    rows = [row for row in ROWS.to_pylist() if (row["customer"], row["number"]) in keys]
    table = pa.Table.from_pylist(rows, SCHEMA)
    assert (table if found.exact else table.filter(filter)).to_pylist() == wanted


class Job:
    """Three partitions; `scans` counts the scans that they were asked for."""

    def __init__(self) -> None:
        self.service = FlightService()
        self.partitions = partitions_of("j", {"data": INFO}, {"data": ROWS}, 3)
        for each in self.partitions:
            self.service.register(each)
        self.service.set_directory(directory_of("j", {"data": INFO}, [self.service.location] * 3))
        self.reader = FlightReader(self.service.location, patience=0.5)
        self.session = Session(self.reader)

    def scans(self) -> int:
        count = sum(len(each.scanned) for each in self.partitions)
        for each in self.partitions:
            each.scanned.clear()
        return count


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.session.close()
    job.reader.close()
    job.service.close()


@pytest.mark.parametrize(
    ("query", "params", "rows"),
    [
        ("select total from data where customer = $1 and number = $2", ["b", 2], [(4,)]),
        ("select * from data where number = 1 and customer = 'b'", None, [("b", 1, MONTHS[0], 3)]),
        ("select count(*) from data where customer = $1 and number = $2", ["a", 1], [(2,)]),
        (
            "select total from data where customer = 'a' and number = 1 and month = $1 and total > 1",
            [MONTHS[1]],
            [(2,)],
        ),
        ("select total from data where customer in ('a', 'b') and number = 2", None, [(4,)]),
        ("select total from data where customer = 'nobody' and number = 2", None, []),
        (
            "select a.total + b.total from data a, data b "
            "where a.customer = 'b' and a.number = 1 and b.customer = 'b' and b.number = 2",
            None,
            [(7,)],
        ),
    ],
)
def test_keys_are_looked_up_and_nothing_is_scanned(
    job: Job, query: str, params: Any, rows: list[tuple[Any, ...]]
) -> None:
    job.scans()
    assert job.session.sql(query, params).fetchall() == rows
    assert job.scans() == 0
    assert job.session.last_answers["data"].parts


def test_aggregates_of_a_few_keys_are_computed_over_their_rows() -> None:
    harness = Harness()
    try:
        harness.load(random_table(random.Random(1), 40), ("id",))
        harness.info = replace(harness.info, keys=("id",))
        harness.place([harness.service.location] * len(harness.partitions))
        harness.reader.refresh()
        queries = [
            ("select sum(total), count(*), avg(number) from data where id = $1", [7]),
            ("select open, sum(total) from data where id in (7, 8, 9) group by open", None),
            ("select sum(total) from data where id = $1", [None]),
            ("select sum(total) from data where id = $1 and total > 1", [7]),
        ]
        for query, params in queries:
            for _ in range(2):
                harness.check(query, params)
        assert harness.told(f"explain {queries[0][0]}", [7])[::2] == [
            "tier 1: the owners of the routing keys alone are asked",
            "not computed in parts: its condition fixes the keys",
        ]
        assert not harness.check(*queries[0])
        assert harness.check("select sum(total) from data where id > 3")
    finally:
        harness.close()
        harness.service.close()


def test_a_lookup_by_sql_is_as_fresh_as_was_asked_for(job: Job) -> None:
    query = "select total from data where customer = 'b' and number = 2"
    assert job.session.sql(query, at_least={"events-0": (100, 0)}).fetchall() == [(4,)]
    with pytest.raises(Exception, match="events-0") as told:
        job.session.sql(query, at_least={"events-0": (10_000, 0)}).fetchall()
    assert isinstance(told.value, Behind) or "events-0" in str(told.value)


def test_a_cut_has_no_index(job: Job) -> None:
    for each in job.partitions:
        each.cuts[5] = {"data": each.tables["data"].slice(0, 0)}
    with Session(job.reader, Freshness(cut=5)) as session:
        assert session.sql("select total from data where customer = 'b' and number = 2").fetchall() == []
    assert job.scans() == 1
