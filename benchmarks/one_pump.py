"""One real pump in this process: real source, machine, state, store and snapshots; only Dask and the network are left out."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowstate.clock import SystemClock
from flowstate.plan.compile import compile as compile_plan
from flowstate.runtime.aside import aside_pool
from flowstate.runtime.beginning import begin
from flowstate.runtime.contents import Frozen
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.link import LocalPort, Port
from flowstate.runtime.pump import Pump
from flowstate.runtime.saving import Saver
from flowstate.runtime.serving import ServedPartition
from flowstate.runtime.table import ReaderOf, Table
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecords
from flowstate.store import Store


@dataclass
class OnePump:
    """`outputs` as one partition. `blocks` are (start, end, rows) of every apply, in seconds of the monotonic clock."""

    outputs: list[Any]
    folder: Path
    every: float = 1e9
    blocks: list[tuple[float, float, int]] = field(default_factory=list)

    def __enter__(self) -> OnePump:
        clock = SystemClock()
        plan = compile_plan([each.node for each in self.outputs])
        asked = JobSpec("bench", plan, str(self.folder), partitions=1, every=self.every)
        beginning = begin(asked, clock)
        spec, splits = beginning.spec, beginning.splits
        store = Store.open(spec.snapshots)
        records = SplitRecords(store)
        epoch = PartitionChain(store, spec.generation, 0).claim().epoch
        readers = {split: ReaderOf(records.raise_epoch(split).reader_epoch, 0) for split in splits}
        self.live = threading.Event()
        self.ended = threading.Event()
        self.pool = aside_pool()
        self.pump = Pump(spec, 0, epoch, Saver(spec, 0, epoch, store, clock), records, self, self.pool, clock)
        self.served = ServedPartition(self.pump, clock)
        self._port = LocalPort(self.pump, lambda reader: self.pump)
        self.clock = clock
        self.pump.start()
        assert self.live.wait(120), self.pump.reason
        self._watch()
        self.pump.hear(Table(2, readers, {0: epoch}, {0: ""}, splits))
        return self

    def __exit__(self, *exception: object) -> None:
        self.pump.stop()
        self.pump.join(10)
        self.pool.shutdown()

    def _watch(self) -> None:
        contents = self.pump._contents
        apply = contents.apply

        def timed(split: str, batch: Any) -> bool:
            begun = self.clock.monotonic()
            done = apply(split, batch)
            self.blocks.append((begun, self.clock.monotonic(), batch.count))
            return done

        contents.apply = timed  # type: ignore[method-assign]

    # what the pump needs of its surroundings

    def port(self, pump: Pump, location: str | None) -> Port:
        return self._port

    def report(self, pump: Pump, *, urgent: bool = False) -> None:
        if pump.state in ("live", "failed"):
            self.live.set()
        if pump.state in ("ended", "failed", "fenced"):
            self.live.set()
            self.ended.set()

    def keep_cut(self, pump: Pump, cut: int, frozen: Frozen) -> None:
        frozen.release()
