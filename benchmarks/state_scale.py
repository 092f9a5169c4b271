"""Keyed state at scale on one core: growth, memory, shapes of keys and aggregates, many groups, expiry.

    python -m benchmarks.state_scale [growth shapes groups expiry] [--keys 10000000] [--repeat 3]

`growth`: new keys alone into one table from empty, in blocks as the pump gives them: how long each block took, which steps the longest
ones had, bytes per key. `shapes`: other keys and aggregates, each beside DuckDB's one-shot `group by` of the same rows in the same run.
`groups`: sum and count by (customer, month), with the whole view scanned once a second. `expiry`: a window of a million keys goes.
Ours and DuckDB take turns on one core, with one thread; ratios are by CPU seconds of the whole process, and by the clock.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import keyed_state
from benchmarks.results import record
from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.runtime.provide import provide_memory
from flowstate.state.kernels import warm_up
from flowstate.state.table import KeyedTable

BLOCK = 16_384
MONEY, TIME = keyed_state.MONEY, keyed_state.TIME
SUM = AggregateSpec("total", "sum", "amount", MONEY, pa.decimal128(38, 2))
LEN = AggregateSpec("events", "len", None, None, pa.int64())


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def text_keys(numbers: np.ndarray[Any, Any], prefix: str = "customer-", digits: int = 8) -> pa.Array:
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(prefix, padded, "")


def money(random: np.random.Generator, rows: int) -> pa.Array:
    cents = np.zeros((rows, 2), np.int64)
    cents[:, 0] = random.integers(1, 1_000_000, rows)
    return pa.Array.from_buffers(MONEY, rows, [None, pa.py_buffer(cents)])


class Watched(KeyedTable):
    """A table that says where the time of a block went, beside finding and folding."""

    def __init__(self, spec: TableSpec) -> None:
        super().__init__(spec, seed=42)
        self.steps: Counter[str] = Counter()
        self._windows.grow = self._timed("index", self._windows.grow)  # type: ignore[method-assign]
        for name, method in (("room for rows", "_more_rows"), ("room for keys", "_more_keys"), ("fold", "_fold")):
            setattr(self, method, self._timed(name, getattr(self, method)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            began = time.thread_time()
            found = method(*arguments)
            self.steps[name] += int((time.thread_time() - began) * 1e6)
            return found

        return run


def growth(keys: int) -> None:
    print(f"{keys:,} new keys, blocks of {BLOCK:,} rows")
    spec = TableSpec("totals", (pa.field("customer", pa.string()),), None, (SUM, LEN))
    random = np.random.default_rng(7)

    def blocks() -> Iterator[pa.RecordBatch]:
        for first in range(0, keys, BLOCK):
            rows = min(BLOCK, keys - first)
            # Spread as customers are, so that neighbours in time are no neighbours in value.
            numbers = (np.arange(first, first + rows) * 7_368_787) % 100_000_007
            yield pa.record_batch({"customer": text_keys(numbers), "amount": money(random, rows)})

    gc.collect()
    table, before, taken, steps = Watched(spec), resident(), [], []
    for block in blocks():
        table.steps.clear()
        began, clock = time.thread_time(), time.perf_counter()
        table.apply(block)
        taken.append((time.thread_time() - began, time.perf_counter() - clock))
        steps.append(dict(table.steps))
    del block
    gc.collect()
    by_processor, by_clock = (np.array(each) * 1e3 for each in zip(*taken, strict=True))
    for name, milliseconds in (("CPU", by_processor), ("the clock", by_clock)):
        parts = ", ".join(f"p{each} {np.percentile(milliseconds, each):.2f}" for each in (50, 99, 99.9))
        print(
            f"  ms of a block by {name}: {parts}, longest {milliseconds.max():.2f}; over 5 ms: {(milliseconds > 5).sum()}"
        )
    edges = [each for each in (0, 10**5, 10**6, 2 * 10**6, 5 * 10**6, 10**7, 10**8) if each < keys] + [keys]
    for first, last in itertools.pairwise(edges):
        part = by_processor[first // BLOCK : max(first // BLOCK + 1, last // BLOCK)]
        rate = len(part) * BLOCK / part.sum() / 1e3
        print(f"  {first:>11,} to {last:>11,} keys: {rate:5.1f} M rows/s of CPU, longest block {part.max():.2f} ms")
    for place in np.argsort(-by_processor)[:5]:
        inside = ", ".join(f"{name} {micros / 1e3:.2f}" for name, micros in steps[place].items())
        print(f"  the block at {place * BLOCK:,} keys: {by_processor[place]:.2f} ms ({inside})")
    together: Counter[str] = Counter()
    for each in steps:
        together.update(each)
    print(
        f"  of {by_processor.sum():.0f} ms: "
        + ", ".join(f"{name} {micros / 1e3:.0f}" for name, micros in together.items())
    )
    memory = {name: nbytes / keys for name, nbytes in table.memory().items()}
    parts = ", ".join(f"{name} {nbytes:.1f}" for name, nbytes in memory.items())
    beyond = sum(memory.values()) - 17 - table._layout.row_bytes
    print(f"  bytes per key: {parts}; beyond the key (17) and its columns ({table._layout.row_bytes}): {beyond:.1f}")
    rss = (resident() - before) / keys
    record(
        "state_scale",
        "99th percentile of a block of new keys",
        np.percentile(by_processor, 99).item(),
        "ms of CPU",
        keys=keys,
    )
    longest = by_processor.max().item()
    record("state_scale", "longest block of new keys", longest, "ms of CPU", goal="at most 5", keys=keys)
    record("state_scale", "memory beyond key and columns", beyond, "bytes/key", goal="at most 64", keys=keys)
    record("state_scale", "new keys", keys / by_processor.sum().item() / 1e3, "M rows/s of CPU", keys=keys)
    print(f"  resident bytes per key: {rss:.1f}; beyond: {rss - 17 - table._layout.row_bytes:.1f}")


class Shape:
    """Rows of some kind, and the query that says the same to DuckDB."""

    def __init__(self, name: str, rows: pa.Table, keys: list[str], aggregates: list[tuple[str, str]]) -> None:
        self.name, self.rows = name, rows
        specs = []
        for place, (function, column) in enumerate(aggregates):
            kind = rows.schema.field(column).type if column else None
            result = kind
            if function in ("len", "count"):
                result = pa.int64()
            elif function == "mean":
                result = pa.float64()
            elif function == "sum":
                result = pa.decimal128(38, kind.scale) if pa.types.is_decimal(kind) else kind
            specs.append(AggregateSpec(f"a{place}", function, column or None, kind, result))
        self.spec = TableSpec("shape", tuple(rows.schema.field(each) for each in keys), None, tuple(specs))
        names = {"len": "count(*)", "mean": "avg({})"}
        chosen = [names.get(function, function + "({})").format(column) for function, column in aggregates]
        self.query = f"select {', '.join([*keys, *chosen])} from rows group by all"


def shapes(rows: int) -> Iterator[Shape]:
    random = np.random.default_rng(7)
    both = [("sum", "amount"), ("len", "")]
    some = random.integers(0, 1_000_000, rows)
    names = text_keys(np.arange(1_000_000))

    def table(**columns: Any) -> pa.Table:
        return pa.table({"amount": money(random, rows), **columns})

    yield Shape("text, 1 M groups", table(k=names.take(pa.array(some))), ["k"], both)
    half = np.where(random.integers(0, 2, rows) == 0, 7, some)
    yield Shape("one key has half of the rows", table(k=names.take(pa.array(half))), ["k"], both)
    yield Shape("one key has all rows", table(k=names.take(pa.array(np.full(rows, 7)))), ["k"], both)
    long = text_keys(np.arange(1_000_000), "x" * 180 + "-customer-", 10)
    few = rows // 4
    yield Shape("text of 200 bytes", table(k=long.take(pa.array(some))).slice(0, few), ["k"], both)
    day = pa.array((some % 365).astype(np.int32)).view(pa.date32())
    price = pa.array((some % 100).astype(np.int16)).cast(pa.decimal128(12, 2))
    nulls = [None if each % 100 == 0 else f"region-{each}" for each in range(1000)]
    region = pa.array(nulls).take(pa.array(some // 1000))
    four = table(region=region, n=pa.array(some // 10), day=day, price=price).slice(0, rows // 2)
    yield Shape("four columns: text with nulls, int, date, decimal", four, ["region", "n", "day", "price"], both)
    numbers = {
        "i": pa.array(random.integers(-1000, 1000, rows)),
        "f": pa.array(random.random(rows)),
        "g": pa.array(random.random(rows)),
    }
    every = [
        (function, column)
        for column in ("amount", "i", "f", "g")
        for function in ("sum", "min", "max", "count", "mean")
    ]
    for groups in (20_000, 1_000_000):
        key = names.take(pa.array(some % groups))
        yield Shape(f"20 aggregates, {groups:,} groups", table(k=key, **numbers).slice(0, rows // 4), ["k"], every)
    texts = table(k=names.take(pa.array(some)), t=names.take(pa.array(random.integers(0, 1_000_000, rows))))
    yield Shape("min and max of text", texts.slice(0, rows // 4), ["k"], [("min", "t"), ("max", "t")])


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of CPU, seconds, and what it gave."""
    processor, clock = time.process_time(), time.perf_counter()
    found = work()
    return time.process_time() - processor, time.perf_counter() - clock, found


