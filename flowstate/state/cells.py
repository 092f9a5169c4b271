"""State columns as Arrow sees them: their types and widths, and how what they hold becomes results.

Sums are two or four little-endian words, which is how Arrow lays decimals out, so that most results are the state itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.state.kernels import decode

INT64, FLOAT64, FLAG = pa.int64(), pa.float64(), pa.uint8()
#: Text: in memory the address and size of a value, when saved the value.
CELL = pa.large_binary()


@dataclass(frozen=True)
class StateColumn:
    """A state column: its name within its aggregate, and its type when saved."""

    name: str
    type: pa.DataType

    @property
    def width(self) -> int:
        """Bytes per row in memory."""
        return 16 if self.type == CELL else int(self.type.bit_width) // 8


class DoesNotFit(Exception):
    """A result does not fit its type: in `row`, where it is `value`."""

    def __init__(self, row: int, value: int) -> None:
        super().__init__(row, value)
        self.row, self.value = row, value


def flags_of(values: pa.Array, null: int) -> npt.NDArray[np.uint8]:
    """1 where there is a value, `null` where there is none."""
    if not values.null_count:
        return np.ones(len(values), np.uint8)
    valid = np.asarray(values.is_valid())
    return np.where(valid, np.uint8(1), np.uint8(null))


def validity_buffer(valid: npt.NDArray[np.bool_]) -> pa.Buffer | None:
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def from_values(kind: pa.DataType, values: pa.Array) -> pa.Array:
    """Values in one of the layouts of state as an array of type `kind`; they are known to fit."""
    types = pa.types
    if values.type == kind:
        return values
    if types.is_uint64(kind) and types.is_decimal(values.type):
        words = np.frombuffer(values.buffers()[1], np.uint64)[::2][values.offset : values.offset + len(values)]
        return pa.Array.from_buffers(
            kind, len(values), [values.buffers()[0], pa.py_buffer(np.ascontiguousarray(words))]
        )
    if types.is_decimal128(kind) and types.is_decimal128(values.type):
        return pa.Array.from_buffers(kind, len(values), values.buffers(), offset=values.offset)
    if types.is_temporal(kind):
        return (values.cast(pa.int32()) if kind.bit_width == 32 else values).view(kind)
    if types.is_boolean(kind):
        return values.cast(pa.int8()).cast(kind)
    if types.is_large_binary(values.type):
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            # The bytes came in as text: they need no second look.
            text = pa.Array.from_buffers(pa.large_string(), len(values), values.buffers(), offset=values.offset)
            return text.cast(kind)
        return values.cast(pa.binary()).cast(kind) if types.is_fixed_size_binary(kind) else values.cast(kind)
    return values.cast(kind, safe=not types.is_floating(kind))


def sum_results(state: pa.DataType, result: pa.DataType) -> Callable[[pa.Buffer, int], pa.Array]:
    """How sums in a column of type `state` become results: of a buffer with so many rows. That raises `DoesNotFit`, for integers outside
    the type and decimals of too many digits."""
    types = pa.types
    if types.is_floating(state) or types.is_decimal256(result):
        return lambda buffer, rows: from_values(result, pa.Array.from_buffers(state, rows, [None, buffer]))
    if types.is_decimal128(result):
        words = 2 if types.is_decimal128(state) else 4
        # 2^63 values of 18 digits stay below 10^38.
        if words == 2 and result.precision == 38:
            return lambda buffer, rows: pa.Array.from_buffers(result, rows, [None, buffer])
        return lambda buffer, rows: _checked_decimals(buffer, rows, words, result)
    if types.is_floating(result):
        return lambda buffer, rows: from_values(result, pa.array(sum_to_floats(state, buffer, rows)))
    signed, width = not types.is_unsigned_integer(result), result.bit_width - 1
    least, most = (-(1 << width), np.uint64((1 << width) - 1)) if signed else (0, np.uint64((2 << width) - 1))
    whole = pa.int64() if signed else pa.uint64()

    def narrowed(buffer: pa.Buffer, rows: int) -> pa.Array:
        values = np.empty(rows, np.uint64)
        row = decode.narrow(buffer.address, least, most, values)
        if row >= 0:
            raise DoesNotFit(row, int.from_bytes(buffer[16 * row : 16 * row + 16], "little", signed=True))
        return from_values(result, pa.Array.from_buffers(whole, rows, [None, pa.py_buffer(values)]))

    return narrowed


def _checked_decimals(buffer: pa.Buffer, rows: int, words: int, result: pa.DataType) -> pa.Array:
    """Sums of `words` words each as decimals, if they have no more digits than `result`."""
    parts = np.frombuffer(buffer, np.uint64, words * rows).reshape(rows, words)
    most = 10**result.precision - 1
    # Sums that two signed words hold are looked at by their high word; the few that are near the limit, one by one.
    high = parts[:, 1].view(np.int64)
    limit = most >> 64
    close = (high >= limit) | (high <= -limit - 1)
    for place in range(2, words):
        close |= parts[:, place].view(np.int64) != high >> 63
    for row in np.flatnonzero(close).tolist():
        value = int.from_bytes(parts[row].tobytes(), "little", signed=True)
        if abs(value) > most:
            raise DoesNotFit(row, value)
    data = np.ascontiguousarray(parts[:, :2]) if words > 2 else parts
    return pa.Array.from_buffers(result, rows, [None, pa.py_buffer(data) if words > 2 else buffer])


def sum_to_floats(state: pa.DataType, buffer: pa.Buffer, rows: int) -> npt.NDArray[np.float64]:
    """Sums as float64, by at most two roundings."""
    if pa.types.is_floating(state):
        return np.frombuffer(buffer, np.float64, rows)
    words = state.bit_width // 64
    parts = np.frombuffer(buffer, np.uint64, words * rows).reshape(rows, words)
    low, high = parts[:, 0], parts[:, 1].astype(np.int64)
    narrow = high == low.astype(np.int64) >> 63
    for place in range(2, words):
        narrow &= parts[:, place].astype(np.int64) == high >> 63
    sums: npt.NDArray[np.float64] = low.astype(np.int64).astype(np.float64)
    for row in np.flatnonzero(~narrow).tolist():
        sums[row] = float(int.from_bytes(parts[row].tobytes(), "little", signed=True))
    return sums / float(10**state.scale) if state.scale > 0 else sums
