"""Append tables: the newest rows of each split and the exact count, however rows were cut and moved."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import CorruptData, InvalidFlow
from flowstate.plan.spec import AppendSpec
from flowstate.state.append import AppendTable

SCHEMA = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        ("raw", pa.binary()),
    ]
)


def rows(*pairs: tuple[str, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [{"split": split, "offset": offset, "raw": f"{split}{offset}".encode()} for split, offset in pairs],
        schema=SCHEMA,
    )


def found(table: AppendTable) -> list[tuple[str, int]]:
    view = table.view()
    kept = [(row["split"], row["offset"]) for each in view.batches() for row in each.to_pylist()]
    assert len(kept) == view.rows == table.rows
    return kept


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_what_is_kept_is_a_function_of_the_rows(data: st.DataObject, keep: int) -> None:
    counts = data.draw(st.dictionaries(st.sampled_from("pqr"), st.integers(0, 20)))
    waiting = {split: list(range(count)) for split, count in counts.items() if count}
    spec = AppendSpec("late", SCHEMA, keep_rows=keep)
    table = AppendTable(spec)
    while waiting:
        batch = []
        for _ in range(data.draw(st.integers(1, 8))):
            if waiting:
                split = data.draw(st.sampled_from(sorted(waiting)))
                batch.append((split, waiting[split].pop(0)))
                if not waiting[split]:
                    del waiting[split]
        table.append(rows(*batch))
        if data.draw(st.booleans()):
            saved, extras = [each.state() for each in table.view().chunks], json.loads(json.dumps(table.extras()))
            table = AppendTable(spec)
            table.restore(saved, extras, lambda split: split == "p")
            table.restore(saved, extras, lambda split: split != "p")
    assert table.count == sum(counts.values())
    expected = [
        (split, offset) for split in sorted(counts) for offset in range(max(0, counts[split] - keep), counts[split])
    ]
    assert found(table) == expected
    assert table.extras() == {"counts": {split: count for split, count in sorted(counts.items()) if count}}


def test_a_view_does_not_change() -> None:
    table = AppendTable(AppendSpec("late", SCHEMA, keep_rows=2))
    table.append(rows(("p", 1), ("p", 2)))
    view = table.view()
    versions = [(each.id, each.version) for each in view.chunks]
    table.append(rows(("p", 3), ("q", 1)))
    assert [each.column("offset").to_pylist() for each in view.batches()] == [[1, 2]]
    assert [each.schema.names for each in view.batches(["raw"])] == [["raw"]]
    again = [(each.id, each.version) for each in table.view().chunks]
    assert len(again) == 2
    assert not set(versions) & set(again)
    assert found(table) == [("p", 2), ("p", 3), ("q", 1)]
    view.release()
    view.release()


def test_rows_of_one_offset_are_all_kept() -> None:
    table = AppendTable(AppendSpec("late", SCHEMA, keep_rows=3))
    table.append(rows(("p", 1), ("p", 1)))
    table.append(rows(("p", 2)))
    assert found(table) == [("p", 1), ("p", 1), ("p", 2)]
    assert table.count == 3


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidFlow, match="split"):
        AppendTable(AppendSpec("late", pa.schema([("offset", pa.int64())])))
    table = AppendTable(AppendSpec("late", SCHEMA))
    with pytest.raises(CorruptData, match="another schema"):
        table.restore([pa.record_batch({"split": ["p"]})], {"counts": {}})
    with pytest.raises(CorruptData, match="counts"):
        table.restore([], {"counts": {"p": "many"}})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("pqr"), max_size=5), max_size=8), st.booleans())
def test_a_table_that_keeps_nothing_counts_exactly(batches: list[list[str]], again: bool) -> None:
    spec = AppendSpec("_stream_1", SCHEMA, keep_rows=0, internal=True)
    table, counts = AppendTable(spec), dict[str, int]()
    for number, splits in enumerate(batches):
        table.append(rows(*((split, number) for split in splits)))
        for split in splits:
            counts[split] = counts.get(split, 0) + 1
    if again:
        saved, extras = [each.state() for each in table.view().chunks], json.loads(json.dumps(table.extras()))
        table = AppendTable(spec)
        table.restore(saved, extras)
    assert (table.count, table.rows) == (sum(counts.values()), 0)
    assert sum(table.memory().values()) <= 64 * len(counts)
    assert table.extras() == {"counts": dict(sorted(counts.items()))}
    view = table.view()
    assert (list(view.chunks), view.rows, list(view.batches())) == ([], 0, [])
