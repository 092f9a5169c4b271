"""Subscribers of a job that is stopped and started with another number of partitions: they follow it, or come back, and lack nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlparse

import pyarrow as pa
import pytest
from distributed import Client, LocalCluster
from hand_job import Told, ordered_rows

import flowstate as fs

SCHEMA = pa.schema({"who": pa.string(), "amount": pa.int64(), "at": pa.timestamp("s", "UTC")})
HOUR = 3600
VIEWS = {"totals": ["who"], "hours": ["who", "hour", "hour_end"], "hours_late": []}


class Log:
    """Hours of events of many, a late one among them, in two files; `hour` is the one that comes next."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.hour, self.sent = folder, 0, 0

    def append(self, hours: int = 1) -> None:
        for _ in range(hours):
            for name in "ab":
                with (self.folder / f"{name}.jsonl").open("a") as file:
                    for each in range(150):
                        late = each == 149 and self.hour > 4
                        at = HOUR * (self.hour - 4 if late else self.hour) + each
                        row = {"who": f"{name}{(each * 7 + self.hour * 11) % 90}", "amount": each, "at": stamp(at)}
                        file.write(json.dumps(row) + "\n")
                        self.sent += 1
            self.hour += 1

    def views(self) -> list[Any]:
        events = fs.scan_files(self.folder / "*.jsonl", schema=SCHEMA, event_time="at", follow=True)
        hour = fs.window("at", every="1h", grace="0s", keep="2h")
        total = {"rows": fs.len(), "total": fs.col("amount").sum()}
        return [
            events.group_by("who").agg(**total).view("totals"),
            events.group_by("who", hour=hour).agg(**total).view("hours"),
        ]


