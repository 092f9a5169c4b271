"""What a gateway answers: the requests of a worker, for all partitions at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import flight

from flowstate.errors import InternalError, InvalidFlow
from flowstate.view.answer import METADATA_KEY, Answer
from flowstate.view.columns import chosen
from flowstate.view.directory import Directory, ViewInfo
from flowstate.view.freshness import Freshness, wait_of
from flowstate.view.rights import ANYBODY, Principal
from flowstate_flight.actions import CONTROL, GATEWAY
from flowstate_flight.answering import shape
from flowstate_flight.client import FlightReader
from flowstate_flight.controlling import controlled
from flowstate_flight.expression import columns_to_read, decode_filter
from flowstate_flight.requests import LookupStream, Requests
from flowstate_flight.restricted import RestrictedReader
from flowstate_flight.subscribing_for import told_by
from flowstate_flight.ticket import Ticket, freshness_of, read_keys
from flowstate_flight.visible import seen_by


class GatewayRequests(Requests):
    """Of one principal. Making one costs nothing."""

    def __init__(self, reader: FlightReader, who: Principal = ANYBODY) -> None:
        super().__init__()
        self._whole, self._who = reader, who
        self.reader = RestrictedReader(reader, who)

    def seen_by(self, who: Principal) -> GatewayRequests:
        return self if who is self._who else GatewayRequests(self._whole, who)

    def known(self) -> dict[str, Directory]:
        found = seen_by(self._who, self._whole.directory())
        return {} if found is None else {found.job: found}

    def view(self, job: str, view: str) -> ViewInfo:
        self.directory(job)
        return self.reader.info(view)

    def endpoints(self, directory: Directory, command: Ticket) -> list[flight.FlightEndpoint]:
        """One, without a location, which means here. Its ticket is the command."""
        return [flight.FlightEndpoint(command.to_bytes(), [])]

    def ticket(self, raw: bytes) -> Ticket:
        return Ticket.from_bytes(raw, partition=False)

    def read(self, ticket: Ticket) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """A scan, or a lookup if the command has keys. The schema carries the answer."""
        view = self.view(ticket.job, ticket.view)
        if ticket.changes:
            return told_by(self.reader, view, ticket)
        schema = view.schema if ticket.columns is None else chosen(view.name, view.schema, ticket.columns)
        schema, fresh = schema.remove_metadata(), ticket.fresh.within(ticket.wait)
        condition = decode_filter(ticket.filter, view.schema) if ticket.filter is not None else None
        if ticket.keys is None and self._who.rows(view.name) is None:
            stream = self._whole.scan_reader(view.name, schema.names, condition, None, ticket.limit, fresh)
            return stream.schema, iter(stream)
        columns = columns_to_read(schema.names, condition)
        if ticket.keys is not None:
            found = self.reader.lookup(view.name, self.checked_keys(view, read_keys(ticket.keys)), columns, fresh)
            batches = iter(found.to_batches())
        else:  # what may be seen comes first, and then what was asked of it
            found = self.reader.scan_reader(view.name, columns, None, None, None, fresh)
            batches = iter(found)
        return self._answer(found.schema, view).attach(schema), shape(batches, schema, condition, ticket.limit)

    def lookups(self, command: dict[str, Any]) -> LookupStream:
        return _Lookups(self, command)

    def lookup(self, view: str, keys: pa.RecordBatch, fresh: Freshness) -> tuple[pa.RecordBatch, str]:
        """The rows of `keys`, wherever they are, and the answer as the JSON that came: nothing in it has to be changed."""
        table = self.reader.lookup(view, keys, None, fresh)
        told = (table.schema.metadata or {}).get(METADATA_KEY)
        answer = self._answer(table.schema, self.reader.info(view)).to_json() if told is None else told.decode()
        table = table.replace_schema_metadata(None)
        found = (table if table.column(0).num_chunks == 1 else table.combine_chunks()).to_batches()
        return (found[0] if found else pa.RecordBatch.from_pylist([], table.schema)), answer

    def _answer(self, schema: pa.Schema, view: ViewInfo) -> Answer:
        """Without a part where nobody had to be asked, for no keys."""
        return Answer.of(schema) or Answer(self.reader.directory().job, view.name, ())

    # actions

    def action(self, kind: str, body: bytes) -> bytes:
        if kind == "directory":  # whoever asks may have found that a partition is not where it was
            self._whole.refresh()
            return json.dumps({**json.loads(super().action(kind, body)), GATEWAY: True}).encode()
        return super().action(kind, body)

    def cut(self, job: str, timeout: float) -> dict[str, Any]:
        return self._whole.make_cut(timeout)

    def actions(self) -> list[tuple[str, str]]:
        return [each for each in super().actions() if each[0] not in CONTROL or self._who.may("control")]

    def control(self, kind: str, job: str) -> dict[str, Any]:
        if not self._who.may("control"):
            raise self._no_action(kind)
        return controlled(self._whole, kind)

    def status(self) -> dict[str, Any]:
        """Per job what is known of it, with the partitions that did not answer lately."""
        jobs = {}
        for job, directory in self.known().items():
            epochs = {str(each.partition): each.epoch for each in directory.partitions}
            jobs[job] = {"directory": directory.version, "partitions": epochs, "away": sorted(self._whole.away())}
        return {"gateway": True, "jobs": jobs}


class _Lookups(LookupStream):
    """Keys of any partition; each message may say how fresh its answer must be."""

    _requests: GatewayRequests

    def answer(self, asked: dict[str, Any], keys: pa.RecordBatch | None) -> tuple[pa.RecordBatch, str]:
        if keys is None or not {"partition", "epoch"}.isdisjoint(asked):
            raise InvalidFlow(
                'a message to a gateway is a batch of keys with the metadata {"id": any, "fresh"?: {...}, "wait"?: seconds}'
            )
        self._check(keys)
        fresh = freshness_of(asked.get("fresh")).within(wait_of(asked.get("wait")))
        rows, answer = self._requests.lookup(self._view, keys, fresh)
        if rows.schema != self.schema:
            raise InternalError("a view has changed; begin another exchange", view=self._view)
        return rows, answer
