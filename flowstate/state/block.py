"""Memory of chunks: blocks that are given back when nobody refers to them, and a pool of blocks to copy into.

A `Block` is referred to by the chunk that writes it, by views, and by every Arrow buffer made on it (`buffer`). Its memory goes back
to the pool when the last of them is gone, and not before, however long somebody keeps an array. Blocks come from the system by mmap
and go back to it by munmap, so that dropped windows really free memory.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_MAPPED = 64 * 1024  # smaller memory comes from the heap
_HUGE = 2 * 1024 * 1024
_SLAB = 2 * _HUGE
_PAGE = 4096
_MOST_READY = (
    3  # slabs: a table that grows takes one for keys, one for state and one for its index at about the same time
)


def zeroed(size: int) -> npt.NDArray[np.uint8]:
    """`size` bytes of zeros, aligned to 64; mapped if large, and in huge pages if they would be filled: random access to many
    megabytes is bound by address translation (half of the time with 2 million keys)."""
    if size >= _HUGE:
        ready = reserve.take() if size == _SLAB else None
        return _huge(size) if ready is None else ready
    if size >= _MAPPED:
        return np.frombuffer(_mapped(size), np.uint8)
    return _aligned(np.zeros(size + 64, np.uint8), size, 64)


def _huge(size: int) -> npt.NDArray[np.uint8]:
    mapped = _mapped(size + _HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return _aligned(np.frombuffer(mapped, np.uint8), size, _HUGE)


def _mapped(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _aligned(memory: npt.NDArray[np.uint8], size: int, to: int) -> npt.NDArray[np.uint8]:
    start = -memory.ctypes.data % to
    return memory[start : start + size]


class Reserve:
    """Slabs whose pages are there already, for all tables of the process. The first touch of a huge page takes 0.2 ms, but 5 ms on a
    virtual machine whose host has to find the memory first; whoever applies rows should wait for neither. Whoever has another thread
    sets `on_taken`, which is called when a slab was wanted, and has that thread call `fill`; otherwise nothing is ever in it."""

    def __init__(self) -> None:
        self.on_taken: Callable[[], None] | None = None
        self._ready: deque[npt.NDArray[np.uint8]] = deque()
        self._wanted = 0

    @property
    def nbytes(self) -> int:
        return _SLAB * len(self._ready)

    def take(self) -> npt.NDArray[np.uint8] | None:
        """A slab of zeros, if one is ready."""
        if self.on_taken is None:
            return None
        self._wanted = min(_MOST_READY, self._wanted + 1)
        try:
            return self._ready.popleft()
        except IndexError:
            return None
        finally:
            self.on_taken()

    def fill(self) -> bool:
        """Make one slab ready; False if there were enough. Most of its time is without the GIL."""
        if len(self._ready) >= self._wanted:
            return False
        memory = _huge(_SLAB)
        memory[::_PAGE] = 0
        self._ready.append(memory)
        return True


#: The one of this process.
reserve = Reserve()


class Pool:
    """Blocks of one window: they are cut from slabs of huge pages once the window is large, and used again when dropped. `limit` bounds
    how many bytes wait for that: as many as are in use. All chunks of a window are of one size, which grows with the first of them; blocks
    of the sizes before wait for nobody. A window has its own pool, so that its slabs go when it goes."""

    def __init__(self) -> None:
        self.limit = 0
        self._size = 0
        self._waiting: dict[int, deque[npt.NDArray[np.uint8]]] = {}
        self._slab = np.empty(0, np.uint8)

    @property
    def waiting(self) -> int:
        """Bytes that wait for use."""
        return sum(size * len(each) for size, each in list(self._waiting.items()))

    def take(self, size: int) -> Block:
        """A block of `size` bytes, with anything in it."""
        try:
            return Block(self, self._waiting[size].pop())
        except (KeyError, IndexError):
            return self.fresh(size)

    def fresh(self, size: int) -> Block:
        """A block of zeros."""
        if size != self._size:
            self._size, self._waiting = size, {}
        if size < _MAPPED or self.limit < _SLAB // 2:
            return Block(self, zeroed(size))
        if self._slab.nbytes < size:
            self._slab = zeroed(max(size, _SLAB))
        memory, self._slab = self._slab[:size], self._slab[size:]
        return Block(self, memory)

    def close(self) -> None:
        """Keep nothing any more; blocks that views still hold go to the system when those end."""
        self.limit, self._waiting, self._slab = 0, {}, np.empty(0, np.uint8)

    def give(self, memory: npt.NDArray[np.uint8]) -> None:
        """Called by a block's end, in whichever thread dropped it: one append, which is atomic."""
        if memory.nbytes == self._size and self.waiting + memory.nbytes <= self.limit:
            self._waiting.setdefault(memory.nbytes, deque()).append(memory)


class Block:
    """Memory with an owner. Writing it is allowed only to who knows that nobody else refers to it (`alone`)."""

    __slots__ = ("__weakref__", "_memory", "_pool", "address", "size")

    def __init__(self, pool: Pool, memory: npt.NDArray[np.uint8]) -> None:
        self._pool, self._memory = pool, memory
        self.address, self.size = int(memory.ctypes.data), memory.nbytes

    def __del__(self) -> None:
        self._pool.give(self._memory)

    def copy(self) -> Block:
        """The same bytes in another block."""
        block = self._pool.take(self.size)
        np.copyto(block._memory, self._memory)
        return block

    def memory(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Part of the block, for its writer, who must not keep it."""
        return self._memory[offset : offset + size]

    def buffer(self, offset: int, size: int) -> pa.Buffer:
        """Part of the block as an Arrow buffer, without a copy; it keeps the block."""
        return pa.foreign_buffer(self.address + offset, size, base=self)


_probe: list[Any] = [object()]
_ALONE = sys.getrefcount(_probe[0])
# Without the GIL reference counts are not exact: then every chunk that a view may refer to is copied.
_EXACT = bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def alone(holder: list[Any], index: int) -> bool:
    """Whether ``holder[index]`` is the only reference to its object.

    Exact under the GIL, and stable once true: nobody can get a reference to an object but from somebody who has one. (A view's end,
    or an array's, in another thread can only make it true later, and the cost of that is one copy.)
    """
    return _EXACT and sys.getrefcount(holder[index]) <= _ALONE


def is_alone(stored: Any) -> bool:
    """Whether ``stored.block`` is referred to by `stored` alone."""
    return _EXACT and sys.getrefcount(stored.block) <= _ALONE
