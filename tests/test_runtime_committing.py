"""What becomes durable, when, and in which order it leaves: the pure machine, and real saves that die before any of their steps."""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowstate as fs
from flowstate.clock import ManualClock
from flowstate.errors import Fenced, InternalError, Unavailable
from flowstate.exchange.message import Batch
from flowstate.exchange.route import Router
from flowstate.plan.compile import compile as compile_plan
from flowstate.plan.output import StagedOutput
from flowstate.plan.position import FOREVER, NEVER, Place
from flowstate.plan.spec import JobPlan
from flowstate.runtime import beginning as beginning_module
from flowstate.runtime.beginning import begin
from flowstate.runtime.committing import AGAIN, Committing, Saved, SaveWork
from flowstate.runtime.contents import Contents
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.prepare import Preparer
from flowstate.runtime.saving import Saver
from flowstate.sink.base import Sink, Stage
from flowstate.sink.files import FileSink
from flowstate.snapshot.cut import SavedCut, cut_numbers, save_cut
from flowstate.snapshot.job_record import JobChain
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.partition_chain import PartitionChain
from flowstate.source import make_source
from flowstate.store import Store

SCHEMA = pa.schema({"key": pa.string(), "at": pa.timestamp("us", "UTC"), "amount": pa.int64()})
SECOND = 1_000_000
FINAL, CHANGES, LATE, STREAM = range(4)


def plan_of(rows: list[dict[str, Any]], folder: str, *, splits: int = 1, **rolls: Any) -> JobPlan:
    events = fs.from_arrow(pa.Table.from_pylist(rows, SCHEMA), event_time="at", lateness="3s", splits=splits)
    span = fs.window("at", every="6s", grace="2s", keep="9s")
    view = events.group_by("key", span=span).agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")
    sinks = [
        view.final().sink_json(f"{folder}/final", **rolls),
        view.changes().sink_json(f"{folder}/changes", **rolls),
        view.late().sink_json(f"{folder}/late", **rolls),
        events.select("key", "amount").sink_json(f"{folder}/stream", **rolls),
    ]
    return compile_plan([each.node for each in sinks])


EMPTY = plan_of([], "memory://committing")


def staged(sink: int, name: str, *, opened: bool = False, size: int = 10) -> StagedOutput:
    return StagedOutput(sink, name, "" if opened else name, 1, "", size, 5.0)


def machine(manifest: Manifest | None = None, **more: Any) -> Committing:
    return Committing(0, Contents(EMPTY, 1), manifest or Manifest(1, 1), every=10.0, now=100.0, **more)


def start(committing: Committing, now: float, *, ended: bool = False, cut: int | None = None) -> SaveWork | None:
    return committing.begin(committing.contents.freeze(), ended=ended, cut=cut, now=now)


def commit(committing: Committing, work: SaveWork | None, *named: StagedOutput, **stalled: str) -> Manifest:
    """As a saver would, with nothing in its state."""
    assert work is not None
    state = SavedState(work.frozen.marks.dump(), {})
    ended = work.ended and not named and not stalled
    manifest = Manifest(work.previous.version + 1, 1, state, named, ended=ended)
    committing.saved(work, Saved(manifest, {int(sink[1:]): reason for sink, reason in stalled.items()}), 100.0)
    return manifest


def test_saves_come_by_themselves_when_no_cut_came_for_twice_the_interval() -> None:
    committing = machine()
    assert not committing.due(False, 119.0)
    assert committing.due(False, 120.0)
    work = start(committing, 120.0)
    assert committing.saving
    assert not committing.due(False, 500.0)
    commit(committing, work)
    assert not committing.due(False, 139.0)
    assert committing.due(False, 140.0)
    assert start(committing, 140.0) is None  # nothing has changed
    assert not committing.due(False, 159.0)


def test_a_save_that_failed_is_tried_again_soon() -> None:
    committing = machine()
    work = start(committing, 120.0)
    assert work is not None
    committing.failed(work, "the store is away", 121.0)
    assert committing.problems == {"snapshot": "the store is away"}
    assert not committing.due(False, 121.0 + AGAIN / 2)
    assert not committing.due(True, 121.0 + AGAIN / 2)
    assert committing.due(False, 121.0 + AGAIN)
    again = start(committing, 122.0)
    assert again is not None
    assert again.number > work.number
    with pytest.raises(InternalError):
        committing.failed(work, "twice", 122.0)
    commit(committing, again)
    assert committing.problems == {}


