"""One pass over the bytes of many JSON records that proves where each begins and ends.

Arrow's reader takes a stream of values: two objects in one record, one object over two records, or a bare ``null`` (on which pyarrow
26 crashes the process) would shift or end all that follows. So it only gets records that this pass has seen to be one object
each: the first character opens it, the last closes it, and nothing else is at level zero.

And it reads decimals with an exponent by what lies behind its table of powers: ``1e-77`` may be 0.00, and ``1e-99999999`` ends the
process. So the pass says which records have a number with an exponent, as a number or in text.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

MAX_DEPTH = 64


def _scan(data: Any, starts: Any, ends: Any, one_object: Any, ascii_only: Any, exponents: Any) -> None:
    """For each record: whether it is one object by its brackets and quotes, free of what JSON forbids but Arrow lets pass
    (``NaN``, ``Infinity``) and of control characters; whether it is ASCII; and whether it has a number with an exponent."""
    for row in range(len(starts)):
        at, end = starts[row], ends[row]
        while at < end and (data[at] == 32 or data[at] == 9):
            at += 1
        while end > at and (data[end - 1] == 32 or data[end - 1] == 9):
            end -= 1
        good = at < end and data[at] == 123
        plain = True
        depth = 0
        quoted = False
        number = power = powers = False
        before = 0
        while good and at < end:
            byte = data[at]
            at += 1
            # Of text: whether all of it may be a number, and an exponent has begun.
            exponent = (byte == 101 or byte == 69) and (48 <= before <= 57 or before == 46)
            before = byte
            if quoted:
                if byte == 34:
                    quoted = False
                    powers |= number and power
                elif byte == 92:
                    at += 1
                    power = True  # it may be one
                elif byte < 32:
                    good = False
                elif byte >= 128:
                    plain = False
                    number = False
                elif exponent:
                    power = True
                elif byte > 57:
                    number = False
            elif byte == 34:
                quoted = True
                number, power = True, False
            elif exponent:
                powers = True
            elif byte == 123 or byte == 91:
                depth += 1
                if depth > MAX_DEPTH:
                    good = False
            elif byte == 125 or byte == 93:
                depth -= 1
                if depth == 0 and at < end:
                    good = False
            elif byte == 78 or byte == 73 or byte >= 128 or (byte < 32 and byte != 9):
                good = False
        one_object[row] = good and depth == 0 and not quoted and at == end
        ascii_only[row] = plain
        exponents[row] = powers


def _compiled() -> Any:
    """`_scan` for its one signature, at import: the first record does not wait for the compiler."""
    flags = ", ".join(["boolean[::1]"] * 3)
    signature = f"void(Array(uint8, 1, 'C', readonly=True), int64[::1], int64[::1], {flags})"
    try:
        return numba.njit(signature, nogil=True, cache=True)(_scan)
    except RuntimeError:  # No folder that a cache can be written to.
        return numba.njit(signature, nogil=True)(_scan)


scan = _compiled()


def certain_records(
    buffer: bytes, starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], *, exponents: bool = True
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which records are one object each, in UTF-8; those with a number with an exponent only if `exponents`."""
    good, plain, powers = (np.empty(len(starts), np.bool_) for _ in range(3))
    starts, ends = np.ascontiguousarray(starts), np.ascontiguousarray(ends)
    scan(np.frombuffer(buffer, np.uint8), starts, ends, good, plain, powers)
    if not exponents:
        good &= ~powers
    if not plain.all():
        for row in np.flatnonzero(good & ~plain).tolist():
            try:
                buffer[starts[row] : ends[row]].decode()
            except UnicodeDecodeError:
                good[row] = False
    return good
