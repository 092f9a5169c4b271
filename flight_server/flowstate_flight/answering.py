"""From a partition's batches to the batches of a stream: filter, columns, limit, and a size that Flight carries well.

Flight moves 2.5 to 3 GB/s in batches of 0.5 to 4 MB, a third of that in small ones, and clients in other languages refuse messages
of more than 4 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from flowstate_flight.expression import DecodedFilter

LEAST_BYTES = 1 << 19
MOST_BYTES = 7 << 19


def shape(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    condition: DecodedFilter | None = None,
    limit: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of `schema` (a subset of the columns of `batches`) with the rows that satisfy `condition`, at most `limit`."""
    left = limit
    held: list[pa.Table] = []
    size = 0
    try:
        for gathered in _gather(batches):
            if left == 0:
                break
            table = condition.apply(gathered) if condition else gathered
            table = table.select(schema.names)
            if left is not None:
                table = table.slice(0, left)
                left -= table.num_rows
            if table.num_rows:
                held.append(table)
                size += table.nbytes
            if size >= LEAST_BYTES:
                yield from _emit(held, size, schema)
                held, size = [], 0
        if held:
            yield from _emit(held, size, schema)
    finally:
        close = getattr(batches, "close", None)  # a generator may hold a lease on the view
        if close is not None:
            close()


def sliced(rows: pa.RecordBatch, nbytes: int) -> Iterator[pa.RecordBatch]:
    """`rows` in pieces of about so many bytes each; no rows are one piece."""
    count = max(1, rows.num_rows * nbytes // max(1, rows.nbytes))
    for begin in range(0, rows.num_rows, count) or (0,):
        yield rows.slice(begin, count)


def _gather(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Many small batches as few tables, without a copy: evaluating a filter has a price per call."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size >= LEAST_BYTES:
            yield pa.Table.from_batches(held)
            held, size = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _emit(tables: Sequence[pa.Table], size: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    whole = pa.concat_tables(tables).combine_chunks()
    rows = max(1, whole.num_rows if size <= MOST_BYTES else int(whole.num_rows * MOST_BYTES / size))
    for start in range(0, whole.num_rows, rows):
        for piece in whole.slice(start, rows).to_batches():
            yield pa.RecordBatch.from_arrays(piece.columns, schema=schema)
