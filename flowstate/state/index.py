"""The index of one window: open-addressing tables that split one by one (extendible hashing: Fagin and others 1979)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flowstate.state.block import zeroed
from flowstate.state.kernels import index as kernels

_LEAST = 64  # slots of the first table to begin with
_SLOTS = 8192  # of tables that split, which takes a tenth of a millisecond
_SLAB = 4 << 20  # bytes: so much memory for tables is had at once, at most
# A table splits when between this part of its slots and twice that is taken, drawn from its number: so tables split one after the
# other for ever, and not all of them whenever the index has doubled.
_FULL = 0.375
_GOLDEN = 0.6180339887498949

_Words = npt.NDArray[np.uint64]


class Scratch:
    """Room for the entries of a table that is divided, for all windows: to have new memory would take as long as the dividing."""

    def __init__(self) -> None:
        self._words: _Words | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self._words is None else self._words.nbytes

    def words(self) -> _Words:
        """Made when it is asked for: most tables are small."""
        if self._words is None:
            self._words = np.empty(2 * _SLOTS, np.uint64)
        return self._words


class Index:
    """Slots are words that tell of a record (see `kernels.index`). `directory` has the address and the number of the table for
    each pattern of hash bits, `counts` the entries of each table and how many it may hold; all tables have `slots` slots."""

    def __init__(self, head_words: int, seed: np.uint64, scratch: Scratch) -> None:
        self._head_words, self._seed, self._scratch = head_words, seed, scratch
        self.slots = _LEAST
        self._memory, self._left = 0, np.empty(0, np.uint64)
        self._tables = [self._room(_LEAST)]
        self._bits = [0]  # of each table: how many bits of the hash tell it from others
        self.directory = np.array([[self._tables[0].ctypes.data, 0]], np.uint64)
        self.counts = np.array([[0, self._limit(0)]], np.int64)

    @property
    def nbytes(self) -> int:
        return self._memory + self.directory.nbytes + self.counts.nbytes

    def grow(self, value: int) -> None:
        """Make room for a key with the hash `value`. The first table grows up to the size of tables, and then they split."""
        if self.slots < _SLOTS:
            old, self.slots = self._tables[0], min(_SLOTS, 4 * self.slots)
            self._memory -= old.nbytes
            self._tables[0] = new = self._room(self.slots)
            kernels.enlarge(old.ctypes.data, len(old), new.ctypes.data, self.slots, self._head_words, self._seed)
            self.directory[0, 0], self.counts[0, 1] = new.ctypes.data, self._limit(0)
        else:
            self._split(int(self.directory[(value >> kernels.FIRST_BIT) & (len(self.directory) - 1), 1]), value)

    def _split(self, table: int, value: int) -> None:
        """Those of the table's entries go to a new one whose hash has the next bit set."""
        bits, other = self._bits[table], len(self._tables)
        pattern = (value >> kernels.FIRST_BIT) & ((1 << bits) - 1)
        if 1 << bits == len(self.directory):
            self.directory = np.concatenate([self.directory, self.directory])
        if other == len(self.counts):
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
        low, high = self._tables[table], self._room(_SLOTS)
        ends = low.ctypes.data, high.ctypes.data
        moved = int(kernels.divide(*ends, self.slots, bits, self._head_words, self._seed, self._scratch.words()))
        self._tables.append(high)
        self._bits.append(bits + 1)
        self._bits[table] += 1
        self.directory[pattern | 1 << bits :: 2 << bits] = high.ctypes.data, other
        self.counts[table, 0] -= moved
        self.counts[other] = moved, self._limit(other)

    def _limit(self, table: int) -> int:
        return int(self.slots * _FULL * 2 ** (table * _GOLDEN % 1))

    def _room(self, slots: int) -> _Words:
        """Zeros for one table."""
        if self._left.shape[0] < slots:
            nbytes = 8 * slots if slots < _SLOTS else min(_SLAB, 8 * slots * len(self._tables))
            self._left = zeroed(nbytes).view(np.uint64)
            self._memory += nbytes
        room, self._left = self._left[:slots], self._left[slots:]
        return room
