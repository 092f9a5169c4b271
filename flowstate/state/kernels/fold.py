# mypy: disable-error-code="no-untyped-def"
"""Kernels that fold values into aggregate state, and merge state into state. All zeros is the empty state of every aggregate.

A *program* has one row of int64 per operation: what it does, its first state column, and the addresses of its inputs. State columns
are reached through `pointers` (state column, chunk) -> address; a row is ``chunk << shift | row in the chunk``.
"""

from __future__ import annotations

import numpy as np

from flowstate.plan.encoding import is_valid
from flowstate.plan.kernel import inlined, kernel
from flowstate.plan.memory import as_bits, as_float, load, load_byte, load_half, prefetch, store, store_byte

U = np.uint64
#: Operations.
LEN, COUNT, ADD_WORD, SUM_WORD, SUM_DECIMAL, SUM_WIDE, ADD_WIDE, SUM_FLOAT, SPREAD, MERGE_SPREAD, EXTREME, ORDERED = (
    range(12)
)
#: Columns of a program. FLAGS are bytes: 0 nothing, 1 a value, 2 a null (which only first and last remember).
OPERATION, COLUMN, VALUES, VALIDITY, FIRST, FLAGS, KIND, SIGN, OFFSETS, SECOND, THIRD, RANKS, FIELDS = range(13)
#: Kinds of values that `EXTREME` and `ORDERED` keep.
WORD, FLOAT, DECIMAL, BYTES = range(4)

_NONE, _VALUE = U(0), U(1)
_SIGN_BIT = U(1 << 63)


@inlined
def cell(pointers, slot, shift, width):
    """The address of a row's state in a column of `width` bytes a row."""
    return pointers[U(slot) >> U(shift)] + (U(slot) & ((U(1) << U(shift)) - U(1))) * U(width)


@inlined
def ask(pointers, slots, index, shift, width, ahead):
    """Prefetch the cell that is needed `ahead` rows later; 0 is for state that fits the caches anyway."""
    if ahead > 0 and index + ahead < slots.shape[0]:
        prefetch(cell(pointers, slots[index + ahead], shift, width))


@inlined
def add_two(at, low, high):
    """Add a 128-bit number to the one at `at`."""
    before = load(at)
    total = before + low
    store(at, total)
    store(at + U(8), load(at + U(8)) + high + (U(1) if total < before else U(0)))


@inlined
def add_four(at, first, second, third, fourth):
    """Add a 256-bit number to the one at `at`."""
    carry = U(0)
    for place, part in ((0, first), (8, second), (16, third), (24, fourth)):
        before = load(at + U(place))
        total = before + part
        over = U(1) if total < before else U(0)
        with_carry = total + carry
        over += U(1) if with_carry < total else U(0)
        store(at + U(place), with_carry)
        carry = over


@kernel
def fold_len(pointers, slots, shift, ahead):
    for index in range(slots.shape[0]):
        ask(pointers, slots, index, shift, 8, ahead)
        at = cell(pointers, slots[index], shift, 8)
        store(at, load(at) + U(1))


@kernel
def fold_count(pointers, slots, shift, validity, first, ahead):
    for index in range(slots.shape[0]):
        ask(pointers, slots, index, shift, 8, ahead)
        if is_valid(validity, first + index):
            at = cell(pointers, slots[index], shift, 8)
            store(at, load(at) + U(1))


@kernel
def add_words(pointers, slots, shift, values):
    for index in range(slots.shape[0]):
        at = cell(pointers, slots[index], shift, 8)
        store(at, load(at) + load(values + U(8 * index)))


@kernel
def sum_words(pointers, slots, shift, values, validity, first, ahead):
    for index in range(slots.shape[0]):
        ask(pointers, slots, index, shift, 16, ahead)
        if validity == 0 or is_valid(validity, first + index):
            value = load(values + U(8 * index))
            high = ~U(0) if value & _SIGN_BIT else U(0)
            add_two(cell(pointers, slots[index], shift, 16), value, high)


@kernel
def sum_decimals(pointers, slots, shift, values, validity, first, ahead):
    for index in range(slots.shape[0]):
        ask(pointers, slots, index, shift, 16, ahead)
        if validity == 0 or is_valid(validity, first + index):
            source = values + U(16 * index)
            add_two(cell(pointers, slots[index], shift, 16), load(source), load(source + U(8)))


@kernel
def sum_wide(pointers, slots, shift, values, validity, first):
    for index in range(slots.shape[0]):
        if validity == 0 or is_valid(validity, first + index):
            low, high = load(values + U(16 * index)), load(values + U(16 * index + 8))
            sign = ~U(0) if high & _SIGN_BIT else U(0)
            add_four(cell(pointers, slots[index], shift, 32), low, high, sign, sign)


@kernel
def add_wide(pointers, slots, shift, values):
    for index in range(slots.shape[0]):
        source = values + U(32 * index)
        parts = load(source), load(source + U(8)), load(source + U(16)), load(source + U(24))
        add_four(cell(pointers, slots[index], shift, 32), parts[0], parts[1], parts[2], parts[3])


