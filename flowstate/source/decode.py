"""Payload bytes -> rows of the scan's schema, and a dead letter for each record that cannot be read.

For every format there is a complete reader (`json_rows`, `csv_rows`, `arrow_rows`) that decides what a record means; for JSON
also two that read many records at once and answer only where they are certain to agree. The fastest (`json_guess`) takes the records
that look like those before them and leaves all others. The fast one (`json_block`) reads of those what it can; it marks the records
that surprise it, and gives up on a block that Arrow's reader refuses. A refused block is narrowed down until the slow reader takes
what is left, so one bad record costs little. For Arrow there is one that copies columns of records built alike (`arrow_guess`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.dialect import Dialect
from flowstate.plan.spec import ScanSpec
from flowstate.source.arrow_guess import ArrowGuess
from flowstate.source.arrow_rows import ArrowRows
from flowstate.source.csv_rows import CsvRows
from flowstate.source.json_block import JsonBlock
from flowstate.source.json_guess import JsonGuess
from flowstate.source.json_rows import JsonRows
from flowstate.source.records import Records, Refused, complete
from flowstate.source.values import Unreadable, readable

#: A block with a surprise is read in chunks; few records, or those beside many surprises, go straight to the slow reader.
CHUNK_ROWS = 2048
SLOW_ROWS = 16
MAX_SURPRISES = 8

Numbers = np.ndarray[Any, np.dtype[np.int64]]


class RowReader(Protocol):
    """Reads one record of one row; raises `Unreadable`."""

    def read(self, raw: bytes) -> dict[str, Any]: ...


class BlockReader(Protocol):
    """Reads many records at once, or says None: this block has a surprise somewhere, perhaps at the given place in `rows`."""

    def certain(self, records: Records) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which records it can take at all."""
        ...

    def read(self, records: Records, rows: Numbers) -> tuple[pa.RecordBatch | None, int | None]: ...


class GuessReader(Protocol):
    """Reads at once those records that it can, and says which: it knows only when it has read them. None: not one of them."""

    def read(self, records: Records) -> tuple[pa.RecordBatch, np.ndarray[Any, np.dtype[np.bool_]]] | None: ...


