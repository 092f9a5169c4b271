"""The program that shows what flowstate is, as it stands in the design, against a real broker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kafka_broker import KafkaBroker

PROGRAM = """
import flowstate as fs, pyarrow as pa

events = fs.scan_kafka(
    "billable-events", bootstrap="localhost:9092", format="json",
    schema=pa.schema({"customer": pa.string(), "kind": pa.string(),
                      "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")}),
    event_time="at", lateness="12h")
subtotals = (events.group_by("customer", month=fs.window("at", every="1mo", grace="3d"))
                   .agg(total=fs.col("amount").sum(), events=fs.len())
                   .view("monthly_subtotals"))
invoices = subtotals.final().sink_parquet("invoices/", partition_by="month")

job = fs.start(subtotals, invoices, snapshots="snapshots/", every="10s")
while sum(job["monthly_subtotals"].to_table()["events"].to_pylist()) < 4:
    pass

print(job["monthly_subtotals"]["anna"].to_pylist())
print(sorted(job.sql("select month, sum(total) from monthly_subtotals group by all").fetchall()))
now = job.snapshot(); print(now.sql("select count(*) from monthly_subtotals").fetchall(), now["monthly_subtotals"]["anna"].num_rows)
job.drain()
job.stop()
print(fs.open_snapshot("snapshots/").sql("select sum(total) from monthly_subtotals").fetchall())
"""


@pytest.mark.kafka
def test_the_first_program_runs_as_written(kafka: KafkaBroker, tmp_path: Path) -> None:
    kafka.create_topic("billable-events", partitions=2)
    events = [
        ("anna", "1.10", "2024-01-31T23:59:59.999Z"),
        ("anna", "2", "2024-02-01T00:00:00Z"),
        ("bob", "3.33", "2024-02-02T00:00:00Z"),
    ]
    lines = [f'{{"customer":"{who}","kind":"CALL","amount":{much},"at":"{at}"}}'.encode() for who, much, at in events]
    kafka.produce("billable-events", lines, 0)
    kafka.produce(
        "billable-events", [b'{"customer":"carl","kind":"CALL","amount":0.01,"at":"2024-02-03T00:00:00.5Z"}'], 1
    )
    (tmp_path / "program.py").write_text(PROGRAM.replace("localhost:9092", kafka.bootstrap))
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines_said = done.stdout.splitlines()
    assert "Decimal('1.10')" in lines_said[0]
    assert "Decimal('2.00')" in lines_said[0]
    assert "Decimal('5.34')" in lines_said[1]
    assert lines_said[2:] == ["[(4,)] 2", "[(Decimal('6.44'),)]"]
    assert sorted(path.name for path in (tmp_path / "invoices").iterdir()) == ["month=2024-01-01", "month=2024-02-01"]
