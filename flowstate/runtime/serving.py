"""A pump as its readers see it: scans and lookups, from Flight's threads, under the pump's gate.

Lookups copy their few rows out between two blocks and hold nothing. Scans share one frozen state while it is fresh enough, since every
view makes the pump copy the chunks that it writes next. Cuts are kept for their readers on a lease, and on a budget, as are the states of
scans that are read slowly (`kept`). A frozen state is let go of, never released here: whoever else still reads it keeps it alive, and the
last reference gives it back.

Before an answer is handed out the worker's lease is checked, after the rows were taken: what is called live was the newest there was at
its `as_of`. A cut is the same whoever serves it, so it needs none.
"""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow, Unavailable, did_you_mean
from flowstate.plan.position import NEVER, Place
from flowstate.runtime.backlog import Backlog
from flowstate.runtime.changes import subscribe
from flowstate.runtime.contents import Frozen
from flowstate.runtime.kept import BUDGET, LEASE, MOST_CUTS, Kept, Stream, beyond
from flowstate.runtime.pump import Pump
from flowstate.state.append import AppendView
from flowstate.state.pieces import Pieces
from flowstate.state.table import KeyedTable
from flowstate.state.view import TableView
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.changes import Condition, Subscription
from flowstate.view.columns import chosen
from flowstate.view.freshness import behind, missing
from flowstate.view.lookup import with_window_end

SHARED_FOR = 0.005  # seconds that a scan may share the state frozen for another
RECKON_EVERY = 0.05  # seconds between two reckonings of what is held, while reads begin
RECKON_SHARE = 0.05  # of the time goes into that at most: with a thousand cuts one takes milliseconds
RECKON_LATEST = 1.0  # seconds between two at most


