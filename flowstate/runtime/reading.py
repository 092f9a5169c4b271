"""A partition as the reader of a split (specs: reader rules R1-R7): what it reads next, to whom it goes, markers and floors.

It has no durable place of its own: it begins where its partition's own state stands. It never waits: a full stream only means that
this split is not wanted now.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flowstate.exchange.limiter import Window
from flowstate.exchange.message import Attach, Batch, Marker, Message, Start, StreamId
from flowstate.plan.position import FOREVER, Floor, Place, later
from flowstate.runtime.instructions import Close, Instruction, Put, RecordFloor
from flowstate.runtime.stretch import Stretch
from flowstate.runtime.table import SplitEntry, Table


@dataclass
class Outgoing:
    """The reader's end of a stream."""

    stream: StreamId
    window: Window
    full_since: float | None = None


@dataclass
class Reading:
    """One split under one reader epoch."""

    split: str
    epoch: int
    entry: SplitEntry
    partitions: int
    at: Place
    newest: int
    floor: int
    floors: list[Floor]
    end: int | None
    window: Window
    streams: dict[int, Outgoing] = field(default_factory=dict)
    seen: dict[int, tuple[int, int]] = field(default_factory=dict)
    attached: dict[int, Place] = field(default_factory=dict)
    marked: int = 0
    recording: bool = False
    resolving_end: bool = False
    read_at: float = 0.0  # when the last row came
    ready: Stretch | None = None  # was read and is not sent yet, from `at` on; may be forgotten: then it is read again

    @property
    def ended(self) -> bool:
        return self.newest == FOREVER

    @property
    def leads(self) -> bool:
        """R6: every partition has left the readers before this one, and none was further than this by then."""
        return len(self.attached) == self.partitions and max(self.attached.values()) <= self.at

    @property
    def reached(self) -> int:
        """The offset up to which somebody has applied the split, as far as this reader has heard."""
        return max((place.offset for place in self.attached.values()), default=0)

    def accept(self, attach: Attach, table: Table) -> list[Instruction]:
        """R2, in one step: no row can fall between Start and the next Batch. (The caller has checked the reader epoch.)"""
        owner, attempt = attach.stream.owner, (attach.stream.owner_epoch, attach.stream.attempt)
        if attempt <= self.seen.get(owner, (table.epochs.get(owner, 0), 0)):
            return [Close(attach.stream)]  # a replaced incarnation, or overtaken by a later request
        out: list[Instruction] = []
        if owner in self.streams:
            out.append(Close(self.streams.pop(owner).stream))
        self.seen[owner] = attempt
        self.attached[owner] = max(attach.place, self.attached.get(owner, attach.place))
        self.streams[owner] = Outgoing(attach.stream, Window(self.window.messages, self.window.volume))
        out.append(self._put(owner, Start(self.at, self.newest, tuple(self.floors))))
        return out

    def drop_replaced(self, table: Table) -> list[Instruction]:
        """Streams to incarnations that the table has replaced."""
        gone = [owner for owner in self.streams if self.seen[owner][0] < table.epochs.get(owner, 0)]
        return [Close(self.streams.pop(owner).stream) for owner in gone]

    def closed(self, stream: StreamId) -> None:
        outgoing = self.streams.get(stream.owner)
        if outgoing is not None and outgoing.stream == stream:
            del self.streams[stream.owner]

    def acknowledged(self, stream: StreamId, count: int) -> None:
        outgoing = self.streams.get(stream.owner)
        if outgoing is not None and outgoing.stream == stream:
            outgoing.window.acknowledged(count)
            outgoing.full_since = None

    def shed(self, now: float, patience: float) -> list[Instruction]:
        """R4: an owner that keeps its stream full too long fills from the log and comes back by itself."""
        out: list[Instruction] = []
        for owner, outgoing in list(self.streams.items()):
            if outgoing.window.room:
                outgoing.full_since = None
            elif outgoing.full_since is None:
                outgoing.full_since = now
            elif now - outgoing.full_since > patience:
                out.append(Close(self.streams.pop(owner).stream))
        return out

    @property
    def room(self) -> bool:
        return bool(self.streams) and all(each.window.room for each in self.streams.values())

    def stop_before(self) -> int | None:
        """The offset that the next stretch may not pass: the next floor's, or the end."""
        limits = [floor.offset for floor in self.floors[self.at.floors : self.at.floors + 1]]
        if self.end is not None:
            limits.append(self.end)
        return min(limits, default=None)

    @property
    def wanted(self) -> bool:
        """Whether rows may be polled now."""
        if self.ready is not None:
            return False
        stop = self.stop_before()
        return not self.ended and not self.recording and self.room and (stop is None or self.at.offset < stop)

    def controls(self) -> list[Instruction]:
        """Floors and the end of the split, which are entries of its sequence, where they are due."""
        out: list[Instruction] = []
        while not self.ended and not self.recording and self.room:
            entry = next_control(self.at, self.newest, self.floor, self.floors, self.end)
            if entry is None:
                break
            out += self.send({}, entry)
        return out

    def send(self, rows: dict[int, Batch], header: Batch) -> list[Instruction]:
        """R3: each block to every attached owner, header only if it has no rows for it."""
        out: list[Instruction] = [self._put(owner, rows.get(owner, header)) for owner in self.streams]
        self.at, self.newest, self.floor = header.to, header.newest, header.floor
        return out

    def forward(self, most: int | None) -> list[Instruction]:
        """The next piece of what is ready, of about `most` rows, if there is room."""
        if self.ready is None or not self.room:
            return []
        batches, header, last = self.ready.next(self.at, self.newest, self.floor, most)
        if last:
            self.ready = None
        return self.send(batches, header)

    def _put(self, owner: int, message: Message) -> Put:
        outgoing = self.streams[owner]
        size = sum(each.nbytes for each in message.rows.values()) if isinstance(message, Batch) else 0
        outgoing.window.sent(size)
        return Put(outgoing.stream, message)

    def mark_due(self, table: Table) -> bool:
        """Whether only room is missing for the marker of the open cut. Nothing is read meanwhile: rows would take the room again and
        again, and under load no cut would ever come about."""
        if table.closed >= table.cut or table.cut <= self.marked or not self.leads or self.recording:
            return False
        if any(self.seen.get(owner, (0, 0))[0] != epoch for owner, epoch in table.epochs.items()):
            return False
        return self.streams.keys() == table.epochs.keys()

    def mark(self, table: Table) -> list[Instruction]:
        """C1: once per cut, when all current owners are attached, every stream has room, and this reader leads."""
        if not self.mark_due(table) or not self.room:
            return []
        self.marked = table.cut
        return [self._put(owner, Marker(table.cut)) for owner in self.streams]

    def declare_idle(self, value: int) -> list[Instruction]:
        """R7: nothing to read, and nobody is past this place. It stops reading until the floor is durable."""
        if (
            self.recording
            or self.ended
            or self.ready is not None
            or not self.leads
            or self.at.floors != len(self.floors)
        ):
            return []
        if value <= max(later(self.newest, self.entry.lateness), self.floor):
            return []
        self.recording = True
        return [RecordFloor(self.split, self.epoch, Floor(self.at.offset, value))]

    def floor_recorded(self, floor: Floor) -> None:
        self.recording = False
        self.floors.append(floor)


def next_control(
    at: Place, newest: int, floor: int, floors: list[Floor] | tuple[Floor, ...], end: int | None
) -> Batch | None:
    """The floor or the end that comes next in the sequence at `at`, as a batch without rows; None if a row comes next."""
    if newest == FOREVER:
        return None
    if at.floors < len(floors) and floors[at.floors].offset <= at.offset:
        return Batch(at, Place(at.offset, at.floors + 1), newest, max(floor, floors[at.floors].watermark))
    if end is not None and at.offset >= end:
        return Batch(at, Place(end + 1, at.floors), FOREVER, floor)
    return None
