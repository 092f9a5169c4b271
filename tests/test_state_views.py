"""Views of keyed state: immutable, whole, and safe to read and drop in other threads while the table goes on."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flowstate.errors import InvalidFlow
from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.runtime.gate import Gate
from flowstate.state import table as state_table
from flowstate.state.table import KeyedTable
from flowstate.state.view import TableView

TIME = pa.timestamp("us", "UTC")


def spec(*functions: str, window: WindowSpec | None = None) -> TableSpec:
    kinds = {"sum": pa.int64(), "max": pa.string(), "last": pa.string()}
    inputs = {"sum": ("a", pa.int64()), "max": ("s", pa.string()), "last": ("s", pa.string())}
    aggregates = tuple(AggregateSpec(each, each, *inputs[each], kinds[each]) for each in functions)
    return TableSpec("t", (pa.field("k", pa.int64()),), window, aggregates, TIME if window else None)


def balanced(random: np.random.Generator, keys: int, rows: int) -> pa.RecordBatch:
    """Rows whose sum of a is minus the sum of b, spread over keys."""
    amounts = random.integers(-1000, 1000, rows)
    return pa.record_batch(
        {"k": random.integers(0, keys, rows), "a": amounts, "b": np.roll(-amounts, 1), "__offset": np.arange(rows)}
    )


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A large table saves rows before it writes them, and copies a chunk or two in each block."""
    if request.param == "large":
        monkeypatch.setattr(state_table, "_LARGE", -1)
        monkeypatch.setattr(state_table, "_COPIED", 100)
    return str(request.param)


def test_concurrent_reads_are_never_torn(size: str) -> None:
    aggregates = (
        AggregateSpec("a", "sum", "a", pa.int64(), pa.int64()),
        AggregateSpec("b", "sum", "b", pa.int64(), pa.int64()),
        AggregateSpec("n", "len", None, None, pa.int64()),
    )
    table = KeyedTable(TableSpec("t", (pa.field("k", pa.int64()),), None, aggregates), seed=1, chunk_rows=32)
    random = np.random.default_rng(3)
    batches = [balanced(random, 100, 50) for _ in range(40)]
    table.apply(batches[0])
    # A plain lock would let the writer starve the readers: it comes back before they wake.
    gate, ended, failures, reads = Gate(), threading.Event(), list[Any](), [0, 0]
    latest: list[TableView] = []

    def read(number: int) -> None:
        try:
            kept = None
            while reads[number] < 1_000:
                with gate:
                    view = table.view() if reads[number] % 3 == 0 or not latest else latest[0]
                    latest[:] = [view]
                found = pa.Table.from_batches(view.batches())
                del view
                total = [pc.sum(found.column(name)).as_py() for name in ("a", "b", "n")]
                if total[0] != -total[1] or total[2] % 50:
                    failures.append(total)
                if kept is not None and pc.sum(kept[0].column("a")).as_py() != kept[1]:
                    failures.append(("arrays that outlived their view changed", kept[1]))
                if reads[number] % 7 == 0:
                    kept = (found, total[0])
                reads[number] += 1
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for each in readers:
        each.start()
    applied = 1
    while any(each.is_alive() for each in readers):
        with gate:
            table.apply(batches[applied % len(batches)])
            applied += 1
    for each in readers:
        each.join()
    assert not failures, failures[:3]
    assert sum(reads) == 2_000
    assert applied > 100
    assert sum(each.num_rows for each in table.view().batches()) == table.rows


