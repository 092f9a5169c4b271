"""A job on a cluster whose workers are hosts of their own, driven from the hub. Usage: namespace_job.py SCHEDULER WORKERS LOG FOLDER

It says `up` when every partition serves, then obeys lines on standard input, each answered by one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from distributed import Client

import flowstate as fs
from flowstate.testing import billing
from flowstate.view.answer import Answer


def flow(log: str, folder: str) -> list[Any]:
    events = fs.scan_files(log, format="json", schema=billing.SCHEMA, event_time="at", lateness="12h", follow=True)
    totals = (
        events.group_by("customer", month=fs.window("at", every="30d", grace="3d"))
        .agg(total=fs.col("amount").sum(), events=fs.len())
        .view("monthly_subtotals")
    )
    return [totals, totals.final().sink_parquet(f"{folder}/monthly_subtotals/", partition_by="month")]


def main() -> None:
    scheduler, workers, log, folder = sys.argv[1:]
    with Client(scheduler, timeout=30) as client:
        client.wait_for_workers(int(workers), timeout=60)
        job = fs.start(
            *flow(log, folder), client=client, snapshots=f"{folder}/snapshots", every="500ms", partitions=4, idle_after="60s",
            access="none",
        )  # fmt: skip
        print("up", flush=True)
        for line in sys.stdin:
            command, *words = line.split()
            try:
                answer: Any = ask(job, client, command, *words)
            except fs.FlowstateError as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer, default=str), flush=True)
            if command == "stop":
                return


def ask(job: fs.Job, client: Client, command: str, *words: str) -> Any:
    match command:
        case "status":
            return job.status()
        case "names":
            workers = client.scheduler_info(n_workers=-1)["workers"]
            return {address: each["name"] for address, each in workers.items()}
        case "directory":
            return [[each.partition, each.epoch, each.location] for each in job._reader.directory().partitions]
        case "customer":
            asked = time.monotonic()
            table = job["monthly_subtotals"].lookup(words[0])
            answer = Answer.of(table.schema)
            assert answer is not None
            part = answer.parts[0]
            return {
                "seconds": time.monotonic() - asked,
                "events": sum(table["events"].to_pylist()),
                "origin": part.origin,
                "epoch": part.epoch,
                "partition": part.partition,
            }
        case "drain":
            job.drain(timeout=90)
        case "stop":
            job.stop()
    return "done"


if __name__ == "__main__":
    main()