def stamp(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


class Subscriber:
    """Somebody who is told of a view, on a thread of her own, and comes back with what she was told last whenever she has to."""

    def __init__(self, view: str, subscribe: Callable[[Any], Iterator[Any]]) -> None:
        self.table, self.ended, self.errors = Told(VIEWS[view]), threading.Event(), list[str]()
        self.begun = 0
        self._subscribe, self._lock, self._settled = subscribe, threading.Lock(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self.ended.is_set():
            self.begun += 1
            resume = self.table.resume if self._settled else None
            if resume is None:
                self.table = Told(self.table.keys)
            self._settled = False if resume is None else self._settled
            try:
                for change in self._subscribe(resume):
                    with self._lock:
                        self.table.take(change)
                        self._settled = change.kind == "position"
                    if self.ended.is_set():
                        return
            except (fs.FlowstateError, OSError) as error:
                self.errors.append(str(error))
                self.ended.wait(0.1)

    def rows(self) -> list[dict[str, Any]] | None:
        """Her table, where it adds up to a position."""
        with self._lock:
            return self.table.rows() if self._settled else None

    def holds(self, wanted: Callable[[], list[dict[str, Any]]]) -> None:
        """Until her table is what is wanted."""
        deadline = time.monotonic() + 60
        while True:
            found, expected = self.rows(), plain(wanted())
            if found is not None and ordered_rows(plain(found)) == ordered_rows(expected):
                return
            assert time.monotonic() < deadline, (len(found or ()), len(expected), self.errors[-3:])
            time.sleep(0.05)

    def end(self) -> None:
        self.ended.set()


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times as text, as JSON has them."""
    return [
        {
            name: value.strftime("%Y-%m-%dT%H:%M:%SZ") if hasattr(value, "strftime") else value
            for name, value in row.items()
        }
        for row in rows
    ]


def over_flight(reads: Any, view: str, ended: threading.Event) -> Callable[[Any], Iterator[Any]]:
    def subscribe(resume: Any) -> Iterator[Any]:
        with reads[view].changes(resume=resume) as changes:
            while not ended.is_set():
                change = changes.take(0.2)
                if change is not None:
                    yield change

    return subscribe


def over_http(address: str, view: str, ended: threading.Event) -> Callable[[Any], Iterator[Any]]:
    """As a browser does it: the id of the last event comes back."""

    def subscribe(resume: Any) -> Iterator[Any]:
        place = urlparse(address)
        connection = HTTPConnection(place.hostname or "", place.port, timeout=20)
        connection.request("GET", f"/views/{quote(view)}/changes", headers={"Last-Event-ID": resume} if resume else {})
        response = connection.getresponse()
        try:
            if response.status != 200:
                raise OSError(response.read().decode())
            said: dict[str, str] = {}
            while not ended.is_set() and (line := response.readline()):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    said[name] = value
                elif "event" in said:
                    yield step(said)
                    said = {}
        finally:
            connection.close()

    return subscribe


def step(said: dict[str, str]) -> Any:
    data, kind = json.loads(said["data"]), said["event"]
    if kind == "failed":
        raise OSError(said["data"])
    rows = data.get("rows", data.get("keys", []))
    answer = SimpleNamespace(parts=())
    return SimpleNamespace(
        kind=kind, partition=data.get("partition"), rows=SimpleNamespace(to_pylist=lambda: plain(rows)), answer=answer,
        missed=data.get("missed", 0), resume=said.get("id") or None,
    )  # fmt: skip


@contextmanager
def one_process() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def caught_up(job: fs.Job, log: Log) -> None:
    deadline = time.monotonic() + 60
    while sum(job.to_table("totals")["rows"].to_pylist()) != log.sent:
        assert time.monotonic() < deadline, job.status()["problems"]
        time.sleep(0.02)


@pytest.mark.parametrize("way", ["flight", "http"])
def test_subscribers_follow_a_job_that_is_divided_anew(tmp_path: Path, way: str) -> None:
    log, saved = Log(tmp_path / "log"), tmp_path / "saved"
    log.append(6)
    with one_process() as client, ExitStack() as stack:
        subscribers: dict[str, Subscriber] = {}
        for partitions in (2, 3, 1, 2):
            with fs.start(*log.views(), snapshots=saved, client=client, partitions=partitions, every="200ms") as job:
                if not subscribers:
                    reads = stack.enter_context(fs.connect(snapshots=saved))
                    address = stack.enter_context(fs.http(snapshots=saved)).address
                    for view in VIEWS:
                        ended = threading.Event()
                        how = over_flight(reads, view, ended) if way == "flight" else over_http(address, view, ended)
                        subscribers[view] = Subscriber(view, how)
                        stack.callback(subscribers[view].end)
                        stack.callback(ended.set)
                log.append(2)
                caught_up(job, log)
                for view, each in subscribers.items():
                    each.holds(lambda view=view: job.to_table(view).to_pylist())
                    assert each.table.missed == 0
                assert len(subscribers["hours_late"].rows() or ()) == 2 * (log.hour - 5)
            log.append(1)  # while nothing runs
        if way == "flight":
            assert [each.begun for each in subscribers.values()] == [1, 1, 1], [
                each.errors for each in subscribers.values()
            ]


@pytest.mark.parametrize("way", ["flight", "http"])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_who_comes_back_after_it_was_divided_anew_has_every_key_once(tmp_path: Path, way: str, after: int) -> None:
    """A part that is there no longer is not told anew, so what was told of it is to be forgotten."""
    log, saved = Log(tmp_path / "log"), tmp_path / "saved"
    log.append(6)
    tables: dict[str, Told] = {}
    with one_process() as client, ExitStack() as stack:

        def ask(view: str, job: fs.Job) -> None:
            """What is told until she holds what is there, by the token that she has."""
            ended, table = threading.Event(), tables.setdefault(view, Told(VIEWS[view]))
            how = over_flight(reads, view, ended) if way == "flight" else over_http(address, view, ended)
            settled, deadline = False, time.monotonic() + 60
            for change in how(table.resume):
                table.take(change)
                assert time.monotonic() < deadline
                if change.kind == "position":
                    settled = ordered_rows(plain(table.rows())) == ordered_rows(plain(job.to_table(view).to_pylist()))
                if settled:
                    ended.set()
            assert settled

        with fs.start(*log.views(), snapshots=saved, client=client, partitions=3, every="200ms") as job:
            caught_up(job, log)
            reads = stack.enter_context(fs.connect(snapshots=saved))
            address = stack.enter_context(fs.http(snapshots=saved)).address
            for view in VIEWS:
                ask(view, job)
        log.append(5)  # so that windows go, too
        with fs.start(*log.views(), snapshots=saved, client=client, partitions=after, every="200ms") as job:
            caught_up(job, log)
            for view in VIEWS:
                ask(view, job)
