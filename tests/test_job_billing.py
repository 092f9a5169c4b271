"""The billing job end to end, on real processes: killed as a whole, started again, every total exact."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from job_under_test import RUNNING, BillingProcess, check
from kafka_broker import KafkaBroker
from pyarrow import flight

import flowstate as fs
from flowstate.testing import billing


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for each in list(RUNNING):
        each.kill()


class Producing(threading.Thread):
    """Sends events in small pieces, as far as it may; `sent` counts them."""

    def __init__(
        self, events: list[billing.BillableEvent], send: Callable[[list[billing.BillableEvent]], None]
    ) -> None:
        super().__init__(daemon=True)
        self.events, self.send, self.sent, self.allowed = events, send, 0, 0
        self.changed = threading.Condition()

    def run(self) -> None:
        while self.sent < len(self.events):
            with self.changed:
                self.changed.wait_for(lambda: self.allowed > self.sent)
            piece = self.events[self.sent : min(self.sent + 20, self.allowed)]
            self.send(piece)
            with self.changed:
                self.sent += len(piece)
                self.changed.notify_all()
                self.changed.wait(0.03)

    def allow(self, count: int) -> None:
        with self.changed:
            self.allowed = count
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.sent >= count, timeout=60)


def live_sum(address: str) -> tuple[int, Decimal]:
    """Events and total over all customers, by plain Arrow Flight."""
    client = flight.connect(address)
    rows: list[Any] = []
    for endpoint in client.get_flight_info(flight.FlightDescriptor.for_path("monthly_subtotals")).endpoints:
        with flight.connect(endpoint.locations[0]) as partition:
            rows += partition.do_get(endpoint.ticket).read_all().to_pylist()
    client.close()
    return sum(row["events"] for row in rows), sum((row["total"] for row in rows), Decimal(0))


def query_while_it_grows(address: str, upto: int) -> int:
    """Ask by Flight, per key and by SQL until `upto` events are in; what is seen only grows. How many distinct answers there were."""
    seen: set[int] = set()
    before = sql_before = 0
    with fs.connect(address) as reads:
        while before < upto:
            emma = sum(reads["monthly_subtotals"].lookup("Emma")["events"].to_pylist())
            count, _ = live_sum(address)  # asked after Emma's row, so it has her events as well
            by_sql = reads.sql("select coalesce(sum(events), 0)::bigint from type_subtotals").fetchall()[0][0]
            assert count >= before
            assert 0 <= emma <= count
            assert by_sql >= sql_before
            before, sql_before = count, by_sql
            seen.add(count)
    return len(seen)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kafka_killed_as_a_whole_and_started_again(kafka: KafkaBroker, tmp_path: Path, seed: int) -> None:
    topic = f"billable-events-{seed}"
    kafka.create_topic(topic, partitions=2)
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 5, "log_level": 0})
    events = list(billing.events(random.Random(seed), months=5))

    def send(piece: list[billing.BillableEvent]) -> None:
        for event in piece:
            partition = billing.split_of(event.customer, 2)
            producer.produce(topic, event.json(), key=event.customer.encode(), partition=partition)
        assert producer.flush(10) == 0

    producing = Producing(events, send)
    producing.start()
    place = f"{kafka.bootstrap}/{topic}"
    for part in (1, 2):
        job = BillingProcess("kafka", place, tmp_path)
        for quarter in (part, part + 1):  # answers are seen in between, however slow the machine is
            producing.allow(quarter * len(events) // 4)
            assert query_while_it_grows(job.address, (4 * quarter - 1) * len(events) // 16) >= 1
        job.kill()  # while events arrive
    job = BillingProcess("kafka", place, tmp_path)
    producing.allow(len(events))
    producing.join(60)
    assert query_while_it_grows(job.address, len(events)) >= 1
    assert live_sum(job.address) == (len(events), sum(event.amount for event in events))
    assert job.ask("drain") == "drained"
    job.stop()
    check(tmp_path, events, drained=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4])
def test_files_killed_started_again_and_with_another_number_of_partitions(tmp_path: Path, seed: int) -> None:
    (tmp_path / "log").mkdir()
    events = list(billing.events(random.Random(seed), months=6))

    def send(piece: list[billing.BillableEvent]) -> None:
        for event in piece:
            with (tmp_path / "log" / f"{billing.split_of(event.customer, 2)}.jsonl").open("ab") as log:
                log.write(event.json() + b"\n")

    producing = Producing(events, send)
    producing.start()
    producing.allow(200)
    producing.wait_for(200)
    place = f"{tmp_path}/log/*.jsonl"
    job = BillingProcess("files", place, tmp_path)
    assert query_while_it_grows(job.address, 200) >= 1
    producing.allow(len(events) // 2)
    assert query_while_it_grows(job.address, len(events) // 3) >= 1
    job.kill()
    job = BillingProcess("files", place, tmp_path)
    query_while_it_grows(job.address, len(events) // 2)
    job.stop()
    producing.allow(len(events))
    producing.join(60)
    for partitions in (3, 1):
        job = BillingProcess("files", place, tmp_path, partitions)
        query_while_it_grows(job.address, len(events))
        job.stop()
    job = BillingProcess("files", place, tmp_path, 1)
    assert job.ask("drain") == "drained"
    job.stop()
    check(tmp_path, events, drained=True)
