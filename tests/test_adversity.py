"""A simulated job on the real machines, under every interleaving that chance finds, held to a naive reference.

`FLOWSTATE_SEEDS=20000 pytest tests/test_adversity.py` runs that many histories; `FLOWSTATE_FIRST_SEED` says where to begin.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flowstate.exchange.message import Batch
from flowstate.plan.position import NEVER
from flowstate.runtime import contents as contents_module
from flowstate.runtime.committing import Committing, SaveWork
from flowstate.runtime.contents import Contents
from flowstate.runtime.coordinator import Coordinator
from flowstate.runtime.lease import Lease
from flowstate.runtime.outputs import AppendOutput, ChangesOutput, FinalOutput
from flowstate.runtime.partition import Partition
from flowstate.runtime.prepare import Prepared, Preparer
from flowstate.runtime.reading import Reading
from flowstate.runtime.watchdog import Watchdog
from flowstate.sink.base import Stage
from flowstate.sink.files import FileSink
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.snapshot.record import SplitRecord
from flowstate.state.watermark import Watermarks
from flowstate.testing.adversity import Fault, explore, simulate
from flowstate.testing.adversity.answers import simulate_answers
from flowstate.testing.adversity.incarnation import Incarnation

SEEDS = int(os.environ.get("FLOWSTATE_SEEDS", "1000"))
FIRST = int(os.environ.get("FLOWSTATE_FIRST_SEED", "0"))
PIECES = 10


@pytest.mark.slow
@pytest.mark.timeout(max(180, SEEDS))
@pytest.mark.parametrize("piece", range(PIECES))
def test_any_history(piece: int) -> None:
    counts = explore(range(FIRST + piece, FIRST + SEEDS, PIECES), processes=os.cpu_count() or 1)
    print(" ".join(f"{name}={count}" for name, count in sorted(counts.items())))
    if counts["seeds"] >= 20:
        assert min(counts[each] for each in ("crashes", "filled", "floors", "saves", "published", "cuts")) > 0


def test_a_seed_replays() -> None:
    assert simulate(12) == simulate(12)


def test_any_history_of_answers() -> None:
    counts = sum((simulate_answers(seed) for seed in range(FIRST, FIRST + SEEDS)), Counter[str]())
    print(" ".join(f"{name}={count}" for name, count in sorted(counts.items())))
    assert min(counts[each] for each in ("live", "refused", "condemned", "lost")) > 0


# Each of these is a mistake that the rules forbid. If none of the histories showed it, the checks would be worth nothing.


def no_header_only(patch: pytest.MonkeyPatch) -> None:
    def send(self: Reading, rows: dict[int, Batch], header: Batch) -> list[Any]:
        out = [self._put(owner, rows.get(owner, header)) for owner in self.streams if owner in rows or not rows]
        self.at, self.newest, self.floor = header.to, header.newest, header.floor
        return out

    patch.setattr(Reading, "send", send)


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
    """The marks go on while the views are being saved."""
    freeze = Contents.freeze
    patch.setattr(Contents, "freeze", lambda self: replace(freeze(self), marks=self.marks))


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
    prepare = FileSink.prepare

    def early(self: FileSink, stage: Stage, rows: Any, open: Any = ()) -> Any:
        staged = prepare(self, stage, rows, open)
        for each in staged:
            if not each.open:
                self.publish(stage.store, each)
        return staged

    patch.setattr(FileSink, "prepare", early)


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
    saved = FinalOutput._saved

    def forgetful(self: FinalOutput, due: Any, frozen: Any) -> None:
        before = self.upto
        saved(self, due, frozen)
        self.upto = before

    patch.setattr(FinalOutput, "_saved", forgetful)


def apply_again_after_attach(patch: pytest.MonkeyPatch) -> None:
    """A stream that begins below the place is taken in whole."""
    patch.setattr(contents_module, "_from", lambda rows, place: rows)


def forget_open_files(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SaveWork, "open_of", lambda self, sink: [])


def forget_what_was_handed_over(patch: pytest.MonkeyPatch) -> None:
    """Damage makes a partition fall to an older state; what it had handed over comes again."""
    patch.setattr(AppendOutput, "restore", lambda self, handed, view: None)


def revisions_from_nowhere(patch: pytest.MonkeyPatch) -> None:
    """A save is believed to have handed over changes before any manifest says so."""
    failed = ChangesOutput._failed

    def careless(self: ChangesOutput, due: Any) -> None:
        failed(self, due)
        self.baseline = due.baseline

    patch.setattr(ChangesOutput, "_failed", careless)


def drop_staged_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Committing, "unpublished", property(lambda self: ()))


#: Of a mistake: how many seeds are tried, and what is chosen for their worlds.
MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], int, dict[str, Any]]] = [
    (no_header_only, 20, {}),
    (apply_again_after_attach, 60, {}),
    (floor_not_durable, 60, {}),
    (forget_floor, 60, {}),
    (position_after_view, 20, {}),
    (late_by_partition, 20, {}),
    (publish_before_manifest, 20, {}),
    (no_manifest_fence, 20, {}),
    (reader_forgets_newest, 60, {}),
    (gap_beyond_the_join, 60, {}),
    (join_without_a_floor, 100, {}),
    (hand_over_twice, 20, {}),
    (forget_open_files, 60, {}),
    (forget_what_was_handed_over, 100, {"damage_rate": 1.0, "crashes_left": 12, "save_rate": 0.2}),
    (revisions_from_nowhere, 20, {}),
    (drop_staged_too_early, 20, {}),
]


@pytest.mark.parametrize(("mistake", "seeds", "settings"), MISTAKES, ids=[each[0].__name__ for each in MISTAKES])
def test_a_mistake_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None], seeds: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(Fault) as found:
        explore(range(seeds), **settings)
    print(found.value)


def lease_without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "left", lambda self, now: 1.0)


def lease_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """The lease counts from when the acknowledgement came, not from when the report was sent."""
    patch.setattr(Lease, "acknowledged", lambda self, sent: setattr(self, "_until", sent + 2 * 2.0))


def blame_others_for_ones_own_sleep(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("flowstate.runtime.watchdog.LATE", 1e9)
    patch.setattr("flowstate.runtime.watchdog.PINGS", 0)
    patch.setattr("flowstate.runtime.watchdog.TICKS", 0)


def never_condemn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Watchdog, "tick", lambda self, now: [])


@pytest.mark.parametrize(
    "mistake", [lease_without_end, lease_from_the_answer, blame_others_for_ones_own_sleep, never_condemn]
)
def test_a_wrong_promise_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(Fault) as found:
        sum((simulate_answers(seed) for seed in range(300)), Counter[str]())
    print(found.value)
