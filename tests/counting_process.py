"""A job on a cluster of its own in a process of its own, for tests that take it apart: counts per customer from a folder of JSON lines.

It prints one line of JSON (where it is), and again for each line on its standard input; ``stop`` ends it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from flowstate.testing.tormentor import ProcessTree

KEYS = [f"customer-{each}" for each in range(40)]


class CountingProcess(ProcessTree):
    """Started, asked and killed from a test."""

    def __init__(self, folder: Path) -> None:
        super().__init__([sys.executable, str(Path(__file__)), str(folder)], folder / "log.txt", talks=True)
        try:
            self.place = self._place(self.hear())
        except BaseException:
            self.kill()
            raise

    def _place(self, line: str) -> dict[str, Any]:
        assert line, self.log.read_text()[-3000:]
        place: dict[str, Any] = json.loads(line)
        return place

    def where(self) -> dict[str, Any]:
        """``address``, ``scheduler``, and of every partition the process that hosts it in ``pids``."""
        self.place = self._place(self.ask("where"))
        return self.place


def append(folder: Path, rows: int, name: str = "log") -> None:
    """`rows` events, evenly over all customers."""
    lines = [f'{{"customer": "{KEYS[each % len(KEYS)]}", "amount": {each}}}\n' for each in range(rows)]
    with (folder / f"{name}.jsonl").open("a") as log:
        log.write("".join(lines))


def main() -> None:
    import pyarrow as pa
    from local_cluster import two_workers

    import flowstate as fs

    folder = sys.argv[1]
    schema = pa.schema({"customer": pa.string(), "amount": pa.int64()})
    events = fs.scan_files(f"{folder}/*.jsonl", schema=schema, follow=True)
    view = events.group_by("customer").agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")
    with two_workers() as client:
        job = fs.start(view, snapshots=f"{folder}/snapshots", every="300ms", client=client, name="counting")

        def where() -> None:
            pids = client.run(os.getpid) if all(client.scheduler_info()["workers"]) else {}
            partitions = job.status()["partitions"]
            place = {
                "address": job.address,
                "scheduler": client.scheduler.address,
                "pids": {number: pids.get(each["worker"]) for number, each in partitions.items()},
                "saved": [each["report"].get("snapshot", {}).get("version", 0) for each in partitions.values()],
                "rows": sum(each["report"].get("rows", 0) for each in partitions.values()),
            }
            print(json.dumps(place), flush=True)

        where()
        for line in sys.stdin:
            if line.strip() == "stop":
                job.stop()
                return
            where()


if __name__ == "__main__":
    main()
