"""What rows were at the moment of a view: so that a large table need not copy all its chunks in the first block after one.

With many keys, one block of rows touches every chunk, and copying them all is tens of milliseconds, in which nobody is answered. So a
large table first saves the state of just those rows that it writes, and copies only some of the chunks in each block, until all that
the block touches are its own again, or the view is gone. Readers of such a table get copies, never its own memory: they copy a column
while it may be written, and only then put back what was saved meanwhile.

1. The writer saves a row, and only then writes it. Whatever of its write is in a copy, the row is found among the saved ones after that.
2. What is saved after a later view is an earlier one's too, as long as both have the chunk in one block: each log knows the one after
   it, and they are put back the latest first.
3. A chunk that is copied for the writer leaves its old block to the views, with all that was saved put back: to a reader who is just
   copying that, the same is written that it puts back itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.state.chunk import Layout
from flowstate.state.kernels import before as kernels

MOVED, SETTLED = 1, 2  # the old block is as the table left it, or as the view found it
_LEAST, _MOST = 1 << 16, 1 << 22  # bytes of a piece of memory for entries

Int64s = npt.NDArray[np.int64]


class Before:
    """What was saved since one view. `ids` and `filled` are those of the chunks at its moment."""

    __slots__ = (
        "__weakref__",
        "_heads",
        "_layout",
        "_pieces",
        "_room",
        "_saved",
        "_size",
        "filled",
        "ids",
        "later",
        "length",
        "replaced",
    )

    def __init__(self, layout: Layout, ids: Int64s, filled: Int64s, shift: int) -> None:
        self._layout, self.ids, self.filled, self.length = layout, ids, filled, 1
        self._heads = np.zeros(len(ids), np.int64)
        #: Of chunks that the table has in another block since: what is saved of them later is no longer about that of the views.
        self.replaced = np.zeros(len(ids), np.uint8)
        self._saved = np.zeros(((len(ids) << shift) >> 6) + 1, np.uint64)
        self._pieces: list[pa.Buffer] = []
        self._room = np.zeros(2, np.int64)
        self._size = 16 + (layout.row_bytes + 7) // 8 * 8
        self.later: Before | None = None

    @property
    def nbytes(self) -> int:
        return self._heads.nbytes + self._saved.nbytes + sum(each.size for each in self._pieces)

    def follow(self, earlier: Before) -> None:
        """From now on rows are saved here, for the earlier view too; its log is `length` logs long with this one."""
        self.length, earlier.later = earlier.length + 1, self
        earlier._saved = earlier._saved[:0]

    def save(self, slots: Int64s, shift: int, born: Int64s, last_view: int, pointers: npt.NDArray[np.uint64]) -> None:
        """Save the rows `slots` as they are, those of them that the view has."""
        layout, done = self._layout, 0
        while True:
            done = kernels.save(
                done, slots, shift, self.filled, self._saved, born, last_view, pointers, layout.widths, layout.befores,
                self._size, self._heads, self._room,
            )  # fmt: skip
            if done == len(slots):
                return
            size = max(self._size, min(_MOST, 2 * self._pieces[-1].size)) if self._pieces else _LEAST
            self._pieces.append(pa.allocate_buffer(size))
            self._room[:] = self._pieces[-1].address, self._pieces[-1].address + size

    def put_back(self, chunk: int, column: int, rows: int, address: int) -> None:
        """Make the copy at `address` of a state column of a chunk what it was."""
        layout = self._layout
        kernels.put_back(self._heads, chunk, layout.before[column], layout.sizes[column], rows, address)

    def of(self, chunk: int, chunk_id: int) -> Iterator[Before] | None:
        """The logs that know of this chunk of the view, from this one on, the latest first. None if its block is the views' alone by now,
        and what it was."""
        logs, each = list[Before](), self
        while True:
            later = each.later  # first: once there is one, nothing is replaced in this one any more
            if chunk < len(each.ids) and each.ids[chunk] == chunk_id:
                logs.append(each)
                if each.replaced[chunk] == SETTLED and len(logs) == 1:
                    return None
                if each.replaced[chunk]:
                    later = None
            if later is None:
                return reversed(logs)
            each = later
