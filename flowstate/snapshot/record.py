"""What is decided about a split, once for all: who may read it, its floors, where it starts and ends.

One chain per split. The supervisor raises the reader epoch and sets the end; the reader of that epoch appends floors. All contend on the
same chain, so a floor by a replaced reader either is in the record that the next reader loads, or is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flowstate.errors import Fenced, InternalError, Unavailable
from flowstate.plan.position import Floor
from flowstate.snapshot.chain import Chain
from flowstate.snapshot.layout import SPLITS, quoted
from flowstate.store import Store

_ATTEMPTS = 1000


@dataclass(frozen=True)
class SplitRecord:
    """`end` is exclusive, None while the split may grow. `label` and `hint` are the source's (`SplitInfo`). `run` is the greatest run of
    the job that has raised the reader epoch."""

    reader_epoch: int
    floors: tuple[Floor, ...] = ()
    end: int | None = None
    start: int = 0
    label: str = ""
    hint: Mapping[str, str] | None = None
    run: int = 0

    def dump(self, split: str) -> dict[str, Any]:
        """Plain data."""
        return {
            "split": split,
            "reader_epoch": self.reader_epoch,
            "floors": [list(floor) for floor in self.floors],
            "end": self.end,
            "start": self.start,
            "label": self.label,
            "hint": None if self.hint is None else dict(self.hint),
            "run": self.run,
        }

    @staticmethod
    def parse(data: Mapping[str, Any]) -> SplitRecord:
        """The inverse of `dump`."""
        floors = tuple(Floor(*each) for each in data["floors"])
        return SplitRecord(
            data["reader_epoch"], floors, data["end"], data["start"], data["label"], data["hint"], data.get("run", 0)
        )


class SplitRecords:
    """All split records of a store. Every method is a compare-and-swap loop of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def chain(self, split: str) -> Chain:
        """The chain of one split."""
        return Chain(self.store, f"{SPLITS}/{quoted(split)}")

    def names(self) -> list[str]:
        """All splits that have a record, sorted."""
        found = []
        for folder in self.store.list(SPLITS):
            latest = Chain(self.store, f"{SPLITS}/{folder}").latest()
            if latest is not None:
                found.append(str(latest[1]["split"]))
        return sorted(found)

    def load(self, split: str) -> SplitRecord | None:
        """The newest record, None when there is none. It is settled: whoever acts upon it will find it again."""
        chain = self.chain(split)
        for _ in range(_ATTEMPTS):
            latest = chain.latest()
            if latest is None:
                return None
            if chain.settle(*latest):
                return self._parse(split, latest[1])
        raise Unavailable("too many writers of one split record; try again", split=split)

    def raise_epoch(
        self,
        split: str,
        *,
        epoch: int | None = None,
        start: int = 0,
        end: int | None = None,
        label: str | None = None,
        hint: Mapping[str, str] | None = None,
        floor: Floor | None = None,
        run: int | None = None,
    ) -> SplitRecord:
        """A new reader epoch: one above the recorded one, or `epoch` (Fenced when that is not above it).

        `run` is the run of the job that asks: Fenced when a newer one has raised the epoch already. A request of a replaced run that was
        under way for long would otherwise leave the split to a reader that nobody knows.

        `floor` is the first floor of a split that joins: recorded with the epoch, in one write, unless the split has floors already.
        A split without a record gets one; `start` and `end` count only then. An end that is not known yet may be given later.
        `label` and `hint` replace the recorded ones when given.
        """

        def change(record: SplitRecord | None) -> SplitRecord:
            recorded = 0 if record is None else record.reader_epoch
            wanted = recorded + 1 if epoch is None else epoch
            if wanted <= recorded:
                raise Fenced("another run reads this split", split=split, epoch=wanted, newest=recorded)
            newest = 0 if record is None else record.run
            if run is not None and run < newest:
                raise Fenced("a newer run of this job has begun", split=split, run=run, newest=newest)
            by = newest if run is None else run
            first = () if floor is None else (floor,)
            if record is None:
                return SplitRecord(wanted, first, end, start, label or "", hint, by)
            return replace(
                record,
                reader_epoch=wanted,
                floors=record.floors or first,
                end=end if record.end is None else record.end,
                label=record.label if label is None else label,
                hint=record.hint if hint is None else hint,
                run=by,
            )

        return self._change(split, change)

    def announce(
        self, split: str, *, start: int, end: int | None, label: str, hint: Mapping[str, str] | None
    ) -> SplitRecord:
        """The record of a split that nobody reads yet (reader epoch 0), unless it has one: its start is settled by whoever comes first."""

        def change(record: SplitRecord | None) -> SplitRecord:
            return SplitRecord(0, (), end, start, label, hint) if record is None else record

        return self._change(split, change)

    def append_floor(self, split: str, reader_epoch: int, floor: Floor) -> SplitRecord:
        """The record with `floor` as its last. Fenced, with both numbers, when another epoch reads the split; the floor may
        then be in the record all the same, below the newer epoch, whose reader sends it. A floor that is the last one already is not
        added twice, so a call may be repeated."""

        def change(record: SplitRecord | None) -> SplitRecord:
            if record is None:
                raise InternalError("a floor for a split without a record", split=split)
            if record.reader_epoch != reader_epoch:
                raise Fenced(
                    "another run reads this split", split=split, epoch=reader_epoch, newest=record.reader_epoch
                )
            if record.floors and record.floors[-1] == floor:
                return record
            if record.floors and floor.offset < record.floors[-1].offset:
                raise InternalError("a floor below the last one", split=split, floor=floor, last=record.floors[-1])
            return replace(record, floors=(*record.floors, Floor(*floor)))

        return self._change(split, change)

    def set_end(self, split: str, end: int, reader_epoch: int | None = None) -> SplitRecord:
        """Decide where the split ends, as the reader of an epoch: Fenced when another reads it by now. The first decision stands: look at
        the `end` of what is returned."""

        def change(record: SplitRecord | None) -> SplitRecord:
            if record is None:
                raise InternalError("an end for a split without a record", split=split)
            if reader_epoch is not None and record.reader_epoch != reader_epoch:
                raise Fenced(
                    "another run reads this split", split=split, epoch=reader_epoch, newest=record.reader_epoch
                )
            return record if record.end is not None else replace(record, end=end)

        return self._change(split, change)

    def _change(self, split: str, change: Callable[[SplitRecord | None], SplitRecord]) -> SplitRecord:
        chain = self.chain(split)
        for _ in range(_ATTEMPTS):
            latest = chain.latest()
            before = None if latest is None else self._parse(split, latest[1])
            after = change(before)
            if after == before and latest is not None:
                if chain.settle(*latest):
                    return after
                continue
            if chain.append((latest[0] if latest else 0) + 1, after.dump(split)):
                return after
        raise Unavailable("too many writers of one split record; try again", split=split)

    def _parse(self, split: str, entry: Mapping[str, Any]) -> SplitRecord:
        if entry["split"] != split:
            raise InternalError("two splits share a record", split=split, other=entry["split"])
        return SplitRecord.parse(entry)
