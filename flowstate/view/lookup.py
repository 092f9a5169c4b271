"""A lookup by what a person gives: the plain keys, or with the window's start, without its end."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.plan.spec import TableSpec


def with_window_end(spec: TableSpec, keys: pa.RecordBatch) -> pa.RecordBatch:
    """`keys` as they are, or, if they go as far as the window's start, with the end that follows from it. A start at which no window
    begins names nothing, and is left out."""
    if spec.window is None or keys.num_columns != len(spec.keys) + 1:
        return keys
    given = keys.column(keys.num_columns - 1).cast(spec.time_type)
    starts, ends = spec.window.assign(given)
    whole = pa.RecordBatch.from_arrays([*keys.columns[:-1], given, ends], schema=spec.key_schema)
    return whole.filter(pc.fill_null(pc.equal(starts, given), False))
