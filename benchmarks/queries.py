"""Queries while the job ingests, each figure beside its limit and beside what the machine gives without us, in the same run.

    python -m benchmarks.queries [--rate 50000] [--keys 100000] [--seconds 2] [--repeat 5] [--backlog 6000000]
    python -m benchmarks.queries --consistency 10000

One worker process, pinned to core 0, follows a file log that another process appends to at `rate` rows a second; the client is pinned to
core 1. Processor times are taken after that, with nothing to ingest, less what the worker takes when nobody asks. The peers: an exchange
whose server, on core 0 too, gives back rows that it has ready, as many and as wide; and DuckDB over the same rows in the client's memory.

``--consistency`` is another run: a bank whose total never changes, so many consistent reads, and so many writes read back (`transfers`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import duckdb
import numpy as np
import psutil
import pyarrow as pa
from distributed import Client, LocalCluster
from pyarrow import flight

import flowstate as fs
from benchmarks.lookup import SCHEMA, generate, measure
from benchmarks.results import record
from benchmarks.transfers import check
from flowstate.api.own_cluster import DASK_SETTINGS
from flowstate_flight.keys import key_batch

FEW, BATCH = 100, 10_000  # keys of one batched lookup
GROUPS = "select left(customer, 13) as bucket, count(*), sum(total)::bigint, max(events) from totals group by all order by all"


class Ready(flight.FlightServerBase):
    """An exchange that computes nothing: for each batch of keys as many rows that it has ready."""

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        rows = pa.ipc.open_stream(descriptor.command).read_next_batch()
        writer.begin(rows.schema)
        for chunk in reader:
            writer.write_with_metadata(rows.slice(0, chunk.data.num_rows), chunk.app_metadata)


def serve_ready(port: Any) -> None:
    os.sched_setaffinity(0, {0})
    server = Ready("grpc://127.0.0.1:0")
    port.put(server.port)
    server.serve()


@dataclass
class Bench:
    job: fs.Job
    worker: psutil.Process
    names: list[str]
    seconds: float
    repeat: int

    def rows(self) -> int:
        return int(self.job.status()["partitions"]["0"]["report"]["rows"])

    def batch(self, number: int, size: int = BATCH) -> pa.RecordBatch:
        at = number * size % max(1, len(self.names) - size)
        return key_batch(self.job["totals"].info, self.names[at : at + size])

    def cpu(self) -> float:
        """Seconds of processor time that the worker took so far."""
        times = self.worker.cpu_times()
        return float(times.user + times.system)

    def cpu_of(self, call: Callable[[int], object]) -> tuple[float, float]:
        """Microseconds of processor time that one call takes of the worker, beyond what that takes anyway, and of this process."""
        begun, before = time.monotonic(), self.cpu()
        time.sleep(self.seconds)
        idle = (self.cpu() - before) / (time.monotonic() - begun)
        for number in range(20):
            call(number)
        begun, before, own, calls = time.monotonic(), self.cpu(), time.process_time(), 0
        while time.monotonic() - begun < 2 * self.seconds:
            call(calls)
            calls += 1
        taken = self.cpu() - before - idle * (time.monotonic() - begun)
        return 1e6 * taken / calls, 1e6 * (time.process_time() - own) / calls


def say(what: str, value: str, limit: str = "", **figures: tuple[float, str, str | None]) -> None:
    """Print a line; each of `figures` (value, unit, goal) is recorded, too, by its name."""
    print(f"{what:46} {value:34} {limit}", flush=True)
    for name, (figure, unit, goal) in figures.items():
        record("queries", name.replace("_", " "), figure, unit, goal=goal)


def median(found: Sequence[tuple[float, float, int]], place: int) -> float:
    return statistics.median(each[place] for each in found)


def while_ingesting(bench: Bench, ready: Any) -> None:
    job, view, names = bench.job, bench.job["totals"], bench.names
    schema, keys = view.schema.remove_metadata(), key_batch(view.info, names[:1]).schema
    whole = view.to_table()
    memory = duckdb.connect()
    memory.register("totals", whole)

    def exchange(rows: int) -> tuple[Any, Any]:
        answer = view.lookup(names[:rows]).combine_chunks().to_batches()[0]
        answer = pa.RecordBatch.from_arrays(answer.columns, schema=schema)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(answer)
        to, back = ready.do_exchange(flight.FlightDescriptor.for_command(sink.getvalue().to_pybytes()))
        to.begin(keys)
        return to, back

    one, few, many = exchange(1), exchange(FEW), exchange(BATCH)
    small = [bench.batch(each, FEW) for each in range(8)]
    batches, ones = [bench.batch(each) for each in range(8)], [key_batch(view.info, [each]) for each in names[:1000]]

    def ask(pair: tuple[Any, Any], batch: pa.RecordBatch) -> None:
        pair[0].write_with_metadata(batch, b"{}")
        pair[1].read_chunk()

    point = "select * from totals where customer = $1"
    ways: dict[str, Callable[[int], object]] = {
        "ready one": lambda number: ask(one, ones[number % 1000]),
        "one": lambda number: view.lookup(names[number % len(names)]),
        "ready few": lambda number: ask(few, small[number % 8]),
        "few": lambda number: view.lookup(small[number % 8]),
        "ready many": lambda number: ask(many, batches[number % 8]),
        "many": lambda number: view.lookup(batches[number % 8]),
        "point": lambda number: job.sql(point, [names[number % len(names)]]).fetchall(),
        "groups": lambda number: job.sql(GROUPS).fetchall(),
        "groups in memory": lambda number: memory.sql(GROUPS).fetchall(),
        "cut": lambda number: job._reader.make_cut(),
        "consistent point": lambda number: view.lookup(names[number % len(names)], consistent=True),
    }
    begun, rows = time.monotonic(), bench.rows()
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for _ in range(bench.repeat):
        for name, call in ways.items():
            found[name].append(measure(call, bench.seconds))
    rate = (bench.rows() - rows) / (time.monotonic() - begun)
    print(
        f"one worker on core 0 ingesting {rate:,.0f} rows/s ({whole.num_rows:,} keys), client on core 1; medians of {bench.repeat}"
    )
    p50 = {name: median(each, 0) for name, each in found.items()}
    p99 = {name: median(each, 1) for name, each in found.items()}
    say(
        "one key",
        f"p50 {p50['one']:.3f} p99 {p99['one']:.3f} ms",
        "at most 0.35, 2 ms",
        one_key_p50=(p50["one"], "ms", "at most 0.35"),
        one_key_p99=(p99["one"], "ms", "at most 2"),
        one_key_over_an_exchange_with_the_row_ready=(p50["one"] / p50["ready one"], "ratio", None),
    )
    say("  an exchange with the row ready", f"p50 {p50['ready one']:.3f} p99 {p99['ready one']:.3f} ms")
    for name, size in (("few", FEW), ("many", BATCH)):
        say(f"batched lookups of {size:,} keys", f"{size / p50[name]:,.0f} keys/ms")
        say("  an exchange with the rows ready", f"{size / p50[f'ready {name}']:,.0f} keys/ms")
        share = p50[f"ready {name}"] / p50[name]
        figures = {f"{size:,} keys to an exchange with the rows ready": (share, "ratio", "at least 0.8")}
        say("  ours to that", f"{share:.2f}", "at least 0.8", **figures)
    of_point, of_groups = ((p50[name], "ms", goal) for name, goal in (("point", "at most 3"), ("groups", "at most 10")))
    say("SQL, where key = ?", f"p50 {p50['point']:.2f} p99 {p99['point']:.2f} ms", "at most 3 ms", SQL_one_key=of_point)
    say(
        "SQL, group by over all keys",
        f"p50 {p50['groups']:.2f} p99 {p99['groups']:.2f} ms",
        "at most 10 ms",
        SQL_group_by_over_all_keys=of_groups,
    )
    say("  DuckDB over the same in memory", f"p50 {p50['groups in memory']:.2f} ms")
    say("consistent cut", f"p50 {p50['cut']:.2f} p99 {p99['cut']:.2f} ms", "at most 20 ms")
    say("  with one key read in it", f"p50 {p50['consistent point']:.2f} p99 {p99['consistent point']:.2f} ms")
    for to, _ in (one, few, many):
        to.done_writing()
        to.close()
    memory.close()


def processor_time(bench: Bench) -> None:
    """With nothing to ingest."""
    view, names = bench.job["totals"], bench.names
    batches = [bench.batch(each) for each in range(8)]
    server, client = bench.cpu_of(lambda number: view.lookup(names[number % len(names)]))
    say(
        "processor per single-key lookup, server",
        f"{server:.0f} us (client {client:.0f} us)",
        "at most 100 us",
        one_key_processor_of_the_server=(server, "us", "at most 100"),
    )
    server, client = bench.cpu_of(lambda number: view.lookup(batches[number % 8]))
    say(
        "processor per key of a batch, server",
        f"{server / BATCH:.2f} us (client {client / BATCH:.2f} us)",
        "at most 1.5 us",
    )


def lost_to_sql(bench: Bench, log: Path, backlog: int, keys: int) -> None:
    """How much slower a backlog is caught up with while the whole view is asked once a second."""
    chance = np.random.default_rng(3)
    who = chance.integers(0, keys, 100_000).tolist()
    piece = "".join(f'{{"customer":"customer-{each:08d}","amount":{each % 1000},"at":1}}\n' for each in who).encode()

    def rate(ask: bool) -> float:
        goal = bench.rows() + backlog
        with log.open("ab") as file:
            for _ in range(max(1, backlog // 100_000)):
                file.write(piece)
        begun, asked = time.monotonic(), 0
        while bench.rows() < goal:
            if ask and time.monotonic() - begun >= asked:
                bench.job.sql(GROUPS).fetchall()
                asked += 1
            time.sleep(0.02)
        return backlog / (time.monotonic() - begun)

    backlog = max(1, backlog // 100_000) * 100_000
    rate(False)
    pairs = [(rate(False), rate(True)) for _ in range(bench.repeat)]
    alone, asked = (statistics.median(each[place] for each in pairs) for place in (0, 1))
    lost = statistics.median(1 - each[1] / each[0] for each in pairs)
    say("catching up with a backlog", f"{alone:,.0f} rows/s alone")
    say("  lost to one whole-view SQL a second", f"{100 * lost:.1f} % ({asked:,.0f} rows/s)", "at most 2 %")


def consistency(count: int) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set(DASK_SETTINGS),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        begun = time.monotonic()

        def tell(what: str) -> None:
            print(f"{time.monotonic() - begun:6.0f} s  {what}", flush=True)

        readers = check(Path(folder), client, reads=count, writes=count, seconds=3600.0, tell=tell)
    print(f"{count:,} writes read back, none older than promised; {time.monotonic() - begun:.0f} s in all")
    for each in readers:
        print(each.summary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=50_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--backlog", type=int, default=6_000_000)
    parser.add_argument("--consistency", type=int, metavar="READS")
    options = parser.parse_args()
    if options.consistency:
        consistency(options.consistency)
        return
    spawn = multiprocessing.get_context("spawn")
    stop, port = spawn.Event(), spawn.Queue()
    with ExitStack() as stack:
        server = spawn.Process(target=serve_ready, args=(port,), daemon=True)
        server.start()
        stack.callback(server.terminate)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(dask.config.set(DASK_SETTINGS))  # as `start` has them for a cluster of its own
        cluster = stack.enter_context(
            LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0")
        )
        client = stack.enter_context(Client(cluster))
        client.run(lambda: os.sched_setaffinity(0, {0}))
        [pid] = client.run(os.getpid).values()
        log = folder / "log.jsonl"
        log.touch()
        writer = spawn.Process(target=generate, args=(str(log), options.rate, options.keys, stop), daemon=True)
        writer.start()
        stack.callback(writer.terminate)
        events = fs.scan_files(f"{folder}/*.jsonl", schema=SCHEMA, follow=True)
        view = events.group_by("customer").agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")
        job = stack.enter_context(fs.start(view, snapshots=folder / "snapshots", every="2s", client=client))
        while job.status()["partitions"]["0"]["report"].get("keys", {}).get("totals", 0) < options.keys * 0.8:
            time.sleep(0.2)
        os.sched_setaffinity(0, {1})
        numbers = np.random.default_rng(2).permutation(options.keys)
        names = [f"customer-{each:08d}" for each in numbers]
        bench = Bench(job, psutil.Process(pid), names, options.seconds, options.repeat)
        ready = stack.enter_context(flight.connect(f"grpc://127.0.0.1:{port.get()}"))
        while_ingesting(bench, ready)
        stop.set()
        writer.join(10)
        time.sleep(1.0)
        processor_time(bench)
        lost_to_sql(bench, log, options.backlog, options.keys)


if __name__ == "__main__":
    main()
