"""Memory that kernels read values into, and the Arrow array that it is then."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

#: Kernels may write so many bytes behind the last value.
SLACK = 64


class Room:
    """For up to `rows` values of `width` bytes (a boolean has one), or for text and bytes of together `size`."""

    def __init__(self, type_: pa.DataType, rows: int, width: int, size: int) -> None:
        self._type = type_
        text = is_text(type_)
        self._values = pa.allocate_buffer((size if text else rows * width) + SLACK)
        self._offsets = np.empty(rows + SLACK // 4, np.int32) if text else None
        if self._offsets is not None:
            self._offsets[0] = 0
        self.valid = np.empty(rows + SLACK, np.uint8)

    def addresses(self) -> list[int]:
        """Of the values, of the offsets (0 unless it is text), and of a byte per row that says whether it has a value."""
        offsets = 0 if self._offsets is None else self._offsets.ctypes.data
        return [self._values.address, offsets, self.valid.ctypes.data]

    def array(self, rows: int) -> pa.Array:
        """The first `rows` values."""
        valid = self.valid[:rows]
        nulls = rows - int(np.count_nonzero(valid))
        bits = pa.py_buffer(np.packbits(valid, bitorder="little")) if nulls else None
        values = self._values
        if self._offsets is not None:
            offsets = self._offsets[: rows + 1]
            values = values.slice(0, int(offsets[-1]))
            if pa.types.is_large_string(self._type) or pa.types.is_large_binary(self._type):
                offsets = offsets.astype(np.int64)
            return pa.Array.from_buffers(self._type, rows, [bits, pa.py_buffer(offsets), values], nulls)
        if pa.types.is_boolean(self._type):
            values = pa.py_buffer(np.packbits(np.frombuffer(values, np.uint8, rows), bitorder="little"))
        return pa.Array.from_buffers(self._type, rows, [bits, values], nulls)


def is_text(type_: pa.DataType) -> bool:
    """Whether values are of any length."""
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(each(type_) for each in kinds)
