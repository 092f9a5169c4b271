# mypy: disable-error-code="no-untyped-def"
"""Numbers in JSON text, eight digits at a time.

These functions read up to 56 bytes behind the address that they are given. Where they return the address at which a number ends, 0
means that it is none, or that what it means is not certain here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flowstate.plan.bits import leading_zeros, multiply_high, trailing_zeros
from flowstate.plan.kernel import inlined, part
from flowstate.plan.memory import as_float, load, load_byte, store

U = np.uint64

POWERS = np.array([10**each for each in range(20)], np.uint64)

HIGH = U(0x8080808080808080)
ZEROS = U(0x3030303030303030)  # as text

_FIRST_POWER, _LAST_POWER = -100, 100


def _powers_of_five() -> tuple[Any, Any]:
    """128 bits of each power of five from 5^-100 to 5^100, rounded down: two words each, and the exponent of two that belongs to them."""
    words, exponents = [], []
    for power in range(_FIRST_POWER, _LAST_POWER + 1):
        if power >= 0:
            exponent = (5**power).bit_length() - 128
            value = 5**power << -exponent if exponent < 0 else 5**power >> exponent
        else:
            exponent = -(5**-power).bit_length() - 127
            value = (1 << -exponent) // 5**-power
        words += [value >> 64, value & 0xFFFFFFFFFFFFFFFF]
        exponents.append(exponent)
    return np.array(words, np.uint64), np.array(exponents, np.int64)


_FIVES, _EXPONENTS = _powers_of_five()


@inlined
def leading_digits(word):
    """How many of the word's bytes, from the first, are digits."""
    each = word ^ ZEROS
    return trailing_zeros(((each + U(0x7676767676767676)) | each) & HIGH) >> U(3)


@inlined
def number_of(word, digits):
    """The number that the first `digits` (1 to 8) bytes of the word are."""
    word <<= U(64) - (digits << U(3))
    word = ((word & U(0x0F0F0F0F0F0F0F0F)) * U(2561)) >> U(8)
    word = ((word & U(0x00FF00FF00FF00FF)) * U(6553601)) >> U(16)
    return ((word & U(0x0000FFFF0000FFFF)) * U(42949672960001)) >> U(32)


@part
def long_digits(at):
    """The number at `at`, and how many digits it has: 99 when that is more than a word holds."""
    value = number_of(load(at), U(8))
    count = U(8)
    word = load(at + U(8))
    more = leading_digits(word)
    if more > U(0):
        value = value * POWERS[more] + number_of(word, more)
        count += more
    if more == U(8):
        word = load(at + U(16))
        more = leading_digits(word)
        if more > U(4):
            return U(0), U(99)
        if more > U(0):
            last = number_of(word, more)
            if more == U(4) and (value > U(1844674407370955) or (value == U(1844674407370955) and last > U(1615))):
                return U(0), U(99)
            value = value * POWERS[more] + last
            count += more
    return value, count


@part
def digits_at(at):
    """The number at `at`, and how many digits it has: 0 when there is none, 99 when that is more than a word holds."""
    word = load(at)
    count = leading_digits(word)
    value = U(0)
    if count == U(8):
        value, count = long_digits(at)
    elif count > U(0):
        value = number_of(word, count)
    return value, count


@part
def integer(at, most, least):
    """The whole number at `at` as a word, and where it ends: 0 if it is not one, or is above `most`, or its size below zero above
    `least`."""
    negative = load_byte(at) == U(45)
    if negative:
        at += U(1)
        most = least
    value, count = digits_at(at)
    if count == U(0) or count > U(20) or value > most or (count > U(1) and load_byte(at) == U(48)):
        return value, U(0)
    return (U(0) - value if negative else value), at + count


