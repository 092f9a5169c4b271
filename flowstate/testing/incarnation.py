"""One incarnation of a partition in a simulation: what `runtime.pump` is in a worker process, without threads, one thing at a time.

The machine is the real one; its instructions are carried out over a simulated network and store, with delays. Saving takes the same
steps as production (protocol K1), and the incarnation may die between any two of them while the last one still lands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flowstate.errors import Fenced, Unavailable
from flowstate.exchange.message import Attach, Message, StreamId, decode, encode
from flowstate.plan.output import StagedOutput
from flowstate.plan.position import Floor, Place
from flowstate.runtime.contents import Contents, Frozen
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
from flowstate.runtime.saving import SaveWork
from flowstate.runtime.table import Table
from flowstate.snapshot.layout import partition as partition_prefix
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.restore import load_newest
from flowstate.snapshot.segment import save_state

if TYPE_CHECKING:
    from flowstate.testing.world import World

Row = tuple[str, int, int, int]  # key, end of window, total, events


class Fault(AssertionError):
    """An invariant of the protocol does not hold."""


@dataclass
class Channel:
    """What a stream runs over. Messages keep their order in each direction; a closing is heard after what was sent before it, unless
    the connection broke, and then nothing is heard any more but the closing."""

    owner: Incarnation
    reader: Incarnation | None = None
    down: float = 0.0
    up: float = 0.0
    under_way: int = 0
    closed: bool = False
    broken: bool = False


class Incarnation:
    """`state` is that of a pump: loading, live, ended, failed, fenced, stopped."""

    def __init__(self, world: World, number: int, epoch: int) -> None:
        self.world, self.number, self.epoch, self.state, self.reason = world, number, epoch, "loading", ""
        self.chain = PartitionChain(world.store, 1, number)
        self.machine: Partition | None = None
        self.manifest = Manifest(0, epoch)
        self.tables: list[Table] = []
        self.channels: dict[StreamId, None] = {}  # in the order in which they came, so that a seed replays
        self.saving, self.shares, self.numbers = False, False, 0
        self.publishing: set[StagedOutput] = set()
        self.published: set[StagedOutput] = set()
        self.cut: dict[str, Any] = {}
        self.cut_saved: dict[str, Any] = {}
        self.cut_due: int | None = None
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
        newest = self.chain.load()
        if newest is not None and newest.state is not None and newest.epoch == self.epoch:
            world.damage(self.number, newest)
        restored = load_newest(self.chain)
        if restored is None or restored.manifest.epoch != self.epoch:
            self.end("fenced", "a newer run owns this partition")
            return
        contents = Contents(world.plan, world.seed)
        if restored.state is not None:
            contents.restore(restored.state, restored.manifest.handed, restored.tables)
        self.manifest, self.restored_older = restored.manifest, bool(restored.damaged)
        machine = Partition(
            self.number, self.epoch, world.partitions, contents, Preparer(world.plan, world.router),
            patience=world.patience, window=replace(world.window),
        )  # fmt: skip
        self.machine, self.state = machine, "live"
        world.check_state(self)
        self.publish_all(self.manifest.staged)
        self.report()
        for table in self.tables:
            self.carry_out(machine.hear(table))
        world.risk(self)

    def end(self, state: str, reason: str = "") -> None:
        """Nothing more is done; what is under way goes on by itself. The other ends hear of it after a while."""
        if self.running:
            self.state, self.reason = state, reason
            for stream in list(self.channels):
                self.world.hang_up(stream, self)
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
        if machine is None or not self.running or not world.happens(self.pace):
            return
        moves: list[Callable[[], bool]] = [
            self.consume,
            self.consume,
            self.fill,
            self.read,
            self.read,
            self.tick,
            self.save_if_due,
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
            self.world.check_state(self)
        return bool(splits)

    def fill(self) -> bool:
        machine = self.machine
        assert machine is not None
        if not machine.goals:
            return False
        moved = machine.fill_controls()
        for split, (offset, stop) in machine.fills().items():
            rows = self.world.logs[split].poll(offset, stop, self.world.random)
            if rows is not None:
                machine.fill(rows)
                self.world.counts["filled"] += 1
                moved = True
                break
        moved |= machine.fill_controls()
        if moved:
            self.world.check_state(self)
            self.world.risk(self)
        return moved

    def read(self) -> bool:
        assert self.machine is not None
        wanted = list(self.machine.reads().items())
        self.world.random.shuffle(wanted)
        for split, (offset, stop) in wanted:
            rows = self.world.logs[split].poll(offset, stop, self.world.random)
            if rows is not None:
                self.carry_out(self.machine.read(rows, self.world.now))
                return True
        return False

    def tick(self) -> bool:
        machine, world = self.machine, self.world
        assert machine is not None
        self.carry_out(machine.tick(world.now))
        for split in machine.idle(world.now):
            log = world.logs[split]
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
                    self.world.send_up(each.stream, self, each.count)
                case SendAttach():
                    self.channels[each.attach.stream] = None
                    self.world.attach(self, each.reader, each.attach)
                case Close():
                    self.world.hang_up(each.stream, self)
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
        self.world.send_down(stream, self, message)

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
        record = self.world.records.load(request.split)
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
        self.world.append_floor(split, epoch, floor)

    def resolve_end(self, request: ResolveEnd) -> None:
        end = self.world.logs[request.split].head
        self.world.later(self.set_end, request, end)
        self.world.risk(self)

    def set_end(self, request: ResolveEnd, end: int) -> None:
        found = self.world.set_end(request.split, end)
        self.world.later(self.alone, lambda machine: machine.end_recorded(request.split, request.epoch, found))

    def cut_taken(self, taken: CutTaken) -> None:
        assert self.machine is not None
        self.world.check_frozen(self, taken.frozen)
        self.cut = {
            "cut": taken.cut,
            "position": {split: list(place) for split, place in taken.frozen.marks.position.items()},
        }
        self.world.keep_cut(self, taken)
        if self.machine.table.saves and not self.saving:
            self.save(self.contents.freeze(), taken.cut)
        self.report()
        self.world.risk(self)

    # saving

    def save_if_due(self) -> bool:
        machine, world = self.machine, self.world
        assert machine is not None
        if self.saving:
            return False
        if machine.ended:
            state = self.manifest.state
            over = self.manifest.ended and state is not None and state.marks == self.contents.marks.dump()
            if over and self.state == "live":
                self.state = "ended"
                self.report()
            if over or self.publishing:
                return False
        elif self.state == "ended":  # a split was found after all
            self.state = "live"
            self.report()
        if not machine.ended and not world.happens(world.save_rate):
            return False
        self.save(self.contents.freeze(), None)
        return True

    def save(self, frozen: Frozen, cut: int | None) -> None:
        self.saving, self.numbers = True, self.numbers + 1
        self.world.counts["saves"] += 1
        unpublished = tuple(each for each in self.manifest.staged if each not in self.published)
        due = self.contents.take_due(frozen)
        ended = frozen.marks.ended and self.machine is not None and self.machine.ended
        work = SaveWork(
            self.numbers, frozen, due, dict(self.contents.handed), unpublished, self.manifest, self.shares, ended, cut
        )
        self.world.later(self.stage, work)

    def stage(self, work: SaveWork) -> None:
        """K1: view -> stage -> segment -> manifest."""
        staged = list(work.unpublished)
        for sink, due in work.due.items():
            rows = [row for batch in due.rows(work.frozen) for row in rows_of(batch)]
            if rows:
                name = f"p{self.number}-e{self.epoch}-{work.number}"
                self.world.stage(name, rows)
                staged.append(StagedOutput(sink, name, name, len(rows), ""))
        self.world.risk(self)
        if not self.running:
            return
        if self.world.happens(self.world.trouble):
            self.world.later(self.save_failed, work)
            return
        state = save_state(
            self.world.store, partition_prefix(1, self.number), self.epoch, work.number,
            {name: view.chunks for name, view in work.frozen.views.items()},
            work.previous.state if work.shares else None,
            work.frozen.marks.dump(), dict(work.frozen.extras), self.world.now,
        )  # fmt: skip
        self.world.later(self.commit, work, state, tuple(staged))

    def commit(self, work: SaveWork, state: SavedState, staged: tuple[StagedOutput, ...]) -> None:
        handed = {str(sink): watermark for sink, watermark in work.handed.items()}
        manifest = Manifest(
            work.previous.version + 1, self.epoch, state, staged, handed, ended=work.ended and not staged
        )
        try:
            if self.world.happens(self.world.trouble):
                raise Unavailable("the store did not answer")
            committed = self.world.commit(self, work.previous.version, manifest)
            if committed is not None and self.world.happens(self.world.trouble):
                raise Unavailable("the answer was lost")
        except Unavailable:
            self.world.later(self.save_failed, work)
            return
        self.world.risk(self)
        self.world.later(self.saved, work, committed)

    def save_failed(self, work: SaveWork) -> None:
        if not self.running:
            return
        for sink, due in work.due.items():
            rows = due.rows(work.frozen)
            if rows:
                self.contents.give_back(sink, rows)
        work.frozen.release()
        self.saving = False
        self.world.counts["failed saves"] += 1

    def saved(self, work: SaveWork, manifest: Manifest | None) -> None:
        if not self.running:
            return
        work.frozen.release()
        self.saving = False
        if manifest is None:
            self.end("fenced", "a newer run owns this partition")
            return
        self.published -= set(self.manifest.staged) - set(manifest.staged)
        self.manifest, self.shares = manifest, True
        self.publish_all(manifest.staged)
        if work.cut is not None:
            self.cut_saved = {"cut": work.cut, "version": manifest.version}
            self.report()

    def publish_all(self, staged: Iterable[StagedOutput]) -> None:
        for each in staged:
            if each not in self.publishing and each not in self.published:
                self.publishing.add(each)
                self.world.later(self.publish, each, delays=(1, 5, 60))

    def publish(self, staged: StagedOutput) -> None:
        self.world.publish(staged.path)
        self.world.risk(self)
        if self.running:
            self.publishing.discard(staged)
            self.published.add(staged)


def rows_of(batch: Any) -> list[Row]:
    """A table's rows in plain Python."""
    if not batch.num_rows:
        return []
    ends = batch.column("span_end").cast("int64").to_pylist()
    columns = [batch.column(name).to_pylist() for name in ("key", "total", "events")]
    return [(key, end, total, events) for key, end, total, events in zip(columns[0], ends, *columns[1:], strict=True)]
