"""One real partition in this process: real source, pump, state, store and Flight service; only Dask is left out.

It follows a log of JSON lines that a test appends to, and makes cuts as the supervisor has it do.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from waiting import until

import flowstate as fs
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
from flowstate.runtime.stored import view_info
from flowstate.runtime.table import ReaderOf, Table
from flowstate.snapshot.cut import SavedCut, save_cut
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecords
from flowstate.store import Store
from flowstate.view.directory import Directory, PartitionInfo
from flowstate_flight import FlightReader, FlightService

JOB, VIEW = "one", "totals"
ROWS = (("anna", 1), ("bert", 2))
SCHEMA = pa.schema({"customer": pa.string(), "amount": pa.int64()})


class OnePartition:
    """Serves ``totals`` (per customer: total, events) of ``folder/log.jsonl``. `cuts` are the numbers of those that it took."""

    def __init__(self, folder: Path, rows: Iterable[tuple[str, int]] = ROWS, *, every: float = 1e9) -> None:
        self.log = folder / "log.jsonl"
        self.written = 0  # bytes, which are offsets
        self.append(rows)
        events = fs.scan_files(str(folder / "*.jsonl"), schema=SCHEMA, follow=True)
        view = events.group_by("customer").agg(total=fs.col("amount").sum(), events=fs.len()).view(VIEW)
        self.clock, self.cuts = SystemClock(), list[int]()
        self.url = str(folder / "snapshots")
        asked = JobSpec(JOB, compile_plan([view.node]), self.url, partitions=1, every=every)
        beginning = begin(asked, self.clock)
        spec = self.spec = beginning.spec
        self.store = Store.open(spec.snapshots)
        records = SplitRecords(self.store)
        epoch = PartitionChain(self.store, spec.generation, 0).claim().epoch
        readers = {split: ReaderOf(records.raise_epoch(split).reader_epoch, 0) for split in beginning.splits}
        [self.split] = beginning.splits
        self._up, self._cutting = threading.Event(), threading.Lock()
        self.pool = aside_pool()
        saver = Saver(spec, 0, epoch, self.store, self.clock)
        self.pump = Pump(spec, 0, epoch, saver, records, self, self.pool, self.clock)
        self.served = ServedPartition(self.pump, self.clock)
        self._port = LocalPort(self.pump, lambda reader: self.pump)
        self.pump.start()
        assert self._up.wait(120), self.pump.reason
        self.table = Table(2, readers, {0: epoch}, {0: ""}, beginning.splits)
        self.pump.hear(self.table)
        self.service = FlightService()
        self.service.register(self.served)
        views = {name: view_info(name, each, each.schema) for name, each in spec.plan.views.items()}
        places = (PartitionInfo(0, self.served.epoch, self.service.location),)
        self.directory = Directory(JOB, 1, spec.seed, spec.key_groups, views, places)
        self.service.set_directory(self.directory)
        self.service.set_cut_handler(self.make_cut)

    def append(self, rows: Iterable[tuple[str, int]]) -> int:
        """Write rows; the offset after the last one, which is what whoever wrote it asks for."""
        text = "".join(json.dumps({"customer": name, "amount": amount}) + "\n" for name, amount in rows)
        with self.log.open("a") as log:
            log.write(text)
        self.written += len(text)
        return self.written

    def applied(self) -> int:
        place = self.pump._contents.marks.position.get(self.split)
        return place.offset if place is not None else 0

    def wait_applied(self) -> None:
        until(lambda: self.applied() >= self.written, says=lambda: (self.applied(), self.written, self.pump.reason))

    def make_cut(self, job: str = JOB, timeout: float = 10.0) -> dict[str, Any]:
        """As the supervisor does: a table with the next cut, which the partition takes."""
        with self._cutting:
            number = self.table.cut + 1
            self.table = replace(self.table, version=self.table.version + 1, cut=number, closed=number - 1)
            self.pump.hear(self.table)
            until(lambda: self.pump.cut.get("cut") == number, pause=0.001)
            return {**self.pump.cut, "epochs": [[0, self.served.epoch]]}

    def save_cut(self, number: int) -> None:
        """What was saved last, as a saved cut."""
        manifest = next(PartitionChain(self.store, self.spec.generation, 0).saved())
        assert isinstance(manifest, Manifest)
        assert manifest.state is not None
        assert save_cut(self.store, SavedCut(number, self.spec.generation, {0: manifest.version}, {}))

    def reader(self, **options: Any) -> FlightReader:
        return FlightReader(lambda: self.directory, **options)

    def stop(self) -> None:
        self.pump.stop()
        assert self.pump.join(10)
        self.served.release()

    def __enter__(self) -> OnePartition:
        return self

    def __exit__(self, *exception: object) -> None:
        self.service.close()
        self.stop()
        self.pool.shutdown()

    # what the pump needs of its surroundings

    def port(self, pump: Pump, location: str | None) -> Port:
        return self._port

    def report(self, pump: Pump, *, urgent: bool = False) -> None:
        if pump.state != "loading":
            self._up.set()

    def keep_cut(self, pump: Pump, cut: int, frozen: Frozen) -> None:
        self.cuts.append(cut)
        self.served.keep_cut(cut, frozen)
