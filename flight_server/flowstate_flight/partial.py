"""A question that every partition answers from its own rows, so that only what comes of it travels.

Who answers it is handed in: this package knows a question as text only. The rows that it is about are those of the ticket that carries it:
with the columns, the filter and the freshness of that, and as far as the asker may see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

#: (schema, rows, text) -> the schema and the batches of the answer. Raises InvalidFlow for a text that it cannot answer.
PartialHandler = Callable[[pa.Schema, Iterator[pa.RecordBatch], str], tuple[pa.Schema, Iterator[pa.RecordBatch]]]


@dataclass(frozen=True)
class Partial:
    """`handler` answers for partitions that are read from what was saved; for others their worker's does. `schema` is the answer's."""

    text: str
    schema: pa.Schema
    handler: PartialHandler
