"""Reading while a worker, or the whole job, is down: live where it can be, what was saved last where it cannot, never older than asked."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import waiting
from counting_process import KEYS, CountingProcess, append
from distributed import Client

import flowstate as fs
from flowstate.api.finding import saved_states
from flowstate.api.job import Reads
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate_flight import FlightReader

EVENTS = 400
until = partial(waiting.until, seconds=60.0)


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[CountingProcess]:
    append(tmp_path, EVENTS)
    process = CountingProcess(tmp_path)
    try:
        until(lambda: saved(tmp_path) == EVENTS)
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()


def saved(folder: Path) -> int:
    """How many events the last saved cut holds."""
    try:
        with fs.open_snapshot(folder / "snapshots") as snapshot:
            return int(sum(snapshot.to_table("totals")["events"].to_pylist()))
    except fs.Unavailable:
        return 0


def reader_of(folder: Path, *, grace: float = 1.0, patience: float = 10.0) -> Reads:
    """As `fs.connect(snapshots=)` gives it, with other times."""
    states = saved_states(str(folder / "snapshots"), {})
    return Reads(FlightReader([], saved=states, grace=grace, patience=patience))


def part_of(table: pa.Table) -> PartitionAnswer:
    answer = Answer.of(table.schema)
    assert answer is not None
    [part] = answer.parts
    return part


@dataclass
class Read:
    """One lookup: which partition, whence, how old at least, and how long it took."""

    partition: int
    origin: str
    age: float
    took: float


class Readers:
    """Threads that look up keys without pause until they are stopped."""

    def __init__(self, reads: Reads, owners: dict[str, int], max_age: float | None = None, threads: int = 8) -> None:
        self.reads: list[Read] = []
        self.errors: list[tuple[int, fs.FlowstateError]] = []
        self._stop = threading.Event()
        self._view = reads["totals"].at(max_age=max_age)
        self._owners = owners
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in range(threads)]
        for each in self._threads:
            each.start()

    def _run(self, number: int) -> None:
        keys = KEYS[number:] + KEYS[:number]
        while not self._stop.is_set():
            for key in keys:
                begun, wall = time.monotonic(), time.time()
                try:
                    table = self._view[key]
                except fs.FlowstateError as error:
                    self.errors.append((self._owners[key], error))
                    continue
                part = part_of(table)
                assert table["events"].to_pylist()[0] <= EVENTS // len(KEYS)
                self.reads.append(Read(part.partition, part.origin, wall - part.as_of, time.monotonic() - begun))
                if self._stop.is_set():
                    return

    def origins(self, partition: int) -> set[str]:
        return {each.origin for each in self.reads if each.partition == partition}

    def stop(self) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(30)
            assert not each.is_alive()


class Queries:
    """SQL over everything, again and again: `mixed` counts those that read one partition live and the other saved."""

    QUERY = "select sum(events)::bigint from totals"

    def __init__(self, reads: Reads) -> None:
        self.mixed, self.wrong = 0, list[object]()
        self._reads, self._stop = reads, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                found = self._reads.sql(self.QUERY).fetchall()
            except Exception as error:
                self.wrong.append(error)
                continue
            if found != [(EVENTS,)]:
                self.wrong.append(found)
            origins = {each.partition: each.origin for each in self._reads.last_answers["totals"].parts}
            assert len(origins) == 2
            self.mixed += set(origins.values()) == {"live", "saved"}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_is_lost_while_keys_of_both_are_looked_up(
    counting: CountingProcess, tmp_path: Path, how: signal.Signals
) -> None:
    with (
        reader_of(tmp_path, grace=0.5) as reads,
        reader_of(tmp_path, patience=0.8) as strict,
        reader_of(tmp_path, grace=0.5) as asked,
    ):
        owners = {key: part_of(reads["totals"][key]).partition for key in KEYS}
        assert set(owners.values()) == {0, 1}
        readers = Readers(reads, owners)
        young = Readers(strict, owners, max_age=0.2, threads=2)
        queries = Queries(asked)
        try:
            until(lambda: readers.origins(0) == readers.origins(1) == {"live"})
            pid = counting.where()["pids"]["0"]
            begun = time.monotonic()
            if how == signal.SIGKILL:
                # A kill is noticed and mended faster than anybody loses patience: hold the supervisor meanwhile.
                os.kill(counting.process.pid, signal.SIGSTOP)

            def leases_may_have_ended() -> bool:
                """Those of the other worker, too: then no answer is live in part any more."""
                return how == signal.SIGKILL and time.monotonic() - begun > 1.5

            try:
                os.kill(pid, how)
                until(
                    lambda: (
                        "saved" in readers.origins(0)
                        and young.errors != []
                        and (queries.mixed > 0 or leases_may_have_ended())
                    ),
                    says=lambda: (readers.origins(0), young.errors[-3:], queries.mixed),
                )
            finally:
                os.kill(counting.process.pid, signal.SIGCONT)
            held = leases_may_have_ended()
            until(lambda: any(each.origin == "live" for each in readers.reads[-40:] if each.partition == 0))
            until(lambda: all(each.origin == "live" for each in readers.reads[-200:]))
        finally:
            readers.stop()
            young.stop()
            queries.stop()
        assert readers.errors == []
        assert held or readers.origins(1) == {"live"}  # the other worker's keys never came from anywhere else
        assert max(each.took for each in readers.reads if each.partition == 1) < 10.0
        assert max(each.age for each in readers.reads if each.origin == "live") < 10.0
        saved = [each for each in readers.reads if each.origin == "saved"]
        assert (
            held or sum(each.took > 0.5 for each in saved) <= 0.2 * len(saved) + 16
        )  # only those who found out waited
        assert all(each.age <= 0.2 for each in young.reads)
        assert held or {partition for partition, _ in young.errors} == {0}
        refused = [error for _, error in young.errors if "older than max_age" in str(error)]
        assert refused
        assert all(isinstance(each, fs.Unavailable) and float(str(each.facts["missed_by"])) > 0 for each in refused)
        assert queries.wrong == []
        assert asked.sql(Queries.QUERY).fetchall() == [(EVENTS,)]
        assert asked.last_answers["totals"].live


def is_live(reads: Reads) -> bool:
    answer = Answer.of(reads.to_table("totals").schema)
    return answer is not None and answer.live


def counts(reads: Reads, events: int) -> bool:
    return bool(reads.sql("select sum(events)::bigint from totals").fetchall() == [(events,)])


def test_the_whole_job_is_killed_and_comes_back(counting: CountingProcess, tmp_path: Path) -> None:
    with fs.connect(counting.place["address"], snapshots=tmp_path / "snapshots") as reads:
        before = reads.to_table("totals")
        assert is_live(reads)
        counting.kill()
        down = time.time()
        for table in (reads.to_table("totals"), reads["totals"].to_table(["customer", "events", "total"])):
            answer = Answer.of(table.schema)
            assert answer is not None
            assert {part.origin for part in answer.parts} == {"saved"}
            assert down - 60 < answer.as_of <= down
            assert sorted(table.to_pylist(), key=str) == sorted(before.to_pylist(), key=str)
        assert reads.sql("select sum(events)::bigint from totals").fetchall() == [(EVENTS,)]
        with fs.connect(snapshots=tmp_path / "snapshots", patience=1.0) as late:  # a reader that never saw it live
            assert part_of(late["totals"][KEYS[0]]).origin == "saved"
            with pytest.raises(fs.Unavailable, match=r"older than max_age.*age=.*max_age=0.0 missed_by="):
                late["totals"].lookup(KEYS, max_age=0)
            with pytest.raises(Exception, match="older than max_age"):
                late.sql("select * from totals", max_age=0).fetchall()
            append(tmp_path, 40)
            again = CountingProcess(tmp_path)
            try:
                for each in (reads, late):
                    until(partial(is_live, each))
                    until(partial(counts, each, EVENTS + 40))
                    assert part_of(each["totals"].at(max_age=0)[KEYS[0]]).origin == "live"
            finally:
                again.kill()


def test_a_job_object_outlives_its_scheduler(counting: CountingProcess, tmp_path: Path) -> None:
    with Client(counting.where()["scheduler"], timeout=10) as client:
        job = fs.attach("counting", client)
        assert part_of(job["totals"][KEYS[0]]).origin == "live"
        snapshot = job.snapshot()
        counting.kill()
        part = part_of(job["totals"][KEYS[0]])
        assert part.origin == "saved"
        assert time.time() - 60 < part.as_of < time.time()
        assert job.sql("select sum(events)::bigint from totals").fetchall() == [(EVENTS,)]
        assert not job.last_answers["totals"].live
        with pytest.raises(fs.Unavailable, match=r"fs\.start.*fs\.connect"):
            job.status()
        with pytest.raises(fs.Unavailable):
            snapshot.to_table("totals")
        with pytest.raises(fs.Unavailable):
            job.stop()


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(fs.InvalidFlow, match="no job has ever saved anything here"):
        fs.connect(snapshots=tmp_path)
    with pytest.raises(fs.InvalidFlow, match="say where the job is"):
        fs.connect()
    with pytest.raises(fs.Unavailable, match="no answer from a worker"):
        fs.connect("127.0.0.1:1")
    with pytest.raises(fs.InvalidFlow, match="max_age is a number of seconds"):
        fs.connect(snapshots=tmp_path, max_age=-1)
