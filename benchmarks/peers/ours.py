"""Our own job as a peer among peers: whatever it needs (scheduler, worker, the client that asks how far it is) is in this process tree.

python -m benchmarks.peers.ours bootstrap=HOST:PORT topic=NAME events=N [workload=billing|counts]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from dask import config as dask_config
from distributed import Client, LocalCluster

import flowstate as fs
from benchmarks.kafka_state import SCHEMA, cpu, least_applied
from flowstate.api.own_cluster import DASK_SETTINGS
from flowstate.api.stream import View
from flowstate.view.answer import Answer

PATIENCE = 300.0


def flow(bootstrap: str, topic: str, workload: str) -> View:
    """Windows with a grace, judged for lateness, as a bill needs them; or the plain count of each customer's events."""
    events = fs.scan_kafka(
        topic, bootstrap=bootstrap, format="json", schema=SCHEMA, event_time="at", lateness="400d"
    )  # fmt: skip
    if workload == "counts":
        return events.group_by("customer").agg(events=fs.len()).view("totals")
    grouped = events.group_by("customer", month=fs.window("at", every="1mo", grace="3d"))
    return grouped.agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")


def tree() -> list[int]:
    """This process and all that it started."""
    own = psutil.Process()
    return [own.pid, *(each.pid for each in own.children(recursive=True))]


def once(client: Client, options: dict[str, str]) -> dict[str, float]:
    workload, wanted = options.get("workload", "billing"), int(options["events"])
    processes = tree()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        view = flow(options["bootstrap"], options["topic"], workload)
        job = stack.enter_context(fs.start(view, snapshots=Path(folder) / "snapshots", every="10s", client=client))
        reader = job["totals"]
        own, deadline = os.getpid(), time.monotonic() + PATIENCE
        begun, applied = (0.0, 0.0, 0.0, 0), 0
        while applied < wanted:
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {applied} was applied: {job.status()}")
            answer = Answer.of(reader.lookup(["customer-000001"]).schema)
            assert answer is not None
            applied = least_applied([{name: at.offset for name, at in each.position.items()} for each in answer.parts])
            if not begun[3] and applied:
                begun = time.monotonic(), cpu(processes), cpu([own]), applied
            time.sleep(0.025)
        clock, used, beside = time.monotonic() - begun[0], cpu(processes) - begun[1], cpu([own]) - begun[2]
        money = "coalesce(sum(total), 0)" if workload == "billing" else "0"
        [(groups, events, total)] = job.sql(f"select count(*), sum(events), {money} from totals").fetchall()
        whole = wanted / (wanted - begun[3])  # what was there at the first look is not in the time
        return {
            "seconds": clock * whole, "cpu": used * whole, "beside": beside * whole,
            "groups": groups, "events": int(events), "cents": int(total * 100),
        }  # fmt: skip


def main() -> None:
    options: dict[str, Any] = dict(each.split("=", 1) for each in sys.argv[1:])
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no result
    with (
        dask_config.set(DASK_SETTINGS),
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        for _ in sys.stdin:
            told.write(json.dumps(once(client, options)) + "\n")
            told.flush()


if __name__ == "__main__":
    main()
