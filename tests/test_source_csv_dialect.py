"""CSV as it is found: other signs, numbers, times and encodings, and headers that do not fit the schema."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowstate as fs
from flowstate.errors import CorruptData, InvalidFlow
from flowstate.plan.compile import compile
from flowstate.plan.describe import differences
from flowstate.plan.spec import ScanSpec
from flowstate.source import make_source

SCHEMA = pa.schema(
    {
        "Zähler": pa.string(),
        "kWh": pa.float64(),
        "Preis €": pa.decimal128(12, 2),
        "Stück": pa.int64(),
        "am": pa.timestamp("ms", "UTC"),
        "Tag": pa.date32(),
    }
)
GERMAN: dict[str, Any] = {
    "delimiter": ";",
    "decimal_point": ",",
    "time_format": ["%d.%m.%Y %H:%M", "%d.%m.%Y"],
    "encoding": "cp1252",
}
HEADER = "Zähler;kWh;Preis €;Stück;am;Tag\n"


def read(
    tmp_path: Path, data: bytes, schema: pa.Schema = SCHEMA, **options: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and reasons."""
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    source = make_source(ScanSpec("x", "files", schema, options={"url": str(path), **options}))
    (split,) = source.splits()
    reader = source.open()
    reader.assign(split, 0)
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for each in reader.poll({split.name: None}, max_rows=1000, timeout=0):
        rows += each.batch.select(schema.names).to_pylist()
        reasons += each.dead.column("reason").to_pylist()
    reader.close()
    return rows, reasons


def test_a_file_as_a_german_office_writes_it(tmp_path: Path) -> None:
    lines = HEADER + '"Müller; Söhne";-1.234,5;2.728,01;1.000;3.1.2026 09:05;03.01.2026\n;0,5;;7;04.01.2026;\n'
    rows, reasons = read(tmp_path, lines.encode("cp1252"), **GERMAN)
    utc, day = datetime.UTC, datetime.date(2026, 1, 3)
    at = [datetime.datetime(2026, 1, 3, 9, 5, tzinfo=utc), datetime.datetime(2026, 1, 4, tzinfo=utc)]
    assert [list(each.values()) for each in rows] == [
        ["Müller; Söhne", -1234.5, Decimal("2728.01"), 1000, at[0], day],
        [None, 0.5, None, 7, at[1], None],
    ]
    assert reasons == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a;1.5;1,00;1;03.01.2026;", "field 'kWh': '1.5' is not of type double, with the decimal point ','"),
        ("a;1,5;1.00;1;03.01.2026;", "field 'Preis €': '1.00' is not of type decimal128(12, 2), with the decimal point ','"),
        ("a;1,5;1,001;1;03.01.2026;", "field 'Preis €': '1.001' has 3 decimals, the type decimal128(12, 2) takes 2"),
        ("a;1,5;1,00;1,5;03.01.2026;", "field 'Stück': 1.5 is not of type int64"),
        ("a;1,5;1,00;1;2026-01-03;", "field 'am': '2026-01-03' is not written like '%d.%m.%Y %H:%M' or '%d.%m.%Y' (time_format)"),
        ("a;1,5;1,00;1;31.02.2026;", "field 'am': '31.02.2026' is not written like '%d.%m.%Y %H:%M' or '%d.%m.%Y' (time_format)"),
        ("a;1,5;1,00;1;;03.01.2026 10:00", "field 'Tag': '03.01.2026 10:00' is finer than the day of date32[day]"),
    ],
)  # fmt: skip
def test_a_value_is_read_by_what_was_said_alone(tmp_path: Path, row: str, reason: str) -> None:
    assert read(tmp_path, (HEADER + row + "\n").encode("cp1252"), **GERMAN) == ([], [reason])


