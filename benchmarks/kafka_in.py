"""The way in from Kafka: messages one by one, and many at once, from a real broker.

    python -m benchmarks.kafka_in [--messages 1000000] [--partitions 2] [--repeat 3] [--block 4096] [--compression none]

A topic is filled first with JSON events of about 85 bytes (two texts, a decimal, a time). Then it is read from its beginning to its end,
both ways in turn, each time by a new reader in this process: as far as payloads in one buffer with their offsets and times (*fetched*),
and as far as Arrow columns with the hidden ones (*decoded*), in blocks of `block` messages at most. Told are messages a second by the
clock; CPU seconds for a million messages, of the thread that reads and of the whole process, where the client's own threads receive,
check and unpack; and the slow way's figure divided by the fast one's. Figures are medians. The broker runs on the same machine, so the
clock says less than CPU seconds do.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from confluent_kafka import Producer, TopicPartition

from flowstate.plan.spec import ScanSpec
from flowstate.source import warm_up
from flowstate.source.kafka import KafkaReader, KafkaSource
from flowstate.source.kafka_batches import BatchFetcher
from flowstate.source.kafka_client import Outages
from flowstate.source.kafka_fetch import Fetcher, MessageFetcher, Messages
from flowstate.testing.servers.kafka import KafkaBroker

SCHEMA = pa.schema(
    [
        pa.field("customer", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("amount", pa.decimal128(12, 2)),
        pa.field("at", pa.timestamp("ms", "UTC")),
    ]
)
TOPIC = "events"
PATIENCE = 300.0


class Spent(NamedTuple):
    """Seconds, for so many messages."""

    clock: float
    thread: float
    process: float
    messages: int


def fill(broker: KafkaBroker, messages: int, partitions: int, compression: str) -> float:
    """Returns the mean size of a payload."""
    broker.create_topic(TOPIC, partitions)
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "linger.ms": 50,
            "compression.type": compression,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 200_000,
        }
    )
    dice = random.Random(1)
    events = [
        f'{{"customer":"customer-{dice.randrange(20_000):05d}","kind":"{dice.choice(("api", "storage", "seat"))}",'
        f'"amount":{dice.randrange(1_000_000) / 100:.2f},"at":{1_767_225_600_000 + 13 * each}}}'.encode()
        for each in range(50_000)
    ]
    for number in range(messages):
        while True:
            try:
                producer.produce(TOPIC, events[number % len(events)], partition=number % partitions)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(60):
        raise RuntimeError("the broker did not take everything")
    return statistics.mean(map(len, events))


def measured(read: Callable[[], int], messages: int) -> Spent:
    """`read` gives how many messages came; what comes before the first of them is not measured."""
    deadline = time.monotonic() + PATIENCE
    first = 0
    while not first and time.monotonic() < deadline:
        first = read()
    begun = time.monotonic(), time.thread_time(), time.process_time()
    got = first
    while got < messages and time.monotonic() < deadline:
        got += read()
    ended = time.monotonic(), time.thread_time(), time.process_time()
    if got != messages:
        raise RuntimeError(f"{got} messages came, of {messages}")
    clock, thread, process = (end - begin for begin, end in zip(begun, ended, strict=True))
    return Spent(clock, thread, process, got - first)


def fetched(source: KafkaSource, batches: bool, block: int, messages: int, partitions: int) -> Spent:
    consumer = source.consumer(Outages("bench"))
    fetcher: Fetcher = BatchFetcher(consumer, TOPIC, source.client_id) if batches else MessageFetcher(consumer)
    for each in range(partitions):
        fetcher.begin(each)
    consumer.incremental_assign([TopicPartition(TOPIC, each, 0) for each in range(partitions)])
    try:
        return measured(lambda: sum(len(e) for e in fetcher.fetch(block, 0.1) if isinstance(e, Messages)), messages)
    finally:
        fetcher.close()
        consumer.close()


def decoded(source: KafkaSource, spec: ScanSpec, batches: bool, block: int, messages: int) -> Spent:
    reader = KafkaReader(spec, source, batches=batches)
    splits = source.splits()
    for each in splits:
        reader.assign(each, 0)
    wanted = dict.fromkeys(each.name for each in splits)
    try:
        return measured(
            lambda: sum(e.batch.num_rows for e in reader.poll(wanted, max_rows=block, timeout=0.1)), messages
        )
    finally:
        reader.close()


def shown(name: str, runs: list[Spent]) -> list[float]:
    rates = [
        statistics.median(each.messages / each.clock for each in runs) / 1e6,
        statistics.median(each.thread * 1e6 / each.messages for each in runs),
        statistics.median(each.process * 1e6 / each.messages for each in runs),
    ]
    print(
        f"{name:24} {rates[0]:6.2f} M/s  {rates[1]:6.3f} s/M of the reading thread  {rates[2]:6.3f} s/M of the process"
    )
    return rates


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--block", type=int, default=4096)
    parser.add_argument("--compression", default="none")
    chosen = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        broker = KafkaBroker(Path(folder))
        try:
            broker.format()
            broker.start()
            size = fill(broker, chosen.messages, chosen.partitions, chosen.compression)
            compare(broker, chosen, size)
        finally:
            broker.kill()


def compare(broker: KafkaBroker, chosen: argparse.Namespace, size: float) -> None:
    spec = ScanSpec("bench", "kafka", SCHEMA, "at", options={"topic": TOPIC, "bootstrap": broker.bootstrap})
    source = KafkaSource(spec)
    block, messages = chosen.block, chosen.messages
    runs: dict[tuple[str, bool], list[Spent]] = {
        (what, way): [] for what in ("fetched", "decoded") for way in (False, True)
    }
    for _ in range(chosen.repeat):
        for (what, batches), spent in runs.items():
            if what == "fetched":
                spent.append(fetched(source, batches, block, messages, chosen.partitions))
            else:
                spent.append(decoded(source, spec, batches, block, messages))
    print(
        f"{messages} messages of {size:.0f} bytes ({chosen.compression}), {chosen.partitions} partitions, blocks of {block}, "
        f"medians of {chosen.repeat} runs"
    )
    for what in ("fetched", "decoded"):
        slow, fast = shown(f"{what}, one by one", runs[what, False]), shown(f"{what}, many at once", runs[what, True])
        ratios = [fast[0] / slow[0], slow[1] / fast[1], slow[2] / fast[2]]
        print(f"{'':24} {ratios[0]:6.1f} x    {ratios[1]:6.1f} x{'':24} {ratios[2]:6.1f} x")


if __name__ == "__main__":
    main()
