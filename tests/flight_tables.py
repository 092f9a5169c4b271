"""Tables that the tests of reading share: subtotals by customer, kind and month, and an append table."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa

from flowstate.view.directory import ViewInfo

MONTH = pa.timestamp("ms", "UTC")
JANUARY, FEBRUARY, MARCH = (dt.datetime(2026, month, 1, tzinfo=dt.UTC) for month in (1, 2, 3))


def subtotals(customers: int = 60) -> pa.Table:
    """Two months for each customer and for the customer null; kinds a and b by turns."""
    names: list[str | None] = [f"customer-{each}" for each in range(customers)]
    rows = [
        (name, "ab"[index % 2], start, end, Decimal(index * 10 + start.month) / 100, index)
        for index, name in enumerate([*names, None])
        for start, end in ((JANUARY, FEBRUARY), (FEBRUARY, MARCH))
    ]
    schema = pa.schema(
        [
            pa.field("customer", pa.string()),
            pa.field("kind", pa.string()),
            pa.field("month", MONTH, nullable=False),
            pa.field("month_end", MONTH, nullable=False),
            pa.field("total", pa.decimal128(12, 2)),
            pa.field("events", pa.int64()),
        ]
    )
    return pa.Table.from_arrays(
        [pa.array(column, each.type) for column, each in zip(zip(*rows, strict=True), schema, strict=True)],
        schema=schema,
    )


def late_rows(rows: int = 30) -> pa.Table:
    return pa.table(
        {
            "split": ["events-0"] * rows,
            "offset": pa.array(range(rows), pa.int64()),
            "reason": [None, "late"] * (rows // 2),
        }
    )


KEYS = ("customer", "kind", "month", "month_end")
VIEWS = {
    "subtotals": ViewInfo("subtotals", subtotals(1).schema, "keyed", KEYS, ("customer", "kind"), "month"),
    "subtotals_late": ViewInfo("subtotals_late", late_rows(2).schema, "append"),
}
TABLES = {"subtotals": subtotals(), "subtotals_late": late_rows()}


def ordered(table: pa.Table) -> list[dict[str, object]]:
    """Rows in one order, to compare."""
    return sorted(table.to_pylist(), key=repr)
