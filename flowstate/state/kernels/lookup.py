# mypy: disable-error-code="no-untyped-def"
"""The kernel of lookups in all windows: a key is encoded and hashed once, and looked for in the index of each of them."""

from __future__ import annotations

import numpy as np

from flowstate.plan.encoding import BLOCK, encode
from flowstate.plan.kernel import kernel
from flowstate.plan.memory import load, prefetch
from flowstate.state.kernels.index import (
    _ADDRESS,
    _RECORD_BITS,
    SLOTS,
    _farther,
    _mark,
    _next,
    _record_of,
    _same,
    _table,
)

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
                value = block_hashes[index]
                home = load(_table(value, tail)) + ((value & load(tail + U(8 * SLOTS))) << U(3))
                homes[index] = home
                prefetch(home)
            for index in range(count):
                value, at = block_hashes[index], homes[index]
                entry, mark = load(at), _mark(value)
                while entry != U(0) and entry >> U(_RECORD_BITS) != mark:
                    at, mark = _next(at, value, tail), _farther(mark)
                    entry = load(at)
                homes[index] = at | (mark << U(60))
                prefetch(_record_of(entry) if entry != U(0) else at)
            for index in range(count):
                value = block_hashes[index]
                at, mark = homes[index] & _ADDRESS, _mark(value) | (homes[index] >> U(60))
                key, words = scratch_at + (U(starts[index]) << U(3)), U(starts[index + 1] - starts[index])
                slot = np.int64(-1)
                while True:
                    entry = load(at)
                    if entry == U(0):
                        break
                    if entry >> U(_RECORD_BITS) == mark:
                        record = _record_of(entry)
                        if _same(record + U(8), key, words):
                            slot = np.int64(load(record))
                            break
                    at, mark = _next(at, value, tail), _farther(mark)
                slots[(row + index) * width + number] = slot
        row = last
    return row
