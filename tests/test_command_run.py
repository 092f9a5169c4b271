"""``flowstate run``: a real command, whose processes are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest
from at_terminal import AtTerminal

import flowstate as fs
from flowstate.command.progress import CatchingUp, restoring

FLOW = """
    import os
    import pyarrow as pa
    import flowstate as fs

    SCHEMA = pa.schema({"k": pa.string(), "n": pa.int64()})

    def twice(batch):  # lives in this module alone: it has to reach the workers by value
        return batch.set_column(1, "n", pa.array([2 * n for n in batch.column("n").to_pylist()], pa.int64()))

    def flow(follow=os.environ.get("FOLLOW") == "yes"):
        rows = fs.scan_files(os.environ["ROWS"] + "/*.jsonl", schema=SCHEMA, follow=follow)
        return rows.map_batches(twice, SCHEMA).group_by("k").agg(total=fs.col("n").sum(), n=fs.len()).view("totals")

    nothing = 7
"""


class Command:
    """``flowstate run`` over the folder `place`, with what it says."""

    def __init__(self, place: Path, *arguments: str, follow: bool = True) -> None:
        self.place = place
        (place / "rows").mkdir(exist_ok=True)
        (place / "the_flow.py").write_text(textwrap.dedent(FLOW))
        environment = {**os.environ, "ROWS": str(place / "rows"), "FOLLOW": "yes" if follow else "no"}
        environment["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
        command = [sys.executable, "-m", "flowstate.command", "run", *arguments]
        self.process = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.spoken = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.spoken:
                self.lines.append(line.strip())
                self.spoken.notify_all()

    def hears(self, text: str, times: int = 1, timeout: float = 60) -> None:
        with self.spoken:
            heard = self.spoken.wait_for(lambda: sum(text in line for line in self.lines) >= times, timeout)
        assert heard, "\n".join(self.lines)

    def children(self, word: str) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in found if word in " ".join(each.cmdline())]

    def ends(self, code: int, timeout: float = 60) -> None:
        assert self.process.wait(timeout) == code, self.lines
        self.reader.join(10)
        assert not any("Traceback" in line for line in self.lines), self.lines

    def close(self) -> None:
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*arguments: str, follow: bool = True) -> Command:
        started.append(Command(tmp_path, *arguments, follow=follow))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        each.reader.join(10)
        each.close()


def write(place: Path, number: int, rows: int = 100) -> None:
    lines = [json.dumps({"k": f"k{number}-{each % 7}", "n": each}) for each in range(rows)]
    partial = place / "rows" / f"{number}.part"
    partial.write_text("\n".join(lines) + "\n")
    partial.rename(place / "rows" / f"{number}.jsonl")


def total(place: Path) -> tuple[int, int]:
    """Of what is saved: rows, and the sum over all keys."""
    with fs.open_snapshot(place / "snapshots") as saved:
        return saved.sql("select sum(n)::bigint, sum(total)::bigint from totals").fetchall()[0]


def saved_rows(place: Path, rows: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if total(place)[0] == rows:
                return
        except (fs.FlowstateError, duckdb.Error):  # not every partition has saved yet
            pass
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def test_finite_input_ends_by_itself_and_a_second_run_finds_nothing_new(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    (tmp_path / "rows").mkdir()
    write(tmp_path, 1)
    for _ in range(2):
        running = command("the_flow:flow", "--snapshots", "snapshots", "--every", "1s", follow=False)
        running.ends(0)
        assert total(tmp_path) == (100, 2 * sum(range(100)))


@pytest.mark.slow
def test_scheduler_killed_workers_killed_then_sigterm(tmp_path: Path, command: Callable[..., Command]) -> None:
    running = command("the_flow.py:flow", "--snapshots", "snapshots", "--every", "200ms", "--workers", "2")
    running.hears("is up")
    write(tmp_path, 1)
    saved_rows(tmp_path, 100)
    (scheduler,) = running.children(" scheduler ")
    scheduler.send_signal(signal.SIGKILL)
    running.hears("the scheduler process died (signal 9)")
    running.hears("is up", times=2)
    write(tmp_path, 2)
    saved_rows(tmp_path, 200)
    (workers,) = running.children(" worker --")
    workers.send_signal(signal.SIGKILL)
    running.hears("the process that keeps the workers died")
    write(tmp_path, 3)
    saved_rows(tmp_path, 300)
    everybody = psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGTERM)
    running.ends(0)
    assert total(tmp_path) == (300, 3 * 2 * sum(range(100)))
    assert not psutil.wait_procs(everybody, 10)[1]


def test_nothing_survives_a_killed_command_and_the_next_one_resumes(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    running = command("the_flow:flow", "--snapshots", "snapshots", "--every", "200ms")
    running.hears("is up")
    write(tmp_path, 1)
    saved_rows(tmp_path, 100)
    everybody = psutil.Process(running.process.pid).children(recursive=True)
    running.process.kill()
    running.process.wait()
    assert not psutil.wait_procs(everybody, 10)[1]
    again = command("the_flow:flow", "--snapshots", "snapshots", "--every", "200ms")
    again.hears("is up")
    write(tmp_path, 2)
    saved_rows(tmp_path, 200)
    again.process.send_signal(signal.SIGINT)
    again.ends(0)
    assert total(tmp_path) == (200, 2 * 2 * sum(range(100)))


@pytest.mark.slow
def test_a_second_command_is_refused_or_takes_over(tmp_path: Path, command: Callable[..., Command]) -> None:
    first = command("the_flow:flow", "--snapshots", "snapshots", "--every", "200ms")
    first.hears("is up")
    second = command("the_flow:flow", "--snapshots", "snapshots", "--every", "200ms")
    second.ends(2)
    assert any("takeover" in line for line in second.lines), second.lines
    third = command("the_flow:flow", "--snapshots", "snapshots", "--every", "200ms", "--takeover")
    third.hears("is up")
    first.ends(3)
    write(tmp_path, 1)
    saved_rows(tmp_path, 100)
    third.process.send_signal(signal.SIGTERM)
    third.ends(0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("the_flow:flo", "--snapshots", "s"), "did you mean 'flow'"),
        (("the_flow:nothing", "--snapshots", "s"), "this is no flow"),
        (("the_flaw:flow", "--snapshots", "s"), "no such module"),
        (("elsewhere.py:flow", "--snapshots", "s"), "no such file"),
        (("the_flow", "--snapshots", "s"), "module:name"),
        (("the_flow:flow", "--snapshots", "s", "--every", "soon"), "duration='soon'"),
        (("the_flow:flow",), "--snapshots"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    command: Callable[..., Command], arguments: tuple[str, ...], said: str
) -> None:
    running = command(*arguments)
    running.ends(2)
    assert any(said in line for line in running.lines), running.lines


@pytest.mark.parametrize("stage", ["starting the cluster", "is up"])
def test_control_c_at_a_terminal_leaves_nothing_behind(tmp_path: Path, stage: str) -> None:
    (tmp_path / "the_flow.py").write_text(textwrap.dedent(FLOW))
    place = {"ROWS": str(tmp_path / "rows"), "FOLLOW": "yes"}
    (tmp_path / "rows").mkdir()
    words = ["run", f"{tmp_path}/the_flow.py:flow", "--snapshots", str(tmp_path / "snapshots"), "--workers", "1"]
    with AtTerminal(*words, **place) as running:
        running.sees(stage, seconds=120)
        everybody = psutil.Process(running.child).children(recursive=True)
        running.presses("\x03")
        assert running.ends(60) == 0
        assert running.text().endswith("flowstate: stopped\n")
        assert "Traceback" not in running.text()
        assert not psutil.wait_procs(everybody, 10)[1]


def test_how_far_a_job_is_that_comes_up_and_catches_up() -> None:
    def status(lag: int, *states: str) -> dict[str, Any]:
        parts = {str(number): {"state": state, "report": {"rows": 10}} for number, state in enumerate(states)}
        return {"state": "running", "partitions": parts, "figures": {"lag": {"a": lag, "b": None}}}

    assert restoring(status(0, "live", "live")) is None
    coming = restoring(status(0, "live", "starting"))
    assert coming is not None
    assert " 50 % 1 of 2 partitions; 1 is starting" in coming
    first = status(0, "starting", "starting")
    for number, each in enumerate(first["partitions"].values()):
        each.update(epoch=1, report={"state": "loading"})
        coming = restoring(first)
        assert coming is not None
        assert "compiling kernels" in coming[:79], "to be read in 80 columns"
        assert ("0, 1 are compiling" in coming) == (number == 1)
    course = CatchingUp()
    assert course.told(status(1000, "live"), 0.0) is None, "nobody knows yet how long it takes"
    shown = [course.told(status(1000 - 10 * second, "live"), float(second)) for second in range(1, 100)]
    assert shown[0] is not None
    assert "1 % lag 990, 99 s left; 10 rows applied" in shown[0]
    assert shown[49] is not None
    assert " 50 % lag 500, 50 s left" in shown[49]
    assert shown[-1] is None, "a second's work is not worth a word"
    assert course.told(status(5, "live"), 200.0) is None
