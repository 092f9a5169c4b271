# mypy: disable-error-code="no-untyped-def"
"""Kernels of the index: from a key and its window to a row, in blocks, each memory access asked for before it is needed.

Each window has an index of its own, so that it goes at once when the window goes: open-addressing tables of one size, found by bits of
the hash through a directory. A slot is one word; 0 is empty::

    tag           15 bits of the hash, from `FIRST_BIT` on: those that pick the table come first, so a table is divided by the tags alone
    displacement  4 bits: how far the slot is behind the one that the hash picks, `FAR` if farther
    record        45 bits: the address of the key's record, by 8

A *stored record* is a word, and the key's own (see `plan.encoding`)::

    row                           chunk << shift | row in the chunk
    the key's record              from which the hash can be had again

Records are written once and never moved, so that readers walk them while rows are added behind.
"""

from __future__ import annotations

import numpy as np

from flowstate.plan.encoding import BLOCK, encode, hash_words, seed_key
from flowstate.plan.kernel import inlined, kernel
from flowstate.plan.memory import load, prefetch, store

U = np.uint64
FIRST_BIT = 16  # of the hash: from here on, bits pick the table; those below it pick the slot
FAR = 15
#: Why `locate` stopped before a row.
DONE, SCRATCH, ROWS, ARENA, INDEX = 0, 1, 2, 3, 4
#: Columns of `tails`, one row per window: where the next record goes, the end of that memory, the next row, the end of the rows; of its
#: index the addresses of directory and counts, the number of its patterns less one, and of the slots of a table.
CURSOR, END, NEXT, LIMIT, DIRECTORY, COUNTS, PATTERNS, SLOTS, TAILS = range(9)

_TAG_BITS, _RECORD_BITS = 15, 45
_RECORD, _ADDRESS = U((1 << _RECORD_BITS) - 1), U((1 << 60) - 1)
_M1 = U(0x9E3779B97F4A7C15)


@inlined
def window_hash(start):
    value = U(start) * _M1
    return value ^ (value >> U(32))


@kernel
def assign_windows(starts, first, rows, table, ids):
    """The id of each row's window, from its start: windows follow one another, so that a start has one end. Returns the first row
    whose window is not in `table` (start, id + 1), or `rows`."""
    mask, base = U(table.shape[0] - 1), U(table.ctypes.data)
    for row in range(first, rows):
        start = load(U(starts) + U(row) * U(8))
        at = window_hash(start) & mask
        while True:
            known = load(base + (at << U(4)) + U(8))
            if known == U(0):
                return row
            if load(base + (at << U(4))) == start:
                break
            at = (at + U(1)) & mask
        ids[row] = np.int64(known) - 1
    return rows


@kernel
def add_window(table, start, window):
    mask = U(table.shape[0] - 1)
    at = window_hash(start) & mask
    while table[at, 1] != 0:
        at = (at + U(1)) & mask
    table[at, 0], table[at, 1] = start, window + 1


@inlined
def _same(stored, key, words):
    """Whether two records are equal. Records are prefix-free, so this ends before it reads past a shorter one."""
    place, end = U(0), words << U(3)
    while place < end:
        if load(stored + place) != load(key + place):
            return False
        place += U(8)
    return True


@inlined
def _mark(value):
    """Tag and displacement of an entry in the slot that the hash picks."""
    return ((value >> U(FIRST_BIT)) & U((1 << _TAG_BITS) - 1)) << U(4)


@inlined
def _farther(mark):
    """The same, a slot behind."""
    return mark + (U(1) if mark & U(15) != U(FAR) else U(0))


@inlined
def _record_of(entry):
    return (entry & _RECORD) << U(3)


@inlined
def _table(value, tail):
    """Where the directory tells of the table of the hash `value`; `tail` is the address of the window's row in `tails`."""
    pattern = (value >> U(FIRST_BIT)) & load(tail + U(8 * PATTERNS))
    return load(tail + U(8 * DIRECTORY)) + (pattern << U(4))


@inlined
def _next(at, value, tail):
    """The slot after the one at `at`, in the table of the hash `value`."""
    base = load(_table(value, tail))
    return base + (((((at - base) >> U(3)) + U(1)) & load(tail + U(8 * SLOTS))) << U(3))


@inlined
def home_of(value, tail):
    """Where the slot is that the hash `value` picks."""
    return load(_table(value, tail)) + ((value & load(tail + U(8 * SLOTS))) << U(3))


@inlined
def first_alike(home, value, tail):
    """The first slot from the home of `value` on that is empty or tells of the same tag, its displacement in the upper bits. The lines of
    the slots are on their way by then; its record is asked for."""
    at, mark = home, _mark(value)
    entry = load(at)
    while entry != U(0) and entry >> U(_RECORD_BITS) != mark:
        at, mark = _next(at, value, tail), _farther(mark)
        entry = load(at)
    record = _record_of(entry) if entry != U(0) else at
    prefetch(record)
    prefetch(record + U(32))
    return at | (mark << U(60))


@inlined
def row_of(alike, value, tail, key, words):
    """From the slot that `first_alike` told: (row of the key or -1, the slot where it ended, what an entry there would tell)."""
    at, mark, slot = alike & _ADDRESS, _mark(value) | (alike >> U(60)), np.int64(-1)
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
    return slot, at, mark