def test_a_state_is_as_old_as_its_view_however_long_the_save_waits() -> None:
    """Readers choose by its age: what was applied while the save waited or staged is not in it."""
    store, clock = Store.open("memory://as-old-as-its-view"), ManualClock()
    spec = JobSpec("job", EMPTY, "memory://as-old-as-its-view", run=1)
    epoch = PartitionChain(store, spec.generation, 0).claim().epoch
    saver = Saver(spec, 0, epoch, store, clock)
    manifest, contents, _ = saver.load()
    committing = Committing(0, contents, manifest, every=10.0, now=clock.monotonic())
    frozen_at = clock.wall()
    work = committing.begin(contents.freeze(), ended=False, cut=None, now=clock.monotonic(), wall=frozen_at)
    assert work is not None
    clock.advance(7.0)
    saved = saver.save(work)
    assert saved.manifest is not None
    assert saved.manifest.state is not None
    assert saved.manifest.state.as_of == frozen_at


def test_much_output_in_memory_is_saved_early() -> None:
    committing = machine(memory=1)
    contents = committing.contents
    contents.marks.include("a", lateness=0, place=Place(0, 0))
    rows = pa.RecordBatch.from_pylist(
        [{"split": "a", "offset": 0, "key": "anna", "amount": 1}], contents.plan.tables["_stream_1"].schema
    )
    contents.apply("a", Batch(Place(0), Place(1), NEVER, NEVER, {"_stream_1": rows}))
    assert committing.spilled == contents.output_bytes > 1
    assert committing.due(False, 100.0)
    work = start(committing, 100.0)
    assert committing.spilled > 1
    commit(committing, work, staged(STREAM, "x", size=77))
    assert committing.spilled == 77
    assert not committing.due(False, 100.0)


def test_outputs_are_published_one_by_one_in_the_order_of_manifests() -> None:
    first = Manifest(3, 1, None, (staged(0, "a"), staged(0, "b"), staged(1, "c"), staged(1, "open", opened=True)))
    committing = machine(first)
    assert [each.path for each in committing.to_publish()] == ["a", "c"]
    assert committing.to_publish() == []
    committing.published(staged(0, "a"), rejected=2)
    assert [each.path for each in committing.to_publish()] == ["b"]
    work = start(committing, 100.0)
    assert work is not None
    assert [each.path for each in work.unpublished] == ["b", "c"]
    assert [each.path for each in work.open_of(1)] == ["open"]
    commit(committing, work, *work.unpublished, staged(0, "d"), staged(1, "open", opened=True))
    assert committing.to_publish() == []
    committing.published(staged(0, "b"))
    assert [each.path for each in committing.to_publish()] == ["d"]
    assert committing.spilled == 20  # c and d; not b, which the next manifest drops, and not what is open
    reports = committing.describe(15.0)
    assert [(each["waiting"], each["open"], each["rejected"]) for each in reports[:2]] == [(1, 0, 2), (1, 1, 0)]
    assert reports[0]["oldest"] == 10.0


def test_the_end_finishes_what_is_open_before_all_is_published() -> None:
    """A sink that is away holds up no other: what is open elsewhere is finished at once."""
    committing = machine(Manifest(3, 1, None, (staged(0, "a"), staged(1, "open", opened=True))))
    committing.to_publish()
    assert committing.due(True, 100.0)
    work = start(committing, 100.0, ended=True)
    assert work is not None
    assert work.ended
    commit(committing, work, staged(0, "a"), staged(1, "c"))
    assert not committing.due(True, 1000.0)  # until all is published
    committing.to_publish()
    committing.published(staged(1, "c"))
    assert not committing.due(True, 1000.0)
    committing.published(staged(0, "a"))
    assert committing.due(True, 1000.0)
    assert not committing.end_saved
    commit(committing, start(committing, 1000.0, ended=True))
    assert committing.end_saved
    assert not committing.due(True, 2000.0)
    committing.contents.marks.include("new", lateness=0, place=Place(0, 0))
    assert not committing.end_saved  # a split was found after all


