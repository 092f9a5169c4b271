"""A partition that counts what it is asked: how often, and how long it took."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from flowstate.clock import Clock
from flowstate.runtime.serving import ServedPartition
from flowstate.view.answer import Answer
from flowstate.view.changes import Condition, Subscription

#: Upper bounds of the classes that queries are counted in, in seconds; one more has all that took longer.
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Queries:
    """How many of one kind were answered, by how long they took."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.counts = [0] * (len(BOUNDS) + 1)
        self._lock = threading.Lock()

    def took(self, seconds: float) -> None:
        place = bisect_left(BOUNDS, seconds)
        with self._lock:
            self.counts[place] += 1
            self.seconds += seconds

    @property
    def total(self) -> int:
        return sum(self.counts)


class CountedPartition(ServedPartition):
    """`queries` by kind: ``lookup``, ``scan`` (until its last row was taken, or nobody wanted more) and ``changes`` (until they begin).
    What is refused counts, too."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.queries = {kind: Queries() for kind in ("lookup", "scan", "changes")}

    def lookup(self, view: str, keys: pa.RecordBatch) -> tuple[pa.RecordBatch, Answer]:
        began = self.clock.monotonic()
        try:
            return super().lookup(view, keys)
        finally:
            self.queries["lookup"].took(self.clock.monotonic() - began)

    def scan(
        self, view: str, columns: list[str] | None = None, cut: int | None = None, once: bool = False
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch], Answer]:
        began = self.clock.monotonic()
        try:
            schema, batches, answer = super().scan(view, columns, cut, once)
        except BaseException:
            self.queries["scan"].took(self.clock.monotonic() - began)
            raise
        return schema, Timed(batches, self.queries["scan"], self.clock, began), answer

    def changes(
        self,
        view: str,
        columns: list[str] | None = None,
        condition: Condition | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> Subscription:
        began = self.clock.monotonic()
        try:
            return super().changes(view, columns, condition, resume)
        finally:
            self.queries["changes"].took(self.clock.monotonic() - began)


class Timed(Iterator[pa.RecordBatch]):
    """Batches, and when they are over: read to their end, failed, or wanted by nobody any more."""

    def __init__(self, batches: Iterator[pa.RecordBatch], queries: Queries, clock: Clock, began: float) -> None:
        self._batches, self._queries, self._clock, self._began = batches, queries, clock, began
        self._over = False

    def __next__(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except BaseException:
            self.__del__()
            raise

    def __del__(self) -> None:
        if not self._over:
            self._over = True
            self._queries.took(self._clock.monotonic() - self._began)
