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
        assert min(counts[each] for each in ("crashes", "filled", "floors", "cuts", "saves", "joined")) > 0


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


def floor_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reading, "leads", True)


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
    patch.setattr(PartitionChain, "commit", lambda self, previous, manifest: commit(self, self.chain.newest(), manifest))


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
    (floor_early, 200),
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
def test_a_mistake_is_found(mistake: Callable[[pytest.MonkeyPatch], None], seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    with pytest.raises(Fault) as found:
        explore(range(seeds))
    print(found.value)
