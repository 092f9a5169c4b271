"""How fast a partition comes back from its snapshot on local disk, on one core.

    python -m benchmarks.snapshot_restore [--keys 1000000 5000000] [--mixed 1000000] [--repeat 5] [--profile]

``billing`` is one view: a sum of money and a count per customer and month, twelve months. ``mixed`` are two views with a nullable key,
texts (the least, the last), decimals, nulls, and the mean of floats; its keys are those of both. The state is made by one pump from rows,
and saved by it. A restore begins with the claim of the chain and ends when the partition could apply its next row; the files lie in the
page cache. The restored view is compared with the saved one, once. ``--profile`` says what the seconds went to.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import flowstate as fs
from benchmarks.one_pump import OnePump
from benchmarks.results import record
from flowstate.clock import SystemClock
from flowstate.runtime import saving
from flowstate.runtime.provide import provide_memory
from flowstate.snapshot import segment
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.state import table as table_module
from flowstate.state.index import Index
from flowstate.state.table import KeyedTable
from flowstate.store.local import LocalStore

MONTH = 30 * 86_400_000


def billing(keys: int) -> list[Any]:
    """`keys` rows of as many keys, in an order of no meaning."""
    random = np.random.default_rng(1)
    number = random.permutation(keys)
    amounts = pa.array(random.integers(-100_000, 1_000_000, keys)).cast(pa.decimal128(19, 0))
    rows = pa.table(
        {
            "customer": pc.binary_join_element_wise("customer-", pa.array(number // 12).cast(pa.string()), ""),
            "amount": pc.multiply(amounts, pa.scalar("0.01").cast(pa.decimal128(3, 2))).cast(pa.decimal128(12, 2), safe=False),
            "at": pa.array((number % 12) * MONTH).cast(pa.timestamp("ms", "UTC")),
        }
    )  # fmt: skip
    events = fs.from_arrow(rows, event_time="at", lateness="1000d")
    month = fs.window("at", every="30d")
    totals = events.group_by("customer", month=month).agg(total=fs.col("amount").sum(), events=fs.len())
    return [totals.view("subtotals")]


def mixed(keys: int) -> list[Any]:
    """Two views, of `keys` keys together, in the proportion of two to one."""
    random = np.random.default_rng(2)
    count = 2 * keys // 3
    number = random.permutation(count)
    absent = random.random(count) < 0.2
    rows = pa.table(
        {
            "customer": pc.binary_join_element_wise("customer-", pa.array(number).cast(pa.string()), ""),
            "country": pa.array(number % 7, mask=number % 7 == 3),
            "item": pa.array(number // 2),
            "note": pc.binary_join_element_wise(
                "note ", pa.array(random.integers(0, 1 << 40, count), mask=absent).cast(pa.string()), ""
            ),
            "amount": pa.array(random.integers(0, 1 << 40, count), mask=absent).cast(pa.decimal128(30, 4)),
            "weight": pa.array(random.random(count), mask=absent),
        }
    )
    events = fs.from_arrow(rows)
    by_customer = events.group_by("customer", "country").agg(
        total=fs.col("amount").sum(), least=fs.col("note").min(), events=fs.len()
    )
    by_item = events.group_by("item").agg(
        last=fs.col("note").last(), most=fs.col("amount").max(), weight=fs.col("weight").mean()
    )
    return [by_customer.view("by_customer"), by_item.view("by_item")]


class Stages:
    """Seconds of the processor within some functions, each without those within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._local = threading.local()

    @contextmanager
    def watched(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """`places` are (owner, function, how it is called here)."""
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        for owner, name, what in places:
            setattr(owner, name, self._timed(getattr(owner, name), what))
        try:
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            within = self._local.__dict__.setdefault("within", [0.0])
            begun = time.thread_time()
            within.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                took = time.thread_time() - begun
                self.seconds[what] = self.seconds.get(what, 0.0) + took - within.pop()
                within[-1] += took

        return timed


def made(flow: list[Any], folder: Path) -> tuple[Any, int, pa.Table]:
    """The job's specification, how many keys it has, and its first view, after all is applied and saved."""
    with OnePump(flow, folder, every=1e9) as one:
        assert one.ended.wait(240), one.pump.reason
        tables = one.pump._contents.tables
        view = next(iter(tables.values())).view()
        content = pa.Table.from_batches(list(view.batches()), view.schema)
        view.release()
        return one.pump.spec, sum(each.rows for each in tables.values()), content


def restored(spec: Any) -> tuple[float, float, Any]:
    """Seconds by the clock and of the processor, and the contents."""
    clock, store = SystemClock(), LocalStore(spec.snapshots)
    began, spent = time.perf_counter(), time.process_time()
    epoch = PartitionChain(store, spec.generation, 0).claim().epoch
    saver = saving.Saver(spec, 0, epoch, store, clock)
    _, contents, damaged = saver.load()
    took = time.perf_counter() - began, time.process_time() - spent
    assert not damaged, damaged
    return *took, contents


def compared(contents: Any, expected: pa.Table) -> None:
    view = next(iter(contents.tables.values())).view()
    found = pa.Table.from_batches(list(view.batches()), view.schema)
    keys = [(name, "ascending") for name in found.column_names if name in ("customer", "month", "item", "country")]
    assert found.sort_by(keys).equals(expected.sort_by(keys)), "the restored state is another one"


def measure(name: str, flow: list[Any], repeat: int, profile: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        spec, keys, expected = made(flow, Path(place))
        compared(restored(spec)[2], expected)
        del expected
        stored = sum(each.stat().st_size for each in Path(place).rglob("*.arrows"))
        runs = [restored(spec)[:2] for _ in range(repeat)]
        wall, spent = (statistics.median(each[index] for each in runs) for index in (0, 1))
        print(
            f"{name}: {keys:,} keys, {stored / 1e6:.0f} MB: {keys / wall / 1e6:.2f} M keys/s, {keys / spent / 1e6:.2f} M keys per second "
            f"of the processor (best {keys / min(each[1] for each in runs) / 1e6:.2f})"
        )
        settings = {"keys": keys, "state": name}
        record(
            "snapshot_restore", "restored, by the clock", keys / wall / 1e6, "M keys/s", goal="at least 2", **settings
        )
        record("snapshot_restore", "restored, by CPU", keys / spent / 1e6, "M keys/CPU s", **settings)
        if profile:
            stages = Stages()
            with stages.watched(
                (LocalStore, "read", "read"),
                (segment, "checksum", "checksum"),
                (segment, "_read", "arrow"),
                (table_module.KeyColumns, "of", "describe keys"),
                (Index, "grow", "grow the index"),
                (KeyedTable, "_more_rows", "memory of chunks"),
                (KeyedTable, "_more_keys", "memory of keys"),
                (KeyedTable, "_locate", "hash and insert"),
                (KeyedTable, "_fold", "fold"),
                (KeyedTable, "_more_values", "memory of texts"),
                (KeyedTable, "restore", "rest of the table"),
            ):
                _, spent, _ = restored(spec)
            for what, seconds in sorted(stages.seconds.items(), key=lambda each: -each[1]):
                print(f"    {what:<20} {seconds / keys * 1e9:7.0f} ns per key {100 * seconds / spent:5.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="*", default=[1_000_000, 5_000_000])
    parser.add_argument("--mixed", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    sys.setswitchinterval(0.0005)  # as a worker has it, and so the next
    provide_memory()
    print(f"one core, load {os.getloadavg()[0]:.1f}")
    for keys in options.keys:
        measure("billing", billing(keys), options.repeat, options.profile)
    if options.mixed:
        measure("mixed", mixed(options.mixed), options.repeat, options.profile)


if __name__ == "__main__":
    main()
