"""Changes for others: a service that tells them by its own reader, of all partitions at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.view.changes import Change, Condition
from flowstate.view.directory import ViewInfo
from flowstate_flight.expression import columns_to_read, decode_filter
from flowstate_flight.restricted import RestrictedReader
from flowstate_flight.subscribing import HEARTBEAT, columns_of, condition_of, write_change
from flowstate_flight.ticket import Ticket


def told_by(reader: RestrictedReader, view: ViewInfo, ticket: Ticket) -> tuple[pa.Schema, Iterator[Any]]:
    """The answer to a command for changes; `resume` is that of a position of all partitions, a text."""
    schema = columns_of(view, ticket)
    asked = decode_filter(ticket.filter, view.schema) if ticket.filter is not None else None
    condition = condition_of(asked, None)
    if not isinstance(ticket.resume, str | None):
        raise InvalidFlow("'resume' is the token of a position that was told before; leave it out to begin anew")
    changes = reader.changes(view.name, columns_to_read(schema.names, asked), None, ticket.resume)
    nothing = pa.RecordBatch.from_pylist([], schema=schema)

    def messages() -> Iterator[Any]:
        with changes:
            while True:
                found = changes.take(HEARTBEAT)
                if found is None:
                    yield write_change(Change("rows", None, nothing))  # so that it shows when nobody reads any more
                    continue
                for each in narrowed(found, schema, condition, keyed=bool(view.keys)):
                    yield write_change(each)

    return schema, messages()


def narrowed(change: Change, schema: pa.Schema, condition: Condition | None, *, keyed: bool) -> Iterator[Change]:
    """`change` in the columns of `schema`, as if only those rows were there for which `condition` holds."""
    rows, removed = change.rows, None
    if change.kind == "rows" and condition is not None and rows.num_rows:
        holds = condition.holds(rows)
        if keyed and not holds.all():
            removed = rows.filter(pa.array(~holds))
        rows = rows.filter(pa.array(holds))
    if removed is not None:
        yield Change("removed", change.partition, removed.select(schema.names))
    if change.kind != "rows" or rows.num_rows or change.missed:
        yield replace(change, rows=pa.RecordBatch.from_arrays(rows.select(schema.names).columns, schema=schema))
