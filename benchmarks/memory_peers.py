"""Keyed sum and count of rows that are in memory already, on one core: ours, Flink, and DuckDB and Polars one-shot as the limit.

    python -m benchmarks.memory_peers [--rows 10000000] [--groups 20000 2000000] [--repeat 5] [--systems flowstate duckdb polars flink]

The rows are those of `benchmarks.keyed_state`: sum of a decimal and count by (17-byte nullable text, month). Ours is the keyed state that
a job has, grown from empty, with another thread that takes a whole view once a second. DuckDB and Polars have one thread and know all rows
beforehand: they cannot be asked before the end. Flink is a whole job whose source takes rows from a mapped file, once with its ordinary
exchange and once without; its amounts are 64-bit. All have core 0 and take turns; Flink's first run is not counted (it compiles), and
it may be given fewer rows. Totals must be equal; Flink's to those of as many rows.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.keyed_state import Reader, billing, ours, theirs
from benchmarks.peers import build
from benchmarks.peers.running import Run, System
from benchmarks.results import record
from flowstate.errors import Unavailable
from flowstate.state.kernels import warm_up

if TYPE_CHECKING:
    import polars

JAVA = ("java", "-Xms4g", "-Xmx4g", "-XX:+UseParallelGC", "-XX:+AlwaysPreTouch")
# To (DuckDB one-shot, Flink), by the clock, at so many groups.
GOALS = {
    20_000: ("at least 1", "at least 20"),
    2_000_000: ("at least 1.5", "at least 20"),
    10_000_000: ("at least 1.5", None),
}


def timed(compute: Callable[[], tuple[int, int, int]]) -> Run:
    """`compute` gives groups, events and cents; what it costs to count them is in the time only where that is the whole of it."""
    begun, used = time.perf_counter(), time.process_time()
    found = compute()
    return Run(time.perf_counter() - begun, time.process_time() - used, *found)


def by_flowstate(batches: list[pa.RecordBatch]) -> Run:
    reader = Reader()
    used = time.process_time()
    seconds, state, _ = ours(batches, reader)
    used = time.process_time() - used
    reader.close()
    groups = events = cents = 0
    for batch in state.view().batches():
        groups += batch.num_rows
        events += pc.sum(batch.column("events")).as_py()
        cents += int((pc.sum(batch.column("total")).as_py() or 0) * 100)
    return Run(seconds, used, groups, events, cents, memory=sum(state.memory().values()))


def by_duckdb(rows: pa.Table, connection: duckdb.DuckDBPyConnection) -> Run:
    used = time.process_time()
    seconds, _ = theirs(rows, connection)
    used = time.process_time() - used
    totals = "select customer, month, sum(amount) as total, count(*) as events from rows group by all"
    [(groups, events, money)] = connection.sql(f"select count(*), sum(events), sum(total) from ({totals})").fetchall()
    return Run(seconds, used, groups, int(events), int(money * 100))


def by_polars(table: pa.Table) -> Callable[[], Run]:
    import polars  # when it is imported it takes as many threads as this process has cores

    frame = polars.from_arrow(table)
    assert isinstance(frame, polars.DataFrame)
    return lambda: _by_polars(frame)


def _by_polars(frame: polars.DataFrame) -> Run:
    import polars

    begun, used = time.perf_counter(), time.process_time()
    found = frame.group_by("customer", "month").agg(total=polars.col("amount").sum(), events=polars.len())
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    return Run(seconds, used, found.height, int(found["events"].sum()), int(found["total"].sum() * 100))


def by_numbers(rows: pa.Table, file: Path) -> None:
    """The same rows as Flink's peer maps them."""
    found = np.zeros(rows.num_rows, np.dtype([("customer", "<i4"), ("month", "<i4"), ("cents", "<i8")]))
    names = rows["customer"].combine_chunks()
    found["customer"] = pc.utf8_slice_codeunits(names, len("customer-")).cast(pa.int32()).fill_null(0)
    found["month"] = rows["month"].combine_chunks().view(pa.int64()).to_numpy() // 86_400_000_000
    amounts = rows["amount"].combine_chunks().fill_null(0)
    found["cents"] = np.frombuffer(amounts.buffers()[1], np.int64)[::2][amounts.offset : amounts.offset + len(amounts)]
    found.tofile(file)


