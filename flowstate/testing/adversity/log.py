"""Logs in memory, and what must come of them: the naive reference that a simulation is held to.

`Log` gives stretches of rows of any size, as a source does. `Reference` knows only logs and recorded floors, and computes everything
from the beginning, row by row, in plain Python.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import pyarrow as pa

from flowstate.plan import expr
from flowstate.plan.compile import compile as compile_plan
from flowstate.plan.evaluate import Explode, Filter, Select
from flowstate.plan.nodes import (
    Changes,
    DeadLetters,
    Final,
    Late,
    Scan,
    Sink,
    Transform,
    View,
    grouped,
    named_expressions,
)
from flowstate.plan.position import FOREVER, NEVER, OFFSET, TIME, Floor, Place, later
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, JobPlan, ScanSpec
from flowstate.plan.window import window
from flowstate.source.base import Rows

SECOND = 1_000_000
EVERY, LATENESS, GRACE = 6 * SECOND, 3 * SECOND, 2 * SECOND
KEYS = ("anna", "ben", "cleo", "dora", "emil", "fay")
BIG = 50  # amounts above it go out as they came
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "at": pa.timestamp("us", "UTC"),
        "amount": pa.int64(),
        "accounts": pa.list_(pa.string()),  # a transfer: from and to
        "moves": pa.list_(pa.int64()),
    }
)
HIDDEN_SCHEMA = pa.schema([*SCHEMA, pa.field(OFFSET, pa.int64()), pa.field(TIME, pa.int64())])


#: The sinks of `simple_plan`, in their order.
FINAL, CHANGES, LATE, DEAD, STREAM = range(5)


@cache
def simple_plan(keep: int | None, roll_after: int | None = None, *, everything: bool = True) -> JobPlan:
    """Sum and count per key and window of six seconds with two of grace, kept for `keep` seconds, whose final rows and changes go out.

    With `everything` also its late rows, the dead letters, rows with big amounts as they came (`STREAM`), and a bank: what each account
    has after all transfers, of which the sum over all accounts is nothing, always. The files of final rows and of the stream stay open
    for `roll_after` microseconds, if it is given.
    """
    scan = Scan(ScanSpec("events", "arrow", SCHEMA, "at", LATENESS))
    span = window("at", every="6s", grace="2s", keep=None if keep is None else f"{keep}s")
    group = grouped(scan, ("key",), {"span": span}, {"total": expr.col("amount").sum(), "events": expr.len()})
    view = View(group, "totals")
    rolling = {} if roll_after is None else {"roll_after": roll_after}
    views, sinks = (
        [view],
        [Sink(Final(view), "csv", "memory://final", rolling), Sink(Changes(view), "csv", "memory://changes", {})],
    )
    if everything:
        moves = Transform(scan, Explode(("accounts", "moves")))
        grouped_moves = grouped(moves, (), {"account": expr.col("accounts")}, {"balance": expr.col("moves").sum()})
        views.append(View(grouped_moves, "bank"))
        big = Transform(
            Transform(scan, Filter(expr.col("amount") > BIG)),
            Select(named_expressions(("key", "at", "amount"), {}, "select")),
        )
        sinks += [
            Sink(Late(view), "json", "memory://late", {}),
            Sink(DeadLetters(), "json", "memory://dead", {}),
            Sink(big, "csv", "memory://big", rolling),
        ]
    return compile_plan([*views, *sinks])


class Record(NamedTuple):
    """One record of a log; without a key it cannot be read."""

    offset: int
    key: str | None
    time: int
    amount: int
    to: str = KEYS[0]  # where the amount goes


@dataclass
class Log:
    """One split. `head`: the offset that nothing can be read from yet; it grows up to `last`. A `finite` one says where it ends."""

    name: str
    start: int
    records: list[Record]
    last: int
    finite: bool

    def __post_init__(self) -> None:
        self.head = self.start
        good, dead = ([each for each in self.records if (each.key is None) == bad] for bad in (False, True))
        times = [each.time for each in good]
        self.offsets, self.dead_offsets = [each.offset for each in good], [each.offset for each in dead]
        columns = [
            pa.array([each.key for each in good], pa.string()),
            pa.array(times, pa.int64()).cast(SCHEMA.field("at").type),
            pa.array([each.amount for each in good], pa.int64()),
            pa.array([[each.key, each.to] for each in good], SCHEMA.field("accounts").type),
            pa.array([[-each.amount, each.amount] for each in good], SCHEMA.field("moves").type),
            pa.array(self.offsets, pa.int64()),
            pa.array(times, pa.int64()),
        ]
        self.batch = pa.RecordBatch.from_arrays(columns, schema=HIDDEN_SCHEMA)
        self.dead = pa.RecordBatch.from_pylist(
            [{"source": "events", "split": self.name, "offset": each.offset, "reason": "unreadable"} for each in dead],
            schema=DEAD_LETTER_SCHEMA,
        )

    @staticmethod
    def make(name: str, chance: random.Random) -> Log:
        """Times that mostly grow, some far too late; some dead letters; offsets with gaps."""
        start = chance.choice((0, 0, 7))
        offset, time, records = start, chance.randint(0, 10), []
        for _ in range(chance.choice((0, 6, 16, 26))):
            time += chance.choice((0, 1, 1, 2))
            event = max(0, time - chance.choice((0, 0, 1, 2, 4, 12))) * SECOND + chance.randrange(SECOND)
            key = None if chance.random() < 0.06 else chance.choice(KEYS)
            records.append(Record(offset, key, event, chance.randint(1, 99), chance.choice(KEYS)))
            offset += chance.choice((1, 1, 1, 3))
        return Log(name, start, records, offset, chance.random() < 0.5)

    def rows(self, since: int, to: int) -> Rows:
        """The stretch ``[since, to)``."""
        parts = []
        for offsets, batch in ((self.offsets, self.batch), (self.dead_offsets, self.dead)):
            first, last = bisect_left(offsets, since), bisect_left(offsets, to)
            parts.append(batch.slice(first, last - first))
        return Rows(self.name, since, to, *parts)

    def poll(self, offset: int, stop: int | None, chance: random.Random) -> Rows | None:
        """The next piece, of random length; None if nothing is there."""
        limit = self.head if stop is None else min(stop, self.head)
        to = min(limit, offset + chance.randint(1, 5))
        return self.rows(offset, to) if to > offset else None


class Prefix(NamedTuple):
    """What comes of one split up to a place: totals by (key, end of window), balances by account, offsets of late rows, dead letters and
    rows with big amounts, the watermark."""

    totals: Mapping[tuple[str, int], tuple[int, int]]
    balances: Mapping[str, int]
    big: Sequence[int]
    late: Sequence[tuple[int, str]]
    dead: Sequence[int]
    newest: int
    watermark: int


class Reference:
    """`floors` and `ends` are what the split records hold, kept up to date by whoever runs the simulation. The end of a split is an
    entry of its sequence: whoever has passed it stands one further."""

    def __init__(self, logs: Mapping[str, Log]) -> None:
        self.logs, self.floors, self.ends = logs, dict[str, list[Floor]](), dict[str, int | None]()
        self._known: dict[tuple[str, Place], Prefix] = {}

    def prefix(self, split: str, place: Place) -> Prefix:
        end = self.ends.get(split)
        if end is not None and place.offset > end:
            place = Place(end, place.floors)
        if (split, place) not in self._known:
            self._known[split, place] = self._compute(split, place)
        return self._known[split, place]

    def _compute(self, split: str, place: Place) -> Prefix:
        floors = self.floors.get(split, [])[: place.floors]
        totals: dict[tuple[str, int], tuple[int, int]] = {}
        balances: Counter[str] = Counter()
        late, dead, big, newest = [], [], [], NEVER
        for record in self.logs[split].records:
            if record.offset >= place.offset:
                break
            if record.key is None:
                dead.append(record.offset)
                continue
            balances[record.key] -= record.amount
            balances[record.to] += record.amount
            if record.amount > BIG:
                big.append(record.offset)
            end = (record.time // EVERY + 1) * EVERY
            watermark = max(
                [later(newest, LATENESS), *(each.watermark for each in floors if each.offset <= record.offset)]
            )
            if end + GRACE <= watermark:
                late.append((record.offset, record.key))
            else:
                total, events = totals.get((record.key, end), (0, 0))
                totals[record.key, end] = (total + record.amount, events + 1)
            newest = max(newest, record.time)
        watermark = max([later(newest, LATENESS), *(each.watermark for each in floors)])
        return Prefix(totals, balances, big, late, dead, newest, watermark)

    def totals(self, position: Mapping[str, Place]) -> dict[tuple[str, int], tuple[int, int]]:
        """Of all keys at a position, windows that have closed included."""
        merged: dict[tuple[str, int], tuple[int, int]] = {}
        for split, place in position.items():
            for key, (total, events) in self.prefix(split, place).totals.items():
                before = merged.get(key, (0, 0))
                merged[key] = (before[0] + total, before[1] + events)
        return merged

    def balances(self, position: Mapping[str, Place]) -> dict[str, int]:
        """Of all accounts at a position."""
        merged: Counter[str] = Counter()
        for split, place in position.items():
            for account, balance in self.prefix(split, place).balances.items():
                merged[account] += balance
        return dict(merged)

    def watermark(self, position: Mapping[str, Place]) -> int:
        """The least over the splits; `FOREVER` for one whose end entry is passed."""
        marks = []
        for split, place in position.items():
            end = self.ends.get(split)
            marks.append(FOREVER if end is not None and place.offset > end else self.prefix(split, place).watermark)
        return min(marks, default=NEVER)
