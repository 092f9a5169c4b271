"""From an event that is produced to Kafka until a lookup shows it: p50 and p99 in milliseconds, at several rates.

    python -m benchmarks.latency [--rates 1000 50000 500000] [--seconds 5] [--linger 1] [--pin]

A producer in a process of its own sends events of about 80 bytes at a steady rate, to a topic of two partitions on a real broker, and among
them every 20 ms one for a customer that there was none of. How long it takes from before `produce` is called is measured until a lookup of
that customer answers with its row (it is asked for again a millisecond after an answer that did not have it), and for the same events
until the broker acknowledged them, which is the part of the producer (`linger.ms`, its threads) and of the broker; the difference is ours:
fetch, decode, apply, and the lookup itself. Afterwards, on the same topic at the same rate, until a plain `confluent_kafka.Consumer` with
the same settings has the message.

Nothing is pinned (`--pin`: the job's worker and the plain consumer to core 0, all else to core 1, which broker, producer and client then
fill at 20,000 events/s and more: what waits then, waits before the broker, and the acknowledgements say so).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import multiprocessing
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from dask import config as dask_config
from distributed import Client, LocalCluster

import flowstate as fs
from benchmarks.kafka_state import BEGIN, SCHEMA, SPLITS, events, json_texts, pin
from benchmarks.results import record
from flowstate.api.own_cluster import DASK_SETTINGS
from flowstate.testing.servers.kafka import KafkaBroker

EVERY = 0.02
PAUSE = 0.001
PATIENCE = 60.0
MOST = 100_000  # probes
PROBE = b'{"customer":"probe-%d","kind":"api","amount":1.00,"at":%d}'


def produce(
    bootstrap: str, topic: str, rate: int, linger: float, sent: Any, acknowledged: Any, sendings: Any, stop: Any
) -> None:
    """`sent[n]`: when probe n was produced, `acknowledged[n]` when the broker had it; `sendings` counts events."""

    def delivered(probe: int, error: Any, _: Any) -> None:
        acknowledged[probe] = time.monotonic() if error is None else float("nan")

    texts = [text for piece in events(100_000) for text in json_texts(piece)]
    config = {"bootstrap.servers": bootstrap, "linger.ms": linger, "queue.buffering.max.messages": 1_000_000}
    producer = Producer(config)
    begun, number, probe = time.monotonic(), 0, 0
    while not stop.is_set():
        now = time.monotonic()
        due = min(int((now - begun) * rate), number + 5000)
        for each in range(number, due):
            with contextlib.suppress(BufferError):
                producer.produce(topic, texts[each % len(texts)], partition=each % SPLITS)
        number = max(number, due)
        if now >= begun + EVERY * probe and probe < MOST:
            sent[probe] = sent[probe] or time.monotonic()
            with contextlib.suppress(BufferError):  # tried again in the next round; its time runs from the first
                producer.produce(
                    topic,
                    PROBE % (probe, BEGIN),
                    partition=probe % SPLITS,
                    on_delivery=functools.partial(delivered, probe),
                )
                probe += 1
        producer.poll(0)
        sendings.value = number
        time.sleep(max(0.0, min(begun + (number + 1) / rate, begun + EVERY * probe) - time.monotonic(), 0.0005))
    producer.flush(10)


def visible(job: Any, sent: Any, seconds: float) -> dict[int, float]:
    """Milliseconds from each probe until a lookup showed it."""
    view, found = job["subtotals"], dict[int, float]()
    probe = newest(sent) + 1
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if view.lookup([f"probe-{probe}"]).num_rows:
            found[probe] = (time.monotonic() - sent[probe]) * 1e3
            probe += 1
        else:
            time.sleep(PAUSE)
    return found


def consumed(bootstrap: str, topic: str, sent: Any, seconds: float, pinned: bool, out: Any) -> None:
    """The same for a plain consumer; a process."""
    if pinned:
        os.sched_setaffinity(0, {0})
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "plain", "enable.auto.commit": False})
    ends = [consumer.get_watermark_offsets(TopicPartition(topic, each), timeout=10)[1] for each in range(SPLITS)]
    consumer.assign([TopicPartition(topic, each, end) for each, end in enumerate(ends)])
    found, first = list[float](), newest(sent) + 50  # a second later
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        one = consumer.poll(0.1)
        for message in [] if one is None else [one, *consumer.consume(10_000, 0)]:
            value = message.value()
            if value is not None and value.startswith(b'{"customer":"probe-'):
                probe = int(value[19 : value.index(b'"', 19)])
                if probe == first:
                    until = time.monotonic() + seconds
                if probe >= first:
                    found.append((time.monotonic() - sent[probe]) * 1e3)
    consumer.close()
    out.put(found)


def newest(sent: Any) -> int:
    return int(np.count_nonzero(np.frombuffer(sent, np.float64))) - 1


def run(options: argparse.Namespace, broker: KafkaBroker, client: Client, rate: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    topic, stop, out = f"events-{rate}", spawn.Event(), spawn.Queue()
    sent, acknowledged = (spawn.RawArray(ctypes.c_double, MOST) for _ in range(2))
    sendings = spawn.Value("q", 0)
    broker.create_topic(topic, SPLITS)
    arguments = (broker.bootstrap, topic, rate, options.linger, sent, acknowledged, sendings, stop)
    producer = spawn.Process(target=produce, args=arguments, daemon=True)
    stream = fs.scan_kafka(topic, bootstrap=broker.bootstrap, schema=SCHEMA, event_time="at", lateness="400d")
    grouped = stream.group_by("customer", month=fs.window("at", every="1mo", grace="3d"))
    view = grouped.agg(total=fs.col("amount").sum(), events=fs.len()).view("subtotals")
    with tempfile.TemporaryDirectory() as folder:
        with fs.start(view, snapshots=Path(folder) / "snapshots", client=client) as job:
            producer.start()
            deadline = time.monotonic() + PATIENCE
            while not job["subtotals"].lookup(["probe-100"]).num_rows:  # by then everything is warm
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no event came through: {job.status()}")
                time.sleep(0.1)
            before, begun = sendings.value, time.monotonic()
            ours = visible(job, sent, options.seconds)
            reached = (sendings.value - before) / (time.monotonic() - begun)
        watched = (broker.bootstrap, topic, sent, options.seconds, options.pin, out)
        plain = spawn.Process(target=consumed, args=watched, daemon=True)
        plain.start()
        theirs = out.get(timeout=options.seconds + 60)
        stop.set()
        producer.join(30)
    times = {
        "until a lookup shows it": list(ours.values()),
        "until the broker acknowledged it": [(acknowledged[each] - sent[each]) * 1e3 for each in ours],
        "from acknowledged to shown": [took - (acknowledged[each] - sent[each]) * 1e3 for each, took in ours.items()],
        "until a plain consumer has it": theirs,
    }
    print(f"{rate:9,} events/s asked, {reached:9,.0f} sent", flush=True)
    for measure, each in times.items():
        median, late = np.percentile(each, [50, 99])
        print(f"    {measure:42} p50 {median:8.2f}   p99 {late:8.2f} ms   ({len(each)})", flush=True)
        settings = {"rate": rate, "linger_ms": options.linger, "pinned": options.pin}
        goal = "at most 10" if rate == 50_000 and each is times["until a lookup shows it"] else None
        record("latency", f"{measure}, p50", median, "ms", **settings)
        record("latency", f"{measure}, p99", late, "ms", goal=goal, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[1_000, 50_000, 500_000])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--linger", type=float, default=1, help="the producer's linger.ms")
    parser.add_argument("--pin", action="store_true")
    options = parser.parse_args()
    if options.pin:
        os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(dask_config.set(DASK_SETTINGS))
        broker = KafkaBroker(Path(folder) / "kafka")
        stack.callback(broker.kill)
        broker.format()
        broker.start()
        settings: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0"}
        client = stack.enter_context(Client(stack.enter_context(LocalCluster(n_workers=1, **settings))))
        if options.pin:
            for worker in client.run(os.getpid).values():
                pin(worker, 0)
        print(f"linger.ms {options.linger:g}, load {os.getloadavg()[0]:.1f}", flush=True)
        for rate in options.rates:
            run(options, broker, client, rate)


if __name__ == "__main__":
    main()
