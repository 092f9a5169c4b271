"""A consistent answer is never wrong, and no answer older than promised, however a running job is read, and whatever dies meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from kafka_broker import KafkaBroker
from local_cluster import two_workers

import flowstate as fs
from benchmarks.transfers import check

pytestmark = pytest.mark.slow


def test_the_total_never_changes(tmp_path: Path) -> None:
    with two_workers() as client:
        readers = check(tmp_path, client, reads=100, writes=12, seconds=70.0)
    for each in readers:
        assert len(each.seen) > each.done // 10, f"{each.label} saw no change"


@pytest.mark.kafka
def test_who_produces_to_kafka_reads_it_back_at_once(kafka: KafkaBroker, tmp_path: Path) -> None:
    """By what the producer is told of each record: its partition and its offset."""
    kafka.create_topic("read-back", 2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 0, "log_level": 0})
    events = fs.scan_kafka("read-back", bootstrap=kafka.bootstrap, schema=pa.schema({"key": pa.string()}))
    view = events.group_by("key").agg(events=fs.len()).view("counts")

    def produce(number: int) -> dict[str, int]:
        told: list[tuple[object, str, int, int]] = []
        producer.produce(
            "read-back",
            json.dumps({"key": f"k{number % 5}"}).encode(),
            partition=number % 2,
            on_delivery=lambda error, record: told.append((error, record.topic(), record.partition(), record.offset())),
        )
        assert producer.flush(30) == 0
        [(error, topic, partition, offset)] = told
        assert error is None
        return {f"{topic}/{partition}": offset + 1}

    with two_workers() as client, fs.start(view, snapshots=tmp_path / "snapshots", client=client) as job:
        written: dict[str, int] = {}
        for number in range(40):
            written |= produce(number)
            if number % 3 == 0:
                found = job["counts"].lookup(f"k{number % 5}", at_least=written)["events"].to_pylist()
                assert found == [number // 5 + 1]
            elif number % 3 == 1:
                query = "select sum(events)::bigint from counts"
                assert job.sql(query, at_least=written).fetchall() == [(number + 1,)]
            else:
                table = job["counts"].to_table(at_least=written, consistent=True)
                assert sum(table["events"].to_pylist()) == number + 1
