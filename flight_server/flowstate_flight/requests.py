"""What a service answers, apart from how: directories, partitions, and the requests over them. Reads snapshots of two dicts that
are replaced, never changed, so it needs no lock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
from pyarrow import flight

from flowstate.errors import InvalidFlow, Moved, Unavailable, did_you_mean
from flowstate.view.columns import chosen
from flowstate.view.directory import Directory, LivePartition, ViewInfo
from flowstate.view.freshness import LATEST, Freshness
from flowstate_flight.actions import ACTIONS, cut_asked, directory_asked, ipc_stream
from flowstate_flight.answering import shape
from flowstate_flight.expression import columns_to_read, decode_filter
from flowstate_flight.keys import key_text
from flowstate_flight.ticket import MAX_KEYS, Ticket, freshness_of, name_of, read_json, read_keys, wait_of


class Requests:
    """`hosted` by (job, partition), `directories` by job."""

    def __init__(self) -> None:
        self.hosted: dict[tuple[str, int], LivePartition] = {}
        self.directories: dict[str, Directory] = {}
        self.cutter: Callable[[str, float], dict[str, Any]] | None = None
        self.pinged: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def close(self) -> None:
        """Answer for nothing any more."""
        self.hosted, self.directories = {}, {}

    # names

    def known(self) -> dict[str, Directory]:
        """The jobs that can be asked here."""
        return self.directories

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

    def partition(self, ticket: Ticket) -> LivePartition:
        """The partition a ticket is for. Raises Moved if it is elsewhere or in another epoch, Unavailable while it is away."""
        assert ticket.partition is not None
        found = self.hosted.get((ticket.job, ticket.partition))
        if found is not None:
            epoch = found.epoch
            if ticket.epoch is not None and ticket.epoch != epoch:
                message = "this partition moved to another epoch; ask for its directory or flight info again"
                raise Moved(message, partition=ticket.partition, asked=ticket.epoch, serving=epoch)
            return found
        if (
            ticket.epoch is not None and ticket.job not in self.directories
        ):  # the asker knew it: it was here, or at this address
            raise Moved("this job is not served here any more; ask for its directory again", job=ticket.job)
        known = {each.partition: each for each in self.directory(ticket.job).partitions}
        if ticket.partition not in known:
            if ticket.epoch is not None:  # the asker knew it, so the job was divided anew
                message = "this job was divided anew; ask for its directory or flight info again"
                raise Moved(message, partition=ticket.partition, asked=ticket.epoch, partitions=len(known))
            raise InvalidFlow("there is no such partition", partition=ticket.partition, partitions=len(known))
        place = known[ticket.partition]
        if place.location is None:
            raise Unavailable("this partition is being recovered", retry_after=0.5, partition=ticket.partition)
        message = "this partition moved to another worker; ask for its directory or flight info again"
        facts = {
            "partition": ticket.partition,
            "asked": ticket.epoch,
            "serving": place.epoch,
            "location": place.location,
        }
        raise Moved(message, **facts)

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
        """A scan, or a lookup if the ticket has keys. The schema carries the answer."""
        partition = self.partition(ticket)
        view = self.view(ticket.job, ticket.view)
        cut = self.moment(partition, ticket.fresh, ticket.wait)
        schema = view.schema if ticket.columns is None else chosen(view.name, view.schema, ticket.columns)
        schema = schema.remove_metadata()
        condition = decode_filter(ticket.filter, view.schema) if ticket.filter is not None else None
        if ticket.keys is not None:
            if cut is not None:
                raise InvalidFlow("keys are looked up in the latest state; use a filter to read them in a cut")
            rows, answer = partition.lookup(ticket.view, self.checked_keys(view, read_keys(ticket.keys)))
            batches: Iterator[pa.RecordBatch] = iter([rows])
            if condition:
                batches = iter([rows.select(columns_to_read(schema.names, condition))])
        else:
            wanted = columns_to_read(schema.names, condition)
            _, batches, answer = partition.scan(ticket.view, wanted, cut)
        return answer.attach(schema), shape(batches, schema, condition, ticket.limit)

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
        raise InvalidFlow(f"there is no action {kind!r}{did_you_mean(kind, [each for each, _ in ACTIONS])}")

    def cut(self, job: str, timeout: float) -> dict[str, Any]:
        """One consistent cut of `job`, made within `timeout` seconds."""
        if self.cutter is None:
            raise Unavailable("this service is part of no running job, so it can make no cut", job=job)
        return self.cutter(job, timeout)

    def status(self) -> dict[str, Any]:
        hosted = self.hosted
        jobs = sorted({job for job, _ in hosted} | set(self.directories))
        return {
            "jobs": {
                job: {
                    "directory": self.directories[job].version if job in self.directories else None,
                    "partitions": {str(each.partition): each.epoch for (of, _), each in hosted.items() if of == job},
                }
                for job in jobs
            }
        }


class LookupStream:
    """One exchange of lookups. The schema of its keys is fixed by Arrow, so it is checked once and not per message."""

    def __init__(self, requests: Requests, command: dict[str, Any]) -> None:
        if command.get("kind") != "lookup":
            raise InvalidFlow("an exchange is of kind 'lookup' or 'partition-exchange'", kind=command.get("kind"))
        unknown = sorted(set(command) - {"v", "kind", "job", "view"})
        if unknown or command.get("v") != 1:
            raise InvalidFlow("the command of an exchange is {v=1, kind, job, view}", unknown=unknown[:5])
        self._requests = requests
        self._job, self._view = name_of(command.get("job"), "job"), name_of(command.get("view"), "view")
        if self._job not in requests.known():  # nobody begins an exchange without a directory that sent him here
            raise Moved("this job is not served here; ask for its directory again", job=self._job)
        self.schema = requests.view(self._job, self._view).schema.remove_metadata()
        self._checked = False

    def answer(self, asked: dict[str, Any], keys: pa.RecordBatch | None) -> tuple[pa.RecordBatch, dict[str, object]]:
        """One message: rows in the columns of `schema`, and the answer as plain data."""
        number, epoch = asked.get("partition"), asked.get("epoch")
        fresh = freshness_of(asked.get("fresh"))
        if type(number) is not int or not isinstance(epoch, int | None) or keys is None:
            raise InvalidFlow('a message is a batch of keys with the metadata {"partition": number, "id": any}')
        partition = self._requests.partition(Ticket(self._job, self._view, number, epoch=epoch))
        self._check(keys)
        if fresh is not LATEST and self._requests.moment(partition, fresh, wait_of(asked.get("wait"))) is not None:
            raise InvalidFlow("keys are looked up in the latest state; scan with a filter to read them in a cut")
        rows, answer = partition.lookup(self._view, keys)
        return rows if rows.schema.equals(self.schema) else rows.select(self.schema.names), answer.to_data()

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
