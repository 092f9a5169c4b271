"""A partition's saved state, as its manifest chain names it.

`Manifest` is one entry of the chain ``g<generation>/p<partition>/chain``. `state` is None in an entry that only raises the epoch
before anything was saved. An entry that raises the epoch repeats the state, staged output and hand-over marks of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ChunkRef:
    """Where a chunk of a table's state is stored: batch `index` of the IPC stream at ``[start, start + length)`` of a segment."""

    id: int
    version: int
    segment: str
    start: int
    length: int
    index: int
    rows: int
    checksum: str  # of the IPC stream's bytes


@dataclass(frozen=True)
class SavedState:
    """State and position, saved together (S2). `marks` is `Watermarks.dump()`; `tables` maps a table to its chunks;
    `extras` holds small per-table data (an append table's exact count)."""

    marks: Mapping[str, list[int]]
    tables: Mapping[str, tuple[ChunkRef, ...]]
    extras: Mapping[str, Any] = field(default_factory=dict)
    as_of: float = 0.0  # Unix time


@dataclass(frozen=True)
class StagedOutput:
    """Output of a sink that waits to be published: `path` in the store, `target` name that the sink publishes it under."""

    sink: int
    path: str
    target: str
    rows: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """`version` is the entry's number in the chain. `handed` is what output was handed over to sinks: per sink a watermark."""

    version: int
    epoch: int
    state: SavedState | None = None
    staged: tuple[StagedOutput, ...] = ()
    handed: Mapping[str, int] = field(default_factory=dict)
    schema: int = 1  # version of this format
    ended: bool = False  # all splits ended and everything is handed over
