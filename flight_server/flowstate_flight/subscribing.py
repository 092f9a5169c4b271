"""Changes on the wire: a ``do_get`` that stays open.

Every message is a batch in the columns that were asked for, with a JSON object beside it (the message's application metadata):
``{"kind", "partition", "answer"?, "resume"?, "missed"?}``, which are the fields of `flowstate.view.changes.Change`. A client that comes
back puts the last `resume` that it got into its ticket, unless its stream broke in the middle of a round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.errors import InternalError, InvalidFlow
from flowstate.view.answer import answer_of_data
from flowstate.view.changes import Change, Condition
from flowstate.view.columns import chosen
from flowstate.view.directory import LivePartition, ViewInfo
from flowstate_flight.answering import sliced
from flowstate_flight.expression import DecodedFilter, decode_filter
from flowstate_flight.ticket import Ticket
from flowstate_flight.visible import UNREADABLE, RowFilter

#: Seconds after which a subscriber is told the position when nothing changes: by that a service notices that he has gone.
HEARTBEAT = 0.5
#: Bytes of a message, about: whoever does not read holds one or two of them.
MESSAGE_BYTES = 1 << 18
_ROW = "__row"

Message = tuple[pa.RecordBatch, bytes]


def columns_of(view: ViewInfo, ticket: Ticket) -> pa.Schema:
    """The columns that a subscriber is told. Raises InvalidFlow if the key is not among them."""
    if ticket.keys is not None or ticket.limit is not None or ticket.fresh.to_data() or ticket.wait is not None:
        raise InvalidFlow(
            "changes are told live and whole; leave keys, limit, fresh and wait out, and give a filter instead"
        )
    schema = view.schema if ticket.columns is None else chosen(view.name, view.schema, ticket.columns)
    lacking = [each for each in view.keys if each not in schema.names]
    if lacking:
        message = "changes are told by key, so 'columns' has all columns of the key"
        raise InvalidFlow(message, view=view.name, missing=lacking)
    return schema.remove_metadata()


def condition_of(asked: DecodedFilter | None, rows: RowFilter | None) -> Condition | None:
    """`asked` of those `rows` that may be seen."""
    if asked is None and rows is None:
        return None
    names = list(asked.names) if asked is not None else []
    columns = tuple(dict.fromkeys([*names, *(rows.columns if rows is not None else ())]))

    def holds(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        numbered = pa.table({each: batch.column(each) for each in columns} | {_ROW: np.arange(batch.num_rows)})
        if rows is not None:
            numbered = numbered.filter(rows.rows)
        if asked is not None:
            numbered = asked.apply(numbered)
        found = np.zeros(batch.num_rows, np.bool_)
        found[numbered.column(_ROW).to_numpy()] = True
        return found

    return Condition(columns, holds)


def told(
    partition: LivePartition, view: ViewInfo, ticket: Ticket, rows: RowFilter | None
) -> tuple[pa.Schema, Iterator[Any]]:
    """The answer to a ticket for changes: a stream that ends by an error, or with its reader."""
    schema = columns_of(view, ticket)
    asked = decode_filter(ticket.filter, view.schema) if ticket.filter is not None else None
    if not isinstance(ticket.resume, dict | None):
        raise InvalidFlow("'resume' is the object of a position that this partition told; leave it out to begin anew")
    tag = _tag(view, ticket.filter, rows)
    known = ticket.resume if ticket.resume is None or ticket.resume.get("filter") == tag else None
    subscription = partition.changes(view.name, schema.names, condition_of(asked, rows), known)

    def messages() -> Iterator[Message]:
        try:
            while True:
                for each in subscription.round(HEARTBEAT):
                    if tag is not None and each.resume is not None:
                        each = replace(each, resume={**each.resume, "filter": tag})
                    for piece in pieces(each):
                        yield write_change(piece)
        except InvalidFlow as error:
            if rows is not None and "key" in error.facts:
                raise InvalidFlow(UNREADABLE) from None  # it names the row, which may be another's
            raise

    return schema, messages()


def _tag(view: ViewInfo, filter: bytes | None, rows: RowFilter | None) -> str | None:
    """Of which rows a subscriber is told, in a few characters; None for all. Whoever comes back when that is another is told anew: what
    she held and may see no more, or sees now and was never told, is in no difference."""
    if filter is None and rows is None:
        return None
    hers = None if rows is None else rows.decoded(view)
    text = b"" if rows is None else str(rows.rows).encode() if hers is None else hers.encoded
    return hashlib.sha256(b"%d " % len(text) + text + (filter or b"")).hexdigest()[:16]


def going_on(messages: Iterator[Any], still: Callable[[], object]) -> Iterator[Any]:
    """The same for as long as `still` raises nothing, which is called before each."""
    for each in messages:
        still()
        yield each


def pieces(change: Change) -> Iterator[Change]:
    """`change` in several, each of about `MESSAGE_BYTES`; as it is where it says how to go on after it, which a part of it cannot."""
    if change.resume is not None:
        yield change
        return
    for rows in sliced(change.rows, MESSAGE_BYTES):
        yield replace(change, rows=rows)


def write_change(change: Change) -> Message:
    data: dict[str, Any] = {"kind": change.kind, "partition": change.partition}
    if change.answer is not None:
        data["answer"] = change.answer.to_data()
    if change.resume is not None:
        data["resume"] = change.resume
    if change.missed:
        data["missed"] = change.missed
    return change.rows, json.dumps(data).encode()


def read_change(rows: pa.RecordBatch, metadata: bytes) -> Change:
    """What `write_change` wrote. Raises InternalError."""
    try:
        data = json.loads(metadata)
        answer = answer_of_data(data["answer"]) if "answer" in data else None
        return Change(data["kind"], data["partition"], rows, answer, data.get("resume"), data.get("missed", 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InternalError("a message of changes cannot be read", error=type(error).__name__) from None
