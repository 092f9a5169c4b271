"""What changes in the views of a partition, found for one subscriber at a time, between the blocks of its pump.

Nothing is noted down while rows are applied. A subscriber's own thread takes a view now and then, and compares: chunks by their version,
the rows of those that were written by their marks (`Chunk.marks`: 8 bytes per row and subscriber, and that is all that is kept of what
was told). So whoever is slow, or gone, costs the pump nothing; and all subscribers of a partition together look no oftener than takes
`1 / SHARE` of a core.

A small round is found whole before its first rows go out, and holds no view while it is read. A larger one reads from its view as its
subscriber does, under the same budget as a scan.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.plan.position import NEVER, Place
from flowstate.runtime.pump import Pump
from flowstate.state.append import AppendTable, AppendView
from flowstate.state.chunk import Chunk, Keys
from flowstate.state.table import KeyedTable
from flowstate.state.view import TableView
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.changes import Change, Condition
from flowstate.view.columns import chosen

INTERVAL = 0.02  # seconds between two rounds, at least
QUIET = 0.1  # seconds after which a position is told at which nothing is new
SHARE = 10  # of the time of all subscribers, one part is spent on finding changes
LONGEST_PAUSE = 2.0
MOST = 64  # subscribers of one partition
ROUND_BYTES = 1 << 20  # a round of less is found whole before it goes out
Bools = npt.NDArray[np.bool_]


class Served(Protocol):
    """What a subscription needs of the partition that it is of (`serving.ServedPartition`)."""

    job: str
    partition: int
    epoch: int
    pump: Pump
    clock: Clock
    identity: str  # of this table in memory, and no other

    def check(self, view: str) -> None:
        """Raises Unavailable when this is not, or may not be, the partition any more."""

    def hold(self, batches: Iterator[Change], view: TableView | AppendView) -> Iterator[Change]:
        """The same, given up when what the view holds is beyond the budget."""

    def subscribers(self) -> int:
        """How many there are."""


@dataclass
class _Moment:
    view: TableView | AppendView
    position: dict[str, Place]
    counts: dict[str, int]
    answer: Answer


class _Changes:
    """What both kinds of tables have in common: when a round begins, and how it ends. Made by `subscribe`."""

    def __init__(self, served: Served, view: str, columns: list[str], condition: Condition | None) -> None:
        self._served, self._name, self._condition = served, view, condition
        self._pump, self._clock = served.pump, served.clock
        self._table = served.pump._contents.tables[view]
        self._schema = chosen(view, self._table.spec.schema, columns)
        self._read = [*columns, *(each for each in (condition.columns if condition else ()) if each not in columns)]
        self._nothing = pa.RecordBatch.from_pylist([], schema=self._schema)
        self._pausing = threading.Event()
        self._seen: Mapping[str, Place] | None = None
        self._not_before = 0.0
        self._spent = 0.0
        self.begun = False

    def round(self, wait: float) -> Iterator[Change]:
        deadline = self._clock.monotonic() + wait
        while True:
            self._await(deadline)
            self._served.check(self._name)
            since = self._clock.monotonic()
            self._spent = 0.0
            moment = self._take()
            found = self._timed(self._find(moment))
            first = next(found, None)
            second = next(found, None) if first is not None else None
            steps: Iterator[Change] = iter([each for each in (first, second) if each is not None])
            if second is not None:
                steps = self._served.hold(_releasing(chain(steps, found), moment.view), moment.view)
            else:
                moment.view.release()
            if first is None and self._clock.monotonic() < deadline:
                self._paced(since)
                deadline = min(deadline, since + QUIET)
                continue
            yield from steps
            moment.view.release()
            self._served.check(self._name)
            if self._is_whole(moment):
                self.begun = True
                yield Change("position", self._served.partition, self._empty(), moment.answer, self._resume(moment))
            else:
                yield Change("rows", self._served.partition, self._empty(), resume=self._resume(moment))
            self._paced(since)
            return

    def _find(self, moment: _Moment) -> Iterator[Change]:
        raise NotImplementedError

    def _resume(self, moment: _Moment) -> dict[str, Any]:
        raise NotImplementedError

    def _is_whole(self, moment: _Moment) -> bool:
        """Whether what was told is the state of this moment."""
        return True

    def _await(self, deadline: float) -> None:
        """Until rows were applied since the last look, but not before it is time, nor long after `deadline`."""
        pause = self._not_before - self._clock.monotonic()
        if pause > 0:
            self._pausing.wait(pause)
        if self._seen is not None:
            marks, seen = self._pump._contents.marks, self._seen
            self._pump.awaited.wait(lambda: marks.position != seen, deadline - self._clock.monotonic())

    def _take(self) -> _Moment:
        with self._pump.gate:
            marks, table = self._pump._contents.marks, self._table
            view, position = table.view(), dict(marks.position)
            counts = table.extras()["counts"] if isinstance(table, AppendTable) else {}
            watermark = marks.watermark() if marks.position else NEVER
            as_of = self._clock.wall()
        self._seen = position
        served = self._served
        part = PartitionAnswer(served.partition, served.epoch, position, watermark, as_of, "live")
        return _Moment(view, position, counts, Answer(served.job, self._name, (part,)))

    def _timed(self, steps: Iterator[Change]) -> Iterator[Change]:
        """The same; the seconds that finding them takes are added up, without those that their reader takes."""
        while True:
            since = self._clock.monotonic()
            try:
                step = next(steps, None)
            finally:
                self._spent += self._clock.monotonic() - since
            if step is None:
                return
            yield step

    def _paced(self, since: float) -> None:
        pause = min(LONGEST_PAUSE, SHARE * self._spent * max(1, self._served.subscribers()))
        self._not_before = max(since + INTERVAL, self._clock.monotonic() + pause - self._spent)

    def _empty(self) -> pa.RecordBatch:
        return self._nothing


def _releasing(steps: Iterator[Change], view: TableView | AppendView) -> Iterator[Change]:
    try:
        yield from steps
    finally:
        view.release()


@dataclass
class _Told:
    """What was told of a chunk: `shown` are the rows for which the condition held (None: all)."""

    version: int
    marks: npt.NDArray[np.int64]
    keys: Keys
    shown: Bools | None


class KeyedChanges(_Changes):
    """Of a keyed table."""

    def __init__(
        self,
        served: Served,
        view: str,
        columns: list[str],
        condition: Condition | None,
        resume: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(served, view, columns, condition)
        assert isinstance(self._table, KeyedTable)
        self._keys = self._table.spec.key_schema.names
        self._told: dict[int, _Told] = {}
        self._since = self._known(resume)

    def _known(self, resume: Mapping[str, Any] | None) -> tuple[int, int | None] | None:
        """The last write that `resume` knows of, and the end of the oldest window that it does; None if it means nothing here."""
        if resume is None or (resume.get("epoch"), resume.get("table")) != (self._served.epoch, self._served.identity):
            return None
        serial, oldest = resume.get("serial"), resume.get("oldest")
        if type(serial) is not int or not (oldest is None or type(oldest) is int):
            return None
        if self._condition is not None and not set(self._condition.columns) <= set(self._keys):
            return None  # which rows of a chunk were shown then, nobody knows any more
        return serial, oldest

    def _find(self, moment: _Moment) -> Iterator[Change]:
        view = moment.view
        assert isinstance(view, TableView)
        number = self._served.partition
        ids = {each.id for each in view.chunks}
        serial = -1
        if not self.begun and not self._told:
            if self._since is not None and self._all_there(view, self._since[1]):
                serial = self._since[0]
            else:
                yield Change("reset", number, self._empty())
        for each in [each for each in self._told if each not in ids]:
            told = self._told.pop(each)
            rows = len(told.marks)
            yield from self._removed(told.keys, rows, told.shown)
        held: list[pa.RecordBatch] = []
        size = 0
        for chunk in view.chunks:
            told_rows, removed = self._chunk(chunk, serial)
            yield from removed
            if told_rows is not None and told_rows.num_rows:
                held.append(told_rows)
                size += told_rows.nbytes
            if size >= ROUND_BYTES:
                yield from self._rows(held)
                held, size = [], 0
        yield from self._rows(held)

    def _rows(self, held: list[pa.RecordBatch]) -> Iterator[Change]:
        if held:
            whole = pa.concat_batches(held) if len(held) > 1 else held[0]
            yield Change("rows", self._served.partition, whole)

    def _chunk(self, chunk: Chunk, serial: int) -> tuple[pa.RecordBatch | None, list[Change]]:
        """What is to be told of a chunk: rows, and keys that are gone. Up to the write `serial` everything was told before."""
        before = self._told.get(chunk.id)
        if before is not None and before.version == chunk.version:
            return None, []
        marks = chunk.marks()
        old = marks[:0] if before is None else before.marks
        known = before is None and chunk.version <= serial
        # Rows are never moved within their chunk: those that are new stand behind the old ones.
        places = np.concatenate([np.flatnonzero(marks[: len(old)] != old), np.arange(len(old), len(marks))])
        condition = self._condition
        if condition is None:
            self._told[chunk.id] = _Told(chunk.version, marks, chunk.keys, None)
            return (None if known or not len(places) else chunk.results(self._schema.names, places)), []
        shown = np.zeros(len(marks), np.bool_)
        if before is not None and before.shown is not None:
            shown[: len(old)] = before.shown
        found, gone = None, np.zeros(len(marks), np.bool_)
        if len(places):
            rows = chunk.results(self._read, places)
            holds = condition.holds(rows)
            gone[places] = shown[places] & ~holds
            shown[places] = holds
            found = None if known else rows.select(self._schema.names).filter(pa.array(holds))
        self._told[chunk.id] = _Told(chunk.version, marks, chunk.keys, shown)
        return found, list(self._removed(chunk.keys, len(marks), gone))

    def _removed(self, keys: Keys, rows: int, which: Bools | None) -> Iterator[Change]:
        if rows == 0 or (which is not None and not which.any()):
            return
        columns = [*keys.arrays(rows), *keys.layout.window_columns(keys.start, keys.end, rows)]
        by_name = dict(zip(self._keys, columns, strict=True))
        arrays = [by_name[each.name] if each.name in by_name else pa.nulls(rows, each.type) for each in self._schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        yield Change("removed", self._served.partition, batch if which is None else batch.filter(pa.array(which)))

    @staticmethod
    def _all_there(view: TableView, oldest: int | None) -> bool:
        """Windows are forgotten in the order of their ends: while the oldest is there, or an older one, none is gone."""
        return oldest is None or any(each.window[1] <= oldest for each in view.chunks)

    def _resume(self, moment: _Moment) -> dict[str, Any]:
        served = self._served
        assert isinstance(moment.view, TableView)
        versions = [each.version for each in self._told.values()]
        ends = [each.keys.end for each in self._told.values()] if self._windowed else []
        return {
            "epoch": served.epoch,
            "table": served.identity,
            "serial": max(versions, default=0),
            "oldest": min(ends, default=None),
        }

    @property
    def _windowed(self) -> bool:
        assert isinstance(self._table, KeyedTable)
        return self._table.spec.window is not None


class AppendChanges(_Changes):
    """Of an append table: what came since, by split. Which rows these are is a function of the log alone."""

    def __init__(
        self,
        served: Served,
        view: str,
        columns: list[str],
        condition: Condition | None,
        resume: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(served, view, columns, condition)
        self._at = _splits(resume)

    def _find(self, moment: _Moment) -> Iterator[Change]:
        number, view = self._served.partition, moment.view
        assert isinstance(view, AppendView)
        at = dict(self._at or {})
        if self._at is None:
            yield Change("reset", number, self._empty())
        held, kept = list[pa.RecordBatch](), dict[str, int]()
        for chunk in view.chunks:
            rows = chunk.state()
            split = rows.column("split")[0].as_py()
            begin = int(np.searchsorted(rows.column("offset").to_numpy(), at.get(split, (0, 0))[0], "left"))
            new = rows.slice(begin)
            kept[split] = new.num_rows
            if self._condition is not None and new.num_rows:
                new = new.filter(pa.array(self._condition.holds(new)))
            if new.num_rows:
                held.append(new.select(self._schema.names))
        missed = 0
        for split, place in moment.position.items():
            offset, count = at.get(split, (0, 0))
            if place.offset >= offset:
                if self._at is not None and split in at:
                    missed += max(0, moment.counts.get(split, 0) - count - kept.get(split, 0))
                at[split] = (place.offset, moment.counts.get(split, 0))
        self._at = at
        if held or missed:
            rows = pa.concat_batches(held) if held else self._empty()
            yield Change("rows", number, rows, resume=self._resume(moment), missed=missed)

    def _is_whole(self, moment: _Moment) -> bool:
        """Not while a partition that took up an older state has not come as far again."""
        position, before = moment.position, (self._at or {}).items()
        return all(split in position and position[split].offset >= offset for split, (offset, _) in before)

    def _resume(self, moment: _Moment) -> dict[str, Any]:
        return {"splits": {split: list(each) for split, each in (self._at or {}).items()}}


def subscribe(
    served: Served,
    view: str,
    columns: list[str] | None,
    condition: Condition | None,
    resume: Mapping[str, Any] | None,
) -> KeyedChanges | AppendChanges:
    """See `view.directory.LivePartition.changes`."""
    if served.subscribers() >= MOST:
        message = "too many subscribe to this partition's changes; end some, or read from time to time instead"
        raise Unavailable(message, retry_after=5.0, subscribers=MOST)
    table = served.pump._contents.tables[view]
    names = list(table.spec.schema.names) if columns is None else columns
    if isinstance(table, KeyedTable):
        lacking = [each for each in table.spec.key_schema.names if each not in names]
        if lacking:
            raise InvalidFlow(
                "changes are told by key, so 'columns' has all columns of the key", view=view, missing=lacking
            )
        return KeyedChanges(served, view, names, condition, resume)
    return AppendChanges(served, view, names, condition, resume)


def _splits(resume: Mapping[str, Any] | None) -> dict[str, tuple[int, int]] | None:
    given = resume.get("splits") if resume is not None else None
    if not isinstance(given, dict):
        return None
    whole = all(
        isinstance(each, list) and len(each) == 2 and all(type(one) is int and 0 <= one < 2**63 for one in each)
        for each in given.values()
    )
    return {split: (each[0], each[1]) for split, each in given.items()} if whole else None
