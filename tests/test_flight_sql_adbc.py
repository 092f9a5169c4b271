"""ADBC's driver of Flight SQL: its DB-API, pandas and Polars, over a gateway."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import adbc_driver_flightsql.dbapi as adbc
import adbc_driver_manager
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from flight_tables import TABLES, ordered
from sql_gateway import ENDLESS, KINDS, SqlGateway, sql_gateway

HEADER = "adbc.flight.sql.rpc.call_header.x-flowstate-"


@pytest.fixture(scope="module")
def served() -> Iterator[SqlGateway]:
    with sql_gateway() as served:
        yield served


def connect(served: SqlGateway, **headers: str) -> Any:
    options = {f"{HEADER}{name.replace('_', '-')}": value for name, value in headers.items()}
    return adbc.connect(served.address.replace("grpc://", "grpc+tcp://"), db_kwargs=options, autocommit=True)


@pytest.fixture
def connection(served: SqlGateway) -> Iterator[Any]:
    with connect(served) as connection:
        yield connection


@pytest.fixture
def cursor(connection: Any) -> Iterator[Any]:
    with connection.cursor() as cursor:
        yield cursor


def fetched(cursor: Any, query: str) -> Any:
    cursor.execute(query)
    return cursor.fetchall()


def test_queries_and_their_schema(cursor: Any) -> None:
    cursor.execute("select * from subtotals where events > 20")
    table = cursor.fetch_arrow_table()
    wanted = TABLES["subtotals"].filter(pa.compute.field("events") > 20)
    assert ordered(table) == ordered(wanted)
    cursor.execute(
        "select customer, sum(total) as total from subtotals where kind = 'a' group by all order by all limit 2"
    )
    assert cursor.fetchall() == [("customer-0", Decimal("0.03")), ("customer-10", Decimal("2.03"))]
    assert [each[0] for each in cursor.description] == ["customer", "total"]
    cursor.execute("select count(*) from temp.main.subtotals;")  # by the names that get_objects gives
    assert cursor.fetchone() == (122,)
    assert cursor.adbc_execute_schema("select events from subtotals").names == ["events"]


def test_every_type_comes_back_as_it_is(cursor: Any) -> None:
    cursor.execute("select * from kinds")
    table = cursor.fetch_arrow_table()
    assert [(each.name, each.type) for each in table.schema] == [
        (
            each.name,
            each.type if not pa.types.is_timestamp(each.type) or not each.type.tz else pa.timestamp("us", "UTC"),
        )
        for each in KINDS.schema
    ]
    assert ordered(table) == ordered(KINDS)
    cursor.execute(
        "select 'b'::enum('a', 'b') as choice, null as nothing, {'a': 1, 'b': [true]} as whole, map {'k': 2} as pairs"
    )
    assert cursor.fetchall() == [("b", None, {"a": 1, "b": [True]}, [("k", 2)])]


def test_pandas_and_polars(connection: Any) -> None:
    query = "select kind, count(*) as rows, sum(total) as total from subtotals where kind is not null group by kind order by kind"
    frame = pd.read_sql(query, connection)
    assert list(frame["rows"]) == [62, 60] or list(frame["rows"]) == [60, 62]
    found = pl.read_database(query, connection)
    assert found.rows() == [tuple(each) for each in frame.itertuples(index=False)]
    assert found.schema["total"].is_decimal()


def test_parameters(cursor: Any) -> None:
    query = "select customer, events from subtotals where customer = ? and events >= ? order by month"
    for customer, events in (("customer-3", 0), ("customer-4", 1), ("nobody's", 0)):
        cursor.execute(query, (customer, events))
        number = int(customer[-1]) if customer != "nobody's" else None
        assert cursor.fetchall() == [(customer, number)] * (0 if number is None else 2)
    cursor.execute("select $2, $1", ("a", 7))
    assert cursor.fetchall() == [(7, "a")]
    values: list[Any] = [
        True, -5, 0.25, "ä", b"\x00", Decimal("1.50"), dt.date(1950, 2, 3), dt.datetime(2026, 1, 1, 12, 30, 0, 5),
        dt.datetime(2026, 1, 1, 12, 30, tzinfo=dt.UTC), [1, None],
    ]  # fmt: skip
    for value in values:
        cursor.execute("select ? as value", (value,))
        assert cursor.fetchone() == (value,)


def test_an_arrow_batch_of_parameters_runs_the_query_for_each_row(cursor: Any) -> None:
    rows = pa.record_batch({"0": ["customer-3", "customer-5", "customer-3"]})
    cursor.execute("select customer, events from subtotals where customer = ? order by month limit 1", rows)
    assert cursor.fetchall() == [("customer-3", 3), ("customer-5", 5), ("customer-3", 3)]
    many = pa.record_batch({"0": ["x" * 1000] * 1500})
    with pytest.raises(adbc_driver_manager.Error, match="too many parameters for one query; bind fewer rows"):
        cursor.execute("select count(*) from subtotals where customer = ?", many)


def test_prepared_statements_are_used_again_and_again(cursor: Any) -> None:
    query = "select events from subtotals where customer = ? and month = ?"
    parameters = cursor.adbc_prepare(query)
    assert [each.type for each in parameters] == [pa.string(), pa.timestamp("ms", "UTC")]
    month = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
    for number in (1, 2, 3):
        cursor.execute(query, (f"customer-{number}", month))
        assert cursor.fetchall() == [(number,)]


def test_objects(connection: Any) -> None:
    [catalog] = connection.adbc_get_objects(depth="all", table_name_filter="subtotals").read_all().to_pylist()
    assert catalog["catalog_name"] == "temp"
    [schema] = catalog["catalog_db_schemas"]
    assert schema["db_schema_name"] == "main"
    [table] = schema["db_schema_tables"]
    assert (table["table_name"], table["table_type"]) == ("subtotals", "TABLE")
    assert [each["column_name"] for each in table["table_columns"]] == TABLES["subtotals"].schema.names
    [tables] = connection.adbc_get_objects(depth="tables").read_all()["catalog_db_schemas"].to_pylist()
    assert {each["table_name"] for each in tables[0]["db_schema_tables"]} >= {"kinds", "subtotals", "subtotals_late"}
    assert connection.adbc_get_table_schema("subtotals").names == TABLES["subtotals"].schema.names
    assert set(connection.adbc_get_table_types()) == {"SYSTEM TABLE", "TABLE"}
    assert "flowstate_views" in {each["table_name"] for each in tables[0]["db_schema_tables"]}
    assert connection.adbc_get_table_schema("flowstate_views").names[0] == "view"
    assert connection.adbc_get_info()["vendor_name"] == "flowstate"
    assert connection.adbc_current_catalog == "temp"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("selec 1", "selec"),
        ("select * from subtotal", "subtotals"),
        ("select totl from subtotals", "totl"),
        ("select 1; select 2", "one SELECT"),
        ("drop table subtotals", "SELECT"),
        ("select 1 where ? = ?", "parameter"),
    ],
)
def test_errors_are_sentences(cursor: Any, query: str, message: str) -> None:
    with pytest.raises(adbc_driver_manager.Error, match="(?i)" + message) as error:
        fetched(cursor, query)
    assert "Traceback" not in str(error.value)
    assert ".py" not in str(error.value)
    cursor.execute("select 42")
    assert cursor.fetchone() == (42,)


def test_an_update_is_refused(cursor: Any) -> None:
    with pytest.raises(adbc_driver_manager.Error, match="SELECT"):
        cursor.executemany("insert into subtotals values (?)", [(1,)])
    with pytest.raises(adbc_driver_manager.Error, match="read only"):
        cursor.adbc_ingest("subtotals", pa.table({"customer": ["x"]}))


def test_a_query_is_cancelled(cursor: Any) -> None:
    done = threading.Event()

    def cancel() -> None:  # again and again, since between two of its calls there is nothing to cancel
        while not done.wait(0.2):
            cursor.adbc_cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    begun = time.monotonic()
    with pytest.raises(adbc_driver_manager.Error):
        fetched(cursor, ENDLESS)
    done.set()
    canceller.join()
    assert time.monotonic() - begun < 30.0
    cursor.execute("select 42")
    assert cursor.fetchone() == (42,)


def test_headers_say_how_fresh_and_for_how_long(served: SqlGateway) -> None:
    def count(**headers: str) -> Any:
        with connect(served, **headers) as connection, connection.cursor() as cursor:
            cursor.execute("select count(*) from subtotals")
            return cursor.fetchone()

    assert count(max_age="0") == count(consistent="true") == count(at_least='{"events-0": 100}') == (122,)
    for headers, message in (
        ({"at_least": '{"events-0": 5000}'}, "not come as far as was asked for"),
        ({"max_age": "-1"}, "max_age is a number of seconds"),
        ({"max_age": "soon"}, "headers are like"),
        ({"max_aeg": "1"}, "did you mean 'max-age'?"),
        ({"snapshot": "3"}, "snapshot"),
    ):
        with pytest.raises(adbc_driver_manager.Error, match=message):
            count(**headers)
    with (
        connect(served, timeout="0.3") as connection,
        connection.cursor() as cursor,
        pytest.raises(adbc_driver_manager.Error, match="took longer than its timeout"),
    ):
        fetched(cursor, ENDLESS)
