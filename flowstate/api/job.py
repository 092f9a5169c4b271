"""A running job, a moment of it, and a saved one: what a user asks."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from flowstate.api import arguments
from flowstate.api.remote import request
from flowstate.clock import Clock, SystemClock
from flowstate.errors import Fenced, FlowstateError, InvalidFlow, Unavailable, did_you_mean

if TYPE_CHECKING:
    import duckdb
    from distributed import Client

    from flowstate_flight.client import FlightReader
    from flowstate_flight.mapping import ViewMapping


class Reads(Mapping[str, "ViewMapping"]):
    """Views by name, and SQL over them. With `cut`, everything is read at one position."""

    def __init__(self, reader: FlightReader, cut: int | None = None) -> None:
        self._reader, self._cut = reader, cut
        self._session: Any = None

    def __getitem__(self, view: str) -> ViewMapping:
        from flowstate_flight.mapping import ViewMapping

        self._check_open()
        names = self._reader.views()
        if not isinstance(view, str):
            raise InvalidFlow("a view is asked by its name", got=repr(view), views=names)
        if view not in names:
            raise InvalidFlow(f"no view {view!r}{did_you_mean(view, names)}", job=self._reader.directory().job)
        return ViewMapping(self._reader, view, self._cut)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.views())

    def __len__(self) -> int:
        return len(self._reader.views())

    def sql(self, query: str, params: object = None) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation over the views by their names. It reads when it is executed, and again each time that it is."""
        if not isinstance(query, str):
            raise InvalidFlow("sql takes the text of a query", got=type(query).__name__)
        self._check_open()
        if self._session is None:
            from flowstate_sql.session import Session

            self._session = Session(self._reader, cut=self._cut)
        return self._session.sql(query, params)

    def to_table(self, view: str) -> pa.Table:
        """All rows of a view."""
        return self[view].to_table()

    def _check_open(self) -> None:
        """Raises what to do instead when nothing can be read here any more."""

    def close(self) -> None:
        """End the connections. A job goes on."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Snapshot(Reads):
    """Everything at one position: repeatable reads. `position` maps each split to ``(offset, floors)``."""

    def __init__(
        self, reader: FlightReader, cut: int | None, position: Mapping[str, tuple[int, int]], stack: ExitStack
    ) -> None:
        super().__init__(reader, cut)
        self.position = position
        self._stack = stack

    def close(self) -> None:
        self._stack.close()

    def __repr__(self) -> str:
        return f"<snapshot of job {self._reader.directory().job!r}, views {list(self)}>"


class Job(Reads):
    """A job that runs on a Dask cluster. It lives as long as the cluster does, also without this object."""

    def __init__(
        self, name: str, client: Client, reader: FlightReader, owned: ExitStack, clock: Clock | None = None
    ) -> None:
        super().__init__(reader)
        self.name, self.client = name, client
        self._owned = owned  # what `start` made for this job alone: its cluster and client
        self._clock = clock or SystemClock()
        self._last: dict[str, Any] = {}

    def _check_open(self) -> None:
        if self._last:
            place = self._last.get("snapshots", "")
            raise InvalidFlow("this job was stopped; read what it saved with fs.open_snapshot(url)", url=place)

    def status(self) -> dict[str, Any]:
        """What the job is doing: its state, partitions, splits, snapshots, and what troubles it. Also after it was stopped."""
        if self._last.get("state") in ("stopped", "fenced"):
            return self._last
        return dict(request(self.client, "status", self.name))

    @property
    def address(self) -> str:
        """The Flight address of one worker; any of them knows where everything is."""
        return self._addresses()[0]

    def _addresses(self) -> list[str]:
        return [each.location for each in self._reader.directory().partitions if each.location]

    def snapshot(self, timeout: float = 5.0) -> Snapshot:
        """One consistent cut of everything, fresh: made now, kept on the workers while it is read. `Unavailable` if it cannot be made
        within `timeout` seconds."""
        self._check_open()
        cut = request(self.client, "cut", self.name, timeout=arguments.seconds("timeout", timeout))
        position = {split: (place[0], place[1]) for split, place in cut["position"].items()}
        return Snapshot(self._reader, cut["cut"], position, ExitStack())

    def wait(self, timeout: float | None = None) -> None:
        """Until finite input is read to its end, every window is closed and every output is written.

        Raises what keeps the job from getting there: `Unavailable` after `timeout` seconds, or when a partition or a source failed
        for good. A job that follows its sources ends with `drain`.
        """
        deadline = None if timeout is None else self._clock.monotonic() + arguments.seconds("timeout", timeout)
        while True:
            status = self.status()
            if status["state"] in ("finished", "stopped"):
                return
            if status["state"] == "fenced":
                raise Fenced(status["problems"].get("job", "a newer run of this job has taken over"), job=self.name)
            failed = {
                number: each["reason"] for number, each in status["partitions"].items() if each["state"] == "failed"
            }
            if failed:
                raise Unavailable("partitions have failed for good", job=self.name, failed=failed)
            if deadline is not None and self._clock.monotonic() > deadline:
                raise Unavailable("the job is not at its end yet", job=self.name, **_progress(status))
            _pause(0.05)

    def drain(self, timeout: float | None = 120.0) -> None:
        """End the sources where they are now, close the last windows, finish all files, and wait for that."""
        timeout = None if timeout is None else arguments.seconds("timeout", timeout)
        request(self.client, "drain", self.name)
        self.wait(timeout)

    def stop(self, *, snapshot: bool = True) -> None:
        """A last snapshot, then everything of this job is gone: actors, ports, and the cluster if `start` made it. Safe to repeat."""
        if not self._last:
            try:
                self._last = dict(request(self.client, "stop", self.name, snapshot=snapshot))
            except FlowstateError:
                self._last = {"name": self.name, "state": "stopped", "problems": {}, "partitions": {}, "splits": {}}
                self._close()
                raise
            self._close()

    def _close(self) -> None:
        atexit.unregister(self._at_exit)
        self._session = None
        self._reader.close()
        self._owned.close()

    def _at_exit(self) -> None:
        """In order, but without a last snapshot: the interpreter starts no more work for its threads. Regular ones are there."""
        with contextlib.suppress(Exception):
            self.stop(snapshot=False)

    def close(self) -> None:
        """The same as `stop`: leaving a ``with`` block ends the job. Without one, the job outlives this object on its cluster."""
        self.stop()

    def __repr__(self) -> str:
        return (
            f"<job {self.name!r} with views {list(self)}>"
            if not self._last
            else f"<job {self.name!r}, {self._last['state']}>"
        )


def _progress(status: Mapping[str, Any]) -> dict[str, Any]:
    reports = [each["report"] for each in status["partitions"].values()]
    problems = {name: text for each in reports for name, text in each.get("problems", {}).items()}
    return {"state": status["state"], "problems": problems | status["problems"]}


def _pause(seconds: float) -> None:
    from threading import Event

    Event().wait(seconds)


def attach(name: str | None = None, client: Client | None = None) -> Job:
    """The running job `name` (the only one, if not given) on the cluster of `client` (the current one, if not given)."""
    from distributed import get_client

    from flowstate_flight.client import FlightReader

    if client is None:
        try:
            client = get_client()
        except ValueError as error:
            raise InvalidFlow("no Dask client; connect one, or pass client=") from error
    arguments.client(client)
    if name is not None:
        arguments.name("name", name)
    jobs = [each for each, state in request(client, "jobs").items() if state not in ("stopped", "fenced")]
    if name is None:
        if len(jobs) != 1:
            raise InvalidFlow("say which job to attach to", jobs=jobs)
        name = jobs[0]
    if name not in jobs:
        raise InvalidFlow(f"no job {name!r} on this cluster{did_you_mean(name, jobs)}")
    return Job(name, client, FlightReader(directory_source(client, name), name), ExitStack())


def directory_source(client: Client, name: str) -> Any:
    """How a reader of this job asks for a newer directory."""
    from flowstate.view.directory import Directory

    return lambda: Directory.from_json(request(client, "directory", name))


def connect(address: str, job: str | None = None) -> Reads:
    """Read a job through the Flight address of any of its workers; no Dask needed. ``fs.connect("grpc://127.0.0.1:4711").sql(...)``"""
    from flowstate_flight.client import connect as connect_reader

    return Reads(connect_reader(arguments.name("address", address), job))


def open_snapshot(url: str | os.PathLike[str], at: int | None = None, **storage_options: Any) -> Snapshot:
    """What a job saved, with no job running: its newest saved cut, or cut number `at`. If a job never completed a cut, what each
    partition saved last (`Answer.consistent` is then false). Served on a loopback port of this process while it is open."""
    from flowstate.runtime.stored import StoredPartition, stored_directory
    from flowstate.snapshot.saved import SavedSnapshot
    from flowstate_flight.client import FlightReader
    from flowstate_flight.server import FlightService

    if at is not None:
        arguments.whole("at", at, 1)
    saved = SavedSnapshot.open(arguments.place("url", url), at, **storage_options)
    stack = ExitStack()
    service = stack.enter_context(FlightService())
    for partition in saved.partitions:
        service.register(StoredPartition(saved, partition))
    directory = stored_directory(saved, service.location)
    service.set_directory(directory)
    reader = FlightReader(lambda: directory)
    stack.callback(reader.close)
    position = {split: (place.offset, place.floors) for split, place in saved.cut.position.items()} if saved.cut else {}
    return Snapshot(reader, None, position, stack)
