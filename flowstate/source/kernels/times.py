# mypy: disable-error-code="no-untyped-def"
"""Dates and times in JSON text."""

from __future__ import annotations

import numpy as np

from flowstate.plan.kernel import inlined, part
from flowstate.plan.memory import load, load_byte, store
from flowstate.source.kernels.numbers import HIGH, POWERS, ZEROS, digits_at, leading_digits

U = np.uint64

# What is left of the bytes of such text after xor with its pattern is at most 9 where a digit is, and 0 elsewhere: with this added,
# the high bit of no byte is set.
_DATE_PATTERN = U(int.from_bytes(b"0000-00-", "little"))
_DATE_DIGITS = U(int.from_bytes(b"\x76\x76\x76\x76\x7f\x76\x76\x7f", "little"))
_CLOCK_PATTERN = U(int.from_bytes(b"00T00:00", "little"))
_CLOCK_DIGITS = U(int.from_bytes(b"\x76\x76\x7f\x76\x76\x7f\x76\x76", "little"))


@inlined
def pair(word, place):
    """The number of two digits at byte `place` of a word of digits without their 0x30."""
    return np.int64(((word >> U(8 * place)) & U(15)) * U(10) + ((word >> U(8 * place + 8)) & U(15)))


@inlined
def day_number(year, month, day):
    """Days since 1970 of a date of the calendar. After Howard Hinnant, "chrono-compatible low-level date algorithms"."""
    shifted = year - 1 if month <= 2 else year
    era = shifted // 400
    of_era = shifted - era * 400
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


@part
def days_at(at):
    """The days since 1970 of the date ``YYYY-MM-DD`` at `at`, and whether it is one, of the years 1 to 9999."""
    word = load(at) ^ _DATE_PATTERN
    last = load(at + U(8)) ^ ZEROS
    if ((word + _DATE_DIGITS) | word) & HIGH != U(0) or (((last & U(0xFFFF)) + U(0x7676)) | last) & U(0x8080) != U(0):
        return np.int64(0), False
    year, month, day = pair(word, 0) * 100 + pair(word, 2), pair(word, 5), pair(last, 0)
    if year < 1 or month < 1 or month > 12 or day < 1 or day > 31:
        return np.int64(0), False
    if day > 28:
        length = 31 - ((month - 1) % 7) % 2
        if month == 2:
            length = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
        if day > length:
            return np.int64(0), False
    return day_number(year, month, day), True


@part
def timestamp(at, digits, to):
    """Put the time in text at `at` (behind its quote) to address `to`, in units of `digits` digits behind the second. Returns where it
    ends, behind its quote, or 0.

    ``YYYY-MM-DD``, or that with ``T`` or a space and ``HH:MM:SS``, then perhaps a point and 1 to 12 digits, and perhaps ``Z``,
    ``+HH:MM`` or ``+HHMM``.
    """
    days, good = days_at(at)
    # In nanoseconds the years 1678 to 2261 are sure to fit into 64 bits.
    if not good or (digits == U(9) and (days < -106_000 or days > 106_000)):
        return U(0)
    seconds = days * 86_400
    at += U(10)
    byte = load_byte(at)
    rest = U(0)
    if byte != U(34):
        if byte != U(84) and byte != U(32):
            return U(0)
        word = (load(at - U(2)) ^ _CLOCK_PATTERN) & U(0xFFFFFFFFFF000000)
        last = load(at + U(6)) ^ U(0x30303A)
        if ((word + _CLOCK_DIGITS) | word) & U(0x8080808080000000) != U(0):
            return U(0)
        if (((last & U(0xFFFFFF)) + U(0x76767F)) | last) & U(0x808080) != U(0):
            return U(0)
        hour, minute, second = pair(word, 3), pair(word, 6), pair(last, 1)
        if hour > 23 or minute > 59 or second > 59:
            return U(0)
        seconds += hour * 3_600 + minute * 60 + second
        at += U(9)
        byte = load_byte(at)
        if byte == U(46):
            rest, count = digits_at(at + U(1))
            if count == U(0) or count > U(12):
                return U(0)
            if count <= digits:
                rest *= POWERS[digits - count]
            else:
                finer = POWERS[count - digits]
                if rest % finer != U(0):
                    return U(0)
                rest //= finer
            at += count + U(1)
            byte = load_byte(at)
        if byte == U(90):
            at += U(1)
        elif byte == U(43) or byte == U(45):
            word = load(at + U(1))
            if (word >> U(16)) & U(0xFF) == U(58):
                word = (word & U(0xFFFF)) | ((word >> U(8)) & U(0xFFFF0000))
                at += U(1)
            if leading_digits(word) < U(4):
                return U(0)
            hour, minute = pair(word, 0), pair(word, 2)
            if hour > 23 or minute > 59:
                return U(0)
            seconds += (hour * 3_600 + minute * 60) * (1 if byte == U(45) else -1)
            at += U(5)
        if load_byte(at) != U(34):
            return U(0)
    store(to, U(seconds * np.int64(POWERS[digits])) + rest)
    return at + U(1)
