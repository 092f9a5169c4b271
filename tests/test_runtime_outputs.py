"""Output of a partition under any history of saves, failures, stalled sinks, forgotten windows, crashes and damage, against a naive twin.

What a manifest names is out; what no manifest names is not. So the output of a history is what all manifests together name.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowstate as fs
from flowstate.errors import InternalError
from flowstate.exchange.message import Batch
from flowstate.exchange.route import Router
from flowstate.plan.compile import compile as compile_plan
from flowstate.plan.position import FOREVER, NEVER, OFFSET, TIME, Place, later
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, JobPlan, SinkSpec
from flowstate.runtime.committing import Committing, Saved, SaveWork
from flowstate.runtime.contents import Contents, Frozen
from flowstate.runtime.outputs import AppendOutput, ChangesDue, ChangesOutput, FinalOutput, make_output
from flowstate.runtime.prepare import Preparer
from flowstate.snapshot.manifest import Manifest, SavedState
from flowstate.snapshot.segment import load_tables, save_state
from flowstate.source.base import Rows
from flowstate.testing.heap_store import HeapStore

SECOND = 1_000_000
EVERY, GRACE, LATENESS = 6 * SECOND, 2 * SECOND, 3 * SECOND
SCHEMA = pa.schema(
    {"key": pa.string(), "at": pa.timestamp("us", "UTC"), "amount": pa.int64(), "parts": pa.list_(pa.int64())}
)
FINAL, CHANGES, LATE, STREAM, WHOLE = range(5)


def plan_of(keep: str | None) -> JobPlan:
    """A sink of each kind, over a view whose windows are forgotten after `keep`; and changes of one that keeps everything."""
    empty = pa.Table.from_pylist([], SCHEMA)
    events = fs.from_arrow(empty, event_time="at", lateness="3s")
    span = fs.window("at", every="6s", grace="2s", keep=keep)
    view = events.group_by("key", span=span).agg(total=fs.col("amount").sum(), events=fs.len()).view("totals")
    whole = events.group_by("key").agg(total=fs.col("amount").sum(), events=fs.len()).view("whole")
    sinks = [
        view.final().sink_json("memory://outputs/final"),
        view.changes().sink_json("memory://outputs/changes"),
        view.late().sink_json("memory://outputs/late"),
        events.explode("parts").select("key", part="parts").sink_json("memory://outputs/stream"),
        whole.changes().sink_json("memory://outputs/whole"),
    ]
    return compile_plan([each.node for each in sinks])


PLANS = {keep: plan_of(keep) for keep in (None, "2s", "9s")}


class Event(NamedTuple):
    offset: int
    key: str
    time: int
    amount: int
    parts: tuple[int, ...]


def log_of(chance: random.Random, size: int) -> list[Event]:
    """Offsets with gaps; times that mostly grow, some too late."""
    offset, time, events = 0, 0, []
    for number in range(size):
        time += chance.choice((0, 1, 1, 2, 5))
        at = max(0, time - chance.choice((0, 0, 0, 2, 14))) * SECOND
        parts = tuple(100 * number + part for part in range(chance.choice((1, 1, 2, 3))))
        events.append(Event(offset, chance.choice("abcd"), at, chance.randint(1, 9), parts))
        offset += chance.choice((1, 1, 4))
    return events


@dataclass
class Expected:
    """Computed from the beginning, row by row. `totals`: (key, end) -> total, events; `whole`: by key."""

    totals: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    whole: dict[str, tuple[int, int]] = field(default_factory=dict)
    late: Counter[tuple[str, int]] = field(default_factory=Counter)
    stream: Counter[tuple[str, int]] = field(default_factory=Counter)

    @staticmethod
    def of(logs: dict[str, list[Event]]) -> Expected:
        found = Expected()
        for split, events in logs.items():
            newest = NEVER
            for each in events:
                found.stream.update((each.key, part) for part in each.parts)
                total, count = found.whole.get(each.key, (0, 0))
                found.whole[each.key] = total + each.amount, count + 1
                end = (each.time // EVERY + 1) * EVERY
                if end + GRACE <= later(newest, LATENESS):
                    found.late[split, each.offset] += 1
                else:
                    total, count = found.totals.get((each.key, end), (0, 0))
                    found.totals[each.key, end] = total + each.amount, count + 1
                newest = max(newest, each.time)
        return found


def rows_of(split: str, events: Iterable[Event], since: int, to: int) -> Rows:
    some = [each for each in events if since <= each.offset < to]
    columns = [
        pa.array([each.key for each in some], pa.string()),
        pa.array([each.time for each in some], pa.int64()).cast(SCHEMA.field("at").type),
        pa.array([each.amount for each in some], pa.int64()),
        pa.array([list(each.parts) for each in some], SCHEMA.field("parts").type),
        pa.array([each.offset for each in some], pa.int64()),
        pa.array([each.time for each in some], pa.int64()),
    ]
    schema = pa.schema([*SCHEMA, pa.field(OFFSET, pa.int64()), pa.field(TIME, pa.int64())])
    dead = pa.RecordBatch.from_pylist([], schema=DEAD_LETTER_SCHEMA)
    return Rows(split, since, to, pa.RecordBatch.from_arrays(columns, schema=schema), dead)


class Partition:
    """One partition, its chain, and everything that its manifests ever named."""

    def __init__(self, plan: JobPlan, logs: dict[str, list[Event]]) -> None:
        self.plan, self.logs = plan, logs
        self.preparer = Preparer(plan, Router(partitions=1, groups=128, seed=1))
        self.store, self.chain, self.epoch, self.now = HeapStore(), [Manifest(0, 0)], 0, 0.0
        self.out: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.whole: list[SavedState] = []
        self.counts: Counter[str] = Counter()
        self.crash(0)

    def crash(self, back: int) -> None:
        """Begin anew from the newest manifest; with `back`, from the state that many saves before, as its own is damaged. What is damaged
        once stays so: a later fall goes to what came of that state, or before it."""
        newest = self.chain[-1]
        self.epoch += 1
        contents = Contents(self.plan, 1, 1 << 32 | self.epoch)
        if self.whole:
            del self.whole[max(1, len(self.whole) - back) :]
            state = self.whole[-1]
            assert newest.state is not None
            self.counts["older"] += state != newest.state
            reached = newest.state.extras["reached"]
            contents.restore(state, newest.handed, load_tables(self.store, state), reached=reached)
        for split in self.logs:
            if split not in contents.marks.position:
                contents.marks.include(split, lateness=LATENESS, place=Place(0, 0))
        self.contents, self.work = contents, None
        claimed = Manifest(newest.version + 1, self.epoch, newest.state, newest.staged, newest.handed)
        self.chain.append(claimed)
        self.committing = Committing(0, contents, claimed, every=1.0, now=self.now)

    def apply(self, split: str, count: int) -> None:
        """The next rows of a split, or its end."""
        events, contents = self.logs[split], self.contents
        place, newest = contents.marks.position[split], contents.marks.newest[split]
        end = events[-1].offset + 1 if events else 0
        if place.offset > end:
            return
        if place.offset == end:
            contents.apply(split, Batch(place, Place(end + 1, 0), FOREVER, NEVER))
            return
        since = max(0, place.offset - 2)  # what was applied before is skipped
        to = min(end, place.offset + count)
        found = self.preparer.prepare(0, rows_of(split, events, place.offset, to), newest, NEVER)
        both = found.owners.get(0, {})
        if since < place.offset:
            before = self.preparer.prepare(0, rows_of(split, events, since, place.offset), NEVER, NEVER).owners.get(
                0, {}
            )
            both = {
                name: pa.concat_batches([each[name] for each in (before, both) if name in each])
                for name in before | both
            }
        contents.apply(split, Batch(Place(since, 0), Place(to, 0), found.newest, NEVER, both))
        self.counts["rows"] += 1

    def begin(self) -> None:
        if self.work is None:
            ended = self.contents.marks.ended
            self.work = self.committing.begin(self.contents.freeze(), ended=ended, cut=None, now=self.now)

    def finish(self, fate: str, stalled: Iterable[int] = ()) -> None:
        """How the save that is under way ends: saved (with these sinks stalled), failed, or its answer is lost in a crash."""
        work, self.work = self.work, None
        if work is None:
            return
        self.counts[fate] += 1
        if fate == "failed":
            self.committing.failed(work, "the store did not answer", self.now)
            return
        stuck = dict.fromkeys(stalled, "stuck")
        saved = self.commit(work, stuck)
        if fate == "lost":
            self.crash(0)
        else:
            self.counts["stalled"] += len(stuck)
            self.committing.saved(work, Saved(saved, stuck), self.now)

    def commit(self, work: SaveWork, stuck: dict[int, str]) -> Manifest:
        handed = {}
        for sink, due in work.due.items():
            rows = due.left if sink in stuck else due.rows(work.frozen)
            self.out[sink] += [row for batch in rows for row in batch.to_pylist()]
            mark = due.handed_left if sink in stuck else due.handed
            if mark is not None:
                handed[str(sink)] = mark
        state = save_state(
            self.store, "g0001/p0000", self.epoch, work.number,
            {name: view.chunks for name, view in work.frozen.views.items()},
            work.previous.state if work.shares else None,
            work.frozen.marks.dump(), dict(work.frozen.extras), float(len(self.chain)),
        )  # fmt: skip
        state = SavedState.parse(state.dump())
        self.whole.append(state)
        manifest = Manifest(work.previous.version + 1, self.epoch, state, (), handed, ended=work.ended and not stuck)
        assert manifest.version == self.chain[-1].version + 1
        self.chain.append(Manifest.parse(manifest.version, manifest.dump()))
        return self.chain[-1]

    def drain(self) -> None:
        self.finish("saved")
        while not self.contents.marks.ended:
            for split in self.logs:
                self.apply(split, 7)
        for _ in range(3):
            self.now += 10.0
            if self.committing.due(True, self.now):
                self.begin()
                self.finish("saved")
        assert self.committing.end_saved and self.contents.output_bytes == 0

    def check(self) -> None:
        expected = Expected.of(self.logs)
        final = Counter((row["key"], micros(row["span_end"]), row["total"], row["events"]) for row in self.out[FINAL])
        assert final == Counter((*key, *value) for key, value in expected.totals.items())
        assert Counter((row["split"], row["offset"]) for row in self.out[LATE]) == expected.late
        assert Counter((row["key"], row["part"]) for row in self.out[STREAM]) == expected.stream
        self.check_changes(CHANGES, expected.totals)
        self.check_changes(WHOLE, {(key,): value for key, value in expected.whole.items()})

    def check_changes(self, sink: int, expected: dict[Any, tuple[int, int]]) -> None:
        held: dict[Any, tuple[tuple[int, int], tuple[int, int]]] = {}
        seen = set()
        for row in self.out[sink]:
            key = (row["key"], micros(row["span_end"])) if sink == CHANGES else (row["key"],)
            which = row["_epoch"], row["_revision"]
            assert row["_epoch"] >> 32 == 1
            assert (key, which) not in seen, "a change came twice"
            seen.add((key, which))
            assert row["_revision"] == row["events"]
            if key not in held or which > held[key][0]:
                held[key] = which, (row["total"], row["events"])
        assert {key: value for key, (_, value) in held.items()} == expected


def micros(time: Any) -> int:
    return int(time.timestamp()) * SECOND


def history(seed: int) -> Counter[str]:
    chance = random.Random(seed)
    logs = {
        name: log_of(chance, chance.choice((0, 8, 30))) for name in ("events/0", "events/1")[: chance.choice((1, 2))]
    }
    partition = Partition(PLANS[chance.choice(list(PLANS))], logs)
    stuck: set[int] = set()
    for _ in range(chance.choice((10, 40, 80))):
        dice = chance.random()
        if dice < 0.5:
            partition.apply(chance.choice(list(logs)), chance.randint(1, 9))
        elif dice < 0.7:
            partition.begin()
        elif dice < 0.9:
            if chance.random() < 0.2:
                stuck = {sink for sink in (FINAL, CHANGES, WHOLE) if chance.random() < 0.5}
            partition.finish(chance.choice(("saved", "saved", "saved", "failed", "lost")), stuck)
        elif dice < 0.95:
            partition.crash(chance.choice((0, 0, 1, 2, 5)))
    partition.drain()
    partition.check()
    return partition.counts


def histories(seeds: Iterable[int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        counts += history(seed)
    return counts


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_any_history_hands_everything_over_once(seed: int) -> None:
    history(seed)


def test_histories_reach_what_matters() -> None:
    counts = histories(range(60))
    assert min(counts[each] for each in ("saved", "failed", "lost", "stalled", "older")) > 10, counts


# Each of these would lose rows or hand them over twice. If no history showed it, the checks would be worth nothing.


def forgets_what_left_meanwhile(patch: pytest.MonkeyPatch) -> None:
    saved = FinalOutput._saved

    def forgetful(self: FinalOutput, due: Any, frozen: Any) -> None:
        self._meanwhile = {}
        saved(self, due, frozen)

    patch.setattr(FinalOutput, "_saved", forgetful)


def forgets_what_left_apart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FinalOutput, "mark", lambda self, upto, apart: upto)


def hands_over_what_is_not_whole(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Frozen, "closed", property(lambda self: self.marks.reached))


def loses_what_failed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AppendOutput, "_failed", lambda self, due: None)


def appends_again_after_a_fall(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AppendOutput, "restore", lambda self, handed, view: None)


def forgets_that_changes_stalled(patch: pytest.MonkeyPatch) -> None:
    begin = ChangesDue.__init__

    def forgetful(self: ChangesDue, *given: Any) -> None:
        begin(self, *given)
        self.handed_left = self.handed

    patch.setattr(ChangesDue, "__init__", forgetful)


def takes_changes_that_left_for_saved(patch: pytest.MonkeyPatch) -> None:
    failed = ChangesOutput._failed

    def forgetful(self: ChangesOutput, due: Any) -> None:
        self._if_failed = self._if_saved
        failed(self, due)

    patch.setattr(ChangesOutput, "_failed", forgetful)


MISTAKES: list[
    tuple[Callable[[pytest.MonkeyPatch], None], int]
] = [  # each with the seed to begin at, so as not to search for long
    (forgets_what_left_meanwhile, 0),
    (forgets_what_left_apart, 155),
    (hands_over_what_is_not_whole, 255),
    (loses_what_failed, 0),
    (appends_again_after_a_fall, 0),
    (forgets_that_changes_stalled, 0),
    (takes_changes_that_left_for_saved, 80),
]


@pytest.mark.parametrize(("mistake", "seed"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_a_mistake_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        histories(range(seed, seed + 600))


RICH = [
    Event(0, "rich", 1 * SECOND, 2**62, (0,)),
    Event(1, "anna", 2 * SECOND, 5, (1,)),
    Event(2, "anna", 20 * SECOND, 6, (2,)),
    Event(3, "anna", 50 * SECOND, 7, (3,)),
]


def final_rows(partition: Partition) -> Counter[tuple[str, int, int]]:
    return Counter((row["key"], micros(row["span_end"]) // SECOND, row["total"]) for row in partition.out[FINAL])


def test_rows_that_a_standing_sink_handed_over_do_not_come_again_after_a_fall_to_an_older_state() -> None:
    """Windows that left the state were staged while the sink stood still at a window before; the newest state is damaged, and in the one
    before the windows are still there."""
    partition = Partition(PLANS["9s"], {"events/0": RICH})
    partition.apply("events/0", 3)  # up to 20 s: the window that ends at 6 is closed (8 <= 17), and forgotten at 15
    partition.begin()
    partition.apply("events/0", 1)  # up to 50 s: the window that ends at 24 is forgotten while the save is under way
    partition.finish("failed")
    assert partition.contents.outputs[FINAL].size.rows == 3
    partition.begin()
    partition.finish("saved", [FINAL])
    assert final_rows(partition) == Counter([("rich", 6, 2**62), ("anna", 6, 5), ("anna", 24, 6)])
    assert partition.chain[-1].handed["0"] == {"watermark": NEVER, "windows": [6 * SECOND, 24 * SECOND]}
    partition.crash(1)
    partition.drain()
    assert final_rows(partition) == Counter([("rich", 6, 2**62), ("anna", 6, 5), ("anna", 24, 6), ("anna", 54, 7)])


def test_a_window_that_is_not_whole_yet_waits_after_a_fall_to_an_older_state() -> None:
    """The watermark that was acted upon before the fall is ahead of the rows of the older state."""
    events = [
        Event(0, "anna", 1 * SECOND, 1, (0,)),
        Event(1, "anna", 2 * SECOND, 2, (1,)),
        Event(2, "ben", 30 * SECOND, 3, (2,)),
    ]
    partition = Partition(PLANS[None], {"events/0": events})
    partition.apply("events/0", 1)
    partition.begin()
    partition.finish("saved", [FINAL])
    partition.apply("events/0", 2)
    partition.begin()
    partition.finish("saved", [FINAL])
    partition.crash(1)
    assert partition.contents.marks.reached == 27 * SECOND and partition.contents.closed < 0
    partition.begin()
    partition.finish("saved")
    assert final_rows(partition) == Counter()
    partition.drain()
    assert final_rows(partition) == Counter([("anna", 6, 3), ("ben", 36, 3)])


def test_a_total_that_does_not_fit_holds_its_sink_and_what_would_be_forgotten() -> None:
    events = [*RICH[:1], Event(1, "rich", 2 * SECOND, 2**62, (1,)), *RICH[2:]]
    partition = Partition(PLANS["9s"], {"events/0": events})
    partition.apply("events/0", 9)
    assert partition.contents.tables["totals"].rows == 3  # nothing is forgotten before it is handed over
    partition.begin()
    assert partition.work is not None
    for sink in (FINAL, CHANGES, WHOLE):
        with pytest.raises(fs.InvalidFlow, match="rich"):
            partition.work.due[sink].rows(partition.work.frozen)
    assert sum(each.num_rows for each in partition.work.due[STREAM].rows(partition.work.frozen)) == 4


def test_rows_of_append_tables_count_as_memory_until_a_manifest_names_them() -> None:
    partition = Partition(PLANS[None], {"events/0": RICH})
    partition.apply("events/0", 9)
    output = partition.contents.outputs[STREAM]
    assert output.size.rows == 4 and output.size.bytes > 0
    partition.begin()
    assert output.size.rows == 4
    partition.finish("failed")
    assert output.size.rows == 4
    partition.begin()
    partition.finish("saved")
    assert output.size == (0, 0)
    assert partition.chain[-1].handed[str(STREAM)] == {"events/0": 3}


def test_columns_go_out_under_their_names() -> None:
    plan = PLANS[None]
    spec = SinkSpec("json", "totals", "", "changes", columns=(("total", "sum"), ("key", "who")))
    output = make_output(0, spec, plan.tables["totals"], 7)
    partition = Partition(plan, {"events/0": RICH})
    partition.apply("events/0", 1)
    due = output.take(partition.contents.freeze())
    (rows,) = due.rows(partition.contents.freeze())
    assert rows.to_pylist() == [{"sum": 2**62, "who": "rich", "_epoch": 7, "_revision": 1}]
    assert rows.schema == spec.schema(plan.tables["totals"])


def test_output_is_taken_once_and_settled_once() -> None:
    partition = Partition(PLANS[None], {"events/0": RICH})
    output, frozen = partition.contents.outputs[FINAL], partition.contents.freeze()
    output.take(frozen)
    with pytest.raises(InternalError):
        output.take(frozen)
    output.failed()
    with pytest.raises(InternalError):
        output.failed()
    with pytest.raises(InternalError):
        make_output(0, SinkSpec("json", "totals", "", "append"), PLANS[None].tables["totals"], 0)