@given(
    st.decimals(-(10**9), 10**9, places=2), st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1))
)
def test_what_is_written_one_way_is_read_back(amount: Decimal, moment: datetime.datetime) -> None:
    from flowstate.plan.dialect import Dialect
    from flowstate.source.csv_rows import CsvRows

    kinds = {"a": pa.decimal128(12, 2), "s": pa.timestamp("us", "UTC"), "n": pa.timestamp("ns")}
    dialect = Dialect("\t", ",", ("%d/%m/%Y %H:%M:%S.%f%z",))
    told = f"{amount:,}".translate(str.maketrans(",.", ".,"))
    when = f"{moment:%d/%m/%Y %H:%M:%S.%f}+0130"
    row = CsvRows(pa.schema(kinds), dialect=dialect).read(f"{told}\t{when}\t{when}".encode())
    micros = (moment - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1) - 90 * 60 * 10**6
    assert row == {"a": amount, "s": micros, "n": micros * 1000}


@pytest.mark.parametrize(
    ("header", "names", "options", "reason"),
    [
        ("Meter ID,kWh", ["Meter ID", "kwh"], {}, "the header has no column 'kwh'; did you mean 'kWh'? name the schema's columns"),
        ("Meter ID,used", ["meter_id", "used"], {}, "no column 'meter_id'; did you mean 'Meter ID'?"),
        ('a;"b, c";d', ["a", "d"], {}, "a quote within the unquoted field 1; pass delimiter=';', or pass header=False"),
        ("a\tb", ["a", "b"], {}, r"none of the schema's columns, it has 'a\tb'; pass delimiter='\t'"),
        ("a,b", ["a", "b"], {"delimiter": ";"}, "pass delimiter=','"),
        ("1,2", ["a", "b"], {}, "it has '1', '2'; correct the schema, or pass header=False"),
        ("Größe,b", ["Größe", "b"], {}, "not UTF-8: invalid start byte at byte 2; pass encoding= "),
    ],
)  # fmt: skip
def test_a_header_that_means_something_else_is_refused_with_what_to_do(
    tmp_path: Path, header: str, names: list[str], options: dict[str, Any], reason: str
) -> None:
    schema = pa.schema([(each, pa.string()) for each in names])
    with pytest.raises(CorruptData) as refused:
        read(tmp_path, header.encode("cp1252") + b"\n1,2\n", schema, **options)
    assert reason in str(refused.value)


def test_a_column_that_a_file_lacks_is_null(tmp_path: Path) -> None:
    schema = pa.schema({"customer": pa.string(), "note": pa.string()})
    assert read(tmp_path, b"customer,amount\nanna,1\n", schema) == ([{"customer": "anna", "note": None}], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ";;"}, "delimiter is one sign, such as ';'"),
        ({"delimiter": '"'}, "delimiter is one sign"),
        ({"decimal_point": ";"}, "decimal_point is '.' or ','"),
        ({"time_format": "%d.%m."}, "time_format tells no whole date: give year, month and day"),
        ({"time_format": 5}, "time_format is one as strptime knows them"),
        ({"time_format": "%Y-%m-%d %Q"}, "time_format is one as strptime knows them"),
        ({"encoding": "utf-16"}, "ASCII stays as it is, such as 'latin-1' or 'cp1252'"),
        ({"encoding": "klingon"}, "encoding is one that Python knows"),
        ({"format": "json", "delimiter": ";"}, "delimiter: only CSV files are told this; leave it out"),
    ],
)
def test_mistakes_are_told_when_the_flow_is_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFlow) as refused:
        fs.scan_files("x.csv", schema=pa.schema({"a": pa.string()}), **options)
    assert message in str(refused.value)


def test_how_a_file_is_read_belongs_to_the_flow() -> None:
    """A job that reads its log again has to read the same; what nobody said stands in no snapshot."""

    def told(**options: Any) -> Any:
        rows = fs.scan_files("x.csv", schema=pa.schema({"a": pa.string()}), **options)
        return compile([rows.group_by("a").agg(n=fs.len()).view("v").node]).describe()

    plain, german = told(), told(**GERMAN)
    assert not GERMAN.keys() & plain["sources"]["x"].keys()
    assert json.loads(json.dumps(german)) == german
    assert any("decimal_point" in each for each in differences(plain, german))
