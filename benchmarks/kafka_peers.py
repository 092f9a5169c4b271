"""From JSON on a Kafka topic to queryable state on one core: ours, Flink and Kafka Streams, taking turns in one run.

    python -m benchmarks.kafka_peers [--messages 2000000] [--repeat 5] [--workloads billing counts] [--systems flowstate flink ...]

A topic of one partition on a real broker is filled first with events of about 85 bytes: 100,000 customers, in any order over twelve months.
*billing* is the sum of the amounts and the number of events per customer and month, *counts* the number of events per customer. Every
system has core 0 for everything it starts, the broker core 1. Each is one process (tree) that stays and is asked for a run at a time; its
first run is not counted. Ours judges lateness, keeps windows with a grace, adds up 128-bit decimals, saves every 10 s, and is asked how far
it is every 25 ms. The peers have less to do: no event time, amounts in 64-bit cents, no checkpoints (Kafka Streams: its changelog).
A peer that cannot be built here is named and left out. All systems must find the same number of groups and events and the same money.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from benchmarks.kafka_state import events, json_texts
from benchmarks.peers import build
from benchmarks.peers.running import System
from benchmarks.results import record
from flowstate.errors import Unavailable
from flowstate.testing.servers.kafka import KafkaBroker

TOPIC = "events"
SLOW, FEW = 20.0, 3
JAVA = ("java", "-Xms4g", "-Xmx4g", "-XX:+UseParallelGC", "-XX:+AlwaysPreTouch")
# What a system is called in the table, its program, and what is said to it.
SYSTEMS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "flowstate": ("flowstate", "flowstate", {}),
    "flink": ("Flink, HashMap state", "flink", {"input": "kafka"}),
    "flink-chained": ("Flink, HashMap state, no exchange", "flink", {"input": "kafka", "exchange": "chained"}),
    "flink-jackson": ("Flink, HashMap state, Jackson", "flink", {"input": "kafka", "reader": "jackson"}),
    "flink-rocksdb": ("Flink, RocksDB state", "flink", {"input": "kafka", "backend": "rocksdb"}),
    "streams": ("Kafka Streams, store in memory", "streams", {}),
    "streams-rocksdb": ("Kafka Streams, RocksDB store", "streams", {"store": "rocksdb"}),
}
USUAL = ("flowstate", "flink", "flink-chained", "flink-rocksdb", "streams", "streams-rocksdb")


def system(name: str, options: Mapping[str, str]) -> System:
    """`Unavailable` if it cannot be built here."""
    title, program, own = SYSTEMS[name]
    said = [f"{key}={value}" for key, value in {**options, **own}.items()]
    if program == "flowstate":
        return System(title, [sys.executable, "-m", "benchmarks.peers.ours", *said])
    main = {"flink": "FlinkPeer", "streams": "StreamsPeer"}[program]
    return System(title, [*JAVA, "-cp", build.class_path(program), main, *said])


def fill(broker: KafkaBroker, messages: int) -> float:
    """Returns the mean size of a message."""
    broker.create_topic(TOPIC, 1)
    settings = {"linger.ms": 50, "batch.num.messages": 10_000, "queue.buffering.max.messages": 200_000}
    producer = Producer({"bootstrap.servers": broker.bootstrap, **settings})
    size = 0
    for piece in events(messages):
        for text in json_texts(piece):
            size += len(text)
            while True:
                try:
                    producer.produce(TOPIC, text)
                    break
                except BufferError:
                    producer.poll(0.1)
    if producer.flush(60):
        raise RuntimeError("the broker did not take everything")
    return size / messages


def compare(names: list[str], workload: str, bootstrap: str, messages: int, repeat: int, until: float) -> list[System]:
    """Runs in turn; those of a system whose run takes over 20 s are fewer, and no turn begins after `until`."""
    common = {"bootstrap": bootstrap, "topic": TOPIC, "events": str(messages), "workload": workload}
    with ExitStack() as stack:
        systems = []
        for name in names:
            try:
                systems.append(system(name, common))
            except Unavailable as error:
                print(f"{SYSTEMS[name][0]} is left out: {error}", flush=True)
        for each in systems:
            stack.callback(each.close)
        for number in range(repeat):
            if number and time.monotonic() > until:
                break
            for each in systems:
                if number < FEW or each.runs[0].seconds < SLOW:
                    each.run()
        found = {run.found for each in systems for run in each.runs}
        if len(found) > 1 or any(count != messages for _, count, _ in found):
            raise RuntimeError(
                f"systems found different things: {[(each.name, each.runs[0].found) for each in systems]}"
            )
        return systems


def show(systems: list[System], workload: str, messages: int) -> None:
    ours = next((each for each in systems if each.name == "flowstate"), None)
    groups, count, cents = systems[0].runs[0].found
    print(f"\n{workload}: {groups:,} groups, {count:,} events" + (f", {cents / 100:,.2f} in all" if cents else ""))
    print(f"{'':36}{'M events/s':>11}{'CPU s/M':>9}{'ours is, by clock':>19}{'by CPU':>8}{'runs':>6}")
    for each in systems:
        line = f"{each.name:36}{each.rate:11.3f}{each.cpu:9.3f}"
        settings: dict[str, Any] = {"workload": workload, "messages": messages, "partitions": 1, "format": "json"}
        record("kafka_peers", "events taken in", each.rate, "M events/s", system=each.name, **settings)
        record("kafka_peers", "runs", len(each.runs), "runs", system=each.name, **settings)
        record("kafka_peers", "processor", each.cpu, "CPU s/M events", system=each.name, **settings)
        if ours is not None and each is not ours:
            goal = f"at least {30 if 'Streams' in each.name else 5}"
            by_clock, by_cpu = ours.rate / each.rate, each.cpu / ours.cpu
            record("kafka_peers", "ours to it, by the clock", by_clock, "x", system=each.name, goal=goal, **settings)
            record("kafka_peers", "ours to it, by CPU", by_cpu, "x", system=each.name, goal=goal, **settings)
            line += f"{by_clock:18.1f}x{by_cpu:7.1f}x"
        else:
            line += " " * 27
        print(f"{line}{len(each.runs):6}", flush=True)
        if beside := statistics.median(run.beside / run.events for run in each.runs) * 1e6:
            print(f"{'  of it scheduler and client':36}{'':11}{beside:9.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--workloads", nargs="+", default=["billing", "counts"], choices=["billing", "counts"])
    parser.add_argument("--systems", nargs="+", default=list(USUAL), choices=list(SYSTEMS))
    parser.add_argument(
        "--seconds", type=float, default=600, help="no turn begins so many seconds after a workload began"
    )
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})  # and the broker with it
    with tempfile.TemporaryDirectory() as folder:
        broker = KafkaBroker(Path(folder))
        try:
            broker.format()
            broker.start()
            size = fill(broker, options.messages)
            print(
                f"{options.messages:,} messages of {size:.0f} bytes, medians, load {os.getloadavg()[0]:.1f}", flush=True
            )
            for workload in options.workloads:
                until = time.monotonic() + options.seconds
                systems = compare(options.systems, workload, broker.bootstrap, options.messages, options.repeat, until)
                show(systems, workload, options.messages)
        finally:
            broker.kill()


if __name__ == "__main__":
    main()
