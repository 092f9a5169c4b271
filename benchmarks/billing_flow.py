"""The billing job as ``flowstate run`` takes it: subtotals per customer and per kind, and the invoices of both.

Where it reads and writes is said by the environment: ``BILLING_KAFKA`` is ``bootstrap/topic``, or ``BILLING_LOG`` a pattern of files;
``BILLING_OUT`` the folder of the invoices; ``BILLING_KEEP`` is how long a month stays in memory after its end, else for ever.
"""

from __future__ import annotations

import os
from typing import Any

import flowstate as fs
from flowstate.testing import billing

VIEWS = {"monthly_subtotals": "customer", "type_subtotals": "kind"}
SINKS = {"invoices": "customer", "type_totals": "kind"}


def flow() -> list[Any]:
    if place := os.environ.get("BILLING_KAFKA"):
        bootstrap, topic = place.split("/")
        events = fs.scan_kafka(
            topic, bootstrap=bootstrap, format="json", schema=billing.SCHEMA, event_time="at", lateness="12h", max_ahead=None
        )  # fmt: skip
    else:
        events = fs.scan_files(
            os.environ["BILLING_LOG"], format="json", schema=billing.SCHEMA, event_time="at", lateness="12h", follow=True
        )  # fmt: skip
    month = fs.window("at", every="30d", grace="3d", keep=os.environ.get("BILLING_KEEP"))
    outputs: list[Any] = []
    for (view, key), sink in zip(VIEWS.items(), SINKS, strict=True):
        subtotals = events.group_by(key, month=month).agg(total=fs.col("amount").sum(), events=fs.len()).view(view)
        outputs += [
            subtotals,
            subtotals.final().sink_parquet(f"{os.environ['BILLING_OUT']}/{sink}/", partition_by="month"),
        ]
    return outputs
