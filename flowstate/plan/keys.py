"""Keys: our own hash of them, the key group that the hash gives, and the partition that owns the group.

The hash is stable (the same for ever, on any machine, however rows were cut into batches) and seeded per job. Key groups take its
high bits; the index of a keyed table takes the low ones. numba is imported when a hash is first asked for, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flowstate.errors import InvalidFlow

UInt64s = npt.NDArray[np.uint64]
_WORD, _FLOAT, _DECIMAL, _BYTES, _LARGE_BYTES = range(5)
#: The types whose values kernels read as they are, by their ids; every lookup asks.
_AS_THEY_ARE = {
    pa.int64().id: _WORD, pa.uint64().id: _WORD, pa.timestamp("us").id: _WORD, pa.date64().id: _WORD, pa.float64().id: _FLOAT,
    pa.decimal128(1).id: _DECIMAL, pa.string().id: _BYTES, pa.binary().id: _BYTES, pa.large_string().id: _LARGE_BYTES,
    pa.large_binary().id: _LARGE_BYTES,
}  # fmt: skip


class KeyColumns:
    """Key columns as kernels read them. `described` holds one row of eight int64 per column, `head_words` the size of the part of a
    record that all keys have (see `encoding`). `held` keeps the memory alive that the addresses point to."""

    __slots__ = ("described", "head_words", "held", "rows")

    def __init__(self, rows: int, described: npt.NDArray[np.int64], head_words: int, held: list[pa.Array]) -> None:
        self.rows, self.described, self.head_words, self.held = rows, described, head_words, held

    @staticmethod
    def of(columns: Sequence[pa.Array], rows: int | None = None) -> KeyColumns:
        held: list[pa.Array] = []
        lines: list[list[int]] = []
        variable: list[list[int]] = []
        place = 1 + max(0, len(columns) - 32 + 63) // 64
        for column in columns:
            kind, array = key_array(column)
            held.append(array)
            validity, *offsets, values = array.buffers()
            start = end = nulls = 0
            if values is not None:
                start = values.address
                end = start + values.size
            if validity is not None and array.null_count:
                nulls = validity.address
            texts = offsets[0].address if offsets and offsets[0] is not None else 0
            line = [kind, start, texts, nulls, array.offset, end, 0, 0]
            lines.append(line)
            if kind >= _BYTES:
                variable.append(line)
            else:
                line[6], place = place, place + (2 if kind == _DECIMAL else 1)
        for line in variable[:-1]:
            line[6], place = place, place + 1
        described = np.array(lines, np.int64).reshape(len(lines), 8)
        return KeyColumns(len(held[0]) if held else (rows or 0), described, place, held)


def key_kind(kind: pa.DataType) -> int:
    """How keys of this type are encoded; `InvalidFlow` if they cannot be."""
    types = pa.types
    if types.is_floating(kind):
        return _FLOAT
    if types.is_decimal(kind) and not types.is_decimal256(kind):
        return _DECIMAL
    if types.is_integer(kind) or (types.is_temporal(kind) and kind != pa.month_day_nano_interval()):
        return _WORD
    if types.is_boolean(kind) or types.is_null(kind):
        return _WORD
    if types.is_string(kind) or types.is_binary(kind):
        return _BYTES
    if types.is_large_string(kind) or types.is_large_binary(kind):
        return _LARGE_BYTES
    if types.is_string_view(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return _LARGE_BYTES
    if types.is_dictionary(kind):
        return key_kind(kind.value_type)
    raise InvalidFlow("a column of this type cannot be a key; cast it, or take a part of it", type=str(kind))


def key_array(column: pa.Array) -> tuple[int, pa.Array]:
    """The kind of a key column, and its values in one of the five layouts that kernels read."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if kind.id in _AS_THEY_ARE:
        return _AS_THEY_ARE[kind.id], column
    encoded = key_kind(kind)
    types = pa.types
    if types.is_dictionary(kind):
        return key_array(column.dictionary_decode())
    if encoded == _WORD:
        if types.is_boolean(kind) or types.is_null(kind):
            return encoded, column.cast(pa.int8()).cast(pa.int64())
        width = kind.bit_width
        if width < 64:
            if types.is_temporal(kind):
                column = column.view(pa.int32())
            column = column.cast(pa.int64())
        return encoded, column
    if encoded == _FLOAT:
        return encoded, column.cast(pa.float64())
    if encoded == _DECIMAL:
        return encoded, column.cast(pa.decimal128(kind.precision, kind.scale))
    if encoded == _LARGE_BYTES and (types.is_string_view(kind) or types.is_binary_view(kind)):
        return encoded, column.cast(pa.large_binary())
    if types.is_fixed_size_binary(kind):
        return encoded, column.cast(pa.binary()).cast(pa.large_binary())
    return encoded, column


def route_hashes(columns: Sequence[pa.Array], seed: int, *, rows: int | None = None) -> UInt64s:
    """The hash of each row's key, uint64. With no columns, `rows` (1 if not given) times the same value.

    Text and large text of the same characters hash alike, so do an int32 and an int64 of the same value, -0.0 and 0.0, and all NaN.
    A null is a value of its own.
    """
    if not columns:
        rows = 1 if rows is None else rows
    return hash_columns(KeyColumns.of(columns, rows), seed)


def hash_columns(keys: KeyColumns, seed: int) -> UInt64s:
    from flowstate.plan import encoding

    hashes = np.empty(keys.rows, np.uint64)
    starts = np.empty(encoding.BLOCK + 1, np.int64)
    cursors = np.empty(encoding.BLOCK + 1, np.int64)
    words = encoding.SCRATCH_WORDS
    mixed = seed_word(seed)
    described, done = keys.described.copy(), 0
    while True:
        scratch = np.empty(words, np.uint64)
        done += int(
            encoding.hash_rows(
                described, keys.head_words, keys.rows - done, mixed, starts, cursors, scratch, hashes[done:]
            )
        )
        if done == keys.rows:
            return hashes
        words *= 2
        described[:, 4] = keys.described[:, 4] + done


def seed_word(seed: int) -> np.uint64:
    """The seed as the hash's first word: neighbouring seeds give unrelated ones (splitmix64)."""
    full = 2**64 - 1
    value = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & full
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & full
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & full
    return np.uint64(value ^ (value >> 31))


def key_groups(hashes: UInt64s, groups: int = 128) -> npt.NDArray[np.uint32]:
    """The key group of each hash, 0 to groups - 1, from its high 32 bits."""
    return (((hashes >> np.uint64(32)) * np.uint64(groups)) >> np.uint64(32)).astype(np.uint32)


def owner_of_groups(groups: npt.NDArray[Any], key_groups: int, partitions: int) -> npt.NDArray[np.int64]:
    """The partition that owns each key group: neighbouring groups go together, and every partition has as many, give or take one."""
    return groups.astype(np.int64) * partitions // key_groups


def split_owner(split: str, seed: int, key_groups: int, partitions: int) -> int:
    """The partition that owns the rows of an append table which came from `split`."""
    hashes = route_hashes([pa.array([split], pa.string())], seed)
    return int(owner_of_groups(_groups(hashes, key_groups), key_groups, partitions)[0])


_groups = key_groups
