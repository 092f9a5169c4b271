"""Event time of a partition: position, newest event time and floor per split, and the watermark they give.

The watermark of a split is ``max(newest - lateness, floor)``; the partition's is the least over its splits. `lateness` belongs to the
split's source; a split of a source without event time (`TIMELESS`) holds nothing back. Part of the state: saved, restored and moved
with it (protocol S2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flowstate.errors import InternalError
from flowstate.plan.position import FOREVER, NEVER, Place, later

TIMELESS = -1


@dataclass
class Watermarks:
    """One entry per split that the partition has taken in. Pure; `advance` is the only way in which it moves."""

    position: dict[str, Place] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    floor: dict[str, int] = field(default_factory=dict)
    lateness: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)  # the newest event time of each split, also after its end
    reached: int = NEVER  # the greatest watermark that was ever acted upon; a split that joins later may hold the present one below
    passed: int = NEVER  # the same of `in_time`

    def include(self, split: str, *, lateness: int, place: Place, newest: int = NEVER, floor: int = NEVER) -> None:
        """Take a split in. From now on it holds the watermark back."""
        if split in self.position:
            raise InternalError("a split was taken in twice", split=split)
        self.position[split], self.newest[split], self.floor[split] = place, newest, floor
        self.lateness[split] = lateness
        self.last[split] = newest if newest != FOREVER else NEVER

    def advance(self, split: str, place: Place, newest: int, floor: int) -> None:
        """Everything before `place` is applied; `newest` and `floor` are the split's at that place."""
        if place < self.position[split]:
            raise InternalError("a position moved back", split=split, at=self.position[split], to=place)
        self.position[split] = place
        self.newest[split] = max(newest, self.newest[split])
        if newest != FOREVER:
            self.last[split] = max(newest, self.last[split])
        self.floor[split] = max(floor, self.floor[split])
        self.reached = max(self.reached, self.watermark())
        self.passed = max(self.passed, self.in_time())

    def of_split(self, split: str) -> int:
        """The split's own watermark, microseconds."""
        return max(later(self.newest[split], self.lateness[split]), self.floor[split])

    def watermark(self) -> int:
        """The partition's watermark: the least over its splits with event time; `NEVER` while it has none."""
        return min(
            (self.of_split(split) for split, lateness in self.lateness.items() if lateness != TIMELESS), default=NEVER
        )

    def in_time(self) -> int:
        """How far event time has come, which says what is forgotten: the least watermark of the splits that have not ended, and when all
        have, the greatest that they had come to. The end of the input closes all windows, but makes none of them old."""
        timed = [split for split, lateness in self.lateness.items() if lateness != TIMELESS]
        going = [self.of_split(split) for split in timed if self.newest[split] != FOREVER]
        ends = (max(later(self.last[split], self.lateness[split]), self.floor[split]) for split in timed)
        return min(going) if going else max(ends, default=NEVER)

    @property
    def ended(self) -> bool:
        """Every split has passed its end."""
        return bool(self.position) and all(newest == FOREVER for newest in self.newest.values())

    def copy(self) -> Watermarks:
        return replace(
            self,
            position=dict(self.position),
            newest=dict(self.newest),
            floor=dict(self.floor),
            lateness=dict(self.lateness),
            last=dict(self.last),
        )

    def dump(self) -> dict[str, list[int]]:
        """Plain data for a manifest: split -> [offset, floors applied, newest, floor, lateness, last]."""
        return {
            split: [*place, self.newest[split], self.floor[split], self.lateness[split], self.last[split]]
            for split, place in self.position.items()
        }

    @staticmethod
    def load(data: Mapping[str, list[int]], reached: int = NEVER, passed: int = NEVER) -> Watermarks:
        marks = Watermarks(reached=reached, passed=passed)
        for split, (offset, floors, newest, floor, lateness, last) in data.items():
            marks.include(split, lateness=lateness, place=Place(offset, floors), newest=newest, floor=floor)
            marks.last[split] = last
        return marks
