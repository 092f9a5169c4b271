"""No answer of a running job is torn, however it is read.

Every line of the log moves an amount between two places, so whatever is read at one position adds up to zero: the two columns of a row,
the two rows of one customer (two windows, one owner), all rows of one partition, and, in a snapshot, two accounts of two owners.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from local_cluster import two_workers
from pyarrow import flight

import flowstate as fs

WRITER = """
import json, random, sys, time
source = random.Random(7)
with open(sys.argv[1], "ab", buffering=0) as log:
    while True:
        lines = []
        for _ in range(source.randint(1, 40)):
            amount = source.randint(-1000, 1000)
            one, other = source.sample(range(40), 2)
            lines.append(json.dumps({
                "customer": f"customer-{source.randrange(30)}", "a": amount, "b": -amount,
                "days": ["2024-01-05T00:00:00Z", "2024-02-05T00:00:00Z"], "moved": [amount, -amount],
                "accounts": [f"account-{one}", f"account-{other}"],
            }) + "\\n")
        log.write("".join(lines).encode())
        time.sleep(0.02)
"""
SCHEMA = pa.schema(
    {
        "customer": pa.string(),
        "a": pa.int64(),
        "b": pa.int64(),
        "days": pa.list_(pa.timestamp("ms", "UTC")),
        "moved": pa.list_(pa.int64()),
        "accounts": pa.list_(pa.string()),
    }
)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A file that another process appends to as long as the test runs."""
    path = tmp_path / "log.jsonl"
    path.touch()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        yield path
    finally:
        writer.kill()
        writer.wait(10)


def flow(path: Path) -> list[Any]:
    events = fs.scan_files(path, schema=SCHEMA, follow=True)
    columns = events.group_by("customer").agg(a=fs.col("a").sum(), b=fs.col("b").sum(), rows=fs.len()).view("columns")
    months = (
        events.explode("days", "moved")
        .group_by("customer", month=fs.window("days", every="1mo"))
        .agg(moved=fs.col("moved").sum(), rows=fs.len())
        .view("months")
    )
    accounts = (
        events.explode("accounts", "moved")
        .group_by("accounts")
        .agg(balance=fs.col("moved").sum(), rows=fs.len())
        .view("accounts")
    )
    return [columns, months, accounts]


class Reading(threading.Thread):
    """Calls `read` until `over`; `read` returns how many rows of the log its answer saw."""

    def __init__(self, name: str, read: Callable[[int], int], over: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.read, self.over, self.done, self.seen = read, over, 0, set[int]()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.seen.add(self.read(self.done))
                self.done += 1
        except BaseException as error:
            self.error = error
            self.over.set()


def lookups(job: fs.Job) -> Callable[[int], int]:
    columns, months = job["columns"], job["months"]
    newest: dict[tuple[str, int], int] = {}

    def read(number: int) -> int:
        customer = f"customer-{number % 30}"
        if number % 2:
            table = columns.lookup(customer)
            assert table["a"].to_pylist() == [-each for each in table["b"].to_pylist()]
        else:
            table = months.lookup(customer)
            assert sum(table["moved"].to_pylist()) == 0
            assert len(set(table["rows"].to_pylist())) <= 1
        rows = max(table["rows"].to_pylist(), default=0)
        assert rows >= newest.get((customer, number % 2), 0)
        newest[customer, number % 2] = rows
        return rows

    return read


def scans(job: fs.Job) -> Callable[[int], int]:
    """Each partition by plain Flight."""
    client = flight.connect(job.address)
    endpoints = {
        view: client.get_flight_info(flight.FlightDescriptor.for_path(view)).endpoints for view in ("columns", "months")
    }
    connections = {
        location: flight.connect(location)
        for each in endpoints.values()
        for location in {one.locations[0].uri for one in each}
    }
    newest: dict[tuple[str, int], int] = {}

    def read(number: int) -> int:
        view = "months" if number % 2 else "columns"
        at = number // 2 % len(endpoints[view])
        endpoint = endpoints[view][at]
        table = connections[endpoint.locations[0].uri].do_get(endpoint.ticket).read_all()
        if view == "columns":
            assert pc.equal(table["a"], pc.negate(table["b"])).to_pylist().count(False) == 0
        else:
            assert (pc.sum(table["moved"]).as_py() or 0) == 0
            customers = table.group_by("customer").aggregate([("moved", "sum")])
            assert set(customers["moved_sum"].to_pylist()) <= {0}
        rows = pc.sum(table["rows"]).as_py() or 0
        assert rows >= newest.get((view, at), 0)
        newest[view, at] = rows
        return int(rows)

    return read


def queries(job: fs.Job) -> Callable[[int], int]:
    def read(number: int) -> int:
        if number % 2:
            (torn, rows), *_ = job.sql(
                "select count(*) filter (where a <> -b), coalesce(sum(rows), 0)::bigint from columns"
            ).fetchall()
        else:
            (torn, rows), *_ = job.sql(
                "select count(*) filter (where moved <> 0), coalesce(sum(rows), 0)::bigint "
                "from (select customer, sum(moved) as moved, sum(rows) as rows from months group by all)"
            ).fetchall()
        assert torn == 0
        return int(rows)

    return read


def snapshots(job: fs.Job) -> Callable[[int], int]:
    def read(number: int) -> int:
        with job.snapshot(timeout=20) as moment:
            question = """select (select coalesce(sum(balance), 0) from accounts), (select coalesce(sum(rows), 0)::bigint from accounts),
                (select coalesce(sum(rows), 0)::bigint from months), (select coalesce(sum(rows), 0)::bigint from columns)"""
            answer = moment.sql(question).fetchall()[0]
            assert answer[0] == 0
            assert answer[1] == answer[2] == 2 * answer[3]
            if number % 5 == 0:
                assert moment.sql(question).fetchall()[0] == answer
            return int(answer[3])

    return read


@pytest.mark.slow
def test_ten_thousand_reads_are_never_torn(log: Path, tmp_path: Path) -> None:
    with (
        two_workers() as client,
        fs.start(*flow(log), snapshots=tmp_path / "snapshots", every="500ms", client=client) as job,
    ):
        over = threading.Event()
        reads = {"lookups": lookups(job), "scans": scans(job), "queries": queries(job), "snapshots": snapshots(job)}
        readings = [Reading(name, read, over) for name, read in reads.items()]
        for each in readings:
            each.start()
        deadline = time.monotonic() + 150
        while sum(each.done for each in readings) < 10_000 or any(each.done < 10 for each in readings):
            assert time.monotonic() < deadline, {each.name: each.done for each in readings}
            if over.wait(0.05):
                break
        over.set()
        for each in readings:
            each.join(60)
            if each.error is not None:
                raise each.error
        for each in readings:
            assert len(each.seen) >= min(20, each.done // 2), f"{each.name} saw no change"
        assert job.sql("select count(*) from dead_letters").fetchall() == [(0,)]
