"""A digest of the state of rows, by which a change is noticed where nobody counts revisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.plan.keys import UInt64s, route_hashes
from flowstate.state.cells import CELL, StateColumn

_STEPS = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))


def mixed(digest: UInt64s, column: StateColumn, stored: Any) -> UInt64s:
    """`digest`, one number per row, with what a state column holds (as `Chunk` reads it). For one digest, another word gives another
    number, always: the steps can be undone (splitmix64, Steele et al. 2014)."""
    for word in _words(column, stored, len(digest)):
        digest = digest ^ word
        for shift, factor in _STEPS:
            digest = (digest ^ (digest >> np.uint64(shift))) * factor
        digest = digest ^ (digest >> np.uint64(31))
    return digest


def _words(column: StateColumn, stored: Any, rows: int) -> list[npt.NDArray[np.uint64]]:
    """The words of each row."""
    if column.type == CELL:  # a text moves in memory, so that what counts is what it says
        offsets, data = stored
        return [route_hashes([pa.Array.from_buffers(CELL, rows, [None, offsets, data])], 0, rows=rows)]
    if column.width % 8:
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[column.width]
        return [np.frombuffer(stored, kind).astype(np.uint64)]
    words = np.frombuffer(stored, np.uint64).reshape(rows, column.width // 8)
    return [words[:, each] for each in range(words.shape[1])]
