"""The splits of a simulated world: their logs, and their records in its store."""

from __future__ import annotations

import random

from flowstate.exchange.route import Router
from flowstate.plan.position import Floor
from flowstate.runtime.table import SplitEntry
from flowstate.snapshot.record import SplitRecord, SplitRecords
from flowstate.store import Store
from flowstate.testing.adversity.fault import Fault
from flowstate.testing.adversity.log import LATENESS, Log, Reference


class Splits:
    """The records are real ones. What becomes durable in them is told to the naive `reference`."""

    def __init__(self, store: Store, router: Router, chance: random.Random) -> None:
        self.records, self._router, self._random = SplitRecords(store), router, chance
        self.logs: dict[str, Log] = {}
        self.reference = Reference(self.logs)
        self._owners: dict[str, int] = {}

    def make(self) -> str:
        name = f"events/{len(self.logs)}"
        self.logs[name] = Log.make(name, self._random)
        return name

    def entry(self, split: str) -> SplitEntry:
        log = self.logs[split]
        return SplitEntry(0, split, log.start, log.last if log.finite else None, None, LATENESS)

    def owner(self, split: str) -> int:
        if split not in self._owners:
            self._owners[split] = self._router.owner_of_split(split)
        return self._owners[split]

    def raise_epoch(self, split: str, floor: Floor | None = None) -> SplitRecord:
        entry = self.entry(split)
        record = self.records.raise_epoch(split, start=entry.start, end=entry.end, label=entry.label, floor=floor)
        self._note(split, record)
        return record

    def append_floor(self, split: str, epoch: int, floor: Floor) -> None:
        self._note(split, self.records.append_floor(split, epoch, floor))

    def set_end(self, split: str, end: int) -> int:
        record = self.records.set_end(split, end)
        self._note(split, record)
        assert record.end is not None
        return record.end

    def _note(self, split: str, record: SplitRecord) -> None:
        known = self.reference.floors.setdefault(split, [])
        if list(record.floors[: len(known)]) != known:
            raise Fault("floors of a split record changed")
        known.extend(record.floors[len(known) :])
        self.reference.ends[split] = record.end