def test_arrays_outlive_their_view_and_its_memory_is_not_used_again_before(size: str) -> None:
    table = KeyedTable(spec("sum"), seed=1, chunk_rows=16)
    table.apply(pa.record_batch({"k": range(100), "a": range(100), "__offset": range(100)}))
    view = table.view()
    held = [each.column("sum") for each in view.batches()]
    states = [each.state() for each in view.chunks]
    before = [each.to_pylist() for each in held], [each.to_pylist() for each in states]
    view.release()
    view.release()
    del view
    # Nobody has a view any more, only arrays.
    table.apply(pa.record_batch({"k": range(100), "a": [7] * 100, "__offset": range(100)}))
    assert ([each.to_pylist() for each in held], [each.to_pylist() for each in states]) == before
    table.apply(pa.record_batch({"k": range(100), "a": [-7] * 100, "__offset": range(100)}))
    assert ([each.to_pylist() for each in held], [each.to_pylist() for each in states]) == before
    for _ in range(50):  # every block is copied and dropped many times over
        other = table.view()
        table.apply(pa.record_batch({"k": range(100), "a": [1] * 100, "__offset": range(100)}))
        other.release()
    assert ([each.to_pylist() for each in held], [each.to_pylist() for each in states]) == before
    assert pc.sum(pa.chunked_array([each.column("sum") for each in table.view().batches()])).as_py() == 4950 + 5000


def test_a_chunk_is_copied_once_per_view_and_not_at_all_without_one() -> None:
    table = KeyedTable(spec("sum"), seed=1, chunk_rows=64)
    batch = pa.record_batch({"k": range(64), "a": [1] * 64, "__offset": range(64)})
    table.apply(batch)

    def addresses() -> list[int]:
        return [each.block.address for each in table._stored if each is not None]

    first = addresses()
    view = table.view()
    table.apply(batch)
    second = addresses()
    assert second != first
    table.apply(batch)
    assert addresses() == second
    view.release()
    del view
    gc.collect()
    other = table.view()
    other.release()
    table.apply(batch)
    assert addresses() == second
    again = table.view()
    table.apply(batch)
    assert addresses() == first  # the pooled block
    assert again.rows == 64


def test_a_chunk_says_when_it_changed(size: str) -> None:
    table = KeyedTable(spec("sum"), seed=1, chunk_rows=4)
    table.apply(pa.record_batch({"k": range(8), "a": range(8), "__offset": range(8)}))
    before = {each.id: each.version for each in table.view().chunks}
    table.apply(pa.record_batch({"k": [0], "a": [1], "__offset": [8]}))
    after = {each.id: each.version for each in table.view().chunks}
    assert before.keys() == after.keys()
    assert len(before) == 2
    assert sum(before[each] != after[each] for each in before) == 1
    table.lookup(pa.record_batch({"k": [5]}))
    assert {each.id: each.version for each in table.view().chunks} == after


def test_texts_of_a_view_stay_while_the_table_replaces_them() -> None:
    table = KeyedTable(spec("max", "last"), seed=1, chunk_rows=8)
    seen = []
    for turn in range(60):
        texts = [f"{turn:03d}" * (1 + turn % 7)] * 20
        table.apply(
            pa.record_batch(
                {"k": range(20), "s": texts, "__offset": range(20), "__time": pa.array([turn] * 20, pa.int64())}
            )
        )
        seen.append((table.view(), texts[0]))
    for view, text in seen:
        for batch in view.batches():
            assert set(batch.column("max").to_pylist()) == {text}
            assert set(batch.column("last").to_pylist()) == {text}
    assert table.memory()["columns"] < 100_000  # replaced texts do not pile up


def test_a_released_view_says_so() -> None:
    table = KeyedTable(spec("sum"), seed=1)
    view = table.view()
    assert list(view.batches()) == []
    view.release()
    with pytest.raises(InvalidFlow, match="released"):
        list(view.batches())
    with pytest.raises(InvalidFlow, match="did you mean 'sum'"):
        list(table.view().batches(["summ"]))


