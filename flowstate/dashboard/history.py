"""The last minutes of a job, second by second: bounded, kept at the scheduler, so that a page that is opened late has them."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flowstate.runtime.journal import Happening

#: Seconds between two moments, and how many are kept: a quarter of an hour.
EVERY = 1.0
MOMENTS = 900
#: Happenings that are kept.
HAPPENINGS = 200
#: Names of one measure that are kept apart at one moment, the greatest; what the others have is in `OTHERS`.
NAMES = 64
OTHERS = "others"

#: What is kept of each moment. The first four are of partitions, by number; the last is of splits, by name.
MEASURES = ("rows", "delay", "bytes", "age", "queries", "lag")
#: Of these, the others' figures are added up; of the rest, the greatest is taken.
SUMS = frozenset({"rows", "bytes", "queries", "lag"})


class Row(NamedTuple):
    """The figures of one measure at one moment; not a number where it is not known."""

    names: tuple[str, ...]
    numbers: array[float]


@dataclass(frozen=True)
class Moment:
    """`at`: Unix time."""

    at: float
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Mark(Happening):
    """A cause that began (``trouble``) or was over (``mended``, after `away` seconds); `mark` is its word on the time axis."""

    mark: str = ""


@dataclass
class History:
    """Of one job name, over all its runs."""

    moments: deque[Moment] = field(default_factory=lambda: deque(maxlen=MOMENTS))
    happenings: deque[Happening] = field(default_factory=lambda: deque(maxlen=HAPPENINGS))
    _names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, at: float, figures: Mapping[str, Mapping[str, float | None]]) -> None:
        """`figures` by measure and name."""
        self.moments.append(Moment(at, {name: self._row(name, figures.get(name, {})) for name in MEASURES}))

    def happened(self) -> list[Happening]:
        """The oldest first: a cause is told when it has stood for a while, as of when it began."""
        return sorted(self.happenings, key=lambda each: each.at)

    def _row(self, measure: str, figures: Mapping[str, float | None]) -> Row:
        known = {name: math.nan if number is None else number for name, number in figures.items()}
        if len(known) > NAMES:
            known = _bounded(measure, known)
        names = tuple(known)
        if names == self._names.get(measure):
            names = self._names[measure]  # one tuple for all moments
        self._names[measure] = names
        return Row(names, array("d", known.values()))

    def since(self, at: float) -> list[Moment]:
        """The moments after `at`, the oldest first."""
        found: list[Moment] = []
        for each in reversed(self.moments):
            if each.at <= at:
                break
            found.append(each)
        return found[::-1]


def _bounded(measure: str, known: Mapping[str, float]) -> dict[str, float]:
    """The greatest by their names, in their order, and the others in one."""
    ranked = sorted(known, key=lambda name: -math.inf if math.isnan(known[name]) else known[name], reverse=True)
    kept = set(ranked[:NAMES])
    others = [known[name] for name in ranked[NAMES:] if not math.isnan(known[name])]
    together = (sum if measure in SUMS else max)(others) if others else math.nan
    return {**{name: number for name, number in known.items() if name in kept}, OTHERS: together}
