"""How much of its throughput a job keeps while 256 lookups of single keys are in flight all the time.

    python -m benchmarks.kafka_lookups [--messages 4000000] [--repeat 5] [--lookups 256]

The billing job of `benchmarks.kafka_peers`, from the same topic, on core 0, with and without a client on core 1 that asks a new question as
soon as it has an answer. Nobody limits how often it may ask; while rows wait, our workers answer exchanges within a share of a processor
(`flowstate_flight.share`), and Flink as the machine lets it. Flink is asked by its queryable state, which 1.20 still has. What is kept is
said by the clock, and by the CPU seconds of all but the client, which others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.kafka_peers import TOPIC, fill, system
from benchmarks.results import record
from flowstate.errors import Unavailable
from flowstate.testing.servers.kafka import KafkaBroker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=4_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--lookups", type=int, default=256)
    parser.add_argument("--systems", nargs="+", default=["flowstate"], choices=["flowstate", "flink"])
    parser.add_argument(
        "--seconds", type=float, default=600, help="no pair of runs begins so many seconds after the first"
    )
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})  # and the broker with it
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        broker = KafkaBroker(Path(folder))
        stack.callback(broker.kill)
        broker.format()
        broker.start()
        fill(broker, options.messages)
        said = {"bootstrap": broker.bootstrap, "topic": TOPIC, "events": str(options.messages)}
        print(
            f"{options.messages:,} messages, {options.lookups} lookups in flight, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        for name in options.systems:
            compare(name, said, options)


def compare(name: str, said: dict[str, str], options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        try:
            alone, asked = system(name, said), system(name, {**said, "lookups": str(options.lookups)})
        except Unavailable as error:
            print(f"{name} is left out: {error}", flush=True)
            return
        for each in (alone, asked):
            stack.callback(each.close)
        until = time.monotonic() + options.seconds
        for number in range(options.repeat):
            if number and time.monotonic() > until:
                break
            alone.run()
            asked.run()
    pairs = list(zip(alone.runs, asked.runs, strict=True))
    kept = 100 * statistics.median(a.seconds / b.seconds for a, b in pairs)
    by_cpu = 100 * statistics.median(a.cpu / b.cpu for a, b in pairs)
    answers = statistics.median(each.asked / each.seconds for each in asked.runs)
    print(
        f"{alone.name}: alone {alone.rate:.2f} M events/s, asked {asked.rate:.2f} M events/s and {answers:,.0f} lookups/s: "
        f"{kept:.0f} % kept, {by_cpu:.0f} % by CPU ({len(pairs)} pairs of runs)",
        flush=True,
    )
    settings: dict[str, Any] = {"lookups": options.lookups, "messages": options.messages}
    record("kafka_lookups", "taken in alone", alone.rate, "M events/s", system=alone.name, **settings)
    record("kafka_lookups", "taken in while asked", asked.rate, "M events/s", system=alone.name, **settings)
    record("kafka_lookups", "lookups answered meanwhile", answers, "lookups/s", system=alone.name, **settings)
    record("kafka_lookups", "pairs of runs", len(pairs), "runs", system=alone.name, **settings)
    goal = "at least 80" if name == "flowstate" else None
    record("kafka_lookups", "throughput kept, by CPU", by_cpu, "%", system=alone.name, **settings)
    record("kafka_lookups", "throughput kept", kept, "%", system=alone.name, goal=goal, **settings)


if __name__ == "__main__":
    main()
