"""Batches in memory as a log."""

from __future__ import annotations

import pyarrow as pa
import pytest

from flowstate.errors import InvalidFlow
from flowstate.plan.spec import ScanSpec
from flowstate.source import make_source

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), ("at", pa.timestamp("ms", "UTC"))])


def scan(batches: object, splits: int = 1, schema: pa.Schema = SCHEMA, at: str | None = "at") -> ScanSpec:
    return ScanSpec("memory", "arrow", schema, at, options={"batches": batches, "splits": splits})


def batch(*numbers: int | None) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": numbers, "at": [1000] * len(numbers)}, schema=SCHEMA)


def test_batches_are_dealt_in_turn_and_a_single_one_is_cut() -> None:
    dealt = make_source(scan([batch(1, 2), batch(3), batch(4, 5, 6)], 2)).splits()
    assert [(each.label, each.end) for each in dealt] == [("memory[0]", 5), ("memory[1]", 1)]
    cut = make_source(scan(pa.Table.from_batches([batch(*range(10))]), 3)).splits()
    assert [each.end for each in cut] == [3, 3, 4]
    assert make_source(scan([])).splits() == []
    assert make_source(scan([batch()], 2)).splits() == []


def test_names_follow_the_content() -> None:
    names = {each.name for each in make_source(scan([batch(1, 2, 3)])).splits()}
    assert names == {each.name for each in make_source(scan([batch(0, 1, 2, 3).slice(1)])).splits()}
    assert names != {each.name for each in make_source(scan([batch(1, 2, 4)])).splits()}
    twins = make_source(scan([batch(1), batch(1)], 2)).splits()
    assert len({each.name for each in twins}) == 2


def test_resuming_with_other_batches_is_refused() -> None:
    (split,) = make_source(scan([batch(1, 2)])).splits()
    with pytest.raises(InvalidFlow, match="pass the same batches"):
        make_source(scan([batch(1, 3)])).open().assign(split, 1)


def test_rows_that_the_schema_or_the_event_time_refuses_are_dead_letters() -> None:
    rows = pa.RecordBatch.from_pydict(
        {"n": ["1", None, "x", "4"], "at": pa.array([1, 1, 1, None], pa.timestamp("ms", "UTC"))}
    )
    source = make_source(scan([rows]))
    (split,) = source.splits()
    reader = source.open()
    reader.assign(split, 0)
    (got,) = reader.poll({split.name: None}, max_rows=10, timeout=0)
    assert got.batch.column("n").to_pylist() == [1]
    assert [each[:30] for each in got.dead.column("reason").to_pylist()] == [
        "field 'n' is required, but mis",
        "field 'n': Failed to parse str",
        "event time 'at' is missing or ",
    ]
    assert got.dead.column("raw")[1].as_py().startswith(b'{"n": "x", "at": "1970-01-01')


def test_a_time_beyond_what_python_knows_is_a_dead_letter_like_any_other() -> None:
    times = pa.array([10**17, -(10**17), 1000], pa.timestamp("ms", "UTC"))
    source = make_source(scan([pa.RecordBatch.from_arrays([pa.array([1, 2, 3]), times], names=["n", "at"])]))
    (split,) = source.splits()
    reader = source.open()
    reader.assign(split, 0)
    (got,) = reader.poll({split.name: None}, max_rows=10, timeout=0)
    assert got.batch.column("n").to_pylist() == [3]
    assert got.dead.column("reason").to_pylist() == ["event time 'at' is outside the years 1 to 9999"] * 2
    assert got.dead.column("raw")[0].as_py() == b'{"n": 1, "at": "100000000000000000"}'


def test_mistakes_are_refused_when_the_source_is_made() -> None:
    with pytest.raises(InvalidFlow, match="lack a column"):
        make_source(scan([pa.RecordBatch.from_pydict({"m": [1]})]))
    with pytest.raises(InvalidFlow, match="at least 1"):
        make_source(scan([], 0))
    with pytest.raises(InvalidFlow, match="did you mean 'at'"):
        make_source(scan([], at="att"))
    with pytest.raises(InvalidFlow, match="must be a timestamp"):
        make_source(scan([], at="n"))
