# mypy: disable-error-code="no-untyped-def"
"""Text in JSON, eight bytes at a time, and values that are only read over."""

from __future__ import annotations

import numpy as np

from flowstate.plan.bits import trailing_zeros
from flowstate.plan.kernel import inlined, part
from flowstate.plan.memory import load, load_byte, store
from flowstate.source.kernels.numbers import HIGH, leading_digits

U = np.uint64

_ONES = U(0x0101010101010101)
NULL, TRUE, ALSE = (U(int.from_bytes(each, "little")) for each in (b"null", b"true", b"alse"))
FOUR = U(0xFFFFFFFF)


@inlined
def special(word):
    """The high bit of every byte that ends plain text: quote, backslash, control characters, and what is not ASCII. Only the first
    of them is certain."""
    quote, slash = word ^ U(0x2222222222222222), word ^ U(0x5C5C5C5C5C5C5C5C)
    found = ((quote - _ONES) & ~quote) | ((slash - _ONES) & ~slash) | ((word - U(0x2020202020202020)) & ~word) | word
    return found & HIGH


@part
def sequence(at):
    """How many bytes the character has that begins at `at` and is not ASCII; 0 if it is not UTF-8."""
    first, second = load_byte(at), load_byte(at + U(1))
    if second & U(0xC0) != U(0x80):
        return U(0)
    if first < U(0xE0):
        return U(2) if first >= U(0xC2) else U(0)
    if load_byte(at + U(2)) & U(0xC0) != U(0x80):
        return U(0)
    if first < U(0xF0):
        if (first == U(0xE0) and second < U(0xA0)) or (first == U(0xED) and second > U(0x9F)):
            return U(0)
        return U(3)
    if first > U(0xF4) or load_byte(at + U(3)) & U(0xC0) != U(0x80):
        return U(0)
    if (first == U(0xF0) and second < U(0x90)) or (first == U(0xF4) and second > U(0x8F)):
        return U(0)
    return U(4)


@inlined
def text(at, stop, to):
    """Copy text up to its quote to address `to`. Returns where both ended, behind the quote; 0 for text that is not certain."""
    while at < stop:
        word = load(at)
        store(to, word)
        plain = trailing_zeros(special(word)) >> U(3)
        at += plain
        to += plain
        if plain == U(8):
            continue
        byte = load_byte(at)
        if byte == U(34):
            return at + U(1), to
        if byte < U(128):
            break
        size = sequence(at)
        if size == U(0):
            break
        store(to, load(at))
        at += size
        to += size
    return U(0), to


@part
def skip_text(at, stop):
    """Behind the text whose first byte is at `at`, or 0."""
    while at < stop:
        plain = trailing_zeros(special(load(at))) >> U(3)
        at += plain
        if plain == U(8):
            continue
        byte = load_byte(at)
        if byte == U(34):
            return at + U(1)
        size = sequence(at) if byte >= U(128) else U(0)
        if size == U(0):
            break
        at += size
    return U(0)


@part
def skip_digits(at, stop):
    """Behind one or more digits, or 0."""
    first = at
    while at < stop:
        count = leading_digits(load(at))
        at += count
        if count < U(8):
            break
    return at if at > first else U(0)


@part
def skip(at, stop):
    """Behind the value at `at`: text without escapes, a number, true, false or null. 0 for anything else."""
    byte = load_byte(at)
    if byte == U(34):
        return skip_text(at + U(1), stop)
    word = load(at)
    if word & FOUR == NULL or word & FOUR == TRUE:
        return at + U(4)
    if byte == U(102):
        return at + U(5) if (word >> U(8)) & FOUR == ALSE else U(0)
    if byte == U(45):
        at += U(1)
        byte = load_byte(at)
    first = at
    at = skip_digits(at, stop)
    if at == U(0) or (byte == U(48) and at > first + U(1)):
        return U(0)
    if load_byte(at) == U(46):
        at = skip_digits(at + U(1), stop)
        if at == U(0):
            return U(0)
    if load_byte(at) | U(32) == U(101):
        at += U(1)
        byte = load_byte(at)
        if byte == U(43) or byte == U(45):
            at += U(1)
        at = skip_digits(at, stop)
    return at
