# mypy: disable-error-code="no-untyped-def"
"""Reads Arrow IPC streams that are built like one that is known straight into columns (see `arrow_guess` for what that means).

A stream is a head that is the same for all, and batches: each a head of which only numbers differ, and a body, where the head says that
the buffers are. Every number is checked before it is used; what `pyarrow` would check of values is checked of those that are not null.
"""

from __future__ import annotations

import numpy as np

from flowstate.plan.kernel import kernel, part
from flowstate.plan.memory import load, load_byte, load_half, store, store_byte
from flowstate.source.kernels.messages import copy

U = np.uint64

#: The fields of a column: its kind; bytes per value; where the heads of batches tell of it (its node, its first buffer); addresses of
#: values, offsets and a byte per row that says whether it has a value; of text: how many bytes its buffers have, how many are read, and
#: were before the present record; whether some of the bytes are not ASCII; the first number that is too large for a decimal, in two words.
(
    KIND, WIDTH, NODE, BUFFERS, VALUES, OFFSETS, VALID, SIZE, READ, READ_BEFORE, FOREIGN, LIMIT, LIMIT_HIGH, FIELDS,
) = range(14)  # fmt: skip
FIXED, BOOLEAN, TEXT, DECIMAL = range(4)

#: The fields of `places`: where the head of a batch has the number of rows, and the size of the body; how many bits of the body a row takes
#: at least.
ROWS, BODY, BITS = 0, 1, 2

_END = U(0xFFFFFFFF)
_HIGH = U(0x8080808080808080)


@part
def batch_at(at, stop, head, mask, places, most):
    """How many rows the batch at `at` has; 0 at the end of the stream, -1 if it is not as expected or has more than `most`."""
    left = np.int64(stop - at)
    if left == 0 or (left == 8 and load(at) == _END):
        return 0
    if left < 8 * head.shape[0]:
        return -1
    for word in range(head.shape[0]):
        if (load(at + U(8 * word)) ^ head[word]) & mask[word] != U(0):
            return -1
    rows, body = np.int64(load(at + U(places[ROWS]))), np.int64(load(at + U(places[BODY])))
    if rows <= 0 or rows > most or body < 0 or body > left - 8 * head.shape[0] or rows * places[BITS] > 8 * body:
        return -1
    return rows


@part
def follows(at, stop, prefix):
    """Whether the stream begins with these words."""
    if np.int64(stop - at) < 8 * prefix.shape[0]:
        return False
    found = U(0)
    for word in range(prefix.shape[0]):
        found |= load(at + U(8 * word)) ^ prefix[word]
    return found == U(0)


@part
def within(place, body, least):
    """Where in the body a buffer of at least so many bytes begins, of which the head tells at `place`; -1 if there is none."""
    offset, length = np.int64(load(place)), np.int64(load(place + U(8)))
    if offset < 0 or offset & 7 or length < least or offset > body or length > body - offset:
        return -1
    return offset


@part
def fits(at, limit, limit_high):
    """Whether the size of the 128-bit number at `at` is below the limit."""
    low, high = load(at), load(at + U(8))
    if high >> U(63):
        low, high = ~low + U(1), ~high + (U(1) if low == U(0) else U(0))
    return high < limit_high or (high == limit_high and low < limit)


@part
def is_ascii(at, size):
    found = U(0)
    while size >= 8:
        found |= load(at)
        at += U(8)
        size -= 8
    for byte in range(size):
        found |= load_byte(at + U(byte))
    return found & _HIGH == U(0)


