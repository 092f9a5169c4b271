"""A question that every partition answers from its own rows, so that only what comes of it travels.

Who answers it is handed in: this package knows a question as text only. The rows that it is about are those of the ticket that carries it:
with the columns, the filter and the freshness of that, and as far as the asker may see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from flowstate.view.directory import ViewInfo

#: (schema, rows, text, keys) -> the schema and the batches of the answer. Raises InvalidFlow for a text that it cannot answer. `keys` are
#: columns whose arrays scans give again as long as a chunk gets no more rows; none where rows have been chosen from what a scan gave.
PartialHandler = Callable[
    [pa.Schema, Iterator[pa.RecordBatch], str, Sequence[str]], tuple[pa.Schema, Iterator[pa.RecordBatch]]
]


@dataclass(frozen=True)
class Partial:
    """`handler` answers for partitions that are read from what was saved; for others their worker's does. `schema` is the answer's."""

    text: str
    schema: pa.Schema
    handler: PartialHandler


def given_again(view: ViewInfo, schema: pa.Schema) -> Sequence[str]:
    """The columns of `schema` whose arrays scans of `view` give again: those of its key. Those of a window are made by each."""
    keys = view.keys if view.window is None else view.keys[:-2]
    return [name for name in schema.names if name in keys]
