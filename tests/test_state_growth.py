"""Many keys: what they cost, that windows give their memory back, and that nothing is lost on the way."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.state.table import KeyedTable

TIME = pa.timestamp("us", "UTC")
MONEY = pa.decimal128(12, 2)


def billing(window: bool) -> TableSpec:
    month = WindowSpec("month", Period(months=1), TIME, grace=0, keep=0) if window else None
    aggregates = (
        AggregateSpec("total", "sum", "amount", pa.int64(), pa.int64()),
        AggregateSpec("events", "len", None, None, pa.int64()),
    )
    return TableSpec("totals", (pa.field("customer", pa.string()),), month, aggregates, TIME if window else None)


def rows(first: int, count: int, month: int | None = None) -> pa.RecordBatch:
    numbers = np.arange(first, first + count)
    columns = {
        "customer": pa.array([f"customer-{number:08d}" for number in numbers.tolist()]),
        "amount": pa.array(numbers),
        "__offset": pa.array(numbers),
    }
    if month is not None:
        columns["month"] = pa.array(np.full(count, month), pa.int64()).view(TIME)
        columns["month_end"] = pa.array(np.full(count, month + 1), pa.int64()).view(TIME)
    return pa.record_batch(columns)


def test_a_million_keys_are_all_found_and_cost_under_a_hundred_bytes_each() -> None:
    table = KeyedTable(billing(False), seed=11)
    count, block = 1_000_000, 50_000
    blocks = [rows(first, block) for first in range(0, count, block)]
    for each in blocks:
        table.apply(each)
    for each in reversed(blocks):
        table.apply(each)
    assert table.rows == count
    memory = table.memory()
    assert (memory["index"] + memory["keys"] + memory["other"]) / count - 17 < 100
    assert memory["columns"] / count < 26
    found = pa.Table.from_batches(table.view().batches())
    assert found.num_rows == count == pc.count_distinct(found.column("customer")).as_py()
    assert pc.min_max(found.column("events")).as_py() == {"min": 2, "max": 2}
    numbers = pc.utf8_slice_codeunits(found.column("customer"), 9).cast(pa.int64())
    assert pc.all(pc.equal(found.column("total"), pc.multiply(numbers, 2))).as_py()
    assert table.lookup(rows(0, 3).select(["customer"])).column("total").to_pylist() == [0, 2, 4]


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_expiry_gives_memory_back() -> None:
    table = KeyedTable(billing(True), seed=11)
    for month in range(3):
        for first in range(0, 200_000, 50_000):
            table.apply(rows(first, 50_000, month))
    gc.collect()
    full, before = table.memory(), resident()
    assert table.windows() == [(1, 200_000), (2, 200_000), (3, 200_000)]
    assert table.expire(2) == 400_000
    gc.collect()
    left = table.memory()
    for name in ("index", "keys", "columns"):
        assert left[name] <= full[name] * 0.51, (name, full, left)
    own = sum(full[name] - left[name] for name in ("index", "keys", "columns"))
    assert before - resident() > own / 2
    assert table.rows == 200_000
    # What comes after is as good as new: numbers of windows and chunks are used again, ids are not.
    known = {each.id for each in table.view().chunks}
    table.apply(rows(0, 50_000, 7))
    assert {each.id for each in table.view().chunks} > known
    assert table.windows() == [(3, 200_000), (8, 50_000)]
    found = pa.Table.from_batches(table.view().batches())
    assert pc.sum(found.column("total")).as_py() == sum(range(200_000)) + sum(range(50_000))
    assert table.expire(2**60) == 250_000
    assert table.rows == 0
    assert list(table.view().batches()) == []


def test_many_windows() -> None:
    table = KeyedTable(billing(True), seed=11, chunk_rows=64)
    for month in range(0, 600, 3):
        table.apply(pa.concat_batches([rows(0, 10, month), rows(5, 10, month + 1)]))
    assert len(table.windows()) == 400
    assert table.lookup(rows(7, 1).select(["customer"])).num_rows == 400
    assert table.lookup(rows(7, 1, 3).select(["customer", "month", "month_end"])).num_rows == 1
    assert table.expire(300) == 10 * 200
    assert table.lookup(rows(7, 1).select(["customer"])).column("total").to_pylist() == [7] * 200
