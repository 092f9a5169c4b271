"""One incarnation of a partition in a simulation: what `runtime.pump` is in a worker process, without threads, one thing at a time.

The machine is the real one; its instructions are carried out over a simulated network and store, with delays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flowstate.errors import Fenced
from flowstate.exchange.message import Attach, Message, StreamId, decode, encode
from flowstate.plan.position import Floor, Place
from flowstate.runtime.contents import Contents
from flowstate.runtime.instructions import (
    Acknowledge,
    Close,
    CutTaken,
    Instruction,
    LoadRecord,
    Put,
    RecordFloor,
    ResolveEnd,
    SendAttach,
)
from flowstate.runtime.partition import Partition
from flowstate.runtime.prepare import Preparer
from flowstate.runtime.table import Table
from flowstate.testing.adversity.fault import Fault
from flowstate.testing.adversity.saves import Saves

if TYPE_CHECKING:
    from flowstate.testing.adversity.world import World


class Incarnation:
    """`state` is that of a pump: loading, live, ended, failed, fenced, stopped."""

    def __init__(self, world: World, number: int, epoch: int) -> None:
        self.world, self.number, self.epoch, self.state, self.reason = world, number, epoch, "loading", ""
        self.machine: Partition | None = None
        self.saver = world.saver(number, epoch)
        self.saves: Saves | None = None
        self.tables: list[Table] = []
        self.channels: dict[StreamId, None] = {}  # in the order in which they came, so that a seed replays
        self.cut: dict[str, Any] = {}
        self.cut_saved: dict[str, Any] = {}
        self.restored_older = False
        self.last_places: dict[str, Place] = {}
        self.report_at, self.report_last, self.report_due = 0.0, 0.0, False
        self.pace = world.random.choice((0.3, 1, 1, 1))
        world.later(self.load)

    @property
    def running(self) -> bool:
        return self.state in ("loading", "live", "ended")

    @property
    def contents(self) -> Contents:
        assert self.machine is not None
        return self.machine.contents

    def load(self) -> None:
        world = self.world
        if not self.running:
            return
        world.damage(self)
        try:
            manifest, contents, damaged = self.saver.load()
        except Fenced as error:
            self.end("fenced", str(error))
            return
        self.restored_older = bool(damaged)
        machine = Partition(
            self.number, self.epoch, world.partitions, contents, Preparer(world.plan, world.router),
            patience=world.patience, window=replace(world.window),
        )  # fmt: skip
        self.machine, self.state = machine, "live"
        self.saves = Saves(world, self, contents, manifest)
        world.checks.state(self)
        self.saves.publish_all()
        self.report()
        for table in self.tables:
            self.carry_out(machine.hear(table))
        world.risk(self)

    def end(self, state: str, reason: str = "") -> None:
        """Nothing more is done; what is under way goes on by itself. The other ends hear of it after a while."""
        if self.running:
            self.state, self.reason = state, reason
            for stream in list(self.channels):
                self.world.network.hang_up(stream, self)
            if state in ("failed", "fenced"):
                self.report()

    # what comes in

    def hear(self, table: Table) -> None:
        if self.machine is None:
            self.tables.append(table)
        elif self.running:
            self.carry_out(self.machine.hear(table))
            self.report()

    def report(self) -> None:
        """Soon; what happens until then is in the same report. Reports of one incarnation keep their order."""
        if not self.report_due:
            self.report_due = True
            self.world.later(self.send_report, delays=(0, 1, 3))

    def send_report(self) -> None:
        self.report_due, self.report_last = False, self.world.now
        report: dict[str, Any] = {
            "partition": self.number,
            "epoch": self.epoch,
            "state": self.state,
            "reason": self.reason,
        }
        if self.machine is not None:
            marks = self.contents.marks
            report |= {
                "table": self.machine.table.version,
                "position": {split: list(place) for split, place in marks.position.items()},
                "reached": marks.reached,
                "ended": marks.ended,
                "cut": self.cut,
                "cut_saved": self.cut_saved,
            }
        self.report_at = max(self.report_at, self.world.now + self.world.delay())
        self.world.at(self.report_at, self.world.reported, self.epoch, self.number, report)

    # one thing at a time

    def step(self) -> None:
        machine, world = self.machine, self.world
        if machine is None or self.saves is None or not self.running or not world.happens(self.pace):
            return
        moves: list[Callable[[], bool]] = [
            self.consume,
            self.consume,
            self.fill,
            self.read,
            self.read,
            self.tick,
            self.saves.save_if_due,
        ]
        first = world.random.randrange(len(moves))
        for move in moves[first:] + moves[:first]:
            if move():
                break
        if self.running and world.now - self.report_last > 20:
            self.report()

    def consume(self) -> bool:
        assert self.machine is not None
        splits = self.machine.consumable()
        if splits:
            self.carry_out(self.machine.consume(self.world.random.choice(splits)))
            self.world.checks.state(self)
        return bool(splits)

    def fill(self) -> bool:
        machine = self.machine
        assert machine is not None
        if not machine.goals:
            return False
        moved = machine.fill_controls()
        for split, (offset, stop) in machine.fills().items():
            rows = self.world.splits.logs[split].poll(offset, stop, self.world.random)
            if rows is not None:
                machine.fill(rows)
                self.world.counts["filled"] += 1
                moved = True
                break
        moved |= machine.fill_controls()
        if moved:
            self.world.checks.state(self)
            self.world.risk(self)
        return moved

    def read(self) -> bool:
        assert self.machine is not None
        if ahead := self.machine.forward(self.world.random.randint(1, 3)):
            self.world.counts["pieces"] += 1
            self.carry_out(ahead)
            return True
        wanted = list(self.machine.reads().items())
        self.world.random.shuffle(wanted)
        for split, (offset, stop) in wanted:
            rows = self.world.splits.logs[split].poll(offset, stop, self.world.random)
            if rows is not None:
                most = self.world.random.choice([None, 1, 2, 3])
                self.carry_out(self.machine.read(rows, self.world.now, most))
                return True
        return False

    def tick(self) -> bool:
        machine, world = self.machine, self.world
        assert machine is not None
        self.carry_out(machine.tick(world.now))
        for split in machine.idle(world.now):
            log = world.splits.logs[split]
            if log.head <= machine.readings[split].at.offset:
                self.carry_out(machine.declare_idle(split))
        return False

    # instructions

    def carry_out(self, instructions: Iterable[Instruction]) -> None:
        for each in instructions:
            match each:
                case Put():
                    self.put(each.stream, each.message)
                case Acknowledge():
                    self.world.network.send_up(each.stream, self, each.count)
                case SendAttach():
                    self.channels[each.attach.stream] = None
                    self.world.network.attach(self, each.reader, each.attach)
                case Close():
                    self.world.network.hang_up(each.stream, self)
                case LoadRecord():
                    self.world.later(self.load_record, each)
                case RecordFloor():
                    self.world.later(self.record_floor, each)
                    self.world.risk(self)
                case ResolveEnd():
                    self.world.later(self.resolve_end, each)
                case CutTaken():
                    self.cut_taken(each)

    def put(self, stream: StreamId, message: Message) -> None:
        self.world.network.send_down(stream, self, message)

    def accept(self, attach: Attach) -> None:
        assert self.machine is not None
        self.channels[attach.stream] = None
        self.carry_out(self.machine.accept(attach))
        self.world.risk(self)

    def receive(self, stream: StreamId, message: Message) -> None:
        if self.running and self.machine is not None:
            if self.world.happens(0.1):
                copied, message = decode(encode(stream, message))  # type: ignore[assignment]
                if copied != stream:
                    raise Fault("the codec changed a stream")
            self.carry_out(self.machine.receive(stream, message))

    def stream_closed(self, stream: StreamId) -> None:
        self.channels.pop(stream, None)
        if self.running and self.machine is not None:
            self.machine.stream_closed(stream, self.world.now)

    # the split record; each write lands whether or not its writer still lives

    def load_record(self, request: LoadRecord) -> None:
        record = self.world.splits.records.load(request.split)
        if record is None:
            raise Fault(f"a split without a record: {request.split}")
        self.world.later(
            self.alone, lambda machine: machine.record_loaded(request.split, request.epoch, record, self.world.now)
        )

    def alone(self, event: Callable[[Partition], Iterable[Instruction]]) -> None:
        """An answer comes back, if somebody is there to hear it."""
        if self.running and self.machine is not None:
            self.carry_out(event(self.machine))

    def record_floor(self, request: RecordFloor) -> None:
        split, epoch, floor = request.split, request.epoch, request.floor
        try:
            self.append_floor(split, epoch, floor)
        except Fenced:
            return
        self.world.counts["floors"] += 1
        self.world.later(self.alone, lambda machine: machine.floor_recorded(split, epoch, floor, self.world.now))
        self.world.risk(self)

    def append_floor(self, split: str, epoch: int, floor: Floor) -> None:
        self.world.splits.append_floor(split, epoch, floor)

    def resolve_end(self, request: ResolveEnd) -> None:
        end = self.world.splits.logs[request.split].head
        self.world.later(self.set_end, request, end)
        self.world.risk(self)

    def set_end(self, request: ResolveEnd, end: int) -> None:
        found = self.world.splits.set_end(request.split, end)
        self.world.later(self.alone, lambda machine: machine.end_recorded(request.split, request.epoch, found))

    def cut_taken(self, taken: CutTaken) -> None:
        assert self.machine is not None
        self.world.checks.frozen(self, taken.frozen)
        self.cut = {
            "cut": taken.cut,
            "position": {split: list(place) for split, place in taken.frozen.marks.position.items()},
        }
        self.world.keep_cut(self, taken)
        assert self.saves is not None
        if self.machine.table.saves:
            self.saves.save_cut(taken.cut)
        self.report()
        self.world.risk(self)
