"""What a partition is restored from is what it saved: real tables, whatever their types, whenever they saved, through segments and back."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_state_table import canonical, cuts, money, money_table, pieces, rows_of, tables

from flowstate.errors import InvalidFlow
from flowstate.plan.keys import key_groups, owner_of_groups
from flowstate.plan.spec import AppendSpec, TableSpec
from flowstate.snapshot import segment
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.restore import load_newest
from flowstate.snapshot.segment import load_tables, save_state, stream_tables
from flowstate.state.append import AppendTable
from flowstate.state.table import KeyedTable
from flowstate.store import Store
from flowstate.testing.reference import ReferenceTable

LATE = AppendSpec("late", pa.schema({"split": pa.string(), "offset": pa.int64(), "reason": pa.string()}), keep_rows=5)


def late(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A row of the append table for each row, of two splits."""
    offsets = batch.column("__offset").to_pylist()
    return pa.RecordBatch.from_pylist(
        [{"split": "ab"[offset % 2], "offset": offset, "reason": f"row {offset}"} for offset in offsets],
        schema=LATE.schema,
    )


def content(spec: TableSpec, table: KeyedTable) -> Any:
    """Its rows; None if a result does not fit its type."""
    try:
        return canonical(spec, rows_of(table))
    except InvalidFlow:
        return None


def twin(spec: TableSpec, reference: ReferenceTable) -> Any:
    try:
        return canonical(spec, reference.results())
    except InvalidFlow:
        return None


def kept(table: AppendTable) -> tuple[int, list[Any]]:
    return table.count, [row for batch in table.view().batches() for row in batch.to_pylist()]


def restored(store: Store, spec: TableSpec, saved: SavedState, chunk_rows: int) -> tuple[KeyedTable, AppendTable]:
    table, append = KeyedTable(spec, seed=5, chunk_rows=chunk_rows), AppendTable(LATE)
    loaded = stream_tables(store, saved)
    table.restore(loaded["t"])
    append.restore(loaded["late"], saved.extras["late"])
    return table, append


@settings(max_examples=40, deadline=None)
@given(st.data(), tables(), st.sampled_from([1, 2, 8]), st.sampled_from([0, 1, 8]), st.sampled_from([1, 16 << 20]))
def test_every_saved_state_comes_back_as_it_was(
    data: st.DataObject, made: tuple[TableSpec, pa.RecordBatch], chunk_rows: int, many: int, stream_bytes: int
) -> None:
    """Rows are applied, saved, and lost again by a restart that goes on from the last save; at the end every save still says what
    was then."""
    spec, batch = made
    store = Store.open(f"memory://{uuid.uuid4().hex}")
    table, append, reference = KeyedTable(spec, seed=5, chunk_rows=chunk_rows), AppendTable(LATE), ReferenceTable(spec)
    last: tuple[SavedState, ReferenceTable] | None = None
    previous: SavedState | None = None
    saves: list[tuple[SavedState, Any, Any]] = []
    epoch = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "MANY", many)
        patch.setattr(segment, "STREAM_BYTES", stream_bytes)
        for piece in pieces(batch, data.draw(cuts(batch.num_rows))):
            table.apply(piece)
            append.append(late(piece))
            reference.apply(piece)
            action = data.draw(st.sampled_from(["go on", "save", "save", "restart"]))
            if action == "save":
                views = {"t": table.view(), "late": append.view()}
                chunks = {name: view.chunks for name, view in views.items()}
                extras = {"late": append.extras()}
                previous = save_state(store, "p", epoch, len(saves) + 1, chunks, previous, {}, extras, 0.0)
                last = previous, copy.deepcopy(reference)
                saves.append((previous, twin(spec, reference), kept(append)))
            elif action == "restart" and last is not None:
                epoch, previous = epoch + 1, None
                table, append = restored(store, spec, last[0], chunk_rows)
                reference = copy.deepcopy(last[1])
    assert content(spec, table) == twin(spec, reference)
    for saved, then, late_then in saves:
        read = SavedState.parse(saved.dump())
        table, append = restored(store, spec, read, chunk_rows)
        assert content(spec, table) == then
        assert kept(append) == late_then
    if saves and saves[-1][1] is not None:
        loaded = load_tables(store, saves[-1][0], ["t"])["t"]
        halves = [KeyedTable(spec, seed=5, chunk_rows=chunk_rows) for _ in range(2)]
        for number, half in enumerate(halves):
            half.restore(loaded, lambda hashes, number=number: owner_of_groups(key_groups(hashes), 128, 2) == number)
        found = [row for half in halves for row in content(spec, half)]
        assert sorted(found, key=repr) == saves[-1][1]


def test_damage_that_is_met_half_way_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stream of the newest state is damaged: what was made of the others is thrown away, and the state before is taken in."""
    monkeypatch.setattr(segment, "STREAM_BYTES", 1)
    store = Store.open(f"memory://{uuid.uuid4().hex}")
    chain = PartitionChain(store, 1, 0)
    manifest = chain.claim()
    table = money_table(chunk_rows=2)
    names = [f"c{number}" for number in range(20)]
    contents = []
    for number in (1, 2):
        table.apply(money(names, [number] * 20))
        state = save_state(store, "g0001/p0000", 1, number, {"t": table.view().chunks}, None, {}, {}, float(number))
        committed = chain.commit(manifest.version, Manifest(0, 1, state))
        assert committed is not None
        manifest = committed
        contents.append(rows_of(table).sort_by("customer"))
    assert manifest.state is not None
    last = max(manifest.state.tables["t"], key=lambda ref: ref.start)
    data = bytearray(store.read(last.segment))
    data[last.start + last.length // 2] ^= 1
    store.delete(last.segment)
    assert store.create(last.segment, bytes(data))
    made: list[KeyedTable] = []
    states: list[float] = []

    def take(state: SavedState, newest: Manifest, tables: Mapping[str, Iterator[pa.RecordBatch]]) -> None:
        assert newest == manifest
        states.append(state.as_of)
        made.append(money_table(chunk_rows=2))
        made[-1].restore(tables["t"])

    restored = load_newest(chain, take=take)
    assert restored is not None
    assert states == [2.0, 1.0]
    assert made[0].rows == 18, "all but the damaged chunk were taken in before it was met"
    assert rows_of(made[1]).sort_by("customer") == contents[0] != contents[1]
    assert restored.tables == {}
    assert last.segment in restored.damaged[0]