@pytest.mark.parametrize("seed", range(3))
def test_views_stay_what_they_were_whatever_happens_to_the_table(size: str, seed: int) -> None:
    """Views of several moments, held for long or short, while keys are added and changed, windows go and come with the same numbers, and
    chunks grow. What a view shows is compared with what it showed at once, as are its saved chunks when they are restored."""
    random = np.random.default_rng(seed)
    kinds = [("sum", "a", pa.int64()), ("min", "a", pa.int64()), ("mean", "a", pa.float64()), ("last", "a", pa.int64())]
    aggregates = tuple(AggregateSpec(name, name, column, pa.int64(), result) for name, column, result in kinds)
    window = WindowSpec("at", Period(microseconds=1), TIME, grace=0, keep=0)
    plan = TableSpec("t", (pa.field("k", pa.int64()),), window, aggregates, TIME)
    table, held, offset = KeyedTable(plan, seed=1, chunk_rows=int(random.choice([4, 16, 64]))), list[Any](), 0

    def shown(view: TableView) -> list[Any]:
        return sorted(map(str, pa.Table.from_batches(view.batches(), view.schema).to_pylist()))

    def check(view: TableView, wanted: list[Any], arrays: pa.Table, values: list[Any]) -> None:
        assert shown(view) == wanted
        assert arrays.to_pylist() == values
        again = KeyedTable(plan, seed=1)
        again.restore(each.state() for each in view.chunks)
        assert shown(again.view()) == wanted

    for step in range(40):
        rows, first = int(random.integers(1, 200)), step // 8
        starts = random.integers(first, first + 3, rows)
        columns = {"k": random.integers(0, 30 + 5 * step, rows), "a": random.integers(-1000, 1000, rows)}
        times = {name: pa.array(each, pa.int64()).view(TIME) for name, each in (("at", starts), ("at_end", starts + 1))}
        order = {"__offset": np.arange(offset, offset + rows), "__time": random.integers(0, 99, rows)}
        table.apply(pa.record_batch({**columns, **times, **order}))
        offset += rows
        if step % 8 == 0:
            table.expire(first)
        if random.random() < 0.6:
            view = table.view()
            arrays = pa.Table.from_batches(view.batches(), view.schema)
            held.append((view, shown(view), arrays, arrays.to_pylist()))
        while held and random.random() < 0.3:
            check(*held.pop(int(random.integers(0, len(held)))))
        if step == 19:
            for each in held:
                check(*each)
    for each in held:
        check(*each)


def test_the_first_block_after_a_view_of_many_keys_copies_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_table, "_LARGE", 4 << 20)
    table = KeyedTable(spec("sum"), seed=1)
    keys, rows = 600_000, 16_384
    for first in range(0, keys, 50_000):
        numbers = np.arange(first, first + 50_000)
        table.apply(pa.record_batch({"k": numbers, "a": numbers, "__offset": numbers}))
    random = np.random.default_rng(5)
    blocks = [random.integers(0, keys, rows) for _ in range(40)]

    def blocks_of_memory() -> set[int]:
        return {each.block.address for each in table._stored if each is not None}

    view, before, copied = table.view(), blocks_of_memory(), []
    for each in blocks:
        known = blocks_of_memory()
        table.apply(pa.record_batch({"k": each, "a": np.ones(rows, np.int64), "__offset": each}))
        copied.append(len(blocks_of_memory() - known))
    assert max(copied) <= 5  # of 37 chunks, all of which each block writes
    assert not blocks_of_memory() & before  # in the end each is copied once, as long as the view is held
    assert copied[-1] == 0
    found = pa.Table.from_batches(view.batches())
    assert pc.all(pc.equal(found.column("k"), found.column("sum"))).as_py()
    del view, found
    again, known = table.view(), blocks_of_memory()
    again.release()
    del again
    table.apply(pa.record_batch({"k": blocks[0], "a": np.ones(rows, np.int64), "__offset": blocks[0]}))
    assert blocks_of_memory() == known
    assert pc.sum(pa.Table.from_batches(table.view().batches()).column("sum")).as_py() == sum(range(keys)) + 41 * rows
