"""Partial queries in workers: handed to them by `start`, since `runtime` knows no SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa


def answer_partial(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], text: str, keys: Sequence[str]
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """`flowstate_sql.partial.answer_partial`; DuckDB is loaded by the first query, not by every worker as it begins."""
    from flowstate_sql import partial

    return partial.answer_partial(schema, batches, text, keys)
