"""A job in memory whose queries are answered in parts, over all rows, and by plain DuckDB, and what compares the answers."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
from flight_memory import MemoryPartition, directory_of, divide

from flowstate.view.directory import ViewInfo
from flowstate_flight import FlightReader, FlightService
from flowstate_sql import Session
from flowstate_sql.partial import answer_partial

COUNT = 3

VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "customer": (pa.string(), ["a", "b", "c", "", "ü"]),
    "number": (pa.int32(), [0, 1, 2, -5]),
    "small": (pa.int8(), [0, 100, -100]),
    "large": (pa.int64(), [0, 2**61, -(2**62)]),
    "big": (pa.uint64(), [0, 2**64 - 1, 5]),
    "total": (pa.decimal128(12, 2), [Decimal("0.00"), Decimal("1.50"), Decimal("-3.25"), Decimal("9999999999.99")]),
    "price": (pa.decimal128(38, 4), [Decimal("0.0001"), Decimal("123456789012345678.0001")]),
    "share": (pa.float64(), [0.0, 0.25, 1.5, -8.75]),
    "odd": (pa.float64(), [math.nan, 0.5, -0.0, 0.0]),
    "short": (pa.float32(), [0.5, -1.25]),
    "open": (pa.bool_(), [True, False]),
    "day": (pa.date32(), [dt.date(2026, 1, 1), dt.date(2026, 1, 2)]),
    "month": (pa.timestamp("ms", "UTC"), [dt.datetime(2026, month, 1, tzinfo=dt.UTC) for month in (1, 2, 3)]),
    "seen": (pa.timestamp("us"), [dt.datetime(2026, 1, 1, 0, 0, 0, 1), dt.datetime(2026, 1, 1)]),
    "exact": (pa.timestamp("ns"), [dt.datetime(2026, 1, 1, 7), dt.datetime(2026, 1, 1)]),
    "raw": (pa.binary(), [b"", b"a", b"\x00\xff"]),
}
ROUTINGS = [("customer",), ("customer", "number"), ("month",), ("total", "day"), ("big",), ("open",), ("raw",), ()]


def random_table(chance: random.Random, rows: int) -> pa.Table:
    columns = {}
    for name, (kind, values) in VALUES.items():
        column = [None if chance.random() < 0.15 else chance.choice(values) for _ in range(rows)]
        columns[name] = pa.array(column, kind)
    columns["id"] = pa.array(range(rows), pa.int64())
    return pa.table(columns)


class Whole:
    """A reader whose partitions compute nothing: all queries are answered over the rows."""

    def __init__(self, reader: FlightReader) -> None:
        self.views, self.info, self.scan_reader, self.moment = (
            reader.views, reader.info, reader.scan_reader, reader.moment,
        )  # fmt: skip


class Harness:
    """One service; a table is loaded as a job is divided anew. `connecting` are options of its reader, `options` those of the service."""

    def __init__(self, connecting: dict[str, Any] | None = None, **options: Any) -> None:
        self.connecting = connecting or {}
        self.service = FlightService(**options)
        self.service.set_partial_handler(self.answer)
        self.computed = 0
        self.version = 0
        self.closing: list[Any] = []
        self.standing = False

    def answer(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch], text: str, keys: Sequence[str]) -> Any:
        self.computed += 1
        return answer_partial(schema, batches, text, keys)

    def load(self, table: pa.Table, routing: tuple[str, ...], saved: Any = None) -> None:
        self.close()
        self.standing = False
        self.version += 1
        keys = (*routing, "id") if routing else ()
        self.info = ViewInfo("data", table.schema, "keyed" if routing else "append", keys, routing)
        self.partitions = []
        for number, part in enumerate(divide(self.info, table, COUNT)):
            held = MemoryPartition("j", number, self.version, {"data": self.info}, {"data": part}, rows_per_batch=4)
            self.service.register(held)
            self.partitions.append(held)
        self.place([self.service.location] * COUNT)
        self.reader = FlightReader(self.service.location, saved=saved, grace=0.2, patience=10.0, **self.connecting)
        self.session = Session(self.reader)
        self.full = Session(Whole(self.reader))
        self.plain = duckdb.connect()
        self.plain.execute("set TimeZone = 'UTC'")
        self.plain.register("given", table)
        self.plain.execute("create table data as select * from given")  # nothing of Arrow's filters
        self.closing = [self.session, self.full, self.reader, self.plain]

    def place(self, locations: Sequence[str | None]) -> None:
        self.service.set_directory(directory_of("j", {"data": self.info}, locations, self.version, self.version))

    def close(self) -> None:
        for each in self.closing:
            each.close()
        self.closing = []

    def check(self, query: str, params: Any = None) -> bool:
        """All tiers give plain DuckDB's answer. Whether it was computed in parts."""
        before = self.computed
        wanted = self.plain.sql(query, params=params)
        rows = wanted.fetchall()
        for session in (self.session, self.full):
            got = session.sql(query, params)
            assert got.columns == wanted.columns, query
            assert got.types == wanted.types, query
            assert same(got.fetchall(), rows), query
        return self.computed > before

    def told(self, query: str, params: Any = None) -> list[str]:
        return [text for (text,) in self.session.sql(query, params).fetchall()]


def same(one: Sequence[tuple[Any, ...]], other: Sequence[tuple[Any, ...]]) -> bool:
    """The same rows in some order; floats up to rounding."""

    def rough(row: tuple[Any, ...]) -> list[str]:
        return [f"{value + 0.0:.5g}" if isinstance(value, float) else repr(value) for value in row]

    def equal(left: Any, right: Any) -> bool:
        if isinstance(left, float) and isinstance(right, float):
            both = math.isnan(left) and math.isnan(right)
            return both or math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12)
        return type(left) is type(right) and left == right

    if len(one) != len(other):
        return False
    pairs = zip(sorted(one, key=rough), sorted(other, key=rough), strict=True)
    return all(equal(left, right) for row, mate in pairs for left, right in zip(row, mate, strict=True))
