"""A job in worker processes for the tests of the command line, in a process of its own: keys of several types, exact amounts, months.

It prints the Flight address of a worker when everything of the log is applied and saved, and lives until its standard input ends.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from flowstate.testing.tormentor import ProcessTree

LOG = [
    '{"customer": "00123", "code": 7, "amount": "12.50", "at": "2026-01-03T10:00:00Z"}',
    '{"customer": "00123", "code": -7, "amount": "0.05", "at": "2026-02-01T10:00:00Z"}',
    '{"customer": "123", "code": 8, "amount": "1000000000.01", "at": "2026-01-04T10:00:00Z"}',
    '{"customer": "\\u001b[31mred", "code": 9, "amount": "1.00", "at": "2026-01-05T10:00:00Z"}',
]


class AskedProcess(ProcessTree):
    """Started and killed from a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshots = str(folder / "snapshots")
        self.append(*LOG)
        super().__init__([sys.executable, str(Path(__file__)), str(folder)], folder / "errors.txt", talks=True)
        self.address = self.hear()
        if not self.address:
            self.kill()
        assert self.address, self.log.read_text()[-3000:]

    def append(self, *lines: str) -> None:
        with (self.folder / "log.jsonl").open("a") as log:
            log.write("".join(line + "\n" for line in lines))


def main() -> None:
    import pyarrow as pa
    from local_cluster import two_workers

    import flowstate as fs

    folder = sys.argv[1]
    schema = pa.schema(
        {
            "customer": pa.string(),
            "code": pa.int64(),
            "amount": pa.decimal128(12, 2),
            "at": pa.timestamp("ms", "UTC"),
        }
    )
    events = fs.scan_files(f"{folder}/log.jsonl", schema=schema, event_time="at", lateness="1h", follow=True)
    total = {"total": fs.col("amount").sum(), "events": fs.len()}
    months = events.group_by("customer", month=fs.window("at", every="1mo", grace="3d")).agg(**total).view("months")
    codes = events.group_by("code").agg(**total).view("codes")
    with two_workers() as client:
        job = fs.start(
            months, codes, snapshots=f"{folder}/snapshots", every="1s", keep=10_000, client=client, name="asked"
        )
        pause = threading.Event()
        while sum(job["codes"].to_table()["events"].to_pylist()) < len(LOG) or not _saved(f"{folder}/snapshots"):
            pause.wait(0.05)
        print(job.address, flush=True)
        sys.stdin.read()
        job.stop()


def _saved(snapshots: str) -> bool:
    import flowstate as fs

    try:
        with fs.open_snapshot(snapshots) as saved:
            return saved["codes"].to_table().num_rows == len(LOG)
    except fs.FlowstateError:
        return False


if __name__ == "__main__":
    main()
