"""Loading a partition's state, also when part of it is damaged (protocol K4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from flowstate.errors import CorruptData
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.segment import load_tables, stream_tables

#: Takes in a state, under the newest manifest, from its batches as they are read.
Take = Callable[[SavedState, Manifest, Mapping[str, Iterator[pa.RecordBatch]]], None]


@dataclass(frozen=True)
class Restored:
    """`manifest` is the newest: its epoch, staged output and hand-over marks stand. `state` is the newest that could be loaded, of the
    manifest `version`; None when nothing was ever saved. If it is older than the newest's (`damaged` says why), output at or below
    `manifest.handed` must be suppressed while the log is read again. `damaged` also names what a copy stood in for."""

    manifest: Manifest
    version: int
    state: SavedState | None
    tables: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()


def load_newest(chain: PartitionChain, names: Iterable[str] | None = None, take: Take | None = None) -> Restored | None:
    """The newest state whose bytes are what was written; None for a partition that never was.

    With `take`, memory never holds all batches, and `tables` stays empty. It is called again, with an older state, when damage is met among
    the batches; what it has made until then is nothing any more.

    CorruptData when the newest manifest and its copy are damaged (what was handed over is unknown then), or when no state can be loaded.
    """
    newest = chain.load()
    if newest is None:
        return None
    damaged = chain.damage()
    if newest.state is None:
        return Restored(newest, newest.version, None, damaged=tuple(damaged))
    wanted = None if names is None else list(names)
    tried: list[SavedState] = []
    for manifest in chain.saved():
        if isinstance(manifest, CorruptData):
            damaged.append(str(manifest))
            continue
        if manifest.version > newest.version or manifest.state is None or manifest.state in tried:
            continue
        try:
            tables = {}
            if take is None:
                tables = load_tables(chain.store, manifest.state, wanted)
            else:
                take(manifest.state, newest, stream_tables(chain.store, manifest.state))
            return Restored(newest, manifest.version, manifest.state, tables, tuple(damaged))
        except CorruptData as damage:
            damaged.append(str(damage))
            tried.append(manifest.state)
    raise CorruptData(
        "no saved state of a partition is whole; restore the snapshot folder from a backup, or start anew from the log",
        partition=chain.partition,
        damaged=damaged,
    )
