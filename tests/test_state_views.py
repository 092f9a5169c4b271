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
from flowstate.plan.window import WindowSpec
from flowstate.runtime.gate import Gate
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


def test_concurrent_reads_are_never_torn() -> None:
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


def test_arrays_outlive_their_view_and_its_memory_is_not_used_again_before() -> None:
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


def test_a_chunk_says_when_it_changed() -> None:
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
