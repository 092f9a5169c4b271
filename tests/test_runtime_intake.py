"""Who waits for rows: a source that hears of them, or the pump, which can be woken by other things."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa

import flowstate as fs
from flowstate.clock import SystemClock
from flowstate.plan.compile import compile as compile_plan
from flowstate.runtime.intake import Intake
from flowstate.runtime.table import SplitEntry, Table
from flowstate.source import make_source


def test_a_file_that_does_not_grow_is_not_waited_for(tmp_path: Path) -> None:
    """A cut would have to wait for it."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"key":"a"}\n')
    events = fs.scan_files(path, schema=pa.schema({"key": pa.string()}), follow=True)
    sources = compile_plan([events.group_by("key").agg(n=fs.len()).view("v").node]).sources
    [split] = make_source(sources[0]).splits()
    entry = SplitEntry(0, split.label, split.start, split.end, split.hint, 0)
    table, intake, problems = Table(splits={split.name: entry}), Intake(sources, SystemClock()), dict[str, str]()
    try:
        [rows] = intake.read(table, {split.name: (0, None)}, 100, 0.0, problems)
        assert rows.batch.num_rows == 1
        begun = time.monotonic()
        assert list(intake.read(table, {split.name: (rows.to, None)}, 100, 60.0, problems)) == []
        assert time.monotonic() - begun < 30.0
        assert not intake.waited and problems == {}
    finally:
        intake.close()
