"""Output on its way out: what a sink staged, and a manifest names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StagedOutput:
    """Output of a sink that waits to be published: `path` in the store, `target` name that the sink publishes it under."""

    sink: int
    path: str
    target: str
    rows: int
    checksum: str
