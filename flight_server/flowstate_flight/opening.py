"""One part of a read as a stream from its service, opened so that its loss is noticed while another attempt can still be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import pyarrow as pa

from flowstate.clock import Clock
from flowstate.errors import Behind
from flowstate.view.answer import Answer
from flowstate.view.freshness import Freshness
from flowstate_flight.gathering import Reading
from flowstate_flight.ticket import Ticket

#: Schema (with the answer), batches, and how to end it.
Opened = tuple[pa.Schema, Iterator[pa.RecordBatch], Callable[[], None]]
#: Bytes of each partition that a scan holds before it gives anything out: as long as that is all, a worker that dies breaks nothing.
AHEAD = 8 << 20


def open_part(reading: Reading, location: str, ticket: Ticket, timeout: float) -> Opened:
    """What the service sends first is here when this returns."""
    stream = reading.pool.open(location, ticket.to_bytes(), timeout)
    stream.patience = 2 * timeout
    batches, held, size = iter(stream), list[pa.RecordBatch](), 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size >= AHEAD:
            stream.patience = reading.timeout
            return stream.schema, chain(held, batches), stream.cancel
    return stream.schema, iter(held), nothing


def nothing() -> None:
    """A part that is all here needs no end."""


def check_age(answer: Answer | None, fresh: Freshness, clock: Clock) -> None:
    """A service may itself answer from what was saved: that, too, is never older than was asked for. Raises Behind."""
    saved = [each.as_of for each in answer.parts if each.origin == "saved"] if answer is not None else []
    if fresh.max_age is not None and saved:
        age = max(0.0, clock.wall() - min(saved))
        if age > fresh.max_age or fresh.max_age == 0:
            message = "there is nothing but what was saved, and that is older than max_age"
            facts = {"age": round(age, 3), "max_age": fresh.max_age, "missed_by": round(age - fresh.max_age, 3)}
            raise Behind(message, retry_after=1.0, **facts)


def left_of(fresh: Freshness, begun: float, clock: Clock) -> Freshness:
    """`fresh` with what is left of its `wait`, for a read that has begun then."""
    if fresh.wait is None:
        return fresh
    return fresh.within(max(0.0, fresh.wait - (clock.monotonic() - begun)))