@kernel
def sum_floats(pointers, slots, shift, values, validity, first, ahead):
    for index in range(slots.shape[0]):
        ask(pointers, slots, index, shift, 8, ahead)
        if validity == 0 or is_valid(validity, first + index):
            at = cell(pointers, slots[index], shift, 8)
            store(at, as_bits(as_float(load(at)) + as_float(load(values + U(8 * index)))))


@kernel
def spread(counts, means, squares, slots, shift, values, validity, first, ahead):
    """Count, mean and sum of squared distances from it (Welford 1962)."""
    for index in range(slots.shape[0]):
        ask(counts, slots, index, shift, 8, ahead)
        ask(means, slots, index, shift, 8, ahead)
        ask(squares, slots, index, shift, 8, ahead)
        if validity == 0 or is_valid(validity, first + index):
            value, slot = as_float(load(values + U(8 * index))), slots[index]
            count = load(cell(counts, slot, shift, 8)) + U(1)
            mean = as_float(load(cell(means, slot, shift, 8)))
            distance = value - mean
            mean += distance / np.float64(count)
            square = as_float(load(cell(squares, slot, shift, 8))) + distance * (value - mean)
            store(cell(counts, slot, shift, 8), count)
            store(cell(means, slot, shift, 8), as_bits(mean))
            store(cell(squares, slot, shift, 8), as_bits(square))


@kernel
def merge_spread(counts, means, squares, slots, shift, other_counts, other_means, other_squares):
    """The same of two sets of values together (Chan, Golub and LeVeque 1979)."""
    for index in range(slots.shape[0]):
        slot = slots[index]
        other = load(other_counts + U(8 * index))
        mine = load(cell(counts, slot, shift, 8))
        if other == U(0):
            continue
        mean, other_mean = as_float(load(cell(means, slot, shift, 8))), as_float(load(other_means + U(8 * index)))
        square, other_square = (
            as_float(load(cell(squares, slot, shift, 8))),
            as_float(load(other_squares + U(8 * index))),
        )
        if mine == U(0):
            mean, square = other_mean, other_square
        else:
            together = np.float64(mine) + np.float64(other)
            distance = other_mean - mean
            mean += distance * (np.float64(other) / together)
            square += other_square + distance * distance * (np.float64(mine) * np.float64(other) / together)
        store(cell(counts, slot, shift, 8), mine + other)
        store(cell(means, slot, shift, 8), as_bits(mean))
        store(cell(squares, slot, shift, 8), as_bits(square))


@kernel
def compare(kind, sign, a, a_next, b, b_next):
    """Less than 0 if value a goes before b, in ascending order (`sign` 1) or descending (-1); NaN goes last either way, and -0.0 is
    less than 0.0. Decimals are two words, text an address and a size."""
    if kind == FLOAT:
        x, y = as_float(a), as_float(b)
        if x != x or y != y:
            return np.int64(x != x) - np.int64(y != y)
        if x != y:
            return sign if x > y else -sign
        if a == b:
            return 0
        return -sign if a & _SIGN_BIT else sign
    if kind == BYTES:
        shared = min(a_next, b_next)
        place = U(0)
        while place < shared:
            x_byte, y_byte = load_byte(a + place), load_byte(b + place)
            if x_byte != y_byte:
                return sign if x_byte > y_byte else -sign
            place += U(1)
        if a_next == b_next:
            return 0
        return sign if a_next > b_next else -sign
    if kind == DECIMAL:
        if a_next != b_next:
            return sign if np.int64(a_next) > np.int64(b_next) else -sign
        if a == b:
            return 0
        return sign if a > b else -sign
    if a == b:
        return 0
    return sign if np.int64(a) > np.int64(b) else -sign


@inlined
def value_at(kind, values, offsets, index):
    """The two words of an input value: for text, address and size (`offsets` are int64, or int32 and marked by the low bit)."""
    if kind == BYTES:
        if offsets & U(1):
            begin = load_half(offsets - U(1) + U(4 * index))
            return values + U(begin), U(load_half(offsets - U(1) + U(4 * index + 4)) - begin)
        start = load(offsets + U(8 * index))
        return values + start, load(offsets + U(8 * index + 8)) - start
    if kind == DECIMAL:
        return load(values + U(16 * index)), load(values + U(16 * index + 8))
    return load(values + U(8 * index)), U(0)


@inlined
def keep_bytes(arena, address, size):
    """Copy a text to the end of its chunk's value memory; the caller has seen that it fits. Returns where it is now."""
    kept = U(arena[0])
    for byte in range(size):
        store_byte(kept + U(byte), load_byte(address + U(byte)))
    arena[0] += np.int64(size)
    return kept


