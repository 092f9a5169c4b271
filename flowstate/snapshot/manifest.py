"""A partition's saved state, as its manifest chain names it.

`Manifest` is one entry of the chain ``g<generation>/p<partition>/chain``. `state` is None in an entry that only raises the epoch
before anything was saved. An entry that raises the epoch repeats the state, staged output and hand-over marks of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowstate.errors import InvalidFlow
from flowstate.plan.output import StagedOutput

__all__ = ["ChunkRef", "Manifest", "SavedState", "StagedOutput"]

SCHEMA = 1


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
    segments: Mapping[str, int] = field(default_factory=dict)  # rows written in each segment that is referred to

    def dump(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "marks": {split: list(mark) for split, mark in self.marks.items()},
            "tables": {
                table: [
                    [each.id, each.version, each.segment, each.start, each.length, each.index, each.rows, each.checksum]
                    for each in chunks
                ]
                for table, chunks in self.tables.items()
            },
            "extras": dict(self.extras),
            "as_of": self.as_of,
            "segments": dict(self.segments),
        }

    @staticmethod
    def parse(data: Mapping[str, Any]) -> SavedState:
        """The inverse of `dump`."""
        return SavedState(
            data["marks"],
            {table: tuple(ChunkRef(*each) for each in chunks) for table, chunks in data["tables"].items()},
            data["extras"],
            data["as_of"],
            data["segments"],
        )


@dataclass(frozen=True)
class Manifest:
    """`version` is the entry's number in the chain. `staged` is output that is not yet known to be published, or still open.

    `handed` is what output was handed over to sinks, per sink (its number as text; without an entry: nothing yet). Final rows: a watermark,
    up to which windows are handed over, or, of a sink that stood still, ``{"watermark": ..., "windows": [end, ...]}`` with windows after it
    that were handed over because they left the state. Append tables: split -> last offset. Changes: the epoch of their rows; up to which
    revisions is said by the saved state itself.
    """

    version: int
    epoch: int
    state: SavedState | None = None
    staged: tuple[StagedOutput, ...] = ()
    handed: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA  # version of this format
    ended: bool = False  # all splits ended and everything is handed over

    def dump(self) -> dict[str, Any]:
        """Plain data for JSON; `version` is the entry's own number and not part of it."""
        return {
            "schema": self.schema,
            "epoch": self.epoch,
            "state": None if self.state is None else self.state.dump(),
            "staged": [
                [each.sink, each.path, each.target, each.rows, each.checksum, each.bytes, each.since]
                for each in self.staged
            ],
            "handed": dict(self.handed),
            "ended": self.ended,
        }

    @staticmethod
    def parse(version: int, data: Mapping[str, Any]) -> Manifest:
        """The inverse of `dump`; `version` is the number of the entry that held it."""
        if data["schema"] != SCHEMA:
            message = "this snapshot was written by another version of flowstate; read it with that one"
            raise InvalidFlow(message, schema=data["schema"], known=SCHEMA)
        return Manifest(
            version,
            data["epoch"],
            None if data["state"] is None else SavedState.parse(data["state"]),
            tuple(StagedOutput(*each) for each in data["staged"]),
            data["handed"],
            data["schema"],
            data["ended"],
        )
