"""Output on its way out: what a sink staged, and a manifest names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StagedOutput:
    """Output of sink number `sink`: object `path` in the snapshot store, with `rows` rows and `bytes` bytes, staged at `since` (Unix time).

    `target` is the name that the sink publishes it under; an empty one is *open*: rows that wait for a file to be full (`Sink.prepare`).
    """

    sink: int
    path: str
    target: str
    rows: int
    checksum: str
    bytes: int = 0
    since: float = 0.0

    @property
    def open(self) -> bool:
        return not self.target
