"""The supervisor's truth about a job, as it tells it: whole, idempotent, the newest version wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from flowstate.source.base import SplitInfo


class ReaderOf(NamedTuple):
    """Who reads a split: a fence, and a partition."""

    epoch: int
    partition: int


@dataclass(frozen=True)
class SplitEntry:
    """A split as the job knows it: which source, where it starts, how it is found."""

    source: int
    label: str
    start: int
    end: int | None
    hint: Mapping[str, str] | None
    lateness: int  # microseconds; `TIMELESS` if the source has no event time

    def info(self, name: str) -> SplitInfo:
        return SplitInfo(name, self.label, self.start, self.end, self.hint)


@dataclass(frozen=True)
class Table:
    """`readers` lacks a split that is still joining: owners take it in first and say how far their watermark got (docs/protocol.md).

    `draining`: following splits end where they are now. `stopping`: nothing is read any more. `paused`: nothing is read for now, since
    output waits for a sink beyond its quota. `saves`: whether the open cut is to be saved, or only kept for readers.
    """

    version: int = 0
    readers: Mapping[str, ReaderOf] = field(default_factory=dict)
    epochs: Mapping[int, int] = field(default_factory=dict)
    locations: Mapping[int, str] = field(default_factory=dict)
    splits: Mapping[str, SplitEntry] = field(default_factory=dict)
    cut: int = 0
    closed: int = 0
    saves: bool = False
    draining: bool = False
    stopping: bool = False
    paused: bool = False

    def same_but_for_cuts(self, other: Table) -> bool:
        """Whether nothing but the cut that is open tells the two apart."""
        return self == replace(other, version=self.version, cut=self.cut, closed=self.closed, saves=self.saves)

    def dump(self) -> dict[str, Any]:
        """Plain data for a Dask message."""
        data = asdict(self)
        data["epochs"] = [list(each) for each in self.epochs.items()]
        data["locations"] = [list(each) for each in self.locations.items()]
        data["readers"] = {split: list(each) for split, each in self.readers.items()}
        return data

    @staticmethod
    def load(data: Mapping[str, Any]) -> Table:
        fields = dict(data)
        fields["epochs"] = {int(number): epoch for number, epoch in data["epochs"]}
        fields["locations"] = {int(number): location for number, location in data["locations"]}
        fields["readers"] = {split: ReaderOf(*each) for split, each in data["readers"].items()}
        fields["splits"] = {split: SplitEntry(**each) for split, each in data["splits"].items()}
        return Table(**fields)