@kernel
def extreme(first_row, pointers, column, slots, shift, kind, sign, values, offsets, flags, arenas, ahead):
    """min and max. Returns the row before which the value memory of its chunk was full, or the number of rows."""
    width = 16 if kind >= DECIMAL else 8
    for index in range(first_row, slots.shape[0]):
        ask(pointers[column], slots, index, shift, 1, ahead)
        ask(pointers[column + 1], slots, index, shift, width, ahead)
        if flags != 0 and load_byte(flags + U(index)) != _VALUE:
            continue
        slot = slots[index]
        flag, at = cell(pointers[column], slot, shift, 1), cell(pointers[column + 1], slot, shift, width)
        value, more = value_at(kind, values, offsets, index)
        if load_byte(flag) == _VALUE:
            old_more = load(at + U(8)) if width == 16 else U(0)
            if compare(kind, sign, value, more, load(at), old_more) >= 0:
                continue
        if kind == BYTES:
            arena = arenas[U(slot) >> U(shift)]
            if arena[0] + np.int64(more) > arena[1]:
                return index
            value = keep_bytes(arena, value, more)
        store_byte(flag, _VALUE)
        store(at, value)
        if width == 16:
            store(at + U(8), more)
    return slots.shape[0]


@kernel
def ordered(
    first_row, pointers, column, slots, shift, kind, sign, values, offsets, flags, times, ranks, places, arenas, ahead
):
    """first (`sign` 1) and last (-1) by (time, rank of the split, offset). Returns as `extreme` does."""
    width = 16 if kind >= DECIMAL else 8
    for index in range(first_row, slots.shape[0]):
        for each in range(4):
            ask(pointers[column + each], slots, index, shift, 8 if each else 1, ahead)
        mark = load_byte(flags + U(index))
        if mark == _NONE:
            continue
        slot = slots[index]
        flag = cell(pointers[column], slot, shift, 1)
        time_at = cell(pointers[column + 1], slot, shift, 8)
        rank_at = cell(pointers[column + 2], slot, shift, 8)
        place_at = cell(pointers[column + 3], slot, shift, 8)
        time, rank, place = load(times + U(8 * index)), load(ranks + U(8 * index)), load(places + U(8 * index))
        if load_byte(flag) != _NONE:
            order = compare(WORD, sign, time, U(0), load(time_at), U(0))
            if order == 0:
                order = compare(WORD, sign, rank, U(0), load(rank_at), U(0))
            if order == 0:
                order = compare(WORD, sign, place, U(0), load(place_at), U(0))
            # Rows of one offset (an exploded record) come in order: the first stays first, the last becomes last.
            if order > 0 or (order == 0 and sign > 0):
                continue
        at = cell(pointers[column + 4], slot, shift, width)
        if mark == _VALUE:
            value, more = value_at(kind, values, offsets, index)
            if kind == BYTES:
                arena = arenas[U(slot) >> U(shift)]
                if arena[0] + np.int64(more) > arena[1]:
                    return index
                value = keep_bytes(arena, value, more)
            store(at, value)
            if width == 16:
                store(at + U(8), more)
        store_byte(flag, mark)
        store(time_at, time)
        store(rank_at, rank)
        store(place_at, place)
    return slots.shape[0]


@kernel
def run(program, operation, row, pointers, slots, shift, ahead, arenas):
    """Run the program from an operation and row on. Returns (operation, row) where value memory was full, else (operations, 0)."""
    while operation < program.shape[0]:
        line = program[operation]
        what, column = line[OPERATION], line[COLUMN]
        values, validity, first = U(line[VALUES]), line[VALIDITY], line[FIRST]
        state = pointers[column]
        stopped = slots.shape[0]
        if what == LEN:
            fold_len(state, slots, shift, ahead)
        elif what == COUNT:
            fold_count(state, slots, shift, validity, first, ahead)
        elif what == ADD_WORD:
            add_words(state, slots, shift, values)
        elif what == SUM_WORD:
            sum_words(state, slots, shift, values, validity, first, ahead)
        elif what == SUM_DECIMAL:
            sum_decimals(state, slots, shift, values, validity, first, ahead)
        elif what == SUM_WIDE:
            sum_wide(state, slots, shift, values, validity, first)
        elif what == ADD_WIDE:
            add_wide(state, slots, shift, values)
        elif what == SUM_FLOAT:
            sum_floats(state, slots, shift, values, validity, first, ahead)
        elif what == SPREAD:
            spread(state, pointers[column + 1], pointers[column + 2], slots, shift, values, validity, first, ahead)
        elif what == MERGE_SPREAD:
            merge_spread(
                state, pointers[column + 1], pointers[column + 2], slots, shift, values, U(line[SECOND]), U(line[THIRD])
            )
        elif what == EXTREME:
            stopped = extreme(
                row,
                pointers,
                column,
                slots,
                shift,
                line[KIND],
                line[SIGN],
                values,
                U(line[OFFSETS]),
                U(line[FLAGS]),
                arenas,
                ahead,
            )
        elif what == ORDERED:
            stopped = ordered(
                row, pointers, column, slots, shift, line[KIND], line[SIGN], values, U(line[OFFSETS]), U(line[FLAGS]),
                U(line[SECOND]), U(line[RANKS]), U(line[THIRD]), arenas, ahead,
            )  # fmt: skip
        if stopped < slots.shape[0]:
            return operation, stopped
        operation, row = operation + 1, 0
    return operation, 0
