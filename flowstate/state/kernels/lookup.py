# mypy: disable-error-code="no-untyped-def"
"""The kernel of lookups in all windows: a key is encoded and hashed once, and looked for in the index of each of them."""

from __future__ import annotations

import numpy as np

from flowstate.plan.encoding import BLOCK, encode
from flowstate.plan.kernel import kernel
from flowstate.plan.memory import prefetch
from flowstate.state.kernels.index import first_alike, home_of, row_of

U = np.uint64


@kernel
def locate_all(columns, head_words, first, rows, windows, hashes, seed, starts, cursors, scratch, homes, tails, slots):
    """The row of each key in each of `windows`, into `slots`: all windows of the first key, then of the next; -1 for an unknown one. Works
    on keys from `first`. Returns the key before which it stopped, because `scratch` is too small for it, or `rows`."""
    scratch_at, tails_at, width = U(scratch.ctypes.data), U(tails.ctypes.data), windows.shape[0]
    row = first
    while row < rows:
        last = encode(
            columns, head_words, row, min(rows, row + BLOCK), starts, cursors, scratch, False, seed, hashes[row:rows]
        )
        if last == row:
            return row
        count, block_hashes = last - row, hashes[row:last]
        for number in range(width):
            tail = tails_at + (U(windows[number]) << U(6))
            for index in range(count):
                homes[index] = home_of(block_hashes[index], tail)
                prefetch(homes[index])
            for index in range(count):
                homes[index] = first_alike(homes[index], block_hashes[index], tail)
            for index in range(count):
                key, words = scratch_at + (U(starts[index]) << U(3)), U(starts[index + 1] - starts[index])
                slot, _, _ = row_of(homes[index], block_hashes[index], tail, key, words)
                slots[(row + index) * width + number] = slot
        row = last
    return row
