"""Event time of a partition: position, newest event time and floor per split, and the watermark they give.

The watermark of a split is ``max(newest - lateness, floor)``; the partition's is the least over its splits. `lateness` belongs to the
split's source; a split of a source without event time (`TIMELESS`) holds nothing back. Part of the state: saved, restored and moved
with it (protocol S2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    reached: int = NEVER  # the greatest watermark that was ever acted upon; a split that joins later may hold the present one below

    def include(self, split: str, *, lateness: int, place: Place, newest: int = NEVER, floor: int = NEVER) -> None:
        """Take a split in. From now on it holds the watermark back."""
        if split in self.position:
            raise InternalError("a split was taken in twice", split=split)
        self.position[split], self.newest[split], self.floor[split] = place, newest, floor
        self.lateness[split] = lateness

    def advance(self, split: str, place: Place, newest: int, floor: int) -> None:
        """Everything before `place` is applied; `newest` and `floor` are the split's at that place."""
        if place < self.position[split]:
            raise InternalError("a position moved back", split=split, at=self.position[split], to=place)
        self.position[split] = place
        self.newest[split] = max(newest, self.newest[split])
        self.floor[split] = max(floor, self.floor[split])
        self.reached = max(self.reached, self.watermark())

    def of_split(self, split: str) -> int:
        """The split's own watermark, microseconds."""
        return max(later(self.newest[split], self.lateness[split]), self.floor[split])

    def watermark(self) -> int:
        """The partition's watermark: the least over its splits with event time; `NEVER` while it has none."""
        return min(
            (self.of_split(split) for split, lateness in self.lateness.items() if lateness != TIMELESS), default=NEVER
        )

    @property
    def ended(self) -> bool:
        """Every split has passed its end."""
        return bool(self.position) and all(newest == FOREVER for newest in self.newest.values())

    def copy(self) -> Watermarks:
        return Watermarks(dict(self.position), dict(self.newest), dict(self.floor), dict(self.lateness), self.reached)

    def dump(self) -> dict[str, list[int]]:
        """Plain data for a manifest: split -> [offset, floors applied, newest, floor, lateness]."""
        return {
            split: [place.offset, place.floors, self.newest[split], self.floor[split], self.lateness[split]]
            for split, place in self.position.items()
        }

    @staticmethod
    def load(data: Mapping[str, list[int]], reached: int = NEVER) -> Watermarks:
        marks = Watermarks(reached=reached)
        for split, (offset, floors, newest, floor, lateness) in data.items():
            marks.include(split, lateness=lateness, place=Place(offset, floors), newest=newest, floor=floor)
        return marks
