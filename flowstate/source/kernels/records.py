# mypy: disable-error-code="no-untyped-def"
"""Reads records that follow a template straight into columns (see `json_guess` for what that means and what it must not do).

A template is a list of *steps*, one row of int64 each: the bytes that come before a value, and what the value is for. A value is
read in one look, eight bytes at a time, and only in the forms that are known to mean the same to `json_rows`; anything else ends the
record's reading, and nothing of it stays: its row is overwritten by the next one.

Bytes are read up to `SLACK` behind a record's end, never counted as part of it: a record that ends nearer to the block's end is
copied first, with zeros behind it, which belong to no value.
"""

from __future__ import annotations

import numpy as np

from flowstate.plan.kernel import inlined, kernel, part
from flowstate.plan.memory import load, load_byte, load_half, store, store_byte
from flowstate.source.kernels.numbers import decimal, floating, integer
from flowstate.source.kernels.text import ALSE, FOUR, NULL, TRUE, skip, text
from flowstate.source.kernels.times import days_at, timestamp

U = np.uint64

#: The fields of a step: its literal (the number of its first word, how many bytes), the kind, the column, and what the kind wants:
#: INTEGER, TIMESTAMP, DATE: bytes per value, largest value, largest of the negative ones without its sign; TIMESTAMP also the digits
#: behind the second in its unit. DECIMAL: scale, precision. FLOAT: bytes per value.
LITERAL, LENGTH, KIND, COLUMN, WIDTH, MOST, LEAST, DIGITS, FIELDS = 0, 1, 2, 3, 4, 5, 6, 7, 8
SCALE, PRECISION = MOST, LEAST

#: END closes the record; SKIPPED is a value of no column; ABSENT a column of which the template has no value.
END, SKIPPED, ABSENT, TEXT, INTEGER, DECIMAL, FLOAT, BOOLEAN, TIMESTAMP, DATE = range(10)

#: The fields of a column: addresses of the values, of the offsets (TEXT) and of a byte per row that says whether it has a value.
VALUES, OFFSETS, VALID = 0, 1, 2

SLACK = 64


@inlined
def same(at, words, first, length):
    """Whether the `length` bytes at `at` are those of the literal that begins with word `first`."""
    left = length
    while left >= 8:
        if load(at) != words[first]:
            return False
        at += U(8)
        first += 1
        left -= 8
    return left == 0 or (load(at) ^ words[first]) << U(64 - 8 * left) == U(0)


@part
def follow(at, stop, steps, first, last, words, columns, row):
    """Read the record between two addresses by the steps from `first` to before `last` into row `row`. False if it does not follow them."""
    for step in range(first, last):
        length = steps[step, LENGTH]
        if length > np.int64(stop - at) or not same(at, words, steps[step, LITERAL], length):
            return False
        at += U(length)
        kind = steps[step, KIND]
        if kind == END:
            return at == stop
        if at >= stop and kind != ABSENT:
            return False
        if kind == SKIPPED:
            at = skip(at, stop)
            if at == U(0):
                return False
            continue
        column = steps[step, COLUMN]
        values, valid = U(columns[column, VALUES]), U(columns[column, VALID]) + U(row)
        width = steps[step, WIDTH]
        if kind == ABSENT or load(at) & FOUR == NULL:
            if kind != ABSENT:
                at += U(4)
            store_byte(valid, U(0))
            if columns[column, OFFSETS] != 0:
                offset = U(columns[column, OFFSETS]) + U(4 * row)
                store(offset + U(4), U(load_half(offset)))
            else:
                store(values + U(row * width), U(0))
                if width == 16:
                    store(values + U(row * width + 8), U(0))
            continue
        store_byte(valid, U(1))
        to = values + U(row * width)
        if kind == TEXT:
            if load_byte(at) != U(34):
                return False
            offset = U(columns[column, OFFSETS]) + U(4 * row)
            at, to = text(at + U(1), stop, values + U(load_half(offset)))
            store(offset + U(4), to - values)
        elif kind == DECIMAL:
            at = decimal(at, U(steps[step, SCALE]), U(steps[step, PRECISION]), to)
        elif kind == FLOAT:
            at = floating(at, width, to)
        elif kind == BOOLEAN:
            word = load(at)
            if word & FOUR == TRUE:
                store_byte(to, U(1))
                at += U(4)
            elif word & U(0xFF) == U(102) and (word >> U(8)) & FOUR == ALSE:
                store_byte(to, U(0))
                at += U(5)
            else:
                return False
        elif kind == TIMESTAMP and load_byte(at) == U(34):
            at = timestamp(at + U(1), U(steps[step, DIGITS]), to)
        elif kind == DATE and load_byte(at) == U(34):
            days, good = days_at(at + U(1))
            if not good or load_byte(at + U(11)) != U(34):
                return False
            store(to, U(days))
            at += U(12)
        else:
            value, at = integer(at, U(steps[step, MOST]), U(steps[step, LEAST]))
            store(to, value)
        if at == U(0):
            return False
    return False


@kernel
def read_records(buffer, size, starts, ends, steps, templates, words, columns, scratch, taken, hits):
    """Read the records of the block of `size` bytes at address `buffer` that follow one of the templates, one after another.

    Template t has the steps ``templates[t]:templates[t + 1]``. ``taken[i]`` says whether record i was read; `hits` counts by template.
    Columns have room for all rows and `SLACK` bytes more, those of text for the bytes of all records. Records near the block's
    end that do not fit into `scratch` with `SLACK` are not read. Returns the number of rows.
    """
    count = templates.shape[0] - 1
    row, last = np.int64(0), np.int64(0)
    spare = U(scratch.ctypes.data)
    for record in range(starts.shape[0]):
        at, stop = U(buffer) + U(starts[record]), U(buffer) + U(ends[record])
        taken[record] = False
        if ends[record] + SLACK > size:
            length = ends[record] - starts[record]
            if length + SLACK > scratch.shape[0]:
                continue
            for byte in range(length):
                store_byte(spare + U(byte), load_byte(at + U(byte)))
            for byte in range(length, length + SLACK):
                store_byte(spare + U(byte), U(0))
            at, stop = spare, spare + U(length)
        attempt = last
        for _ in range(count):
            if follow(at, stop, steps, templates[attempt], templates[attempt + 1], words, columns, row):
                taken[record] = True
                last = attempt
                break
            attempt = attempt + 1 if attempt + 1 < count else np.int64(0)
        if taken[record]:
            hits[last] += 1
            row += 1
    return row
