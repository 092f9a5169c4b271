"""What a careless or hostile user and operator does to a running job: it loses nothing, hangs nowhere, and says what to do."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import waiting
from distributed import Client
from pyarrow import flight

import flowstate as fs
from flowstate.runtime.coordinator import Coordinator

LINE = b'{"customer":"a","amount":%d,"at":"2024-01-%02dT00:00:00Z"}\n'
SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64(), "at": pa.timestamp("ms", "UTC")})
until = partial(waiting.until, seconds=30.0)


def totals(source: Any, name: str = "totals") -> Any:
    return source.group_by("customer").agg(total=fs.col("amount").sum(), rows=fs.len()).view(name)


def log(folder: Path, rows: int = 1) -> Any:
    (folder / "log.jsonl").write_bytes(b"".join(LINE % (1, 1 + each % 28) for each in range(rows)))
    return fs.scan_files(folder / "log.jsonl", schema=SCHEMA, event_time="at", follow=True)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"snapshots": None}, "snapshots is a folder or a URL"),
        ({"snapshots": 5}, "snapshots is a folder or a URL"),
        ({"snapshots": ""}, "snapshots is a folder or a URL"),
        ({"every": "0s"}, "every is at least"),
        ({"every": 10}, "a duration is written like"),
        ({"keep": 0}, "keep is a whole number"),
        ({"keep": "x"}, "keep is a whole number"),
        ({"idle_after": "0s"}, "idle_after is at least"),
        ({"partitions": 0}, "partitions is a whole number"),
        ({"partitions": "2"}, "partitions is a whole number"),
        ({"partitions": 1.5}, "partitions is a whole number"),
        ({"key_groups": 0}, "key_groups is a whole number"),
        ({"partitions": 3, "key_groups": 2}, "the number of partitions is between"),
        ({"timeout": "x"}, "timeout is a number of seconds"),
        ({"name": 5}, "name is a text"),
        ({"client": "tcp://nowhere:1"}, "client is a distributed.Client"),
        ({"storage_options": "x"}, "storage_options is a mapping"),
        ({"storage_options": {"a": 1}}, "takes no storage options"),
    ],
)
def test_what_start_refuses(client: Client, tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"snapshots": tmp_path / "snapshots", "client": client} | arguments
    with pytest.raises(fs.InvalidFlow, match=match):
        fs.start(totals(log(tmp_path)), **given)
    assert not list(tmp_path.glob("snapshots/job*"))


REFUSED: dict[str, tuple[Callable[[fs.Job], object], str]] = {
    "no view": (lambda job: job[5], "asked by its name"),  # type: ignore[index]
    "a misspelt view": (lambda job: job["total"], "did you mean 'totals'"),
    "no text": (lambda job: job.sql(None), "takes the text of a query"),  # type: ignore[arg-type]
    "a time limit": (lambda job: job.snapshot(timeout="x"), "timeout is a number"),  # type: ignore[arg-type]
    "another time limit": (lambda job: job.wait("x"), "timeout is a number"),  # type: ignore[arg-type]
    "a column": (lambda job: job["totals"].to_table(columns=["x"]), "has no column 'x'"),
    "a key of another type": (lambda job: job["totals"][5], "a value for 'customer' does not fit"),
    "a statement that writes": (lambda job: job.sql("drop table totals"), "read only"),
    "the file system": (lambda job: job.sql("select * from read_csv('/etc/passwd')").fetchall(), "disabled"),
    "no address": (lambda job: fs.connect(5), "address is a text"),  # type: ignore[arg-type]
    "no place": (lambda job: fs.open_snapshot(None), "url is a folder"),  # type: ignore[arg-type]
    "no number": (lambda job: fs.open_snapshot("x", at="x"), "at is a whole number"),  # type: ignore[arg-type]
    "no rows": (lambda job: fs.from_arrow(5), "from_arrow takes"),  # type: ignore[arg-type]
    "no columns": (lambda job: fs.scan_files("x.json", schema=pa.schema({})), "a column at least"),
}


def test_wrong_questions_and_what_a_stopped_job_says(client: Client, tmp_path: Path) -> None:
    job = fs.start(totals(log(tmp_path)), snapshots=tmp_path / "snapshots", client=client)
    for ask, match in REFUSED.values():
        with pytest.raises(fs.InvalidFlow, match=match):
            ask(job)
    with pytest.raises(fs.Unavailable, match="not at its end yet"):
        job.wait(timeout=0)
    until(lambda: "a" in job["totals"])
    job.stop()
    job.stop()
    job.wait()
    for late in (lambda: job["totals"], lambda: job.sql("select 1 from totals"), job.snapshot):
        with pytest.raises(fs.InvalidFlow, match="this job was stopped"):
            late()
    with pytest.raises(fs.InvalidFlow, match="no job 'totals'"):
        fs.attach("totals", client)
    with fs.open_snapshot(tmp_path / "snapshots") as saved:
        assert saved["totals"]["a"].to_pylist() == [{"customer": "a", "total": 1, "rows": 1}]


def append(folder: Path, rows: int) -> None:
    with (folder / "log.jsonl").open("ab") as file:
        file.write(b"".join(LINE % (1, 1 + each % 28) for each in range(rows)))


def rows_of(job: fs.Job) -> int:
    return int(job.sql("select coalesce(sum(rows), 0)::bigint from totals").fetchall()[0][0])


def grown(job: fs.Job, rows: int) -> bool:
    return rows_of(job) == rows


def states(job: fs.Job) -> list[tuple[str, int]]:
    return [(each["state"], each["epoch"]) for each in job.status()["partitions"].values()]


def speak(address: str, command: bytes, *controls: object) -> None:
    """Says something to the port where partitions talk to each other, and waits until it is closed or answered."""
    client = flight.connect(address)
    try:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(command))
        for each in controls:
            data = each if isinstance(each, bytes) else json.dumps(each).encode()
            writer.write_metadata(pa.py_buffer(data))
        writer.done_writing()
        reader.read_chunk()
    except (StopIteration, flight.FlightError, pa.ArrowException):
        pass
    finally:
        client.close()


def test_garbage_on_the_port_of_the_partitions_harms_nobody(client: Client, tmp_path: Path) -> None:
    with fs.start(totals(log(tmp_path, 50)), snapshots=tmp_path / "snapshots", client=client, every="300ms") as job:
        until(lambda: rows_of(job) == 50)
        split, chance = next(iter(job.status()["splits"])), random.Random(3)
        command = json.dumps({"v": 1, "kind": "partition-exchange", "job": "totals"}).encode()
        streams: list[Any] = [
            5, None, "x", [], [[1], 1, 0, 1, 1], [split, "x", 0, 1, 1], [split, 1.5, 0, 1, 1], [split, 1, 0, 1],
            *([split, epoch, owner, *last] for epoch in range(1, 5)
              for owner, *last in ((0, None, None), ("0", 1, 1), (77, 5, 5), (-1, 5, 5), (0, 0, 0), (0, "x", 9))),
        ]  # fmt: skip
        for address in set(job._addresses()):
            for stream in streams:
                for reader in (0, 1, 9, [0], None):
                    speak(address, command, {"attach": stream, "reader": reader, "place": [0, 0]})
                speak(address, command, {"acknowledge": stream, "count": 10**9}, {"close": stream})
            for place in (None, [], ["a", "b"], [None, 0], [0.5, 0], [0, 0, 0]):
                for epoch in range(1, 5):
                    attach = {"attach": [split, epoch, 0, 10**6, 1], "place": place}
                    speak(address, command, attach | {"reader": 0})
                    speak(address, command, attach | {"reader": 1})
            for _ in range(30):
                noise = bytes(chance.randrange(256) for _ in range(chance.randrange(40)))
                speak(address, command, noise, b"[1]", b"5")
                speak(address, noise)
        append(tmp_path, 50)
        until(lambda: rows_of(job) == 100)
        assert job.snapshot(timeout=20).sql("select sum(rows) from totals").fetchall() == [(100,)]
        assert states(job) == [("live", 1), ("live", 1)]


def test_scans_that_nobody_reads_cost_neither_memory_nor_progress(client: Client, tmp_path: Path) -> None:
    rows = b"".join(b'{"customer":"c%d","amount":1,"at":"2024-01-01T00:00:00Z"}\n' % each for each in range(100_000))
    (tmp_path / "log.jsonl").write_bytes(rows)
    source = fs.scan_files(tmp_path / "log.jsonl", schema=SCHEMA, event_time="at", follow=True)
    with fs.start(totals(source), snapshots=tmp_path / "snapshots", client=client, every="1s") as job:
        until(lambda: rows_of(job) == 100_000)

        def used() -> int:
            return sum(client.run(lambda: psutil.Process().memory_info().rss).values())

        before, connections, unread = used(), [], []
        with flight.connect(job.address) as first:
            endpoints = first.get_flight_info(flight.FlightDescriptor.for_path("totals")).endpoints
        for number in range(60):
            endpoint = endpoints[number % 2]
            connections.append(flight.connect(endpoint.locations[0]))
            unread.append(connections[-1].do_get(endpoint.ticket))
            if number % 10 == 0:
                append(tmp_path, 1000)
        until(lambda: rows_of(job) == 106_000)
        assert job["totals"]["a"]["total"].to_pylist() == [6000]
        assert used() - before < 200 << 20
        for each in unread:
            each.cancel()
        for connection in connections:
            connection.close()


def test_a_cut_is_saved_also_while_partitions_save_by_themselves(client: Client, tmp_path: Path) -> None:
    """Saves that come as often as they can meet every cut; stopping must neither wait for one in vain nor go without a saved cut."""
    for run in range(6):
        flow = totals(
            log(tmp_path, 50)
            if run == 0
            else fs.scan_files(tmp_path / "log.jsonl", schema=SCHEMA, event_time="at", follow=True)
        )
        job = fs.start(flow, snapshots=tmp_path / "snapshots", client=client, every="50ms", partitions=1 + run % 3)
        for number in range(5):
            append(tmp_path, 20)
            until(partial(grown, job, 50 + 100 * run + 20 * number + 20))
        began = time.monotonic()
        job.stop()
        assert time.monotonic() - began < 10
        assert "stop" not in job.status()["problems"]
    with fs.open_snapshot(tmp_path / "snapshots") as saved:
        assert saved.sql("select sum(rows) from totals").fetchall() == [(650,)]


def test_a_partition_is_never_given_up_because_machines_die() -> None:
    coordinator, now = Coordinator(1, {}), 0.0
    for number in range(12):
        now += 10
        coordinator.worker_joined(f"worker-{number}", "grpc://127.0.0.1:1", now)
        coordinator.claimed(0, number + 1, now)
        coordinator.reported(0, number + 1, {"state": "live", "position": {}, "reached": 0}, now)
        coordinator.worker_lost(f"worker-{number}", now + 1)
        assert coordinator.members[0].state == "vacant"
