"""A saved partition that serves like a live one, with no job running: the same reads, from storage, with their age on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.plan.portable import load_tables
from flowstate.plan.position import NEVER, Place
from flowstate.plan.spec import TableSpec, queryable
from flowstate.snapshot.saved import SavedSnapshot
from flowstate.state.append import AppendTable
from flowstate.state.table import KeyedTable
from flowstate.state.watermark import Watermarks
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.changes import Condition, Subscription
from flowstate.view.columns import chosen
from flowstate.view.directory import Directory, PartitionInfo, ViewInfo
from flowstate.view.freshness import behind, missing
from flowstate.view.lookup import with_window_end


class StoredPartition:
    """`view.directory.LivePartition` over one partition of a `SavedSnapshot`; a table is loaded when it is first asked for."""

    def __init__(self, snapshot: SavedSnapshot, partition: int) -> None:
        self.snapshot, self.partition = snapshot, partition
        self.job, self.epoch = snapshot.job.name, snapshot.manifests[partition].epoch
        self.specs = queryable(load_tables(snapshot.job.plan["tables"]))
        self._tables: dict[str, KeyedTable | AppendTable] = {}
        self._lock = threading.Lock()

    @property
    def as_of(self) -> float:
        """Unix time when what was loaded was current. A damaged state makes `load` go back to an older one, so ask after it."""
        state = self.snapshot.manifests[self.partition].state
        return state.as_of if state else 0.0

    def load(self, view: str) -> None:
        """Load a view now rather than when it is first asked for. Raises CorruptData, Unavailable, and InvalidFlow if there is none."""
        with self._lock:
            self._table(view)

    def reached(self, at_least: Mapping[str, Place], wait: float) -> None:
        state = self.snapshot.manifests[self.partition].state
        position = (
            {} if state is None else {split: Place(*at) for split, at in Watermarks.load(state.marks).position.items()}
        )
        if lacking := missing(at_least, position):
            raise behind(self.partition, lacking, 0.0)

    def scan(
        self, view: str, columns: list[str] | None = None, cut: int | None = None, once: bool = False
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch], Answer]:
        with self._lock:
            frozen = self._table(view).view()
        schema = frozen.schema
        if columns is not None:
            schema = chosen(view, schema, columns)
        return schema, frozen.batches(columns), self._answer(view)

    def lookup(self, view: str, keys: pa.RecordBatch) -> tuple[pa.RecordBatch, Answer]:
        with self._lock:
            table = self._table(view)
            if not isinstance(table, KeyedTable):
                raise InvalidFlow("this view has no key; scan it, or use sql", view=view)
            spec = self.specs[view]
            assert isinstance(spec, TableSpec)
            return table.lookup(with_window_end(spec, keys)), self._answer(view)

    def changes(
        self,
        view: str,
        columns: list[str] | None = None,
        condition: Condition | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> Subscription:
        message = "what is saved does not change; read it, or subscribe to the job while it runs"
        raise InvalidFlow(message, job=self.job, partition=self.partition)

    def _table(self, view: str) -> KeyedTable | AppendTable:
        if view not in self.specs:
            raise InvalidFlow(f"no view {view!r}{did_you_mean(view, self.specs)}", job=self.job)
        if view not in self._tables:
            spec = self.specs[view]
            batches = self.snapshot.load(self.partition, [view])[view]
            if isinstance(spec, TableSpec):
                keyed = KeyedTable(spec, seed=self.snapshot.job.seed)
                keyed.restore(batches, None)
                self._tables[view] = keyed
            else:
                state = self.snapshot.manifests[self.partition].state
                appended = AppendTable(spec)
                appended.restore(batches, state.extras.get(view, {}) if state else {}, None)
                self._tables[view] = appended
        return self._tables[view]

    def _answer(self, view: str) -> Answer:
        manifest = self.snapshot.manifests[self.partition]
        assert manifest.state is not None
        marks = Watermarks.load(manifest.state.marks, manifest.state.extras.get("reached", NEVER))
        part = PartitionAnswer(
            self.partition,
            manifest.epoch,
            {split: Place(*place) for split, place in marks.position.items()},
            marks.watermark(),
            manifest.state.as_of,
            "saved",
            self.snapshot.cut.number if self.snapshot.cut else manifest.version,
        )
        return Answer(self.job, view, (part,), self.snapshot.consistent)


def view_info(name: str, spec: TableSpec | object, schema: pa.Schema) -> ViewInfo:
    """How readers see a table."""
    if isinstance(spec, TableSpec):
        window = spec.window.name if spec.window is not None else None
        return ViewInfo(name, schema, "keyed", tuple(spec.key_schema.names), spec.routing_keys, window)
    return ViewInfo(name, schema, "append")


def stored_directory(snapshot: SavedSnapshot, location: str | None, version: int = 1) -> Directory:
    """The routing table of a snapshot that is served at `location`, or nowhere."""
    job = snapshot.job
    tables = queryable(load_tables(job.plan["tables"]))
    views = {name: view_info(name, spec, spec.schema) for name, spec in tables.items()}
    count = len(snapshot.manifests) if snapshot.cut is not None else job.partitions
    partitions = tuple(
        PartitionInfo(number, snapshot.manifests[number].epoch, location)
        if number in snapshot.manifests
        else PartitionInfo(number, 0, None)
        for number in range(count)
    )
    return Directory(job.name, version, job.seed, job.key_groups, views, partitions)
