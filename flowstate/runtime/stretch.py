"""What a reader has ready of one split, to be sent piece by piece.

To read many rows at once costs less per row; to apply many at once keeps readers of the state waiting. So a stretch is decoded, evaluated
and routed as a whole, and cut where the next piece has, for the owner who gets the most, as many rows as a block may have by then. How it
is cut changes nothing: the newest event time at a cut is that of the rows before it.
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

    def next(self, since: Place, newest: int, floor: int, most: int | None) -> tuple[dict[int, Batch], Batch, bool]:
        """A batch for each owner that has any rows, of about `most` rows of a table at the most; one without rows for the others; and
        whether it was the last piece. `newest` and `floor` hold at `since`. All rows of a record are in one piece."""
        cut = None if most is None else self._border(most)
        if cut is None:
            to, reached = self.to, max(newest, self._prepared.newest)
        else:
            to, reached = Place(cut, self.to.floors), newest
            before = int(np.searchsorted(self._prepared.offsets, cut))
            if self._prepared.running is not None and before:
                reached = max(newest, int(self._prepared.running[before - 1]))
        owners = self._whole if cut is None and self._parts is None else self._cut(cut)
        batches = {owner: Batch(since, to, reached, floor, tables) for owner, tables in owners.items()}
        return batches, Batch(since, to, reached, floor), cut is None

    def _border(self, most: int) -> int | None:
        """The offset before which no part has more than `most` rows, give or take a quarter at the end; None if all are within that."""
        if self._parts is None:
            if all(rows.num_rows <= most + most // 4 for tables in self._whole.values() for rows in tables.values()):
                return None
            self._parts = [
                _Part(owner, name, rows) for owner, tables in self._whole.items() for name, rows in tables.items()
            ]
        return min((cut for each in self._parts if (cut := each.border(most)) is not None), default=None)

    def _cut(self, upto: int | None) -> Mapping[int, _Rows]:
        """What was not given yet of offsets below `upto`."""
        found: dict[int, dict[str, pa.RecordBatch]] = {}
        for part in self._parts or ():
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

    def border(self, most: int) -> int | None:
        """Where the record begins that does not fit into `most` rows any more, but behind what was given."""
        end = self.at + most
        if end + most // 4 >= len(self.offsets):
            return None
        if self.offsets[end] == self.offsets[self.at]:
            end = int(np.searchsorted(self.offsets, self.offsets[end], "right"))
        return int(self.offsets[end]) if end < len(self.offsets) else None

    def before(self, upto: int | None) -> pa.RecordBatch | None:
        begin = self.at
        self.at = len(self.offsets) if upto is None else int(np.searchsorted(self.offsets, upto))
        return self.rows.slice(begin, self.at - begin) if self.at > begin else None