def folded(table: KeyedTable, batches: list[pa.RecordBatch]) -> list[float]:
    """Seconds of CPU that each block took."""
    taken = []
    for batch in batches:
        began = time.thread_time()
        table.apply(batch)
        taken.append(time.thread_time() - began)
    return taken


def compare_shapes(rows: int, repeat: int, only: str) -> None:
    print(f"shapes, of {rows:,} rows or a part of them: M rows a second of CPU")
    connection = duckdb.connect(config={"threads": 1})
    for shape in shapes(rows):
        if only not in shape.name:
            continue
        batches, count = shape.rows.to_batches(max_chunksize=BLOCK), shape.rows.num_rows
        mine, its, pause, pairs = [], [], 0.0, []
        connection.register("rows", shape.rows)
        for _ in range(repeat):
            processor, clock, found = timed(lambda shape=shape: connection.sql(shape.query).to_arrow_table())
            its.append((processor, clock))
            table = KeyedTable(shape.spec, seed=42)
            processor, clock, pauses = timed(lambda table=table, batches=batches: folded(table, batches))
            mine.append((processor, clock))
            pause = max(pause, *pauses)
            pairs.append((its[-1][0] / mine[-1][0], its[-1][1] / mine[-1][1]))
            assert table.rows == found.num_rows, (shape.name, table.rows, found.num_rows)
        by_processor, by_clock = (statistics.median(each) for each in zip(*pairs, strict=True))
        record("state_scale", f"{shape.name}: CPU of DuckDB's group by", by_processor, "times ours", rows=count)
        speeds = [count / statistics.median(each for each, _ in side) / 1e6 for side in (mine, its)]
        print(
            f"  {shape.name:<50} ours {speeds[0]:6.2f}, duckdb {speeds[1]:6.2f}; ratio {by_processor:5.2f} (clock {by_clock:5.2f}); "
            f"longest block {pause * 1e3:.2f} ms"
        )