def compare(rows: int, groups: int, repeat: int, names: list[str], flink_rows: int, until: float) -> None:
    table = billing(rows, groups)
    block = 32_768 if groups < 200_000 else 16_384
    batches = table.to_batches(max_chunksize=block)
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("set timezone = 'UTC'")
    here: dict[str, Callable[[], Run]] = {
        "flowstate": lambda: by_flowstate(batches),
        "duckdb": lambda: by_duckdb(table, connection),
    }
    if "polars" in names:
        here["polars"] = by_polars(table)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        systems = [System(each, ()) for each in here if each in names]
        if "flink" in names:
            systems += flinks(stack, folder / "rows", table.slice(0, flink_rows), groups // 2)
        for number in range(repeat):
            if number and time.monotonic() > until:
                break
            for each in systems:
                each.runs.append(here[each.name]()) if each.name in here else each.run()
                gc.collect()
        agree(systems, table, flink_rows)
        show(systems, rows, groups)


def flinks(stack: ExitStack, file: Path, rows: pa.Table, customers: int) -> list[System]:
    try:
        path = build.class_path("flink")
    except Unavailable as error:
        print(f"Flink is left out: {error}", flush=True)
        return []
    by_numbers(rows, file)
    said = ["input=memory", f"events={rows.num_rows}", f"rows={file}", f"customers={customers}"]
    found = [
        System(name, [*JAVA, "-cp", path, "FlinkPeer", *said, f"exchange={exchange}"])
        for name, exchange in (("Flink, HashMap state", "keyed"), ("Flink, HashMap state, no exchange", "chained"))
    ]
    for each in found:
        stack.callback(each.close)
    return found


def agree(systems: list[System], table: pa.Table, flink_rows: int) -> None:
    """Each run found what DuckDB finds in as many rows, to the cent."""
    for each in systems:
        part = table.slice(0, flink_rows) if each.name.startswith("Flink") else table
        connection = duckdb.connect(config={"threads": 1})
        expected = by_duckdb(part, connection).found
        if any(run.found != expected for run in each.runs):
            raise RuntimeError(f"{each.name} found {each.runs[0].found}, where {expected} is right")


def show(systems: list[System], rows: int, groups: int) -> None:
    print(f"\n{groups:,} groups, {rows:,} rows, load {os.getloadavg()[0]:.1f}")
    print(f"{'':36}{'M rows/s':>11}{'CPU s/M':>9}{'ours is, by clock':>19}{'by CPU':>8}{'runs':>6}{'rows':>12}")
    ours = next((each for each in systems if each.name == "flowstate"), None)
    for each in systems:
        settings: dict[str, Any] = {"groups": groups, "rows": rows}
        record("memory_peers", "rows taken in", each.rate, "M rows/s", system=each.name, **settings)
        record("memory_peers", "processor", each.cpu, "CPU s/M rows", system=each.name, **settings)
        record("memory_peers", "runs", len(each.runs), "runs", system=each.name, **settings)
        if size := each.runs[-1].memory:
            record(
                "memory_peers", "bytes per group", size / each.runs[-1].groups, "bytes", system=each.name, **settings
            )
        line = f"{each.name:36}{each.rate:11.2f}{each.cpu:9.4f}"
        if ours is None or each is ours:
            line += " " * 27
        else:
            goals = GOALS.get(groups, (None, None))
            goal = goals[0] if each.name == "duckdb" else goals[1] if each.name.startswith("Flink") else None
            by_clock, by_cpu = paired(ours, each)
            record("memory_peers", "ours to it, by the clock", by_clock, "x", system=each.name, goal=goal, **settings)
            record("memory_peers", "ours to it, by CPU", by_cpu, "x", system=each.name, goal=goal, **settings)
            line += f"{by_clock:18.2f}x{by_cpu:7.2f}x"
        print(f"{line}{len(each.runs):6}{each.runs[0].events:12,}", flush=True)


def paired(one: System, other: System) -> tuple[float, float]:
    """Medians of the ratios of runs that followed each other, per row: by the clock and by CPU."""
    pairs = list(zip(one.runs, other.runs, strict=True))
    clock = statistics.median((b.seconds / b.events) / (a.seconds / a.events) for a, b in pairs)
    return clock, statistics.median((b.cpu / b.events) / (a.cpu / a.events) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--flink-rows", type=int, default=4_000_000, help="how many of them Flink is given")
    parser.add_argument("--groups", type=int, nargs="+", default=[20_000, 2_000_000])
    parser.add_argument("--repeat", type=int, default=5)
    known = ["flowstate", "duckdb", "polars", "flink"]
    parser.add_argument("--systems", nargs="+", default=known, choices=known)
    parser.add_argument(
        "--seconds", type=float, default=600, help="no turn begins so many seconds after the first of its groups"
    )
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    pa.set_cpu_count(1)
    warm_up()
    for groups in options.groups:
        until = time.monotonic() + options.seconds
        compare(options.rows, groups, options.repeat, options.systems, min(options.rows, options.flink_rows), until)


if __name__ == "__main__":
    main()
