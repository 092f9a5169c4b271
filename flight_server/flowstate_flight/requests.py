"""What a service answers, apart from how: directories, partitions, and the requests over them. Reads snapshots of two dicts that
are replaced, never changed, so it needs no lock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
from pyarrow import flight

from flowstate.errors import InvalidFlow, Moved, Unavailable, did_you_mean
from flowstate.view.answer import Answer
from flowstate.view.columns import chosen
from flowstate.view.directory import Directory, LivePartition, ViewInfo
from flowstate.view.freshness import LATEST, Freshness, wait_of
from flowstate.view.rights import ANYBODY, Principal
from flowstate_flight.actions import ACTIONS, CONTROL, cut_asked, directory_asked, ipc_stream, job_asked
from flowstate_flight.answering import shape
from flowstate_flight.auth import INTERNAL
from flowstate_flight.expression import columns_to_read, decode_filter
from flowstate_flight.keys import key_text
from flowstate_flight.partial import PartialHandler, given_again
from flowstate_flight.subscribing import told
from flowstate_flight.ticket import MAX_KEYS, Ticket, freshness_of, name_of, read_json, read_keys
from flowstate_flight.visible import UNREADABLE, RowFilter, row_filter, seen_by


class Requests:
    """`hosted` by (job, partition), `directories` by job."""

    def __init__(self) -> None:
        self.hosted: dict[tuple[str, int], LivePartition] = {}
        self.directories: dict[str, Directory] = {}
        self.cutter: Callable[[str, float], dict[str, Any]] | None = None
        self.pinged: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self.partial_handler: PartialHandler | None = None
        self.sinks: Callable[[], Mapping[tuple[str, int], list[dict[str, Any]]]] | None = None
        self.controller: Callable[[str, str], dict[str, Any]] | None = None
        self.anybody_stops = True
        self._seen: dict[str, SeenRequests] = {}

    def close(self) -> None:
        """Answer for nothing any more."""
        self.hosted, self.directories = {}, {}

    # names

    def seen_by(self, who: Principal) -> Requests:
        """What is there for `who`. It costs nothing to ask for again, and stays current."""
        if who is ANYBODY or who is INTERNAL:
            return self
        found = self._seen.get(who.name)
        if found is None or found.who is not who:
            found = SeenRequests(self, who)
            self._seen = {**self._seen, who.name: found}
        return found

    def known(self) -> dict[str, Directory]:
        """The jobs that can be asked here."""
        return self.directories

    def here(self) -> dict[tuple[str, int], LivePartition]:
        """The partitions that are served here, by (job, partition)."""
        return self.hosted

    def rows(self, view: ViewInfo) -> RowFilter | None:
        """What is applied to everything that is read of a view, before anything else; None if nothing is."""
        return None

    def actions(self) -> list[tuple[str, str]]:
        """Those that can be called here, each with what it is for."""
        return ACTIONS

    def directory(self, job: str | None) -> Directory:
        """The directory of `job`, or of the only job there is. Raises InvalidFlow, or Unavailable before the first."""
        directories = self.known()
        if not directories:
            raise Unavailable("this worker has no job yet", retry_after=0.5)
        if job is None:
            if len(directories) > 1:
                raise InvalidFlow("this worker serves several jobs; name one of them", jobs=sorted(directories))
            return next(iter(directories.values()))
        if job not in directories:
            raise InvalidFlow(f"there is no job {job!r} here{did_you_mean(job, directories)}")
        return directories[job]

    def view(self, job: str, view: str) -> ViewInfo:
        views = self.directory(job).views
        if view not in views:
            raise InvalidFlow(f"job {job!r} has no view {view!r}{did_you_mean(view, views)}")
        return views[view]

    def partition(self, job: str, number: int, epoch: int | None) -> LivePartition:
        """A partition that is asked for, in the epoch that the asker knows. Raises Moved if it is elsewhere or in another epoch,
        Unavailable while it is away."""
        found = self.here().get((job, number))
        if found is not None:
            if epoch is not None and epoch != found.epoch:
                message = "this partition moved to another epoch; ask for its directory or flight info again"
                raise Moved(message, partition=number, asked=epoch, serving=found.epoch)
            return found
        if epoch is not None and job not in self.known():  # the asker knew it: it was here, or at this address
            raise Moved("this job is not served here any more; ask for its directory again", job=job)
        known = {each.partition: each for each in self.directory(job).partitions}
        if number not in known:
            if epoch is not None:  # the asker knew it, so the job was divided anew
                message = "this job was divided anew; ask for its directory or flight info again"
                raise Moved(message, partition=number, asked=epoch, partitions=len(known))
            raise InvalidFlow("there is no such partition", partition=number, partitions=len(known))
        place = known[number]
        if place.location is None:
            raise Unavailable("this partition is being recovered", retry_after=0.5, partition=number)
        message = "this partition moved to another worker; ask for its directory or flight info again"
        raise Moved(message, partition=number, asked=epoch, serving=place.epoch, location=place.location)

    # flights

    def all_flights(self) -> list[flight.FlightInfo]:
        return [
            self._info(directory, view, Ticket(directory.job, view.name), _path(directory.job, view.name))
            for directory in self.known().values()
            for view in directory.views.values()
        ]

    def flight_info(self, descriptor: flight.FlightDescriptor) -> flight.FlightInfo:
        """For the path (view) or (job, view), or for a command: a ticket without its partition."""
        if descriptor.descriptor_type == flight.DescriptorType.CMD:
            command = Ticket.from_bytes(descriptor.command, partition=False)
        else:
            command = self._command_of(_texts(descriptor.path or []))
        directory = self.directory(command.job)
        return self._info(directory, self.view(command.job, command.view), command, descriptor)

    def _command_of(self, path: list[str]) -> Ticket:
        if len(path) == 2:
            return Ticket(path[0], path[1])
        if len(path) != 1:
            raise InvalidFlow("a path is (view) or (job, view)", path=path)
        jobs = [job for job, directory in self.known().items() if path[0] in directory.views]
        if not jobs:
            known = {view for directory in self.known().values() for view in directory.views}
            raise InvalidFlow(f"there is no view {path[0]!r}{did_you_mean(path[0], sorted(known))}")
        if len(jobs) > 1:
            raise InvalidFlow(f"several jobs have a view {path[0]!r}; use the path (job, view)", jobs=sorted(jobs))
        return Ticket(jobs[0], path[0])

    def _info(
        self, directory: Directory, view: ViewInfo, command: Ticket, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        schema = view.schema if command.columns is None else chosen(view.name, view.schema, command.columns)
        if command.filter is not None:
            decode_filter(command.filter, view.schema)
        return flight.FlightInfo(schema, descriptor, self.endpoints(directory, command), -1, -1)

    def endpoints(self, directory: Directory, command: Ticket) -> list[flight.FlightEndpoint]:
        """Where the answer to a command is fetched, in parts: one per partition."""
        return [
            flight.FlightEndpoint(
                replace(command, partition=each.partition, epoch=each.epoch).to_bytes(),
                [each.location] if each.location else [],
            )
            for each in directory.partitions
        ]

    # reads

    def ticket(self, raw: bytes) -> Ticket:
        """What a client brings to be read here. Raises InvalidFlow."""
        return Ticket.from_bytes(raw)

    def lookups(self, command: dict[str, Any]) -> LookupStream:
        """An exchange of lookups."""
        return LookupStream(self, command)

    def read(self, ticket: Ticket) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """A scan, or a lookup if the ticket has keys; the schema carries the answer. Or changes: then batches have metadata beside them,
        and do not end."""
        assert ticket.partition is not None
        partition = self.partition(ticket.job, ticket.partition, ticket.epoch)
        view = self.view(ticket.job, ticket.view)
        if ticket.changes:
            return told(partition, view, ticket, self.rows(view))
        partial = self.partial(ticket.view) if ticket.partial is not None else None
        cut = self.moment(partition, ticket.fresh, ticket.wait)
        schema = view.schema if ticket.columns is None else chosen(view.name, view.schema, ticket.columns)
        schema = schema.remove_metadata()
        condition = decode_filter(ticket.filter, view.schema) if ticket.filter is not None else None
        rows = self.rows(view)
        if ticket.keys is not None:
            if cut is not None:
                raise InvalidFlow("keys are looked up in the latest state; use a filter to read them in a cut")
            found, answer = looked_up(partition, view.name, self.checked_keys(view, read_keys(ticket.keys)), rows)
            batches: Iterator[pa.RecordBatch] = iter([found])
            if condition:
                batches = iter([found.select(columns_to_read(schema.names, condition))])
        else:
            wanted = columns_to_read(schema.names, condition)
            if rows is not None:
                wanted += [name for name in rows.columns if name not in wanted]
            _, batches, answer = partition.scan(ticket.view, wanted, cut, ticket.fresh.once)
            if rows is not None:
                batches = rows.batches(batches)
        chosen_from = condition is not None or rows is not None or ticket.limit is not None or ticket.keys is not None
        if partial is None or chosen_from:
            batches = shape(batches, schema, condition, ticket.limit)
        if partial is not None:
            again = () if chosen_from else given_again(view, schema)
            schema, batches = partial(schema, batches, ticket.partial or "", again)
        return answer.attach(schema), batches

    def partial(self, view: str) -> PartialHandler:
        """Who answers questions about the rows of one partition of `view`. Raises InvalidFlow."""
        if self.partial_handler is None:
            raise InvalidFlow("this service answers no partial queries; ask for the rows")
        return self.partial_handler

    @staticmethod
    def moment(partition: LivePartition, fresh: Freshness, wait: float | None) -> int | None:
        """Wait until `partition` is as fresh as was asked for. Returns the cut to read, None for what is there. Raises Behind."""
        if fresh.consistent or fresh.snapshot is not None:
            message = "one partition alone is at no common position; make a cut by the action 'cut' and ask for that, or ask the gateway"
            raise InvalidFlow(message)
        if fresh.at_least:
            partition.reached(fresh.at_least, wait or 0.0)
        return fresh.cut

    def checked_keys(self, view: ViewInfo, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Keys whose columns are the leading key columns of `view`, all routing keys at least, with their types."""
        names = keys.schema.names
        if not view.routing_keys:
            raise InvalidFlow(f"view {view.name!r} has no key to look up; scan it, with a filter if need be")
        fits = names == list(view.keys[: len(names)]) and set(view.routing_keys) <= set(names)
        if not fits or any(each.type != view.schema.field(each.name).type for each in keys.schema):
            raise InvalidFlow(f"view {view.name!r} is keyed by {key_text(view)}; the keys do not fit", keys=names)
        return keys

    # actions

    def action(self, kind: str, body: bytes) -> bytes:
        if kind == "directory":
            return self.directory(directory_asked(body)).to_json().encode()
        if kind == "lookup":
            ticket = self.ticket(body)
            if ticket.keys is None:
                raise InvalidFlow("the ticket of a lookup has 'keys'; use do_get for a scan")
            return ipc_stream(*self.read(ticket))
        if kind == "status":
            return json.dumps(self.status()).encode()
        if kind == "cut":
            job, timeout = cut_asked(body)
            return json.dumps(self.cut(self.directory(job).job, timeout)).encode()
        if kind == "ping":
            asked = read_json(body or b"{}", "body of the action")
            return json.dumps(self.pinged(asked) if self.pinged is not None else {}).encode()
        if kind in CONTROL:
            if kind == "stop" and not self.anybody_stops:
                raise InvalidFlow("everybody who reaches this address may read here; nobody stops a job by it")
            return json.dumps(self.control(kind, self.directory(job_asked(kind, body)).job)).encode()
        raise self._no_action(kind)

    def _no_action(self, kind: str) -> InvalidFlow:
        return InvalidFlow(f"there is no action {kind!r}{did_you_mean(kind, [each for each, _ in self.actions()])}")

    def cut(self, job: str, timeout: float) -> dict[str, Any]:
        """One consistent cut of `job`, made within `timeout` seconds."""
        if self.cutter is None:
            raise Unavailable("this service is part of no running job, so it can make no cut", job=job)
        return self.cutter(job, timeout)

    def control(self, kind: str, job: str) -> dict[str, Any]:
        """What the supervisor of `job` answers to an action of `CONTROL`."""
        if self.controller is None:
            raise Unavailable("this service is part of no running job, so nobody is here to be asked", job=job)
        return self.controller(kind, job)

    def status(self) -> dict[str, Any]:
        """What is hosted here, by job. To those who may control a job: also how the sinks of each partition are doing."""
        hosted, directories = self.here(), self.known()
        jobs = sorted({job for job, _ in hosted} | set(directories))
        told: dict[str, dict[str, Any]] = {
            job: {
                "directory": directories[job].version if job in directories else None,
                "partitions": {str(each.partition): each.epoch for (of, _), each in hosted.items() if of == job},
            }
            for job in jobs
        }
        for (job, number), sinks in (self.sinks() if self.sinks is not None else {}).items():
            if job in told:
                told[job].setdefault("sinks", {})[str(number)] = sinks
        return {"jobs": told}


