"""What is done beside the pump, on a small pool: load a saved state, save a frozen one, publish staged output.

A save is the protocol's K1: view -> stage the output -> segment -> manifest that names both -> publish -> the next manifest drops the
name. Whatever of it is still in flight when this incarnation is replaced changes nothing: only the manifest decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from flowstate.clock import Clock
from flowstate.errors import Fenced, FlowstateError
from flowstate.plan.keys import key_groups, owner_of_groups, split_owner
from flowstate.plan.position import NEVER
from flowstate.runtime.contents import Contents, Due, Frozen
from flowstate.runtime.job_spec import JobSpec
from flowstate.sink.files import ParquetSink
from flowstate.snapshot.layout import partition as partition_prefix
from flowstate.snapshot.manifest import Manifest, StagedOutput
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.restore import load_newest
from flowstate.snapshot.saved import SavedSnapshot
from flowstate.snapshot.segment import save_state
from flowstate.store import Store


@dataclass(frozen=True)
class SaveWork:
    """One save. `number` is unique in this incarnation; `cut` is set when the frozen state is that of a cut."""

    number: int
    frozen: Frozen
    due: Mapping[int, Due]
    handed: Mapping[int, int]
    unpublished: tuple[StagedOutput, ...]
    previous: Manifest
    shares: bool  # whether `previous` was saved by this incarnation, so that unchanged chunks can be shared with it
    ended: bool
    cut: int | None


@dataclass(frozen=True)
class Saved:
    """`manifest` is None if a newer incarnation owns the partition. `stalled`: sinks whose rows could not be made, and why."""

    manifest: Manifest | None
    stalled: Mapping[int, str]


class Saver:
    """The store's side of one incarnation."""

    def __init__(self, spec: JobSpec, partition: int, epoch: int, store: Store, clock: Clock) -> None:
        self.spec, self.partition, self.epoch, self.store, self.clock = spec, partition, epoch, store, clock
        self.chain = PartitionChain(store, spec.generation, partition)
        self.sinks = [ParquetSink(each, sink=number) for number, each in enumerate(spec.plan.sinks)]
        self.prefix = partition_prefix(spec.generation, partition)

    def load(self) -> tuple[Manifest, Contents, list[str]]:
        """The newest state that is whole, under the newest hand-over marks (K4), so that no output comes twice; for a partition that has
        none yet, its part of the saved cut that this generation began with. Also what was damaged."""
        restored = load_newest(self.chain)
        if restored is None or restored.manifest.epoch != self.epoch:
            newest = None if restored is None else restored.manifest.epoch
            raise Fenced("a newer run owns this partition", partition=self.partition, epoch=self.epoch, newest=newest)
        contents = Contents(self.spec.plan, self.spec.seed)
        if restored.state is not None:
            contents.restore(restored.state, restored.manifest.handed, restored.tables)
            if restored.damaged and restored.manifest.state is not None:
                reached = restored.manifest.state.extras.get(
                    "reached", NEVER
                )  # what was acted upon, also under an older state
                contents.marks.reached = max(contents.marks.reached, reached)
        elif self.spec.origin is not None:
            cut = SavedSnapshot.open(self.store, self.spec.origin)
            own = Ownership(self.spec, self.partition)
            for number, manifest in cut.manifests.items():
                assert manifest.state is not None
                contents.restore(manifest.state, manifest.handed, cut.load(number), own.keys, own.split)
        return restored.manifest, contents, list(restored.damaged)

    def save(self, work: SaveWork) -> Saved:
        """Commits a manifest. A sink whose rows do not fit their types keeps nothing else from being saved: it stays where it was."""
        staged, handed, stalled = list(work.unpublished), dict(work.handed), dict[int, str]()
        for sink, due in work.due.items():
            try:
                rows = due.rows(work.frozen)
            except FlowstateError as error:
                # The windows of the outbox have left the state that is saved here, so their rows must not wait.
                stalled[sink], handed[sink], rows = str(error), due.after, list(due.outbox)
            if rows:
                table = pa.Table.from_batches(rows)
                staged += self.sinks[sink].prepare(
                    self.store, self.prefix, self.partition, self.epoch, work.number, table
                )
        state = save_state(
            self.store,
            self.prefix,
            self.epoch,
            work.number,
            {name: view.chunks for name, view in work.frozen.views.items()},
            work.previous.state if work.shares else None,
            work.frozen.marks.dump(),
            dict(work.frozen.extras),
            self.clock.wall(),
        )
        manifest = Manifest(
            work.previous.version + 1,
            self.epoch,
            state,
            tuple(staged),
            {str(sink): watermark for sink, watermark in handed.items()},
            ended=work.ended and not staged and not stalled,
        )
        return Saved(self.chain.commit(work.previous.version, manifest), stalled)

    def publish(self, staged: StagedOutput) -> None:
        """Idempotent by name."""
        self.sinks[staged.sink].publish(self.store, staged)


class Ownership:
    """Which saved rows are a partition's own when the number of partitions has changed."""

    def __init__(self, spec: JobSpec, partition: int) -> None:
        self.spec, self.partition = spec, partition

    def keys(self, hashes: np.ndarray) -> np.ndarray:
        groups = key_groups(hashes, self.spec.key_groups)
        return np.asarray(owner_of_groups(groups, self.spec.key_groups, self.spec.partitions) == self.partition)

    def split(self, split: str) -> bool:
        return split_owner(split, self.spec.seed, self.spec.key_groups, self.spec.partitions) == self.partition
