"""All measurements of one run, one after the other, each in a process of its own: ``make bench``, or ``make bench ARGS=lookup``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALL = {
    "keyed_state": "keyed sum and count from memory, against DuckDB one-shot; bytes per key",
    "lookup": "one key through Flight and SQL while the job ingests",
    "queries": "every way of asking while the job ingests, beside its limit and its peer; whole-view SQL and throughput",
    "memory_peers": "keyed sum and count from memory beside DuckDB, Polars and Flink (Java and Maven), on one core",
    "nexmark": "Nexmark's keyed questions beside DuckDB",
    "snapshot_pause": "longest pause of applying while a snapshot is taken",
}
EXTRA = {
    "kafka_peers": "from a topic to queryable state beside Flink and Kafka Streams (Java and Maven), on one core",
    "kafka_lookups": "how much of that a job keeps while 256 lookups are in flight",
    "kafka_in": "messages from a real broker, one by one and many at once, as payloads and as columns",
    "soak": "ten minutes under load: memory and queues",
    "flight_lookup": "lookups on a synthetic partition",
    "scenarios": "the billing job on real processes that are killed, stopped and cut off: what readers saw",
    "recovery": "a worker dies at 50,000 rows a second: how long keys are away, and what the others notice",
    "slow_readers": "50 clients that read nothing of their scans, changes, SQL and events: how fast a backlog is applied beside them",
    "torment_soak": "half an hour with a fault every 20 seconds: totals, memory, files",
}


def main() -> None:
    chosen = sys.argv[1:] or list(ALL)
    unknown = [each for each in chosen if each not in ALL | EXTRA]
    if unknown:
        known = "\n".join(f"  {name:15} {about}" for name, about in (ALL | EXTRA).items())
        sys.exit(f"there is no benchmark {unknown[0]!r}; there is\n{known}")
    names = ("pyarrow", "duckdb", "numba", "numpy", "distributed")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in names), flush=True)
    failed = 0
    for name in chosen:
        print(f"\n== {name}: {(ALL | EXTRA)[name]}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=False)
        failed += done.returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