class ServedPartition:
    """`view.directory.LivePartition` over a pump. `budget` is its share of the worker's."""

    def __init__(self, pump: Pump, clock: Clock, check_lease: Callable[[], None] = lambda: None) -> None:
        """`check_lease` raises Unavailable when this worker may have been replaced."""
        self.pump, self.clock, self._check_lease = pump, clock, check_lease
        self.backlog = Backlog.of(pump, clock)
        self.job, self.partition = pump.spec.name, pump.number
        self.epoch = pump.spec.served_epoch(pump.epoch)
        self._views = pump.spec.plan.views
        self.budget = BUDGET
        self.held = {"cuts": 0, "streams": 0}  # bytes, as of the last reckoning
        self._lock = threading.Lock()
        self._shared: Kept | None = None
        self._cuts: dict[int, Kept] = {}
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._reckoned, self._reckon_pause = 0.0, RECKON_EVERY
        self.identity = secrets.token_hex(8)
        self._subscribed: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def reached(self, at_least: Mapping[str, Place], wait: float) -> None:
        began = self.clock.monotonic()
        if self._lacking(at_least):
            self.pump.awaited.wait(self._comes(at_least), wait)
            if lacking := self._lacking(at_least):
                self._check_lease()  # another may have come further
                raise behind(self.partition, lacking, self.clock.monotonic() - began)
        with self._lock:  # a state frozen for another, a few milliseconds ago, may be from before that
            if self._shared is not None and missing(at_least, self._shared.frozen.marks.position):
                self._shared = None

    def scan(
        self, view: str, columns: list[str] | None = None, cut: int | None = None, once: bool = False
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch], Answer]:
        self._known(view)
        if cut is None:
            kept = self._fresh()
            self._check_lease()
        else:
            kept = self._cut(cut, once)
        table = kept.frozen.views[view]
        schema = table.schema
        if columns is not None:
            schema = chosen(view, schema, columns)
        stream = Stream(table.batches(columns), table.pieces(), self.clock)
        with self._lock:
            self._streams.add(stream)
            if self.clock.monotonic() - self._reckoned > self._reckon_pause:
                self._reckon()
        return schema, stream, self._answer(view, kept)

    def lookup(self, view: str, keys: pa.RecordBatch) -> tuple[pa.RecordBatch, Answer]:
        self._known(view)
        contents = self.pump._contents
        table = contents.tables[view]
        if not isinstance(table, KeyedTable):
            raise InvalidFlow("this view has no key; scan it, or use sql", view=view)
        asked = table.asked(with_window_end(table.spec, keys))
        with self.pump.gate:
            found, marks = table.find(asked), contents.marks
            position, watermark = dict(marks.position), marks.watermark()
            as_of = self.clock.wall()
        self._check_lease()
        part = PartitionAnswer(self.partition, self.epoch, position, watermark, as_of, "live")
        return found.results(), Answer(self.job, view, (part,))

    def changes(
        self,
        view: str,
        columns: list[str] | None = None,
        condition: Condition | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> Subscription:
        self._known(view)
        found = subscribe(self, view, columns, condition, resume)
        with self._lock:
            self._subscribed.add(found)
        return found

    def check(self, view: str) -> None:
        """Raises Unavailable when another may have come in the place of this incarnation."""
        self._known(view)
        if self.pump._stopping:
            raise Unavailable(
                "this partition stops; it will be served again", partition=self.partition, retry_after=0.2
            )
        self._check_lease()

    def hold(self, steps: Iterator[Any], view: TableView | AppendView) -> Iterator[Any]:
        """The steps of a subscriber's round, given up when what it reads from is beyond the budget."""
        stream = Stream(steps, view.pieces(), self.clock)
        with self._lock:
            self._streams.add(stream)
        return stream

    def subscribers(self) -> int:
        return len(self._subscribed)

    def keep_cut(self, cut: int, frozen: Frozen) -> None:
        """Hold a cut until it was not read for `LEASE` seconds, or has to make room for others."""
        with self._lock:
            self._cuts[cut] = Kept(frozen, self.clock.wall(), self.clock.monotonic())
            if len(self._cuts) > 3 * MOST_CUTS:  # the pump is held up here; what they cost is reckoned by `expire`
                self._reckon()

    def release(self) -> None:
        """Let go of everything that is held for readers."""
        with self._lock:
            self._cuts.clear()
            self._shared = None

    def expire(self) -> None:
        """Give back what nobody has read for a while, and what is beyond the budget; called now and then."""
        now = self.clock.monotonic()
        with self._lock:
            if self._shared is not None and now - self._shared.touched > 4 * SHARED_FOR:
                self._shared = None
            for cut in [cut for cut, kept in self._cuts.items() if now - kept.touched > LEASE]:
                del self._cuts[cut]
            for stream in [each for each in self._streams if now - each.touched > LEASE]:
                self._streams.discard(stream)
                stream.give_up()
            self._reckon()

    def _reckon(self) -> None:
        """Count what is held, and let go of what is beyond the budget. Called under the lock."""
        self._reckoned = self.clock.monotonic()
        if not self._cuts and not self._streams:
            self.held = {"cuts": 0, "streams": 0}
            return
        if self.pump.machine is None:
            return
        with self.pump.gate:
            own = Pieces.union(each.pieces() for each in self.pump._contents.tables.values())
        limit = max(self.budget, own.total)
        streams = sorted(self._streams, key=lambda each: each.touched, reverse=True)
        gone, streaming = beyond(streams, own, limit)
        for stream in gone:
            self._streams.discard(stream)
            stream.give_up()
        keeping = 0
        for again in (True, False):
            cuts = [each for each, kept in self._cuts.items() if (kept.read == "again") is again]
            cuts.sort(key=lambda each: self._cuts[each].worth, reverse=True)
            staying = [self._cuts[each] for each in cuts[:MOST_CUTS]]
            forgotten, spent = beyond(staying, own, limit)
            for cut in cuts[len(staying) - len(forgotten) :]:
                del self._cuts[cut]
            keeping += spent
        self.held = {"cuts": keeping, "streams": streaming}
        taken = self.clock.monotonic() - self._reckoned
        self._reckon_pause = min(max(RECKON_EVERY, taken / RECKON_SHARE), RECKON_LATEST)

    def _lacking(self, at_least: Mapping[str, Place]) -> dict[str, tuple[Place, Place | None]]:
        self._serves()
        with self.pump.gate:
            position = dict(self.pump._contents.marks.position)
        return missing(at_least, position)

    def _comes(self, at_least: Mapping[str, Place]) -> Callable[[], bool]:
        """Whether all that is come, for the pump to ask after each block: positions only grow, so it looks at one split, usually."""
        left, marks = list(at_least.items()), self.pump._contents.marks

        def come() -> bool:
            while left and not missing(dict(left[-1:]), marks.position):
                left.pop()
            return not left

        return come

    def _serves(self) -> None:
        if self.pump.machine is None or self.pump.state not in ("live", "ended"):
            message = f"this partition is {self.pump.state}; it will be served again"
            raise Unavailable(message, job=self.job, partition=self.partition, retry_after=0.2)

    def _known(self, view: str) -> None:
        self._serves()
        if view not in self._views:
            raise InvalidFlow(f"no view {view!r}{did_you_mean(view, self._views)}", job=self.job)

    def _fresh(self) -> Kept:
        with self._lock:
            now = self.clock.monotonic()
            if self._shared is None or now - self._shared.touched > SHARED_FOR:
                with self.pump.gate:
                    frozen, as_of = self.pump._contents.freeze(), self.clock.wall()
                self._shared = Kept(frozen, as_of, now)
            return self._shared

    def _cut(self, cut: int, once: bool) -> Kept:
        with self._lock:
            kept = self._cuts.get(cut)
            if kept is None:
                message = "this cut is not kept any more: nobody read it for long, it made room, or its partition moved; make another"
                raise InvalidFlow(message, cut=cut, partition=self.partition)
            kept.touched = self.clock.monotonic()
            if not once:
                kept.read = "again"
            elif kept.read == "never":
                kept.read = "once"
            return kept

    def _answer(self, view: str, kept: Kept) -> Answer:
        marks = kept.frozen.marks
        watermark = marks.watermark() if marks.position else NEVER
        part = PartitionAnswer(self.partition, self.epoch, dict(marks.position), watermark, kept.as_of, "live")
        return Answer(self.job, view, (part,))