@kernel
def locate(
    columns, head_words, first, rows, windows, hashes, given, seed, insert, starts, cursors, scratch, homes, tails, filled, versions,
    serial, shift, slots,
):  # fmt: skip
    """The row of each key, into `slots`; -1 for an unknown key, unless `insert`. Works on rows from `first`.

    Returns (row, why, detail): it stopped before `row` because it needs room that only the caller can make.
    """
    row = first
    scratch_at = U(scratch.ctypes.data)
    tails_at = U(tails.ctypes.data)
    while row < rows:
        last = encode(
            columns, head_words, row, min(rows, row + BLOCK), starts, cursors, scratch, given, seed, hashes[row:rows]
        )
        count = last - row
        if count == 0:
            return row, SCRATCH, 0
        block_hashes, block_windows, block_slots = hashes[row:last], windows[row:last], slots[row:last]
        for index in range(count):
            value, tail = block_hashes[index], tails_at + (U(block_windows[index]) << U(6))
            homes[index] = home_of(value, tail)
            prefetch(homes[index])
        for index in range(count):
            tail = tails_at + (U(block_windows[index]) << U(6))
            homes[index] = first_alike(homes[index], block_hashes[index], tail)
        for index in range(count):
            value, window = block_hashes[index], block_windows[index]
            tail = tails_at + (U(window) << U(6))
            key, words = scratch_at + (U(starts[index]) << U(3)), U(starts[index + 1] - starts[index])
            slot, at, mark = row_of(homes[index], value, tail, key, words)
            if insert:
                if slot < 0:
                    count_at = load(tail + U(8 * COUNTS)) + (load(_table(value, tail) + U(8)) << U(4))
                    if load(count_at) >= load(count_at + U(8)):
                        return row + index, INDEX, 0
                    slot = tails[window, NEXT]
                    if slot >= tails[window, LIMIT]:
                        return row + index, ROWS, 0
                    record, size = U(tails[window, CURSOR]), (words + U(1)) << U(3)
                    if record + size > U(tails[window, END]):
                        return row + index, ARENA, np.int64(size)
                    store(record, U(slot))
                    for word in range(words):
                        store(record + U(8) + (U(word) << U(3)), load(key + (U(word) << U(3))))
                    store(at, (mark << U(_RECORD_BITS)) | (record >> U(3)))
                    store(count_at, load(count_at) + U(1))
                    tails[window, NEXT] = slot + 1
                    tails[window, CURSOR] += np.int64(size)
                    filled[U(slot) >> U(shift)] += 1
                versions[U(slot) >> U(shift)] = serial
            block_slots[index] = slot
        row = last
    return row, DONE, 0


@inlined
def _hash_of(entry, head_words, seed, key):
    """The hash of the key, from its record."""
    record = _record_of(entry) + U(8)
    words = U(head_words) + (((load(record) >> U(32)) + U(7)) >> U(3))
    return hash_words(record, np.int64(words), seed, key)


@inlined
def _put(base, home, mask, mark, entry):
    """Put the record of an entry into the first free slot from `home` on."""
    while load(base + (home << U(3))) != U(0):
        home, mark = (home + U(1)) & mask, _farther(mark)
    store(base + (home << U(3)), (mark << U(_RECORD_BITS)) | (entry & _RECORD))


@kernel
def enlarge(old, old_slots, new, slots, head_words, seed):
    """Move the entries of the table at address `old` to an empty larger one of `slots` slots at `new`."""
    mask, key = U(slots - 1), seed_key(seed)
    for place in range(old_slots):
        entry = load(U(old) + U(place) * U(8))
        if entry != U(0):
            value = _hash_of(entry, head_words, seed, key)
            _put(U(new), value & mask, mask, _mark(value), entry)


@kernel
def divide(low, high, slots, bit, head_words, seed, scratch):
    """Move those entries of the table at address `low` to an empty one of as many slots at `high` whose hash has bit `FIRST_BIT` + `bit`
    set. Returns how many. What an entry says itself is enough, but for few. `scratch` has room for two tables."""
    moved, mask, key = U(0), U(slots - 1), seed_key(seed)
    count = 0
    for place in range(slots):  # without a branch: whether a slot is empty cannot be foreseen
        entry = load(U(low) + U(place) * U(8))
        store(U(low) + U(place) * U(8), U(0))
        scratch[2 * count], scratch[2 * count + 1] = entry, U(place)
        count += 1 if entry != U(0) else 0
    for index in range(count):
        entry = scratch[2 * index]
        mark = entry >> U(_RECORD_BITS)
        behind = mark & U(15)
        home, mark = (scratch[2 * index + 1] - behind) & mask, mark ^ behind
        chosen = (mark >> U(4 + bit)) & U(1)
        if behind == U(FAR) or bit >= _TAG_BITS:
            value = _hash_of(entry, head_words, seed, key)
            home, chosen = value & mask, (value >> U(FIRST_BIT + bit)) & U(1)
        moved += chosen
        _put(U(low) + (U(high) - U(low)) * chosen, home, mask, mark, entry)
    return moved