@part
def fraction(at):
    """The digits at `at` and behind their point as one number, how many are behind it, and where they end: 0 if not certain."""
    value, count = digits_at(at)
    behind = U(0)
    if count == U(0) or count > U(19) or (count > U(1) and load_byte(at) == U(48)):
        return value, behind, U(0)
    at += count
    if load_byte(at) == U(46):
        low, behind = digits_at(at + U(1))
        if behind == U(0) or count + behind > U(19):
            return value, behind, U(0)
        value = value * POWERS[behind] + low
        at += U(1) + behind
    return value, behind, at


@part
def decimal(at, scale, precision, to):
    """Put the number at `at`, times ten to the power of `scale`, to address `to` in two words. Returns where it ends, or 0."""
    quoted = load_byte(at) == U(34)
    if quoted:
        at += U(1)
    negative = load_byte(at) == U(45)
    if negative:
        at += U(1)
    value, behind, at = fraction(at)
    if at == U(0) or behind > scale or scale - behind > U(19):
        return U(0)
    shift = scale - behind
    if precision < shift or (precision - shift < U(20) and value >= POWERS[precision - shift]):
        return U(0)
    low, high = value * POWERS[shift], multiply_high(value, POWERS[shift])
    if negative:
        low = U(0) - low
        high = ~high + (U(1) if low == U(0) else U(0))
    store(to, low)
    store(to + U(8), high)
    if quoted:
        return at + U(1) if load_byte(at) == U(34) else U(0)
    return at


@part
def float_bits(value, power):
    """The bits of the float64 nearest to `value` (not 0) times ten to the `power`, or 0 where that takes a closer look.

    The product with 128 bits of the power of five is off by less than two units of its own last place, so the nearest float is
    known unless the product lies that near to the middle between two floats. After Lemire, "Number parsing at a gigabyte per
    second" (2021).
    """
    if power < _FIRST_POWER or power > _LAST_POWER:
        return U(0)
    index = power - _FIRST_POWER
    zeros = leading_zeros(value)
    value <<= zeros
    high = multiply_high(value, _FIVES[2 * index])
    low = value * _FIVES[2 * index]
    more = low + multiply_high(value, _FIVES[2 * index + 1])
    if more < low:
        high += U(1)
    low = more
    exponent = _EXPONENTS[index] + np.int64(power) - np.int64(zeros) + 128 + 11 + 1075
    if high >> U(63) == U(0):
        high = (high << U(1)) | (low >> U(63))
        low <<= U(1)
        exponent -= 1
    rest = high & U(0x7FF)
    if (rest == U(0x400) and low == U(0)) or (rest == U(0x3FF) and low >= U(0xFFFFFFFFFFFFFFFC)):
        return U(0)
    # Rounding up may carry into the exponent, which is then the right one.
    mantissa = (high >> U(11)) + (rest >> U(10))
    return (U(exponent) << U(52)) + (mantissa - U(1 << 52))


@part
def floating(at, width, to):
    """Put the number at `at` to address `to`. Returns where it ends, or 0."""
    sign = U(0)
    if load_byte(at) == U(45):
        at += U(1)
        sign = U(1 << 63)
    value, behind, at = fraction(at)
    if at == U(0):
        return U(0)
    power = -np.int64(behind)
    if load_byte(at) | U(32) == U(101):
        at += U(1)
        byte = load_byte(at)
        if byte == U(43) or byte == U(45):
            at += U(1)
        word = load(at)
        count = leading_digits(word)
        if count == U(0) or count > U(3):
            return U(0)
        exponent = np.int64(number_of(word, count))
        power += -exponent if byte == U(45) else exponent
        at += count
    bits = U(0)
    if value != U(0):
        bits = float_bits(value, power)
        if bits == U(0):
            return U(0)
    if width == 8:
        store(to, sign | bits)
        return at
    if bits != U(0):
        # Rounding twice is rounding once, unless the first made it the middle between two float32.
        number = as_float(bits)
        rest = bits & U(0x1FFFFFFF)
        if rest == U(0x10000000) or number < 1.1754943508222875e-38 or number > 3.4028234663852886e38:
            return U(0)
        bits = (bits >> U(29)) + (rest >> U(28)) - U(896 << 23)
    store(to, (sign >> U(32)) | bits)
    return at
