"""Processes that are killed, stopped, held or cut off: nothing is lost or counted twice, nobody answers from the past.

Every test knows exactly what was sent and reads exactly that back. `pytest -s` shows how long it took.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from dask_processes import answering, dask_processes, pids
from distributed import Client
from pyarrow import flight
from waiting import until

import flowstate as fs
from flowstate_flight.client import FlightReader
from flowstate_flight.ticket import Ticket

SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64(), "at": pa.timestamp("ms", "UTC")})
CUSTOMERS = [f"c{number}" for number in range(12)]


class Log:
    """Two files that grow, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent = folder, 0
        for number in range(2):
            (folder / f"log{number}.jsonl").touch()

    def append(self, rows: int) -> None:
        for number in range(2):
            ending = f'","amount":1,"at":"2024-01-0{number + 1}T00:00:00Z"}}\n'
            lines = [
                '{"customer":"' + CUSTOMERS[each % len(CUSTOMERS)] + ending
                for each in range(self.sent, self.sent + rows)
            ]
            with (self.folder / f"log{number}.jsonl").open("a") as file:
                file.write("".join(lines))
        self.sent += rows

    def flow(self) -> Any:
        source = fs.scan_files(self.folder / "log*.jsonl", schema=SCHEMA, event_time="at", follow=True)
        return source.group_by("customer").agg(rows=fs.len(), total=fs.col("amount").sum()).view("totals")

    @property
    def expected(self) -> int:
        return 2 * self.sent


def counted(job: fs.Job) -> int:
    return sum(job.to_table("totals")["rows"].to_pylist())


def partition(job: fs.Job, number: int) -> dict[str, Any]:
    return dict(job.status()["partitions"][str(number)])


@contextlib.contextmanager
def counting(client: Client, folder: Path, rows: int) -> Iterator[tuple[Log, fs.Job]]:
    """A job with one partition on each of two workers, which has counted `rows` of each file."""
    log = Log(folder)
    log.append(rows)
    until(lambda: answering(client) == 2)
    with fs.start(log.flow(), snapshots=folder / "snapshots", every="300ms", client=client) as job:
        assert len({each["worker"] for each in job.status()["partitions"].values()}) == 2
        until(lambda: counted(job) == log.expected)
        yield log, job


def live_again(job: fs.Job, number: int, epoch: int) -> bool:
    found = partition(job, number)
    return found["state"] == "live" and found["epoch"] > epoch


class Figures:
    """When what happened to a partition: `gone` when the supervisor knew, `live` when its next incarnation served, `rows` when rows that
    were sent right after the blow were counted by all."""

    def __init__(self, job: fs.Job, log: Log, number: int, blow: Any) -> None:
        before = partition(job, number)
        other = partition(job, 1 - number)
        began = time.monotonic()
        blow(before["worker"])
        log.append(300)
        until(lambda: partition(job, number)["worker"] != before["worker"], pause=0.002)
        self.gone = time.monotonic() - began
        until(lambda: live_again(job, number, before["epoch"]), pause=0.002)
        self.live = time.monotonic() - began
        until(lambda: counted(job) == log.expected, pause=0.01)
        self.rows = time.monotonic() - began
        assert partition(job, 1 - number)["epoch"] == other["epoch"]  # the other one went on as it was
        assert sum(job.to_table("totals")["total"].to_pylist()) == log.expected

    def __str__(self) -> str:
        return f"gone after {self.gone:.2f} s, live after {self.live:.2f} s, all rows after {self.rows:.2f} s"


def test_a_killed_worker(client: Client, tmp_path: Path) -> None:
    with counting(client, tmp_path, 1000) as (log, job):
        processes = pids(client)
        figures = Figures(job, log, 0, lambda worker: os.kill(processes[worker], signal.SIGKILL))
        print("killed:", figures)
        assert figures.gone < 2.0 and figures.rows < 15.0


def test_a_stopped_worker_is_ended_by_its_nanny_and_another_comes(client: Client, tmp_path: Path) -> None:
    with counting(client, tmp_path, 1000) as (log, job):
        processes = pids(client)
        figures = Figures(job, log, 0, lambda worker: os.kill(processes[worker], signal.SIGSTOP))
        print("stopped:", figures)
        assert 1.5 < figures.gone < 8.0
        until(lambda: len(job.status()["workers"]) == 2)  # a new process, which would be given partitions
        assert set(pids(client).values()) - set(processes.values())


