"""One key of a live view, asked through Flight while the job ingests: p50 and p99.

    python benchmarks/lookup.py [--rate 50000] [--keys 100000] [--seconds 10] [--repeat 5]

A real job of one worker process, pinned to core 0, follows a file log that another process appends to at `rate` rows a second. The client
is pinned to core 1. Three ways of asking: the reader's long-lived exchange (``job[view][key]``), a plain `do_get` of a ticket, and SQL.
A bare echo over the same kind of exchange in the same run says what the transport alone takes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client, LocalCluster
from pyarrow import flight

import flowstate as fs
from flowstate_flight.ticket import Ticket, write_keys

SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64(), "at": pa.int64()})


def generate(path: str, rate: int, keys: int, stop: Any) -> None:
    """Appends at a steady rate, prepared beforehand so that writing costs next to nothing."""
    os.sched_setaffinity(0, {1})
    random = np.random.default_rng(1)
    piece = max(1, rate // 100)
    pieces = []
    for _ in range(max(50, 3 * keys // piece)):
        who, much = random.integers(0, keys, piece).tolist(), random.integers(0, 1000, piece).tolist()
        rows = [f'{{"customer":"customer-{w:08d}","amount":{m},"at":1}}\n' for w, m in zip(who, much, strict=True)]
        pieces.append("".join(rows).encode())
    begun, number = time.monotonic(), 0
    with open(path, "ab", buffering=0) as log:
        while not stop.is_set():
            log.write(pieces[number % len(pieces)])
            number += 1
            time.sleep(max(0.0, begun + number * piece / rate - time.monotonic()))


class Echo(flight.FlightServerBase):
    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        writer.begin(pa.schema({"customer": pa.string()}))
        for chunk in reader:
            writer.write_with_metadata(chunk.data, chunk.app_metadata)


def serve_echo(port: Any) -> None:
    os.sched_setaffinity(0, {0})
    server = Echo("grpc://127.0.0.1:0")
    port.put(server.port)
    server.serve()


def measure(call: Callable[[int], object], seconds: float) -> tuple[float, float, int]:
    """p50, p99 in milliseconds, and how many calls."""
    for number in range(20):
        call(number)
    taken, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        call(len(taken))
        taken.append((time.perf_counter() - begun) * 1e3)
    p50, p99 = np.percentile(taken, [50, 99])
    return float(p50), float(p99), len(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=50_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    stop, port = spawn.Event(), spawn.Queue()
    echo = spawn.Process(target=serve_echo, args=(port,), daemon=True)
    echo.start()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.run(lambda: os.sched_setaffinity(0, {0}))
        path = Path(folder) / "log.jsonl"
        path.touch()
        writer = spawn.Process(target=generate, args=(str(path), options.rate, options.keys, stop), daemon=True)
        writer.start()
        events = fs.scan_files(f"{folder}/*.jsonl", schema=SCHEMA, follow=True)
        view = events.group_by("customer").agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")
        with fs.start(view, snapshots=Path(folder) / "snapshots", every="2s", client=client) as job:
            while job.status()["partitions"]["0"]["report"].get("keys", {}).get("totals", 0) < options.keys * 0.8:
                time.sleep(0.2)
            os.sched_setaffinity(0, {1})
            names = [f"customer-{each:08d}" for each in np.random.default_rng(2).integers(0, options.keys, 1000)]
            reader = job["totals"]
            plain = flight.connect(job.address)
            bare = flight.connect(f"grpc://127.0.0.1:{port.get()}")
            to, back = bare.do_exchange(flight.FlightDescriptor.for_command(b"echo"))
            to.begin(pa.schema({"customer": pa.string()}))

            def echoed(number: int) -> None:
                to.write_with_metadata(pa.record_batch({"customer": [names[number % 1000]]}), b"{}")
                back.read_chunk()

            def by_ticket(number: int) -> None:
                keys = write_keys(pa.record_batch({"customer": [names[number % 1000]]}))
                plain.do_get(flight.Ticket(Ticket(job.name, "totals", 0, keys=keys).to_bytes())).read_all()

            ways: dict[str, Callable[[int], object]] = {
                "bare echo": echoed,
                "job[view][key]": lambda number: reader.get(names[number % 1000]),
                "do_get of a ticket": by_ticket,
                "sql, where key = ?": lambda number: job.sql(
                    "select * from totals where customer = $1", [names[number % 1000]]
                ).fetchall(),
            }
            rows = job.status()["partitions"]["0"]["report"]["rows"]
            begun = time.monotonic()
            found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
            for _ in range(options.repeat):
                for name, call in ways.items():
                    found[name].append(measure(call, options.seconds))
            rate = (job.status()["partitions"]["0"]["report"]["rows"] - rows) / (time.monotonic() - begun)
            print(f"one worker on core 0 ingesting {rate:,.0f} rows/s ({options.keys:,} keys), client on core 1")
            for name, each in found.items():
                p50, p99 = statistics.median(one[0] for one in each), statistics.median(one[1] for one in each)
                print(f"{name:20} p50 {p50:6.3f} ms   p99 {p99:7.3f} ms   {sum(one[2] for one in each):,} calls")
            stop.set()
            to.done_writing()
            to.close()
    echo.terminate()


if __name__ == "__main__":
    main()
