"""A partition step by step: what chance seldom reaches (tests/test_adversity.py has the rest)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flowstate.exchange.message import Attach, Batch, Marker, Start, StreamId
from flowstate.exchange.route import Router
from flowstate.plan.position import NEVER, Floor, Place
from flowstate.plan.spec import DEAD_LETTERS
from flowstate.runtime.contents import Contents
from flowstate.runtime.instructions import (
    Acknowledge,
    Close,
    CutTaken,
    Instruction,
    LoadRecord,
    Put,
    ResolveEnd,
    SendAttach,
)
from flowstate.runtime.partition import Partition
from flowstate.runtime.prepare import Preparer
from flowstate.runtime.table import ReaderOf, SplitEntry, Table
from flowstate.snapshot.record import SplitRecord
from flowstate.source.base import Rows
from flowstate.source.records import Refused, dead_letters, no_rows
from flowstate.testing.adversity.log import LATENESS, Log, Record, simple_plan

PLAN = simple_plan(None)
ENTRY = SplitEntry(0, "", 0, None, None, LATENESS)


def partition(number: int = 0, partitions: int = 2, epoch: int = 1, state: Contents | None = None) -> Partition:
    router = Router(partitions=partitions, groups=128, seed=1)
    return Partition(number, epoch, partitions, state or Contents(PLAN, 1), Preparer(PLAN, router))


def table(version: int, *, epochs: dict[int, int] | None = None, reader: ReaderOf | None = None, **more: Any) -> Table:
    return Table(version, {"a": reader or ReaderOf(1, 0)}, epochs or {0: 1, 1: 1}, {}, {"a": ENTRY}, **more)


def attach(owner: int, place: Place, *, epoch: int = 1, attempt: int = 1, reader_epoch: int = 1) -> Attach:
    return Attach(StreamId("a", reader_epoch, owner, epoch, attempt), place)


def reader(at: int = 0, floors: tuple[Floor, ...] = (), **more: Any) -> Partition:
    """Partition 0, reading split a from `at`."""
    contents = Contents(PLAN, 1)
    contents.marks.include(
        "a", lateness=LATENESS, place=Place(at, len(floors)), newest=NEVER if at == 0 else 50_000_000
    )
    machine = partition(state=contents)
    assert machine.hear(table(1, **more)) == [LoadRecord("a", 1)]
    machine.record_loaded("a", 1, SplitRecord(1, floors), 0.0)
    return machine


def test_an_incarnation_follows_no_table_from_before_it() -> None:
    """By one it could follow a replaced reader, or act on watermarks without a split that joins."""
    machine = partition(epoch=2)
    assert machine.hear(table(7)) == [] and machine.attach(0.0) == [] and not machine.contents.marks.position
    machine.hear(table(8, epochs={0: 2, 1: 1}))
    assert [type(each) for each in machine.attach(0.0)] == [SendAttach]


def test_no_floor_before_everybody_was_here() -> None:
    """R6, interleaving 3: who has not attached may follow a replaced reader to places that this one does not know."""
    reading = reader(at=10).readings["a"]
    reading.accept(attach(0, Place(10)), table(1))
    assert not reading.leads and reading.declare_idle(10**12) == []
    reading.accept(attach(1, Place(12)), table(1))
    assert not reading.leads and reading.declare_idle(10**12) == []
    reading.at = Place(12)
    assert reading.leads and len(reading.declare_idle(10**12)) == 1
    assert not reading.wanted and reading.declare_idle(10**12) == []  # nothing is read while a floor is being written


def test_the_end_of_a_drained_split_waits_for_the_lead() -> None:
    machine = reader(at=10, draining=True)
    assert machine.reads() == {} and not any(isinstance(each, ResolveEnd) for each in machine.tick(0.0))
    machine.accept(attach(0, Place(10)))
    machine.accept(attach(1, Place(14)))
    assert machine.reads() == {"a": (10, 14)}
    assert not any(isinstance(each, ResolveEnd) for each in machine.tick(0.0))
    machine.readings["a"].at = Place(14)
    assert machine.reads() == {}
    assert [each for each in machine.tick(0.0) if isinstance(each, ResolveEnd)] == [ResolveEnd("a", 1)]
    assert not any(isinstance(each, ResolveEnd) for each in machine.tick(0.0))
    machine.end_recorded("a", 1, 16)
    assert machine.reads() == {"a": (14, 16)}


def test_a_record_that_comes_too_late_is_not_read() -> None:
    """The table has moved on, or the record says that somebody else has been asked since."""
    contents = Contents(PLAN, 1)
    contents.marks.include("a", lateness=LATENESS, place=Place(0))
    machine = partition(state=contents)
    assert machine.hear(table(1)) == [LoadRecord("a", 1)]
    machine.hear(table(2, reader=ReaderOf(2, 1)))
    machine.record_loaded("a", 1, SplitRecord(1), 0.0)
    assert machine.readings == {}
    assert machine.hear(table(3, reader=ReaderOf(3, 0))) == [LoadRecord("a", 3)]
    machine.record_loaded("a", 3, SplitRecord(4), 0.0)
    assert machine.readings == {}


def test_attaches_in_any_order() -> None:
    """Interleaving 10: the newest request of the newest incarnation has the stream."""
    reading = reader().readings["a"]
    (first,) = reading.accept(attach(1, Place(0), attempt=4), table(1))
    assert isinstance(first, Put) and isinstance(first.message, Start)
    late = attach(1, Place(0), attempt=3)
    assert reading.accept(late, table(1)) == [Close(late.stream)]
    closed, started = reading.accept(attach(1, Place(0), epoch=2, attempt=1), table(1))
    assert closed == Close(first.stream) and isinstance(started, Put)
    zombie = attach(1, Place(0), attempt=9)
    assert reading.accept(zombie, table(1)) == [Close(zombie.stream)]


def test_an_attach_before_the_reader_knows_that_it_reads() -> None:
    machine = partition()
    request = attach(1, Place(0))
    assert machine.accept(request) == [Close(request.stream)]


def owner(place: Place) -> tuple[Partition, StreamId]:
    """Partition 1, which has asked partition 0 for split a."""
    contents = Contents(PLAN, 1)
    contents.marks.include("a", lateness=LATENESS, place=place)
    machine = partition(number=1, state=contents)
    machine.hear(table(1))
    (asked,) = machine.attach(0.0)
    assert isinstance(asked, SendAttach)
    return machine, asked.attach.stream


def test_the_end_is_an_entry_of_a_gap() -> None:
    """A stream that begins behind the end: rows, then the floor, then the end, in the order of the sequence."""
    machine, stream = owner(Place(3))
    machine.receive(stream, Start(Place(6, 1), 2**63 - 1, (Floor(5, 70),)))
    assert machine.consume("a") == [Acknowledge(stream, 1)]
    assert machine.fills() == {"a": (3, 5)}
    machine.contents.apply("a", Batch(Place(3), Place(5), 60, NEVER))
    assert machine.fills() == {} and machine.fill_controls()
    marks = machine.contents.marks
    assert marks.position["a"] == (6, 1) and marks.ended and marks.floor["a"] == 70 and machine.goals == {}


def test_a_held_split_waits_and_a_closed_cut_lets_it_go() -> None:
    machine, stream = owner(Place(0))
    for message in (Start(Place(0), NEVER, ()), Marker(1), Batch(Place(0), Place(1), NEVER, NEVER)):
        machine.receive(stream, message)
    entries = {"a": ENTRY, "b": ENTRY}
    machine.hear(replace(table(2, cut=1), splits=entries))
    machine.consume("a")
    assert machine.consume("a") == [Acknowledge(stream, 1)] and machine.held == {"a"}
    assert machine.consumable() == []
    machine.hear(replace(table(3, cut=1, closed=1), splits=entries))
    assert machine.consumable() == ["a"]
    machine.receive(stream, Marker(1))
    machine.consume("a")
    machine.consume("a")
    assert machine.held == set()  # a marker of a closed cut


def test_a_marker_that_is_faster_than_the_table_is_held_until_that_tells_what_the_cut_is_for() -> None:
    machine, stream = owner(Place(0))
    for message in (Start(Place(0), NEVER, ()), Marker(1), Batch(Place(0), Place(1), NEVER, NEVER)):
        machine.receive(stream, message)
    machine.consume("a")
    assert machine.consume("a") == [Acknowledge(stream, 1)]
    assert machine.held == {"a"}
    [taken] = [each for each in machine.hear(table(2, cut=1)) if isinstance(each, CutTaken)]
    assert taken.cut == 1
    assert taken.frozen.marks.position == {"a": Place(0)}
    assert machine.consumable() == ["a"]
    assert not machine.cut_is_open
    assert not any(isinstance(each, CutTaken) for each in machine.hear(table(3, cut=1)))


def test_a_marker_has_the_first_claim_on_room() -> None:
    """Under load rows would take the room that is acknowledged again and again, and no cut would ever come about."""
    machine = reader(at=10)
    for number in range(2):
        machine.accept(attach(number, Place(10)))  # each is sent a Start
    window = machine.readings["a"].streams[1].window
    while window.room:
        window.sent(1)
    machine.hear(table(2, cut=1))
    assert machine.mark() == [] and machine.reads() == {}
    machine.acknowledged(StreamId("a", 1, 1, 1, 1), 1)
    assert machine.reads() == {}
    assert machine.mark() == [Put(StreamId("a", 1, each, 1, 1), Marker(1)) for each in range(2)]
    machine.acknowledged(StreamId("a", 1, 1, 1, 1), 1)
    assert machine.reads() == {"a": (10, None)} and machine.mark() == []


def test_what_tells_two_tables_apart() -> None:
    assert table(3, cut=2, closed=1, saves=True).same_but_for_cuts(table(2, cut=1))
    assert not table(3, cut=1).same_but_for_cuts(table(2, cut=1, draining=True))
    assert not table(3).same_but_for_cuts(table(2, epochs={0: 2, 1: 1}))


def test_nothing_is_read_while_paused_and_silence_begins_anew() -> None:
    machine = reader(at=10)
    machine.accept(attach(0, Place(10)))
    machine.accept(attach(1, Place(10)))
    assert machine.reads() == {"a": (10, None)}
    assert machine.idle(31.0) == ["a"]
    machine.hear(table(2, paused=True))
    machine.tick(1000.0)
    assert machine.reads() == {}
    assert machine.idle(1000.0) == []
    machine.hear(table(3))
    assert machine.reads() == {"a": (10, None)}
    assert machine.idle(1029.0) == []
    assert machine.idle(1031.0) == ["a"]


def stretch(since: int, to: int) -> Rows:
    """Records of split a, one at each offset; each is in two windows."""
    records = [Record(each, "anna", 60_000_000 + 1_000_000 * each, 1) for each in range(since, to)]
    return Log("a", since, records, to, False).rows(since, to)


def sent(instructions: list[Instruction]) -> list[tuple[int, int, int, int]]:
    """Owner, since, to, and newest event time in seconds after the first minute, of each batch."""
    return [
        (each.stream.owner, each.message.since.offset, each.message.to.offset, each.message.newest // 1_000_000 - 60)
        for each in instructions
        if isinstance(each, Put) and isinstance(each.message, Batch)
    ]


def test_a_stretch_goes_out_piece_by_piece_and_markers_between() -> None:
    machine = reader(at=10)
    for number in range(2):
        machine.accept(attach(number, Place(10)))
    assert sent(machine.read(stretch(10, 19), 1.0, 8)) == [(0, 10, 14, 13), (1, 10, 14, 13)]
    assert machine.reads() == {} and machine.read(stretch(14, 19), 1.0) == []  # first what is ready
    machine.hear(table(2, cut=1))
    assert machine.forward(8) == []  # the marker of an open cut has the first claim
    assert machine.mark() == [Put(StreamId("a", 1, each, 1, 1), Marker(1)) for each in range(2)]
    assert machine.readings["a"].at == Place(14)
    assert sent(machine.forward(1)) == [(0, 14, 15, 14), (1, 14, 15, 14)]
    machine.hear(table(3, cut=1, paused=True))
    assert machine.forward(8) == []
    machine.hear(table(4, cut=1))
    machine.stream_closed(StreamId("a", 1, 1, 1, 1), 1.0)
    assert machine.accept(attach(1, Place(10), attempt=2)) == [
        Put(StreamId("a", 1, 1, 1, 2), Start(Place(15), 74_000_000, ()))
    ]
    assert sent(machine.forward(8)) == [(0, 15, 19, 18), (1, 15, 19, 18)]
    assert machine.forward(8) == [] and machine.reads() == {"a": (19, None)}


def test_no_piece_goes_out_without_room_and_no_floor_before_the_last() -> None:
    machine = reader(at=10)
    for number in range(2):
        machine.accept(attach(number, Place(10)))
    machine.read(stretch(10, 60), 1.0, 4)
    while machine.forward(4):
        pass
    window = machine.readings["a"].streams[0].window
    assert len(window.sizes) == window.messages and machine.readings["a"].at == Place(10 + 2 * (window.messages - 1))
    assert machine.readings["a"].declare_idle(10**12) == []
    for number in range(2):
        machine.acknowledged(StreamId("a", 1, number, 1, 1), window.messages)
    assert len(sent(machine.forward(100))) == 2 and machine.readings["a"].at == Place(60)
    assert len(machine.readings["a"].declare_idle(10**12)) == 1


def test_what_lies_behind_the_end_of_a_drained_split_is_forgotten() -> None:
    machine = reader(at=10)
    machine.accept(attach(0, Place(10)))
    machine.accept(attach(1, Place(13)))
    machine.read(stretch(10, 20), 1.0, 4)
    machine.hear(table(2, draining=True))
    assert machine.forward(1) == [] and machine.reads() == {"a": (12, 13)}
    machine.read(stretch(12, 13), 1.0)
    machine.end_recorded("a", 1, 18)
    machine.read(stretch(13, 20), 1.0, 4)
    machine.end_recorded("a", 1, 18)
    assert machine.forward(20) == [] and machine.reads() == {"a": (15, 18)}


SKIPPING = replace(
    PLAN, sources=tuple(replace(each, options={**each.options, "lost": "skip"}) for each in PLAN.sources)
)
HOME = Router(partitions=2, groups=128, seed=1).owner_of_split("a")


def skipping(number: int, place: Place) -> Partition:
    contents = Contents(SKIPPING, 1)
    contents.marks.include("a", lateness=LATENESS, place=place, newest=50_000_000)
    router = Router(partitions=2, groups=128, seed=1)
    return Partition(number, 1, 2, contents, Preparer(SKIPPING, router))


def lost(since: int, to: int) -> Rows:
    letter = Refused(to - 1, f"{to - since} offsets were deleted", None, None)
    return Rows("a", since, to, no_rows(SKIPPING.sources[0]), dead_letters("events", "a", [letter]))


def letters(machine: Partition) -> int:
    return machine.contents.tables[DEAD_LETTERS].count  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [0, 1])
def test_who_fills_a_gap_that_the_log_lost_says_so(number: int) -> None:
    """The home of the split's letters may have read the rows in time, and then nobody else would say that they are missing here."""
    machine = skipping(number, Place(50))
    machine.hear(table(1))
    (asked,) = machine.attach(0.0)
    assert isinstance(asked, SendAttach)
    machine.receive(asked.attach.stream, Start(Place(150), 50_000_000, ()))
    machine.consume("a")
    assert machine.fills() == {"a": (50, 150)}
    machine.fill(lost(50, 100))
    assert machine.contents.marks.position["a"] == (100, 0)
    assert letters(machine) == 1


@pytest.mark.parametrize("behind", [True, False])
def test_a_letter_goes_to_who_misses_the_rows_where_its_home_had_them(behind: bool) -> None:
    machine = skipping(0, Place(50))
    machine.hear(table(1))
    machine.record_loaded("a", 1, SplitRecord(1), 0.0)
    other = 1 - HOME
    machine.accept(attach(HOME, Place(50 if behind else 120)))
    machine.accept(attach(other, Place(50)))
    told = {
        each.stream.owner
        for each in machine.read(lost(50, 100), 1.0)
        if isinstance(each, Put) and isinstance(each.message, Batch) and each.message.rows
    }
    assert told == {HOME if behind else other}
