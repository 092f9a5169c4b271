"""Files that stay open until they are full, or old, or the input ends."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sink_folder import Folder, files, rows_in

from flowstate.errors import CorruptData, InternalError
from flowstate.plan.output import StagedOutput
from flowstate.plan.spec import SinkSpec
from flowstate.sink import open_files
from flowstate.sink.base import Stage
from flowstate.sink.files import FileSink
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.retention import retain_partition
from flowstate.store import Store
from flowstate.testing.conformance_sink import PREFIX, rows
from flowstate.testing.heap_store import HeapStore


def sink(**options: Any) -> FileSink:
    return FileSink(SinkSpec("json", "totals", f"memory://{uuid.uuid4().hex}", "append", options))


def stage(store: Store, number: int, now: float = 0.0, last: bool = False) -> Stage:
    return Stage(store, PREFIX, 0, 1, number, now, last)


@given(
    saves=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 500), st.booleans()), min_size=1, max_size=25
    ),
    roll_bytes=st.none() | st.sampled_from([700, 3000, 10_000]),
    roll_after=st.none() | st.sampled_from([1, 3_000_000, 10**9]),
    by=st.sampled_from([(), "kind"]),
)
@settings(max_examples=60, deadline=None)
def test_any_saves(saves: list[tuple[int, int, int, bool]], roll_bytes: Any, roll_after: Any, by: Any) -> None:
    """Every row is in exactly one file; nothing waits longer than it may; a new sink takes over at any time."""
    options = {"partition_by": by, "roll_bytes": roll_bytes, "roll_after": roll_after}
    output, store = sink(**options), HeapStore()
    open: list[StagedOutput] = []
    wanted: list[dict[str, Any]] = []
    now = 0.0
    for number, (count, kinds, width, restart) in enumerate(saves):
        last = number == len(saves) - 1
        table = pa.table(
            {
                "kind": [f"k{each % (kinds + 1)}" for each in range(count)],
                "number": pa.array([number * 1000 + each for each in range(count)], pa.int64()),
                "text": pa.array(["x" * width] * count, pa.string()),
            }
        )
        wanted += table.to_pylist()
        if restart:
            output = FileSink(output.spec)
        due = output.due(open, now)
        staged = output.prepare(stage(store, number, now, last), table if count else None, open)
        if count == 0 and not due and not last:
            assert list(staged) == open
        for each in staged:
            assert each.since <= now
            if not each.open:
                output.publish(store, each)
        open = [each for each in staged if each.open]
        assert not output.due(open, now)
        assert all(roll_after is None or each.since + roll_after / 1e6 > now for each in open)
        if roll_bytes is not None:
            for parts in open_files.by_folder(open).values():
                assert sum(each.bytes for each in parts) < roll_bytes
        now += 1.0
    assert not open
    found = Folder(output.target).rows()
    assert Counter(tuple(sorted(each.items())) for each in found) == Counter(
        tuple(sorted(each.items())) for each in wanted
    )


@given(st.integers(0, 10_000), st.integers(0, 10**7), st.integers(1, 10**6), st.booleans())
@settings(max_examples=300, deadline=None)
def test_cuts(count: int, size: int, most: int, finish: bool) -> None:
    cut = open_files.cut(count, size, most, finish)
    assert sum(cut.files) + cut.rest == count
    assert all(each > 0 for each in cut.files)
    assert not (finish and cut.rest)
    if count and size >= most:
        assert cut.files
        assert all(each * size <= 1.51 * most * count or each == 1 for each in cut.files)
    elif not finish:
        assert not cut.files


def test_many_rows_are_cut_into_files_of_that_size() -> None:
    output, store = sink(roll_bytes=100_000), HeapStore()
    table = pa.table({"number": list(range(100_000))})
    staged = output.prepare(stage(store, 1), table)
    for each in staged:
        if not each.open:
            output.publish(store, each)
    assert [each.rows for each in staged if not each.open][:2] == [12_494, 12_494]
    assert [each.open for each in staged] == [False] * 8 + [True]
    names = sorted(files(output.target))
    assert names[:2] == [
        "p0000-g0001-e000001-000001-1-totals.jsonl",
        "p0000-g0001-e000001-000001-2-totals.jsonl",
    ]
    assert len(names) == 8
    done = [row["number"] for name in names[-1:] + names[:-1] for row in rows_in(name, files(output.target)[name])]
    assert done == list(range(len(done)))


def test_a_save_stages_its_new_rows_alone() -> None:
    """Also when parts become one now and then, which keeps manifests short, what is staged is about twice the rows."""
    output, store = sink(roll_after=10**12), HeapStore()
    table = pa.table({"text": ["x" * 100] * 100})
    (first,) = output.prepare(stage(store, 0), table)
    open, written, most = [first], first.bytes, 0
    for number in range(1, 600):
        staged = output.prepare(stage(store, number, number), table, open)
        written += sum(each.bytes for each in staged if each not in open)
        open, most = list(staged), max(most, len(staged))
    assert most <= open_files.MOST_PARTS
    assert written < 3 * 600 * first.bytes
    assert sum(each.rows for each in open) == 60_000
    assert min(each.since for each in open) == 0
    (whole,) = output.prepare(stage(store, 600, 600, last=True), None, open)
    assert whole.rows == 60_000


def test_due_by_age_alone() -> None:
    output, store = sink(roll_after=60_000_000, partition_by="kind"), HeapStore()
    old = output.prepare(stage(store, 1, 100.0), rows(1).slice(0, 1))
    young = output.prepare(stage(store, 2, 130.0), rows(2).slice(1, 1), old)
    assert not output.due(young, 159.9)
    assert output.due(young, 160.0)
    staged = output.prepare(stage(store, 3, 160.0), None, young)
    assert [(each.open, each.rows) for each in staged] == [(False, 1), (True, 1)]


def test_without_options_what_was_open_is_finished() -> None:
    rolling, store = sink(roll_bytes=10**6), HeapStore()
    open = rolling.prepare(stage(store, 1), rows(1))
    output = FileSink(SinkSpec("csv", "totals", rolling.spec.url, "append"))
    assert output.due(open, 0.0)
    (each,) = output.prepare(stage(store, 2), rows(2), open)
    output.publish(store, each)
    assert Counter(row["number"] for row in Folder(output.target).rows()) == Counter(
        [*rows(1)["number"].to_pylist(), *rows(2)["number"].to_pylist()]
    )


def test_open_files_are_not_published_and_damage_is_named() -> None:
    output, store = sink(roll_bytes=10**6), HeapStore()
    (open,) = output.prepare(stage(store, 1), rows(1))
    with pytest.raises(InternalError, match="still open"):
        output.publish(store, open)
    whole = store.read(open.path)
    store.delete(open.path)
    with pytest.raises(CorruptData, match=r"rows that wait for their file are gone.*open_"):
        output.prepare(stage(store, 2, last=True), None, [open])
    store.create(open.path, whole[:-1])
    with pytest.raises(CorruptData, match="not what was written"):
        output.prepare(stage(store, 2, last=True), None, [open])


def test_retention_keeps_what_is_open() -> None:
    """Open files outlive the saves that brought them; what no manifest names any more goes."""
    output, store = sink(roll_after=10**12, partition_by="kind"), HeapStore()
    output.prepare(Stage(store, PREFIX, 0, 1, 0), rows(99))  # its manifest never came
    chain = PartitionChain(store, 1, 0)
    manifest, open = chain.claim(), ()
    for number in range(1, 40):
        open = tuple(output.prepare(stage(store, number), rows(number), open))
        committed = chain.commit(manifest.version, Manifest(0, 1, None, open))
        assert committed is not None
        manifest = committed
        retain_partition(store, 1, 0, 2)
    assert {f"{PREFIX}/stage/{name}" for name in store.list(f"{PREFIX}/stage")} == {each.path for each in open}
    finished = output.prepare(stage(store, 40, last=True), None, open)
    assert sum(each.rows for each in finished) == 39 * 6
