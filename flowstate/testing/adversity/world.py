"""The world of a simulation: time, chance, store, workers, the supervisor's shell, disturbances."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from flowstate.clock import ManualClock
from flowstate.exchange.limiter import Window
from flowstate.exchange.route import Router
from flowstate.runtime import coordinator as supervising
from flowstate.runtime.contents import Frozen
from flowstate.runtime.coordinator import Coordinator, Limits
from flowstate.runtime.instructions import CutTaken
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.partition import Patience
from flowstate.runtime.saving import Saver
from flowstate.runtime.table import Table
from flowstate.sink.files import FileSink
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.testing.adversity.checks import Checks
from flowstate.testing.adversity.fault import Fault
from flowstate.testing.adversity.incarnation import Incarnation
from flowstate.testing.adversity.log import KEYS, simple_plan
from flowstate.testing.adversity.network import Network
from flowstate.testing.adversity.splits import Splits
from flowstate.testing.heap_store import HeapStore

NEVER_TIRED = 1e12


class Worker:
    """A worker process. Lost, it may go on for a while without knowing (a zombie)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.pumps: dict[int, Incarnation] = {}


class World:
    """One seed makes one history. `run` raises `Fault` when an invariant does not hold."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.now, self.counts = 0.0, Counter[str]()
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        pick = self.random.choice
        self.partitions = pick((1, 2, 2, 3, 4))
        self.keep = pick((None, 2, 8))
        self.plan = simple_plan(self.keep, pick((None, None, 20_000_000)), everything=pick((False, False, True)))
        self.router = Router(partitions=self.partitions, groups=128, seed=seed)
        self.window = Window(messages=pick((1, 2, 3, 8)))
        self.patience = Patience(
            answer=60.0,
            again=pick((0.0, 5.0)),
            full=pick((30.0, 200.0, NEVER_TIRED)),
            idle=pick((10.0, 60.0, NEVER_TIRED)),
        )
        self.save_rate, self.trouble = pick((0.01, 0.05, 0.2)), pick((0.0, 0.0, 0.05))
        self.damage_rate, self.staleness = pick((0.0, 0.0, 0.4)), pick(((1, 2, 5, 30), (5, 300)))
        self.crashes_left, self.cuts_left, self.moves_left = pick((0, 2, 5, 10)), pick((0, 4, 12)), pick((0, 3, 15))
        self.restarts_left = pick((0, 0, 1, 2))
        self.calm_at = float(pick((200, 500, 900)))
        self.check_rate, self.cut_limit = 0.4, pick((150.0, 500.0))

        self.store = HeapStore()
        self.targets = [HeapStore() for _ in self.plan.sinks]
        self.clock = ManualClock()
        self.spec = JobSpec(
            "simulation", self.plan, "heap://", partitions=self.partitions, seed=seed, generation=1, run=1
        )
        self.splits = Splits(self.store, self.router, self.random)
        self.resume: dict[str, float] = {}
        for _ in range(pick((1, 2, 3))):
            self.splits.make()
        self.joins_left = pick((0, 1, 1, 2))

        keys = list(KEYS)
        self.owner_of_key = dict(zip(keys, map(int, self.router.owners([pa.array(keys)])), strict=True))
        self.network, self.checks = Network(self), Checks(self)
        self.cuts: dict[tuple[int, int, int], Frozen] = {}
        self.workers: dict[str, Worker] = {}
        self.incarnations: list[Incarnation] = []
        self.addresses = 0
        for split in self.splits.logs:
            self.splits.raise_epoch(split)
        self.begin()

    # chance and time

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def delay(self, delays: tuple[int, ...] = (1, 2, 5, 30)) -> float:
        return float(self.random.choice(delays))

    def later(self, action: Callable[..., None], *arguments: Any, delays: tuple[int, ...] = (1, 2, 5, 30)) -> None:
        self.at(self.now + self.delay(delays), action, *arguments)

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (time, self._serial, action, arguments))

    # store and sink

    def saver(self, number: int, epoch: int) -> Saver:
        """The real one, whose sinks write into this world."""
        saver = Saver(self.spec, number, epoch, self.store, self.clock)
        for sink, target in zip(saver.sinks, self.targets, strict=True):
            assert isinstance(sink, FileSink)
            sink.target = target
        return saver

    def damage(self, incarnation: Incarnation) -> None:
        """Sometimes the newest state of a partition cannot be read, and an older one can."""
        chain = incarnation.saver.chain
        newest = chain.load()
        if newest is None or newest.state is None or newest.epoch != incarnation.epoch:
            return
        if not newest.state.segments or not self.happens(self.damage_rate):
            return
        older = [
            each for each in chain.saved() if isinstance(each, Manifest) and each.state and each.state != newest.state
        ]
        mine = set(newest.state.segments)
        for manifest in older:
            assert manifest.state is not None
            if manifest.state.segments and not mine & manifest.state.segments.keys():
                self.store.delete(min(mine))
                self.counts["damaged"] += 1
                return

    # the supervisor's shell

    def begin(self) -> None:
        """A supervisor begins, on workers of its own; what an earlier one left goes on as zombies."""
        splits = self.splits
        records = {name: splits.records.load(name) for name in splits.records.names()}
        known = {split: splits.entry(split) for split, record in records.items() if record is not None}
        self.undiscovered = {split: splits.entry(split) for split in splits.logs if split not in known}
        self.coordinator = Coordinator(
            self.partitions, known, limits=Limits(cut=self.cut_limit, start=400.0, failures=1_000_000, backoff=0.0)
        )
        self.cuts.clear()
        for _ in range(self.random.choice((1, 2, 3))):
            self.join_worker()

    def join_worker(self) -> None:
        self.addresses += 1
        worker = Worker(f"worker-{self.addresses}")
        self.workers[worker.address] = worker
        self.obey(self.coordinator.worker_joined(worker.address, worker.address, self.now))

    def obey(self, instructions: list[supervising.Instruction]) -> None:
        mine = self.coordinator
        for each in instructions:
            match each:
                case supervising.Claim():
                    self.later(self.claim, mine, each)
                case supervising.Create():
                    self.later(self.create, mine, each)
                case supervising.Discard():
                    if self.happens(0.8):
                        self.later(self.discard, each, delays=(1, 30, 200))
                case supervising.RaiseReader():
                    self.later(self.raise_reader, mine, each)
                case supervising.Tell():
                    self.tell(list(mine.workers))
                case supervising.CutDone():
                    self.cut_done(each)
                case supervising.CutFailed():
                    self.counts["failed cuts"] += 1

    def of(self, mine: Coordinator, instructions: Callable[[], list[supervising.Instruction]]) -> None:
        """An answer comes back to the supervisor that asked, if it is still there."""
        if mine is self.coordinator:
            self.obey(instructions())

    def claim(self, mine: Coordinator, request: supervising.Claim) -> None:
        if mine is not self.coordinator:
            return
        if self.happens(self.trouble):
            self.later(self.of, mine, lambda: mine.claim_failed(request.partition, "the store is away", self.now))
            return
        epoch = PartitionChain(self.store, 1, request.partition).claim().epoch
        self.later(self.of, mine, lambda: mine.claimed(request.partition, epoch, self.now))

    def create(self, mine: Coordinator, request: supervising.Create) -> None:
        worker = self.workers.get(request.worker)
        if worker is None or self.happens(self.trouble):
            self.later(
                self.of, mine, lambda: mine.create_failed(request.partition, request.epoch, "no worker", self.now)
            )
            return
        before = worker.pumps.get(request.partition)
        if before is not None:
            self.later(before.end, "stopped", delays=(1, 30, 200))
        incarnation = Incarnation(self, request.partition, request.epoch)
        worker.pumps[request.partition] = incarnation
        self.incarnations.append(incarnation)
        self.counts["incarnations"] += 1

    def discard(self, request: supervising.Discard) -> None:
        worker = self.workers.get(request.worker)
        incarnation = worker.pumps.get(request.partition) if worker else None
        if incarnation is not None and incarnation.epoch <= request.epoch:
            incarnation.end("stopped")

    def raise_reader(self, mine: Coordinator, request: supervising.RaiseReader) -> None:
        split = request.split
        if mine is not self.coordinator:
            return
        if self.happens(self.trouble):
            self.later(self.of, mine, lambda: mine.raise_failed(split, self.now))
            return
        record = self.splits.raise_epoch(split, request.floor)
        self.counts["joined"] += request.floor is not None
        if self.happens(self.trouble):  # the answer was lost
            self.later(self.of, mine, lambda: mine.raise_failed(split, self.now))
            return
        self.later(self.of, mine, lambda: mine.reader_raised(split, request.partition, record.reader_epoch, self.now))

    def tell(self, addresses: list[str]) -> None:
        for address in addresses:
            if self.happens(0.9):
                self.later(self.hear, address, self.coordinator.table, delays=self.staleness)

    def hear(self, address: str, table: Table) -> None:
        worker = self.workers.get(address)
        for incarnation in list(worker.pumps.values()) if worker else []:
            incarnation.hear(Table.load(table.dump()) if self.happens(0.02) else table)

    def reported(self, epoch: int, number: int, report: Mapping[str, Any]) -> None:
        self.obey(self.coordinator.reported(number, epoch, report, self.now))
        if report.get("table", self.coordinator.table.version) < self.coordinator.table.version:
            self.tell([address for address, worker in self.workers.items() if number in worker.pumps])

    def supervise(self) -> None:
        coordinator = self.coordinator
        self.obey(coordinator.tick(self.now))
        if self.undiscovered and coordinator.all_live:
            found, self.undiscovered = self.undiscovered, {}
            self.obey(coordinator.splits_found(found, self.now))

    # cuts

    def keep_cut(self, incarnation: Incarnation, taken: CutTaken) -> None:
        self.cuts[taken.cut, incarnation.number, incarnation.epoch] = taken.frozen

    def cut_done(self, done: supervising.CutDone) -> None:
        if done.saved:
            self.checks.saved_cut(done)
        else:
            members = self.coordinator.members.items()
            self.checks.cut(done, [self.cuts[done.cut, number, member.epoch] for number, member in members])

    # disturbances

    def risk(self, incarnation: Incarnation) -> None:
        """A moment at which a crash is interesting."""
        if self.crashes_left and self.now < self.calm_at and self.happens(0.02):
            self.crash(incarnation)

    def worker_of(self, incarnation: Incarnation) -> Worker | None:
        return next((each for each in self.workers.values() if incarnation in each.pumps.values()), None)

    def crash(self, incarnation: Incarnation) -> None:
        """A worker is lost: dead at once, or only thought dead. Or only this incarnation fails, and says so."""
        self.crashes_left -= 1
        self.counts["crashes"] += 1
        worker = self.worker_of(incarnation)
        if worker is None or self.happens(0.3):
            incarnation.end("failed", "simulated")
            return
        self.lose(worker)

    def lose(self, worker: Worker) -> None:
        dead = self.happens(0.5)
        for each in worker.pumps.values():
            if dead:
                each.end("stopped")
            else:
                self.later(each.end, "stopped", delays=(40, 200, 600))
        mine = self.coordinator
        self.later(self.of, mine, lambda: mine.worker_lost(worker.address, self.now))
        self.at(self.now + self.delay((40, 700)), self.forget, worker)
        self.later(self.replace_worker, mine)

    def forget(self, worker: Worker) -> None:
        self.workers.pop(worker.address, None)
        for each in worker.pumps.values():
            each.end("stopped")

    def replace_worker(self, mine: Coordinator) -> None:
        if mine is self.coordinator:
            self.join_worker()

    def restart(self) -> None:
        """The supervisor is lost, with all that it knew; another one begins. The old workers go on until they notice."""
        self.counts["restarts"] += 1
        self.restarts_left -= 1
        for worker in list(self.workers.values()):
            for each in worker.pumps.values():
                self.later(each.end, "stopped", delays=(1, 40, 300))
            self.at(self.now + 301, self.forget, worker)
        self.begin()

    def grow(self, split: str) -> None:
        log = self.splits.logs[split]
        log.head = min(log.last, log.head + self.random.randint(0, 4))
        self.resume[split] = self.now + (self.delay((20, 60, 300)) if self.happens(0.25) else 0.0)

    def disturb(self) -> None:
        dice, split = self.random.random(), self.random.choice(list(self.splits.logs))
        if dice < 0.3 and self.now >= self.resume.get(split, 0.0):
            self.grow(split)
        elif 0.3 < dice < 0.32 and self.cuts_left:
            if self.coordinator.open_cut(self.now, saves=self.happens(0.5)) is not None:
                self.cuts_left -= 1
                self.tell(list(self.coordinator.workers))
        elif 0.32 < dice < 0.33 and self.crashes_left and self.incarnations:
            self.crash(self.random.choice(self.incarnations[-2 * self.partitions :]))
        elif 0.33 < dice < 0.34 and self.moves_left:
            self.moves_left -= 1
            self.obey(self.coordinator.move(split, self.now))
        elif 0.34 < dice < 0.35 and self.crashes_left and self.incarnations:
            self.network.cut_line(self.random.choice(self.incarnations))
        elif 0.35 < dice < 0.36 and self.joins_left and self.now > 60:
            self.joins_left -= 1
            name = self.splits.make()
            self.obey(self.coordinator.splits_found({name: self.splits.entry(name)}, self.now))
        elif 0.36 < dice < 0.362 and self.restarts_left:
            self.restart()

    def settle(self) -> None:
        """From now on nothing disturbs: the logs are complete, and what follows is drained."""
        self.crashes_left = self.cuts_left = self.moves_left = self.joins_left = self.restarts_left = 0
        self.trouble = 0.0
        for log in self.splits.logs.values():
            log.head = log.last
        if not self.coordinator.workers:
            self.join_worker()

    def run(self) -> Counter[str]:
        rest, calm, drain_at = 150, False, self.calm_at + self.random.choice((0, 100))
        if self.happens(0.5):
            drain_at = self.random.uniform(0, self.calm_at)
        while rest:
            self.now += 1
            self.clock.now = self.now
            if self.now > self.calm_at + 12_000:
                raise Fault("it does not drain")
            while self._queue and self._queue[0][0] <= self.now:
                _, _, action, arguments = heapq.heappop(self._queue)
                action(*arguments)
            if self.now < self.calm_at:
                self.disturb()
            elif not calm:
                self.settle()
                calm = True
            if (
                self.now >= drain_at
                and not self.undiscovered
                and not self.coordinator.table.draining
                and not self.joins_left
            ):
                self.obey(self.coordinator.drain())
            if self.now % 5 == 0:
                self.supervise()
            running = [each for each in self.incarnations if each.running]
            if running:
                self.random.choice(running).step()
            if len(running) != len(self.incarnations):
                self.incarnations = running
            rest -= calm and self.coordinator.finished
        self.checks.end()
        self.counts += Counter(seeds=1, steps=int(self.now))
        return self.counts
