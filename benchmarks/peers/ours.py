"""Our own job as a peer among peers: whatever it needs (scheduler, worker, the client that asks how far it is) is in this process tree.

python -m benchmarks.peers.ours bootstrap=HOST:PORT topic=NAME events=N [workload=billing|counts] [lookups=N]

With `lookups`, so many lookups of single keys are under way all the time, asked by a process on the other core that is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
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


def once(client: Client, options: dict[str, str], asker: subprocess.Popen[str] | None) -> dict[str, float]:
    workload, wanted = options.get("workload", "billing"), int(options["events"])
    processes = [each for each in tree() if asker is None or each != asker.pid]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        view = flow(options["bootstrap"], options["topic"], workload)
        job = stack.enter_context(fs.start(view, snapshots=Path(folder) / "snapshots", every="10s", client=client))
        reader = job["totals"]
        if asker is not None:
            say(asker, f"{job.address} totals")
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
        asked = int(say(asker, "", answer=True)) if asker is not None else 0
        money = "coalesce(sum(total), 0)" if workload == "billing" else "0"
        [(groups, events, total)] = job.sql(f"select count(*), sum(events), {money} from totals").fetchall()
        whole = wanted / (wanted - begun[3])  # what was there at the first look is not in the time
        return {
            "seconds": clock * whole, "cpu": used * whole, "beside": beside * whole,
            "groups": groups, "events": int(events), "cents": int(total * 100),
            "asked": asked * whole,
        }  # fmt: skip


def say(asker: subprocess.Popen[str], line: str, *, answer: bool = False) -> str:
    assert asker.stdin is not None and asker.stdout is not None
    asker.stdin.write(line + "\n")
    asker.stdin.flush()
    return asker.stdout.readline() if answer else ""


def main() -> None:
    options: dict[str, Any] = dict(each.split("=", 1) for each in sys.argv[1:])
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no result
    asker = None
    if flying := options.get("lookups"):
        command = [sys.executable, "-m", "benchmarks.peers.asker", flying]
        asker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with (
        dask_config.set(DASK_SETTINGS),
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        for _ in sys.stdin:
            told.write(json.dumps(once(client, options, asker)) + "\n")
            told.flush()


if __name__ == "__main__":
    main()