@part
def read_column(at, base, body, columns, column, rows, row):
    """Read a column of the batch whose head is at `at`, and whose body at `base`, into the rows from `row` on. False if not certain."""
    node, place = at + U(columns[column, NODE]), at + U(columns[column, BUFFERS])
    nulls, valid = np.int64(load(node + U(8))), U(columns[column, VALID]) + U(row)
    if np.int64(load(node)) != rows or nulls < 0:
        return False
    if nulls > 0:
        bits, found = within(place, body, (rows + 7) >> 3), 0
        if bits < 0:
            return False
        for index in range(rows):
            bit = (load_byte(base + U(bits) + U(index >> 3)) >> U(index & 7)) & U(1)
            store_byte(valid + U(index), bit)
            found += 1 if bit == U(0) else 0
        if found != nulls:
            return False
    kind, width, values = columns[column, KIND], columns[column, WIDTH], U(columns[column, VALUES])
    place += U(16)
    if kind == TEXT:
        begins, bytes_at = within(place, body, 4 * (rows + 1)), within(place + U(16), body, 0)
        if begins < 0 or bytes_at < 0:
            return False
        source, offsets = base + U(begins), U(columns[column, OFFSETS]) + U(4 * row)
        first, read = load_half(source), columns[column, READ]
        last, sorted_ = first, True
        for index in range(1, rows + 1):
            upto = load_half(source + U(4 * index))
            sorted_ &= upto >= last
            last = upto
            store(offsets + U(4 * index), U(read + upto - first))  # of eight bytes the next number overwrites four
        if not sorted_ or first < 0 or last > np.int64(load(place + U(24))):
            return False
        copy(values + U(read), base + U(bytes_at + first), last - first)
        if columns[column, FOREIGN] == 0 and not is_ascii(values + U(read), last - first):
            columns[column, FOREIGN] = 1
        columns[column, READ] = read + last - first
        return True
    begins = within(place, body, (rows + 7) >> 3 if kind == BOOLEAN else rows * width)
    if begins < 0:
        return False
    source, to = base + U(begins), values + U(row * width)
    if kind == BOOLEAN:
        for index in range(rows):
            store_byte(to + U(index), (load_byte(source + U(index >> 3)) >> U(index & 7)) & U(1))
        return True
    copy(to, source, rows * width)
    if kind == DECIMAL:
        limit, limit_high = U(columns[column, LIMIT]), U(columns[column, LIMIT_HIGH])
        for index in range(rows):
            if not fits(to + U(16 * index), limit, limit_high) and load_byte(valid + U(index)) != U(0):
                return False
    return True


@kernel
def count_rows(buffer, starts, ends, prefix, head, mask, places, most, columns, counts):
    """Put the number of rows of each record into `counts`, -1 for one that is not built as expected or has more than `most`; and the bytes
    that text may have into `columns`. Returns the number of all rows."""
    total = np.int64(0)
    for record in range(starts.shape[0]):
        at, stop = U(buffer) + U(starts[record]), U(buffer) + U(ends[record])
        counts[record] = -1
        if not follows(at, stop, prefix):
            continue
        at += U(8 * prefix.shape[0])
        rows = np.int64(0)
        while True:
            found = batch_at(at, stop, head, mask, places, most - rows)
            if found <= 0:
                break
            rows += found
            body = np.int64(load(at + U(places[BODY])))
            for column in range(columns.shape[0]):
                if columns[column, KIND] == TEXT:
                    size = np.int64(load(at + U(columns[column, BUFFERS] + 40)))
                    columns[column, SIZE] += max(0, min(size, body))
            at += U(8 * head.shape[0] + body)
        if found == 0:
            counts[record] = rows
            total += rows
    return total


@kernel
def read_batches(buffer, starts, prefix_size, head_size, places, columns, counts):
    """Read the records with `counts` from 0 on, as `count_rows` found them, into columns that have room for them. Where one is not certain
    after all, its count is made -1. Returns the number of rows."""
    row = np.int64(0)
    for record in range(starts.shape[0]):
        if counts[record] < 0:
            continue
        before, upto = row, row + counts[record]
        at = U(buffer) + U(starts[record] + prefix_size)
        for column in range(columns.shape[0]):
            columns[column, READ_BEFORE] = columns[column, READ]
        good = True
        while good and row < upto:
            rows, body = np.int64(load(at + U(places[ROWS]))), np.int64(load(at + U(places[BODY])))
            base = at + U(head_size)
            for column in range(columns.shape[0]):
                good = good and read_column(at, base, body, columns, column, rows, row)
            row += rows
            at = base + U(body)
        if not good:
            counts[record], row = -1, before
            for column in range(columns.shape[0]):
                columns[column, READ] = columns[column, READ_BEFORE]
                for index in range(before, upto):
                    store_byte(U(columns[column, VALID]) + U(index), U(1))
    return row
