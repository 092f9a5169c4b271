"""``flowstate sql``: queries over the views of a job, computed as a service computes them, so that rows and errors are the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from flowstate.api.sink_status import stored
from flowstate.command.asking import tell_saved
from flowstate.command.place import Place
from flowstate.command.rows import write_rows
from flowstate.command.statements import locate
from flowstate.errors import InvalidFlow
from flowstate.view.freshness import Freshness
from flowstate_flight.client import FlightReader
from flowstate_sql.limits import Limits
from flowstate_sql.served import ServedSql
from flowstate_sql.system import SCHEMAS

#: Seconds and rows: the machine and the query are those of one person, who ends it when she likes.
LONG, MANY = 365 * 86_400.0, 1 << 62


@contextmanager
def serving(place: Place) -> Iterator[tuple[FlightReader, ServedSql]]:
    """A reader of the job, and what runs queries over it. Raises Unavailable, InvalidFlow."""
    with place.opened() as (reader, saved):
        store, sinks = stored(reader, saved)
        served = ServedSql(reader, limits(), store=store, status=sinks)
        try:
            yield reader, served
        finally:
            served.close()


def query(place: Place, text: str, fresh: Freshness, kind: str) -> None:
    """`kind`: text, json or csv. Raises Unavailable, InvalidFlow."""
    with serving(place) as (reader, served):
        try:
            running = served.run(text, fresh=fresh)
        except InvalidFlow as error:
            raise pointed(text, error, reader) from None
        write_rows(kind, running.schema, running.batches())
        tell_saved(running.answers)


def pointed(text: str, error: InvalidFlow, reader: FlightReader) -> InvalidFlow:
    """`error` in one sentence, after the line of the query that it is about, with a mark below the place, if somebody sees it."""
    mistake = locate(text, error.message, tables_of(reader))
    if mistake is None:
        return error
    if sys.stderr is not None and sys.stderr.isatty():
        print(*mistake.shown(), sep="\n", file=sys.stderr)
    return InvalidFlow(error.message.partition(" LINE ")[0], **error.facts)


def tables_of(reader: FlightReader) -> dict[str, pa.Schema]:
    """All that a query may read, by name."""
    return {**SCHEMAS, **{name: reader.info(name).schema for name in reader.views()}}


def limits() -> Limits:
    """Those of one person at her own machine."""
    return Limits(seconds=LONG, rows=MANY, memory=_half_of_memory())


def _half_of_memory() -> int:
    """Bytes; a gigabyte where the system does not tell."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return 1 << 30
    return max(1 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
