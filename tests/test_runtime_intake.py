"""Who waits for rows, and how long: a source that hears of them, or the pump, which can be woken by other things."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from one_partition import OnePartition

import flowstate as fs
from flowstate.clock import Clock, ManualClock, SystemClock
from flowstate.plan.compile import compile as compile_plan
from flowstate.runtime.intake import Intake
from flowstate.runtime.pace import LONGEST, SHORTEST, pause
from flowstate.runtime.table import SplitEntry, Table
from flowstate.source import make_source

LINE = '{"key":"a"}\n'


class Reads:
    """The intake of one file, which is at `path`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.append()
        events = fs.scan_files(path, schema=pa.schema({"key": pa.string()}), follow=True)
        sources = compile_plan([events.group_by("key").agg(n=fs.len()).view("v").node]).sources
        [self.split] = make_source(sources[0]).splits()
        split, self.at = self.split, 0
        entry = SplitEntry(0, split.label, split.start, split.end, split.hint, 0)
        self.table, self.intake, self.problems = (
            Table(splits={split.name: entry}),
            Intake(sources, clock),
            dict[str, str](),
        )

    def append(self) -> None:
        with self.path.open("a") as log:
            log.write(LINE)

    def read(self, timeout: float = 0.0) -> int:
        """How many rows came."""
        count = 0
        wanted = {self.split.name: (self.at, None)}
        for rows in self.intake.read(self.table, wanted, 100, timeout, self.problems):
            count, self.at = count + rows.batch.num_rows, rows.to
        assert self.problems == {}
        return count


@contextlib.contextmanager
def reads(path: Path, clock: Clock) -> Iterator[Reads]:
    given = Reads(path, clock)
    try:
        yield given
    finally:
        given.intake.close()


def test_a_file_that_does_not_grow_is_not_waited_for(tmp_path: Path) -> None:
    """A cut would have to wait for it."""
    with reads(tmp_path / "log.jsonl", SystemClock()) as log:
        assert log.read() == 1
        begun = time.monotonic()
        assert log.read(60.0) == 0
        assert time.monotonic() - begun < 30.0
        assert not log.intake.waited


def test_a_pause_is_a_hundredth_of_the_silence_at_most() -> None:
    assert pause(0.0) == pause(0.4) == SHORTEST
    assert pause(2.0) == 0.02
    assert pause(60.0) == LONGEST <= 0.05


def test_a_file_that_is_read_is_looked_at_each_time(tmp_path: Path) -> None:
    """However little time passes between two rows, and whatever it did before."""
    clock = ManualClock()
    with reads(tmp_path / "log.jsonl", clock) as log:
        assert log.read() == 1
        for step in (0.4, 0.001, 0.0, 0.3):
            clock.advance(step)
            assert log.read() == 0
            log.append()
            assert log.read() == 1


def test_a_file_that_is_silent_for_long_is_looked_at_now_and_then(tmp_path: Path) -> None:
    clock = ManualClock()
    with reads(tmp_path / "log.jsonl", clock) as log:
        assert log.read() == 1
        assert log.read() == 0  # silent from here on
        clock.advance(60.0)
        assert log.read() == 0
        log.append()
        clock.advance(LONGEST / 2)
        assert log.read() == 0  # not looked at
        clock.advance(LONGEST / 2)
        assert log.read() == 1
        log.append()
        assert log.read() == 1  # the silence is over


def test_a_partition_without_rows_turns_seldom_and_still_hears_of_the_next_one(tmp_path: Path) -> None:
    with OnePartition(tmp_path) as one:
        one.wait_applied()
        turns, ticking = [0], one.pump._machine.tick

        def tick(now: float) -> object:
            turns[0] += 1
            return ticking(now)

        one.pump._machine.tick = tick
        time.sleep(5.0)  # the silence itself
        turns[0] = 0
        time.sleep(2.0)
        assert 0 < turns[0] <= 2.0 / LONGEST + 1
        begun = time.monotonic()
        one.append([("carl", 3)])
        one.wait_applied()
        assert time.monotonic() - begun < 5.0
