"""SQL for others over a job in memory, for the tests of it: four partitions on a Flight service, and saved snapshots of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from flight_memory import MemoryPartition, directory_of, partitions_of
from flight_tables import TABLES, VIEWS

from flowstate.errors import InvalidFlow
from flowstate.view.directory import Directory, LivePartition, ViewInfo
from flowstate.view.saved import Saved
from flowstate.view.sql import Statement
from flowstate_flight import FlightReader, FlightService
from flowstate_sql.limits import Limits
from flowstate_sql.served import ServedSql

COUNT = 4
WIDE = pa.table({"id": pa.array(range(200_000), pa.int64()), "text": ["x" * 60] * 200_000})
ALL_VIEWS = {
    **VIEWS,
    "wide": ViewInfo("wide", WIDE.schema, "keyed", ("id",), ("id",)),
    "dead_letters": ViewInfo("dead_letters", VIEWS["subtotals_late"].schema, "append"),
}
ALL_TABLES = {**TABLES, "wide": WIDE, "dead_letters": TABLES["subtotals_late"].slice(0, 7)}
#: A query that takes longer than any test.
ENDLESS = (
    "select count(*) from subtotals a, subtotals b, subtotals c, subtotals d, subtotals e, subtotals f "
    "where a.events + b.events + c.events + d.events + e.events + f.events = -1"
)


class Snapshots:
    """`view.saved.SavedStates` that holds snapshots alone: number -> the first so many rows of each part of every view."""

    def __init__(self, directory: Directory, parts: Mapping[int, list[MemoryPartition]]) -> None:
        self._directory, self._parts = directory, parts

    def announced(self) -> Directory | None:
        return None

    def directory(self) -> Directory:
        return self._directory

    def find(self, partition: int, view: str, oldest: float) -> Saved:
        return Saved(trouble=InvalidFlow("nothing but snapshots is kept here"))

    def snapshot(self, number: int) -> tuple[Directory, Mapping[int, LivePartition]]:
        if number not in self._parts:
            raise InvalidFlow(
                "there is no such cut; take one of those that are kept", at=number, cuts=list(self._parts)
            )
        return self._directory, {each.partition: each for each in self._parts[number]}

    def close(self) -> None:
        """Nothing is open."""


class Served:
    def __init__(self, limits: Limits | None = None, **options: Any) -> None:
        self.service = FlightService()
        self.partitions = partitions_of("billing", ALL_VIEWS, ALL_TABLES, COUNT)
        for each in self.partitions:
            self.service.register(each)
            each.cuts[5] = dict(each.tables)
        self.service.set_cut_handler(lambda job, timeout: {"cut": 5, "position": {"events-0": [100, 1]}})
        directory = directory_of("billing", ALL_VIEWS, [self.service.location] * COUNT)
        self.service.set_directory(directory)
        parts = {}
        for number, rows in ((1, 0), (2, 10)):
            tables = {name: table.slice(0, rows) for name, table in ALL_TABLES.items()}
            parts[number] = partitions_of("billing", ALL_VIEWS, tables, COUNT)
        saved = Snapshots(directory, parts)
        self.reader = FlightReader(self.service.location, saved=saved, grace=0.2, patience=1.0)
        self.sql = ServedSql(self.reader, limits, **options)

    def rows(self, query: str, params: Any = None, **how: Any) -> list[dict[str, Any]]:
        return table_of(self.sql.run(query, params, **how)).to_pylist()

    def scans(self) -> int:
        return sum(len(each.scanned) for each in self.partitions)


def table_of(statement: Statement) -> pa.Table:
    return pa.Table.from_batches(list(statement.batches()), statement.schema)


@contextlib.contextmanager
def served(limits: Limits | None = None, **options: Any) -> Iterator[Served]:
    here = Served(limits, **options)
    try:
        yield here
    finally:
        here.sql.close()
        here.reader.close()
        here.service.close()
