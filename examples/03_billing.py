"""Billing: live monthly subtotals per customer, and an invoice file for each month that is closed.

Run it: python examples/03_billing.py [months] [seed]
"""

from __future__ import annotations

import random
import sys
import tempfile
from decimal import Decimal

import duckdb

import flowstate as fs
from flowstate.testing import billing


def main(months: int = 12, seed: int = 1) -> int:
    with tempfile.TemporaryDirectory() as folder:
        log = billing.FileLog(f"{folder}/log", splits=2)
        log.append(billing.events(random.Random(seed), months=months))

        # Events come up to 12 hours out of order, and a few are later than that: a month waits 3 days for them.
        events = fs.scan_files(
            f"{folder}/log/*.jsonl", format="json", schema=billing.SCHEMA, event_time="at", lateness="12h"
        )
        subtotals = (
            events.group_by("customer", month=fs.window("at", every="30d", grace="3d"))
            .agg(total=fs.col("amount").sum(), events=fs.len())
            .view("monthly_subtotals")
        )
        invoices = subtotals.final().sink_parquet(f"{folder}/invoices/", partition_by="month")

        with fs.start(subtotals, invoices, snapshots=f"{folder}/snapshots/", every="10s") as job:
            job.wait(timeout=120)  # the log ends, so the job does: all months are closed

            emma = job["monthly_subtotals"]["Emma"].sort_by("month")
            print("Emma:", *emma["total"].to_pylist())
            print(job.sql("select customer, sum(total) as total from monthly_subtotals group by all order by all"))

        rows = duckdb.execute(
            "select customer, epoch_ms(month_end), total "
            f"from read_parquet('{folder}/invoices/**/*.parquet', hive_partitioning = false)"
        ).fetchall()

    wrong = 0
    for end in sorted({end for _, end, _ in rows}):
        invoice = {customer: total for customer, closed, total in rows if closed == end}
        even = invoice == {customer: Decimal(cents) / 100 for customer, cents in billing.MONTHLY_CENTS.items()}
        wrong += not even
        print(f"month {end // billing.MONTH - 1:3d}: {sum(invoice.values())}", "even" if even else f"WRONG: {invoice}")
    complete = len(rows) == 9 * (months - months // 12)
    print(f"{len(rows)} invoices,", "all even" if complete and not wrong else "WRONG")
    return 0 if complete and not wrong else 1


if __name__ == "__main__":  # worker processes import this file
    sys.exit(main(*map(int, sys.argv[1:])))
