"""A pump as its readers see it: scans and lookups, from Flight's threads, under the pump's gate.

Lookups copy their few rows out between two blocks and hold nothing. Scans share one frozen state while it is fresh enough, since every
view makes the pump copy the chunks that it writes next. Cuts are kept for their readers on a lease. A frozen state is let go of, never
released here: a scan that another thread still streams from it keeps it alive, and the last reference gives it back.

Before an answer is handed out the worker's lease is checked, after the rows were taken: what is called live was the newest there was at
its `as_of`. A cut is the same whoever serves it, so it needs none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow, Unavailable, did_you_mean
from flowstate.plan.position import NEVER, Place
from flowstate.plan.spec import TableSpec
from flowstate.runtime.contents import Frozen
from flowstate.runtime.pump import Pump
from flowstate.state.table import KeyedTable
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.columns import chosen
from flowstate.view.freshness import behind, missing
from flowstate.view.lookup import with_window_end

SHARED_FOR = 0.005  # seconds that a scan may share the state frozen for another
LEASE = 300.0  # seconds that a cut is kept after it was last read
CUTS = 16  # cuts that are kept at most; the oldest goes first


@dataclass
class _Kept:
    frozen: Frozen
    as_of: float
    touched: float


class ServedPartition:
    """`view.directory.LivePartition` over a pump."""

    def __init__(self, pump: Pump, clock: Clock, check_lease: Callable[[], None] = lambda: None) -> None:
        """`check_lease` raises Unavailable when this worker may have been replaced."""
        self.pump, self.clock, self._check_lease = pump, clock, check_lease
        self.job, self.partition = pump.spec.name, pump.number
        self.epoch = pump.spec.served_epoch(pump.epoch)
        self._lock = threading.Lock()
        self._shared: _Kept | None = None
        self._cuts: dict[int, _Kept] = {}

    def reached(self, at_least: Mapping[str, Place], wait: float) -> None:
        began = self.clock.monotonic()
        if self._lacking(at_least):
            self.pump.wait_until(lambda: not self._lacking(at_least), wait)
            if lacking := self._lacking(at_least):
                raise behind(self.partition, lacking, self.clock.monotonic() - began)
        with self._lock:  # a state frozen for another, a few milliseconds ago, may be from before that
            if self._shared is not None and missing(at_least, self._shared.frozen.marks.position):
                self._shared = None

    def scan(
        self, view: str, columns: list[str] | None = None, cut: int | None = None
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch], Answer]:
        self._known(view)
        if cut is None:
            kept = self._fresh()
            self._check_lease()
        else:
            kept = self._cut(cut)
        table = kept.frozen.views[view]
        schema = table.schema
        if columns is not None:
            schema = chosen(view, schema, columns)
        return schema, table.batches(columns), self._answer(view, kept)

    def lookup(self, view: str, keys: pa.RecordBatch) -> tuple[pa.RecordBatch, Answer]:
        self._known(view)
        contents = self.pump._contents
        table = contents.tables[view]
        if not isinstance(table, KeyedTable):
            raise InvalidFlow("this view has no key; scan it, or use sql", view=view)
        spec = self.pump.spec.plan.tables[view]
        assert isinstance(spec, TableSpec)
        whole = with_window_end(spec, keys)
        with self.pump.gate:
            rows = table.lookup(whole)
            position, watermark = dict(contents.marks.position), contents.marks.watermark()
            as_of = self.clock.wall()
        self._check_lease()
        part = PartitionAnswer(self.partition, self.epoch, position, watermark, as_of, "live")
        return rows, Answer(self.job, view, (part,))

    def keep_cut(self, cut: int, frozen: Frozen) -> None:
        """Hold a cut until it was not read for `LEASE` seconds."""
        now = self.clock.monotonic()
        with self._lock:
            self._cuts[cut] = _Kept(frozen, self.clock.wall(), now)
            old = [each for each, kept in self._cuts.items() if now - kept.touched > LEASE]
            old += sorted(self._cuts)[: max(0, len(self._cuts) - CUTS)]
            for each in set(old):
                del self._cuts[each]

    def release(self) -> None:
        """Let go of everything that is held for readers."""
        with self._lock:
            self._cuts.clear()
            self._shared = None

    def expire(self) -> None:
        """Give back what nobody has read for a while; called now and then."""
        now = self.clock.monotonic()
        with self._lock:
            if self._shared is not None and now - self._shared.touched > 4 * SHARED_FOR:
                self._shared = None
            for cut in [cut for cut, kept in self._cuts.items() if now - kept.touched > LEASE]:
                del self._cuts[cut]

    def _lacking(self, at_least: Mapping[str, Place]) -> dict[str, tuple[Place, Place | None]]:
        with self.pump.gate:
            if self.pump.machine is None:
                raise Unavailable(
                    "this partition is loading; it will be served again", partition=self.partition, retry_after=0.2
                )
            return missing(at_least, self.pump._contents.marks.position)

    def _known(self, view: str) -> None:
        if self.pump.machine is None or self.pump.state not in ("live", "ended"):
            message = f"this partition is {self.pump.state}; it will be served again"
            raise Unavailable(message, job=self.job, partition=self.partition, retry_after=0.2)
        views = self.pump.spec.plan.views
        if view not in views:
            raise InvalidFlow(f"no view {view!r}{did_you_mean(view, views)}", job=self.job)

    def _fresh(self) -> _Kept:
        with self._lock:
            now = self.clock.monotonic()
            if self._shared is None or now - self._shared.touched > SHARED_FOR:
                with self.pump.gate:
                    frozen, as_of = self.pump._contents.freeze(), self.clock.wall()
                self._shared = _Kept(frozen, as_of, now)
            return self._shared

    def _cut(self, cut: int) -> _Kept:
        with self._lock:
            kept = self._cuts.get(cut)
            if kept is None:
                raise InvalidFlow("this snapshot is not kept any more; take another with job.snapshot()", cut=cut)
            kept.touched = self.clock.monotonic()
            return kept

    def _answer(self, view: str, kept: _Kept) -> Answer:
        marks = kept.frozen.marks
        watermark = marks.watermark() if marks.position else NEVER
        part = PartitionAnswer(self.partition, self.epoch, dict(marks.position), watermark, kept.as_of, "live")
        return Answer(self.job, view, (part,))
