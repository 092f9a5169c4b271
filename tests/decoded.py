"""Batches that two readers decoded, made comparable."""

from __future__ import annotations

import pyarrow as pa


def shown(batch: pa.RecordBatch) -> list[str]:
    """Values as text, in which -0.0 is not 0.0. Python has no dates beyond the year 9999, so times are numbers."""
    columns = []
    for each in batch.columns:
        if pa.types.is_temporal(each.type):
            each = each.view(pa.int64() if each.type.bit_width == 64 else pa.int32())
        columns.append(repr(each.to_pylist()))
    return columns
