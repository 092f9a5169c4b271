"""What kernels say of event times, against the plain way: row by row in Python, and window by window in small batches."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.plan.event_times import find_windows, note_watermarks
from flowstate.plan.position import FOREVER, NEVER, later
from flowstate.plan.window import WindowSpec, every_period, offset_period

INSTANTS = st.integers(-(10**17), 10**17) | st.sampled_from([NEVER, NEVER + 1, NEVER + 5, FOREVER - 1, 0, 1])


@given(
    st.lists(INSTANTS, min_size=1, max_size=50),
    INSTANTS | st.just(FOREVER),
    st.sampled_from([0, 1, 5, 10**9]),
    INSTANTS,
)
@settings(deadline=None)
def test_the_watermark_before_each_row(times: list[int], newest: int, lateness: int, floor: int) -> None:
    running, marks = np.empty(len(times), np.int64), np.empty(len(times), np.int64)
    note_watermarks(np.array(times, np.int64), newest, lateness, floor, running, marks)
    for place, time in enumerate(times):
        assert marks[place] == max(later(newest, lateness), floor)
        newest = max(newest, time)
        assert running[place] == newest


@given(st.data())
@settings(deadline=None)
def test_the_neighbours_of_a_time(data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.integers(1, 100), min_size=1, max_size=30))
    boundaries = np.cumsum([data.draw(st.integers(-(10**15), 10**15)), *steps])
    inside = st.integers(int(boundaries[0]), int(boundaries[-1]) - 1) | st.sampled_from(boundaries[:-1].tolist())
    times = np.array(data.draw(st.lists(inside, min_size=1, max_size=50)), np.int64)
    starts, ends = np.empty(len(times), np.int64), np.empty(len(times), np.int64)
    find_windows(times, boundaries, starts, ends)
    at = np.searchsorted(boundaries, times, side="right") - 1
    assert (starts == boundaries[at]).all() and (ends == boundaries[at + 1]).all()


@given(
    st.sampled_from(["1mo", "1q", "1y", "1d", "1w"]),
    st.sampled_from([None, "6h", "-2h", "3d", "1mo"]),
    st.sampled_from([("s", "UTC"), ("ms", "Europe/Berlin"), ("us", None), ("ns", "America/New_York")]),
    st.integers(-(10**9), 3 * 10**9),
    st.integers(0, 10**9),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60)
def test_many_times_are_in_the_windows_that_few_are_in(
    every: str, offset: str | None, kind: tuple[str, str | None], begin: int, length: int, seed: int
) -> None:
    period = every_period(every)
    if offset == "1mo" and not period.months:
        offset = None
    unit, zone = kind
    type_ = pa.timestamp(unit, zone)
    spec = WindowSpec("w", period, type_, offset_period(offset))
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    dice = np.random.default_rng(seed)
    times = pa.array(dice.integers(begin * factor, (begin + length) * factor + 1, 600)).view(type_)
    whole = spec.assign(times)
    pieces = [spec.assign(times.slice(at, 100)) for at in range(0, 600, 100)]
    for side in (0, 1):
        assert whole[side].equals(pa.concat_arrays([each[side] for each in pieces]))
