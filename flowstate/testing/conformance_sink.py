"""What every sink must do, given how to make one and how to read what it has published.

A `SinkUnderTest` names the three; `CHECKS` are run with it, each with a fresh one, and `CHANGES_CHECKS` with a sink of ``changes`` rows::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_sink(check):
        check(SinkUnderTest(make=lambda: MySink(...), store=Store.open(...), published=lambda: rows))

Publishing follows the contract: each publisher takes the outputs of a partition in the order in which manifests name them, the same one
again after a failure; publishers that are zombies do the same, at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flowstate.errors import CorruptData, Fenced, Unavailable
from flowstate.plan.output import StagedOutput
from flowstate.plan.spec import EPOCH, REVISION
from flowstate.sink.base import Sink, Stage
from flowstate.store import Store
from flowstate.testing.sink_incarnation import Death, SinkIncarnation, Step, SteppingStore, Steps
from flowstate.testing.stepped_store import interleave

SCHEMA = pa.schema({"kind": pa.string(), "number": pa.int64()})
CHANGES_SCHEMA = pa.schema([*SCHEMA, pa.field(EPOCH, pa.int64()), pa.field(REVISION, pa.int64())])
PREFIX = "g0001/p0000"
_SAVES = 3


@dataclass(frozen=True)
class SinkUnderTest:
    """`make` gives a sink for rows of `SCHEMA` (`CHANGES_SCHEMA`, with the key `kind`, for `CHANGES_CHECKS`; the same target each time),
    `store` is for staging, `published` reads all rows that are visible now, in any order.

    `crash_points(sink, step)` arranges that the sink calls ``step(name)`` between its own steps of publishing (a store's operations, a
    client's calls); it raises what a dying process, or a failing other side, would. `whole`: an output is visible whole or not at all.
    `rolls`: the sink leaves files open. `deaths` and `histories` bound how many deaths and interleavings are tried.
    """

    make: Callable[[], Sink]
    store: Store
    published: Callable[[], list[dict[str, Any]]]
    crash_points: Callable[[Sink, Step], None] | None = None
    whole: bool = True
    rolls: bool = False
    deaths: int = 60
    histories: int = 10

    def sees(self, *tables: pa.Table) -> None:
        """Exactly the rows of `tables` are visible."""
        assert _counted(self.published()) == _counted(row for table in tables for row in table.to_pylist())

    def stage(self, number: int, partition: int = 0, epoch: int = 1) -> Stage:
        """For a save that leaves nothing open."""
        return Stage(self.store, f"g0001/p{partition:04d}", partition, epoch, number, last=True)

    @contextlib.contextmanager
    def made(self) -> Iterator[Sink]:
        """A sink, closed in the end."""
        with contextlib.closing(self.make()) as sink:
            yield sink


def rows(first: int, count: int = 6) -> pa.Table:
    """`count` rows, all different from those of another `first`."""
    numbers = range(first * 1000, first * 1000 + count)
    return pa.table({"kind": [f"k{number % 3}" for number in numbers], "number": list(numbers)}, schema=SCHEMA)


def shows_nothing_before_publish(under_test: SinkUnderTest) -> None:
    """Checked and prepared is not visible; published is; nothing prepared is nothing staged."""
    with under_test.made() as sink:
        sink.check(SCHEMA)
        assert not sink.prepare(under_test.stage(1), None)
        assert not sink.prepare(under_test.stage(1), SCHEMA.empty_table())
        staged = sink.prepare(under_test.stage(2), rows(1))
        assert sum(each.rows for each in staged) == rows(1).num_rows
        assert all(not each.open and each.bytes > 0 for each in staged)
        under_test.sees()
        for each in staged:
            assert sink.publish(under_test.store, each) == 0
    under_test.sees(rows(1))


def publishes_once(under_test: SinkUnderTest) -> None:
    """Several publishers go through the outputs of a partition, each in order, at the same time, and then again: all is there once. They
    may be told that another was faster."""
    with under_test.made() as sink:
        staged = [each for number in (1, 2, 3) for each in sink.prepare(under_test.stage(number), rows(number))]

    def publish_all(publisher: Sink) -> None:
        for each in staged:
            try:
                publisher.publish(under_test.store, each)
            except (Unavailable, Fenced):
                return

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        publishers = [stack.enter_context(under_test.made()) for _ in range(3)]
        publishers.append(stack.enter_context(contextlib.closing(pickle.loads(pickle.dumps(publishers[0])))))
        list(pool.map(publish_all, publishers))
    with under_test.made() as sink:
        for _ in range(2):
            for each in staged:
                sink.publish(under_test.store, each)
    under_test.sees(rows(1), rows(2), rows(3))


def keeps_writers_apart(under_test: SinkUnderTest) -> None:
    """Partitions, epochs and numbers never meet."""
    tables: list[pa.Table] = []
    staged: list[StagedOutput] = []
    with under_test.made() as sink:
        for partition, epoch, number in itertools.product((0, 1), (1, 2), (1, 2)):
            tables.append(rows(len(tables)))
            staged += sink.prepare(under_test.stage(number, partition, epoch), tables[-1])
        for each in staged:
            sink.publish(under_test.store, each)
    under_test.sees(*tables)


def never_publishes_what_no_manifest_named(under_test: SinkUnderTest) -> None:
    """What a zombie prepared under its own epoch, or was prepared again with other rows under the same number, leaves no trace."""
    with under_test.made() as sink:
        sink.prepare(under_test.stage(5), rows(1))
        sink.prepare(under_test.stage(1, epoch=2), rows(2))
        for each in sink.prepare(under_test.stage(1, epoch=2), rows(1)):
            sink.publish(under_test.store, each)
    under_test.sees(rows(1))


def survives_death_anywhere(under_test: SinkUnderTest) -> None:
    """A partition dies at each of its steps: before, within and after preparing, committing and publishing. What is visible then is whole;
    the next incarnation goes on from the newest manifest, and in the end every row is there once."""
    _tries(under_test, fails=False)


def survives_failures_anywhere(under_test: SinkUnderTest) -> None:
    """The store or the other side fails at each step, once, before or after it took effect; the incarnation goes on and tries again."""
    _tries(under_test, fails=True)


def _tries(under_test: SinkUnderTest, *, fails: bool) -> None:
    def rows_of(attempt: int) -> Callable[[int, int], pa.Table]:
        return lambda done, epoch: rows(attempt * _SAVES + done)

    with under_test.made() as sink:
        steps = Steps()
        SinkIncarnation(
            _watched(under_test, sink, steps), SteppingStore(under_test.store, steps), steps, rows_of(0), _SAVES
        ).run()
    names = steps.names
    assert {"before prepare", "before manifest", "after manifest", "published"} <= set(names)
    deaths = range(len(names)) if len(names) <= under_test.deaths else _spread(len(names), under_test.deaths)
    before: Counter[Any] = _counted(row for done in range(_SAVES) for row in rows_of(0)(done, 1).to_pylist())
    assert _counted(under_test.published()) == before
    for attempt, at in enumerate(deaths, 1):
        steps = Steps(at, fails=fails)
        wanted = _counted(row for done in range(_SAVES) for row in rows_of(attempt)(done, 1).to_pylist())
        where = f"step {at}: {names[at]}"
        with contextlib.closing(under_test.make()) as first, contextlib.closing(under_test.make()) as second:
            own = SteppingStore(under_test.store, steps)
            incarnation = SinkIncarnation(
                _watched(under_test, first, steps), own, steps, rows_of(attempt), _SAVES, attempt
            )
            try:
                assert incarnation.run()
            except Death:
                seen = _counted(under_test.published())
                assert seen >= before, where
                assert seen - before <= wanted, where
                if under_test.whole:
                    sums = list(itertools.accumulate([each.rows for each in incarnation.named], initial=0))
                    assert (seen - before).total() in sums, where
            else:
                assert fails or at >= len(steps.names), where
            # The dead one is not closed before the next one has finished: what it left behind is still there.
            SinkIncarnation(second, under_test.store, Steps(), rows_of(attempt), _SAVES, attempt).run()
        before += wanted
        assert _counted(under_test.published()) == before, where


def outlives_zombies(under_test: SinkUnderTest) -> None:
    """Three incarnations of a partition take one another's place at any step; each goes on where the newest manifest says, publishes what
    is staged (also zombies do), and the rows are there once."""
    wanted: Counter[Any] = Counter()
    for history in range(under_test.histories):
        sinks: list[Sink] = []

        def rows_of(done: int, epoch: int, first: int = history * 4) -> pa.Table:
            return rows(first + done)

        def incarnation(
            own: Store, partition: int = history, sinks: list[Sink] = sinks, rows_of: Any = rows_of
        ) -> None:
            def step(name: str) -> None:
                own.exists("turn")

            sink = under_test.make()
            sinks.append(sink)
            with contextlib.suppress(Unavailable, Fenced):
                SinkIncarnation(_watched(under_test, sink, step), own, step, rows_of, 4, partition).run()

        trace = interleave(under_test.store, [incarnation] * 3, random.Random(history), faults=0.02)
        with under_test.made() as sink:
            assert SinkIncarnation(sink, under_test.store, Steps(), rows_of, 4, history).run()
        for sink in sinks:
            sink.close()
        wanted += _counted(row for done in range(4) for row in rows_of(done, 1).to_pylist())
        assert _counted(under_test.published()) == wanted, trace


def finds_damage(under_test: SinkUnderTest) -> None:
    """Staged bytes that changed, or are gone before they were published, are named and not published."""
    with under_test.made() as sink:
        (one, *_), (two, *_) = (sink.prepare(under_test.stage(number), rows(number)) for number in (1, 2))
        whole = under_test.store.read(one.path)
        under_test.store.delete(one.path)
        under_test.store.create(one.path, whole[:-1])
        under_test.store.delete(two.path)
        for each in (one, two):
            said = ""
            try:
                sink.publish(under_test.store, each)
            except CorruptData as error:
                said = str(error)
            assert each.path in said
    under_test.sees()


def leaves_open_files_alone(under_test: SinkUnderTest) -> None:
    """A save stages what is new; what was open and is still open is the same object as before. At the end of the input nothing is open.
    A sink that does not roll leaves nothing open."""
    open: list[StagedOutput] = []
    opened = kept = 0
    tables = [rows(number) for number in range(1, 7)]
    with under_test.made() as sink:
        for number, table in enumerate(tables):
            last = number == len(tables) - 1
            stage = Stage(under_test.store, PREFIX, 0, 1, number, now=number / 1000, last=last)
            staged = sink.prepare(stage, table, open)
            new = [each for each in staged if each not in open]
            given = table.num_rows + sum(each.rows for each in open if each not in staged)
            assert sum(each.rows for each in new) == given
            kept += len(staged) - len(new)
            for each in staged:
                if not each.open:
                    sink.publish(under_test.store, each)
            open = [each for each in staged if each.open]
            opened += len(open)
            seen = len(under_test.published())
            assert seen + sum(each.rows for each in open) == sum(each.num_rows for each in tables[: number + 1])
    assert not open
    assert (opened > 0 and kept > 0) == under_test.rolls
    under_test.sees(*tables)


def greatest_revision_holds(under_test: SinkUnderTest) -> None:
    """Revisions of keys, through deaths: of each key the greatest (epoch, revision) that is visible is the last one saved."""
    saves, expected = 4, dict[str, int]()
    for attempt, at in enumerate([None, *_spread(60, min(20, under_test.deaths))]):

        def rows_of(done: int, epoch: int, attempt: int = attempt) -> pa.Table:
            kinds = [f"{attempt}-{kind}" for kind in range(4) if done == 0 or kind % done == 0]
            count = len(kinds)
            values = [kinds, [attempt * 100 + done] * count, [1 << 32 | epoch] * count, [done + 1] * count]
            return pa.table(values, schema=CHANGES_SCHEMA)

        steps = Steps(at)
        with contextlib.closing(under_test.make()) as first, contextlib.closing(under_test.make()) as second:
            own = SteppingStore(under_test.store, steps)
            with contextlib.suppress(Death):
                SinkIncarnation(_watched(under_test, first, steps), own, steps, rows_of, saves, attempt).run()
            assert SinkIncarnation(second, under_test.store, Steps(), rows_of, saves, attempt).run()
        for done in range(saves):
            expected |= {row["kind"]: row["number"] for row in rows_of(done, 1).to_pylist()}
        holds: dict[str, tuple[int, int, int]] = {}
        for row in under_test.published():
            found = row[EPOCH], row[REVISION], row["number"]
            assert found[2] % 100 == found[1] - 1
            holds[row["kind"]] = max(holds.get(row["kind"], found), found)
        assert {kind: found[2] for kind, found in holds.items()} == expected


def _watched(under_test: SinkUnderTest, sink: Sink, step: Step) -> Sink:
    if under_test.crash_points is not None:
        under_test.crash_points(sink, step)
    return sink


def _spread(steps: int, count: int) -> Sequence[int]:
    """`count` of so many steps, by chance, the same each time."""
    return sorted(random.Random(steps).sample(range(steps), count))


def _counted(found: Any) -> Counter[Any]:
    return Counter(tuple(sorted(row.items())) for row in found)


CHECKS: tuple[Callable[[SinkUnderTest], None], ...] = (
    shows_nothing_before_publish,
    publishes_once,
    keeps_writers_apart,
    never_publishes_what_no_manifest_named,
    survives_death_anywhere,
    survives_failures_anywhere,
    outlives_zombies,
    finds_damage,
    leaves_open_files_alone,
)

#: For a sink of mode ``changes``, made for rows of `CHANGES_SCHEMA`.
CHANGES_CHECKS: tuple[Callable[[SinkUnderTest], None], ...] = (greatest_revision_holds,)