class SeenRequests(Requests):
    """The requests of another, as a principal may make them: on every path, what may not be seen is not there."""

    def __init__(self, whole: Requests, who: Principal) -> None:
        super().__init__()
        self.whole, self.who = whole, who
        if who.may("control"):
            self.sinks = whole.sinks
        self._of: tuple[object, object] = (None, None)
        self._views: dict[str, Directory] = {}
        self._partitions: dict[tuple[str, int], LivePartition] = {}

    def known(self) -> dict[str, Directory]:
        self._look()
        return self._views

    def here(self) -> dict[tuple[str, int], LivePartition]:
        self._look()
        return self._partitions

    def rows(self, view: ViewInfo) -> RowFilter | None:
        return row_filter(self.who, view)

    def actions(self) -> list[tuple[str, str]]:
        hidden = ("ping",) if self.who.may("control") else ("ping", *CONTROL)
        return [each for each in ACTIONS if each[0] not in hidden]

    def action(self, kind: str, body: bytes) -> bytes:
        # pings are the supervisor's, and nobody else's
        if kind == "ping" or (kind in CONTROL and not self.who.may("control")):
            raise self._no_action(kind)
        return super().action(kind, body)

    def control(self, kind: str, job: str) -> dict[str, Any]:
        return self.whole.control(kind, job)

    def cut(self, job: str, timeout: float) -> dict[str, Any]:
        return self.whole.cut(job, timeout)

    def partial(self, view: str) -> PartialHandler:
        if not self.who.may("sql", view):
            raise InvalidFlow("you have no right to run queries here; ask for the rows")
        return self.whole.partial(view)

    def _look(self) -> None:
        """Again, if anything has changed. Two threads may both do it; they find the same."""
        known, here = self.whole.known(), self.whole.here()
        if self._of[0] is known and self._of[1] is here:
            return
        seen = {job: seen_by(self.who, each) for job, each in known.items()}
        views = {job: each for job, each in seen.items() if each is not None}
        partitions = {place: each for place, each in here.items() if place[0] in views}
        self._views, self._partitions, self._of = views, partitions, (known, here)


