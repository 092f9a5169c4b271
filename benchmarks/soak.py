"""Continuous running under load, with snapshots and queries: memory must stay flat and no queue may grow.

    python benchmarks/soak.py [--minutes 10] [--rate 20000]

A job of two worker processes follows a file log that a generator appends to at a steady rate; windows are expired, snapshots saved every
two seconds, a Flight scan and a lookup run every second. Every ten seconds it prints resident memory of each worker (MiB), rows applied,
how far the job is behind the log, and messages that wait. At the end it says how memory moved over the second half.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

import flowstate as fs

SCHEMA = pa.schema({"at": pa.timestamp("ms", "UTC"), "customer": pa.string(), "amount": pa.decimal128(12, 2)})


class Generator(threading.Thread):
    """Appends `rate` rows a second; one second is an hour of event time."""

    def __init__(self, folder: Path, rate: int, keys: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.rate, self.keys, self.sent = folder, rate, keys, 0
        self.stopping = threading.Event()

    def run(self) -> None:
        random = np.random.default_rng(1)
        begun, piece = time.monotonic(), self.rate // 20
        while not self.stopping.is_set():
            at = 1_700_000_000_000 + (self.sent + np.arange(piece)) * 3_600_000 // self.rate
            customers = random.integers(0, self.keys, piece)
            cents = random.integers(1, 10_000, piece)
            lines = [
                f'{{"at":{when},"customer":"customer-{who:08d}","amount":{much // 100}.{much % 100:02d}}}\n'
                for when, who, much in zip(at.tolist(), customers.tolist(), cents.tolist(), strict=True)
            ]
            for split in range(2):
                with (self.folder / f"{split}.jsonl").open("a") as log:
                    log.writelines(lines[split::2])
            self.sent += piece
            self.stopping.wait(max(0.0, begun + self.sent / self.rate - time.monotonic()))


def report_of(status: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
    reports = [each["report"] for each in status["partitions"].values()]
    problems = {name: text for each in reports for name, text in each.get("problems", {}).items()} | status["problems"]
    return sum(each["rows"] for each in reports), sum(each["waiting"] for each in reports), problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "log").mkdir()
        events = fs.scan_files(f"{folder}/log/*.jsonl", schema=SCHEMA, event_time="at", lateness="1h", follow=True)
        view = (
            events.group_by("customer", day=fs.window("at", every="1d", grace="1h", keep="2d"))
            .agg(total=fs.col("amount").sum(), events=fs.len())
            .view("daily")
        )
        generator = Generator(folder / "log", options.rate, options.keys)
        with fs.start(view, snapshots=folder / "snapshots", every="2s", keep=5) as job:
            pids = list(job.client.run(os.getpid).values())
            generator.start()
            begun = time.monotonic()
            history: list[list[float]] = []
            latencies: list[float] = []
            shown = 0.0
            while (passed := time.monotonic() - begun) < options.minutes * 60:
                asked = time.monotonic()
                job["daily"].get("customer-00000007")
                latencies.append((time.monotonic() - asked) * 1e3)
                job["daily"].to_table()
                if passed >= shown:
                    shown += 10
                    memory = [psutil.Process(pid).memory_info().rss / 2**20 for pid in pids]
                    rows, waiting, problems = report_of(job.status())
                    history.append(memory)
                    stored = (
                        sum(each.stat().st_size for each in (folder / "snapshots").rglob("*") if each.is_file()) / 2**20
                    )
                    now = datetime.now(UTC)
                    print(
                        f"{now:%H:%M:%S} {passed:5.0f} s  memory {' '.join(f'{each:.0f}' for each in memory)} MiB  rows {rows:,}"
                        f"  behind {generator.sent - rows:,}  waiting {waiting}  snapshots {stored:.0f} MiB"
                        f"  lookup p50 {statistics.median(latencies):.2f} ms  {problems or ''}",
                        flush=True,
                    )
                    latencies.clear()
                time.sleep(1)
            generator.stopping.set()
            generator.join()
            deadline = time.monotonic() + 60
            while report_of(job.status())[0] < generator.sent and time.monotonic() < deadline:
                time.sleep(0.2)
            rows, waiting, problems = report_of(job.status())
            print(f"sent {generator.sent:,} applied {rows:,} waiting {waiting} problems {problems}")
            half = history[len(history) // 2 :]
            for number in range(len(pids)):
                series = [each[number] for each in half]
                slope = np.polyfit(np.arange(len(series)) * 10 / 60, series, 1)[0] if len(series) > 1 else 0.0
                print(
                    f"worker {number}: {series[0]:.0f} -> {series[-1]:.0f} MiB over the second half, {slope:+.2f} MiB a minute"
                )


if __name__ == "__main__":
    main()