def test_an_end_is_not_told_while_a_save_that_failed_may_have_landed() -> None:
    """What is saved before the first table comes knows no split, and says that nothing has ended."""
    committing = machine()
    commit(committing, start(committing, 100.0, ended=True))
    assert committing.end_saved
    committing._shares = False  # as after a restart: everything is written once more
    work = start(committing, 100.0)
    assert work is not None
    assert not work.ended
    committing.failed(work, "its answer was lost", 100.0)
    assert not committing.end_saved
    assert committing.due(True, 100.0 + AGAIN)
    committing._shares = True
    commit(committing, start(committing, 100.0 + AGAIN, ended=True))
    assert committing.end_saved


def test_a_stalled_sink_is_tried_again_though_nothing_changes() -> None:
    committing = machine()
    commit(committing, start(committing, 100.0), s0="a total does not fit")
    assert committing.problems == {"sink 0": "a total does not fit"}
    assert committing.describe(0.0)[0]["problem"] == "a total does not fit"
    work = start(committing, 200.0)
    assert work is not None
    assert not work.changed
    committing.saved(work, Saved(work.previous, {}), 200.0)
    assert committing.problems == {}
    assert start(committing, 300.0) is None


def test_a_fenced_save_hands_over_nothing() -> None:
    committing = machine()
    work = start(committing, 100.0)
    assert work is not None
    with pytest.raises(Fenced):
        committing.saved(work, Saved(None, {}), 100.0)
    assert committing.manifest.version == 1


def test_what_is_said_of_a_sink_holds_no_secret_of_its_url() -> None:
    events = fs.from_arrow(pa.Table.from_pylist([], SCHEMA), event_time="at")
    plan = compile_plan([events.select("key").sink_http("https://billing/rows?token=hunter2").node])
    (said,) = Committing(0, Contents(plan, 1), Manifest(1, 1), every=10.0, now=0.0).describe(0.0)
    assert said["url"] == "https://billing/rows?..."
    assert "hunter2" not in str(said)


# Real saves.


