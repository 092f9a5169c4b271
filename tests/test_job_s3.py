"""The billing job with its snapshots and its invoices on a real S3 server: killed as a whole, started again, every total exact."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as ds
import pytest
from s3_server import S3Server, s3_server
from waiting import until

import flowstate as fs
from flowstate.testing import billing

VIEWS = {"monthly_subtotals": "customer", "type_subtotals": "kind"}


def flow(place: str, url: str, options: dict[str, Any]) -> list[Any]:
    events = fs.scan_files(
        place, format="json", schema=billing.SCHEMA, event_time="at", lateness="12h", follow=True, name="events"
    )
    outputs: list[Any] = []
    for view, key in VIEWS.items():
        window = fs.window("at", every="30d", grace="3d")
        totals = events.group_by(key, month=window).agg(total=fs.col("amount").sum(), events=fs.len()).view(view)
        sink = totals.final().sink_parquet(f"{url}/{view}", partition_by="month", storage_options=options)
        outputs += [totals, sink]
    return outputs


def main() -> None:
    place, url, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    job = fs.start(
        *flow(place, url, options),
        snapshots=f"{url}/snapshots",
        storage_options=options,
        every="500ms",
        idle_after="60s",
        partitions=2,
    )
    print("up", job.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "drain":
            job.drain(timeout=90)
            job.stop()
            print("drained", flush=True)
            return


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


class Run:
    """One run of the program above, in processes of its own."""

    def __init__(self, folder: Path, url: str, options: dict[str, Any]) -> None:
        self.log = (folder / "log.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, __file__, f"{folder}/log/*.jsonl", url, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        answer = self.hear()
        assert answer.startswith("up "), (folder / "log.txt").read_text()[-3000:]
        self.reads = fs.connect(answer.split()[1])

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def events(self) -> int:
        return int(self.reads.sql("select coalesce(sum(events), 0)::bigint from type_subtotals").fetchall()[0][0])

    def await_events(self, count: int) -> None:
        until(lambda: self.events() >= count, 60, pause=0.05)

    def kill(self) -> None:
        """Driver and workers, with SIGKILL."""
        for each in [self.process.pid, *(one.pid for one in psutil.Process(self.process.pid).children(recursive=True))]:
            os.kill(each, signal.SIGKILL)
        self.close()

    def drain(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("drain\n")
        self.process.stdin.flush()
        assert self.hear() == "drained"
        self.close()

    def close(self) -> None:
        self.process.wait(30)
        self.reads.close()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            assert stream is not None
            stream.close()


def invoices(folder: Path, key: str) -> list[tuple[str, datetime, Decimal]]:
    """The published rows, duplicates and all. The server keeps objects as files."""
    rows = []
    for path in folder.glob("month=*/*.parquet"):
        month = datetime.fromisoformat(path.parent.name.removeprefix("month=")).replace(tzinfo=UTC)
        rows += [(row[key], month, row["total"]) for row in ds.dataset(str(path)).to_table().to_pylist()]
    return sorted(rows)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("seed", [11])
def test_snapshots_and_invoices_on_s3_survive_a_kill(server: S3Server, tmp_path: Path, seed: int) -> None:
    url = f"{server.bucket('billing')}/job"
    events = list(billing.events(random.Random(seed), months=5))
    (tmp_path / "log").mkdir()

    def send(upto: int, since: int) -> None:
        for event in events[since:upto]:
            with (tmp_path / "log" / f"{billing.split_of(event.customer, 2)}.jsonl").open("ab") as log:
                log.write(event.json() + b"\n")

    third = len(events) // 3
    send(third, 0)
    for part in (1, 2):
        run = Run(tmp_path, url, server.storage_options)
        send((part + 1) * third, part * third)
        run.await_events(part * third + 1)
        run.kill()
    send(len(events), 3 * third)
    run = Run(tmp_path, url, server.storage_options)
    run.await_events(len(events))
    run.drain()
    expected = {"monthly_subtotals": billing.customer_totals(events), "type_subtotals": billing.kind_totals(events)}
    with fs.open_snapshot(f"{url}/snapshots", **server.storage_options) as saved:
        for view, key in VIEWS.items():
            rows = saved.to_table(view).to_pylist()
            assert {(row[key], row["month"]): row["total"] for row in rows} == expected[view]
            assert len(rows) == len(expected[view])
            assert saved.sql(f"select count(*) from {view}_late").fetchall() == [(0,)]
            published = invoices(server.folder / "billing" / "job" / view, key)
            assert published == sorted((name, month, total) for (name, month), total in expected[view].items())


if __name__ == "__main__":
    main()
