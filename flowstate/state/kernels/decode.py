# mypy: disable-error-code="no-untyped-def"
"""Kernels that turn stored records and cells back into columns."""

from __future__ import annotations

import numpy as np

from flowstate.plan.kernel import kernel
from flowstate.plan.memory import load, load_byte, prefetch, store, store_byte

U = np.uint64
AHEAD = 24  # rows: so long before it is read, memory that lies anywhere is asked for


@kernel
def walk(address, rows, head_words, positions):
    """The addresses of the keys of `rows` stored records that follow one another from `address`."""
    at = U(address)
    for row in range(rows):
        positions[row] = at + U(8)
        size = load(at + U(8)) >> U(32)
        at += (U(1 + head_words) + ((size + U(7)) >> U(3))) << U(3)


@kernel
def decode_validity(positions, column, valid):
    """1 where the column's key is not null. Returns the number of nulls."""
    nulls = np.int64(0)
    word = 0 if column < 32 else 1 + ((column - 32) >> 6)
    bit = U(column) if column < 32 else U((column - 32) & 63)
    for row in range(positions.shape[0]):
        null = (load(positions[row] + U(8 * word)) >> bit) & U(1)
        valid[row] = U(1) - null
        nulls += np.int64(null)
    return nulls


@kernel
def decode_words(positions, place, width, values):
    """Fixed key columns of `width` words."""
    for row in range(positions.shape[0]):
        for word in range(width):
            values[row * width + word] = load(positions[row] + U(8 * (place + word)))


@kernel
def decode_extents(positions, head_words, places, column, begins, sizes):
    """Address and size of the `column`-th of the variable key columns; `places` has the words of all their lengths but the last."""
    for row in range(positions.shape[0]):
        at = positions[row]
        begin, left = at + U(8 * head_words), load(at) >> U(32)
        for other in range(places.shape[0]):
            size = load(at + U(8 * places[other]))
            if other == column:
                left = size
                break
            begin += size
            left -= size
        begins[row] = begin
        sizes[row] = np.int64(left)


@kernel
def gather_bytes(begins, sizes, target):
    """Copy stretches of bytes one after the other to address `target`, writing nothing behind the last."""
    to = U(target)
    for row in range(begins.shape[0]):
        source, size = begins[row], sizes[row]
        while size >= 8:
            store(to, load(source))
            to += U(8)
            source += U(8)
            size -= 8
        for byte in range(size):
            store_byte(to + U(byte), load_byte(source + U(byte)))
        to += U(size)


@kernel
def gather_rows(pointers, widths, befores, room, slots, shift, target):
    """Copy the rows `slots` of every state column out of its chunks: of column c, `widths[c]` bytes each, to `befores[c] * room` behind
    address `target`."""
    mask, rows = (1 << shift) - 1, slots.shape[0]
    for column in range(widths.shape[0]):
        width = widths[column]
        to = U(target) + U(befores[column] * room)
        for index in range(rows):
            ahead = slots[min(index + AHEAD, rows - 1)]
            prefetch(pointers[column, ahead >> shift] + U((ahead & mask) * width))
            slot = slots[index]
            source = pointers[column, slot >> shift] + U((slot & mask) * width)
            if width == 1:
                store_byte(to, load_byte(source))
            else:
                for word in range(width >> 3):
                    store(to + U(word << 3), load(source + U(word << 3)))
            to += U(width)


@kernel
def narrow(address, least, most, values):
    """Sums of two words each, at `address`, as single ones, if they are between `least` and `most`. Signed if `least` is negative: then
    `most` is that of the signed type. Returns the first row that does not fit, or -1."""
    signed = least < 0
    for row in range(values.shape[0]):
        at = U(address) + U(row << 4)
        low, high = load(at), load(at + U(8))
        values[row] = low
        value = np.int64(low)
        if signed:
            if np.int64(high) != value >> 63 or value < least or value > np.int64(most):
                return row
        elif high != U(0) or low > most:
            return row
    return -1
