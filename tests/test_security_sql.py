"""SQL of a principal is SQL over what is there for her: any query gives what it gives where nothing else exists."""

from __future__ import annotations

from collections.abc import Iterator

import adbc_driver_flightsql.dbapi as adbc
import duckdb
import pyarrow.compute as pc
import pytest
from adbc_driver_flightsql import DatabaseOptions
from certificates import Authority
from guarded import INTERNAL, PASSWORD, SUBTOTALS, Guarded, token

import flowstate as fs
from flowstate.errors import FlowstateError
from flowstate.view.rights import Principal
from flowstate_flight import FlightReader, auth
from flowstate_flight.gateway import Gateway
from flowstate_sql.served import ServedSql

HERS = SUBTOTALS.filter(pc.field("customer") == "customer-3")
QUERIES = [
    "select * from subtotals",
    "select count(*), sum(total), avg(events), min(customer), max(customer) from subtotals",
    "select customer, sum(events) from subtotals group by 1 order by 1",
    "select month, count(distinct customer), stddev(events), median(events) from subtotals group by 1 order by 1",
    "select sum(events) from subtotals where customer in ('customer-3', 'customer-4', 'customer-5')",
    "select count(*) from subtotals where customer = 'customer-4' and kind = 'a'",
    "select count(*) from subtotals where customer <> 'customer-3' or customer is null",
    "select a.customer, b.events from subtotals a join subtotals b on a.month = b.month order by 1, 2",
    "with all_of as (select * from subtotals) select count(*) from all_of where exists (select 1 from all_of)",
    "select customer, row_number() over (order by events desc), sum(events) over () from subtotals order by 2",
    "select (select max(events) from subtotals), (select count(*) from subtotals where customer like '%9')",
    "select customer from subtotals where 1 / (events - 4) <> 7 or events = 4 order by 1",
    "select count(*) from (select cast(replace(customer, 'customer-3', '3') as int) from subtotals)",
    "select string_agg(customer, ',' order by customer), list(events order by events) from subtotals",
]
HIDDEN = [
    "select * from subtotals_late",
    "select count(*) from subtotals_late",
    "select 1 where exists (select 1 from subtotals_late)",
    "select * from secrets",
    "select * from subtotals_late at (snapshot => 1)",
]


@pytest.fixture(scope="module")
def served(guarded: Guarded) -> Iterator[ServedSql]:
    with FlightReader(guarded.service.location, "billing", token=INTERNAL) as reader:
        served = ServedSql(reader)
        yield served
        served.close()


def principal(guarded: Guarded, name: str) -> Principal:
    found = guarded.access.of_token(token(name))
    assert found is not None
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_any_query_is_one_over_what_is_there_for_her(guarded: Guarded, served: ServedSql, query: str) -> None:
    with duckdb.connect() as plain:
        plain.execute("set TimeZone = 'UTC'")
        plain.register("subtotals", HERS)
        wanted = plain.sql(query).to_arrow_table().to_pylist()
    statement = served.run(query, who=principal(guarded, "anna"))
    found = [row for batch in statement.batches() for row in batch.to_pylist()]
    assert sorted(map(repr, found)) == sorted(map(repr, wanted))


def test_others_are_told_of_by_no_error(guarded: Guarded, served: ServedSql) -> None:
    """A cast that fails quotes the value that it failed at."""
    for query in (
        "select cast(customer as int) from subtotals",
        "select customer::int + 1 from subtotals order by events desc",
    ):
        with pytest.raises(FlowstateError) as error:
            list(served.run(query, who=principal(guarded, "anna")).batches())
        assert "customer-3" in str(error.value)


@pytest.mark.parametrize("query", HIDDEN)
def test_what_is_not_there_for_her_is_not_there(guarded: Guarded, served: ServedSql, query: str) -> None:
    texts = set()
    for name in ("subtotals_late", "secrets"):
        near = name[:-1] + "x"
        for asked in {query, query.replace(name, near)}:
            for call in (served.run, served.describe):
                with pytest.raises(FlowstateError) as error:
                    call(asked, who=principal(guarded, "anna"))  # type: ignore[operator]
                text = str(error.value)
                for each in (name, near, "subtotals_late", "secrets"):
                    text = text.replace(f"{each!r}", "NAME")
                assert "late" not in text
                texts.add(text.partition(";")[0])
    assert len(texts) == 1


def test_no_catalog_names_it(guarded: Guarded, served: ServedSql) -> None:
    shown = []
    for query in (
        "select * from flowstate_views", "select * from information_schema.tables", "select * from duckdb_views()",
        "select * from duckdb_tables()", "show tables", "show all tables", "explain select * from subtotals",
        "select * from duckdb_columns()", "describe subtotals", "select * from duckdb_settings()", "select * from duckdb_secrets()",
    ):  # fmt: skip
        try:
            found = [batch.to_pylist() for batch in served.run(query, who=principal(guarded, "anna")).batches()]
        except FlowstateError as error:
            shown.append(str(error).replace(query, ""))
        else:
            shown.append(repr(found))
    assert not [each for each in shown if "subtotals_late" in each or "customer-4" in each or INTERNAL in each]
    assert any("subtotals" in each for each in shown)


def test_who_may_only_read_asks_no_sql_and_who_may_only_ask_sql_sees_it_all(
    guarded: Guarded, served: ServedSql
) -> None:
    with pytest.raises(FlowstateError, match="no right to SQL"):
        served.run("select 1", who=principal(guarded, "clerk"))
    statement = served.run("select count(*) from subtotals", who=principal(guarded, "analyst"))
    assert [row for batch in statement.batches() for row in batch.to_pylist()] == [{"count_star()": SUBTOTALS.num_rows}]


def test_a_driver_logs_in_over_tls_and_sees_what_is_hers() -> None:
    """ADBC by user and password (it sends base64 without padding), and by token."""
    authority = Authority()
    certificate, key = authority.sign("127.0.0.1", "localhost")
    tls = fs.Tls(certificate, key, authority.certificate)
    guarded = Guarded(tls=tls)
    reader = FlightReader(guarded.service.location, "billing", token=INTERNAL, **tls.connecting())
    roots = {DatabaseOptions.TLS_ROOT_CERTS.value: authority.certificate.decode()}
    header = DatabaseOptions.AUTHORIZATION_HEADER.value
    with Gateway(reader, sql=ServedSql(reader), access=guarded.access, tls=tls) as gateway:
        for shown in ({"username": "anna", "password": PASSWORD}, {header: f"Bearer {token('anna')}"}):
            with (
                adbc.connect(gateway.address, roots | shown, autocommit=True) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("select customer, sum(events) from subtotals group by 1")
                assert cursor.fetchall() == [("customer-3", sum(HERS["events"].to_pylist()))]
                listed = connection.adbc_get_objects(depth="tables").read_all().to_pylist()
                assert "subtotals" in repr(listed) and "subtotals_late" not in repr(listed)
                with pytest.raises(adbc.Error, match="there is no view 'subtotals_late'"):
                    cursor.execute("select * from subtotals_late")
        for shown in ({"username": "anna", "password": "wrong"}, {header: "Bearer x"}, {}):
            with (
                pytest.raises(adbc.Error, match=auth.NOT_LET_IN),
                adbc.connect(gateway.address, roots | shown, autocommit=True) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("select 1")
    guarded.close()
