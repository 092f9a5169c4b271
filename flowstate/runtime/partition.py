"""One incarnation of a partition, reader and owner: a pure machine.

Events come in as method calls, instructions go out as lists. It never waits: every call does what is possible now. The rules cited are
those of the protocol (docs/protocol.md): R for readers, O for owners, C for cuts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from flowstate.errors import InternalError
from flowstate.exchange.limiter import Window
from flowstate.exchange.message import Attach, Batch, Marker, Message, Start, StreamId
from flowstate.plan.position import FOREVER, Floor, Place
from flowstate.plan.spec import DEAD_LETTERS
from flowstate.runtime.contents import Contents
from flowstate.runtime.instructions import (
    Acknowledge,
    Close,
    CutTaken,
    Instruction,
    LoadRecord,
    ResolveEnd,
    SendAttach,
)
from flowstate.runtime.prepare import Prepared, Preparer
from flowstate.runtime.reading import Reading, next_control
from flowstate.runtime.stretch import Stretch
from flowstate.runtime.table import Table
from flowstate.snapshot.record import SplitRecord
from flowstate.source.base import Rows
from flowstate.state.watermark import TIMELESS


@dataclass(frozen=True)
class Patience:
    """Seconds. `answer`: until an attach is repeated; `again`: after a stream was closed; `full`: before a slow owner is shed;
    `idle`: without a row before a split is declared idle."""

    answer: float = 3.0
    again: float = 0.05
    full: float = 20.0
    idle: float = 30.0


@dataclass
class Link:
    """The owner's end of a stream."""

    stream: StreamId
    asked: float
    queue: deque[Message] = field(default_factory=deque)
    started: bool = False
    closed_at: float | None = None