class Rig:
    """A job without workers: partitions that take their splits in one after the other, saves that may stop before any step."""

    def __init__(self, folder: str, rows: list[dict[str, Any]], chance: random.Random, **rolls: Any) -> None:
        self.rows, self.folder, self.chance, self.clock = rows, folder, chance, ManualClock(1000.0)
        self.plan = plan_of(rows, f"{folder}/out", splits=2, **rolls)
        self.store = Store.open(f"{folder}/snapshots")
        self.counts: Counter[str] = Counter()
        self.away: dict[int, list[StagedOutput]] = {}

    def start(self, partitions: int) -> None:
        spec = JobSpec("job", self.plan, f"{self.folder}/snapshots", partitions=partitions, every=1.0)
        beginning = begin(spec, self.clock)
        self.spec, self.splits = beginning.spec, beginning.splits
        router = Router(partitions=partitions, groups=self.spec.key_groups, seed=self.spec.seed)
        self.preparer = Preparer(self.plan, router)
        self.members: list[tuple[Saver, Committing]] = []
        for number in range(partitions):
            self.members.append(self.load(number))

    def load(self, number: int) -> tuple[Saver, Committing]:
        epoch = PartitionChain(self.store, self.spec.generation, number).claim().epoch
        saver = Saver(self.spec, number, epoch, self.store, self.clock)
        self.away.pop(number, None)
        manifest, contents, damaged = saver.load()
        assert not damaged
        for split, entry in self.splits.items():
            if split not in contents.marks.position:
                contents.marks.include(split, lateness=entry.lateness, place=Place(entry.start, 0))
        return saver, Committing(number, contents, manifest, every=1.0, now=self.clock.now)

    def apply(self, number: int, split: str, count: int) -> None:
        contents, entry = self.members[number][1].contents, self.splits[split]
        place, newest, end = contents.marks.position[split], contents.marks.newest[split], entry.end
        assert end is not None
        if place.offset > end:
            return
        if place.offset == end:
            contents.apply(split, Batch(place, Place(end + 1), FOREVER, NEVER))
            return
        reader = make_source(self.plan.sources[0]).open()
        reader.assign(entry.info(split), place.offset)
        for rows in reader.poll({split: min(end, place.offset + count)}, max_rows=count, timeout=0.0):
            prepared = self.preparer.prepare(0, rows, newest, NEVER)
            to, own = Place(rows.to), prepared.owners.get(number, {})
            contents.apply(split, Batch(place, to, prepared.newest, NEVER, own))
            place, newest = to, prepared.newest

    def save(self, number: int, *, whole: bool = False) -> None:
        """A save, which may fail or die; then some of what it staged is published."""
        saver, committing = self.members[number]
        ended = committing.contents.marks.ended
        work = committing.begin(committing.contents.freeze(), ended=ended, cut=None, now=self.clock.now)
        if work is not None:
            fate = "saved" if whole else self.chance.choice(("saved", "saved", "failed", "died"))
            try:
                saved = self.run(saver, work, fate)
            except Unavailable as error:
                committing.failed(work, str(error), self.clock.now)
                return
            if saved is None:
                self.members[number] = self.load(number)
                return
            committing.saved(work, saved, self.clock.now)
        away, self.away[number] = self.away.pop(number, []), []
        while outputs := [*away, *committing.to_publish()]:
            away = []
            for each in outputs:
                if not whole and self.chance.random() < 0.3:
                    self.away[number].append(each)  # its sink does not answer; it is asked again
                    continue
                rejected = saver.publish(each)
                if not whole and self.chance.random() < 0.1:
                    self.counts["died publishing"] += 1
                    self.members[number] = self.load(number)
                    return
                committing.published(each, rejected)

    def run(self, saver: Saver, work: SaveWork, fate: str) -> Saved | None:
        steps, left = saver.steps(work), self.chance.randint(0, 6)
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                self.counts[fate] += 1
                if fate == "died":  # after the last step: the manifest is there, and nobody heard of it
                    return None
                saved: Saved = done.value
                return saved
            if fate != "saved" and left == 0:
                self.counts[f"{fate} before {step}"] += 1
                if fate == "died":
                    return None
                raise Unavailable("the store did not answer")
            left -= 1

    def stop(self) -> None:
        """Cleanly: everybody at one position, saved as a cut."""
        marks = [committing.contents.marks for _, committing in self.members]
        for split in self.splits:
            most = max(each.position[split].offset for each in marks)
            for number, each in enumerate(marks):
                while each.position[split].offset < most:
                    self.apply(number, split, most - each.position[split].offset)
        for number in range(len(self.members)):
            self.save(number, whole=True)
        versions = {number: committing.manifest.version for number, (_, committing) in enumerate(self.members)}
        cut = max(cut_numbers(self.store), default=0) + 1
        assert save_cut(self.store, SavedCut(cut, self.spec.generation, versions, dict(marks[0].position)))

    def drain(self) -> None:
        for number, (_, committing) in enumerate(self.members):
            while not committing.contents.marks.ended:
                for split in self.splits:
                    self.apply(number, split, 50)
            for _ in range(3):
                self.clock.advance(5.0)
                if committing.due(True, self.clock.now):
                    self.save(number, whole=True)
            assert committing.end_saved
            assert committing.manifest.staged == ()

    def written(self, sink: str) -> list[dict[str, Any]]:
        store = Store.open(f"{self.folder}/out/{sink}")
        files = [store.read(name).decode() for name in store.list()]
        return [json.loads(line) for each in files for line in each.splitlines()]


def rows_of(chance: random.Random, size: int) -> list[dict[str, Any]]:
    time, rows = 0, []
    for _ in range(size):
        time += chance.choice((0, 1, 1, 3))
        at = max(0, time - chance.choice((0, 0, 2, 20)))
        rows.append({"key": chance.choice("abcde"), "at": at * SECOND, "amount": chance.randint(1, 9)})
    return rows


