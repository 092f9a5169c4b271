"""A job whose broker is killed, or whose topic loses records, is made anew, or grows: nothing lost, nothing twice, nothing in silence."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import waiting
from distributed import Client
from kafka_broker import KafkaBroker

import flowstate as fs

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SCHEMA = pa.schema({"key": pa.string(), "n": pa.int64(), "at": pa.timestamp("ms", "UTC")})
until = partial(waiting.until, seconds=60.0, pause=0.05)


def values(numbers: range) -> list[bytes]:
    return [json.dumps({"key": f"k{each % 7}", "n": each, "at": 1_700_000_000_000 + each}).encode() for each in numbers]


class Totals:
    """A job that adds up the numbers of a topic per key. Each number is sent once, so that a sum and a count tell everything."""

    def __init__(self, kafka: KafkaBroker, topic: str, folder: Path, client: Client, **options: Any) -> None:
        self.kafka, self.topic, self.client, self.folder = kafka, topic, client, folder
        self.job = self.start(**options)

    def start(self, **options: Any) -> fs.Job:
        events = fs.scan_kafka(
            self.topic, bootstrap=self.kafka.bootstrap, schema=SCHEMA, event_time="at", lateness="1h", max_ahead=None,
            **options,
        )  # fmt: skip
        view = events.group_by("key").agg(total=fs.col("n").sum(), count=fs.len()).view("totals")
        self.job = fs.start(
            view, snapshots=self.folder, client=self.client, partitions=2, every="300ms", idle_after="60s"
        )
        return self.job

    def now(self) -> tuple[int, int]:
        found = self.job.sql("select coalesce(sum(total), 0)::bigint, coalesce(sum(count), 0)::bigint from totals")
        total, count = found.fetchall()[0]
        return total, count

    def await_numbers(self, *numbers: range) -> None:
        wanted = sum(map(sum, numbers)), sum(map(len, numbers))
        until(lambda: self.now() == wanted, says=lambda: (wanted, self.now(), self.job.status()))

    def await_saved(self) -> None:
        """Everything applied by now is in a saved cut."""
        before = self.job.status()["saved_cut"].get("number", 0)
        until(lambda: self.job.status()["saved_cut"].get("number", 0) > before + 1, says=self.job.status)

    def problems(self) -> str:
        status = self.job.status()
        return str([status["problems"], *(each["report"].get("problems") for each in status["partitions"].values())])


@pytest.fixture
def jobs() -> Iterator[list[Totals]]:
    """Whatever happens to a test, its job is over."""
    running: list[Totals] = []
    yield running
    for each in running:
        each.job.stop(snapshot=False)


def test_a_broker_that_is_killed_and_comes_back(
    kafka: KafkaBroker, client: Client, tmp_path: Path, jobs: list[Totals]
) -> None:
    kafka.create_topic("killed", 2, config={"flush.messages": "1"})
    totals = Totals(kafka, "killed", tmp_path, client)
    jobs.append(totals)
    kafka.produce("killed", values(range(1000)), 0)
    kafka.produce("killed", values(range(1000, 1500)), 1)
    totals.await_numbers(range(1500))
    kafka.kill()
    try:
        assert totals.now() == (sum(range(1500)), 1500)
        until(lambda: "kafka" in totals.problems(), says=totals.job.status)
        assert totals.now() == (sum(range(1500)), 1500)
    finally:
        kafka.start()
    kafka.produce("killed", values(range(1500, 2000)), 0)
    kafka.produce("killed", values(range(2000, 3000)), 1)
    totals.await_numbers(range(3000))
    until(lambda: "kafka" not in totals.problems(), says=totals.job.status)


def test_a_topic_that_is_made_anew_is_refused(
    kafka: KafkaBroker, client: Client, tmp_path: Path, jobs: list[Totals]
) -> None:
    """While the job runs, with fewer records than were read; and while it does not, with more: offsets alone would not tell."""
    kafka.create_topic("anew")
    totals = Totals(kafka, "anew", tmp_path, client)
    jobs.append(totals)
    kafka.produce("anew", values(range(100)))
    totals.await_numbers(range(100))
    totals.await_saved()
    kafka.delete_topic("anew")
    until(lambda: "gone" in totals.problems(), says=totals.job.status)
    kafka.create_topic("anew")
    kafka.produce("anew", values(range(1000, 1010)))
    until(lambda: "made anew" in totals.problems(), says=totals.job.status)
    assert "offset=100" in totals.problems() and "end=10" in totals.problems()
    totals.job.stop()
    kafka.produce("anew", values(range(1010, 1500)))
    totals.start()
    until(lambda: "topic_id=" in totals.problems(), says=totals.job.status)
    assert "offset=100 first=0 end=500" in totals.problems()
    assert totals.now() == (sum(range(100)), 100)


def test_a_log_that_ends_before_our_place_is_refused(
    kafka: KafkaBroker, client: Client, tmp_path: Path, jobs: list[Totals]
) -> None:
    """The broker's own file is cut, as after an unclean election."""
    kafka.create_topic("short", config={"flush.messages": "1"})
    totals = Totals(kafka, "short", tmp_path, client)
    jobs.append(totals)
    for begin in range(0, 100, 10):  # a batch each
        kafka.produce("short", values(range(begin, begin + 10)))
    totals.await_numbers(range(100))
    kafka.kill()
    try:
        (segment,) = (kafka.folder / "data" / "short-0").glob("*.log")
        whole = segment.read_bytes()
        segment.write_bytes(whole[: len(whole) // 2])
        for name in (".kafka_cleanshutdown", "recovery-point-offset-checkpoint", "replication-offset-checkpoint"):
            (kafka.folder / "data" / name).unlink(missing_ok=True)
    finally:
        kafka.start()
    until(lambda: "the log ends" in totals.problems(), says=totals.job.status)
    assert "offset=100" in totals.problems()
    assert totals.now() == (sum(range(100)), 100)


def test_offsets_that_retention_deleted(kafka: KafkaBroker, client: Client, tmp_path: Path, jobs: list[Totals]) -> None:
    """Refused with the numbers; skipped when somebody says so, and then the total says what is missing."""
    kafka.create_topic("deleted", 2)
    totals = Totals(kafka, "deleted", tmp_path, client)
    jobs.append(totals)
    kafka.produce("deleted", values(range(100)), 0)
    kafka.produce("deleted", values(range(1000, 1010)), 1)
    totals.await_numbers(range(100), range(1000, 1010))
    totals.await_saved()
    totals.job.stop()
    kafka.produce("deleted", values(range(100, 200)), 0)
    kafka.delete_records("deleted", 0, 150)
    kafka.produce("deleted", values(range(1010, 1020)), 1)
    totals.start()
    until(lambda: "50 offsets were deleted" in totals.problems(), says=totals.job.status)
    assert "offset=100 first=150 end=200 lost=50" in totals.problems() and "lost='skip'" in totals.problems()
    totals.await_numbers(range(100), range(1000, 1020))
    totals.job.stop()
    totals.start(lost="skip")
    totals.await_numbers(range(100), range(150, 200), range(1000, 1020))
    letters = totals.job.to_table("dead_letters").to_pylist()
    assert {(each["split"], each["offset"]) for each in letters} == {("deleted/deleted/0", 149)}
    lost = "50 offsets, 100 to 149, were deleted from the log before they were read"
    assert all(each["reason"].startswith(lost) for each in letters)
    assert "deleted" not in totals.problems()
    totals.await_saved()
    totals.job.stop()
    totals.start(lost="skip")
    totals.await_numbers(range(100), range(150, 200), range(1000, 1020))
    assert totals.job.to_table("dead_letters").num_rows == len(letters)


@pytest.mark.parametrize("kill", [False, True])
def test_a_topic_that_gains_partitions(
    kafka: KafkaBroker, client: Client, tmp_path: Path, jobs: list[Totals], kill: bool
) -> None:
    """Found, and read from the beginning, also where the job chose to begin with the latest; also while a worker is killed."""
    topic = f"gains-{kill}"
    kafka.create_topic(topic)
    kafka.produce(topic, values(range(50)), 0)
    totals = Totals(kafka, topic, tmp_path, client, start="latest")
    jobs.append(totals)
    kafka.produce(topic, values(range(50, 100)), 0)
    totals.await_numbers(range(50, 100))
    kafka.add_partitions(topic, 3)
    began = time.monotonic()
    kafka.produce(topic, values(range(1000, 1100)), 1)
    kafka.produce(topic, values(range(2000, 2100)), 2)
    if kill:
        os.kill(min(client.run(os.getpid).values()), signal.SIGKILL)
    totals.await_numbers(range(50, 100), range(1000, 1100), range(2000, 2100))
    assert kill or time.monotonic() - began < 15  # it looks every 5 s
    kafka.produce(topic, values(range(3000, 3010)), 2)
    totals.await_numbers(range(50, 100), range(1000, 1100), range(2000, 2100), range(3000, 3010))
