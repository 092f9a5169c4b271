# mypy: disable-error-code="no-untyped-def"
"""Kernels over event times: the watermark before each row, and the window that a time is in."""

from __future__ import annotations

import numpy as np

from flowstate.plan.kernel import compiling, kernel
from flowstate.plan.position import FOREVER, NEVER


@kernel
def note_watermarks(times, newest, lateness, floor, running, marks):
    """`marks`: the watermark of the split just before each row, at least `floor`. `running`: the newest event time after it."""
    limit = NEVER + lateness
    for row in range(len(times)):
        if newest < limit:
            mark = NEVER
        elif newest == FOREVER:
            mark = FOREVER
        else:
            mark = newest - lateness
        marks[row] = max(mark, floor)
        newest = max(newest, times[row])
        running[row] = newest


@kernel
def find_windows(times, boundaries, starts, ends):
    """The neighbours in `boundaries` (ascending, few, about as far from one another) that each time is between."""
    first, count = boundaries[0], len(boundaries) - 1
    per_time = count / (boundaries[count] - first)
    for row in range(len(times)):
        time = times[row]
        at = min(max(int((time - first) * per_time), 0), count - 1)
        while boundaries[at] > time:
            at -= 1
        while boundaries[at + 1] <= time:
            at += 1
        starts[row], ends[row] = boundaries[at], boundaries[at + 1]


def warm_up() -> None:
    """Compile the kernels, or load them from disk."""
    with compiling():
        times = np.zeros(1, np.int64)
        for writeable in (True, False):
            times.flags.writeable = writeable
            note_watermarks(times, 0, 0, 0, np.empty(1, np.int64), np.empty(1, np.int64))
            find_windows(times, np.array([0, 1], np.int64), np.empty(1, np.int64), np.empty(1, np.int64))