class Partition:
    """`number` of `partitions`, in `epoch`. `contents` is its state, restored before the first call of `hear`."""

    def __init__(
        self,
        number: int,
        epoch: int,
        partitions: int,
        contents: Contents,
        preparer: Preparer,
        *,
        patience: Patience | None = None,
        window: Window | None = None,
    ) -> None:
        self.number, self.epoch, self.partitions = number, epoch, partitions
        self.contents, self.preparer = contents, preparer
        self.patience, self.window = patience or Patience(), window or Window()
        self.table = Table()
        self.links: dict[str, Link] = {}
        self.goals: dict[str, Start] = {}
        self.readings: dict[str, Reading] = {}
        self.loading: dict[str, int] = {}
        self.attempts = 0
        self.cut, self.closed_cut = 0, 0
        self.held: set[str] = set()
        self.refused = 0

    # the supervisor's table

    def hear(self, table: Table) -> list[Instruction]:
        """Follow a newer table; an older one is ignored, and so is one from before this incarnation: by it, this one would follow a
        replaced reader to places that the next one does not know of (R6), or miss a split that joins (J3)."""
        if table.version <= self.table.version or table.epochs.get(self.number, 0) < self.epoch:
            return []
        self.table = table
        out: list[Instruction] = []
        marks = self.contents.marks
        for split, entry in table.splits.items():
            if split not in marks.position:
                marks.include(split, lateness=entry.lateness, place=Place(entry.start, 0))
        for split, (epoch, reader) in table.readers.items():
            link = self.links.get(split)
            if link is not None and link.stream.reader_epoch != epoch:
                out.append(Close(self.links.pop(split).stream))
            if split in self.readings and self.readings[split].epoch < epoch:
                out += [Close(each.stream) for each in self.readings.pop(split).streams.values()]
            if reader == self.number and split not in self.readings and self.loading.get(split) != epoch:
                self.loading[split] = epoch
                out.append(LoadRecord(split, epoch))
        for reading in self.readings.values():
            out += reading.drop_replaced(table)
        self.closed_cut = max(self.closed_cut, table.closed)
        if self.cut <= self.closed_cut:
            self.held.clear()
        return out + self._taken()

    # as a reader

    def record_loaded(self, split: str, epoch: int, record: SplitRecord, now: float) -> list[Instruction]:
        """R1: reading begins at this partition's own place, with the floors of the split record."""
        if self.loading.get(split) != epoch or self.table.readers.get(split, (0, 0))[0] != epoch:
            return []
        del self.loading[split]
        if record.reader_epoch != epoch:
            return []  # fenced: the table that names the next reader is on its way
        marks = self.contents.marks
        self.readings[split] = Reading(
            split,
            epoch,
            self.table.splits[split],
            self.partitions,
            marks.position[split],
            marks.newest[split],
            marks.floor[split],
            list(record.floors),
            record.end,
            self.window,
            read_at=now,
        )
        return []

    def accept(self, attach: Attach) -> list[Instruction]:
        """R2. A request for another reader epoch is refused: the owner asks again, or hears of another reader."""
        reading = self.readings.get(attach.stream.split)
        known = 0 <= attach.stream.owner < self.partitions
        if reading is None or reading.epoch != attach.stream.reader_epoch or not known:
            return [Close(attach.stream)]
        return reading.accept(attach, self.table)

    def acknowledged(self, stream: StreamId, count: int) -> None:
        if (reading := self.readings.get(stream.split)) is not None:
            reading.acknowledged(stream, count)

    def reads(self) -> dict[str, tuple[int, int | None]]:
        """Split -> (offset, stop) of what may be polled now; nothing while the job is paused (gaps are filled all the same: others have
        read that far), nor of a split whose marker waits for room."""
        wanted: dict[str, tuple[int, int | None]] = {}
        if self.table.paused:
            return wanted
        for split, reading in self.readings.items():
            if not reading.wanted or self.table.stopping or reading.mark_due(self.table):
                continue
            stop = reading.stop_before()
            if self.table.draining and reading.end is None:
                # Where it ends is about to be decided: only what somebody has applied already, so that it comes to lead.
                reached = reading.reached
                stop = reached if stop is None else min(stop, reached)
                if reading.at.offset >= stop:
                    continue
            wanted[split] = (reading.at.offset, stop)
        return wanted

    def read(self, rows: Rows, now: float, most: int | None = None) -> list[Instruction]:
        """A polled stretch goes to the owners: the first `most` rows or so (None: all); the rest is ready for `forward`."""
        reading = self.readings.get(rows.split)
        if reading is None or rows.since != reading.at.offset or rows.to <= rows.since or reading.ready is not None:
            return []
        if not reading.room or reading.recording:
            return []  # the shell polls again from the reading's own place
        prepared = self.preparer.prepare(reading.entry.source, rows, reading.newest, reading.floor)
        owners = self._owners(reading, rows, prepared)
        reading.ready = Stretch(Place(rows.to, reading.at.floors), prepared, owners)
        if rows.batch.num_rows or rows.dead.num_rows:
            reading.read_at = now
        return reading.forward(most)

    def forward(self, most: int) -> list[Instruction]:
        """The next piece, of about `most` rows, of every split of which something is ready, under the conditions of `reads`."""
        out: list[Instruction] = []
        for reading in self.readings.values():
            if reading.ready is None or self.table.paused or self.table.stopping or reading.mark_due(self.table):
                continue
            if self.table.draining and reading.end is None and reading.ready.to.offset > reading.reached:
                reading.ready = None  # `reads` says how much may be read before the end is known
            else:
                out += reading.forward(most)
        return out

    def _owners(self, reading: Reading, rows: Rows, prepared: Prepared) -> Mapping[int, Mapping[str, pa.RecordBatch]]:
        """The letter for a stretch that the log lost goes to who misses it, if its home had it before: no loss is silent. (An owner that
        attached ahead of a reader stays where it is until the reader comes by, so its place is known.)"""
        letter, home = self.preparer.lost(reading.entry.source, rows), self.preparer.home(rows.split)
        if letter is None or reading.attached.get(home, reading.at).offset < rows.to:
            return prepared.owners
        missing = [owner for owner in reading.streams if reading.attached[owner].offset < rows.to]
        return {min(missing): {DEAD_LETTERS: letter}} if missing else prepared.owners

    def floor_recorded(self, split: str, epoch: int, floor: Floor, now: float) -> list[Instruction]:
        reading = self.readings.get(split)
        if reading is None or reading.epoch != epoch:
            return []
        reading.floor_recorded(floor)
        reading.read_at = (
            now  # the next one no sooner than after as long a silence: floors stay for ever in the split record
        )
        return reading.controls()

    def end_recorded(self, split: str, epoch: int, end: int) -> list[Instruction]:
        reading = self.readings.get(split)
        if reading is None or reading.epoch != epoch:
            return []
        reading.end, reading.resolving_end = end, False
        if reading.ready is not None and reading.ready.to.offset > end:
            reading.ready = None
        return reading.controls()

    def idle(self, now: float) -> list[str]:
        """Splits without a row for long; before `declare_idle` the shell makes sure that they are at their end."""
        return [
            split
            for split, reading in self.readings.items()
            if now - reading.read_at > self.patience.idle and reading.leads and reading.entry.lateness != TIMELESS
        ]

    def declare_idle(self, split: str) -> list[Instruction]:
        """R7. The value is policy: the least watermark of the other splits that have not ended."""
        marks, reading = self.contents.marks, self.readings[split]
        others = [
            marks.of_split(each)
            for each, newest in marks.newest.items()
            if each != split and newest != FOREVER and marks.lateness[each] != TIMELESS
        ]
        return reading.declare_idle(min(others)) if others else []

    # as an owner

    def receive(self, stream: StreamId, message: Message) -> list[Instruction]:
        link = self.links.get(stream.split)
        if link is None or link.stream != stream or link.closed_at is not None:
            return [Close(stream)]
        link.queue.append(message)
        return []

    def stream_closed(self, stream: StreamId, now: float) -> None:
        """The other end, or the connection, closed it."""
        if (reading := self.readings.get(stream.split)) is not None:
            reading.closed(stream)
        link = self.links.get(stream.split)
        if link is not None and link.stream == stream and link.closed_at is None:
            link.closed_at = now
            link.queue.clear()

    def attach(self, now: float) -> list[Instruction]:
        """O1: ask for every split that nobody sends."""
        out: list[Instruction] = []
        for split, (epoch, reader) in self.table.readers.items():
            link = self.links.get(split)
            if split in self.goals:
                continue
            if link is not None:
                if link.closed_at is None and (link.started or now - link.asked < self.patience.answer):
                    continue
                if link.closed_at is not None and now - link.closed_at < self.patience.again:
                    continue
                if link.closed_at is None:
                    out.append(Close(link.stream))
            self.attempts += 1
            stream = StreamId(split, epoch, self.number, self.epoch, self.attempts)
            self.links[split] = Link(stream, now)
            out.append(SendAttach(reader, Attach(stream, self.contents.marks.position[split])))
        return out

    def consumable(self) -> list[str]:
        return [
            split
            for split, link in self.links.items()
            if link.queue and link.closed_at is None and split not in self.goals and split not in self.held
        ]

    def consume(self, split: str) -> list[Instruction]:
        """O3: take in one message. Held splits and splits whose gap is being filled wait."""
        link = self.links.get(split)
        if link is None or link.closed_at is not None or not link.queue or split in self.goals or split in self.held:
            return []
        message = link.queue.popleft()
        out: list[Instruction] = [Acknowledge(link.stream, 1)]
        match message:
            case Start():
                link.started = True
                if self.contents.marks.position[split] < message.at:
                    self.goals[split] = message
            case Marker():
                out += self._align(split, message.cut)
            case Batch():
                place = self.contents.marks.position[split]
                if message.to.floors > place.floors and message.to.offset < place.offset:
                    raise InternalError("a floor below the position of an owner", split=split, at=place, to=message.to)
                if message.since > place:
                    self.refused += 1  # asking again from the own place is always safe
                    del self.links[split]
                    return [Close(link.stream)]
                self.contents.apply(split, message)
        return out

    def fills(self) -> dict[str, tuple[int, int | None]]:
        """Split -> (offset, stop) of the gaps that this owner reads from the log itself (O2)."""
        wanted: dict[str, tuple[int, int | None]] = {}
        for split, goal in self.goals.items():
            if split not in self.held:
                place = self.contents.marks.position[split]
                last = goal.at.offset - 1 if goal.newest == FOREVER else goal.at.offset
                stops = [
                    floor.offset
                    for floor in goal.floors[place.floors : place.floors + 1]
                    if place.floors < goal.at.floors
                ]
                stop = min([last, *stops])
                if place.offset < stop:
                    wanted[split] = (place.offset, stop)
        return wanted

    def fill(self, rows: Rows) -> None:
        """O2: all rows of a gap, own keys only, up to where the stream begins and never beyond."""
        split = rows.split
        place, marks = self.contents.marks.position[split], self.contents.marks
        if split not in self.goals or rows.since != place.offset:
            return
        prepared = self.preparer.prepare(self._source(split), rows, marks.newest[split], marks.floor[split])
        own = prepared.owners.get(self.number, {})
        if (letter := self.preparer.lost(self._source(split), rows)) is not None:
            own = {DEAD_LETTERS: letter}  # its home may have read these rows in time: who misses them says so
        self.contents.apply(split, Batch(place, Place(rows.to, place.floors), prepared.newest, marks.floor[split], own))

    def fill_controls(self) -> bool:
        """Floors and ends that are due in gaps; a gap that is filled is over. True if anything moved."""
        moved = False
        for split, goal in list(self.goals.items()):
            if split in self.held:
                continue
            marks = self.contents.marks
            end = goal.at.offset - 1 if goal.newest == FOREVER else None
            while (place := marks.position[split]) < goal.at:
                entry = next_control(place, marks.newest[split], marks.floor[split], goal.floors[: goal.at.floors], end)
                if entry is None:
                    break
                self.contents.apply(split, entry)
                moved = True
            if marks.position[split] >= goal.at:
                same = marks.newest[split] == goal.newest
                if marks.position[split] == goal.at and not same and self.preparer.skips_lost(self._source(split)):
                    # One of the two read the log before retention deleted a part of it. The later event time is the true one.
                    marks.advance(split, goal.at, goal.newest, marks.floor[split])
                elif marks.position[split] == goal.at and not same:
                    raise InternalError(
                        "reader and owner disagree about the rows before a stream",
                        split=split,
                        reader=goal.newest,
                        owner=marks.newest[split],
                    )
                del self.goals[split]
                moved = True
        return moved

    def _source(self, split: str) -> int:
        return self.table.splits[split].source

    def _align(self, split: str, cut: int) -> list[Instruction]:
        """C2. A marker of a closed cut is ignored; one of a later cut replaces the hold."""
        if cut < self.cut or cut <= self.closed_cut:
            return []
        if cut > self.cut:
            self.cut, self.held = cut, set()
        self.held.add(split)
        return self._taken()

    def _taken(self) -> list[Instruction]:
        """The cut, when all splits are held and the table has told of it: markers may be faster, and only the table says what it is for."""
        if self.cut != self.table.cut or self.cut <= self.closed_cut or self.held < set(self.table.splits):
            return []
        self.closed_cut = self.cut
        self.held.clear()
        return [CutTaken(self.cut, self.contents.freeze())]

    # time

    def tick(self, now: float) -> list[Instruction]:
        """What is due without an event: attach again, floors and ends, markers, slow owners."""
        out = self.attach(now)
        for reading in self.readings.values():
            if self.table.paused:
                reading.read_at = now  # a split is not silent because nobody asks it: its silence begins anew
            out += reading.controls()
            out += reading.shed(now, self.patience.full)
            # The end is decided like a floor (R6): an owner that follows a replaced reader may be past what this one sees now.
            if self.table.draining and reading.end is None and not reading.resolving_end and reading.leads:
                reading.resolving_end = True
                out.append(ResolveEnd(reading.split, reading.epoch))
        return out + self.mark()

    def mark(self) -> list[Instruction]:
        """The markers of the open cut that can go out now (C1); also called before rows are read, so that fewer lie before them."""
        return [each for reading in self.readings.values() for each in reading.mark(self.table)]

    @property
    def cut_is_open(self) -> bool:
        """Whether a cut is still to be taken here."""
        return self.table.cut > self.closed_cut

    @property
    def ended(self) -> bool:
        """Every split of the job has passed its end here."""
        marks = self.contents.marks
        return bool(self.table.splits) and self.table.splits.keys() <= marks.position.keys() and marks.ended

    def lag(self) -> Mapping[str, int]:
        """Messages that wait, by split."""
        return {split: len(link.queue) for split, link in self.links.items()}
