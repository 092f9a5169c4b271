# mypy: disable-error-code="no-untyped-def"
"""Kernels that keep what rows were before they are written, and put it back into copies (see `state.before`).

An entry is the address of the one before it of the same chunk (0: there is none), the row in its chunk, and then the row's state, column
after column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from flowstate.plan.kernel import kernel
from flowstate.plan.memory import load, load_byte, prefetch, store, store_byte

U = np.uint64
AHEAD = 16


@intrinsic
def _fence(typingctx: Any) -> Any:
    """What was written before is seen before what is written after, and read likewise, by other threads too."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@kernel
def save(first, slots, shift, rows, saved, born, last_view, pointers, widths, befores, size, heads, room):
    """Add an entry, to the memory from ``room[0]`` to ``room[1]``, for each row of `slots` that a view has (it is one of the first
    `rows` of its chunk, whose block was not made since) and that is not `saved` yet (a bit per slot). Returns the place in `slots`
    before which the memory was full, or their number."""
    mask = (1 << shift) - 1
    count = slots.shape[0]
    done = count
    for index in range(first, count):
        if index + AHEAD < count:
            later = slots[index + AHEAD]
            if born[later >> shift] <= last_view:
                for column in range(widths.shape[0]):
                    prefetch(pointers[column, later >> shift] + U((later & mask) * widths[column]))
        slot = slots[index]
        chunk, row = slot >> shift, slot & mask
        if born[chunk] > last_view or row >= rows[chunk]:
            continue
        word, bit = slot >> 6, U(1) << U(slot & 63)
        if saved[word] & bit != U(0):
            continue
        if room[0] + size > room[1]:
            done = index
            break
        entry = U(room[0])
        store(entry, U(heads[chunk]))
        store(entry + U(8), U(row))
        for column in range(widths.shape[0]):
            source = pointers[column, chunk] + U(row * widths[column])
            target = entry + U(16) + U(befores[column])
            if widths[column] == 1:
                store_byte(target, load_byte(source))
            else:
                for place in range(0, widths[column], 8):
                    store(target + U(place), load(source + U(place)))
        _fence()
        heads[chunk] = np.int64(entry)
        saved[word] |= bit
        room[0] += size
    _fence()
    return done


@kernel
def put_back(heads, chunk, before, width, rows, target):
    """Write what the first `rows` rows of a chunk were, in a column of `width` bytes, over the copy of that column at `target`."""
    _fence()
    entry = U(heads[chunk])
    while entry != U(0):
        row = load(entry + U(8))
        if row < U(rows):
            source, to = entry + U(16) + U(before), U(target) + row * U(width)
            if width == 1:
                store_byte(to, load_byte(source))
            else:
                for place in range(0, width, 8):
                    store(to + U(place), load(source + U(place)))
        entry = load(entry)
