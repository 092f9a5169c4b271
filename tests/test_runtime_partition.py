"""Partitions under every interleaving that chance finds: a simulated job on the real machines, held to a naive reference.

`FLOWSTATE_SEEDS=20000 pytest tests/test_runtime_partition.py` runs that many histories; `FLOWSTATE_FIRST_SEED` says where to begin.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flowstate.exchange.message import Attach, Batch, Marker, Start, StreamId
from flowstate.exchange.route import Router
from flowstate.plan.position import NEVER, Floor, Place
from flowstate.runtime import contents as contents_module
from flowstate.runtime.contents import Contents
from flowstate.runtime.coordinator import Coordinator
from flowstate.runtime.instructions import Acknowledge, Close, LoadRecord, Put, ResolveEnd, SendAttach
from flowstate.runtime.partition import Partition
from flowstate.runtime.prepare import Prepared, Preparer
from flowstate.runtime.reading import Reading
from flowstate.runtime.table import ReaderOf, SplitEntry, Table
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecord
from flowstate.state.watermark import Watermarks
from flowstate.testing.driver import Fault, explore, simulate
from flowstate.testing.incarnation import Incarnation
from flowstate.testing.log import LATENESS, simple_plan
from flowstate.testing.world import World

SEEDS = int(os.environ.get("FLOWSTATE_SEEDS", "300"))
FIRST = int(os.environ.get("FLOWSTATE_FIRST_SEED", "0"))
PIECES = 10


@pytest.mark.timeout(max(180, SEEDS))
@pytest.mark.parametrize("piece", range(PIECES))
def test_any_history(piece: int) -> None:
    counts = explore(range(FIRST + piece, FIRST + SEEDS, PIECES))
    print(" ".join(f"{name}={count}" for name, count in sorted(counts.items())))
    if counts["seeds"] >= 20:
        assert min(counts[each] for each in ("crashes", "filled", "floors", "saves")) > 0


def test_a_seed_replays() -> None:
    assert simulate(12) == simulate(12)


# Each of these is a mistake that the rules forbid. If none of the histories showed it, the checks would be worth nothing.


def no_header_only(patch: pytest.MonkeyPatch) -> None:
    def send(self: Reading, rows: dict[int, Batch], header: Batch) -> list[Any]:
        out = [self._put(owner, rows.get(owner, header)) for owner in self.streams if owner in rows or not rows]
        self.at, self.newest, self.floor = header.to, header.newest, header.floor
        return out

    patch.setattr(Reading, "send", send)


def no_skip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contents_module, "_from", lambda rows, place: rows)


def floor_not_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Incarnation, "append_floor", lambda self, split, epoch, floor: None)


def forget_floor(patch: pytest.MonkeyPatch) -> None:
    load = Watermarks.load

    def forgetful(data: Any, reached: int = NEVER) -> Watermarks:
        marks = load(data, reached)
        marks.floor = dict.fromkeys(marks.floor, NEVER)
        return marks

    patch.setattr(Watermarks, "load", forgetful)


def position_after_view(patch: pytest.MonkeyPatch) -> None:
    commit = Incarnation.commit
    patch.setattr(
        Incarnation, "commit",
        lambda self, work, state, staged: commit(self, work, replace(state, marks=self.contents.marks.dump()), staged),
    )  # fmt: skip


def late_by_partition(patch: pytest.MonkeyPatch) -> None:
    read = Partition.read

    class Wrong(Preparer):
        def __init__(self, right: Preparer, contents: Contents) -> None:
            super().__init__(right.plan, right.router)
            self.contents = contents

        def prepare(self, source: int, rows: Any, newest: int, floor: int) -> Prepared:
            found = super().prepare(source, rows, NEVER, self.contents.marks.watermark())
            return Prepared(max(newest, found.newest), found.owners)

    def wrong(self: Partition, rows: Any, now: float) -> Any:
        right, self.preparer = self.preparer, Wrong(self.preparer, self.contents)
        try:
            return read(self, rows, now)
        finally:
            self.preparer = right

    patch.setattr(Partition, "read", wrong)


def publish_before_manifest(patch: pytest.MonkeyPatch) -> None:
    stage = World.stage

    def early(self: World, name: str, rows: Any) -> None:
        stage(self, name, rows)
        self.publish(name)

    patch.setattr(World, "stage", early)


def no_manifest_fence(patch: pytest.MonkeyPatch) -> None:
    commit = PartitionChain.commit
    patch.setattr(
        PartitionChain, "commit", lambda self, previous, manifest: commit(self, self.chain.newest(), manifest)
    )


def reader_forgets_newest(patch: pytest.MonkeyPatch) -> None:
    loaded = Partition.record_loaded

    def forgetful(self: Partition, split: str, epoch: int, record: SplitRecord, now: float) -> Any:
        out = loaded(self, split, epoch, record, now)
        if split in self.readings:
            self.readings[split].newest = NEVER
        return out

    patch.setattr(Partition, "record_loaded", forgetful)


def gap_beyond_the_join(patch: pytest.MonkeyPatch) -> None:
    fills = Partition.fills
    patch.setattr(Partition, "fills", lambda self: {split: (at, stop + 3) for split, (at, stop) in fills(self).items()})


def join_without_a_floor(patch: pytest.MonkeyPatch) -> None:
    appoint = Coordinator._appoint

    def careless(self: Coordinator, split: str) -> Any:
        self.first_floors.clear()
        return appoint(self, split)

    patch.setattr(Coordinator, "_appoint", careless)


def hand_over_twice(patch: pytest.MonkeyPatch) -> None:
    take_due = Contents.take_due

    def forgetful(self: Contents, frozen: Any) -> Any:
        before = dict(self.handed)
        due = take_due(self, frozen)
        self.handed = before
        return due

    patch.setattr(Contents, "take_due", forgetful)


MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], int]] = [
    (no_header_only, 20),
    (no_skip, 60),
    (floor_not_durable, 60),
    (forget_floor, 60),
    (position_after_view, 20),
    (late_by_partition, 20),
    (publish_before_manifest, 60),
    (no_manifest_fence, 60),
    (reader_forgets_newest, 60),
    (gap_beyond_the_join, 100),
    (join_without_a_floor, 100),
    (hand_over_twice, 20),
]


@pytest.mark.parametrize(("mistake", "seeds"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_a_mistake_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None], seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(Fault) as found:
        explore(range(seeds))
    print(found.value)


# What chance seldom reaches, by hand.

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


def test_rows_that_were_given_back_are_handed_over_once() -> None:
    """A save fails while windows expire: what it had taken comes with the next one, what expired since too, nothing twice."""
    contents = Contents(simple_plan(2), 1)
    contents.marks.include("a", lateness=LATENESS, place=Place(0))
    preparer, offset, given = (
        Preparer(contents.plan, Router(partitions=1, groups=128, seed=1)),
        0,
        Counter[tuple[Any, ...]](),
    )
    from flowstate.testing.incarnation import rows_of
    from flowstate.testing.log import SECOND, Log, Record

    log = Log("a", 0, [Record(number, "anna", number * SECOND, 1) for number in range(60)], 60, True)
    for fails in (False, True, True, False, True, False, False):
        for to in (offset + 4, offset + 8):
            rows = log.rows(offset, to)
            found = preparer.prepare(0, rows, contents.marks.newest["a"], NEVER)
            contents.apply("a", Batch(Place(offset), Place(to), found.newest, NEVER, found.owners[0]))
            offset = to
            if to % 8:
                frozen = contents.freeze()
                due = contents.take_due(frozen)
        batches = [batch for each in due.values() for batch in each.rows(frozen)]
        if fails:
            contents.give_back(0, batches)
        else:
            given.update(row for batch in batches for row in rows_of(batch))
        frozen.release()
    reached = contents.marks.reached
    contents.take_due(contents.freeze())
    expected = {("anna", end * SECOND, 6, 6) for end in range(6, 60, 6) if (end + 2) * SECOND <= reached}
    assert set(given) <= expected and max(given.values()) == 1
    assert len(given) >= 7
