"""Which keys changed since a baseline: chunks, copies and restores against a table that remembers every row."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import InvalidFlow
from flowstate.plan.portable import dump_tables, load_tables
from flowstate.plan.position import OFFSET
from flowstate.plan.spec import REVISION, REVISIONS, AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.state.table import KeyedTable
from flowstate.state.view import Baseline, TableView
from flowstate.testing.reference import Key, ReferenceTable, canonical

TIME = pa.timestamp("ms", "UTC")
COUNTED = AggregateSpec(REVISIONS, "len", None, None, pa.int64())


def spec(*, windowed: bool = True, counted: bool = True) -> TableSpec:
    window = WindowSpec("w", Period(microseconds=1000), TIME, grace=0, keep=0) if windowed else None
    aggregates = (
        AggregateSpec("total", "sum", "a", pa.int64(), pa.int64()),
        AggregateSpec("mean", "mean", "a", pa.int64(), pa.float64()),
        AggregateSpec("most", "max", "s", pa.string(), pa.string()),
        AggregateSpec("newest", "last", "s", pa.string(), pa.string()),
    )
    keys = (pa.field("k", pa.string()), pa.field("n", pa.int32()))
    return TableSpec("t", keys, window, (*aggregates, *([COUNTED] if counted else [])), TIME if windowed else None)


class Twin:
    """`revisions` and `changed` by a dictionary of numbers."""

    def __init__(self, spec: TableSpec) -> None:
        self.table = ReferenceTable(spec)

    def changed(self, since: dict[Key, int] | None, ends: list[int] | None) -> list[Any]:
        now = self.table.revisions()
        changed = [key for key in now if (since or {}).get(key) != now[key]]
        rows = self.table.results(lambda key: tuple(map(canonical, key)) in changed)
        rows = rows.append_column(REVISION, pa.array([now[key] for key in now if key in changed], pa.int64()))
        return [
            row
            for row in rows.to_pylist()
            if ends is None or ("w_end" in row and int(row["w_end"].timestamp() * 1000) * 1000 in ends)
        ]


def ordered(rows: list[Any]) -> list[Any]:
    return sorted(
        rows, key=lambda row: tuple((row[name] is None, row[name]) for name in ("k", "n", "w") if name in row)
    )


def batch_of(rows: list[tuple[Any, ...]], first: int, *, windowed: bool) -> pa.RecordBatch:
    ks, ns, ws, numbers, texts = zip(*rows, strict=True)
    columns = {"k": pa.array(ks, pa.string()), "n": pa.array(ns, pa.int32())}
    if windowed:
        columns |= {
            "w": pa.array(ws, pa.int64()).view(TIME),
            "w_end": pa.array([each + 1 for each in ws], pa.int64()).view(TIME),
        }
    columns |= {"a": pa.array(numbers, pa.int64()), "s": pa.array(texts, pa.string())}
    return pa.record_batch(columns | {OFFSET: pa.array(range(first, first + len(rows)), pa.int64())})


ROW = st.tuples(
    st.sampled_from(["a", "b", "ccccccccc", None]),
    st.sampled_from([0, 1, None]),
    st.integers(0, 4),
    st.one_of(st.none(), st.integers(-5, 5)),
    st.sampled_from(["x", "yy", "z" * 30, None]),
)
STEP = st.one_of(
    st.tuples(st.just("apply"), st.lists(ROW, min_size=1, max_size=12)),
    st.tuples(st.just("baseline"), st.booleans()),
    st.tuples(st.just("ask"), st.one_of(st.none(), st.lists(st.integers(0, 6), max_size=3))),
    st.tuples(st.just("hold"), st.just(None)),
    st.tuples(st.just("expire"), st.integers(0, 3)),
    st.tuples(st.just("restore"), st.booleans()),
)


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(STEP, max_size=14), windowed=st.booleans(), chunk_rows=st.sampled_from([1, 4, 64]))
def test_what_changed_is_what_a_dictionary_says(steps: list[Any], windowed: bool, chunk_rows: int) -> None:
    kind = spec(windowed=windowed)
    table, twin = KeyedTable(kind, seed=5, chunk_rows=chunk_rows), Twin(kind)
    since: Baseline | None = None
    before: dict[Key, int] | None = None
    held: list[tuple[TableView, list[Any], Baseline | None]] = []
    offset = 0
    for step, what in [*steps, ("ask", None)]:
        if step == "apply":
            rows = batch_of(what, offset, windowed=windowed)
            table.apply(rows)
            twin.table.apply(rows)
            offset += len(what)
        elif step == "baseline":
            since, before = table.view().revisions(since if what else None), twin.table.revisions()
            assert since.rows == table.rows
            assert since.nbytes == 8 * table.rows
        elif step == "ask":
            ends = None if what is None else [each * 1000 for each in what]
            found = table.view().changed(since, ends)
            assert found.schema.names == [*kind.schema.names, REVISION]
            assert ordered(found.to_pylist()) == ordered(twin.changed(before, ends))
        elif step == "hold":
            view = table.view()
            held.append((view, ordered(twin.changed(before, None)), since))
        elif step == "expire" and windowed:
            alive = set(twin.table.kept)
            assert table.expire(what * 1000) == twin.table.expire(what * 1000)
            # A window that went and begins anew is new.
            gone = alive - set(twin.table.kept)
            before = None if before is None else {key: each for key, each in before.items() if key not in gone}
        elif step == "restore":
            chunks = [each.state() for each in table.view().chunks]
            table = KeyedTable(kind, seed=5, chunk_rows=chunk_rows)
            table.restore(reversed(chunks) if what else chunks)
            since, before = table.view().revisions(), twin.table.revisions()
            assert table.view().changed(since).num_rows == 0
    for view, rows, baseline in held:  # views do not change, whatever came after
        assert ordered(view.changed(baseline).to_pylist()) == rows


def test_revisions_are_in_the_state_and_nowhere_else() -> None:
    kind = spec()
    assert REVISIONS not in kind.schema.names
    assert kind.counts_revisions
    assert not spec(counted=False).counts_revisions
    table = KeyedTable(kind, seed=1)
    table.apply(batch_of([("a", 1, 0, 5, "x"), ("a", 1, 0, 6, "x"), ("b", None, 1, None, None)], 0, windowed=True))
    view = table.view()
    names = kind.schema.names
    assert view.schema.names == names
    assert [each.schema.names for each in view.batches()] == [names] * 2
    assert view.closed(-(10**9), 10**9).schema.names == names
    assert table.lookup(pa.record_batch({"k": ["a"], "n": pa.array([1], pa.int32())})).schema.names == names
    with pytest.raises(InvalidFlow, match="no such column"):
        list(view.batches([REVISIONS]))
    (state,) = [each.state() for each in view.chunks if each.rows and each.window[0] == 0]
    assert state.column(f"{REVISIONS}.count").to_pylist() == [2]
    # Where the flow's code is not, the saved chunks still fit.
    portable = load_tables(dump_tables({"t": kind}))["t"]
    assert isinstance(portable, TableSpec)
    assert portable == kind
    other = KeyedTable(portable, seed=1)
    other.restore([each.state() for each in view.chunks])
    assert sorted(other.view().changed(None).column(REVISION).to_pylist()) == [1, 2]


def test_a_table_that_does_not_count_says_so() -> None:
    view = KeyedTable(spec(counted=False), seed=1).view()
    for ask in (view.revisions, lambda: view.changed(None)):
        with pytest.raises(InvalidFlow, match="does not count revisions"):
            ask()
    counted = KeyedTable(spec(), seed=1).view()
    counted.release()
    with pytest.raises(InvalidFlow, match="released"):
        counted.changed(None)


def test_a_result_that_does_not_fit_is_an_error_only_when_its_row_changed() -> None:
    table = KeyedTable(spec(), seed=1)
    table.apply(batch_of([("a", 1, 0, 2**62, "x"), ("b", 1, 0, 1, "x")], 0, windowed=True))
    fine = table.view().revisions()
    table.apply(batch_of([("a", 1, 0, 2**62, "x")], 2, windowed=True))
    with pytest.raises(InvalidFlow, match="does not fit") as caught:
        table.view().changed(fine)
    assert caught.value.facts["key"]["k"] == "a"
    broken = table.view().revisions(fine)
    table.apply(batch_of([("b", 1, 0, 1, "x")], 3, windowed=True))
    assert table.view().changed(broken).select(["k", "total", REVISION]).to_pylist() == [
        {"k": "b", "total": 2, REVISION: 2}
    ]
    table.apply(batch_of([("a", 1, 0, -5, "x")], 4, windowed=True))
    assert sorted(table.view().changed(fine).column("total").to_pylist()) == [2, 2**63 - 5]


def test_a_baseline_holds_no_chunk_and_shares_what_did_not_change() -> None:
    keys = 40_000
    table = KeyedTable(TableSpec("t", (pa.field("k", pa.int64()),), None, (COUNTED,)), seed=1, chunk_rows=4096)
    table.apply(pa.record_batch({"k": np.arange(keys), OFFSET: np.arange(keys)}))
    first = table.view().revisions()
    table.apply(pa.record_batch({"k": np.array([5]), OFFSET: np.array([keys])}))
    second = table.view().revisions(first)
    same = [second._chunks[each] is first._chunks[each] for each in first._chunks]
    assert same.count(False) == 1 < len(same)
    assert table.view().changed(first).to_pylist() == [{"k": 5, REVISION: 2}]
    assert table.view().changed(second).num_rows == 0
    held = [each.block.address for each in table._stored if each is not None]
    table.apply(pa.record_batch({"k": np.arange(keys), OFFSET: np.arange(keys)}))
    assert [each.block.address for each in table._stored if each is not None] == held  # nothing was copied for it
    assert table.view().changed(second).num_rows == keys


def test_the_cost_is_that_of_what_changed() -> None:
    keys = 500_000
    aggregates = (AggregateSpec("n", "len", None, None, pa.int64()), COUNTED)
    table = KeyedTable(TableSpec("t", (pa.field("k", pa.int64()),), None, aggregates), seed=1)
    for at in range(0, keys, 100_000):
        table.apply(pa.record_batch({"k": np.arange(at, at + 100_000), OFFSET: np.arange(100_000)}))
    view = table.view()
    begin = time.perf_counter()
    baseline = view.revisions()
    whole = time.perf_counter() - begin
    table.apply(pa.record_batch({"k": np.arange(100), OFFSET: np.arange(100)}))
    view = table.view()
    begin = time.perf_counter()
    assert view.changed(baseline).num_rows == 100
    view.revisions(baseline)
    few = time.perf_counter() - begin
    print(f"baseline of {keys} rows: {whole * 1e3:.1f} ms; 100 changed rows: {few * 1e3:.1f} ms")
    assert few < 0.1
