"""How long applying pauses while a snapshot of a million keys is taken.

    python benchmarks/snapshot_pause.py [--keys 1000000] [--repeat 5]

One pump on one core applies rows of random keys without a break and saves to a local folder; every snapshot finds all chunks changed.
A pause is the time between the ends of two applied blocks. It is compared with the pauses while nothing is saved.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from one_pump import OnePump

import flowstate as fs


def batches(keys: int, rows: int) -> pa.Table:
    """Every key once, then random ones."""
    random = np.random.default_rng(1)
    names = pa.array([f"customer-{each:08d}" for each in range(keys)])
    numbers = np.concatenate([np.arange(keys), random.integers(0, keys, rows - keys)])
    return pa.table({"customer": names.take(pa.array(numbers)), "amount": pa.array(random.integers(0, 1000, rows))})


def measure(keys: int, repeat: int) -> tuple[list[float], float, float]:
    """Longest pause (ms) in each snapshot, the longest without one, and the rows applied per second."""
    sys.setswitchinterval(0.0005)
    table = batches(keys, keys + 50_000_000)
    events = fs.from_arrow(table)
    view = events.group_by("customer").agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")
    saves: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, OnePump([view], Path(folder)) as one:
        save = one.pump.saver.save

        def timed(work):  # type: ignore[no-untyped-def]
            begun = time.monotonic()
            result = save(work)
            saves.append((begun, time.monotonic()))
            return result

        one.pump.saver.save = timed  # type: ignore[method-assign]
        one.pump._next_save = 1e12
        while one.pump._contents.tables["totals"].rows < keys:
            assert not one.ended.wait(0.01), one.pump.reason
        filled = time.monotonic()
        time.sleep(0.2)
        for number in range(repeat):
            one.pump._next_save = 0.0
            one.pump._next_save = -1e12
            while len(saves) <= number:
                assert not one.ended.is_set(), "the rows came to their end before the snapshots: give more"
                time.sleep(0.005)
                one.pump._next_save = 1e12 if one.pump._saving else -1e12
            one.pump._next_save = 1e12
            time.sleep(0.2)
        done = time.monotonic()
        blocks = [each for each in one.blocks if filled < each[1] < done]
        assert blocks, one.pump.reason
    ends = np.array([end for _, end, _ in blocks])
    gaps = np.diff(ends) * 1e3
    within = [
        float(gaps[(ends[1:] > begun - 0.002) & (ends[:-1] < end)].max(initial=0.0)) for begun, end in saves[:repeat]
    ]
    quiet = np.ones(len(gaps), bool)
    for begun, end in saves:
        quiet &= ~((ends[1:] > begun - 0.002) & (ends[:-1] < end))
    rate = sum(rows for _, _, rows in blocks) / (ends[-1] - ends[0])
    return within, float(gaps[quiet].max()) if quiet.any() else float("nan"), rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    pauses, quiet, rate = measure(options.keys, options.repeat)
    each = " ".join(f"{pause:.1f}" for pause in pauses)
    print(f"{options.keys:,} keys, {len(pauses)} snapshots, {rate / 1e6:.1f} M rows/s applied meanwhile, one core")
    print(
        f"longest pause in each snapshot: {each} ms, median {statistics.median(pauses):.1f} ms; without a snapshot {quiet:.1f} ms"
    )


if __name__ == "__main__":
    main()
