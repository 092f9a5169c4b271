# mypy: disable-error-code="no-untyped-def"
"""Kernels that turn stored records and cells back into columns."""

from __future__ import annotations

import numpy as np

from flowstate.plan.kernel import kernel
from flowstate.plan.memory import load, load_byte, store, store_byte

U = np.uint64


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
def gather_cells(pointers, slots, shift, words, values):
    """Copy the rows `slots` of a column of `words` words each out of its chunks."""
    mask = (1 << shift) - 1
    for index in range(slots.shape[0]):
        slot = slots[index]
        source = pointers[slot >> shift] + U((slot & mask) * words * 8)
        for word in range(words):
            values[index * words + word] = load(source + U(8 * word))


@kernel
def gather_flags(pointers, slots, shift, values):
    """`gather_cells` of a column of one byte each."""
    mask = (1 << shift) - 1
    for index in range(slots.shape[0]):
        slot = slots[index]
        values[index] = load_byte(pointers[slot >> shift] + U(slot & mask))
