"""The billing job, tormented: every failure of the ancestors' demonstration and those that it did not dare, as one table.

    make scenarios            all, 4 to 8 minutes; the table goes to docs/scenarios.md too
    python -m benchmarks.scenarios [NAME ...] [--list] [--write docs/scenarios.md]

Each scenario is a process of its own with a Dask cluster of its own: scheduler, workers, ``flowstate run``, a real Kafka broker, a
producer, and a prober that asks every customer without end. Nothing is simulated. Those that need root say so where it is not given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flowstate.testing.servers import kafka
from flowstate.testing.servers.kafka import KafkaBroker
from flowstate.testing.tormentor import ProcessTree, sweep

ROOT = Path(__file__).resolve().parent.parent

INTRODUCTION = """Every scenario runs real processes: a Dask scheduler, workers, `flowstate run`, a Kafka broker, a producer of billable
events, and a prober that asks each of nine customers (and SQL over all of them) without end, also while nothing is there. A *gap* is
the longest time between two answers that follow on each other, for any one key; *live* gaps count only answers from the running job.
The *age* is how old the state was that the oldest answer showed. Invoices are exact when each customer and month has one row with the
total that was sent."""


@dataclass
class Row:
    """One line of the table; times in milliseconds, ages in seconds."""

    name: str
    killed: str
    surviving_keys: int = 0
    affected_keys: int = 0
    gap_surviving: float | None = None
    gap_affected: float | None = None
    live_surviving: float | None = None
    live_affected: float | None = None
    oldest: float = 0.0
    failed_surviving: int = 0
    failed_affected: int = 0
    exact: bool = False
    invoices: int = 0
    duplicates: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    error: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    parser.add_argument("--keep", action="store_true", help="keep the logs of scenarios that fail")
    parser.add_argument("--inside", nargs=3, metavar=("FOLDER", "BOOTSTRAP", "RESULT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    from benchmarks.torments import TORMENTS

    if options.list:
        for name, torment in TORMENTS.items():
            print(f"  {name:22} {torment.killed}")
        return
    unknown = [each for each in options.names if each not in TORMENTS]
    if unknown:
        sys.exit(f"there is no scenario {unknown[0]!r}; there is {', '.join(TORMENTS)}")
    if options.inside:
        inside(options.names[0], *options.inside)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in order: nothing that was started stays
    if reason := kafka.missing():
        sys.exit(f"scenarios need a real broker: {reason}")
    for each in sweep():
        print(f"swept what an earlier run left: {each}")
    began, rows, load = time.monotonic(), list[Row](), os.getloadavg()[2]
    with tempfile.TemporaryDirectory(prefix="flowstate-scenarios-") as place:
        broker = KafkaBroker(Path(place) / "kafka")
        try:
            broker.format()
            broker.start()
            for name in options.names or TORMENTS:
                row = run_one(name, Path(place), broker.bootstrap, options.keep)
                rows.append(row)
                print(line(row), flush=True)
        finally:
            broker.kill()
    text = table(rows, time.monotonic() - began, max(load, os.getloadavg()[2]))
    print(text)
    if options.write:
        options.write.write_text(text)
    sys.exit(any(row.error or not (row.exact or row.skipped) for row in rows))


def run_one(name: str, place: Path, bootstrap: str, keep: bool) -> Row:
    """In a process of its own, which is given up after some minutes."""
    from benchmarks.torments import TORMENTS

    folder, result = place / name, place / f"{name}.json"
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.scenarios", name, "--inside", str(folder), bootstrap, str(result)]
    paths = [str(ROOT), *(each for each in sys.path if each)]
    environment = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    with ProcessTree(command, folder / "scenario.log", environment=environment) as tree:
        try:
            problem = f"ended with {tree.process.wait(300)}"
        except subprocess.TimeoutExpired:
            problem = "not at its end after 300 s"
    sweep()
    if result.exists():
        row = Row(**json.loads(result.read_text()))
    else:
        row = Row(name, TORMENTS[name].killed, error=problem)
    if row.error:
        for path in [folder / "scenario.log", *sorted((folder / "logs").glob("*.log"))]:
            print(f"---- {name}: {path.name}\n{path.read_text(errors='replace')[-2500:]}", file=sys.stderr)
        if keep:
            print(f"---- kept: {folder.rename(Path(tempfile.mkdtemp()) / name)}", file=sys.stderr)
    return row


def inside(name: str, folder: str, bootstrap: str, result: str) -> None:
    from benchmarks.torments import TORMENTS

    torment = TORMENTS[name]
    row = Row(name, torment.killed)
    if reason := torment.missing():
        row.skipped = reason
    else:
        try:
            with ExitStack() as stack:
                row = torment(Path(folder), bootstrap, row, stack)
        except BaseException as error:
            row.error = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            traceback.print_exc()
    Path(result).write_text(json.dumps(asdict(row)))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.0f}"


def line(row: Row) -> str:
    if row.skipped:
        return f"{row.name:20} skipped: {row.skipped}"
    if row.error:
        return f"{row.name:20} FAILED: {row.error}"
    return (
        f"{row.name:20} surviving {_ms(row.gap_surviving)} ms, affected {_ms(row.gap_affected)} ms"
        f" (live again {_ms(row.live_affected)} ms), oldest {row.oldest:.1f} s,"
        f" invoices {'exact' if row.exact else 'WRONG'}, {row.duplicates} twice, {row.lost} lost; {'; '.join(row.notes)}"
    )


def table(rows: list[Row], seconds: float, load: float) -> str:
    """The table in Markdown, with what it was measured on. `load`: of the machine, over a quarter of an hour."""
    names = ("distributed", "pyarrow", "duckdb", "confluent-kafka", "numba")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    out = [
        "# Scenarios: what readers saw, and whether the invoices are right",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores (load {load:.0f}), Python"
        f" {platform.python_version()}, {versions}, Kafka {kafka.VERSION}; {seconds / 60:.1f} minutes. `make scenarios` makes it.",
        "",
        *INTRODUCTION.splitlines(),
        "",
        "| scenario | what was done | keys that survive: gap ms | without a live answer ms | failed | keys affected: gap ms"
        " | without a live answer ms | failed | oldest age s | invoices | exact | duplicates | lost |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.skipped or row.error:
            why = f"skipped: {row.skipped}" if row.skipped else f"FAILED: {row.error}"
            out.append(f"| {row.name} | {row.killed} | {why} |" + " |" * 10)
            continue
        cells = [
            row.name, row.killed,
            _ms(row.gap_surviving), _ms(row.live_surviving), str(row.failed_surviving) if row.surviving_keys else "-",
            _ms(row.gap_affected), _ms(row.live_affected), str(row.failed_affected) if row.affected_keys else "-",
            f"{row.oldest:.1f}", str(row.invoices), "yes" if row.exact else "NO", str(row.duplicates), str(row.lost),
        ]  # fmt: skip
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "What else was seen:", ""]
    out += [f"* **{row.name}**: {'; '.join(row.notes)}." for row in rows if row.notes]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    main()
