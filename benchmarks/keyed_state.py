"""Keyed state on one core, against DuckDB's one-shot `group by` of the same rows in the same run.

    python -m benchmarks.keyed_state [--rows 10000000] [--groups 20000 2000000] [--repeat 5]

Sum of a decimal and count by (17-byte nullable text, month), from memory, through the real state: it grows from empty and is fed
blocks that take about a millisecond, while another thread takes the whole view once a second, scans it and drops it. The process
pins itself to one core; DuckDB runs with one thread. Figures are medians; runs of both take turns. On a machine that has other work,
the ratio by CPU seconds (of the whole process, reader included) says more than the one by the clock.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import threading
import time
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.results import record
from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.runtime.provide import provide_memory
from flowstate.state.kernels import warm_up
from flowstate.state.table import KeyedTable

TIME = pa.timestamp("us", "UTC")
MONEY = pa.decimal128(12, 2)
MONTHS = np.array([1_767_225_600_000_000, 1_769_904_000_000_000, 1_772_323_200_000_000])  # 2026-01, -02, -03
SPEC = TableSpec(
    "totals",
    (pa.field("customer", pa.string()),),
    WindowSpec("month", Period(months=1), TIME),
    (
        AggregateSpec("total", "sum", "amount", MONEY, pa.decimal128(38, 2)),
        AggregateSpec("events", "len", None, None, pa.int64()),
    ),
    TIME,
)


def billing(rows: int, groups: int) -> pa.Table:
    """Rows of `groups` (customer, month) pairs in two months, in random order; one customer in a thousand is null."""
    random = np.random.default_rng(7)
    customers = groups // 2
    names = pa.array([None if each == 0 else f"customer-{each:08d}" for each in range(customers)], pa.string())
    numbers = random.integers(0, customers, rows)
    months = random.integers(0, 2, rows)
    cents = np.zeros((rows, 2), np.int64)
    cents[:, 0] = random.integers(1, 1_000_000, rows)
    amounts = pa.Array.from_buffers(MONEY, rows, [None, pa.py_buffer(cents)])
    amounts = pc.if_else(pa.array(random.integers(0, 1000, rows) == 0), pa.scalar(None, MONEY), amounts)
    return pa.table(
        {
            "customer": names.take(pa.array(numbers)),
            "month": pa.array(MONTHS[months], pa.int64()).view(TIME),
            "month_end": pa.array(MONTHS[months + 1], pa.int64()).view(TIME),
            "amount": amounts,
        }
    )


@dataclass
class Reader:
    """Takes the whole view between two blocks, once a second, and scans and drops it in its own thread."""

    every: float = 1.0
    scans: int = 0
    busy: float = 0.0

    def __post_init__(self) -> None:
        self._wanted, self._given, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._view: object = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        first = self.every / 10  # every run has at least one scan, however fast
        while not self._ended.wait(self.every if self.scans else first):
            self._wanted.set()
            self._given.wait()
            self._given.clear()
            if self._view is None:
                return
            began = time.thread_time()
            for batch in self._view.batches():  # type: ignore[attr-defined]
                pc.sum(batch.column("total"))
                pc.sum(batch.column("events"))
            self._view = None
            self.scans += 1
            self.busy += time.thread_time() - began

    def between_blocks(self, table: KeyedTable) -> None:
        if self._wanted.is_set():
            self._wanted.clear()
            self._view = table.view()
            self._given.set()

    def close(self) -> None:
        self._ended.set()
        self._given.set()
        self._thread.join()


def ours(batches: list[pa.RecordBatch], reader: Reader | None) -> tuple[float, KeyedTable, float]:
    table = KeyedTable(SPEC, seed=42)
    longest = 0.0
    began = time.perf_counter()
    for batch in batches:
        before = time.thread_time()
        table.apply(batch)
        longest = max(longest, time.thread_time() - before)
        if reader is not None:
            reader.between_blocks(table)
    return time.perf_counter() - began, table, longest


def theirs(rows: pa.Table, connection: duckdb.DuckDBPyConnection) -> tuple[float, int]:
    began = time.perf_counter()
    found = connection.sql("select customer, month, sum(amount), count(*) from rows group by all").to_arrow_table()
    return time.perf_counter() - began, found.num_rows


def compare(rows: int, groups: int, repeat: int) -> None:
    table = billing(rows, groups)
    block = 32_768 if groups < 200_000 else 16_384
    batches = table.to_batches(max_chunksize=block)
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("set timezone = 'UTC'")
    mine, its, longest, ratios, processor = [], [], [], [], []
    for _ in range(repeat):
        before = time.process_time()
        seconds, found = theirs(table, connection)
        its_processor = time.process_time() - before
        its.append(seconds)
        reader = Reader()
        before = time.process_time()
        seconds, state, pause = ours(batches, reader)
        processor.append(its_processor / (time.process_time() - before))
        reader.close()
        mine.append(seconds)
        longest.append(pause)
        ratios.append(its[-1] / mine[-1])
        assert state.rows == found, (state.rows, found)
        memory = state.memory()
        del state
        gc.collect()
    key_bytes = 17
    over = (memory["index"] + memory["keys"] + memory["other"]) / found - key_bytes
    index = (memory["index"] + memory["keys"]) / found - key_bytes
    speed = [rows / statistics.median(each) / 1e6 for each in (mine, its)]
    lines = {
        "M rows/s, ours": f"{speed[0]:.1f}",
        "M rows/s, duckdb": f"{speed[1]:.1f}",
        "ratio by the clock": f"{speed[0] / speed[1]:.2f} (single runs {min(ratios):.2f} to {max(ratios):.2f})",
        "ratio by CPU seconds": f"{statistics.median(processor):.2f}",
        "longest apply, ms of CPU": f"{statistics.median(longest) * 1e3:.1f}",
        "index and bookkeeping, bytes per key": f"{index:.0f}; with copies and caches for readers {over:.0f}",
        "scans in the last run": f"{reader.scans}, {reader.busy * 1e3:.0f} ms of CPU",
    }
    goal = None if groups < 200_000 else "at least 1.5"
    record(
        "keyed_state", "CPU of DuckDB's group by", statistics.median(processor), "times ours", goal=goal, groups=groups
    )
    record("keyed_state", "rows folded, views on", speed[0], "M rows/s", groups=groups)
    print(f"{found:,} groups")
    for name, value in lines.items():
        print(f"  {name:<38}{value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--groups", type=int, nargs="+", default=[20_000, 2_000_000])
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    warm_up()
    provide_memory()  # as a worker does
    for groups in arguments.groups:
        compare(arguments.rows, groups, arguments.repeat)


if __name__ == "__main__":
    main()
