"""Ctrl-C in the terminal of a program that has started a job: all its processes hear it, and the job still ends in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import flowstate as fs

SCRIPT = """
import sys
import pyarrow as pa
import flowstate as fs

folder = sys.argv[1]
events = fs.scan_files(f"{folder}/*.jsonl", schema=pa.schema({"key": pa.string(), "amount": pa.int64()}), follow=True)
totals = events.group_by("key").agg(total=fs.col("amount").sum()).view("totals")
with fs.start(totals, snapshots=f"{folder}/snapshots", every="1h") as job:
    while job.sql("select sum(total) from totals").fetchall() != [(4950,)]:
        pass
    print("applied", flush=True)
    while True:
        job.sql("select 1").fetchall()
"""


def test_an_interrupt_of_all_processes_ends_the_job_in_order_with_a_last_snapshot(tmp_path: Path) -> None:
    lines = [f'{{"key": "k{number % 7}", "amount": {number}}}\n' for number in range(100)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "applied\n"
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=25)
    finally:
        process.kill()
    assert told.count("Traceback") == 1, told  # the program's own
    assert "KeyboardInterrupt" in told
    assert "distributed" not in told.replace("site-packages/distributed", ""), told
    with fs.open_snapshot(tmp_path / "snapshots") as saved:
        assert saved.sql("select sum(total)::bigint from totals").fetchall() == [(4950,)]
