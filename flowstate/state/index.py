"""The index of a keyed table: 64 open-addressing tables that grow one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flowstate.state.block import zeroed
from flowstate.state.kernels import index as kernels

_LEAST = 64  # slots
_SMALL = 1024
# Tables of one index fill alike; different limits make them grow one after the other instead of all at once.
_LOADS = np.linspace(0.45, 0.7, kernels.TABLES)


class Index:
    """Slots are words: tag and address of a record (see `kernels.index`). `directory` has address and mask of each table, `counts`
    its entries and how many it may hold."""

    def __init__(self, head_words: int, seed: np.uint64) -> None:
        self._head_words, self._seed = head_words, seed
        self.directory = np.zeros((kernels.TABLES, 2), np.uint64)
        self.counts = np.zeros((kernels.TABLES, 2), np.int64)
        # Tables of one size lie together, so that they fill huge pages.
        self._regions: dict[int, npt.NDArray[np.uint8]] = {}
        self._tables: list[npt.NDArray[np.uint8]] = [self._room(table, _LEAST * 8) for table in range(kernels.TABLES)]
        for table, memory in enumerate(self._tables):
            self._use(table, memory, 0)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._tables)

    def grow(self, table: int) -> None:
        """Double one table, or quadruple a small one, so that a new index gets through its first keys in few steps."""
        old = self._tables[table]
        larger = old.nbytes * (4 if old.nbytes < _SMALL * 8 else 2)
        self._move(table, self._room(table, larger), np.empty(0, np.uint8))
        self._forget_regions()

    def purge(self, dead: npt.NDArray[np.uint8]) -> None:
        """Drop the entries of the windows whose byte in `dead` is not 0; shrink the tables that they leave empty."""
        self._regions = {}
        for table, old in enumerate(self._tables):
            if not self.counts[table, 0]:
                continue
            left = self._move(table, self._room(table, old.nbytes), dead)
            slots = old.nbytes // 8
            while slots > _LEAST and left < slots / 2 * _LOADS[table] * 0.75:
                slots //= 2
            if slots * 8 < old.nbytes:
                self._move(table, self._room(table, slots * 8), np.empty(0, np.uint8))
        self._forget_regions()

    def _room(self, table: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Zeros for a table of this size; each table may ask once per size between two purges."""
        if nbytes not in self._regions:
            self._regions[nbytes] = zeroed(nbytes * kernels.TABLES)
        return self._regions[nbytes][table * nbytes : (table + 1) * nbytes]

    def _forget_regions(self) -> None:
        used = {each.nbytes for each in self._tables}
        self._regions = {nbytes: memory for nbytes, memory in self._regions.items() if nbytes in used}

    def _move(self, table: int, memory: npt.NDArray[np.uint8], dead: npt.NDArray[np.uint8]) -> int:
        old = self._tables[table]
        moved = int(
            kernels.rehash(
                old.ctypes.data,
                old.nbytes // 8,
                memory.ctypes.data,
                memory.nbytes // 8,
                dead,
                self._head_words,
                self._seed,
            )
        )
        self._use(table, memory, moved)
        return moved

    def _use(self, table: int, memory: npt.NDArray[np.uint8], entries: int) -> None:
        self._tables[table] = memory
        slots = memory.nbytes // 8
        self.directory[table] = memory.ctypes.data, slots - 1
        self.counts[table] = entries, int(slots * _LOADS[table])
