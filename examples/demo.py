"""The billing job, live: a growing log, two worker processes, subtotals per customer and per kind that change as you watch.

Without --months it runs until Ctrl-C, 30 event days in about 10 seconds. With --months it generates as fast as it can, ends by itself
and checks every invoice. `make demo` runs it.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import dask
import duckdb
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

import flowstate as fs
from flowstate.errors import FlowstateError, Unavailable
from flowstate.testing import billing

VIEWS = {"monthly_subtotals": "customer", "type_subtotals": "kind"}
SINKS = {"invoices": "customer", "type_totals": "kind"}


def flow(folder: Path) -> list[Any]:
    """The two views and their final rows as Parquet."""
    events = fs.scan_files(
        f"{folder}/log/*.jsonl", format="json", schema=billing.SCHEMA, event_time="at", lateness="12h", follow=True
    )
    nodes: list[Any] = []
    for (view, key), sink in zip(VIEWS.items(), SINKS, strict=True):
        subtotals = (
            events.group_by(key, month=fs.window("at", every="30d", grace="3d"))
            .agg(total=fs.col("amount").sum(), events=fs.len())
            .view(view)
        )
        nodes += [subtotals, subtotals.final().sink_parquet(f"{folder}/{sink}/", partition_by="month")]
    return nodes


class Generator(threading.Thread):
    """Appends the events of a seed to the log."""

    def __init__(self, log: billing.FileLog, seed: int, months: int | None) -> None:
        super().__init__(name="billing-generator", daemon=True)
        self.stopping = threading.Event()
        self.failure: Exception | None = None
        self._log, self._seed, self._months = log, seed, months

    def run(self) -> None:
        pace = billing.LIVE_EVENTS_PER_SECOND if self._months is None else None
        try:
            sent = billing.events(random.Random(self._seed), months=self._months)
            self._log.append(sent, events_per_second=pace, stop=self.stopping)
        except Exception as error:
            self.failure = error

    def stop(self) -> None:
        self.stopping.set()
        self.join(timeout=5)


class Interruption:
    """Ctrl-C and SIGTERM: while the job is starting they break in, then they only ask; a second one always breaks in."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.may_break_in = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        again = self.asked.is_set()
        self.asked.set()
        if self.may_break_in or again:
            raise KeyboardInterrupt


