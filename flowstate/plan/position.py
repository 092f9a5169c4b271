"""Places in a log: the one currency of exactly-once.

A *place* in a split is ``(offset, floors)``: the next offset, and how many of the split's floors are applied. Rows and floors of a
split form one sequence, in which a floor recorded at offset o comes before the row at offset o; places in it are ordered. A
*position* maps every split to a place. State, output and lateness are pure functions of the position.

Event times and watermarks are int64 microseconds since 1970 UTC. `NEVER` is before all of them, `FOREVER` after.
"""

from __future__ import annotations

from typing import NamedTuple

NEVER = -(2**63) + 1
FOREVER = 2**63 - 1


class Place(NamedTuple):
    """Where something stands in a split: everything before it is applied."""

    offset: int
    floors: int = 0


class Floor(NamedTuple):
    """A durable control record: from `offset` on, the split's watermark is at least `watermark` (microseconds)."""

    offset: int
    watermark: int


#: Hidden columns that travel with rows from the source to the state.
OFFSET = "__offset"  # int64: the row's own offset in its split
WATERMARK = "__watermark"  # int64 microseconds: the watermark of the row's own split just before the row
TIME = "__time"  # int64 microseconds: the row's event time (present if the source has one)
HIDDEN = (OFFSET, WATERMARK, TIME)


def later(newest: int, lateness: int) -> int:
    """The watermark that event times up to `newest` give: ``newest - lateness``, saturating at both ends."""
    if newest in (NEVER, FOREVER):
        return newest
    return max(NEVER, newest - lateness)
