"""What a reader has ready of one split, to be sent piece by piece.

To read many rows at once costs less per row; to apply many at once keeps readers of the state waiting. So a stretch is decoded, evaluated
and routed as a whole, and cut where the next piece has as many rows as a block may have by then. How it is cut changes nothing: the newest
event time at a cut is that of the rows before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from flowstate.exchange.message import Batch
from flowstate.plan.position import OFFSET, Place
from flowstate.runtime.prepare import Prepared

_Rows = Mapping[str, pa.RecordBatch]


class Stretch:
    """Rows of a split from the place where its reading stands up to `to`."""

    def __init__(self, to: Place, prepared: Prepared, owners: Mapping[int, _Rows]) -> None:
        self.to = to
        self._prepared = prepared
        self._whole = owners
        self._parts: list[_Part] | None = None  # made when there is a second piece
        self._sent = 0

    def next(self, since: Place, newest: int, floor: int, most: int | None) -> tuple[dict[int, Batch], Batch, bool]:
        """A batch of about `most` rows for each owner that has any of them, one without rows for the others, and whether it was the last
        piece. `newest` and `floor` hold at `since`. All rows of a record are in one piece."""
        offsets = self._prepared.offsets
        end = len(offsets) if most is None else self._sent + most
        if end + (most or 0) // 4 < len(offsets):
            end = self._border(offsets, end)
        else:
            end = len(offsets)
        last = end >= len(offsets)
        if last:
            to, reached = self.to, max(newest, self._prepared.newest)
        else:
            to = Place(int(offsets[end]), self.to.floors)
            running = self._prepared.running
            reached = newest if running is None else max(newest, int(running[end - 1]))
        owners = self._whole if last and not self._sent else self._cut(None if last else to.offset)
        self._sent = end
        batches = {owner: Batch(since, to, reached, floor, tables) for owner, tables in owners.items()}
        return batches, Batch(since, to, reached, floor), last

    def _border(self, offsets: np.ndarray, end: int) -> int:
        """The nearest place to cut: where a record begins, behind what was sent."""
        if offsets[end] != offsets[end - 1]:
            return end
        begin = int(np.searchsorted(offsets, offsets[end]))
        return begin if begin > self._sent else int(np.searchsorted(offsets, offsets[end], "right"))

    def _cut(self, upto: int | None) -> Mapping[int, _Rows]:
        """What was not given yet of offsets below `upto`."""
        if self._parts is None:
            self._parts = [
                _Part(owner, name, rows) for owner, tables in self._whole.items() for name, rows in tables.items()
            ]
        found: dict[int, dict[str, pa.RecordBatch]] = {}
        for part in self._parts:
            rows = part.before(upto)
            if rows is not None:
                found.setdefault(part.owner, {})[part.name] = rows
        return found


class _Part:
    """Rows of one table for one owner, in the order of their offsets."""

    __slots__ = ("at", "name", "offsets", "owner", "rows")

    def __init__(self, owner: int, name: str, rows: pa.RecordBatch) -> None:
        self.owner, self.name, self.rows, self.at = owner, name, rows, 0
        self.offsets = rows.column(OFFSET if OFFSET in rows.schema.names else "offset").to_numpy()

    def before(self, upto: int | None) -> pa.RecordBatch | None:
        begin = self.at
        self.at = len(self.offsets) if upto is None else int(np.searchsorted(self.offsets, upto))
        return self.rows.slice(begin, self.at - begin) if self.at > begin else None
