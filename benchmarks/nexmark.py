"""Nexmark's keyed questions: ours, live, against DuckDB one-shot over the same file, on one core; the answers are equal.

    python -m benchmarks.nexmark [--bids 5000000] [--repeat 5] [--queries q1 q2 q5 q12]

Bids come from a generator with a seed, in an Arrow file: half of them are for the auction that is hot just now, three quarters from a
bidder who is, and ten thousand fall into a second of event time. The questions, each a keyed view that could be asked at any moment:

    q1   prices in euro (exactly), added up per bidder
    q2   of the auctions whose number is divisible by 123: bids and highest price per auction
    q5   bids per auction in windows of 10 seconds
    q12  bids per bidder in windows of 10 seconds

Ours is a whole partition (source, event time, lateness, windows, state, position; no network) that reads the file from its beginning to
its end; DuckDB scans the file with one thread and groups it, all of it known beforehand. q5 has windows that follow one another, where
Nexmark's slide by 2 seconds; q12 has event time, where Nexmark's has the machine's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

import flowstate as fs
from benchmarks.one_pump import OnePump
from benchmarks.results import record
from flowstate.api.stream import Stream, View
from flowstate.source import warm_up as warm_up_source
from flowstate.state.kernels import warm_up

SCHEMA = pa.schema(
    {"auction": pa.int64(), "bidder": pa.int64(), "price": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")}
)
BEGIN, A_SECOND = 1_767_225_600_000, 10_000  # milliseconds; bids
PIECE = 65_536
RATE = Decimal("0.908")


class Query(NamedTuple):
    """`flow` names its view `answer`; `sql` gives the same columns from a relation called bids, times as microseconds."""

    flow: Callable[[Stream], View]
    sql: str
    about: str


def _q1(bids: Stream) -> View:
    euros = bids.with_columns(euro=fs.col("price") * fs.lit(RATE))
    return euros.group_by("bidder").agg(euro=fs.col("euro").sum(), bids=fs.len()).view("answer")


def _q2(bids: Stream) -> View:
    some = bids.filter(fs.col("auction") % 123 == 0)
    return some.group_by("auction").agg(bids=fs.len(), highest=fs.col("price").max()).view("answer")


def _per_window(key: str) -> Callable[[Stream], View]:
    return lambda bids: bids.group_by(key, began=fs.window("at", every="10s")).agg(bids=fs.len()).view("answer")


_BEGAN = "epoch_us(time_bucket(interval '10 seconds', \"at\")) as began"
QUERIES = {
    "q1": Query(
        _q1,
        "select bidder, sum(price * 0.908) as euro, count(*) as bids from bids group by all",
        "sum in euro per bidder",
    ),
    "q2": Query(
        _q2,
        "select auction, count(*) as bids, max(price) as highest from bids where auction % 123 = 0 group by all",
        "some auctions: bids, highest price",
    ),
    "q5": Query(
        _per_window("auction"),
        f"select auction, {_BEGAN}, count(*) as bids from bids group by all",
        "bids per auction and 10 s",
    ),
    "q12": Query(
        _per_window("bidder"),
        f"select bidder, {_BEGAN}, count(*) as bids from bids group by all",
        "bids per bidder and 10 s",
    ),
}


def generate(path: Path, bids: int, seed: int = 1) -> None:
    """An auction opens every 15 bids, a bidder comes every 50."""
    dice = np.random.default_rng(seed)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for begin in range(0, bids, PIECE):
            number = np.arange(begin, min(begin + PIECE, bids))
            size = len(number)
            auctions, bidders = number // 15 + 1, number // 50 + 1
            auction = np.where(dice.random(size) < 0.5, auctions // 100 * 100, auctions - dice.integers(0, 100, size))
            bidder = np.where(dice.random(size) < 0.75, bidders // 100 * 100, bidders - dice.integers(0, 1000, size))
            cents = np.zeros((size, 2), np.int64)
            cents[:, 0] = np.floor(10 ** (dice.random(size) * 6)).astype(np.int64) + 99
            price = pa.Array.from_buffers(SCHEMA.field("price").type, size, [None, pa.py_buffer(cents)])
            at = pa.array(BEGIN + number * 1000 // A_SECOND).cast(SCHEMA.field("at").type)
            ids = [pa.array(np.maximum(each, 0)) for each in (auction, bidder)]
            writer.write_batch(pa.record_batch([*ids, price, at], schema=SCHEMA))


def ours(query: Query, path: Path, folder: Path) -> tuple[float, float, pa.Table]:
    """Seconds by the clock and of the processor from the first block until all is in state, and the state."""
    bids = fs.scan_files(str(path), schema=SCHEMA, event_time="at", lateness="5s")
    with OnePump([query.flow(bids)], folder) as one:
        begun, used = time.perf_counter(), time.process_time()
        if not one.ended.wait(300):
            raise RuntimeError(f"the partition does not end: {one.pump.state} {one.pump.reason}")
        seconds, used = time.perf_counter() - begun, time.process_time() - used
        return seconds, used, state_of(one)


def state_of(one: OnePump) -> pa.Table:
    table: Any = one.pump._contents.tables["answer"]
    return pa.Table.from_batches(table.view().batches())


def theirs(query: Query, path: Path) -> tuple[float, float, pa.Table]:
    with duckdb.connect(config={"threads": 1}) as connection, pa.memory_map(str(path)) as file:
        connection.execute("set timezone = 'UTC'")
        begun, used = time.perf_counter(), time.process_time()
        connection.register("bids", pa.ipc.open_file(file).read_all())
        found = connection.sql(query.sql).to_arrow_table()
        seconds, used = time.perf_counter() - begun, time.process_time() - used
        connection.unregister("bids")
        return seconds, used, found


def rows_of(table: pa.Table, names: list[str]) -> pa.Table:
    """In one order and with the same types, so that two answers can be compared."""
    columns: dict[str, Any] = {}
    for name in names:
        column = table[name].combine_chunks()
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        columns[name] = (
            column.cast(pa.decimal128(38, 5)) if pa.types.is_decimal(column.type) else column.cast(pa.int64())
        )
    return pa.table(columns).sort_by([(each, "ascending") for each in names])


def equal(left: pa.Table, right: pa.Table) -> bool:
    """`right` says which columns count."""
    return rows_of(left, right.column_names).equals(rows_of(right, right.column_names))


def compare(name: str, path: Path, bids: int, repeat: int) -> None:
    query = QUERIES[name]
    mine, its = list[tuple[float, float]](), list[tuple[float, float]]()
    groups = 0
    for number in range(repeat + 1):
        with tempfile.TemporaryDirectory() as folder:
            *spent, found = ours(query, path, Path(folder) / "snapshots")
        *peer, expected = theirs(query, path)
        if not equal(found, expected):
            raise RuntimeError(f"{name}: {found.num_rows} rows that differ from DuckDB's {expected.num_rows}")
        groups = expected.num_rows
        if number:  # the first is not counted
            mine.append((spent[0], spent[1]))
            its.append((peer[0], peer[1]))
    clock, processor = (
        statistics.median(b[place] / a[place] for a, b in zip(mine, its, strict=True)) for place in (0, 1)
    )
    rates = [bids / statistics.median(each[0] for each in runs) / 1e6 for runs in (mine, its)]
    for system, rate in zip(("flowstate", "duckdb"), rates, strict=True):
        record("nexmark", "bids taken in", rate, "M rows/s", system=system, query=name, bids=bids)
        record("nexmark", "runs", repeat, "runs", system=system, query=name, bids=bids)
    record("nexmark", "ours to it, by the clock", clock, "x", system="duckdb", query=name, bids=bids)
    record("nexmark", "ours to it, by CPU", processor, "x", system="duckdb", query=name, bids=bids)
    print(
        f"{name:4} {query.about:36}{groups:10,}{rates[0]:11.2f}{rates[1]:11.2f}{clock:10.2f}x{processor:8.2f}x",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bids", type=int, default=5_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--queries", nargs="+", default=list(QUERIES), choices=list(QUERIES))
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    pa.set_cpu_count(1)
    warm_up()
    warm_up_source()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bids.arrow"
        generate(path, options.bids)
        print(f"{options.bids:,} bids, medians of {options.repeat}, load {os.getloadavg()[0]:.1f}")
        print(f"{'':41}{'groups':>10}{'ours M/s':>11}{'duckdb M/s':>11}{'by clock':>11}{'by CPU':>9}")
        for name in options.queries:
            compare(name, path, options.bids, options.repeat)


if __name__ == "__main__":
    main()
