# mypy: disable-error-code="no-untyped-def"
"""Keys as machine words: one canonical encoding for any key columns, and the hash of it.

A key of any number of columns becomes a *record* of 8-byte words::

    head        low 32 bits: null flags of columns 0-31; high 32 bits: how many bytes the variable columns have together
    null flags  of columns 32.., 64 a word, if there are so many
    fixed       one word per integer-like or float column, two per decimal; zero where null
    lengths     of all variable columns but the last, one word each
    bytes       of the variable columns one after the other, the last word padded with zeros

The encoding is canonical (equal keys have equal records) and prefix-free (unequal keys differ in a word that both have), so that
comparing records word by word is comparing keys. What a record says does not depend on how rows were cut into batches, on offsets of
slices, or on whether there is a validity buffer.

Columns are described to the kernels by one row of eight int64 each: kind, address of values, address of offsets, address of the
validity bits or 0, index of the first row, address of the end of the values, and place (the word of a fixed column in the record; the
word of its length for a variable one, 0 for the last of them).
"""

from __future__ import annotations

import numpy as np

from flowstate.plan.kernel import inlined, kernel
from flowstate.plan.memory import as_float, load, load_byte, load_half, multiply_fold, store, store_byte

U = np.uint64
WORD, FLOAT, DECIMAL, BYTES, LARGE_BYTES = 0, 1, 2, 3, 4
KIND, VALUES, OFFSETS, VALIDITY, FIRST, END, PLACE, FIELDS = 0, 1, 2, 3, 4, 5, 6, 8

BLOCK = 512  # rows that are encoded, hashed and probed together: their records stay in the first-level caches
SCRATCH_WORDS = 8192

_NAN = U(0x7FF8000000000000)
_M1 = U(0x9E3779B97F4A7C15)
_M2 = U(0xD6E8FEB86659FD93)


@inlined
def mix(value):
    """Spread 64 bits over 64 bits, bijectively."""
    value ^= value >> U(32)
    value *= _M2
    value ^= value >> U(32)
    value *= _M2
    value ^= value >> U(32)
    return value


@inlined
def seed_key(seed):
    """The multiplier of `hash_words`."""
    return mix(seed) | U(1)


@inlined
def hash_words(address, words, seed, key):
    """The hash of `words` words: pairs of them multiplied to 128 bits and folded, as in wyhash (Wang Yi, 2019), but with a multiplier
    that the seed gives, so that nobody can choose words that cancel it."""
    value = seed
    while words >= 2:
        value = multiply_fold(load(address) ^ key, load(address + U(8)) ^ value)
        address += U(16)
        words -= 2
    if words > 0:
        value = multiply_fold(load(address) ^ key, value ^ _M1)
    return multiply_fold(value ^ _M2, key)


@inlined
def is_valid(validity, row):
    return (load_byte(U(validity) + (U(row) >> U(3))) >> (U(row) & U(7))) & U(1) != U(0)


@inlined
def load_part(address, size, end):
    """The next `size` (1 to 8) bytes at `address` as a word, reading nothing at or past `end`."""
    if address + U(8) <= end:
        word = load(address)
        if size < 8:
            word &= (U(1) << U(8 * size)) - U(1)
        return word
    word = U(0)
    for place in range(size):
        word |= load_byte(address + U(place)) << U(8 * place)
    return word


@inlined
def copy_text(target, source, size, end):
    """`size` bytes to `target` by words, the last filled up with zeros, reading nothing at or past `end`."""
    while size >= 8:
        store(target, load(source))
        target += U(8)
        source += U(8)
        size -= 8
    if size > 0:
        store(target, load_part(source, size, end))


@inlined
def float_word(bits):
    """-0.0 is 0.0, and every NaN is one NaN."""
    value = as_float(bits)
    if value == 0.0:
        return U(0)
    return bits if value == value else _NAN


@kernel
def extent(columns, column, row):
    """Where a variable value begins (bytes from VALUES) and how long it is; nothing is said about nulls."""
    at = row + columns[column, FIRST]
    if columns[column, KIND] == BYTES:
        start = load_half(U(columns[column, OFFSETS]) + U(at) * U(4))
        return start, load_half(U(columns[column, OFFSETS]) + U(at + 1) * U(4)) - start
    begin = np.int64(load(U(columns[column, OFFSETS]) + U(at) * U(8)))
    return begin, np.int64(load(U(columns[column, OFFSETS]) + U(at + 1) * U(8))) - begin


@kernel
def encode(columns, head_words, first, last, starts, cursors, scratch, hashed, seed, hashes):
    """Encode rows from `first` up to at most `last` into `scratch`; the words of the i-th are ``starts[i]:starts[i + 1]``. Unless they
    are `hashed` already, put the i-th hash into ``hashes[i]``.

    Returns the row after the last encoded one: `first` itself if scratch is too small for a single record. Needs room for
    ``last - first + 1`` starts and cursors.
    """
    key = seed_key(seed)
    if columns.shape[0] == 1 and columns[0, KIND] == BYTES:
        return _encode_text(columns, first, last, starts, scratch, hashed, seed, key, hashes)
    if columns.shape[0] == 1 and columns[0, KIND] == WORD:
        last = _encode_word(columns, first, last, starts, scratch)
    else:
        last = _encode_any(columns, head_words, first, last, starts, cursors, scratch)
    if not hashed:
        base = U(scratch.ctypes.data)
        for index in range(last - first):
            hashes[index] = hash_words(base + U(starts[index]) * U(8), starts[index + 1] - starts[index], seed, key)
    return last


