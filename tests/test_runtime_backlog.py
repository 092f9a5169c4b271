"""Whether rows wait in the log: at the pace at which they are read."""

from __future__ import annotations

from pathlib import Path

from one_partition import OnePartition
from waiting import until

from flowstate.clock import ManualClock
from flowstate.runtime.backlog import BEHIND, EVERY, FORGOTTEN, Backlog

TICK = 0.125
assert TICK >= EVERY


class Log:
    """Looks at a log whose places a test moves, at a time that it moves."""

    def __init__(self, **places: tuple[int, int]) -> None:
        self.clock, self.places = ManualClock(100.0), dict(places)
        self.backlog = Backlog(self.clock, lambda: self.places)

    def after(self, seconds: float, **places: tuple[int, int]) -> bool:
        self.clock.advance(seconds)
        self.places.update(places)
        return self.backlog.pressed()


def test_rows_wait_if_it_takes_long_to_read_them_at_this_pace() -> None:
    log = Log(a=(0, 10_000))
    assert not log.backlog.pressed()  # who looks once knows no pace
    assert log.after(TICK, a=(1000, 10_000))
    far = int(BEHIND / TICK * 1000)
    assert log.after(TICK, a=(2000, 2000 + far))
    assert not log.after(TICK, a=(3000, 2999 + far))


def test_one_split_that_waits_is_enough_and_one_that_is_not_read_is_none() -> None:
    log = Log(a=(0, 10), b=(0, 1000), c=(5, 1_000_000))
    log.backlog.pressed()
    assert log.after(TICK, a=(10, 10), b=(10, 1000))
    assert not log.after(TICK, a=(20, 20), b=(1000, 1000))


def test_rows_that_come_in_large_pieces_wait_between_them_too() -> None:
    log = Log(a=(0, 10_000))
    log.backlog.pressed()
    assert log.after(TICK, a=(1000, 10_000))
    assert all(log.after(TICK) for _ in range(5))
    assert log.after(TICK, a=(4000, 10_000))


def test_what_was_seen_long_ago_tells_nothing() -> None:
    log = Log(a=(0, 10_000))
    log.backlog.pressed()
    assert log.after(TICK, a=(1, 10_000))
    assert not log.after(FORGOTTEN, a=(2, 10_000))
    assert log.after(TICK, a=(3, 10_000))
    log.places.clear()
    assert not log.after(TICK)


def test_a_real_partition_knows_how_far_it_is_and_where_its_log_ends(tmp_path: Path) -> None:
    with OnePartition(tmp_path) as one:
        one.wait_applied()
        backlog = one.served.backlog
        assert not backlog.pressed()
        assert dict(backlog._places()) == {one.split: (one.written, one.written)}
        one.append([("anna", 1)] * 50_000)
        until(lambda: backlog._places()[one.split][1] == one.written)
        one.wait_applied()
        until(lambda: not backlog.pressed())
