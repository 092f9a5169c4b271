"""From the bytes of a log to state that is asked: how many events a second a whole job takes in, and what of a processor that costs.

    python -m benchmarks.kafka_state [--messages 2000000] [--repeat 5] [--partitions 1 2] [--format json arrow] [--source kafka file]

A topic of two partitions on a real broker (or two files) is filled first with events of about 85 bytes of JSON: 100,000 customers, in any
order over the twelve months of a year, so that state is spread over 1.2 million keys. With ``--format arrow`` a message is an Arrow IPC
stream of `--rows` of the same events. Then a job reads all of it: total and number of events per customer and month, in windows with a
grace, judged for lateness. Each run has a Dask cluster of its own, its workers fresh processes: one partition's worker is pinned to
core 0, two partitions' workers to cores 0 and 1. Broker, scheduler and client are on core 1.

Lookups every 10 ms say how far the job is. The clock runs from the first that shows a row to the first that shows all of them, and the
CPU seconds of the whole worker processes (librdkafka's and Dask's threads, lookups and snapshots included) and of the broker are those in
between. Then totals are compared with what was sent, to the cent.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from confluent_kafka import Producer
from dask import config as dask_config
from distributed import Client, LocalCluster

import flowstate as fs
from benchmarks.results import record
from flowstate.api.own_cluster import DASK_SETTINGS
from flowstate.api.stream import View
from flowstate.testing.servers.kafka import KafkaBroker
from flowstate.view.answer import Answer

SCHEMA = pa.schema(
    {
        "customer": pa.string(),
        "kind": pa.string(),
        "amount": pa.decimal128(12, 2),
        "at": pa.timestamp("ms", "UTC"),
    }
)
SPLITS = 2
CUSTOMERS = 100_000
KINDS = ("api", "storage", "seat")
BEGIN, YEAR = 1_735_689_600_000, 365 * 86_400_000  # 2025, in milliseconds
PIECE = 100_000
PATIENCE = 300.0


class Spent(NamedTuple):
    """Seconds, for so many events."""

    clock: float
    workers: float
    broker: float
    events: int


class Columns(NamedTuple):
    """Events by column; `amount` in cents, `at` in milliseconds."""

    customer: Any
    kind: Any
    amount: Any
    at: Any


def events(count: int) -> Iterator[Columns]:
    """The same ones every time, `PIECE` at once."""
    dice = np.random.default_rng(1)
    for begin in range(0, count, PIECE):
        size = min(PIECE, count - begin)
        yield Columns(
            dice.integers(0, CUSTOMERS, size), dice.integers(0, len(KINDS), size), dice.integers(100, 100_000, size),
            dice.integers(BEGIN, BEGIN + YEAR, size),
        )  # fmt: skip


def json_texts(piece: Columns) -> list[bytes]:
    rows = zip(*(each.tolist() for each in piece), strict=True)
    return [
        b'{"customer":"customer-%06d","kind":"%s","amount":%d.%02d,"at":%d}'
        % (who, KINDS[kind].encode(), cents // 100, cents % 100, at)
        for who, kind, cents, at in rows
    ]


def arrow_messages(piece: Columns, rows: int) -> Iterator[bytes]:
    batch = pa.record_batch(
        [
            pa.array([f"customer-{each:06d}" for each in piece.customer.tolist()]),
            pa.array([KINDS[each] for each in piece.kind.tolist()]),
            pa.array([Decimal(each).scaleb(-2) for each in piece.amount.tolist()], SCHEMA.field("amount").type),
            pa.array(piece.at).cast(SCHEMA.field("at").type),
        ],
        schema=SCHEMA,
    )
    for at in range(0, batch.num_rows, rows):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as writer:
            writer.write_batch(pa.concat_batches([batch.slice(at, rows)]))
        yield sink.getvalue().to_pybytes()


def fill_topic(broker: KafkaBroker, topic: str, messages: Iterator[bytes]) -> float:
    """Returns the mean size of a message."""
    broker.create_topic(topic, SPLITS)
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "linger.ms": 50,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 200_000,
        }
    )
    size = number = 0
    for number, message in enumerate(messages):
        size += len(message)
        while True:
            try:
                producer.produce(topic, message, partition=number % SPLITS)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(60):
        raise RuntimeError("the broker did not take everything")
    return size / (number + 1)


def fill_files(folder: Path, messages: Iterator[bytes]) -> None:
    with ExitStack() as stack:
        logs = [stack.enter_context(open(folder / f"events-{each}.jsonl", "wb")) for each in range(SPLITS)]
        for number, message in enumerate(messages):
            logs[number % SPLITS].write(message + b"\n")


def flow(options: argparse.Namespace, source: str, form: str, place: str) -> View:
    """`place` is a bootstrap or a pattern of files."""
    if source == "kafka":
        stream = fs.scan_kafka(
            form, bootstrap=place, format="arrow" if form == "arrow" else "json", schema=SCHEMA, event_time="at", lateness="400d"
        )  # fmt: skip
    else:
        stream = fs.scan_files(place, format="json", schema=SCHEMA, event_time="at", lateness="400d", follow=True)
    grouped = stream.group_by("customer", month=fs.window("at", every="1mo", grace="3d"))
    return grouped.agg(total=fs.col("amount").sum(), events=fs.len()).view("subtotals")


def pin(process: int, core: int) -> None:
    for thread in os.listdir(f"/proc/{process}/task"):
        os.sched_setaffinity(int(thread), {core})


def cpu(processes: list[int]) -> float:
    """Seconds that they have taken so far, all threads."""
    return sum(time.clock_gettime((~each << 3) | 2) for each in processes)


def run(options: argparse.Namespace, source: str, form: str, partitions: int, place: str, broker: list[int]) -> Spent:
    """One job from its start to its end."""
    with ExitStack() as stack:
        stack.enter_context(dask_config.set(DASK_SETTINGS))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        cluster = stack.enter_context(
            LocalCluster(
                n_workers=partitions, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
            )
        )  # fmt: skip
        client = stack.enter_context(Client(cluster))
        workers = list(client.run(os.getpid).values())
        for core, worker in enumerate(workers):
            pin(worker, core)
        view = flow(options, source, form, place)
        job = stack.enter_context(
            fs.start(view, snapshots=Path(folder) / "snapshots", every=options.every, client=client)
        )
        names = [f"customer-{each:06d}" for each in range(16)]  # of every partition some
        reader = job["subtotals"]
        deadline = time.monotonic() + PATIENCE
        begun: tuple[float, float, float, float] | None = None
        while time.monotonic() < deadline:
            answer = Answer.of(reader.lookup(names).schema)
            assert answer is not None
            applied = least_applied([{name: at.offset for name, at in each.position.items()} for each in answer.parts])
            seen = time.monotonic(), cpu(workers), cpu(broker), rows_of(options, source, form, applied)
            if begun is None and applied:
                begun = seen
            if begun is not None and applied >= options.ends[source, form]:
                break
            time.sleep(0.01)
        else:
            raise RuntimeError(f"only {applied} was applied: {job.status()}")
        check(job, options)
        clock, taken, served, count = (end - start for end, start in zip(seen, begun, strict=True))
        return Spent(clock, taken, served, int(count))


def least_applied(positions: list[dict[str, int]]) -> int:
    """The sum over splits of how far the partition is that is furthest behind."""
    splits = {each for position in positions for each in position}
    return sum(min(position.get(each, 0) for position in positions) for each in splits)


def rows_of(options: argparse.Namespace, source: str, form: str, applied: int) -> float:
    return options.messages * applied / options.ends[source, form]


def check(job: Any, options: argparse.Namespace) -> None:
    total, count = job.sql("select sum(total), sum(events) from subtotals").fetchall()[0]
    cents = sum(int(each.amount.sum()) for each in events(options.messages))
    if count != options.messages or total != Decimal(cents).scaleb(-2):
        raise RuntimeError(f"{count} events of together {total}, where {options.messages} of {cents} cents were sent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2_000_000, help="events")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--format", nargs="+", default=["json"], choices=["json", "arrow"])
    parser.add_argument("--source", nargs="+", default=["kafka"], choices=["kafka", "file"])
    parser.add_argument("--rows", type=int, default=1000, help="events in an Arrow message")
    parser.add_argument("--every", default="10s", help="between snapshots")
    options = parser.parse_args()
    options.ends = {}
    os.sched_setaffinity(0, {1})  # and all that is started from here, until it is pinned to something else
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        places, broker = dict[tuple[str, str], str](), list[int]()
        if "kafka" in options.source:
            server = KafkaBroker(Path(folder) / "kafka")
            stack.callback(server.kill)
            server.format()
            server.start()
            assert server.tree is not None
            broker = [server.tree.process.pid]
            for form in options.format:
                pieces = events(options.messages)
                texts = (text for each in pieces for text in json_texts(each))
                batches = (message for each in pieces for message in arrow_messages(each, options.rows))
                size = fill_topic(server, form, texts if form == "json" else batches)
                print(f"{form}: messages of {size:,.0f} bytes")
                places["kafka", form] = server.bootstrap
                whole = options.messages if form == "json" else message_count(options)
                options.ends["kafka", form] = whole
        if "file" in options.source:
            fill_files(Path(folder), (text for each in events(options.messages) for text in json_texts(each)))
            places["file", "json"] = f"{folder}/*.jsonl"
            options.ends["file", "json"] = sum(each.stat().st_size for each in Path(folder).glob("*.jsonl"))
        print(
            f"{options.messages:,} events, medians of {options.repeat} runs, load {os.getloadavg()[0]:.1f}", flush=True
        )
        settings = [(*each, partitions) for each in places for partitions in options.partitions]
        runs: dict[tuple[str, str, int], list[Spent]] = {each: [] for each in settings}
        for _ in range(options.repeat):
            for source, form, partitions in settings:
                spent = run(options, source, form, partitions, places[source, form], broker)
                runs[source, form, partitions].append(spent)
        for each, took in runs.items():
            show(*each, took, options.messages)
        for source, form in places:
            if {1, 2} <= set(options.partitions):
                one, two = (statistics.median(s.events / s.clock for s in runs[source, form, n]) for n in (1, 2))
                print(
                    f"{source} {form}: two partitions on two cores take in {two / one:.2f} times as much as one on one"
                )


def message_count(options: argparse.Namespace) -> int:
    pieces = [min(PIECE, options.messages - at) for at in range(0, options.messages, PIECE)]
    return sum(-(-each // options.rows) for each in pieces)


def show(source: str, form: str, partitions: int, spent: list[Spent], messages: int) -> None:
    rate = statistics.median(each.events / each.clock for each in spent) / 1e6
    workers = statistics.median(each.workers / each.events for each in spent) * 1e6
    broker = statistics.median(each.broker / each.events for each in spent) * 1e6
    busy = statistics.median(each.workers / each.clock for each in spent)
    print(
        f"{source:5} {form:5} {partitions} partition{'s' if partitions > 1 else ' '}  {rate:6.2f} M events/s   "
        f"{workers:6.3f} CPU s/M of the workers ({busy:.2f} cores busy)   {broker:6.3f} of the broker"
    )
    settings: dict[str, Any] = {"source": source, "format": form, "partitions": partitions, "messages": messages}
    goal = {"json": "at least 2.5", "arrow": "at least 10"}[form] if source == "kafka" and partitions == 1 else None
    record("kafka_state", "events taken in", rate, "M events/s", goal=goal, **settings)
    record("kafka_state", "processor", workers, "CPU s/M events", **settings)
    record("kafka_state", "processor of the broker", broker, "CPU s/M events", **settings)


if __name__ == "__main__":
    main()
