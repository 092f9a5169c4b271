"""What is done beside the pump, on a small pool: load a saved state, save a frozen one, publish staged output.

A save is the protocol's K1: view -> stage the output -> segment -> manifest that names both -> publish -> the next manifest drops the
name. Whatever of it is still in flight when this incarnation is replaced changes nothing: only the manifest decides.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from flowstate.clock import Clock
from flowstate.errors import CorruptData, Fenced, InvalidFlow
from flowstate.plan.keys import key_groups, owner_of_groups, split_owner
from flowstate.plan.output import StagedOutput
from flowstate.plan.position import NEVER
from flowstate.runtime.committing import Saved, SaveWork
from flowstate.runtime.contents import Contents
from flowstate.runtime.job_spec import JobSpec
from flowstate.sink import Stage, make_sink
from flowstate.snapshot.layout import partition as partition_prefix
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.restore import load_newest
from flowstate.snapshot.saved import SavedSnapshot
from flowstate.snapshot.segment import save_state
from flowstate.store import Store


class Saver:
    """The store's side of one incarnation."""

    def __init__(self, spec: JobSpec, partition: int, epoch: int, store: Store, clock: Clock) -> None:
        self.spec, self.partition, self.epoch, self.store, self.clock = spec, partition, epoch, store, clock
        self.chain = PartitionChain(store, spec.generation, partition)
        self.sinks = [make_sink(each, number) for number, each in enumerate(spec.plan.sinks)]
        self.prefix = partition_prefix(spec.generation, partition)

    def load(self) -> tuple[Manifest, Contents, list[str]]:
        """The newest state that is whole, under the newest hand-over marks (K4), so that no output comes twice; for a partition that has
        none yet, its part of the saved cut that this generation began with. Also what was damaged."""
        contents = self._empty()

        def take(state: SavedState, newest: Manifest, tables: Mapping[str, Iterator[pa.RecordBatch]]) -> None:
            nonlocal contents
            contents = self._empty()  # also of what a damaged state began with
            reached = NEVER if newest.state is None else newest.state.extras.get("reached", NEVER)
            contents.restore(state, newest.handed, tables, reached=reached)

        restored = load_newest(self.chain, take=take)
        if restored is None or restored.manifest.epoch != self.epoch:
            newest = None if restored is None else restored.manifest.epoch
            raise Fenced("a newer run owns this partition", partition=self.partition, epoch=self.epoch, newest=newest)
        if restored.state is not None:
            if restored.version < restored.manifest.version:
                # What the newest says of its end stands for a state that is damaged: it is to be saved again once it is reached again.
                return replace(restored.manifest, ended=False), contents, list(restored.damaged)
        elif self.spec.origin is not None:
            cut = SavedSnapshot.open(self.store, self.spec.origin)
            own = Ownership(self.spec, self.partition)
            for number, manifest in cut.manifests.items():
                assert manifest.state is not None
                contents.restore(manifest.state, manifest.handed, cut.load(number), own.keys, own.split)
        return restored.manifest, contents, list(restored.damaged)

    def _empty(self) -> Contents:
        return Contents(self.spec.plan, self.spec.seed, self.spec.generation << 32 | self.epoch)

    def save(self, work: SaveWork) -> Saved:
        """Commits a manifest."""
        steps = self.steps(work)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                saved: Saved = done.value
                return saved

    def steps(self, work: SaveWork) -> Generator[str, None, Saved]:
        """A save that stops before each durable step and names it: ``stage`` (once for each sink that has something), ``segment``,
        ``manifest``. Whoever runs it may crash there. A sink whose rows cannot be made or staged keeps nothing else from being saved."""
        staged, stalled, handed = list(work.unpublished), dict[int, str](), dict[str, object]()
        for number, due in work.due.items():
            opened = work.open_of(number)
            mark = due.handed
            try:
                rows = due.rows(work.frozen)
                if rows or opened:
                    yield "stage"
                    found = self._prepare(number, work, rows, opened)
                else:
                    found = []
            except (InvalidFlow, CorruptData) as error:
                # What is in no table of the state that is saved here must not wait.
                stalled[number], mark, found = str(error), due.handed_left, list(opened)
                if due.left:
                    yield "stage"
                    found += self._prepare(number, work, due.left, ())
            staged += found
            if mark is not None:
                handed[str(number)] = mark
        if not work.changed and set(staged) == {*work.unpublished, *work.open}:
            return Saved(work.previous, stalled)
        yield "segment"
        state = save_state(
            self.store,
            self.prefix,
            self.epoch,
            work.number,
            {name: view.chunks for name, view in work.frozen.views.items()},
            work.previous.state if work.shares else None,
            work.frozen.marks.dump(),
            dict(work.frozen.extras),
            self.clock.wall() if work.as_of is None else work.as_of,
        )
        ended = work.ended and not staged and not stalled
        manifest = Manifest(work.previous.version + 1, self.epoch, state, tuple(staged), handed, ended=ended)
        yield "manifest"
        return Saved(self.chain.commit(work.previous.version, manifest), stalled)

    def _prepare(
        self, sink: int, work: SaveWork, rows: Sequence[pa.RecordBatch], opened: Sequence[StagedOutput]
    ) -> list[StagedOutput]:
        now = self.clock.wall()
        stage = Stage(self.store, self.prefix, self.partition, self.epoch, work.number, now, work.ended)
        table = pa.Table.from_batches(rows) if rows else None
        return list(self.sinks[sink].prepare(stage, table, opened))

    def publish(self, staged: StagedOutput) -> int:
        """Idempotent by name. How many rows the other side refused for good."""
        return self.sinks[staged.sink].publish(self.store, staged)

    def close(self) -> None:
        for each in self.sinks:
            each.close()


class Ownership:
    """Which saved rows are a partition's own when the number of partitions has changed."""

    def __init__(self, spec: JobSpec, partition: int) -> None:
        self.spec, self.partition = spec, partition

    def keys(self, hashes: np.ndarray) -> np.ndarray:
        groups = key_groups(hashes, self.spec.key_groups)
        return np.asarray(owner_of_groups(groups, self.spec.key_groups, self.spec.partitions) == self.partition)

    def split(self, split: str) -> bool:
        return split_owner(split, self.spec.seed, self.spec.key_groups, self.spec.partitions) == self.partition
