"""Hourly impressions per advertisement: filter the impressions out of a log, count them per hour, ask while it runs.

Run it: python examples/02_impressions.py
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

import flowstate as fs

SCHEMA = pa.schema({"id": pa.string(), "action": pa.string(), "at": pa.timestamp("ms", "UTC")})
START = datetime(2026, 1, 1, tzinfo=UTC)


def write_log(path: Path, number: int = 20_000) -> Counter[tuple[str, datetime]]:
    """A log of `number` events of one day, up to a minute out of order; the hourly impressions that are in it."""
    source = random.Random(1)
    expected: Counter[tuple[str, datetime]] = Counter()
    with path.open("w") as file:
        for index in range(number):
            at = START + timedelta(days=1) * (index / number) + timedelta(milliseconds=source.randrange(60_000))
            action = source.choices(["impression", "click", "close"], [90, 8, 2])[0]
            advertisement = f"ad-{min(source.randrange(20), source.randrange(20)):02d}"
            event = {"id": advertisement, "action": action, "at": at.isoformat(timespec="milliseconds")}
            file.write(json.dumps(event) + "\n")
            if action == "impression":
                expected[advertisement, at.replace(minute=0, second=0, microsecond=0)] += 1
    return expected


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        expected = write_log(Path(folder, "events.jsonl"))

        events = fs.scan_files(f"{folder}/events.jsonl", format="json", schema=SCHEMA, event_time="at", lateness="1m")
        impressions = (
            events.filter(fs.col("action") == "impression")
            .group_by("id", hour=fs.window("at", every="1h", grace="5m"))
            .agg(impressions=fs.len())
            .view("hourly_impressions")
        )

        with fs.start(impressions, snapshots=f"{folder}/snapshots") as job:
            job.wait(timeout=120)

            day = job["hourly_impressions"]["ad-00"].sort_by("hour")  # one key: all its hours
            print("ad-00 per hour:", *day["impressions"].to_pylist())

            best = job.sql("select id, sum(impressions) from hourly_impressions group by id order by 2 desc limit 3")
            for advertisement, total in best.fetchall():
                print(f"{advertisement}: {total} impressions")

            rows = job.sql("select id, hour, impressions from hourly_impressions").to_arrow_table().to_pylist()
            live = {(row["id"], row["hour"]): row["impressions"] for row in rows}
        agree = live == expected
        print(f"{len(live)} hourly counts,", "all right" if agree else "WRONG")
        return 0 if agree else 1


if __name__ == "__main__":  # worker processes import this file
    sys.exit(main())