def live_totals(job: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of both views, newest month last."""
    return {
        view: job.sql(f"select {key} as key, month, total, events from {view}").to_arrow_table().to_pylist()
        for view, key in VIEWS.items()
    }


class Screen:
    """What is shown of the live totals: two tables in a terminal, else a plain line per second."""

    def __init__(self, console: Console, job: Any, began: float) -> None:
        self.console, self.job, self.began = console, job, began
        self.live = Live(console=console, refresh_per_second=8, transient=False) if console.is_terminal else None
        self._answered = False
        self._printed = 0.0
        self._recent: list[tuple[float, int]] = []

    def __enter__(self) -> Screen:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, note: str = "", *, last: bool = False) -> None:
        """Ask both views and show what they say."""
        try:
            views = live_totals(self.job)
        except Unavailable as error:
            views, note = {view: [] for view in VIEWS}, f"waiting: {error.message}"
        now = time.monotonic()
        applied = sum(row["events"] for row in views["monthly_subtotals"])
        self._recent = [each for each in self._recent if each[0] > now - 3] + [(now, applied)]
        if views["monthly_subtotals"] and not self._answered:
            self._answered = True
            self.console.print(f"first live answer {now - self.began:.1f} s after the start")
        if self.live is not None:
            self.live.update(self._tables(views, note))
        elif views["monthly_subtotals"] and (last or now - self._printed >= 1):
            self._printed = now
            self.console.print(self._line(views), soft_wrap=True)

    def _line(self, views: dict[str, list[dict[str, Any]]]) -> str:
        newest = max(row["month"] for row in views["monthly_subtotals"])
        parts = [f"{newest:%Y-%m-%d}"]
        for rows in views.values():
            current = {row["key"]: row["total"] for row in rows if row["month"] == newest}
            parts.append(" ".join(f"{key} {total}" for key, total in sorted(current.items())))
            parts.append(f"= {sum(current.values())} EUR")
        return " | ".join([*parts, f"{self._recent[-1][1]:,} events"])

    def _tables(self, views: dict[str, list[dict[str, Any]]], note: str) -> Group:
        (since, before), (now, applied) = self._recent[0], self._recent[-1]
        rate = (applied - before) / (now - since) if now > since else 0.0
        tables = [self._table(view, rows) for view, rows in views.items()]
        foot = note or "Ctrl-C stops it"
        return Group(Columns(tables, padding=(0, 3)), Text(f"{applied:,} events, {rate:,.0f} per second. {foot}"))

    def _table(self, view: str, rows: list[dict[str, Any]]) -> Table:
        months = sorted({row["month"] for row in rows})[-3:]
        cells = {(row["key"], row["month"]): row["total"] for row in rows}
        table = Table(title=view, show_footer=True)
        table.add_column(VIEWS[view], "all")
        for month in months:
            total = sum(cell for (_, start), cell in cells.items() if start == month)
            table.add_column(f"{month:%Y-%m-%d}", f"{total:,.2f}", justify="right")
        for key in billing.MONTHLY_CENTS if VIEWS[view] == "customer" else billing.KINDS:
            table.add_row(key, *(f"{cells[key, month]:,.2f}" if (key, month) in cells else "" for month in months))
        return table


def second_terminal(address: str) -> str:
    """Two commands that read the running job from anywhere on this machine."""
    plain = (
        f"from pyarrow import flight as f; c = f.connect('{address}'); "
        "i = c.get_flight_info(f.FlightDescriptor.for_path('monthly_subtotals')); "
        "r = [r for e in i.endpoints for r in f.connect(e.locations[0]).do_get(e.ticket).read_all().to_pylist()]; "
        "print(*(' '.join(map(str, each.values())) for each in r), sep='\\n')"
    )
    sql = (
        f"import flowstate as fs; fs.connect('{address}')"
        ".sql('select kind, sum(total) as total, sum(events) as events from type_subtotals group by all order by all').show()"
    )
    return f"""
Flight: {address}
In a second terminal, while this runs:

# Arrow Flight, nothing of flowstate
{sys.executable} -c "{plain}"

# DuckDB SQL
{sys.executable} -c "{sql}"
"""


def read_invoices(folder: Path, key: str) -> list[tuple[str, datetime, Decimal]]:
    """(key, start of month, total) of every row of the Parquet files."""
    files = [str(path) for path in sorted(folder.glob("**/*.parquet"))]
    if not files:
        return []
    query = f"select {key}, epoch_ms(month_end), total from read_parquet(?, hive_partitioning = false)"
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return [
        (name, epoch + timedelta(milliseconds=end - billing.MONTH), total)
        for name, end, total in duckdb.execute(query, [files]).fetchall()
    ]


def check(folder: Path, seed: int, months: int, say: Callable[[str], None]) -> bool:
    """Print the invoices per month, and whether they are exactly what was generated."""
    sent = list(billing.events(random.Random(seed), months=months))
    generated = {"invoices": billing.customer_totals(sent), "type_totals": billing.kind_totals(sent)}
    found = {sink: read_invoices(folder / sink, key) for sink, key in SINKS.items()}
    right = True
    for number in range(months):
        month = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=30 * number)
        invoices = [(name, total) for name, start, total in found["invoices"] if start == month]
        sums = [sum((total for _, start, total in rows if start == month), Decimal(0)) for rows in found.values()]
        if number % 12 == 11:
            good, verdict = not invoices and not any(sums), "no events, no invoices"
        else:
            even = sorted((name, Decimal(cents) / 100) for name, cents in billing.MONTHLY_CENTS.items())
            good, verdict = sorted(invoices) == even and sums == [Decimal("900.00")] * 2, "even"
        right &= good
        say(
            f"{month:%Y-%m-%d}  {len(invoices)} invoices  {sums[0]:>7} EUR by customer  {sums[1]:>7} EUR by kind  "
            + (verdict if good else f"WRONG: {invoices}")
        )
    for sink, expected in generated.items():
        rows = [((name, month), total) for name, month, total in found[sink]]
        if sorted(rows) != sorted(expected.items()):
            right = False
            say(f"WRONG: {sink} has {len(rows)} rows, generated were {len(expected)} totals")
            for row in sorted(set(rows) ^ set(expected.items()))[:5]:
                say(f"  {'found' if row in rows else 'missing'}: {row}")
    say("every total is right" if right else "totals are WRONG")
    return right


def run(arguments: argparse.Namespace, folder: Path, interruption: Interruption, began: float) -> int:
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    finished = folder / "finished"
    if finished.exists():
        say(f"this run has ended, its invoices are in {folder}; give another DATA=")
        return 1
    log = billing.FileLog(folder / "log", splits=2)
    log.begin(billing.events(random.Random(arguments.seed), months=arguments.months))
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="flowstate-demo-workers-"))
        stack.enter_context(dask.config.set({"temporary-directory": scratch}))
        with console.status("starting; the first time on a machine this compiles kernels, for about 20 s"):
            job = stack.enter_context(fs.start(*flow(folder), snapshots=f"{folder}/snapshots/", every="2s"))
        generator = Generator(log, arguments.seed, arguments.months)
        stack.callback(generator.stop)
        interruption.may_break_in = False
        say(second_terminal(job.address))
        generator.start()
        with Screen(console, job, began) as screen:
            while not interruption.asked.is_set() and generator.is_alive():
                screen.update()
                interruption.asked.wait(0.2)
            if generator.failure is not None:
                raise generator.failure
            if interruption.asked.is_set():
                return 0
            screen.update("the log has ended; closing the last months", last=True)
            interruption.may_break_in = True
            job.drain()
            screen.update("all months are closed", last=True)
        finished.touch()
        say("")
        return 0 if check(folder, arguments.seed, arguments.months, say) else 1


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--months", type=int, help="generate this many months as fast as possible, check them and end")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same events")
    parser.add_argument("--data", type=Path, help="keep everything in this folder, and go on from what is there")
    arguments = parser.parse_args()
    if arguments.months is not None and arguments.months < 1:
        parser.error("--months is at least 1")
    interruption = Interruption()
    try:
        with ExitStack() as stack:
            folder = arguments.data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowstate-demo-")))
            return run(arguments, folder.resolve(), interruption, began)
    except KeyboardInterrupt:
        return 130
    except FlowstateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
