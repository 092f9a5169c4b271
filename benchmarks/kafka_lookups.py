"""How much of its throughput a job keeps while 256 lookups of single keys are in flight all the time.

    python -m benchmarks.kafka_lookups [--messages 4000000] [--repeat 5] [--lookups 256]

The billing job of `benchmarks.kafka_peers`, from the same topic, on core 0, with and without a client on core 1 that asks a new question as
soon as it has an answer. Nobody limits how often it may ask: lookups and taking in share the core as the machine lets them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.kafka_peers import TOPIC, fill, system
from benchmarks.results import record
from flowstate.testing.servers.kafka import KafkaBroker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=4_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--lookups", type=int, default=256)
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})  # and the broker with it
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        broker = KafkaBroker(Path(folder))
        stack.callback(broker.kill)
        broker.format()
        broker.start()
        fill(broker, options.messages)
        said = {"bootstrap": broker.bootstrap, "topic": TOPIC, "events": str(options.messages)}
        alone, asked = system("flowstate", said), system("flowstate", {**said, "lookups": str(options.lookups)})
        for each in (alone, asked):
            stack.callback(each.close)
        for _ in range(options.repeat):
            alone.run()
            asked.run()
        pairs = list(zip(alone.runs, asked.runs, strict=True))
        kept = 100 * statistics.median(a.seconds / b.seconds for a, b in pairs)
        answers = statistics.median(each.asked / each.seconds for each in asked.runs)
    print(
        f"{options.messages:,} messages, {options.lookups} lookups in flight, medians of {options.repeat}, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"alone {alone.rate:.2f} M events/s, asked {asked.rate:.2f} M events/s and {answers:,.0f} lookups/s: {kept:.0f} % kept"
    )
    settings = {"lookups": options.lookups, "messages": options.messages}
    record("kafka_lookups", "taken in alone", alone.rate, "M events/s", goal=None, **settings)
    record("kafka_lookups", "taken in while asked", asked.rate, "M events/s", goal=None, **settings)
    record("kafka_lookups", "lookups answered meanwhile", answers, "lookups/s", goal=None, **settings)
    record("kafka_lookups", "throughput kept", kept, "%", goal="at least 80", **settings)


if __name__ == "__main__":
    main()