@kernel
def _encode_any(columns, head_words, first, last, starts, cursors, scratch):
    """`encode` for any columns."""
    count = columns.shape[0]
    capacity = scratch.shape[0]
    base = U(scratch.ctypes.data)
    for index in range(last - first):
        cursors[index] = 0
    for column in range(count):
        if columns[column, KIND] >= BYTES:
            validity = columns[column, VALIDITY]
            for row in range(first, last):
                if validity == 0 or is_valid(validity, row + columns[column, FIRST]):
                    cursors[row - first] += extent(columns, column, row)[1]
    used = 0
    for row in range(first, last):
        index = row - first
        size = cursors[index]
        words = head_words + ((size + 7) >> 3)
        if used + words > capacity:
            last = row
            break
        starts[index] = used
        for word in range(used, used + head_words):
            scratch[word] = U(0)
        scratch[used] = U(size) << U(32)
        cursors[index] = np.int64(base) + (used + head_words) * 8
        used += words
        if size > 0:
            scratch[used - 1] = U(0)
    starts[last - first] = used
    for column in range(count):
        kind, validity = columns[column, KIND], columns[column, VALIDITY]
        values, place, shift = U(columns[column, VALUES]), columns[column, PLACE], columns[column, FIRST]
        for row in range(first, last):
            index = row - first
            start = starts[index]
            if validity != 0 and not is_valid(validity, row + shift):
                if column < 32:
                    scratch[start] |= U(1) << U(column)
                else:
                    scratch[start + 1 + ((column - 32) >> 6)] |= U(1) << U((column - 32) & 63)
            elif kind == WORD:
                scratch[start + place] = load(values + U(row + shift) * U(8))
            elif kind == FLOAT:
                scratch[start + place] = float_word(load(values + U(row + shift) * U(8)))
            elif kind == DECIMAL:
                scratch[start + place] = load(values + U(row + shift) * U(16))
                scratch[start + place + 1] = load(values + U(row + shift) * U(16) + U(8))
            else:
                begin, size = extent(columns, column, row)
                if place != 0:
                    scratch[start + place] = U(size)
                source, target = values + U(begin), U(cursors[index])
                cursors[index] += size
                while size >= 8:
                    store(target, load(source))
                    source += U(8)
                    target += U(8)
                    size -= 8
                for byte in range(size):
                    store_byte(target + U(byte), load_byte(source + U(byte)))
    return last


@kernel
def _encode_text(columns, first, last, starts, scratch, hashed, seed, key, hashes):
    """`encode` for the commonest key: one column of text."""
    values, end, validity, shift = U(columns[0, VALUES]), U(columns[0, END]), columns[0, VALIDITY], columns[0, FIRST]
    offset = U(columns[0, OFFSETS]) + U(first + shift) * U(4)
    base = U(scratch.ctypes.data)
    at, limit = base, base + U(8) * U(scratch.shape[0])
    begin = load_half(offset)
    for index in range(last - first):
        offset += U(4)
        upto = load_half(offset)
        size, source = upto - begin, values + U(begin)
        begin = upto
        record = at
        if validity != 0 and not is_valid(validity, first + index + shift):
            if at + U(8) > limit:
                last = first + index
                break
            store(at, U(1))
            at += U(8)
        else:
            if at + U(8) + ((U(size) + U(7)) & ~U(7)) > limit:
                last = first + index
                break
            store(at, U(size) << U(32))
            at += U(8)
            copy_text(at, source, size, end)
            at += (U(size) + U(7)) & ~U(7)
        starts[index] = np.int64((record - base) >> U(3))
        if not hashed:
            hashes[index] = hash_words(record, np.int64((at - record) >> U(3)), seed, key)
    starts[last - first] = np.int64((at - base) >> U(3))
    return last


@kernel
def _encode_word(columns, first, last, starts, scratch):
    """`encode` for one column that fits a word."""
    values, validity, shift = U(columns[0, VALUES]), columns[0, VALIDITY], columns[0, FIRST]
    last = min(last, first + scratch.shape[0] // 2)
    for row in range(first, last):
        index = row - first
        starts[index] = 2 * index
        if validity != 0 and not is_valid(validity, row + shift):
            scratch[2 * index] = U(1)
            scratch[2 * index + 1] = U(0)
        else:
            scratch[2 * index] = U(0)
            scratch[2 * index + 1] = load(values + U(row + shift) * U(8))
    starts[last - first] = 2 * (last - first)
    return last


@kernel
def hash_rows(columns, head_words, rows, seed, starts, cursors, scratch, hashes):
    """Hash rows into `hashes`. Returns how many were done; fewer than `rows` if the next record does not fit `scratch`."""
    row = 0
    while row < rows:
        last = encode(
            columns, head_words, row, min(rows, row + BLOCK), starts, cursors, scratch, False, seed, hashes[row:rows]
        )
        if last == row:
            return row
        row = last
    return row


@kernel
def order_by_owner(hashes, owner_of_group, counts, order):
    """Rows in the order of the owners of their key groups (by their hashes' high 32 bits), stable: their numbers go to `order`, how many
    each owner has to `counts`, which has a place more than there are owners."""
    groups = U(owner_of_group.shape[0])
    for owner in range(counts.shape[0]):
        counts[owner] = 0
    for row in range(hashes.shape[0]):
        counts[owner_of_group[((hashes[row] >> U(32)) * groups) >> U(32)] + 1] += 1
    for owner in range(1, counts.shape[0]):
        counts[owner] += counts[owner - 1]
    for row in range(hashes.shape[0]):
        owner = owner_of_group[((hashes[row] >> U(32)) * groups) >> U(32)]
        order[counts[owner]] = row
        counts[owner] += 1
    for owner in range(counts.shape[0] - 1, 0, -1):
        counts[owner] = counts[owner - 1]
    counts[0] = 0
    for owner in range(counts.shape[0] - 1):
        counts[owner] = counts[owner + 1] - counts[owner]
