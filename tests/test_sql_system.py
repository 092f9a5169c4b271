"""System tables: what a job is and how far it is, by SQL, as it may be seen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from served_sql import ALL_VIEWS, COUNT, Served, served

from flowstate.errors import InvalidFlow
from flowstate.plan.position import Place
from flowstate.snapshot.cut import SavedCut, save_cut
from flowstate.snapshot.manifest import SavedState
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.store import Store
from flowstate.view.rights import Grant, Principal
from flowstate_sql.job_session import JobSession
from flowstate_sql.system import SCHEMAS

STATUS: dict[str, Any] = {
    "partitions": {
        "0": {
            "report": {
                "sinks": [
                    {
                        "kind": "parquet",
                        "mode": "append",
                        "table": "subtotals",
                        "url": "s3://bucket/invoices",
                        "waiting": 3,
                        "bytes": 4096,
                        "oldest": 1.5,
                        "open": 1,
                        "rejected": 0,
                        "problem": None,
                    }
                ]
            }
        },
        "1": {"report": {}},
        "10": {"report": {"sinks": [{"kind": "http", "problem": "no route"}]}},
    }
}


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    with served(status=lambda: STATUS) as here:
        yield here


def test_views(here: Served) -> None:
    rows = {each["view"]: each for each in here.rows("from flowstate_views")}
    assert set(rows) == set(ALL_VIEWS)
    subtotals = rows["subtotals"]
    assert subtotals["kind"] == "keyed"
    assert subtotals["keys"] == ["customer", "kind", "month", "month_end"]
    assert subtotals["routing_keys"] == ["customer", "kind"]
    assert subtotals["window"] == "month"
    assert subtotals["columns"][2] == {"name": "month", "type": "timestamp[ms, tz=UTC]", "nullable": False}
    assert rows["dead_letters"]["kind"] == "append"
    assert rows["dead_letters"]["keys"] == []
    assert rows["wide"]["window"] is None


def test_late_rows_and_dead_letters_are_views(here: Served) -> None:
    assert here.rows("select count(*) n from dead_letters") == [{"n": 7}]
    assert here.rows("select count(*) n from subtotals_late where reason = 'late'") == [{"n": 15}]


def test_partitions_and_positions(here: Served) -> None:
    rows = here.rows("from flowstate_partitions order by partition")
    assert [each["partition"] for each in rows] == list(range(COUNT))
    assert {each["location"] for each in rows} == {here.service.location}
    assert {each["state"] for each in rows} == {each["origin"] for each in rows} == {"live"}
    assert {each["epoch"] for each in rows} == {1}
    assert rows[0]["watermark"] == dt.datetime(1970, 1, 1, 0, 0, 5, tzinfo=dt.UTC)
    assert rows[0]["as_of"] == dt.datetime(1970, 1, 1, 0, 0, 17, 500_000, tzinfo=dt.UTC)
    assert rows[0]["snapshot"] is None
    positions = here.rows('select partition, split, "offset", floors from flowstate_positions order by all')
    assert positions == [
        {"partition": each, "split": "events-0", "offset": 100 + each, "floors": 1} for each in range(COUNT)
    ]
    joined = (
        "select count(*) n from flowstate_partitions join flowstate_positions using (partition) where state = 'live'"
    )
    assert here.rows(joined) == [{"n": COUNT}]
    assert here.rows("select min(\"offset\") least from flowstate_positions where split like 'events-%'") == [
        {"least": 100}
    ]


def test_a_partition_that_is_away_is_said_to_be(here: Served) -> None:
    here.partitions[1].loading = True
    try:
        rows = here.rows("from flowstate_partitions order by partition")
        assert [each["state"] for each in rows] == ["live", "away", "live", "live"]
        assert rows[1]["epoch"] == 1
        assert [rows[1][each] for each in ("origin", "watermark", "as_of", "snapshot")] == [None] * 4
        assert here.rows("select count(*) n from flowstate_positions") == [{"n": COUNT - 1}]
    finally:
        here.partitions[1].loading = False


def test_sinks(here: Served) -> None:
    rows = here.rows("from flowstate_sinks")
    assert rows[0] == {
        "sink": 0,
        "partition": 0,
        "kind": "parquet",
        "mode": "append",
        "view": "subtotals",
        "url": "s3://bucket/invoices",
        "waiting": 3,
        "waiting_bytes": 4096,
        "waiting_seconds": 1.5,
        "open": 1,
        "rejected": 0,
        "problem": None,
        "origin": "live",
        "as_of": None,
    }
    assert [(each["partition"], each["kind"], each["waiting"], each["problem"]) for each in rows[1:]] == [
        (10, "http", None, "no route")
    ]


def test_snapshots(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    chain = PartitionChain(store, 1, 0)
    claimed = chain.claim()
    committed = chain.commit(claimed.version, replace(claimed, state=SavedState({}, {})))
    assert committed is not None
    with served(store=store) as here:
        assert here.rows("from flowstate_snapshots") == []
        for number, offset in ((1, 17), (2, 30)):
            position = {"events-0": Place(offset, 2)}
            assert save_cut(store, SavedCut(number, 1, {0: committed.version}, position, 1000.5 * number))
        rows = here.rows("from flowstate_snapshots order by snapshot")
        assert [each["snapshot"] for each in rows] == [1, 2]
        assert rows[0]["at"] == dt.datetime(1970, 1, 1, 0, 16, 40, 500_000, tzinfo=dt.UTC)
        assert rows[0]["consistent"] is True
        assert rows[0]["partitions"] == 1
        assert rows[1]["position"] == [{"split": "events-0", "offset": 30, "floors": 2}]
        newest = "select max(snapshot) n from flowstate_snapshots"
        assert here.rows(newest) == [{"n": 2}]
        assert here.rows("select count(*) n from subtotals at (snapshot => 2)") == [{"n": 10}]


def test_what_is_not_known_is_empty_and_still_has_columns() -> None:
    with served() as here:
        for name, schema in SCHEMAS.items():
            described = here.sql.describe(f"from {name}").schema
            assert described.names == schema.names
        assert here.rows("from flowstate_sinks") == []
        assert here.rows("from flowstate_snapshots") == []


def test_they_are_listed_described_and_filtered_as_any_view(here: Served) -> None:
    assert set(SCHEMAS) <= {each["name"] for each in here.rows("show tables")}
    assert len(here.rows("describe flowstate_partitions")) == len(SCHEMAS["flowstate_partitions"])
    assert here.rows("select PARTITION p from FlowState_Partitions where partition in (1, 2) order by 1") == [
        {"p": 1},
        {"p": 2},
    ]
    assert here.rows("select count(*) n from flowstate_views") == [{"n": len(ALL_VIEWS)}]
    assert here.rows("select kind, count(*) n from flowstate_views group by 1 order by 1")[0]["n"] == 2
    lines = [each["explanation"] for each in here.rows("explain select count(*) from flowstate_views")]
    assert any("no partition has a system table" in each for each in lines)


def test_a_principal_sees_what_is_hers(here: Served) -> None:
    rows = pc.field("customer") == "customer-3"
    customer = Principal("customer", (Grant(frozenset(["sql"]), frozenset(["subtotals"]), rows),))
    assert [each["view"] for each in here.rows("from flowstate_views", who=customer)] == ["subtotals"]
    assert len(here.rows("from flowstate_partitions", who=customer)) == COUNT
    with pytest.raises(InvalidFlow, match="there is no view 'flowstate_sinks'"):
        here.rows("from flowstate_sinks", who=customer)
    nothing = Principal("nothing", (Grant(frozenset(["sql"]), frozenset()),))
    assert here.rows("from flowstate_views", who=nothing) == []
    assert {each["state"] for each in here.rows("from flowstate_partitions", who=nothing)} == {"away"}
    operator = Principal("operator", (Grant(frozenset(["sql", "control"])),))
    assert len(here.rows("from flowstate_sinks", who=operator)) == 2


def test_whoever_runs_the_job_has_them_too(here: Served) -> None:
    with JobSession(here.reader, status=lambda: STATUS) as session:
        assert session.sql("select count(*) from flowstate_partitions where state = 'live'").fetchall() == [(COUNT,)]
        assert session.sql("select count(*) from flowstate_sinks").fetchall() == [(2,)]
        both = "select (select count(*) from subtotals at (snapshot => $1)), (select count(*) from subtotals)"
        query = both.replace("$1", "2")
        relation, other = session.sql(query), session.sql(query.replace("2", "1"))
        assert relation.fetchall() == [(10, 122)]
        assert set(session.last_answers) == {"subtotals", "subtotals AT (SNAPSHOT => 2)"}
        assert other.fetchall() == [(0, 122)]
        assert relation.fetchall() == [(10, 122)]
        assert session.sql("select sum(events) from subtotals at (version => 1)").fetchall() == [(None,)]
        assert "subtotals AT (SNAPSHOT => 2)" not in {name for (name,) in session.sql("show tables").fetchall()}
        assert session.sql("select 'at (' as x").fetchall() == [("at (",)]
        assert session.sql("select count(*), max(customer) from subtotals").fetchall()[0][0] == 122
        for query, message in [
            (both, "with the number of a saved snapshot"),
            ("from subtotal at (snapshot => 1)", "only a view has snapshots"),
            ("select at (", "syntax error"),
            ("drop view subtotals", "read only"),
        ]:
            with pytest.raises(InvalidFlow, match=message):
                session.sql(query)
