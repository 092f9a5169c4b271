# mypy: disable-error-code="no-untyped-def"
"""Kernels that write the rows of a lookup as one Arrow message: its head, and behind it each column where Arrow wants it."""

from __future__ import annotations

import numpy as np

from flowstate.plan.encoding import BYTES, END, FIRST, KIND, OFFSETS, VALIDITY, VALUES, copy_text
from flowstate.plan.kernel import kernel
from flowstate.plan.memory import load, load_byte, load_half, prefetch, store, store_byte

U = np.uint64
AHEAD = 24  # rows: so long before it is read, memory that lies anywhere is asked for
#: What a column of the message is made of: text or words of a key, the start or end of a window, words of the state, the low word of a
#: sum of two if that is all of it, words of the state where a flag says that there is a value.
TEXT, KEY, EDGE, STATE, NARROW, FLAGGED = range(6)
#: A line of the program, one for each column: which of these; the number of the key column, the side of the window, or the state column;
#: bytes a row; the state column of flags; where in the head its node and its first buffer are described; least and most of `NARROW`.
MADE_OF, SOURCE, WIDTH, FLAGS, NODE, BUFFER, LEAST, MOST, LINE = range(9)


@kernel
def measure(slots, seen, columns, windows, places, keys):
    """The places of the rows that were found (not -1), of each row the first, ascending, and the keys of these; a key has `windows` slots.
    `seen` has a bit for every slot: all are zero, before and after. Returns how many, and how many bytes of text their keys have together;
    -1 bytes if a key column has nulls."""
    count = 0
    for place in range(slots.shape[0]):
        slot = slots[place]
        if slot >= 0:
            word, bit = slot >> 6, U(1) << U(slot & 63)
            if seen[word] & bit == U(0):
                seen[word] |= bit
                places[count] = place
                count += 1
    for index in range(count):
        seen[slots[places[index]] >> 6] = U(0)
        keys[index] = places[index] if windows == 1 else places[index] // windows
    size = 0
    for column in range(columns.shape[0]):
        if columns[column, VALIDITY] != 0:
            return count, -1
        if columns[column, KIND] == BYTES:
            offsets = U(columns[column, OFFSETS]) + U(columns[column, FIRST]) * U(4)
            for index in range(count):
                at = offsets + U(keys[index]) * U(4)
                size += load_half(at + U(4)) - load_half(at)
    return count, size


@kernel
def write(head, length_at, body_at, program, columns, edges, pointers, shift, slots, places, keys, rows, target):
    """Write the message of `rows` rows to address `target`: `head`, with its numbers, and the body. False if a sum does not fit, and then
    the message is of no use."""
    at, base = U(0), U(target) + U(head.shape[0])
    mask = (1 << shift) - 1
    for place in range(0, head.shape[0], 8):
        store(U(target) + U(place), load(U(head.ctypes.data) + U(place)))
    for column in range(program.shape[0]):
        made_of, source, width = program[column, MADE_OF], program[column, SOURCE], program[column, WIDTH]
        node, buffer = U(target) + U(program[column, NODE]), U(target) + U(program[column, BUFFER])
        nulls, bits = 0, U(0)
        if made_of == FLAGGED:
            flags, word = program[column, FLAGS], U(0)
            for index in range(rows):
                slot = slots[places[index]]
                valid = load_byte(pointers[flags, slot >> shift] + U(slot & mask)) == U(1)
                if valid:
                    word |= U(1) << U(index & 63)
                else:
                    nulls += 1
                if index & 63 == 63 or index == rows - 1:
                    store(base + at + (U(index >> 6) << U(3)), word)
                    word = U(0)
            bits = U((rows + 7) >> 3)
        store(node, U(rows))
        store(node + U(8), U(nulls))
        store(buffer, at)
        store(buffer + U(8), bits if nulls > 0 else U(0))
        at += (bits + U(63)) & ~U(63)
        buffer += U(16)
        if made_of == TEXT:
            offsets, size = base + at, U(4 * (rows + 1))
            store(buffer, at)
            store(buffer + U(8), size)
            buffer += U(16)
            at += (size + U(63)) & ~U(63)
            text = _text(columns, source, keys, rows, offsets, base + at)
            store(buffer, at)
            store(buffer + U(8), U(text))
            at += (U(text) + U(63)) & ~U(63)
            continue
        to, size = base + at, U(rows * (8 if made_of == NARROW else width))
        store(buffer, at)
        store(buffer + U(8), size)
        at += (size + U(63)) & ~U(63)
        if made_of == KEY:
            values = U(columns[source, VALUES]) + U(columns[source, FIRST] * width)
            for index in range(rows):
                value = values + U(keys[index] * width)
                store(to, load(value))
                if width == 16:
                    store(to + U(8), load(value + U(8)))
                to += U(width)
        elif made_of == EDGE:
            for index in range(rows):
                store(to, U(edges[index, source]))
                to += U(8)
        else:
            for index in range(rows):
                ahead = slots[places[min(index + AHEAD, rows - 1)]]
                prefetch(pointers[source, ahead >> shift] + U((ahead & mask) * width))
                slot = slots[places[index]]
                value = pointers[source, slot >> shift] + U((slot & mask) * width)
                low = load(value)
                store(to, low)
                to += U(8)
                if width == 16:
                    high = load(value + U(8))
                    if made_of == NARROW:
                        if program[column, LEAST] < 0:
                            number = np.int64(low)
                            if np.int64(high) != number >> 63:
                                return False
                            if number < program[column, LEAST] or number > program[column, MOST]:
                                return False
                        elif high != U(0):
                            return False
                    else:
                        store(to, high)
                        to += U(8)
    store(U(target) + U(length_at), U(rows))
    store(U(target) + U(body_at), at)
    return True


@kernel
def _text(columns, source, keys, rows, offsets, target):
    """Copy the values of a text column at `keys`, offsets before; up to 7 bytes behind the last are written, too. Returns how many bytes
    the values have."""
    values, end = U(columns[source, VALUES]), U(columns[source, END])
    begins = U(columns[source, OFFSETS]) + U(columns[source, FIRST]) * U(4)
    to, half = U(target), U(0)
    for index in range(rows):
        written = to - U(target)
        if index & 1 == 0:  # offsets are written by pairs: a word each
            half = written
        else:
            store(offsets + U(4 * (index - 1)), half | (written << U(32)))
        at = begins + U(keys[index]) * U(4)
        begin = load_half(at)
        size = load_half(at + U(4)) - begin
        copy_text(to, values + U(begin), size, end)
        to += U(size)
    written = to - U(target)
    if rows & 1 == 0:
        for byte in range(4):
            store_byte(offsets + U(4 * rows + byte), written >> U(8 * byte))
    else:
        store(offsets + U(4 * (rows - 1)), half | (written << U(32)))
    return np.int64(written)
