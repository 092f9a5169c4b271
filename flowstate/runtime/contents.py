"""What a partition holds: its tables and its position, which change together, and the output that is still to leave it.

State is a pure function of the position. `apply` is the one way in; what it was given before it skips, so that a replay, a reader that
is behind, or another interleaving of the splits end in the same state.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import FlowstateError, InternalError
from flowstate.exchange.message import Batch
from flowstate.plan.position import NEVER, OFFSET, Place
from flowstate.plan.spec import JobPlan, TableSpec
from flowstate.runtime.output import Due, Output, View
from flowstate.runtime.outputs import make_output
from flowstate.snapshot.manifest import SavedState
from flowstate.state.append import AppendTable
from flowstate.state.table import KeyedTable
from flowstate.state.watermark import Watermarks


@dataclass(frozen=True)
class Frozen:
    """Everything at one position: tables as immutable views, and the marks that belong to them."""

    marks: Watermarks
    views: Mapping[str, View]
    extras: Mapping[str, Any]

    @property
    def closed(self) -> int:
        """Windows that close up to here (microseconds) are whole in these views."""
        return int(self.extras["closed"])

    def release(self) -> None:
        for view in self.views.values():
            view.release()


@dataclass
class Contents:
    """Tables, watermarks, and an output per sink. `epoch` is what rows of changes carry.

    `closed` is the greatest watermark that this state has come to. `marks.reached` may be ahead of it: after a fall to an older state it
    says what was acted upon before.
    """

    plan: JobPlan
    seed: int
    epoch: int = 0
    tables: dict[str, KeyedTable | AppendTable] = field(default_factory=dict)
    marks: Watermarks = field(default_factory=Watermarks)
    outputs: list[Output] = field(default_factory=list)
    closed: int = NEVER
    applied_rows: int = 0

    def __post_init__(self) -> None:
        for name, spec in self.plan.tables.items():
            self.tables[name] = KeyedTable(spec, seed=self.seed) if isinstance(spec, TableSpec) else AppendTable(spec)
        for number, sink in enumerate(self.plan.sinks):
            self.outputs.append(make_output(number, sink, self.plan.tables[sink.table], self.epoch))
        self._outputs_of = {
            name: [each for each in self.outputs if each.sink.table == name] for name in self.plan.tables
        }
        self._keeps = any(
            isinstance(spec, TableSpec) and spec.window is not None and spec.window.keep is not None
            for spec in self.plan.tables.values()
        )

    def restore(
        self,
        saved: SavedState,
        handed: Mapping[str, Any],
        tables: Mapping[str, Iterable[pa.RecordBatch]],
        keep: Callable[[np.ndarray], np.ndarray] | None = None,
        keep_split: Callable[[str], bool] | None = None,
        *,
        reached: int = NEVER,
    ) -> None:
        """Take in a saved state, under the hand-over marks of the newest manifest. `keep` and `keep_split` choose what is this partition's
        own, when their number changed; then the parts of all partitions of a cut are taken in one after the other. `reached`: what was
        acted upon after this state was saved (K4), of which a split that joins must know."""
        extras = saved.extras
        if not self.marks.position:
            self.marks = Watermarks.load(saved.marks)
        self.marks.reached = max(self.marks.reached, extras.get("reached", NEVER), reached)
        self.marks.passed = max(self.marks.passed, extras.get("passed", NEVER))
        self.closed = max(self.closed, extras.get("closed", extras.get("reached", NEVER)))
        for name, batches in tables.items():
            table = self.tables[name]
            if isinstance(table, KeyedTable):
                table.restore(batches, keep)
            else:
                table.restore(batches, extras.get(name, {}), keep_split)
        for output in self.outputs:
            output.restore(handed.get(str(output.number)), self.tables[output.sink.table].view())

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
                    for output in self._outputs_of[name]:
                        output.append(split, rows)
        before = self.marks.passed
        self.marks.advance(split, batch.to, batch.newest, batch.floor)
        self.closed = max(self.closed, self.marks.watermark())
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
            outputs = self._outputs_of[name]
            if outputs:
                view = table.view()
                try:
                    leaving = [each.leaving(view, expiring) for each in outputs]
                except FlowstateError:
                    continue  # a result that its sink cannot take: nothing is forgotten before it is handed over
                finally:
                    view.release()
                for each, rows in zip(outputs, leaving, strict=True):
                    each.keep(rows)
            table.expire(upto)

    def freeze(self) -> Frozen:
        """Everything as it is now: microseconds, whatever the size."""
        marks = self.marks
        extras: dict[str, Any] = {"reached": marks.reached, "passed": marks.passed, "closed": self.closed}
        for name, table in self.tables.items():
            if isinstance(table, AppendTable):
                extras[name] = table.extras()
        return Frozen(marks.copy(), {name: table.view() for name, table in self.tables.items()}, extras)

    # output

    @property
    def output_bytes(self) -> int:
        """Output that is in memory alone: in no table, and named by no manifest."""
        return sum(each.size.bytes for each in self.outputs)

    def take(self, frozen: Frozen) -> dict[int, Due]:
        """What is due to each sink. The save that gets it stages it, and then says how it went: `settle`, or `settle_failed`."""
        return {each.number: each.take(frozen) for each in self.outputs}

    def settle(self, frozen: Frozen, stalled: Collection[int]) -> None:
        """A manifest names what was taken (of `stalled` sinks: what was in no table any more). `frozen` is still held."""
        for each in self.outputs:
            if each.number in stalled:
                each.stalled()
            else:
                each.saved(frozen)

    def settle_failed(self) -> None:
        """No manifest names what was taken."""
        for each in self.outputs:
            each.failed()


def _from(rows: pa.RecordBatch, place: Place) -> pa.RecordBatch:
    """The rows at or above `place`."""
    column = OFFSET if OFFSET in rows.schema.names else "offset"
    return rows.filter(pc.greater_equal(rows.column(column), place.offset))
