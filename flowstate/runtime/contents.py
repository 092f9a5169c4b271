"""What a partition holds: its tables and its position, which change together.

State is a pure function of the position. `apply` is the one way in; what it was given before it skips, so that a replay, a reader that
is behind, or another interleaving of the splits end in the same state.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import FlowstateError, InternalError
from flowstate.exchange.message import Batch
from flowstate.plan.position import NEVER, OFFSET, Place
from flowstate.plan.spec import JobPlan, TableSpec
from flowstate.plan.window import WindowSpec, microseconds
from flowstate.snapshot.manifest import SavedState
from flowstate.state.append import AppendTable, AppendView
from flowstate.state.table import KeyedTable
from flowstate.state.view import TableView
from flowstate.state.watermark import Watermarks

View = TableView | AppendView


@dataclass(frozen=True)
class Frozen:
    """Everything at one position: tables as immutable views, and the marks that belong to them."""

    marks: Watermarks
    views: Mapping[str, View]
    extras: Mapping[str, Any]

    def release(self) -> None:
        for view in self.views.values():
            view.release()


@dataclass(frozen=True)
class Due:
    """Rows of `table` for a sink: windows that closed in ``(after, upto]``, and those that had left the table before."""

    table: str
    after: int
    upto: int
    outbox: tuple[pa.RecordBatch, ...]

    def rows(self, frozen: Frozen) -> list[pa.RecordBatch]:
        view = frozen.views[self.table]
        assert isinstance(view, TableView)
        closed = view.closed(self.after, self.upto)
        return [*self.outbox, *([closed] if closed.num_rows else [])]


@dataclass
class Contents:
    """Tables, watermarks, and the final rows that no manifest names yet."""

    plan: JobPlan
    seed: int
    tables: dict[str, KeyedTable | AppendTable] = field(default_factory=dict)
    marks: Watermarks = field(default_factory=Watermarks)
    handed: dict[int, int] = field(default_factory=dict)  # sink -> watermark up to which its rows are in some manifest
    outbox: dict[int, list[pa.RecordBatch]] = field(default_factory=dict)  # final rows that left the table before that
    applied_rows: int = 0

    def __post_init__(self) -> None:
        for name, spec in self.plan.tables.items():
            self.tables[name] = KeyedTable(spec, seed=self.seed) if isinstance(spec, TableSpec) else AppendTable(spec)
        self.handed = dict.fromkeys(range(len(self.plan.sinks)), NEVER)
        self._taken: dict[int, int] = {}  # sink -> where `handed` stood when rows were last taken
        self._keeps = any(
            isinstance(spec, TableSpec) and spec.window is not None and spec.window.keep is not None
            for spec in self.plan.tables.values()
        )

    def restore(
        self,
        saved: SavedState,
        handed: Mapping[str, int],
        tables: Mapping[str, Iterable[pa.RecordBatch]],
        keep: Callable[[np.ndarray], np.ndarray] | None = None,
        keep_split: Callable[[str], bool] | None = None,
    ) -> None:
        """Take in a saved state. `keep` and `keep_split` choose what is this partition's own, when their number changed; then the parts
        of all partitions of a cut are taken in one after the other."""
        extras = saved.extras
        if not self.marks.position:
            self.marks = Watermarks.load(saved.marks, extras.get("reached", NEVER), extras.get("passed", NEVER))
        for name, batches in tables.items():
            table = self.tables[name]
            if isinstance(table, KeyedTable):
                table.restore(batches, keep)
            else:
                table.restore(batches, extras.get(name, {}), keep_split)
        for sink, watermark in handed.items():
            self.handed[int(sink)] = max(watermark, self.handed[int(sink)])
            # An older state than that of the marks (K4): what was handed over was acted upon, and a split that joins must know.
            self.marks.reached = max(watermark, self.marks.reached)

    def apply(self, split: str, batch: Batch) -> bool:
        """Take in what of `batch` is new. False if nothing was. A hole before it is an error of the sender."""
        place = self.marks.position[split]
        if batch.to <= place:
            return False
        if batch.since > place:
            raise InternalError("a row is missing between two batches", split=split, at=place, since=batch.since)
        rank = zlib.crc32(split.encode())
        for name, rows in batch.rows.items():
            if batch.since < place:
                rows = _from(rows, place)
            if rows.num_rows:
                table = self.tables[name]
                if isinstance(table, KeyedTable):
                    table.apply(rows, split_rank=rank)
                    self.applied_rows += rows.num_rows
                else:
                    table.append(rows)
        before = self.marks.passed
        self.marks.advance(split, batch.to, batch.newest, batch.floor)
        if self._keeps and self.marks.passed > before:
            self._expire()
        return True

    def _expire(self) -> None:
        upto = self.marks.passed
        for name, table in self.tables.items():
            spec = self.plan.tables[name]
            if not isinstance(table, KeyedTable) or not isinstance(spec, TableSpec) or spec.window is None:
                continue
            if spec.window.keep is None:
                continue
            expiring = [end for end, _ in table.windows() if spec.window.expires(end) <= upto]
            if not expiring:
                continue
            view = table.view()
            try:
                leaving = {
                    number: self._leaving(number, spec.window, view, expiring)
                    for number, sink in enumerate(self.plan.sinks)
                    if sink.table == name
                }
            except FlowstateError:
                continue  # a result that its sink cannot take: nothing is forgotten before it is handed over
            finally:
                view.release()
            for number, rows in leaving.items():
                if rows.num_rows:
                    self.outbox.setdefault(number, []).append(rows)
            table.expire(upto)

    def _leaving(self, sink: int, window: WindowSpec, view: TableView, expiring: list[int]) -> pa.RecordBatch:
        """Rows of windows that are about to go and that nobody has taken for the sink yet. Raises if a save that is under way cannot hand
        over what it took, and would put it back."""
        last = max(window.closes(end) for end in expiring)
        rows = view.closed(self._taken.get(sink, self.handed[sink]), max(last, self.handed[sink]))
        ends = microseconds(rows.column(window.end_name))
        untaken = window.closes_array(ends) > self.handed[sink]
        return rows.filter(pa.array(np.isin(ends, np.array(expiring, np.int64)) & untaken))

    def freeze(self) -> Frozen:
        """Everything as it is now: microseconds, whatever the size."""
        extras: dict[str, Any] = {"reached": self.marks.reached, "passed": self.marks.passed}
        for name, table in self.tables.items():
            if isinstance(table, AppendTable):
                extras[name] = table.extras()
        return Frozen(self.marks.copy(), {name: table.view() for name, table in self.tables.items()}, extras)

    def take_due(self, frozen: Frozen) -> dict[int, Due]:
        """Hand over, per sink, the final rows that no manifest names yet. From now on they are the save's: it stages them, or gives
        them back (`give_back`). So a window that expires while a save is under way is not handed over twice."""
        due = {}
        for sink, after in self.handed.items():
            upto = frozen.marks.reached
            due[sink] = Due(self.plan.sinks[sink].table, after, upto, tuple(self.outbox.pop(sink, ())))
            self.handed[sink] = max(after, upto)
            self._taken[sink] = after
        return due

    def untake(self, sink: int, due: Due, *, outbox_too: bool) -> None:
        """What was due could not be made into rows: the sink stays where it was, and `_expire` has kept everything since. The outbox goes
        back too, unless a manifest names its rows by now."""
        self.handed[sink] = due.after
        if outbox_too:
            self.give_back(sink, list(due.outbox))

    def give_back(self, sink: int, rows: list[pa.RecordBatch]) -> None:
        """Rows that were taken and could not be saved."""
        self.outbox[sink] = [*rows, *self.outbox.get(sink, ())]


def _from(rows: pa.RecordBatch, place: Place) -> pa.RecordBatch:
    """The rows at or above `place`."""
    column = OFFSET if OFFSET in rows.schema.names else "offset"
    return rows.filter(pc.greater_equal(rows.column(column), place.offset))
