"""The billing job as a program of its own, which tests start, ask and kill. Usage: billing_process.py SOURCE PLACE FOLDER PARTITIONS

It says `up ADDRESS` when it serves; then it obeys lines on standard input: `drain`, `stop`, `status`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import flowstate as fs
from flowstate.testing import billing


def flow(source: str, place: str, folder: str) -> list[Any]:
    """Subtotals per customer and per kind, and the invoices of both."""
    if source == "kafka":
        bootstrap, topic = place.split("/")
        events = fs.scan_kafka(
            topic,
            bootstrap=bootstrap,
            format="json",
            schema=billing.SCHEMA,
            event_time="at",
            lateness="12h",
            max_ahead=None,
        )
    else:
        events = fs.scan_files(
            place, format="json", schema=billing.SCHEMA, event_time="at", lateness="12h", follow=True
        )
    outputs: list[Any] = []
    for view, key in {"monthly_subtotals": "customer", "type_subtotals": "kind"}.items():
        totals = (
            events.group_by(key, month=fs.window("at", every="30d", grace="3d"))
            .agg(total=fs.col("amount").sum(), events=fs.len())
            .view(view)
        )
        outputs += [totals, totals.final().sink_parquet(f"{folder}/{view}/", partition_by="month")]
    return outputs


def main() -> None:
    source, place, folder, partitions = sys.argv[1:]
    outputs = flow(source, place, folder)
    job = fs.start(
        *outputs, snapshots=f"{folder}/snapshots", every="500ms", partitions=int(partitions), idle_after="60s"
    )
    print("up", job.address, flush=True)
    for line in sys.stdin:
        match line.strip():
            case "drain":
                job.drain(timeout=60)
                print("drained", flush=True)
            case "status":
                print(json.dumps(job.status(), default=str), flush=True)
            case "stop":
                job.stop()
                print("stopped", flush=True)
                return


if __name__ == "__main__":
    main()