def run_there(client: Client, worker: str, what: Any, *arguments: Any) -> threading.Thread:
    """Run something on a worker's event loop; whether it ever answers is not waited for."""

    def run() -> None:
        with contextlib.suppress(Exception):
            client.run(what, *arguments, workers=[worker])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def wedge(seconds: float) -> None:
    """C code that holds the interpreter: no Python thread of the process runs meanwhile."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def test_a_worker_whose_interpreter_is_held(client: Client, tmp_path: Path) -> None:
    with counting(client, tmp_path, 1000) as (log, job):
        figures = Figures(job, log, 0, lambda worker: run_there(client, worker, wedge, 10.0))
        print("held:", figures)
        assert figures.live < 12.0


def test_a_worker_whose_event_loop_is_busy_serves_on(client: Client, tmp_path: Path) -> None:
    """It does not report, and answers pings: its lease is renewed by them, and its partitions stay where they are."""
    with counting(client, tmp_path, 100) as (log, job):
        before = {number: (partition(job, number)["worker"], partition(job, number)["epoch"]) for number in (0, 1)}
        sleeping, answers = run_there(client, before[0][0], time.sleep, 5.0), 0
        with FlightReader(lambda: job._reader.directory(), "totals", patience=0.3) as reader:
            while sleeping.is_alive():
                log.append(1)
                try:
                    until(lambda: sum(reader.scan("totals")["rows"].to_pylist()) == log.expected)
                except fs.Unavailable:
                    continue  # on a starved machine a ping may come late
                answers += 1
        after = {number: (partition(job, number)["worker"], partition(job, number)["epoch"]) for number in (0, 1)}
        print("answered:", answers)
        assert after == before and answers > 1


def ask(location: str, ticket: Ticket) -> pa.Table | str:
    """One partition by plain Flight, at the address where it was."""
    try:
        with flight.connect(location) as connection:
            return connection.do_get(flight.Ticket(ticket.to_bytes()), flight.FlightCallOptions(timeout=2)).read_all()
    except (flight.FlightError, pa.ArrowException) as error:
        return str(error)


def test_a_zombie_answers_nothing_and_goes(tmp_path: Path) -> None:
    """A worker without a nanny, stopped until others have taken over, goes on. Nothing that it answers then may be called live."""
    with dask_processes(tmp_path / "dask") as (_, client), counting(client, tmp_path, 500) as (log, job):
        place = job._reader.directory().partitions[0]
        zombie = pids(client)[partition(job, 0)["worker"]]
        figures = Figures(job, log, 0, lambda worker: os.kill(zombie, signal.SIGSTOP))
        print("stopped, no nanny:", figures)
        ticket = Ticket("totals", "totals", 0, epoch=place.epoch)
        answers: list[pa.Table | str] = []
        asker = threading.Thread(target=lambda: answers.append(ask(str(place.location), ticket)))
        asker.start()  # asked while it is stopped: the question waits in its socket
        os.kill(zombie, signal.SIGCONT)
        woken = time.monotonic()
        while psutil.pid_exists(zombie) and psutil.Process(zombie).status() != psutil.STATUS_ZOMBIE:
            answers.append(ask(str(place.location), ticket))
            assert time.monotonic() - woken < 20
        asker.join(10)
        assert answers and not [each for each in answers if isinstance(each, pa.Table)]
        print("it said:", sorted({str(each)[:60] for each in answers}))
        log.append(100)
        until(lambda: counted(job) == log.expected)
        assert partition(job, 0)["epoch"] == place.epoch + 1


def test_a_scheduler_that_stands_still_ends_nobody(tmp_path: Path) -> None:
    """Meanwhile live answers are refused, since the workers cannot know whether they were replaced."""
    with dask_processes(tmp_path / "dask") as (cluster, client), counting(client, tmp_path, 500) as (log, job):
        processes = pids(client)
        before = {number: partition(job, number)["epoch"] for number in (0, 1)}
        place = job._reader.directory().partitions[0]
        ticket = Ticket("totals", "totals", 0, epoch=place.epoch)
        cluster.scheduler.send_signal(signal.SIGSTOP)
        try:
            until(lambda: "cut off from the supervisor" in str(ask(str(place.location), ticket)))
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 3.0)  # some five seconds in all
            log.append(100)
        finally:
            cluster.scheduler.send_signal(signal.SIGCONT)
        until(lambda: counted(job) == log.expected)
        began = time.monotonic()
        while time.monotonic() - began < 3.0:  # longer than a condemnation would take
            assert {number: partition(job, number)["epoch"] for number in (0, 1)} == before
        assert pids(client) == processes


DRIVER = """
import sys, pyarrow as pa, flowstate as fs
from distributed import Client
address, folder = sys.argv[1:]
schema = pa.schema({"customer": pa.string(), "amount": pa.int64(), "at": pa.timestamp("ms", "UTC")})
flow = fs.scan_files(f"{folder}/log*.jsonl", schema=schema, event_time="at", follow=True)
flow = flow.group_by("customer").agg(rows=fs.len(), total=fs.col("amount").sum()).view("totals")
job = fs.start(flow, snapshots=f"{folder}/snapshots", every="300ms", client=Client(address))
print("up", flush=True)
sys.stdin.read()
"""


def test_a_driver_that_is_killed_takes_nothing_with_it(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append(500)
    with dask_processes(tmp_path / "dask") as (cluster, client):
        arguments = [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
            assert driver.stdout is not None and driver.stdout.readline() == b"up\n"
            driver.kill()
        log.append(100)
        with fs.attach(client=client) as job:
            assert job.name == "totals"
            until(lambda: counted(job) == log.expected)
            assert [partition(job, number)["epoch"] for number in (0, 1)] == [1, 1]
