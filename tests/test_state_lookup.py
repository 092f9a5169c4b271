"""Rows of a lookup that are written as one Arrow message are those that are made column by column."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import InvalidFlow
from flowstate.plan.encoding import BLOCK, SCRATCH_WORDS
from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.state.table import KeyedTable

TIME = pa.timestamp("us", "UTC")
MONEY = pa.decimal128(12, 2)
KEYS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "text": (pa.string(), ["", "a", "customer-00000001", "x" * 8, "ä" * 30, None]),
    "bytes": (pa.binary(), [b"", b"\0", b"\xff" * 9]),
    "number": (pa.int64(), [-(2**63), 2**63 - 1, 0, 7]),
    "float": (pa.float64(), [0.0, -1.5]),
    "money": (MONEY, [Decimal("0.01"), Decimal("-9.99")]),
}
INT, FLOAT = pa.int64(), pa.float64()
AGGREGATES = [
    AggregateSpec("rows", "len", None, None, INT),
    AggregateSpec("sum", "sum", "i", INT, INT),
    AggregateSpec("unsigned", "sum", "u", pa.uint64(), pa.uint64()),
    AggregateSpec("total", "sum", "d", MONEY, pa.decimal128(38, 2)),
    AggregateSpec("floats", "sum", "f", FLOAT, FLOAT),
    AggregateSpec("seen", "count", "i", INT, INT),
    AggregateSpec("least", "min", "i", INT, INT),
    AggregateSpec("most", "max", "d", MONEY, MONEY),
    AggregateSpec("latest", "max", "t", TIME, TIME),
    AggregateSpec("last", "last", "f", FLOAT, FLOAT),
]


def table_of(spec: TableSpec, rows: pa.RecordBatch, *, columns: bool = False) -> KeyedTable:
    """A table with these rows; with `columns`, one whose lookups are made column by column."""
    table = KeyedTable(spec, seed=3, chunk_rows=8)
    assert table._layout.message is not None
    if columns:
        table._layout.__dict__["message"] = None
    for first in range(0, rows.num_rows, 5):
        table.apply(rows.slice(first, 5))
    return table


def some(draw: Any, kind: pa.DataType, values: list[Any], count: int) -> pa.Array:
    return pa.array(draw(st.lists(st.sampled_from(values), min_size=count, max_size=count)), kind)


@st.composite
def cases(draw: Any) -> tuple[TableSpec, pa.RecordBatch, pa.RecordBatch]:
    names = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True))
    chosen = draw(st.lists(st.sampled_from(AGGREGATES), min_size=0, max_size=5, unique_by=lambda each: each.name))
    window = draw(st.booleans())
    spec = TableSpec(
        "totals",
        tuple(pa.field(name, KEYS[name][0]) for name in names),
        WindowSpec("at", Period(microseconds=10), TIME) if window else None,
        tuple(chosen),
        TIME if window else None,
    )
    count = draw(st.integers(1, 60))
    columns = {name: some(draw, *KEYS[name], count) for name in names}
    if window:
        starts = np.array(draw(st.lists(st.sampled_from([0, 10, 20]), min_size=count, max_size=count)), np.int64)
        columns |= {"at": pa.array(starts).view(TIME), "at_end": pa.array(starts + 10).view(TIME)}
    columns |= {
        "i": some(draw, INT, [1, -5, None, 2**40], count),
        "u": some(draw, pa.uint64(), [1, 2**50, None], count),
        "d": some(draw, MONEY, [Decimal("1.25"), Decimal("-3.00"), None], count),
        "f": some(draw, FLOAT, [0.5, -2.0, None], count),
        "t": some(draw, INT, [5, 6, None], count).view(TIME),
        "__offset": pa.array(range(count), INT),
        "__time": pa.array([0] * count, INT),
    }
    asked = draw(st.integers(0, 150))
    keys = pa.record_batch({name: some(draw, *KEYS[name], asked + 2) for name in names}).slice(1, asked)
    if window and draw(st.booleans()):
        starts = np.array(draw(st.lists(st.sampled_from([0, 10, 30]), min_size=asked, max_size=asked)), np.int64)
        for name, values in (("at", starts), ("at_end", starts + 10)):
            keys = keys.append_column(name, pa.array(values, INT).view(TIME))
    return spec, pa.record_batch(columns), keys


@settings(max_examples=60)
@given(cases())
def test_a_message_has_the_rows_that_columns_have(case: tuple[TableSpec, pa.RecordBatch, pa.RecordBatch]) -> None:
    spec, rows, keys = case
    found = table_of(spec, rows).lookup(keys)
    found.validate(full=True)
    assert found.schema.equals(spec.schema)
    assert found.equals(table_of(spec, rows, columns=True).lookup(keys))
    whole = list(spec.key_schema.names)
    assert list(zip(*found.select(whole).to_pydict().values(), strict=True)) == list(naive(spec, rows, keys))
    if "rows" in found.schema.names:
        assert found.column("rows").to_pylist() == list(naive(spec, rows, keys).values())


def naive(spec: TableSpec, rows: pa.RecordBatch, keys: pa.RecordBatch) -> dict[tuple[Any, ...], int]:
    """What a lookup finds, in its order: full keys, each with how many rows it has."""
    counts = Counter(zip(*rows.select(spec.key_schema.names).to_pydict().values(), strict=True))
    asked = dict.fromkeys(zip(*keys.to_pydict().values(), strict=True))
    by_key = dict[tuple[Any, ...], list[tuple[Any, ...]]]()
    for each in sorted(counts, key=lambda full: full[len(spec.keys) :]):
        by_key.setdefault(each[: keys.num_columns], []).append(each)
    return {full: counts[full] for key in asked for full in by_key.get(key, [])}


def test_many_keys_in_many_windows_some_of_which_have_gone() -> None:
    """Keys in several blocks, one of them larger than the memory that keys are encoded in."""
    rows = (AggregateSpec("rows", "len", None, None, INT),)
    spec = TableSpec(
        "t", (pa.field("k", pa.string()),), WindowSpec("at", Period(microseconds=10), TIME, grace=0, keep=5), rows, TIME
    )
    names = [f"key-{each}" for each in range(2 * BLOCK)] + ["x" * 16 * SCRATCH_WORDS]
    starts = np.repeat(np.arange(5) * 10, len(names))
    there = np.random.default_rng(1).random(len(starts)) < 0.7
    columns = {"k": pa.array(names * 5), "at": pa.array(starts).view(TIME), "at_end": pa.array(starts + 10).view(TIME)}
    batch = pa.record_batch(columns).filter(pa.array(there))
    table = KeyedTable(spec, seed=3)
    table.apply(batch)
    asked = pa.record_batch({"k": [*reversed(names), "nobody", *names[:5]]})
    for gone in (0, 35, 45):
        table.expire(gone)
        left = batch.filter(pa.array(np.asarray(batch.column("at").cast(INT)) + 15 > gone))
        found = table.lookup(asked)
        expected = naive(spec, left, asked)
        assert list(zip(*found.drop_columns("rows").to_pydict().values(), strict=True)) == list(expected)
        assert found.column("rows").to_pylist() == list(expected.values())
        assert len(expected) > 2 * BLOCK or gone == 45


def test_a_sum_that_does_not_fit_is_refused_by_its_key_and_the_others_are_read() -> None:
    spec = TableSpec("totals", (pa.field("k", pa.string()),), None, (AggregateSpec("sum", "sum", "i", INT, INT),))
    names = ["a", "b", "a", "c"]
    rows = pa.record_batch(
        {"k": names, "i": pa.array([2**62, 1, 2**62, -(2**63)], INT), "__offset": pa.array([0, 1, 2, 3])}
    )
    table = table_of(spec, rows)
    assert table.lookup(pa.record_batch({"k": ["b", "c"]})).to_pylist() == [
        {"k": "b", "sum": 1},
        {"k": "c", "sum": -(2**63)},
    ]
    with pytest.raises(InvalidFlow) as caught:
        table.lookup(pa.record_batch({"k": ["b", "a"]}))
    assert caught.value.facts["key"] == {"k": "a"}


def test_rows_found_are_not_changed_by_what_is_applied_after() -> None:
    spec = TableSpec("totals", (pa.field("k", pa.string()),), None, (AggregateSpec("rows", "len", None, None, INT),))
    rows = pa.record_batch({"k": [f"key-{each}" for each in range(500)], "__offset": pa.array(range(500), INT)})
    table = table_of(spec, rows)
    found = table.find(table.asked(rows.select(["k"])))
    before = table.lookup(rows.select(["k"]))
    table.apply(rows)
    assert found.results().equals(before)
    assert before.column("rows").to_pylist() == [1] * 500
    del table
    assert before.column("k").to_pylist() == rows.column("k").to_pylist()


def test_what_is_warmed_up_is_all_that_a_lookup_needs() -> None:
    code = """
from flowstate.state.kernels import lookup, message, warm_up

warm_up()
assert message.measure.signatures
assert message.write.signatures
assert lookup.locate_all.signatures
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
