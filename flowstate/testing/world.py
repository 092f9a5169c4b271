"""The world of a simulation: time, chance, store, network, workers, the supervisor's shell, disturbances, and the checks."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from flowstate.exchange.limiter import Window
from flowstate.exchange.message import Attach, Message, StreamId
from flowstate.exchange.route import Router
from flowstate.plan.position import FOREVER, Floor, Place
from flowstate.runtime import coordinator as supervising
from flowstate.runtime.contents import Frozen
from flowstate.runtime.coordinator import Coordinator, Limits
from flowstate.runtime.instructions import CutTaken
from flowstate.runtime.partition import Patience
from flowstate.runtime.table import SplitEntry, Table
from flowstate.snapshot.manifest import Manifest
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecord, SplitRecords
from flowstate.testing.heap_store import HeapStore
from flowstate.testing.incarnation import Channel, Fault, Incarnation, Row, rows_of
from flowstate.testing.log import KEYS, LATENESS, Log, Reference, simple_plan

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
        self.plan = simple_plan(self.keep)
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
        self.records = SplitRecords(self.store)
        self.staged: dict[str, list[Row]] = {}
        self.output: dict[str, list[Row]] = {}
        self.logs: dict[str, Log] = {}
        self.reference = Reference(self.logs)
        self.resume: dict[str, float] = {}
        self.split_owners: dict[str, int] = {}
        for _ in range(pick((1, 2, 3))):
            self.make_split()
        self.joins_left = pick((0, 1, 1, 2))

        keys = list(KEYS)
        self.owner_of_key = dict(zip(keys, map(int, self.router.owners([pa.array(keys)])), strict=True))
        self.channels: dict[StreamId, Channel] = {}
        self.cuts: dict[tuple[int, int, int], Frozen] = {}
        self.workers: dict[str, Worker] = {}
        self.incarnations: list[Incarnation] = []
        self.addresses = 0
        for split in self.logs:
            self.raise_record(split, self.entry(split))
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

    # logs and records

    def make_split(self) -> str:
        name = f"events/{len(self.logs)}"
        self.logs[name] = Log.make(name, self.random)
        self.resume[name] = 0.0
        return name

    def entry(self, split: str) -> SplitEntry:
        log = self.logs[split]
        return SplitEntry(0, split, log.start, log.last if log.finite else None, None, LATENESS)

    def raise_record(self, split: str, entry: SplitEntry, floor: Floor | None = None) -> SplitRecord:
        record = self.records.raise_epoch(split, start=entry.start, end=entry.end, label=entry.label, floor=floor)
        self.note_record(split, record)
        return record

    def append_floor(self, split: str, epoch: int, floor: Floor) -> None:
        self.note_record(split, self.records.append_floor(split, epoch, floor))

    def set_end(self, split: str, end: int) -> int:
        record = self.records.set_end(split, end)
        self.note_record(split, record)
        assert record.end is not None
        return record.end

    def note_record(self, split: str, record: SplitRecord) -> None:
        known = self.reference.floors.setdefault(split, [])
        if list(record.floors[: len(known)]) != known:
            raise Fault("floors of a split record changed")
        known.extend(record.floors[len(known) :])
        self.reference.ends[split] = record.end

    def owner_of_split(self, split: str) -> int:
        if split not in self.split_owners:
            self.split_owners[split] = self.router.owner_of_split(split)
        return self.split_owners[split]

    # store and sink

    def damage(self, number: int, newest: Manifest) -> None:
        """Sometimes the newest state of a partition cannot be read, and an older one can."""
        assert newest.state is not None
        if not newest.state.segments or not self.happens(self.damage_rate):
            return
        chain = PartitionChain(self.store, 1, number)
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

    def commit(self, incarnation: Incarnation, previous: int, manifest: Manifest) -> Manifest | None:
        before = incarnation.chain.load()
        committed = incarnation.chain.commit(previous, manifest)
        if committed is not None and before is not None and before.epoch > manifest.epoch:
            raise Fault("an epoch in a chain fell")
        return committed

    def stage(self, name: str, rows: list[Row]) -> None:
        if name in self.staged:
            raise Fault(f"two stages have one name: {name}")
        self.staged[name] = rows

    def publish(self, name: str) -> None:
        """Idempotent by name."""
        self.output.setdefault(name, self.staged[name])

    # network

    def attach(self, owner: Incarnation, reader: int, attach: Attach) -> None:
        self.channels[attach.stream] = Channel(owner)
        location = owner.machine.table.locations.get(reader) if owner.machine else None
        self.later(self.deliver_attach, location, reader, attach, delays=(1, 2, 5, 30, 90))

    def deliver_attach(self, location: str | None, reader: int, attach: Attach) -> None:
        channel = self.channels[attach.stream]
        worker = self.workers.get(location or "")
        incarnation = worker.pumps.get(reader) if worker else None
        if incarnation is None or not incarnation.running or incarnation.machine is None:
            self.later(channel.owner.stream_closed, attach.stream)
            channel.closed = True
            return
        channel.reader = incarnation
        incarnation.accept(attach)

    def send_down(self, stream: StreamId, reader: Incarnation, message: Message) -> None:
        channel = self.channels[stream]
        if channel.closed:
            return
        channel.under_way += 1
        if channel.under_way > self.window.messages:
            raise Fault("a stream holds more than its bound")
        channel.down = max(channel.down, self.now + self.delay((0, 0, 1, 3, 20)))
        self.at(channel.down, self.deliver, channel, stream, message)

    def deliver(self, channel: Channel, stream: StreamId, message: Message) -> None:
        if not channel.broken:
            channel.owner.receive(stream, message)

    def send_up(self, stream: StreamId, owner: Incarnation, count: int) -> None:
        channel = self.channels[stream]
        if not channel.closed:
            channel.up = max(channel.up, self.now + self.delay((0, 0, 1, 3, 20)))
            self.at(channel.up, self.acknowledged, channel, stream, count)

    def acknowledged(self, channel: Channel, stream: StreamId, count: int) -> None:
        channel.under_way -= count
        reader = channel.reader
        if reader is not None and reader.running and reader.machine is not None and not channel.broken:
            reader.machine.acknowledged(stream, count)

    def hang_up(self, stream: StreamId, by: Incarnation) -> None:
        """One end closes. What is under way may still come, or is lost."""
        channel = self.channels.get(stream)
        by.channels.pop(stream, None)
        if channel is None or channel.closed:
            return
        channel.closed, channel.broken = True, self.happens(0.5)
        for end in (channel.owner, channel.reader):
            if end is not None and (end is not by or channel.owner is channel.reader):
                time = max(channel.down, channel.up, self.now + self.delay())
                self.at(time, end.stream_closed, stream)

    def cut_line(self, incarnation: Incarnation) -> None:
        """The connection breaks between two that live; each hears of it in its own time."""
        lines = sorted(incarnation.channels)
        if lines:
            stream = self.random.choice(lines)
            channel = self.channels[stream]
            if not channel.closed:
                channel.closed = channel.broken = True
                for end in (channel.owner, channel.reader):
                    if end is not None:
                        self.later(end.stream_closed, stream)

    # the supervisor's shell

    def begin(self) -> None:
        """A supervisor begins, on workers of its own; what an earlier one left goes on as zombies."""
        records = {name: self.records.load(name) for name in self.records.names()}
        known = {split: self.entry(split) for split, record in records.items() if record is not None}
        self.undiscovered = {split: self.entry(split) for split in self.logs if split not in known}
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
        split, entry = request.split, self.entry(request.split)
        if mine is not self.coordinator:
            return
        if self.happens(self.trouble):
            self.later(self.of, mine, lambda: mine.raise_failed(split, request.floor))
            return
        record = self.raise_record(split, entry, request.floor)
        self.counts["joined"] += request.floor is not None
        if self.happens(self.trouble):  # the answer was lost
            self.later(self.of, mine, lambda: mine.raise_failed(split, request.floor))
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
        live = all(member.state in ("live", "ended") for member in coordinator.members.values())
        if self.undiscovered and live:
            found, self.undiscovered = self.undiscovered, {}
            self.obey(coordinator.splits_found(found, self.now))

    # cuts

    def keep_cut(self, incarnation: Incarnation, taken: CutTaken) -> None:
        self.cuts[taken.cut, incarnation.number, incarnation.epoch] = taken.frozen

    def cut_done(self, done: supervising.CutDone) -> None:
        """I3: one position everywhere, and the whole is the reference at it."""
        if done.saved:
            self.counts["saved cuts"] += 1
            for number, version in done.versions.items():
                state = PartitionChain(self.store, 1, number).read(version).state
                places = {split: tuple(mark[:2]) for split, mark in state.marks.items()} if state else {}
                if places != {split: tuple(place) for split, place in done.position.items()}:
                    raise Fault("a saved cut names a manifest at another position")
            return
        self.counts["cuts"] += 1
        found: Counter[tuple[str, int]] = Counter()
        events: Counter[tuple[str, int]] = Counter()
        for number, member in self.coordinator.members.items():
            frozen = self.cuts[done.cut, number, member.epoch]
            if frozen.marks.position != done.position:
                raise Fault("a done cut is not at one position")
            for key, end, total, count in table_rows(frozen):
                found[key, end] += total
                events[key, end] += count
        passed = max(frozen.marks.passed for (cut, *_), frozen in self.cuts.items() if cut == done.cut)
        for row, expected in self.reference.totals(done.position).items():
            if (found[row], events[row]) != expected and not self.expired(row[1], passed):
                raise Fault(f"a done cut is not the reference: {row} has {found[row]}, not {expected}")

    def expired(self, end: int, passed: int) -> bool:
        return self.keep is not None and end + self.keep * 1_000_000 <= passed

    # checks

    def check_state(self, incarnation: Incarnation) -> None:
        marks = incarnation.contents.marks
        for split, place in incarnation.last_places.items():
            if marks.position[split] < place:
                raise Fault("a position moved back")
        incarnation.last_places = dict(marks.position)
        if incarnation.machine is not None and incarnation.machine.refused:
            raise Fault("a stream has a hole")
        if self.happens(self.check_rate):
            frozen = incarnation.contents.freeze()
            self.check_frozen(incarnation, frozen)
            frozen.release()

    def check_frozen(self, incarnation: Incarnation, frozen: Frozen) -> None:
        """I2: totals, late rows, dead letters and watermark are those of the reference at this position."""
        self.counts["checks"] += 1
        number, marks, reference = incarnation.number, frozen.marks, self.reference
        for split, place in marks.position.items():
            end = reference.ends.get(split)
            if end is not None and place.offset > end and marks.newest[split] != FOREVER:
                newest = incarnation.chain.load()
                if newest is None or newest.epoch <= incarnation.epoch:
                    raise Fault(f"an owner that may still commit is past the end of {split}: {place}")
                return  # a zombie that follows a zombie; its place is none that anybody else can reach
        watermark = reference.watermark(marks.position)
        if marks.watermark() != watermark or marks.reached < watermark:
            raise Fault(f"the watermark is not the reference's: {marks.watermark()} is not {watermark}")
        expected = {
            key: value
            for key, value in reference.totals(marks.position).items()
            if self.owner_of_key[key[0]] == number and not self.expired(key[1], marks.passed)
        }
        found = {(key, end): (total, count) for key, end, total, count in table_rows(frozen)}
        if incarnation.restored_older:  # what had expired before the damage comes back until something expires again
            found = {key: value for key, value in found.items() if not self.expired(key[1], marks.passed)}
        if found != expected:
            wrong = {key: (found.get(key), expected.get(key)) for key in found.keys() | expected.keys()}
            raise Fault(
                f"totals at a position: { ({k: v for k, v in wrong.items() if v[0] != v[1]}) } (found, expected)"
            )
        late, dead = set(), set()
        for split, place in marks.position.items():
            if self.owner_of_split(split) == number:
                prefix = reference.prefix(split, place)
                late |= {(split, offset) for offset, _ in prefix.late}
                dead |= {(split, offset) for offset in prefix.dead}
        for name, expected_rows in (("totals_late", late), ("dead_letters", dead)):
            count = sum(frozen.extras[name]["counts"].values())
            rows = [row for batch in frozen.views[name].batches(["split", "offset"]) for row in batch.to_pylist()]
            if {(row["split"], row["offset"]) for row in rows} != expected_rows or count != len(expected_rows):
                raise Fault(f"{name} at a position: {count} rows, expected {len(expected_rows)}")

    def check_output(self) -> None:
        """I1: what was published, as a multiset, is every window at the end of the log."""
        position: dict[str, Any] = {}
        for number in range(self.partitions):
            manifest = PartitionChain(self.store, 1, number).load()
            if manifest is None or manifest.state is None or not manifest.ended:
                raise Fault("a partition ended without saying so in its chain")
            marks = {split: mark[:2] for split, mark in manifest.state.marks.items()}
            if position and marks != position:
                raise Fault("partitions ended at different positions")
            position = marks
        places = {split: Place(*place) for split, place in position.items()}
        if places.keys() != self.logs.keys():
            raise Fault(f"a split was never read: {self.logs.keys() - places.keys()}")
        for split, end in self.reference.ends.items():
            if end is None or places[split] != (end + 1, len(self.reference.floors[split])):
                raise Fault(f"a split did not end where its record says: {split} {places[split]} {end}")
        expected = Counter((*key, *value) for key, value in self.reference.totals(places).items())
        found = Counter(row for rows in self.output.values() for row in rows)
        if found != expected:
            raise Fault(f"published output: too much {dict(found - expected)}, missing {dict(expected - found)}")

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
        log = self.logs[split]
        log.head = min(log.last, log.head + self.random.randint(0, 4))
        self.resume[split] = self.now + (self.delay((20, 60, 300)) if self.happens(0.25) else 0.0)

    def disturb(self) -> None:
        dice, split = self.random.random(), self.random.choice(list(self.logs))
        if dice < 0.3 and self.now >= self.resume[split]:
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
            self.cut_line(self.random.choice(self.incarnations))
        elif 0.35 < dice < 0.36 and self.joins_left and self.now > 60:
            self.joins_left -= 1
            name = self.make_split()
            self.obey(self.coordinator.splits_found({name: self.entry(name)}, self.now))
        elif 0.36 < dice < 0.362 and self.restarts_left:
            self.restart()

    def settle(self) -> None:
        """From now on nothing disturbs: the logs are complete, and what follows is drained."""
        self.crashes_left = self.cuts_left = self.moves_left = self.joins_left = self.restarts_left = 0
        self.trouble = 0.0
        for log in self.logs.values():
            log.head = log.last
        if not self.coordinator.workers:
            self.join_worker()

    def run(self) -> Counter[str]:
        rest, calm, drain_at = 150, False, self.calm_at + self.random.choice((0, 100))
        if self.happens(0.5):
            drain_at = self.random.uniform(0, self.calm_at)
        while rest:
            self.now += 1
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
        self.check_output()
        self.counts += Counter(seeds=1, steps=int(self.now))
        return self.counts


def table_rows(frozen: Frozen) -> list[Row]:
    return [row for batch in frozen.views["totals"].batches() for row in rows_of(batch)]