def looked_up(
    partition: LivePartition, view: str, keys: pa.RecordBatch, rows: RowFilter | None
) -> tuple[pa.RecordBatch, Answer]:
    """What a partition has for `keys`, as far as it may be seen."""
    if rows is None:
        return partition.lookup(view, keys)
    try:
        found, answer = partition.lookup(view, rows.keys(keys))
    except InvalidFlow:
        raise InvalidFlow(UNREADABLE) from None  # the error would name the row, which may be another's
    return rows.batch(found), answer


class LookupStream:
    """One exchange of lookups. The schema of its keys is fixed by Arrow, so it is checked once and not per message."""

    def __init__(self, requests: Requests, command: dict[str, Any]) -> None:
        if command.get("kind") != "lookup":
            raise InvalidFlow("an exchange is of kind 'lookup'", kind=command.get("kind"))
        unknown = sorted(set(command) - {"v", "kind", "job", "view"})
        if unknown or command.get("v") != 1:
            raise InvalidFlow("the command of an exchange is {v=1, kind, job, view}", unknown=unknown[:5])
        self._requests = requests
        self._job, self._view = name_of(command.get("job"), "job"), name_of(command.get("view"), "view")
        if self._job not in requests.known():  # nobody begins an exchange without a directory that sent him here
            raise Moved("this job is not served here; ask for its directory again", job=self._job)
        view = requests.view(self._job, self._view)
        self.schema, self._rows = view.schema.remove_metadata(), requests.rows(view)
        self._checked = False

    def answer(self, asked: dict[str, Any], keys: pa.RecordBatch | None) -> tuple[pa.RecordBatch, str]:
        """One message: rows in the columns of `schema`, and the answer as JSON."""
        number, epoch = asked.get("partition"), asked.get("epoch")
        fresh = freshness_of(asked.get("fresh"))
        if type(number) is not int or not isinstance(epoch, int | None) or keys is None:
            raise InvalidFlow('a message is a batch of keys with the metadata {"partition": number, "id": any}')
        partition = self._requests.partition(self._job, number, epoch)
        self._check(keys)
        if fresh is not LATEST and self._requests.moment(partition, fresh, wait_of(asked.get("wait"))) is not None:
            raise InvalidFlow("keys are looked up in the latest state; scan with a filter to read them in a cut")
        rows, answer = looked_up(partition, self._view, keys, self._rows)
        return rows if rows.schema.equals(self.schema) else rows.select(self.schema.names), answer.to_json()

    def _check(self, keys: pa.RecordBatch) -> None:
        """Raises InvalidFlow for keys that do not fit the view, or are no sound Arrow data."""
        if keys.num_rows > MAX_KEYS:
            raise InvalidFlow("too many keys in one message; ask in parts", keys=keys.num_rows, limit=MAX_KEYS)
        if not self._checked:
            self._requests.checked_keys(self._requests.view(self._job, self._view), keys)
            self._checked = True
        try:
            keys.validate(full=True)
        except pa.ArrowException:
            raise InvalidFlow("the batch of keys is damaged") from None


def _path(job: str, view: str) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_path(job, view)


def _texts(path: list[bytes]) -> list[str]:
    try:
        return [each.decode() for each in path]
    except UnicodeDecodeError:
        raise InvalidFlow("a path is text") from None
