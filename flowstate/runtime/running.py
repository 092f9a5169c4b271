"""One job on the scheduler: the coordinator, and what carries out its instructions. Runs on the scheduler's event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle
from distributed import Client, Scheduler, Status

from flowstate.clock import Clock
from flowstate.errors import Fenced, FlowstateError
from flowstate.runtime.actor import PartitionActor
from flowstate.runtime.beginning import Beginning, announce
from flowstate.runtime.coordinator import (
    Claim,
    Coordinator,
    Create,
    CutDone,
    CutFailed,
    Discard,
    Instruction,
    RaiseReader,
    Tell,
)
from flowstate.runtime.cuts import Cuts
from flowstate.runtime.journal import Journal
from flowstate.runtime.overview import overview
from flowstate.runtime.stored import view_info
from flowstate.runtime.table import SplitEntry
from flowstate.snapshot.beacon import Beacon
from flowstate.snapshot.cut import SavedCut, cut_numbers, save_cut
from flowstate.snapshot.job_record import JobChain
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecords
from flowstate.snapshot.retention import retain
from flowstate.store import Store
from flowstate.view.directory import Directory, PartitionInfo

TICK = 0.1
BEACON = 0.25  # seconds between two announcements of where the job is
LAST = 1.0  # seconds between two attempts at a cut of everything, once the input has come to its end
FENCE = 2.0  # seconds between two looks whether a newer run has begun
logger = logging.getLogger("flowstate")


class RunningJob:
    """From its start on the cluster to its end. `state`: running, finished, stopping, stopped, fenced."""

    def __init__(self, beginning: Beginning, scheduler: Scheduler, client: Client, clock: Clock) -> None:
        spec = beginning.spec
        self.spec, self.scheduler, self.client, self.clock = spec, scheduler, client, clock
        self.store = Store.open(spec.snapshots, **spec.storage_options)
        self.records = SplitRecords(self.store)
        self.coordinator = Coordinator(spec.partitions, beginning.splits, spill=spec.spill)
        self.new = dict(beginning.new)
        self._discovery = beginning.discovery
        self.state, self.problems = "running", dict[str, str]()
        self.journal = Journal(clock)
        self.figures: dict[str, Any] = {}  # what a dashboard, if there is one, knows beyond the reports; msgpack-able
        self.journal.note("began", f"run {spec.run} began, with {spec.partitions} partitions")
        if beginning.drained:
            self.problems["drained"] = (
                "drain() has ended these splits for good, rows that came later are not read; to go on, start a job with another "
                f"snapshots folder: {', '.join(beginning.drained)}"
            )
        self.actors: dict[tuple[int, int], Any] = {}
        self._pickled = cloudpickle.dumps(spec)
        self.cuts = Cuts(spec.name, self.coordinator, clock, self._tell)
        self.saved_cut: dict[str, Any] = {}
        self._complete = False  # whether a cut was saved since the input came to its end
        self._tasks: set[asyncio.Task[Any]] = set()
        self._next_cut = clock.monotonic() + spec.every
        self._next_retention = clock.monotonic() + max(2.0, spec.every)
        self._next_discovery = clock.monotonic() + spec.discover
        self._next_beacon, self._announced = 0.0, tuple[PartitionInfo, ...]()
        self._next_fence = clock.monotonic() + FENCE
        self._busy: set[str] = set()
        self._views = {name: view_info(name, each, each.schema) for name, each in spec.plan.views.items()}
        self._spawn(self._tick_always())

    # events from outside

    def worker_joined(self, address: str, location: str) -> None:
        self._carry_out(self.coordinator.worker_joined(address, location, self.clock.monotonic()))

    def worker_warm(self, address: str) -> None:
        self.coordinator.worker_warm(address)

    def worker_lost(self, address: str, reason: str) -> None:
        for member in self.coordinator.members.values():
            if member.worker == address:
                self._release(member.number, member.epoch)
        self._carry_out(self.coordinator.worker_lost(address, self.clock.monotonic(), reason))

    def reported(self, worker: str, report: Mapping[str, Any]) -> None:
        partition, epoch = report["partition"], report["epoch"]
        self._carry_out(self.coordinator.reported(partition, epoch, report, self.clock.monotonic()))
        if report.get("table", self.coordinator.table.version) < self.coordinator.table.version:
            self._tell([worker])
        if self.coordinator.finished and not self.new and self.state == "running":
            self.state, self._next_cut = "finished", self.clock.monotonic()
            self.journal.note("finished", "everything is read to its end")

    # requests

    def drain(self) -> None:
        self._carry_out(self.coordinator.drain())

    async def stop(self, *, snapshot: bool = True, timeout: float = 15.0) -> None:
        """A last saved cut, so that any number of partitions can go on from it; then every actor is gone."""
        if self.state in ("stopped", "fenced"):
            return
        self.state = "stopping"
        self._carry_out(self.coordinator.stop())
        if snapshot and self.coordinator.table.splits:
            try:
                await self._save_cut(timeout)
            except FlowstateError as error:
                self.problems["stop"] = f"the last snapshot is not a cut: {error}"
        await self._end("stopped")

    async def fenced_by(self, newest: int) -> None:
        """Another run took over, on this cluster."""
        self.problems["job"] = str(Fenced("a newer run of this job has taken over", run=self.spec.run, newest=newest))
        await self._end("fenced")

    async def _end(self, state: str) -> None:
        if self.state in ("stopped", "fenced"):
            return
        self.state = state
        self.journal.note("ended", f"the job was {state}")
        addresses = list(self.coordinator.workers)
        drop = {"job": self.spec.name, "run": self.spec.run}
        await asyncio.gather(*(self._ask(each, "flowstate_drop_job", **drop) for each in addresses))
        for future in self.actors.values():
            future.release()
        self.actors.clear()
        self.cuts.close()
        current = asyncio.current_task()
        for task in list(self._tasks):
            if task is not current:
                task.cancel()

    # instructions

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        if instructions:
            self.journal.look(self.coordinator.members.values())
        for each in instructions:
            match each:
                case Claim():
                    self._spawn(self._claim(each))
                case Create():
                    self._spawn(self._create(each))
                case Discard():
                    self._spawn(
                        self._ask(
                            each.worker,
                            "flowstate_discard",
                            job=self.spec.name,
                            run=self.spec.run,
                            partition=each.partition,
                            epoch=each.epoch,
                        )
                    )
                    self._release(each.partition, each.epoch)
                case RaiseReader():
                    self._spawn(self._raise_reader(each))
                case Tell():
                    self._tell()
                case CutDone() | CutFailed():
                    self.cuts.happened(each)

    def _release(self, partition: int, epoch: int) -> None:
        """Dask forgets the actor; one that is pinned to a worker that is gone would wait there for ever."""
        if (future := self.actors.pop((partition, epoch), None)) is not None:
            future.release()

    async def _claim(self, claim: Claim) -> None:
        try:
            epoch = await asyncio.to_thread(self._claim_epoch, claim.partition)
        except Fenced as error:
            self.problems["job"] = str(error)
            await self._end("fenced")
        except FlowstateError as error:
            self.coordinator.claim_failed(claim.partition, str(error), self.clock.monotonic())
        else:
            self._carry_out(self.coordinator.claimed(claim.partition, epoch, self.clock.monotonic()))

    def _claim_epoch(self, partition: int) -> int:
        JobChain(self.store).check(self.spec.run)
        chain = PartitionChain(self.store, self.spec.generation, partition)
        epoch = chain.claim(outputs=bool(self.spec.plan.sinks)).epoch
        # Again: a run that began in between owns the partition, and an incarnation of ours above its epoch would save by an old table.
        JobChain(self.store).check(self.spec.run)
        return epoch

    async def _create(self, create: Create) -> None:
        key = f"flowstate-{self.spec.name}-r{self.spec.run}-p{create.partition}-e{create.epoch}"
        try:
            rpc = self.scheduler.rpc(create.worker)
            await asyncio.wait_for(
                rpc.flowstate_prepare(job=self.spec.name, run=self.spec.run, spec=self._pickled), 30.0
            )
            future = self.client.submit(
                PartitionActor,
                self.spec.name,
                self.spec.run,
                create.partition,
                create.epoch,
                key=key,
                workers=[create.worker],
                allow_other_workers=False,
                actor=True,
                pure=False,
            )
            self.actors[create.partition, create.epoch] = future
            await asyncio.wait_for(future, 60.0)
        except Exception as error:
            reason = f"the actor could not be created: {type(error).__name__}: {error}"
            self._release(create.partition, create.epoch)
            now = self.clock.monotonic()
            self._carry_out(self.coordinator.create_failed(create.partition, create.epoch, reason, now))

    async def _raise_reader(self, request: RaiseReader) -> None:
        entry = self.coordinator.table.splits[request.split]
        try:
            epoch = await asyncio.to_thread(self._raise_epoch, request, entry)
        except Fenced as error:
            self.problems["job"] = str(error)
            await self._end("fenced")
        except FlowstateError as error:
            self.problems[request.split] = str(error)
            self._carry_out(self.coordinator.raise_failed(request.split, self.clock.monotonic()))
        else:
            self.problems.pop(request.split, None)
            now = self.clock.monotonic()
            self._carry_out(self.coordinator.reader_raised(request.split, request.partition, epoch, now))

    def _raise_epoch(self, request: RaiseReader, entry: SplitEntry) -> int:
        JobChain(self.store).check(
            self.spec.run
        )  # a run that was replaced must not record a floor from what it last heard
        return self.records.raise_epoch(
            request.split, end=entry.end, label=entry.label, hint=entry.hint, floor=request.floor, run=self.spec.run
        ).reader_epoch

    def _tell(self, addresses: list[str] | None = None) -> None:
        table, directory = self.coordinator.table.dump(), self.directory().to_json()
        heard = {"job": self.spec.name, "run": self.spec.run, "table": table, "directory": directory}
        for address in addresses or list(self.coordinator.workers):
            self._spawn(self._ask(address, "flowstate_hear", **heard))

    async def _ask(self, address: str, operation: str, **arguments: Any) -> Any:
        """A call to a worker. Whether it arrives is not relied on: tables are sent again, epochs fence."""
        try:
            return await asyncio.wait_for(getattr(self.scheduler.rpc(address), operation)(**arguments), 10.0)
        except Exception:  # the worker went away: Dask tells us so by itself
            return None

    # time

    async def _tick_always(self) -> None:
        while self.state in ("running", "finished", "stopping"):
            now = self.clock.monotonic()
            self._carry_out(self.coordinator.tick(now))
            if self.new and self.coordinator.all_live:
                new, self.new = self.new, {}
                self._carry_out(self.coordinator.splits_found(new, now))
            saves = self.state == "running" or (self.state == "finished" and not self._complete)
            if (
                saves and self.coordinator.all_live and now >= self._next_cut
            ):  # that one is not live is told as what it is
                self._next_cut = now + (LAST if self.state == "finished" else self.spec.every)
                self._once("cut", self._save_cut(min(5.0, max(1.0, self.spec.every))))
            if self.state == "running":
                if now >= self._next_retention:
                    self._next_retention = now + max(2.0, self.spec.every)
                    self._once("retention", self._retain())
                if self._discovery.follows and now >= self._next_discovery and not self.coordinator.table.draining:
                    self._next_discovery = now + self.spec.discover
                    self._once("discovery", self._discover())
            if now >= self._next_fence:
                self._next_fence = now + FENCE
                self._once("fence", self._look_for_newer_run())
            if now >= self._next_beacon and (directory := self.directory()).partitions != self._announced:
                self._next_beacon = now + BEACON
                self._once("beacon", self._announce(directory))
            await asyncio.sleep(TICK)

    def _once(self, name: str, work: Any) -> None:
        """Unless the last one is still at it."""
        if name in self._busy:
            work.close()
            return

        async def run() -> None:
            try:
                await work
                self.problems.pop(name, None)
            except Fenced as error:
                self.problems["job"] = str(error)
                self._spawn(self._end("fenced"))
            except Exception as error:
                self.problems[name] = (
                    str(error) if isinstance(error, FlowstateError) else f"{type(error).__name__}: {error}"
                )
            finally:
                self._busy.discard(name)

        self._busy.add(name)
        self._spawn(run())

    async def _save_cut(self, timeout: float) -> None:
        """All partitions save at one position; retention follows. A cut that fails keeps no partition from saving by itself."""
        if not self.coordinator.table.splits:
            return
        finished = self.state == "finished"
        done = await self.cuts.make(timeout, saves=True)
        number = await asyncio.to_thread(self._write_cut, done)
        self.saved_cut = {"number": number, "at": self.clock.wall()}
        self._complete = self._complete or finished

    async def _announce(self, directory: Directory) -> None:
        """Where the job is, for those who know only its snapshots. A run that was replaced says nothing more."""

        def write() -> None:
            JobChain(self.store).check(self.spec.run)
            Beacon(self.store).announce(directory.to_json())

        await asyncio.to_thread(write)
        self._announced = directory.partitions

    async def _look_for_newer_run(self) -> None:
        """A run without a partition to claim would not notice that another has begun."""
        await asyncio.to_thread(JobChain(self.store).check, self.spec.run)

    async def _retain(self) -> None:
        await asyncio.to_thread(retain, self.store, self.spec.generation, range(self.spec.partitions), self.spec.keep)

    def _write_cut(self, done: CutDone) -> int:
        number = max(cut_numbers(self.store), default=0)
        while True:
            number += 1
            cut = SavedCut(number, self.spec.generation, done.versions, done.position, self.clock.wall())
            if save_cut(self.store, cut):
                return number

    async def _discover(self) -> None:
        found = await asyncio.to_thread(self._find)
        self._carry_out(self.coordinator.splits_found(found, self.clock.monotonic()))

    def _find(self) -> dict[str, SplitEntry]:
        known = self.coordinator.table.splits
        found = self._discovery.splits()
        return {
            split: entry if split in known else announce(self.records, split, entry) for split, entry in found.items()
        }

    def _spawn(self, work: Any) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:
                if (
                    self.scheduler.status == Status.running and threading.main_thread().is_alive()
                ):  # else its threads are gone
                    self.problems["supervisor"] = f"{type(error).__name__}: {error}"
                    logger.exception("job %s", self.spec.name)

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        # a task that is cancelled before it begins leaves `work` behind, which Python then reports as never awaited
        task.add_done_callback(lambda _: work.close())
        task.add_done_callback(self._tasks.discard)

    # what it tells

    def directory(self) -> Directory:
        table = self.coordinator.table
        partitions = tuple(
            PartitionInfo(number, self.spec.served_epoch(member.epoch), table.locations.get(number))
            for number, member in self.coordinator.members.items()
        )
        version = (self.spec.run << 32) + table.version  # grows over runs too: a reader may live longer than a run
        return Directory(self.spec.name, version, self.spec.seed, self.spec.key_groups, self._views, partitions)

    @property
    def ready(self) -> bool:
        """Every partition serves, and every split has a reader."""
        coordinator = self.coordinator
        return (
            coordinator.all_live
            and not self.new
            and coordinator.table.splits.keys() <= coordinator.table.readers.keys()
        )

    def status(self) -> dict[str, Any]:
        """Plain data for `job.status()`."""
        return overview(self)
