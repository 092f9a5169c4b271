"""What every source must do, as a check that its own tests call: `check_source`.

A source is right if nothing but (split, offsets) decides what it gives. So its splits are read again and again in other pieces: with
other limits, with stops at any offset, from any offset, with splits left alone for a while, in a reader that is thrown away in the middle.
Every reading must give the same rows, offsets and dead letters. One seed decides everything and is in every failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flowstate.clock import Clock, SystemClock
from flowstate.plan.position import OFFSET, TIME
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, ScanSpec
from flowstate.source.base import Rows, Source, SourceReader, SplitInfo


@dataclass
class Reading:
    """What one split gave over a stretch: rows as dicts with their hidden columns, and dead letters, in order."""

    since: int
    to: int
    rows: list[dict[str, Any]]
    dead: list[dict[str, Any]]

    def between(self, since: int, to: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows = [each for each in self.rows if since <= each[OFFSET] < to]
        return rows, [each for each in self.dead if since <= each["offset"] < to]


class _Check:
    def __init__(self, spec: ScanSpec, seed: int, patience: float, clock: Clock) -> None:
        self.spec = spec
        self.seed = seed
        self._patience = patience
        self._clock = clock

    def that(self, right: bool, message: str, **facts: object) -> None:
        if not right:
            told = " ".join(f"{name}={value!r}" for name, value in facts.items())
            raise AssertionError(f"source {self.spec.name!r}, seed {self.seed}: {message} {told}")

    def stretch(self, rows: Rows) -> None:
        """One stretch by itself is as the contract says."""
        schema = self.spec.schema.remove_metadata().append(pa.field(OFFSET, pa.int64(), nullable=False))
        if self.spec.event_time is not None:
            schema = schema.append(pa.field(TIME, pa.int64(), nullable=False))
        self.that(rows.batch.schema.equals(schema), "the batch has another schema", got=str(rows.batch.schema))
        self.that(rows.dead.schema.equals(DEAD_LETTER_SCHEMA), "dead letters have another schema")
        rows.batch.validate(full=True)
        rows.dead.validate(full=True)
        self.that(rows.since < rows.to, "a stretch is empty", split=rows.split, since=rows.since, to=rows.to)
        for offsets in (rows.batch.column(OFFSET).to_pylist(), rows.dead.column("offset").to_pylist()):
            self.that(offsets == sorted(set(offsets)), "offsets do not grow", split=rows.split, offsets=offsets[:20])
            inside = all(rows.since <= each < rows.to for each in offsets)
            self.that(inside, "offsets outside of their stretch", since=rows.since, to=rows.to, offsets=offsets[:20])
        both = set(rows.batch.column(OFFSET).to_pylist()) & set(rows.dead.column("offset").to_pylist())
        self.that(not both, "an offset is both a row and a dead letter", offsets=sorted(both)[:5])
        for letter in rows.dead.to_pylist():
            named = letter["source"] == self.spec.name and letter["split"] == rows.split and letter["view"] is None
            self.that(named and bool(letter["reason"]), "a dead letter does not say where it is from", letter=letter)

    def read(
        self,
        reader: SourceReader,
        stops: Mapping[str, int],
        begins: Mapping[str, int],
        limit: Callable[[], int],
        choose: Callable[[list[str]], list[str]] = list,
    ) -> dict[str, Reading]:
        """Poll until every split stands exactly at its stop."""
        got = {name: Reading(begin, begin, [], []) for name, begin in begins.items()}
        deadline = self._clock.monotonic() + self._patience
        while left := [name for name in stops if got[name].to < stops[name]]:
            self.that(
                self._clock.monotonic() < deadline,
                "a stop is not reached",
                at={name: got[name].to for name in left},
                stops={name: stops[name] for name in left},
            )
            chosen = choose(left)
            most = limit()
            given = reader.poll({name: stops[name] for name in chosen}, max_rows=most, timeout=0.1)
            for rows in given:
                self.that(rows.split in chosen, "a split was read that is not wanted", split=rows.split)
                self.stretch(rows)
                reading = got[rows.split]
                self.that(
                    rows.since == reading.to, "a hole or an overlap", split=rows.split, at=reading.to, got=rows.since
                )
                self.that(rows.to <= stops[rows.split], "read past the stop", stop=stops[rows.split], to=rows.to)
                reading.to = rows.to
                reading.rows += rows.batch.to_pylist()
                reading.dead += rows.dead.to_pylist()
            count = sum(rows.batch.num_rows + rows.dead.num_rows for rows in given)
            self.that(count <= 2 * most + len(chosen), "more rows than asked for", asked=most, got=count)
        again = reader.poll(dict(stops), max_rows=10, timeout=0.0)
        self.that(not again, "something is given after the stop", got=[(each.since, each.to) for each in again])
        return got


def check_source(
    make: Callable[[], Source],
    spec: ScanSpec,
    expected: Sequence[Mapping[str, Any]] | None = None,
    *,
    expected_dead: int | None = None,
    seed: int = 0,
    rounds: int = 12,
    patience: float = 30.0,
    clock: Clock | None = None,
) -> dict[str, Reading]:
    """Hold the source that `make` makes to the contract; the log must not change meanwhile.

    `expected` are all rows as dicts of the scan's columns, in any order over splits; `expected_dead` the number of dead letters.
    Returns what each split holds. Raises AssertionError.
    """
    check = _Check(spec, seed, patience, clock or SystemClock())
    dice = random.Random(seed)
    source = make()
    splits = {each.name: each for each in source.splits()}
    again = {each.name: each for each in make().splits()}
    check.that(splits == again, "splits() is not the same for two sources", one=sorted(splits), two=sorted(again))
    check.that(len(splits) == len(source.splits()), "two splits have one name")

    reader = source.open()
    for each in splits.values():
        reader.assign(each, each.start)
    ends = {name: reader.end_offset(name) for name in splits}
    for name, end in ends.items():
        known = reader.known_end(name)
        check.that(known is None or known == end, "known_end and end_offset differ", known=known, offset=end)
    for name, each in splits.items():
        check.that(
            each.end is None or each.end == ends[name], "end and end_offset differ", end=each.end, offset=ends[name]
        )
        check.that(source.follows or each.end is not None, "a split of a finite source has no end", split=name)
    begins = {name: each.start for name, each in splits.items()}
    whole = check.read(reader, {n: e for n, e in ends.items() if e > begins[n]}, begins, lambda: 10_000)
    reader.close()

    if expected is not None:
        rows = [{name: row[name] for name in spec.schema.names} for each in whole.values() for row in each.rows]
        # By way of Arrow, so that equal values are spelt alike.
        wanted = pa.Table.from_pylist(list(expected), schema=spec.schema).to_pylist()
        check.that(sorted(map(repr, rows)) == sorted(map(repr, wanted)), "other rows than expected", got=rows[:5])
    if expected_dead is not None:
        dead = [letter["reason"] for each in whole.values() for letter in each.dead]
        check.that(len(dead) == expected_dead, "other dead letters than expected", reasons=dead[:10])

    for turn in range(rounds):
        _read_otherwise(check, make() if turn % 3 == 0 else source, splits, ends, whole, dice)
    return whole


def _read_otherwise(
    check: _Check,
    source: Source,
    splits: Mapping[str, SplitInfo],
    ends: Mapping[str, int],
    whole: Mapping[str, Reading],
    dice: random.Random,
) -> None:
    """One reading with random beginnings, stops and limits; twice in one reader, so that a split is also assigned again."""
    reader = source.open()
    try:
        for _ in range(2):
            begins, stops = {}, {}
            for name, each in splits.items():
                places = [each.start, ends[name], *(row[OFFSET] + plus for row in whole[name].rows for plus in (0, 1))]
                places += [dice.randint(each.start, ends[name]) for _ in range(3)]
                places = [place for place in places if each.start <= place <= ends[name]]
                begins[name], stops[name] = sorted((dice.choice(places), dice.choice(places)))
                reader.assign(each, begins[name])
            most = dice.choice((1, 2, 7, 1000))
            got = check.read(
                reader,
                {name: stop for name, stop in stops.items() if stop > begins[name]},
                begins,
                lambda most=most: dice.randint(1, most),  # type: ignore[misc]
                lambda left: dice.sample(left, dice.randint(1, len(left))),
            )
            for name, reading in got.items():
                wanted = whole[name].between(begins[name], stops[name])
                same = repr((reading.rows, reading.dead)) == repr(wanted)
                check.that(
                    same,
                    "another reading gave other rows",
                    split=name,
                    since=begins[name],
                    to=stops[name],
                    got=[row[OFFSET] for row in reading.rows][:20],
                    wanted=[row[OFFSET] for row in wanted[0]][:20],
                )
                if dice.random() < 0.3:
                    reader.unassign(name)
                    reader.unassign(name)
    finally:
        reader.close()
