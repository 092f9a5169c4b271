"""What every format shares: raw records in, and a decoded stretch out, with its dead letters.

`complete` is the last step for all formats. It refuses rows by what the schema and the event time ask of any row (required
fields, a time that exists, is in range and is not too far ahead of its record), so these rules are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.plan.position import NEVER, OFFSET, TIME
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, ScanSpec

#: Event times that are accepted: the years 1 to 9999, which every client can show.
FIRST_TIME = -62_135_596_800_000_000
LAST_TIME = 253_402_300_799_999_999

#: A record that cannot be read is kept with its bytes, up to this many of them.
RAW_BYTES = 64 * 1024

_LATEST = (1 << 63) - 1
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True)
class Records:
    """Raw records of one split, in offset order: record i is ``buffer[starts[i]:ends[i]]``.

    `starts`, `ends` and `offsets` are int64 arrays; `recorded` is the log's own time of each record in microseconds (`NEVER` for a
    record without one), or None when the log keeps none.
    """

    buffer: bytes
    starts: np.ndarray[Any, np.dtype[np.int64]]
    ends: np.ndarray[Any, np.dtype[np.int64]]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    recorded: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def only(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Records:
        """Some of them, in the same buffer."""
        recorded = None if self.recorded is None else self.recorded[rows]
        return Records(self.buffer, self.starts[rows], self.ends[rows], self.offsets[rows], recorded)

    def raw(self, row: int) -> bytes:
        return self.buffer[self.starts[row] : self.ends[row]]

    def at(self, row: int) -> int | None:
        return recorded_at(self.recorded, row)


def recorded_at(recorded: np.ndarray[Any, np.dtype[np.int64]] | None, row: int) -> int | None:
    """The record's own time in microseconds, or None when it has none (`NEVER` in the array)."""
    if recorded is None or recorded[row] == NEVER:
        return None
    return int(recorded[row])


class Refused(NamedTuple):
    """A record that became a dead letter."""

    offset: int
    reason: str
    raw: bytes | None
    recorded: int | None


_NO_LETTERS = pa.RecordBatch.from_pylist([], schema=DEAD_LETTER_SCHEMA)


def dead_letters(source: str, split: str, refused: Sequence[Refused]) -> pa.RecordBatch:
    """`refused` as a batch of `DEAD_LETTER_SCHEMA`, in offset order."""
    if not refused:
        return _NO_LETTERS
    ordered = sorted(refused, key=lambda each: each.offset)
    count = len(ordered)
    columns = [
        pa.array([source] * count, pa.string()),
        pa.array([split] * count, pa.string()),
        pa.array([each.offset for each in ordered], pa.int64()),
        pa.nulls(count, pa.string()),
        pa.array([each.reason for each in ordered], pa.string()),
        pa.array([None if each.raw is None else each.raw[:RAW_BYTES] for each in ordered], pa.binary()),
        pa.array([each.recorded for each in ordered], pa.int64()).cast(pa.timestamp("us", "UTC")),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=DEAD_LETTER_SCHEMA)


def check_scan(spec: ScanSpec) -> None:
    """Refuse a scan whose event time no row could have."""
    if spec.event_time is None:
        return
    if spec.event_time not in spec.schema.names:
        raise InvalidFlow(
            f"event_time names no column of the schema{did_you_mean(spec.event_time, spec.schema.names)}",
            source=spec.name,
            event_time=spec.event_time,
        )
    kind = spec.schema.field(spec.event_time).type
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise InvalidFlow(
            "the event time must be a timestamp or a date; change the column's type in the schema, for example to"
            " pa.timestamp('ms', 'UTC')",
            source=spec.name,
            event_time=spec.event_time,
            type=str(kind),
        )


def row_schema(spec: ScanSpec) -> pa.Schema:
    """The scan's schema with the hidden columns that a source adds."""
    schema = spec.schema.remove_metadata().append(pa.field(OFFSET, pa.int64(), nullable=False))
    return schema.append(pa.field(TIME, pa.int64(), nullable=False)) if spec.event_time is not None else schema


def no_rows(spec: ScanSpec) -> pa.RecordBatch:
    """A batch without rows, as a stretch that only moves the position has it."""
    schema = row_schema(spec)
    return pa.RecordBatch.from_arrays([pa.array([], each.type) for each in schema], schema=schema)


