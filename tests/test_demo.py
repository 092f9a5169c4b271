"""`make demo` as a person sees it: live in a terminal, read from a second one, stopped, resumed, and checked at the end."""

from __future__ import annotations

import codecs
import importlib.util
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowstate.testing import billing

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo.py"


class Running:
    """A demo in a terminal of its own (its screen in `text`), or with plain pipes."""

    def __init__(self, *arguments: str, folder: Path, terminal: bool) -> None:
        command = [sys.executable, str(DEMO), *arguments]
        environment = {**os.environ, "TMPDIR": str(folder), "COLUMNS": "160", "LINES": "50", "TERM": "xterm-256color"}
        ours, theirs = pty.openpty() if terminal else os.pipe()
        if terminal:
            # The session's leader takes the terminal that it opens first as its own, so that Ctrl-C reaches all its processes.
            device = os.ttyname(theirs)
            command = ["sh", "-c", f'exec <{device} >{device} 2>&1; exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.screen, self.text = ours, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, pattern: str, timeout: float = 90) -> re.Match[str]:
        deadline = time.monotonic() + timeout
        while (found := re.search(pattern, self.text)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.text}"
            assert self._read(1.0), f"the demo ended without {pattern!r}:\n{self.text}"
        return found

    def _read(self, timeout: float) -> bool:
        if not select.select([self.screen], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.screen, 65_536)
        except OSError:  # how a terminal says that nobody writes to it any more
            return False
        self.text += self._decoder.decode(data).replace("\r\n", "\n")
        return bool(data)

    def processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def ended(self, timeout: float = 60) -> int:
        deadline = time.monotonic() + timeout
        while self._read(0.5):
            assert time.monotonic() < deadline, f"the demo does not end:\n{self.text}"
        return self.process.wait(timeout=max(1.0, deadline - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            for each in self.processes():
                each.kill()
            self.process.wait()
        os.close(self.screen)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def start(scratch: Path) -> Iterator[object]:
    running: list[Running] = []

    def start(*arguments: str, terminal: bool = False) -> Running:
        running.append(Running(*arguments, folder=scratch, terminal=terminal))
        return running[-1]

    yield start
    for each in running:
        each.close()


def in_second_terminal(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that live on; a moment is given to those that are just ending."""
    return psutil.wait_procs(processes, timeout=5)[1]


def test_a_year_ends_by_itself_with_every_invoice_even(start, scratch: Path) -> None:  # type: ignore[no-untyped-def]
    demo = start("--months", "12", "--seed", "2")
    demo.read_until(r"first live answer \d+\.\d s")
    processes = demo.processes()
    assert demo.ended() == 0, demo.text
    assert demo.text.count("9 invoices   900.00 EUR by customer   900.00 EUR by kind  even\n") == 11
    assert demo.text.count("0 invoices        0 EUR by customer        0 EUR by kind  no events, no invoices\n") == 1
    assert demo.text.endswith("every total is right\n")
    assert "Traceback" not in demo.text
    assert "\x1b" not in demo.text  # plain lines where there is no terminal
    assert gone(processes) == []
    assert list(scratch.iterdir()) == []


def test_live_in_a_terminal_read_from_a_second_one_and_stopped_by_ctrl_c(start, scratch: Path) -> None:  # type: ignore[no-untyped-def]
    demo = start(terminal=True)
    demo.read_until(r"first live answer")
    flight, sql = re.findall(r'^\S+ -c ".*"$', demo.text, re.MULTILINE)

    rows = re.findall(r"^(\w+) (19\S+ \S+) (19\S+ \S+) (\d+\.\d\d) (\d+)$", in_second_terminal(flight), re.MULTILINE)
    assert rows
    assert all(0 < Decimal(total) * 100 <= billing.MONTHLY_CENTS[customer] for customer, _, _, total, _ in rows)
    assert sum(int(events) for *_, events in rows) > 0

    table = in_second_terminal(sql)
    assert set(re.findall(r"│ ([A-Z]+) ", table)) <= set(billing.KINDS)
    assert re.search(r"│ (CALL|DATA|MISC|MESSAGE|PACK) +│ +\d+\.\d\d │ +\d+ │", table), table

    demo.read_until(r"monthly_subtotals[\s\S]*type_subtotals")
    before = time.monotonic()
    shown = set(re.findall(r"([\d,]+) events, ", demo.text))
    while len(set(re.findall(r"([\d,]+) events, ", demo.text)) - shown) < 8:
        assert demo._read(1.0)
        assert time.monotonic() < before + 4, "the screen shows less than two changes a second"

    processes = demo.processes()
    os.write(demo.screen, b"\x03")
    assert demo.ended() == 0
    assert "Traceback" not in demo.text
    assert "Error" not in demo.text
    assert gone(processes) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.slow  # four runs
def test_sigterm_while_it_runs_and_then_going_on_to_the_end(start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = str(tmp_path / "data")
    demo = start("--data", data, "--seed", "3")
    demo.read_until(r"\| [\d,]+ events\n")
    processes = demo.processes()
    demo.process.send_signal(signal.SIGTERM)
    assert demo.ended() == 0
    assert "Traceback" not in demo.text
    assert gone(processes) == []

    other = start("--data", data, "--seed", "4", "--months", "2")
    assert other.ended() == 1
    assert "error: the log holds other events" in other.text
    assert "Traceback" not in other.text

    demo = start("--data", data, "--seed", "3", "--months", "2")
    assert demo.ended() == 0, demo.text
    assert demo.text.count("  even\n") == 2

    demo = start("--data", data, "--seed", "3", "--months", "2")
    assert demo.ended() == 1
    assert "this run has ended" in demo.text


def test_ctrl_c_while_it_starts(start, scratch: Path) -> None:  # type: ignore[no-untyped-def]
    demo = start()
    deadline = time.monotonic() + 60
    while not (processes := demo.processes())[1:]:  # until the first worker process is there
        assert time.monotonic() < deadline
        demo._read(0.05)
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.ended() in (0, 130)
    assert gone(processes) == []
    assert list(scratch.iterdir()) == []


# The check at the end finds what is wrong.


@pytest.fixture
def invoices(tmp_path: Path) -> Path:
    """What a right run of seed 1 over two months leaves."""
    sent = list(billing.events(random.Random(1), months=2))
    for sink, key, totals in (
        ("invoices", "customer", billing.customer_totals(sent)),
        ("type_totals", "kind", billing.kind_totals(sent)),
    ):
        for month in {start for _, start in totals}:
            rows = [(name, total) for (name, start), total in totals.items() if start == month]
            target = tmp_path / sink / f"month={month:%Y-%m-%d}" / "p0000.parquet"
            target.parent.mkdir(parents=True)
            _write(target, key, month + timedelta(days=30), rows)
    return tmp_path


def _write(target: Path, key: str, end: datetime, rows: list[tuple[str, Decimal]]) -> None:
    table = {
        key: [name for name, _ in rows],
        "month_end": pa.array([end] * len(rows), pa.timestamp("ms", "UTC")),
        "total": pa.array([total for _, total in rows], pa.decimal128(38, 2)),
    }
    pq.write_table(pa.table(table), target)


def check(folder: Path) -> tuple[bool, list[str]]:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    said: list[str] = []
    return demo.check(folder, 1, 2, said.append), said


def test_the_check_passes_what_is_right(invoices: Path) -> None:
    right, said = check(invoices)
    assert right, said
    assert said[-1] == "every total is right"


def test_the_check_finds_a_missing_invoice(invoices: Path) -> None:
    path = sorted(invoices.glob("invoices/*/*.parquet"))[1]
    pq.write_table(pq.read_table(path)[1:], path)
    assert not check(invoices)[0]


def test_the_check_finds_an_invoice_that_is_there_twice(invoices: Path) -> None:
    path = sorted(invoices.glob("invoices/*/*.parquet"))[1]
    pq.write_table(pq.read_table(path)[:1], path.with_name("p0001.parquet"))
    assert not check(invoices)[0]


def test_the_check_finds_cents_that_moved_from_one_kind_to_another(invoices: Path) -> None:
    path = sorted(invoices.glob("type_totals/*/*.parquet"))[0]
    rows = pq.read_table(path, partitioning=None).to_pylist()
    moved = [(row["kind"], row["total"] + cents) for row, cents in zip(rows, [1, -1, 0, 0, 0], strict=True)]
    _write(path, "kind", rows[0]["month_end"], moved)
    right, said = check(invoices)
    assert not right
    assert [line.split()[-1] for line in said[:2]] == ["even", "even"]  # the sums alone would not have shown it


def test_the_check_finds_that_there_are_no_files_at_all(invoices: Path) -> None:
    shutil.rmtree(invoices / "invoices")
    assert not check(invoices)[0]
