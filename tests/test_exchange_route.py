"""Routing: a row's owner depends on its key alone, rows of an owner keep their order, and none is lost or doubled."""

from __future__ import annotations

import decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.exchange.route import Router

keys = st.tuples(st.sampled_from(["anna", "ben", "cleo", "", None]), st.integers(-3, 3))
rows = st.lists(keys, max_size=40)


def batch_of(rows: list[tuple[str | None, int]]) -> pa.RecordBatch:
    names, numbers = [each[0] for each in rows], [each[1] for each in rows]
    columns = [pa.array(names, pa.string()), pa.array(numbers, pa.int64()), pa.array(range(len(rows)), pa.int64())]
    return pa.RecordBatch.from_arrays(columns, ["name", "number", "place"])


def naive_owner(router: Router, key: tuple[str | None, int]) -> int:
    """The owner of one key, asked about by itself."""
    return int(router.owners([pa.array([key[0]], pa.string()), pa.array([key[1]], pa.int64())])[0])


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(1, 8), st.integers(0, 2**63 - 1), st.data())
def test_split(rows: list[tuple[str | None, int]], partitions: int, seed: int, data: st.DataObject) -> None:
    router = Router(partitions=partitions, groups=128, seed=seed)
    expected: dict[int, list[int]] = {}
    for place, key in enumerate(rows):
        expected.setdefault(naive_owner(router, key), []).append(place)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    found: dict[int, list[int]] = {}
    whole = batch_of(rows)
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        for owner, part in router.split(whole.slice(start, stop - start), ("name", "number")).items():
            assert part.num_rows > 0
            found.setdefault(owner, []).extend(part.column("place").to_pylist())
    assert found == expected
    assert all(0 <= owner < partitions for owner in found)


@pytest.mark.parametrize("partitions", range(1, 9))
def test_every_partition_owns_something(partitions: int) -> None:
    router = Router(partitions=partitions, groups=128, seed=11)
    owners = router.owners([pa.array([f"key {number}" for number in range(2000)])])
    counts = [int((owners == each).sum()) for each in range(partitions)]
    assert sum(counts) == 2000
    assert min(counts) > 2000 / partitions / 2


def test_owners_are_the_same_in_every_process() -> None:
    """Pinned: state that was saved is found by these numbers."""
    router = Router(partitions=5, groups=128, seed=7)
    text = router.owners([pa.array(["anna", "ben", "cleo", "dora", None])]).tolist()
    assert text == router.owners([pa.array(["anna", "ben", "cleo", "dora", None], pa.large_string())]).tolist()
    money = router.owners([pa.array([decimal.Decimal("1.50"), decimal.Decimal("-3.00")])]).tolist()
    assert (text, money, router.owner_of_split("events/0")) == ([1, 2, 4, 4, 0], [3, 0], 2)


def test_a_batch_of_one_owner_is_passed_on_as_it_is() -> None:
    batch = batch_of([("anna", 1)] * 5)
    (part,) = Router(partitions=4, groups=128, seed=1).split(batch, ("name", "number")).values()
    assert part is batch
    assert Router(partitions=4, groups=128, seed=1).split(batch.slice(0, 0), ("name", "number")) == {}


def test_a_table_without_keys_has_one_owner() -> None:
    assert len(Router(partitions=1, groups=128, seed=1).split(batch_of([("anna", 1), ("ben", 2)]), ())) == 1