def microseconds(column: pa.Array) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Event times as int64 microseconds, and which of them are between `FIRST_TIME` and `LAST_TIME`; nulls are not."""
    kind = column.type
    if not column.null_count and pa.types.is_timestamp(kind) and kind.unit != "ns" and len(column):
        raw, scale = column.view(pa.int64()).to_numpy(), _MICROSECONDS[kind.unit]
        if raw.min() >= -(-FIRST_TIME // scale) and raw.max() <= LAST_TIME // scale:
            return raw * scale, np.ones(len(raw), np.bool_)
    present = np.asarray(column.is_valid())
    if pa.types.is_date32(kind):
        raw = _numbers(column.cast(pa.int32()).cast(pa.int64()))
        scale = 86_400_000_000
    elif pa.types.is_date64(kind):
        raw = _numbers(column.view(pa.int64()))
        scale = 1_000
    else:
        raw = _numbers(column.view(pa.int64()))
        if kind.unit == "ns":
            raw, scale = raw // 1_000, 1
        else:
            scale = _MICROSECONDS[kind.unit]
    # Compared before they are multiplied: the product of an absurd time could wrap into a plausible one.
    inside = present & (raw >= -(-FIRST_TIME // scale)) & (raw <= LAST_TIME // scale)
    return np.where(inside, raw, 0) * scale, inside


def _numbers(column: pa.Array) -> np.ndarray[Any, Any]:
    return np.asarray(pc.fill_null(column, 0), dtype=np.int64)


def complete(
    spec: ScanSpec,
    split: str,
    rows: pa.RecordBatch,
    offsets: np.ndarray[Any, Any],
    recorded: np.ndarray[Any, Any] | None,
    raw: Callable[[int], bytes | None],
    refused: Sequence[Refused] = (),
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Check `rows` (the scan's columns, row i at ``offsets[i]``), add the hidden columns, and collect the dead letters. Rows with the same
    offset are of one record, and stand together.

    `raw(i)` gives the bytes of the record of row i, asked only for rows that are refused now.
    """
    letters = list(refused)
    reasons: dict[int, str] = {}
    for field, column in zip(spec.schema, rows.columns, strict=True):
        if not field.nullable and column.null_count:
            for row in np.flatnonzero(np.asarray(column.is_null())):
                reasons.setdefault(int(row), f"field {field.name!r} is required, but missing or null")
    time = None
    if spec.event_time is not None:
        column = rows.column(spec.schema.names.index(spec.event_time))
        time, inside = microseconds(column)
        for row in np.flatnonzero(~inside):
            reasons.setdefault(int(row), _time_reason(spec.event_time, column, int(row)))
        if spec.max_ahead is not None and recorded is not None and _may_be_ahead(time, recorded, spec.max_ahead):
            dated = inside & (recorded != NEVER)
            for row in np.flatnonzero(dated & (time - np.where(dated, recorded, 0) > spec.max_ahead)):
                ahead = (int(time[row]) - int(recorded[row])) / 1e6
                reasons.setdefault(
                    int(row),
                    f"event time {spec.event_time!r} is {ahead:.3f} s ahead of its record, max_ahead is "
                    f"{spec.max_ahead / 1e6:.3f} s",
                )
    if reasons:
        # Rows of one record, which share its offset, are refused together: it is counted as a whole or not at all.
        keep = ~np.isin(offsets, offsets[list(reasons)])
        said: set[int] = set()
        for refused_row, reason in sorted(reasons.items()):
            offset = int(offsets[refused_row])
            if offset not in said:
                said.add(offset)
                reason, at = _of_row(reason, offsets, refused_row), recorded_at(recorded, refused_row)
                letters.append(Refused(offset, reason, raw(refused_row), at))
        chosen = pa.array(keep)
        columns = [each.filter(chosen) for each in rows.columns]
        offsets = offsets[keep]
        time = None if time is None else time[keep]
    else:
        columns = list(rows.columns)
    columns.append(pa.array(offsets, pa.int64()))
    if time is not None:
        columns.append(pa.array(time, pa.int64()))
    return pa.RecordBatch.from_arrays(columns, schema=row_schema(spec)), dead_letters(spec.name, split, letters)


def _of_row(reason: str, offsets: np.ndarray[Any, Any], row: int) -> str:
    """The reason, with the number of the row in its record if that has several."""
    begin, end = np.searchsorted(offsets, offsets[row]), np.searchsorted(offsets, offsets[row], "right")
    return f"row {row - begin + 1} of {end - begin}: {reason}" if end - begin > 1 else reason


def _may_be_ahead(time: np.ndarray[Any, Any], recorded: np.ndarray[Any, Any], most: int) -> bool:
    """Whether any of them can be more than `most` ahead of its record: not if the latest is not ahead of the earliest record."""
    earliest = int(recorded.min(initial=_LATEST))
    return earliest == NEVER or int(time.max(initial=NEVER)) - earliest > most


def _time_reason(name: str, column: pa.Array, row: int) -> str:
    if not column[row].is_valid:
        return f"event time {name!r} is missing or null"
    return f"event time {name!r} is outside the years 1 to 9999"
