"""Many keys: what they cost, that windows give their memory back, and that nothing is lost on the way."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.runtime import provide
from flowstate.state import block as state_block
from flowstate.state.block import Reserve
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


def tables_of_index(table: KeyedTable) -> int:
    return sum(int((each.index.counts[:, 1] > 0).sum()) for each in table._windows.by_id.values())


def test_the_index_grows_in_small_steps_and_nothing_is_lost_between_them() -> None:
    table, block, count = KeyedTable(billing(True), seed=11), 8192, 500_000
    asked, steps, before = np.random.default_rng(5), [], 1
    for first in range(0, count, block):
        table.apply(rows(first, block, month=first // block % 2))
        steps.append(tables_of_index(table) - before)
        before += steps[-1]
        some = pa.array(asked.integers(0, first + block, 50)).cast(pa.string())
        found = table.lookup(
            pa.record_batch({"customer": pc.binary_join_element_wise("customer-", pc.utf8_lpad(some, 8, "0"), "")})
        )
        assert found.column("total").cast(pa.string()).to_pylist() == list(dict.fromkeys(some.to_pylist()))
    # A table is split when it holds a few thousand keys, and not all tables when the index has doubled.
    assert before > 100
    assert max(steps) <= 8, steps


def test_a_window_is_gone_at_once_and_views_of_it_stay() -> None:
    table = KeyedTable(billing(True), seed=11)
    for first in range(0, 100_000, 50_000):
        table.apply(rows(first, 50_000, 0))
        table.apply(rows(first, 50_000, 1))
    view, alone = table.view(), KeyedTable(billing(True), seed=11)
    for first in range(0, 100_000, 50_000):
        alone.apply(rows(first, 50_000, 1))
    assert table.expire(1) == 100_000
    left, of_one = table.memory(), alone.memory()
    assert {name: left[name] for name in ("index", "keys", "columns")} == {
        name: of_one[name] for name in ("index", "keys", "columns")
    }
    # A window of the same number comes, with the same keys and other totals.
    table.apply(rows(0, 1000, 5))
    assert table.windows() == [(2, 100_000), (6, 1000)]
    seen = pa.Table.from_batches(view.batches())
    assert seen.num_rows == 200_000
    assert pc.sum(seen.column("total")).as_py() == 2 * sum(range(100_000))
    again = KeyedTable(billing(True), seed=11)
    again.restore(each.state() for each in view.chunks)
    assert again.windows() == [(1, 100_000), (2, 100_000)]
    assert again.expire(1) == 100_000
    assert pc.sum(pa.Table.from_batches(again.view().batches()).column("total")).as_py() == sum(range(100_000))


def test_memory_is_made_ready_while_a_table_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Reserve()
    monkeypatch.setattr(state_block, "reserve", reserve)
    monkeypatch.setattr(provide, "reserve", reserve)
    assert reserve.take() is None
    assert not reserve.fill()  # nobody took any: a process whose tables are small keeps none
    provide.provide_memory()
    table, block = KeyedTable(billing(False), seed=11), 50_000
    for first in range(0, 400_000, block):
        table.apply(rows(first, block))
    soon = time.monotonic() + 20
    while not (ready := reserve.nbytes):
        assert time.monotonic() < soon
        threading.Event().wait(0.01)
    slab = reserve.take()
    assert slab is not None
    assert slab.ctypes.data % (2 << 20) == 0
    assert not slab.any()
    assert ready <= 4 * slab.nbytes
    found = pa.Table.from_batches(table.view().batches())
    assert pc.sum(found.column("total")).as_py() == sum(range(400_000))
    assert pc.count_distinct(found.column("customer")).as_py() == 400_000
