"""What every sink must do, given how to make one and how to read what it has published.

A `SinkUnderTest` names the three; `CHECKS` are run with it, each with a fresh one::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_sink(check):
        check(SinkUnderTest(make=lambda: MySink(...), store=Store.open(...), published=lambda: rows))
"""

from __future__ import annotations

import itertools
import pickle
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flowstate.errors import CorruptData, Unavailable
from flowstate.plan.output import StagedOutput
from flowstate.sink.base import Sink
from flowstate.store import Store
from flowstate.testing.interrupted_store import InterruptedStore

SCHEMA = pa.schema({"kind": pa.string(), "number": pa.int64()})
PREFIX = "g0001/p0000"


@dataclass(frozen=True)
class SinkUnderTest:
    """`make` gives a sink for rows of `SCHEMA` (the same target each time), `store` is for staging, `published` reads all rows that
    are visible now, in any order."""

    make: Callable[[], Sink]
    store: Store
    published: Callable[[], list[dict[str, Any]]]

    def sees(self, *tables: pa.Table) -> None:
        """Exactly the rows of `tables` are visible."""
        wanted = Counter(tuple(sorted(row.items())) for table in tables for row in table.to_pylist())
        assert Counter(tuple(sorted(row.items())) for row in self.published()) == wanted


def rows(first: int, count: int = 6) -> pa.Table:
    """`count` rows, all different from those of another `first`."""
    numbers = range(first * 1000, first * 1000 + count)
    return pa.table({"kind": [f"k{number % 3}" for number in numbers], "number": list(numbers)}, schema=SCHEMA)


def shows_nothing_before_publish(under_test: SinkUnderTest) -> None:
    """Checked and prepared is not visible; published is; nothing prepared is nothing staged."""
    sink = under_test.make()
    sink.check(SCHEMA)
    assert not sink.prepare(under_test.store, PREFIX, 0, 1, 1, SCHEMA.empty_table())
    staged = sink.prepare(under_test.store, PREFIX, 0, 1, 2, rows(1))
    under_test.sees()
    for each in staged:
        sink.publish(under_test.store, each)
    under_test.sees(rows(1))


def publishes_once(under_test: SinkUnderTest) -> None:
    """Publishing again, in any order, by a copy, by many at once, changes nothing."""
    sink = under_test.make()
    staged = [
        *sink.prepare(under_test.store, PREFIX, 0, 1, 1, rows(1)),
        *sink.prepare(under_test.store, PREFIX, 0, 1, 2, rows(2)),
    ]
    copy = pickle.loads(pickle.dumps(sink))
    order = staged * 4
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda item: (sink, copy)[item[0] % 2].publish(under_test.store, item[1]), enumerate(order)))
    under_test.sees(rows(1), rows(2))


def keeps_writers_apart(under_test: SinkUnderTest) -> None:
    """Partitions, epochs and numbers never meet, nor does a number that is prepared again with other rows."""
    sink, tables = under_test.make(), []
    staged: list[StagedOutput] = []
    for first, (partition, epoch, number) in enumerate(itertools.product((0, 1), (1, 2), (1, 2))):
        tables.append(rows(first))
        staged += sink.prepare(under_test.store, f"g0001/p000{partition}", partition, epoch, number, tables[-1])
    again = sink.prepare(under_test.store, PREFIX, 0, 1, 1, rows(0))
    assert list(again) == staged[: len(again)]
    tables.append(rows(99))
    staged += sink.prepare(under_test.store, PREFIX, 0, 1, 1, tables[-1])
    for each in reversed(staged):
        sink.publish(under_test.store, each)
    under_test.sees(*tables)


def never_publishes_what_no_manifest_named(under_test: SinkUnderTest) -> None:
    """A zombie that prepared the same rows under its own epoch leaves no trace."""
    sink = under_test.make()
    sink.prepare(under_test.store, PREFIX, 0, 1, 5, rows(1))
    for each in sink.prepare(under_test.store, PREFIX, 0, 2, 1, rows(1)):
        sink.publish(under_test.store, each)
    under_test.sees(rows(1))


def survives_death_at_every_step(under_test: SinkUnderTest) -> None:
    """Die at each operation on the snapshot store, while preparing or publishing; a new incarnation repeats what the manifest named."""
    tables = []
    for after in (False, True):
        for step in range(1000):
            first = 2 * step + after + 1
            broken = InterruptedStore(under_test.store, step, after=after)
            staged: list[StagedOutput] = []
            try:
                staged = list(under_test.make().prepare(broken, PREFIX, 0, first, 1, rows(first)))
                for each in staged:
                    under_test.make().publish(broken, each)
            except Unavailable:
                finished = False
            else:
                finished = True
            # Named in a manifest, or else made again by the next incarnation, from the same rows.
            staged = staged or list(under_test.make().prepare(under_test.store, PREFIX, 0, first, 2, rows(first)))
            for each in staged:
                under_test.make().publish(under_test.store, each)
            tables.append(rows(first))
            if finished:
                assert step >= 2
                break
    under_test.sees(*tables)


def finds_damage(under_test: SinkUnderTest) -> None:
    """Staged bytes that changed, or are gone before they were published, are named and not published."""
    sink = under_test.make()
    (one, *_), (two, *_) = (sink.prepare(under_test.store, PREFIX, 0, 1, number, rows(number)) for number in (1, 2))
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


CHECKS: tuple[Callable[[SinkUnderTest], None], ...] = (
    shows_nothing_before_publish,
    publishes_once,
    keeps_writers_apart,
    never_publishes_what_no_manifest_named,
    survives_death_at_every_step,
    finds_damage,
)
