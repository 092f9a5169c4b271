"""The tables of an index: what is moved is found again, by the rules that `kernels.index` states and nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from flowstate.plan.keys import KeyColumns, hash_columns, key_array, seed_word
from flowstate.plan.spec import TableSpec
from flowstate.state.index import Scratch
from flowstate.state.kernels import index as kernels
from flowstate.state.kernels import warm_up
from flowstate.state.table import KeyedTable

SLOTS, SEED, HEAD = 8192, 5, 2
Words = npt.NDArray[np.uint64]


def records(crowded: int, spread: int) -> tuple[Words, Words]:
    """Stored records (row, head, word) of numbers, and their hashes: some all picking the first slots, some anywhere."""
    numbers = np.arange(400_000)
    hashes = hash_columns(KeyColumns.of([key_array(pa.array(numbers))[1]]), SEED)
    near = np.flatnonzero(hashes % SLOTS < 4)[:crowded]
    chosen = np.concatenate([near, np.setdiff1d(numbers, near)[:spread]])
    stored = np.zeros((len(chosen), 3), np.uint64)
    stored[:, 2] = chosen
    return stored, hashes[chosen]


def entries_of(stored: Words) -> Words:
    """Where they are, by 8."""
    return ((stored.ctypes.data + stored.strides[0] * np.arange(len(stored))) // 8).astype(np.uint64)


def check(table: Words, entries: Words, hashes: Words) -> None:
    """The table has these records and no others, each reached from its home without a gap, each marked as it should be."""
    assert np.count_nonzero(table) == len(entries)
    at = {int(entry) & (1 << 45) - 1: place for place, entry in enumerate(table.tolist()) if entry}
    for record, value in zip(entries.tolist(), hashes.tolist(), strict=True):
        place, home = at[record], value % SLOTS
        behind = (place - home) % SLOTS
        assert all(table[(home + each) % SLOTS] for each in range(behind))
        assert int(table[place]) >> 45 == (value >> 16) % (1 << 15) << 4 | min(behind, 15)


@pytest.mark.parametrize("bit", [0, 3, 14, 15, 30])
def test_a_table_is_divided_by_a_bit_of_the_hash(bit: int) -> None:
    stored, hashes = records(crowded=100, spread=4000)
    entries = entries_of(stored)
    dense, low, high = (np.zeros(SLOTS, np.uint64) for _ in range(3))
    dense[: len(entries)] = entries
    kernels.enlarge(dense.ctypes.data, SLOTS, low.ctypes.data, SLOTS, HEAD, seed_word(SEED))
    check(low, entries, hashes)
    moved = kernels.divide(low.ctypes.data, high.ctypes.data, SLOTS, bit, HEAD, seed_word(SEED), Scratch().words())
    up = (hashes >> np.uint64(16 + bit)) & np.uint64(1) == 1
    assert moved == up.sum() > 1000
    check(low, entries[~up], hashes[~up])
    check(high, entries[up], hashes[up])


def test_a_table_that_divides_waits_for_no_compiler() -> None:
    warm_up()
    made = {each: list(each.signatures) for each in (kernels.enlarge, kernels.divide, kernels.locate)}
    table = KeyedTable(TableSpec("t", (pa.field("k", pa.int64()),), None, ()), seed=SEED)
    table.apply(pa.record_batch({"k": np.arange(20_000)}))
    assert table.memory()["index"] > 8 * SLOTS
    assert made == {each: list(each.signatures) for each in made}
