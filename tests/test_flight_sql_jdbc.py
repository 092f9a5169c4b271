"""The Arrow Flight SQL JDBC driver, as DBeaver and the like use it. One Java program (`jdbc/Asker.java`) asks everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jdbc_client
import pytest
from sql_gateway import sql_gateway

Found = Mapping[str, Any]
pytestmark = pytest.mark.jdbc


@pytest.fixture(scope="module")
def found() -> Found:
    with sql_gateway() as served:
        return jdbc_client.ask(served.address)


def failure(answer: Any) -> list[str]:
    """Error and causes; fails if there was none."""
    assert answer[0] == "failed"
    assert not any(".py" in each or "Traceback" in each for each in answer[1])
    return list(answer[1])


def test_every_getter_of_the_metadata_answers(found: Found) -> None:
    asked, failed = found["getters"]
    assert asked > 100
    assert failed == []
    assert found["product"] == 'flowstate "true'


def test_catalogs_schemas_and_tables(found: Found) -> None:
    assert found["catalogs"] == [["temp"]]
    assert found["schemas"] == [["main", "temp"]]
    tables = [["temp", "main", "subtotals", "TABLE"], ["temp", "main", "subtotals_late", "TABLE"]]
    assert found["tables"] == tables
    assert found["tables of another schema"] == 0
    assert found["tables with an escape"] == [["subtotals_late"]]
    assert found["table types"] == [["SYSTEM TABLE"], ["TABLE"]]
    assert ["temp", "main", "flowstate_views", "SYSTEM TABLE"] in found["system tables"]


def test_columns_and_keys(found: Found) -> None:
    columns = {each[0]: each[1:] for each in found["columns"]}
    assert list(columns)[:3] == ["id", "long", "small"]
    assert columns["total"] == ["3", "DECIMAL", "38", "2", "8"]
    assert columns["zoned"][1] == "TIMESTAMP_WITH_TIMEZONE"
    assert columns["unsigned"][1] == "BIGINT"
    keys = [["customer", "1"], ["kind", "2"], ["month", "3"], ["month_end", "4"]]
    assert found["primary keys"] == keys
    assert found["imported keys"] == 0


def test_values_of_every_type_and_null(found: Found) -> None:
    values, nulls = found["strings"]
    assert values == [
        "ä'\"€", "-9223372036854775808", "-7", "4000000000", "0.1", "0.5", "true", "123456789012345678901234567890123456.78",
        "1950-02-03", "1969-12-31 23:59:59.123456", "2026-03-29 02:30:00.005", "\x00�", "[1,null,3]", '["a",null]',
    ]  # fmt: skip
    assert nulls == ["none", *[None] * 13]
    classes = {name: (kind, java) for name, kind, java in found["classes"]}
    assert classes["long"] == ("BIGINT", "Long")
    assert classes["total"] == ("DECIMAL", "BigDecimal")
    assert classes["day"] == ("DATE", "Date")
    assert classes["zoned"] == ("TIMESTAMP_WITH_TIMEZONE", "OffsetDateTime")
    assert classes["naive"] == ("TIMESTAMP", "Timestamp")
    assert classes["raw"] == ("VARBINARY", "byte[]")
    assert found["decimals"] == ["123456789012345678901234567890123456.78", 38, 2]
    assert found["enum"] == [["b"]]  # the value, not its place in the dictionary
    assert found["naive"] == ["TIMESTAMP", "1969-12-31 23:59:59.123456"]


def test_statements_and_prepared_statements(found: Found) -> None:
    assert found["twice"] == [[["1"]], [["2"]]]
    three, four, nobody, null = found["prepared"]
    assert three == [["customer-3", "0.31"], ["customer-3", "0.32"]]
    assert four == [["customer-4", "0.41"], ["customer-4", "0.42"]]
    assert nobody == []
    assert null == []
    assert found["prepared timestamp"] == [["61"]]
    assert found["prepared types"] == [["ä'\"€"]]
    assert found["many rows"] == [["300000", "44999850000"]]
    assert found["all of many rows"] == 300_000


def test_errors_are_sentences(found: Found) -> None:
    assert "subtotal" in failure(found["no such table"])[0]
    assert "subtotals" in failure(found["no such table"])[0]  # did you mean?
    assert "selec" in failure(found["wrong statement"])[0]
    assert "subtotals" in failure(found["wrong prepared"])[1]  # the driver tells the reason as the cause
    assert "SELECT" in failure(found["change"])[0]
    assert found["after errors"] == [["42"]]


def test_a_query_is_ended_by_its_timeout_and_by_cancel(found: Found) -> None:
    assert any("timed out after 1 SECONDS" in each for each in failure(found["timeout"]))
    assert failure(found["cancelled"])
    assert found["after that"] == [["42"]]


def test_properties_of_the_address_say_how_fresh(found: Found) -> None:
    assert found["consistent"] == [["122"]]
    assert "not come as far" in failure(found["too young"])[0]
    assert "did you mean 'max-age'?" in failure(found["wrong header"])[0]


def test_connections_close_in_order_and_a_user_is_no_obstacle(found: Found) -> None:
    assert found["closed"] == [[["122"]], True]
    assert found["user"] == [["1"]]
