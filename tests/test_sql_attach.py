"""Live views in the user's own DuckDB connection, over real sockets: beside her tables, with what reaches the partitions."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS, late_rows, ordered
from flight_tables import subtotals as made_subtotals  # DuckDB looks for names among Python's, too

import flowstate_sql
from flowstate.errors import Behind, FlowstateError, InvalidFlow, Unavailable
from flowstate.view.access import Access
from flowstate.view.directory import ViewInfo
from flowstate_flight import FlightReader, FlightService

COUNT = 3


class Served:
    """A job in this process: what its partitions are asked is seen in `scanned`."""

    def __init__(
        self, job: str = "billing", tables: dict[str, pa.Table] = TABLES, access: Access | None = None
    ) -> None:
        self.job, self.version = job, 1
        self.views = {name: VIEWS[name] for name in tables}
        self.service = FlightService(access=access)
        self.partitions = partitions_of(job, self.views, tables, COUNT)
        for each in self.partitions:
            self.service.register(each)
        self.tell()

    @property
    def location(self) -> str:
        return str(self.service.location)

    def tell(self) -> None:
        self.service.set_directory(directory_of(self.job, self.views, [self.location] * COUNT, version=self.version))
        self.version += 1

    def add(self, name: str, info: ViewInfo, parts: list[pa.Table]) -> None:
        self.views = {**self.views, name: info}
        for partition, table in zip(self.partitions, parts, strict=True):
            partition.tables[name] = table
            partition._index.clear()
        self.tell()

    def scanned(self) -> list[tuple[str, object]]:
        """What was scanned since this was last asked."""
        seen = [each for partition in self.partitions for each in partition.scanned]
        for partition in self.partitions:
            partition.scanned.clear()
        return seen


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.service.close()


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with contextlib.closing(duckdb.connect()) as connection:
        yield connection


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, object]]:
    return ordered(con.sql(query).to_arrow_table())


def test_a_join_with_tables_of_the_user(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    con.execute("create table names as select 'customer-' || i as customer, 'name ' || i as name from range(5) t(i)")
    with flowstate_sql.attach(con, served.location, name="live") as live:
        assert sorted(live.views) == ["subtotals", "subtotals_late"]
        got = con.execute(
            "select name, sum(total)::decimal(12, 2) as total from names join live.subtotals using (customer) group by 1"
        ).fetchall()
        whole = TABLES["subtotals"].to_pylist()
        expected = {
            f"name {i}": sum(row["total"] for row in whole if row["customer"] == f"customer-{i}") for i in range(5)
        }
        assert dict(got) == expected
        assert rows(con, "select * from live.subtotals") == ordered(TABLES["subtotals"])
        assert rows(con, "select * from live.main.subtotals_late") == ordered(TABLES["subtotals_late"])
        assert con.sql("select count(*) from live.subtotals").fetchall() == [(TABLES["subtotals"].num_rows,)]
        assert {part.partition for part in live.last_answers["subtotals"].parts} == set(range(COUNT))
        assert live.last_answers["subtotals"].live


def test_columns_and_filters_reach_the_partitions(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    flowstate_sql.attach(con, served.location, name="live")
    served.scanned()
    rows(con, "select events from live.subtotals where total > 3")
    assert served.scanned() == [("subtotals", ["total", "events"])] * COUNT
    assert (
        rows(con, "select kind, events from live.subtotals where customer = 'customer-7' and kind = 'b'")
        == [{"kind": "b", "events": 7}] * 2
    )
    assert served.scanned() == []  # both routing keys are fixed: the owner looks them up
    plan = con.execute("explain select events from live.subtotals where kind = 'a'").fetchall()[0][1]
    assert "FILTER" not in plan
    flowstate_sql.detach(con, "live")


def test_it_is_read_anew_each_time(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    with flowstate_sql.attach(con, served.location, name="live"):
        relation = con.sql("select count(*) from live.subtotals_late")
        assert relation.fetchall() == [(30,)]
        served.partitions[0].tables["subtotals_late"] = late_rows(2)
        assert relation.fetchall() == [(22,)]


def test_nothing_is_left_when_it_is_detached(served: Served, tmp_path: Path) -> None:
    file = str(tmp_path / "own.db")
    with contextlib.closing(duckdb.connect(file)) as con:
        con.execute("create table mine as select 1 as one")
        flowstate_sql.attach(con, served.location)  # by the name of the job
        assert con.sql("select count(*) from billing.subtotals_late").fetchall() == [(30,)]
        flowstate_sql.detach(con, "BILLING")
        assert con.execute("select view_name from duckdb_views() where not internal").fetchall() == []
        assert con.execute("select database_name from duckdb_databases() where not internal").fetchall() == [("own",)]
        with pytest.raises(duckdb.CatalogException):
            con.sql("select * from billing.subtotals")
        with pytest.raises(InvalidFlow, match="nothing is attached to this connection as 'billing'; there is none"):
            flowstate_sql.detach(con, "billing")
        again = flowstate_sql.attach(con, served.location)
        assert con.sql("select count(*) from billing.subtotals_late").fetchall() == [(30,)]
    again.detach()  # also after the connection was closed
    again.detach()
    with pytest.raises(InvalidFlow, match="'billing' was detached"):
        again.refresh()
    with contextlib.closing(duckdb.connect(file, read_only=True)) as con:  # a database that cannot be written to
        assert con.execute("select database_name, schema_name, table_name from duckdb_tables()").fetchall() == [
            ("own", "main", "mine")
        ]
        with flowstate_sql.attach(con, served.location):
            assert con.sql("select count(*) from billing.subtotals_late, mine").fetchall() == [(30,)]


def test_two_jobs_with_views_of_one_name(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    other = Served("other", {"subtotals": made_subtotals(3)})
    try:
        with (
            flowstate_sql.attach(con, served.location),
            flowstate_sql.attach(con, other.location),
        ):
            query = "select count(*) from billing.subtotals one join other.subtotals two using (customer, kind, month)"
            assert con.sql(query).fetchall() == [(6,)]
            flowstate_sql.detach(con, "other")
            assert rows(con, "select * from billing.subtotals") == ordered(TABLES["subtotals"])
            with pytest.raises(duckdb.CatalogException):
                con.sql("select * from other.subtotals")
    finally:
        other.service.close()


def test_every_thread_with_a_cursor_of_its_own(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    con.execute("create table mine as select 'customer-1' as customer")
    live = flowstate_sql.attach(con, served.location, name="live")
    plain = con.cursor()
    with pytest.raises(duckdb.CatalogException, match=r"live\.subtotals does not exist"):
        plain.sql("select * from live.subtotals")
    assert live.use(plain) is plain
    expected = con.sql("select events from live.subtotals join mine using (customer)").fetchall()
    assert plain.sql("select events from live.subtotals join mine using (customer)").fetchall() == expected
    seen: list[object] = []

    def ask() -> None:
        try:
            with contextlib.closing(live.cursor()) as cursor:
                for _ in range(10):
                    seen.append(cursor.sql("select events from live.subtotals join mine using (customer)").fetchall())
        except Exception as error:
            seen.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert seen == [expected] * 40
    live.detach()
    with pytest.raises(duckdb.Error, match="live"):
        plain.sql("select * from live.subtotals")


def test_views_that_appear_change_and_go(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    live = flowstate_sql.attach(con, served.location, name="live")
    old = VIEWS["subtotals_late"]
    table = pa.table({"split": ["s"], "offset": ["text now"]})
    served.add("later", ViewInfo("later", table.schema, "append"), [table] * COUNT)
    with pytest.raises(duckdb.CatalogException):
        con.sql("select * from live.later")
    live.refresh()
    assert con.sql("select count(*) from live.later").fetchall() == [(COUNT,)]

    changed = ViewInfo(old.name, table.schema, "append")
    served.add(old.name, changed, [table] * COUNT)
    live._reader.refresh()
    with pytest.raises(duckdb.Error, match=r"'subtotals_late' has changed since it was attached; call refresh\(\)"):
        con.sql('select "offset" from live.subtotals_late').fetchall()
    live.refresh()
    assert con.sql('select distinct "offset" from live.subtotals_late').fetchall() == [("text now",)]

    served.views = {name: info for name, info in served.views.items() if name != "later"}
    served.tell()
    live.refresh()
    assert "later" not in live.views
    with pytest.raises(duckdb.CatalogException):
        con.sql("select * from live.later")
    live.detach()


def test_freshness_is_kept_or_refused(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    quick = {"patience": 4.0, "grace": 0.5}
    with flowstate_sql.attach(con, served.location, name="live", options=quick, at_least={"events-0": 100}) as live:
        assert con.sql("select count(*) from live.subtotals_late").fetchall() == [(30,)]
        live.refresh(at_least={"events-0": 200})
        with pytest.raises(duckdb.Error, match="the state has not come as far as was asked for") as refused:
            con.sql("select count(*) from live.subtotals_late").fetchall()
        assert Behind.__name__ in str(refused.value)
        live.refresh(at_least=None)
        assert con.sql("select count(*) from live.subtotals_late").fetchall() == [(30,)]
    with pytest.raises(InvalidFlow, match="max_age is a number"):
        flowstate_sql.attach(con, served.location, name="live", max_age=-1)


def test_a_consistent_answer_is_one_cut_until_the_next(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    made: list[int] = []

    def cut(job: str, timeout: float) -> dict[str, object]:
        made.append(len(made) + 1)
        for each in served.partitions:
            each.cuts[made[-1]] = dict(each.tables)
        return {"cut": made[-1], "position": {}}

    served.service.set_cut_handler(cut)
    with flowstate_sql.attach(con, served.location, name="live", consistent=True) as live:
        query = "select count(*) from live.subtotals_late one, (select count(*) from live.subtotals) two"
        assert con.sql(query).fetchall() == [(30,)]
        assert live.last_answers["subtotals_late"].consistent
        served.partitions[0].tables["subtotals_late"] = late_rows(2)
        assert con.sql(query).fetchall() == [(30,)]
        assert made == [1]
        live.refresh()
        assert con.sql(query).fetchall() == [(22,)]
        assert made == [1, 2]
        for each in served.partitions:
            each.cuts.clear()
        with pytest.raises(duckdb.Error, match="cut"):
            con.sql(query).fetchall()


def test_errors_say_what_to_do(served: Served, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(Unavailable, match="no answer from a worker"):
        flowstate_sql.attach(con, "grpc://127.0.0.1:1", name="live")
    con.execute("create schema mine")
    for name in ("mine", "MEMORY"):
        with pytest.raises(InvalidFlow, match=r"has a database or a schema '(mine|MEMORY)' already; choose another"):
            flowstate_sql.attach(con, served.location, name=name)
    con.begin()
    with pytest.raises(InvalidFlow, match="in a transaction; commit it first"):
        flowstate_sql.attach(con, served.location, name="live")
    con.rollback()
    con.execute("select * from range(1000000)").fetchone()
    with pytest.raises(InvalidFlow, match="a result that is not fetched to its end"):
        flowstate_sql.attach(con, served.location, name="live")
    con.abort()
    live = flowstate_sql.attach(con, served.location, name="live", options={"patience": 0.5, "grace": 0.1})
    with pytest.raises(InvalidFlow, match="already"):
        flowstate_sql.attach(con, served.location, name="Live")
    con.execute("use live")
    with pytest.raises(InvalidFlow, match="USE"):
        live.detach()
    con.execute("use memory")
    served.service.close()
    with pytest.raises(duckdb.Error, match=r"Unavailable: .*no answer from a worker"):
        con.sql("select * from live.subtotals").fetchall()
    live.detach()
    with contextlib.closing(duckdb.connect()) as closed:
        pass
    with pytest.raises(InvalidFlow, match="closed"):
        flowstate_sql.attach(closed, served.location, name="live")


def test_credentials_are_shown_and_rights_kept(con: duckdb.DuckDBPyConnection) -> None:
    token, kept = Access.make_token()
    grant = {"actions": ["read"], "views": ["subtotals"], "rows": {"customer": "customer-1"}}
    served = Served(access=Access({"principals": {"anna": {"tokens": [kept], "grants": [grant]}}}))
    try:
        with pytest.raises(FlowstateError) as refused:
            flowstate_sql.attach(con, served.location, name="live", options={"token": token[:-1]})
        assert token[:-1] not in str(refused.value)
        with flowstate_sql.attach(con, served.location, name="live", options={"token": token}) as live:
            assert live.views == ["subtotals"]
            assert con.sql("select distinct customer from live.subtotals").fetchall() == [("customer-1",)]
            assert con.sql("select * from live.subtotals where customer = 'customer-2'").fetchall() == []
            assert token not in repr(live)
    finally:
        served.service.close()


def test_a_reader_of_the_user_stays_open_and_one_of_our_own_ends(
    served: Served, con: duckdb.DuckDBPyConnection
) -> None:
    with FlightReader(served.location) as reader:
        with flowstate_sql.attach(con, reader, name='odd "name"'):
            assert con.sql('select count(*) from "odd ""name""".subtotals_late').fetchall() == [(30,)]
        assert reader.scan("subtotals_late").num_rows == 30
    own = duckdb.connect()
    live = flowstate_sql.attach(own, served.location, name="live")
    ours, closing = live._reader, live._closing
    assert closing is not None
    own.close()
    del live, own
    gc.collect()
    assert not closing.alive
    with pytest.raises(InvalidFlow, match="closed"):
        ours._pool.client(served.location)
