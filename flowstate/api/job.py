"""A running job, a moment of it, and a saved one: what a user asks."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

import pyarrow as pa

from flowstate.api import arguments
from flowstate.api.finding import reader_of, saved_states
from flowstate.api.remote import request
from flowstate.api.sink_status import sink_status
from flowstate.clock import Clock, SystemClock
from flowstate.errors import Fenced, FlowstateError, InvalidFlow, Unavailable, did_you_mean

if TYPE_CHECKING:
    import duckdb
    from distributed import Client

    from flowstate.runtime.saved_states import SavedStates
    from flowstate.store import Store
    from flowstate.view.answer import Answer
    from flowstate.view.freshness import Asked, Freshness
    from flowstate.view.tls import Pem
    from flowstate_flight.client import FlightReader
    from flowstate_flight.mapping import ViewMapping

#: Seconds for an answer of the scheduler, where one is needed to go on.
ANSWER = 3.0


class Reads(Mapping[str, "ViewMapping"]):
    """Views by name, and SQL over them.

    How fresh an answer must be is said by keyword arguments, in `at` for all that is read through it, or in a single read:

    * nothing: the latest. A partition that is away (its worker, or the whole job, is down) is looked for, for a second; then its last
      saved state answers, however old.
    * ``max_age=``: that saved state may be at most so many seconds old; 0 wants live answers alone.
    * ``at_least={"topic/0": offset}``: every part has applied at least so much of the log: read your own writes.
    * ``consistent=True``: everything at one position, made now; ``snapshot=``: the number of a saved one.

    Every answer says of each of its parts whether it is live or saved, and as of when: `flowstate.view.answer.Answer.of(table.schema)`,
    and `last_answers` after `sql`. What is not to be had is refused with `Unavailable`, which says by how much it misses, and when to try
    again."""

    def __init__(
        self,
        reader: FlightReader,
        fresh: Freshness | None = None,
        store: Store | None = None,
    ) -> None:
        """`store`: where the job's snapshots are, if they can be reached from here."""
        from flowstate.view.freshness import LATEST

        self._reader, self._fresh, self._store = reader, fresh or LATEST, store
        self._session: Any = None

    def __getitem__(self, view: str) -> ViewMapping:
        from flowstate_flight.mapping import ViewMapping

        self._check_open()
        names = self._reader.views()
        if not isinstance(view, str):
            raise InvalidFlow("a view is asked by its name", got=repr(view), views=names)
        if view not in names:
            raise InvalidFlow(f"no view {view!r}{did_you_mean(view, names)}", job=self._reader.directory().job)
        return ViewMapping(self._reader, view, self._fresh)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.views())

    def __len__(self) -> int:
        return len(self._reader.views())

    def at(self, **asked: Unpack[Asked]) -> Reads:
        """The same views, everything read as fresh as this: ``job.at(at_least=position)["totals"]["anna"]``."""
        from flowstate.view.freshness import refined

        self._check_open()
        return _Narrowed(self._reader, refined(self._fresh, asked), self._store)

    def sql(self, query: str, params: Any = None, **asked: Unpack[Asked]) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation over the views by their names. It reads when it is executed, and again each time that it is; with
        ``consistent=True`` always in the cut that is made now. ``totals AT (SNAPSHOT => 3)`` is a view as it was saved; what the job is
        and how far, is in ``flowstate_views``, ``flowstate_partitions``, ``flowstate_positions``, ``flowstate_snapshots`` and
        ``flowstate_sinks``."""
        if not isinstance(query, str):
            raise InvalidFlow("sql takes the text of a query", got=type(query).__name__)
        self._check_open()
        if self._session is None:
            from flowstate_sql.job_session import JobSession

            status: Callable[[], Mapping[str, Any]] | None = partial(sink_status, self._reader, self._store)
            if isinstance(self, Job | Snapshot):
                status = self.status if isinstance(self, Job) else None
            self._session = JobSession(self._reader, self._fresh, store=self._store, status=status)
        relation: duckdb.DuckDBPyRelation = self._session.sql(query, params, **asked)
        return relation

    @property
    def last_answers(self) -> Mapping[str, Answer]:
        """What the last SQL query that ran here saw of each view: position, watermark, age and origin of every part."""
        return {} if self._session is None else self._session.last_answers

    def to_table(self, view: str, **asked: Unpack[Asked]) -> pa.Table:
        """All rows of a view."""
        return self[view].to_table(**asked)

    def snapshot(self, timeout: float = 5.0) -> Snapshot:
        """One consistent cut of everything, fresh: made now, kept on the workers while it is read. `Unavailable` if it cannot be made
        within `timeout` seconds."""
        self._check_open()
        return self._snapshot(self._make_cut(arguments.seconds("timeout", timeout)))

    def _make_cut(self, timeout: float) -> Mapping[str, Any]:
        cut = self._reader.make_cut(timeout)
        self._reader.keep_cut(cut)
        return cut

    def _snapshot(self, cut: Mapping[str, Any]) -> Snapshot:
        from flowstate.view.freshness import Freshness

        position = {split: (place[0], place[1]) for split, place in cut["position"].items()}
        return Snapshot(self._reader, Freshness(cut=cut["cut"]), position, ExitStack(), self._store)

    def rejected(self) -> pa.Table:
        """Rows that an HTTP sink's other side refused for good: the number of the sink, the partition, the reason, the row as JSON."""
        from flowstate.sink.rejected import rejected

        if self._store is None:
            raise InvalidFlow("rejected rows lie in the job's snapshots; connect with snapshots= to read them")
        return rejected(self._store)

    def _check_open(self) -> None:
        """Raises what to do instead when nothing can be read here any more."""

    def close(self) -> None:
        """End the connections. A job goes on."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Narrowed(Reads):
    """Other reads over the connections of a `Reads`, which it leaves open."""

    def close(self) -> None:
        pass


class Snapshot(Reads):
    """Everything at one position: repeatable reads. `position` maps each split to ``(offset, floors)``."""

    def __init__(
        self,
        reader: FlightReader,
        fresh: Freshness | None,
        position: Mapping[str, tuple[int, int]],
        stack: ExitStack,
        store: Store | None = None,
    ) -> None:
        super().__init__(reader, fresh, store=store)
        self.position = position
        self._stack = stack

    def close(self) -> None:
        self._stack.close()

    def __repr__(self) -> str:
        return f"<snapshot of job {self._reader.directory().job!r}, views {list(self)}>"


class Job(Reads):
    """A job that runs on a Dask cluster. It lives as long as the cluster does, also without this object."""

    def __init__(
        self, name: str, client: Client, reader: FlightReader, owned: ExitStack, store: Store | None = None
    ) -> None:
        super().__init__(reader, store=store)
        self.name, self.client = name, client
        self._owned = owned  # what `start` made for this job alone: its cluster and client
        self._clock: Clock = SystemClock()
        self._last: dict[str, Any] = {}
        self._run: int | None = (
            None  # the run that `start` began: what is asked of it is not asked of one that took over
        )

    def _ask(self, operation: str, **arguments: Any) -> Any:
        if self._run is not None:
            arguments["run"] = self._run
        return request(self.client, operation, self.name, **arguments)

    def _check_open(self) -> None:
        if self._last:
            place = self._last.get("snapshots", "")
            raise InvalidFlow("this job was stopped; read what it saved with fs.open_snapshot(url)", url=place)

    def status(self) -> dict[str, Any]:
        """What the job is doing: its state, partitions, splits, snapshots, and what troubles it. Also after it was stopped."""
        if self._last.get("state") in ("stopped", "fenced"):
            return self._last
        return dict(self._ask("status", within=10 * ANSWER))

    @property
    def address(self) -> str:
        """The Flight address of one worker; any of them knows where everything is."""
        return self._addresses()[0]

    def _addresses(self) -> list[str]:
        return [each.location for each in self._reader.directory().partitions if each.location]

    def _make_cut(self, timeout: float) -> Mapping[str, Any]:
        cut: dict[str, Any] = self._ask("cut", timeout=timeout)
        self._reader.keep_cut(cut)
        return cut

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
        self._ask("drain")
        self.wait(timeout)

    def stop(self, *, snapshot: bool = True) -> None:
        """A last snapshot, then everything of this job is gone: actors, ports, and the cluster if `start` made it. Safe to repeat."""
        if not self._last:
            try:
                self._last = dict(self._ask("stop", snapshot=snapshot))
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

    def watch(self, *, every: float = 0.5, seconds: float | None = None) -> None:
        """In a notebook: its state, drawn anew in its place every `every` seconds, until it is interrupted (or `seconds` are over)."""
        from flowstate.view.notebook import watch

        watch(self._repr_html_, every, seconds)

    def _repr_html_(self) -> str:
        from flowstate.api.notebook import job_html

        return job_html(self.name, self.status())

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


def attach(
    name: str | None = None, client: Client | None = None, *, storage_options: Mapping[str, Any] | None = None
) -> Job:
    """The running job `name` (the only one, if not given) on the cluster of `client` (the current one, if not given).

    `storage_options` are those of its snapshots: with them, partitions that are away are answered for by what they saved last.
    """
    from distributed import get_client

    storage_options = arguments.options("storage_options", storage_options)
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
    url = request(client, "status", name)["snapshots"]
    hint = "" if storage_options else "; give fs.attach the storage_options= of these snapshots"
    saved = saved_states(url, storage_options, name, hint)
    return Job(name, client, job_reader(client, name, saved), ExitStack(), saved.store)


def job_reader(client: Client, name: str, saved: SavedStates) -> FlightReader:
    """A reader that asks the cluster where the job is, and its workers or its snapshots when that does not answer."""
    from flowstate_flight.client import FlightReader

    connecting = request(client, "security")["connecting"]
    return FlightReader(directory_source(client, name), name, saved=saved, **connecting)


def directory_source(client: Client, name: str) -> Any:
    """How a reader of this job asks for a newer directory."""
    from flowstate.view.directory import Directory

    return lambda: Directory.from_json(request(client, "directory", name, within=ANSWER))


def connect(
    address: str | None = None,
    job: str | None = None,
    *,
    snapshots: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    max_age: float | None = None,
    patience: float = 10.0,
    token: str | None = None,
    login: tuple[str, str] | None = None,
    tls_root_certs: Pem | None = None,
    cert_chain: Pem | None = None,
    private_key: Pem | None = None,
    override_hostname: str | None = None,
) -> Reads:
    """Read a job without Dask: through the Flight address of any of its workers, ``fs.connect("grpc://127.0.0.1:4711").sql(...)``, or by
    its `snapshots`, or both.

    With `snapshots` the job is found wherever it runs, and found again when it is started anew on other ports or another cluster; while a
    part of it, or all of it, is down, what it saved last answers, if that is not older than `max_age` seconds (see `Reads`).
    `patience`: seconds for one read in all.

    Where the job was started with an access, `token` is shown, or `login`, a user and a password. Over ``grpc+tls://`` the service is
    checked by `tls_root_certs`, and shown `cert_chain` and `private_key` (PEM, or the path of it); `override_hostname` is the name in its
    certificate, if it is reached by another. Raises `Unavailable` if nothing is live or saved, `InvalidFlow` if no job ever was.
    """
    from flowstate.view.freshness import checked
    from flowstate.view.tls import pem

    fresh = checked(max_age=max_age)
    certificates = {"tls_root_certs": tls_root_certs, "cert_chain": cert_chain, "private_key": private_key}
    options: dict[str, Any] = {key: pem(key, each) for key, each in certificates.items() if each is not None}
    if override_hostname is not None:
        options["override_hostname"] = arguments.name("override_hostname", override_hostname)
    reader, saved = reader_of(
        address, job, snapshots, storage_options, patience=patience, token=token, login=login, **options
    )
    try:
        reader.views()
    except BaseException:
        reader.close()
        raise
    return Reads(reader, fresh, store=None if saved is None else saved.store)


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
    return Snapshot(reader, None, position, stack, saved.store)
