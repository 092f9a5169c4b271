"""Changes of a job that runs: its rows come while they are told, and a worker is killed meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from dask_processes import pids
from hand_job import Told, ordered_rows
from local_cluster import two_workers

import flowstate as fs

SCHEMA = pa.schema({"who": pa.string(), "amount": pa.int64()})


def test_changes_are_followed_while_rows_come_and_a_worker_is_killed(tmp_path: Path) -> None:
    log, sent = tmp_path / "log.jsonl", 0

    def append(rows: int) -> None:
        nonlocal sent
        with log.open("a") as file:
            file.writelines(f'{{"who": "c{each % 50}", "amount": {each}}}\n' for each in range(sent, sent + rows))
        sent += rows

    append(100)
    flow = fs.scan_files(log, schema=SCHEMA, follow=True).group_by("who")
    totals = flow.agg(rows=fs.len(), total=fs.col("amount").sum()).view("totals")
    with two_workers() as client, fs.start(totals, snapshots=tmp_path / "saved", every="300ms", client=client) as job:
        table = Told(["who"])

        def told(changes: Any) -> None:
            """Until all rows are told."""
            deadline = time.monotonic() + 60
            while sum(row["rows"] for row in table.rows()) != sent or not settled:
                assert time.monotonic() < deadline, job.status()["problems"]
                change = changes.take(1.0)
                if change is not None:
                    table.take(change)
                    settled[:] = [True] if change.kind == "position" else []

        settled: list[bool] = []
        with job["totals"].changes() as changes:
            told(changes)
            for _ in range(5):
                append(200)
                told(changes)
            assert table.resets == 2
            os.kill(pids(client)[job.status()["partitions"]["0"]["worker"]], signal.SIGKILL)
            append(500)
            told(changes)
            assert ordered_rows(table.rows()) == ordered_rows(job.to_table("totals").to_pylist())
            assert table.resets > 2
        with job["totals"].changes(resume=table.resume) as changes:
            resets = table.resets
            append(10)
            told(changes)
        assert table.resets == resets
        assert ordered_rows(table.rows()) == ordered_rows(job.to_table("totals").to_pylist())