@dataclass
class _Parts:
    """Pieces of a batch in the making: which records each holds."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: list[Numbers] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


class Decoder:
    """Decodes records of one scan. `fast` and `guess` are off in the tests that compare the ways to read."""

    def __init__(
        self,
        spec: ScanSpec,
        form: str,
        *,
        header: Sequence[str] | None = None,
        fast: bool = True,
        guess: bool = True,
    ) -> None:
        self._spec = spec
        self._schema = spec.schema.remove_metadata()
        self._whole = ArrowRows(spec.schema) if form == "arrow" else None
        self._whole_guess = ArrowGuess(spec.schema) if form == "arrow" and fast and guess else None
        self._slow, self._fast, self._guess = _readers(spec, form, header)
        self.rows_per_record = 1.0  # of late
        if not fast:
            self._fast = None
        if not (fast and guess):
            self._guess = None

    def decode(
        self, split: str, records: Records, refused: Sequence[Refused] = ()
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """The rows with their hidden columns, and the dead letters (with those `refused` before), both in offset order."""
        parts = _Parts(refused=list(refused))
        rest = self._read_guessing(records, parts)
        if self._whole is not None:
            self._read_whole(records, self._whole, parts)
        elif self._fast is None:
            self._read_slowly(records, rest, parts)
        elif len(rest):
            certain = self._fast.certain(records if len(rest) == len(records) else records.only(rest))
            self._read_fast(records, rest[certain], parts)
            self._read_slowly(records, rest[~certain], parts)
        batch, rows = self._joined(parts)
        recorded = None if records.recorded is None else records.recorded[rows]
        return complete(
            self._spec,
            split,
            batch,
            records.offsets[rows],
            recorded,
            lambda row: records.raw(int(rows[row])),
            parts.refused,
        )

    def _read_whole(self, records: Records, reader: ArrowRows, parts: _Parts) -> None:
        """Records that have their rows in columns already."""
        left = np.ones(len(records), np.bool_)
        for batch, rows in [] if self._whole_guess is None else self._whole_guess.read(records):
            parts.batches.append(batch)
            parts.rows.append(rows)
            left[rows] = False
        buffer = pa.py_buffer(records.buffer)
        for number in np.flatnonzero(left).tolist():
            start, end = int(records.starts[number]), int(records.ends[number])
            try:
                batch = reader.read(buffer.slice(start, end - start))
            except Unreadable as reason:
                refused = Refused(int(records.offsets[number]), str(reason), records.raw(number), records.at(number))
                parts.refused.append(refused)
                continue
            parts.batches.append(batch)
            parts.rows.append(np.full(batch.num_rows, number, np.int64))
        if len(records):
            self.rows_per_record = max(1.0, sum(each.num_rows for each in parts.batches) / len(records))

    def _read_guessing(self, records: Records, parts: _Parts) -> Numbers:
        """Returns the records that are left."""
        read = None if self._guess is None else self._guess.read(records)
        if read is None:
            return np.arange(len(records), dtype=np.int64)
        batch, taken = read
        parts.batches.append(batch)
        parts.rows.append(np.flatnonzero(taken))
        return np.flatnonzero(~taken)

    def _read_fast(self, records: Records, rows: Numbers, parts: _Parts) -> None:
        assert self._fast is not None
        if not len(rows):
            return
        batch, _ = self._fast.read(records, rows)
        if batch is not None:
            parts.batches.append(batch)
            parts.rows.append(rows)
            return
        for start in range(0, len(rows), CHUNK_ROWS):
            self._read_chunk(records, rows[start : start + CHUNK_ROWS], parts)

    def _read_chunk(self, records: Records, rows: Numbers, parts: _Parts) -> None:
        """Find the surprises in a chunk. Arrow stops at the first record that does not parse: go on behind it, and read those that
        were passed on the way once more, together."""
        assert self._fast is not None
        passed: list[Numbers] = []
        rest = rows
        while len(rest) > SLOW_ROWS:
            batch, culprit = self._fast.read(records, rest)
            if batch is not None:
                parts.batches.append(batch)
                parts.rows.append(rest)
            elif culprit is None:
                passed.append(rest)
            else:
                # Only a guess at who it is: the slow reader decides.
                self._read_slowly(records, rest[culprit : culprit + 1], parts)
                passed.append(rest[:culprit])
                rest = rest[culprit + 1 :]
                continue
            rest = rest[:0]
        self._read_slowly(records, rest, parts)
        if passed:
            self._read_halves(records, np.concatenate(passed), parts)

    def _read_halves(self, records: Records, rows: Numbers, parts: _Parts) -> None:
        """Narrow down a surprise that has no place. Where there are many, the slow reader is the faster one."""
        assert self._fast is not None
        waiting = [rows]
        surprises = 0
        while waiting:
            block = waiting.pop()
            if len(block) <= SLOW_ROWS or surprises > MAX_SURPRISES:
                self._read_slowly(records, block, parts)
                continue
            batch, _ = self._fast.read(records, block)
            if batch is not None:
                parts.batches.append(batch)
                parts.rows.append(block)
                continue
            surprises += 1
            half = len(block) // 2
            waiting += [block[half:], block[:half]]

    def _read_slowly(self, records: Records, rows: Numbers, parts: _Parts) -> None:
        assert self._slow is not None
        read: list[dict[str, Any]] = []
        kept: list[int] = []
        for row in rows.tolist():
            try:
                read.append(self._slow.read(records.raw(row)))
                kept.append(row)
            except Unreadable as reason:
                refused = Refused(int(records.offsets[row]), str(reason), records.raw(row), records.at(row))
                parts.refused.append(refused)
        if read:
            columns = [pa.array([row[each.name] for row in read], each.type) for each in self._schema]
            parts.batches.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
            parts.rows.append(np.array(kept, np.int64))

    def _joined(self, parts: _Parts) -> tuple[pa.RecordBatch, Numbers]:
        if not parts.batches:
            columns = [pa.array([], each.type) for each in self._schema]
            return pa.RecordBatch.from_arrays(columns, schema=self._schema), np.zeros(0, np.int64)
        if len(parts.batches) == 1:
            return parts.batches[0], parts.rows[0]
        rows = np.concatenate(parts.rows)
        batch = pa.concat_batches(parts.batches)
        order = np.argsort(rows, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):
            batch = batch.take(pa.array(order))
        return batch, rows[order]


def _readers(
    spec: ScanSpec, form: str, header: Sequence[str] | None
) -> tuple[RowReader | None, BlockReader | None, GuessReader | None]:
    if form == "arrow":
        return None, None, None
    nested = [each for each in spec.schema if pa.types.is_nested(each.type)]
    unreadable = [each for each in spec.schema if not readable(each.type)]
    if form == "csv":
        unreadable += nested
    if unreadable:
        raise InvalidFlow(
            f"{form} has no values of this type; choose another type for the column in the schema",
            source=spec.name,
            column=unreadable[0].name,
            type=str(unreadable[0].type),
        )
    if form == "json":
        return JsonRows(spec.schema), JsonBlock(spec.schema), JsonGuess(spec.schema)
    if form == "csv":
        return CsvRows(spec.schema, header, Dialect.of(spec.options)), None, None
    raise InvalidFlow("unknown format; there is 'json', 'csv' and 'arrow'", source=spec.name, format=form)
