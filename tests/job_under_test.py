"""Starting, asking and killing `billing_process.py`, and what its totals must be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow.dataset as ds
from waiting import until

import flowstate as fs
from flowstate.testing import billing

PROGRAM = Path(__file__).with_name("billing_process.py")
Totals = dict[tuple[str, datetime], Decimal]


#: Those that nobody has stopped or killed yet: a test that fails must leave nothing behind that troubles the next one.
RUNNING: list[BillingProcess] = []


class BillingProcess:
    """One run of the job, in a session of its own so that all its processes can be killed at once."""

    def __init__(self, source: str, place: str, folder: Path, partitions: int = 2) -> None:
        self.log = (folder / "log.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), source, place, str(folder), str(partitions)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )
        self.group = self.process.pid
        RUNNING.append(self)
        answer = self.hear()
        assert answer.startswith("up "), answer + (folder / "log.txt").read_text()
        self.address = answer.split()[1]

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.hear()

    def members(self) -> list[int]:
        """Every living process of this run."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(fields[3]) == self.group and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """All processes at once, with SIGKILL."""
        for pid in self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(10)
        self.close()

    def stop(self) -> None:
        assert self.ask("stop") == "stopped"
        assert self.process.wait(20) == 0
        self.close()
        # multiprocessing's own tracker goes when its pipe does
        until(lambda: not self.members(), 10, says=self.members)

    def close(self) -> None:
        RUNNING.remove(self)
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None:
                stream.close()


def invoices(folder: Path, view: str) -> list[tuple[str, datetime, Decimal]]:
    """The published rows, as they are, duplicates and all."""
    key = {"monthly_subtotals": "customer", "type_subtotals": "kind"}[view]
    files = [str(path) for path in (folder / view).glob("month=*/*.parquet")]
    rows = []
    for path in files:
        month = datetime.fromisoformat(path.split("month=")[1].split("/")[0]).replace(tzinfo=UTC)
        rows += [(row[key], month, row["total"]) for row in ds.dataset(path).to_table().to_pylist()]
    return sorted(rows)


def view_totals(reads: fs.Job | fs.Snapshot, view: str) -> Totals:
    key = {"monthly_subtotals": "customer", "type_subtotals": "kind"}[view]
    rows = reads.sql(f"select {key} as key, month, total from {view}").to_arrow_table().to_pylist()
    assert len({(row["key"], row["month"]) for row in rows}) == len(rows)
    return {(row["key"], row["month"]): row["total"] for row in rows}


def check(folder: Path, sent: Iterable[billing.BillableEvent], *, drained: bool) -> None:
    """Every saved total, and every invoice, is exactly what was sent; nothing was late or unreadable."""
    events = list(sent)
    expected = {"monthly_subtotals": billing.customer_totals(events), "type_subtotals": billing.kind_totals(events)}
    with fs.open_snapshot(folder / "snapshots") as saved:
        for view, totals in expected.items():
            assert view_totals(saved, view) == totals
            assert saved.sql(f"select count(*) from {view}_late").fetchall() == [(0,)]
        assert saved.sql("select count(*) from dead_letters").fetchall() == [(0,)]
    if drained:
        for view, totals in expected.items():
            assert invoices(folder, view) == sorted((key, month, total) for (key, month), total in totals.items())
