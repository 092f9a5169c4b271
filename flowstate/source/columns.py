"""Arrow columns that somebody else made -> rows of the scan's schema (Parquet, Arrow IPC and in-memory batches).

Columns are matched by name; others are ignored, a missing one is null. Types are cast only where no value changes. A batch that
does not cast as a whole is read in halves, down to the row that does not fit, which becomes a dead letter.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from flowstate.plan.spec import ScanSpec
from flowstate.source.records import Refused, complete


def take_columns(
    spec: ScanSpec, split: str, batch: pa.RecordBatch, first: int
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Rows of `batch`, whose first row has offset `first`, with their hidden columns, and the dead letters."""
    schema = spec.schema.remove_metadata()
    pieces: list[pa.RecordBatch] = []
    rows: list[np.ndarray[Any, Any]] = []
    refused: list[Refused] = []
    waiting = [(0, batch.num_rows)]
    while waiting:
        start, end = waiting.pop()
        if start == end:
            continue
        try:
            pieces.append(_cast(batch.slice(start, end - start), schema))
            rows.append(np.arange(start, end, dtype=np.int64))
        except (pa.ArrowException, ValueError) as error:
            if end - start == 1:
                refused.append(Refused(first + start, str(error), row_bytes(batch, start), None))
            else:
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
    if pieces:
        joined = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
        chosen = np.concatenate(rows)
    else:
        joined = pa.RecordBatch.from_arrays([pa.array([], each.type) for each in schema], schema=schema)
        chosen = np.zeros(0, np.int64)
    return complete(spec, split, joined, chosen + first, None, lambda row: row_bytes(batch, int(chosen[row])), refused)


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for each in schema:
        found = batch.schema.get_all_field_indices(each.name)
        if len(found) > 1:
            raise ValueError(f"field {each.name!r} is given twice")
        if not found:
            columns.append(pa.nulls(batch.num_rows, each.type))
            continue
        column = batch.column(found[0])
        if column.type != each.type:
            try:
                column = column.cast(each.type)
            except (pa.ArrowException, ValueError) as error:
                raise ValueError(f"field {each.name!r}: {error}") from None
        columns.append(column)
    # Not `schema`: a null in a required column is for `complete` to refuse, row by row.
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def row_bytes(batch: pa.RecordBatch, row: int) -> bytes:
    """A row as people read it, since a row of a columnar file has no bytes of its own."""
    values = {name: _plain(column[row]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    return json.dumps(values, default=str, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _plain(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (OverflowError, ValueError):  # A time that Python has no object for.
        return str(getattr(value, "value", value.type))