def groups(keys: int, repeat: int) -> None:
    for rows, count in ((10_000_000, 20_000), (10_000_000, 2_000_000), (2 * keys, keys)):
        keyed_state.compare(rows, count, repeat)


def expiry(keys: int) -> None:
    spec = TableSpec(
        "totals", (pa.field("customer", pa.string()),), WindowSpec("month", Period(months=1), TIME, grace=0, keep=0), (SUM, LEN), TIME
    )  # fmt: skip
    random = np.random.default_rng(7)
    for others in (1, 4):
        table = KeyedTable(spec, seed=42)
        for month in range(1 + others):
            for first in range(0, keys, BLOCK):
                rows = min(BLOCK, keys - first)
                edges = [pa.array(np.full(rows, each), pa.int64()).view(TIME) for each in (month, month + 1)]
                columns = {"customer": text_keys(np.arange(first, first + rows)), "amount": money(random, rows)}
                table.apply(pa.record_batch({**columns, "month": edges[0], "month_end": edges[1]}))
        gc.collect()
        before, full = resident(), sum(table.memory().values())
        processor, clock, gone = timed(lambda table=table: table.expire(1))
        record("state_scale", "a window goes", clock * 1e3, "ms", goal="at most 5", keys=keys, others=others)
        after, left = resident(), sum(table.memory().values())
        print(
            f"a window of {gone:,} keys goes, {others} stay: pause {clock * 1e3:.2f} ms ({processor * 1e3:.2f} of CPU); "
            f"memory() gives back {(full - left) / 1e6:.0f} of {full / 1e6:.0f} MB, resident {(before - after) / 1e6:.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["growth", "shapes", "groups", "expiry"])
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    warm_up()
    provide_memory()  # as a worker does
    print(f"load {os.getloadavg()[0]:.1f}")
    for part in arguments.parts:
        if part == "growth":
            growth(arguments.keys)
        elif part == "shapes":
            compare_shapes(arguments.rows, arguments.repeat, arguments.only)
        elif part == "groups":
            groups(arguments.keys, arguments.repeat)
        else:
            expiry(1_000_000)


if __name__ == "__main__":
    main()
