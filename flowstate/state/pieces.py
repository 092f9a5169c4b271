"""What memory a view refers to, piece by piece, so that whoever keeps views can tell what they cost beyond the table itself.

A view costs nothing as long as the table has not written since. A chunk that it writes then is copied first, and the old block is the
views' alone, as is all memory of a window that was dropped. So what some views cost is the union of their pieces without the table's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowstate.state.chunk import Stored


@dataclass(frozen=True)
class Pieces:
    """`identities` tell the pieces of one process apart as long as somebody holds them; `nbytes` are their sizes."""

    identities: npt.NDArray[np.uint64]
    nbytes: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.nbytes.sum())

    @staticmethod
    def of(pieces: Iterable[tuple[int, int]]) -> Pieces:
        """Of (identity, bytes); one that is there twice counts once, with its greater size."""
        found: dict[int, int] = {}
        for identity, nbytes in pieces:
            found[identity] = max(nbytes, found.get(identity, 0))
        return Pieces(np.fromiter(found, np.uint64, len(found)), np.fromiter(found.values(), np.int64, len(found)))

    @staticmethod
    def union(each: Iterable[Pieces]) -> Pieces:
        parts = list(each)
        if not parts:
            return Pieces.of(())
        identities, first = np.unique(np.concatenate([part.identities for part in parts]), return_index=True)
        return Pieces(identities, np.concatenate([part.nbytes for part in parts])[first])


def pieces_of(stored: Iterable[Stored | None], *, windows_go: bool) -> Iterator[tuple[int, int]]:
    """The pieces of some chunks: blocks and texts, and where windows are dropped, their keys (twice: as they lie and as Arrow columns).

    Chunks of one window share memory for keys up to its end, which tells it."""
    for each in stored:
        if each is None:
            continue
        yield each.block.address, each.block.size
        if each.values is not None:
            yield int(each.values.ctypes.data), each.values.nbytes
        if windows_go:
            for _, memory in list(each.keys.segments):
                if memory.nbytes:
                    yield int(memory.ctypes.data) + memory.nbytes - 1, 2 * memory.nbytes