def check(rig: Rig, rows: list[dict[str, Any]]) -> None:
    stream = Counter((each["key"], each["amount"]) for each in rig.written("stream"))
    assert stream == Counter((each["key"], each["amount"]) for each in rows)
    totals: dict[tuple[str, int], tuple[int, int]] = {}
    late = 0
    for split, entry in rig.splits.items():
        newest = NEVER
        reader = make_source(rig.plan.sources[0]).open()
        reader.assign(entry.info(split), entry.start)
        for part in reader.poll({split: entry.end}, max_rows=10**6, timeout=0.0):
            for row in part.batch.to_pylist():
                at = int(row["at"].timestamp()) * SECOND
                end = (at // (6 * SECOND) + 1) * 6 * SECOND
                if end + 2 * SECOND <= newest - 3 * SECOND:
                    late += 1
                else:
                    total, events = totals.get((row["key"], end), (0, 0))
                    totals[row["key"], end] = total + row["amount"], events + 1
                newest = max(newest, at)
    assert len(rig.written("late")) == late
    final = Counter((each["key"], each["span_end"], each["total"], each["events"]) for each in rig.written("final"))
    assert sorted(final.values()) == [1] * len(totals)
    assert Counter((key, *value) for (key, _), value in totals.items()) == Counter(
        (key, total, events) for key, _, total, events in final
    )
    held: dict[tuple[str, str], tuple[tuple[int, int], tuple[int, int]]] = {}
    changes = rig.written("changes")
    which = [(each["key"], each["span_end"], each["_epoch"], each["_revision"]) for each in changes]
    assert len(set(which)) == len(which)
    for each in changes:
        key, revision = (each["key"], each["span_end"]), (each["_epoch"], each["_revision"])
        if key not in held or revision > held[key][0]:
            held[key] = revision, (each["total"], each["events"])
    assert {(*key, *value) for key, (_, value) in held.items()} == set(final)


def job(seed: int, folder: str) -> Counter[str]:
    chance = random.Random(seed)
    rows = rows_of(chance, chance.choice((10, 60)))
    rolls = chance.choice(({}, {"roll_bytes": 400}, {"roll_after": "4s"}, {"roll_bytes": 10_000, "roll_after": "1h"}))
    rig = Rig(folder, rows, chance, **rolls)
    for run in range(chance.choice((1, 2, 3))):
        rig.start(chance.choice((1, 2, 3)))
        rig.counts["generations"] += run > 0
        for _ in range(chance.choice((5, 20))):
            number, split = chance.randrange(len(rig.members)), chance.choice(list(rig.splits))
            rig.clock.advance(chance.choice((0.0, 1.0, 3.0)))
            if chance.random() < 0.6:
                rig.apply(number, split, chance.randint(1, 12))
            else:
                rig.save(number)
        rig.stop()
    rig.drain()
    check(rig, rows)
    return rig.counts


@contextlib.contextmanager
def somewhere() -> Iterator[str]:
    """A folder, in memory where the system has that: nothing here outlives the process."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield name


@pytest.fixture
def folder() -> Iterator[str]:
    with somewhere() as name:
        yield name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_files_hold_every_row_once_whatever_dies_and_however_many_partitions_there_are(seed: int) -> None:
    with somewhere() as folder:
        job(seed, folder)


def test_jobs_reach_every_step(folder: str) -> None:
    counts: Counter[str] = Counter()
    for seed in range(25):
        counts += job(seed, f"{folder}/{seed}")
    wanted = [f"{fate} before {step}" for fate in ("failed", "died") for step in ("stage", "segment", "manifest")]
    assert min(counts[each] for each in [*wanted, "generations", "died publishing"]) > 0, counts


def simple(folder: str, **rolls: Any) -> Rig:
    rows = [{"key": f"key {number}", "at": number * SECOND, "amount": number} for number in range(40)]
    rig = Rig(folder, rows, random.Random(1), **rolls)
    rig.start(2)
    return rig


def test_open_files_are_finished_and_published_before_keys_move(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, also when the start dies between two of them and comes again."""
    rig = simple(folder, roll_after="1h")
    for number in range(2):
        for split in rig.splits:
            rig.apply(number, split, 15)
    rig.stop()
    assert any(each.open for _, committing in rig.members for each in committing.manifest.staged)
    assert rig.written("stream") == []
    publish, asked = FileSink.publish, iter(range(100))

    def dies(self: FileSink, store: Store, each: StagedOutput) -> int:
        if next(asked) == 2:
            raise Unavailable("the disk is away")
        return publish(self, store, each)

    monkeypatch.setattr(FileSink, "publish", dies)
    with pytest.raises(Unavailable):
        rig.start(3)
    some = len(rig.written("stream"))
    assert some < 30
    rig.start(3)
    assert len(rig.written("stream")) == 30
    rig.drain()
    check(rig, rig.rows)


def test_output_after_the_cut_holds_keys_in_their_place(folder: str) -> None:
    rig = simple(folder)
    rig.stop()
    for split in rig.splits:
        rig.apply(0, split, 15)
    rig.save(0, whole=True)
    with pytest.raises(fs.InvalidFlow, match="output was written after the last saved cut"):
        rig.start(3)
    rig.start(2)
    rig.drain()
    assert len(rig.written("stream")) == 40


def test_windows_that_one_partition_alone_handed_over_hold_keys_in_their_place(folder: str) -> None:
    rig = simple(folder)
    for number in range(2):
        for split in rig.splits:
            rig.apply(number, split, 15)
    saver, committing = rig.members[1]

    class Stuck(Sink):
        def check(self, schema: pa.Schema) -> None: ...

        def prepare(self, stage: Stage, rows: pa.Table | None, open: Any = ()) -> list[StagedOutput]:
            raise fs.InvalidFlow("these rows cannot be written")

        def publish(self, store: Store, staged: StagedOutput) -> int:
            return 0

    saver.sinks[FINAL] = Stuck()
    rig.stop()
    assert "cannot be written" in committing.problems[f"sink {FINAL}"]
    with pytest.raises(fs.InvalidFlow, match="have not handed over the same windows"):
        rig.start(3)


def test_an_end_whose_state_is_damaged_is_saved_again(tmp_path: Path) -> None:
    """The log may be gone the next time. (Without that, an older state would stay the newest whole one for ever.)"""
    given = [{"key": "ab"[each % 2], "at": each * SECOND, "amount": each} for each in range(20)]
    rig = Rig(str(tmp_path), given, random.Random(1))
    rig.start(1)
    for split in rig.splits:
        rig.apply(0, split, 3)
    rig.save(0, whole=True)

    def files_of(sink: str) -> list[str]:
        return sorted(str(each) for each in (tmp_path / "out" / sink).rglob("*.*"))

    def to_the_end() -> None:
        committing = rig.members[0][1]
        for split in rig.splits:
            for _ in range(8):
                rig.apply(0, split, 5)
        assert committing.contents.marks.ended
        while committing.due(True, rig.clock.now + 100):
            rig.save(0, whole=True)
        assert committing.end_saved

    to_the_end()
    ended = rig.members[0][1].manifest
    assert ended.state is not None
    written = files_of("final")
    for segment in ended.state.segments:
        rig.store.delete(segment)
    epoch = PartitionChain(rig.store, 1, 0).claim().epoch
    saver = Saver(rig.spec, 0, epoch, rig.store, rig.clock)
    manifest, contents, damaged = saver.load()
    assert damaged
    assert not contents.marks.ended
    rig.members[0] = saver, Committing(0, contents, manifest, every=1.0, now=rig.clock.now)
    to_the_end()
    again = rig.members[0][1].manifest
    assert again.state is not None
    assert again.version > manifest.version
    assert all(map(rig.store.exists, again.state.segments))
    assert files_of("final") == written != []  # nothing is written twice


def test_no_other_run_goes_on_while_a_job_is_divided_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is taken over claims its partitions again when it finds them claimed, and would hand over what the new ones begin with;
    and another that begins in that moment would, too."""
    rig = Rig(str(tmp_path), [{"key": "a", "at": each * SECOND, "amount": 1} for each in range(9)], random.Random(1))
    rig.start(2)
    rig.stop()
    old, publish = rig.spec.run, beginning_module._finish
    told: list[str] = []

    def meanwhile(*arguments: Any) -> Any:
        try:
            JobChain(rig.store).check(old)  # what it asks before and after it claims a partition
        except Fenced as error:
            told.append(str(error))
        return publish(*arguments)

    monkeypatch.setattr(beginning_module, "_finish", meanwhile)
    rig.start(3)
    assert len(told) == 2 and f"run={old} newest={old + 1}" in told[0]
    rig.stop()

    def another(*arguments: Any) -> Any:
        monkeypatch.setattr(beginning_module, "_finish", publish)
        rig.start(3)
        return publish(*arguments)

    monkeypatch.setattr(beginning_module, "_finish", another)
    with pytest.raises(Fenced, match="begun meanwhile"):
        rig.start(4)
    newest = JobChain(rig.store).load()
    assert newest is not None and (newest.partitions, newest.generation) == (3, 2)
