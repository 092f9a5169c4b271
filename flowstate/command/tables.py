"""The system tables of a job, as the commands look at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from flowstate.api.sink_status import stored
from flowstate.view.answer import Answer
from flowstate.view.rights import ANYBODY
from flowstate_flight.client import FlightReader
from flowstate_sql.restricted import RestrictedSplitReader
from flowstate_sql.system import Facts, SystemReader, moment, watermark_moment

if TYPE_CHECKING:
    from flowstate.runtime.saved_states import SavedStates


@contextmanager
def system_tables(reader: FlightReader, saved: SavedStates | None) -> Iterator[SystemReader]:
    """The system tables of a job."""
    store, sinks = stored(reader, saved)
    with ThreadPoolExecutor(8, thread_name_prefix="status") as pool:
        facts = Facts(pool, store, sinks)
        yield SystemReader(RestrictedSplitReader(reader, ANYBODY), facts)


def table(system: SystemReader, name: str) -> pa.Table:
    """``flowstate_<name>`` as it is now."""
    return system.scan_reader(f"flowstate_{name}").read_all()


def filled(tables: Mapping[str, pa.Table], answer: Answer) -> dict[str, pa.Table]:
    """With what a read of everything was told of partitions that tell nothing themselves: a gateway answers for those that are away, but
    only for all together, and saved state that is large is read more slowly than a partition is asked."""
    known = {part.partition: part for part in answer.parts}
    partitions, positions = tables["partitions"].to_pylist(), tables["positions"].to_pylist()
    for row in partitions:
        part = known.get(row["partition"])
        if row["state"] != "away" or part is None:
            continue
        row |= {"epoch": part.epoch, "state": part.origin, "origin": part.origin, "snapshot": part.snapshot}
        row |= {"as_of": moment(part.as_of), "watermark": watermark_moment(part.watermark)}
        for split, place in sorted(part.position.items()):
            found = {"partition": part.partition, "split": split, "offset": place.offset, "floors": place.floors}
            positions.append(found)
    schemas = {name: each.schema for name, each in tables.items()}
    return {
        **tables,
        "partitions": pa.Table.from_pylist(partitions, schemas["partitions"]),
        "positions": pa.Table.from_pylist(positions, schemas["positions"]),
    }
