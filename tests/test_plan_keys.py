"""Key hashes: stable for ever, whatever the batch, and spread evenly."""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import InvalidFlow
from flowstate.plan.keys import key_groups, owner_of_groups, route_hashes, split_owner

COLUMNS: dict[str, pa.Array] = {
    "string": pa.array(["", None, "a", "anna", "customer-00000017", "ä" * 40], pa.string()),
    "binary": pa.array([b"", None, b"\0", b"\0\0", b"x" * 8, b"y" * 9], pa.binary()),
    "int64": pa.array([0, None, 1, -1, 2**63 - 1, -(2**63)], pa.int64()),
    "bool": pa.array([True, None, False, True, False, None]),
    "float64": pa.array([0.0, None, -0.0, 1.5, math.nan, math.inf]),
    "decimal": pa.array(
        [Decimal(0), None, Decimal(1), Decimal(-1), Decimal(10**37), Decimal(-(10**37))], pa.decimal128(38, 0)
    ),
    "date32": pa.array([datetime.date(2026, 1, 1), None, datetime.date(1970, 1, 1), None, None, None]),
    "timestamp": pa.array([0, None, 1, 2, 3, 4], pa.int64()).view(pa.timestamp("us", "Europe/Berlin")),
    "time64": pa.array([0, None, 1, 2, 3, 4], pa.int64()).view(pa.time64("us")),
    "duration": pa.array([0, None, 1, 2, 3, 4], pa.int64()).view(pa.duration("s")),
    "uint8": pa.array([0, None, 1, 2, 3, 255], pa.uint8()),
}

# These never change: saved state is spread over partitions by them.
GOLDEN: dict[str, list[str]] = {
    "string": [
        "43dbcfd0e0b1a26f",
        "54f517e53a9d5c61",
        "f564566b42bad834",
        "f54d5950035d18a7",
        "ac700dd886286202",
        "a5e6e80abfde77ad",
    ],
    "binary": [
        "43dbcfd0e0b1a26f",
        "54f517e53a9d5c61",
        "fd28d49c3513504e",
        "b6544804144c7435",
        "0be837c4d7b1ff21",
        "703d79a60656eedf",
    ],
    "int64": [
        "430c2012aeaee218",
        "707d9ad44a95eacb",
        "f5454af6bbc138b6",
        "ee1d870193c34d52",
        "d0e7d7109a027550",
        "0a443d87d388c083",
    ],
    "bool": [
        "f5454af6bbc138b6",
        "707d9ad44a95eacb",
        "430c2012aeaee218",
        "f5454af6bbc138b6",
        "430c2012aeaee218",
        "707d9ad44a95eacb",
    ],
    "float64": [
        "430c2012aeaee218",
        "707d9ad44a95eacb",
        "430c2012aeaee218",
        "0fb2ac7b8eae8587",
        "f17576487fa1f9d4",
        "d971a623b606ffb0",
    ],
    "decimal": [
        "2a96914f1afaf291",
        "196f92407048e2d9",
        "0892d0ecb188aca7",
        "7d5328e07550a74d",
        "33fe0192b0e4cce4",
        "14395a1ff46fa931",
    ],
    "date32": [
        "efdfb8b37d3e5af8",
        "707d9ad44a95eacb",
        "430c2012aeaee218",
        "707d9ad44a95eacb",
        "707d9ad44a95eacb",
        "707d9ad44a95eacb",
    ],
    "timestamp": [
        "430c2012aeaee218",
        "707d9ad44a95eacb",
        "f5454af6bbc138b6",
        "427ae6ab60a65a54",
        "6df3ba65b4568b78",
        "969c8527f08d7e3d",
    ],
    "time64": [
        "430c2012aeaee218",
        "707d9ad44a95eacb",
        "f5454af6bbc138b6",
        "427ae6ab60a65a54",
        "6df3ba65b4568b78",
        "969c8527f08d7e3d",
    ],
    "duration": [
        "430c2012aeaee218",
        "707d9ad44a95eacb",
        "f5454af6bbc138b6",
        "427ae6ab60a65a54",
        "6df3ba65b4568b78",
        "969c8527f08d7e3d",
    ],
    "uint8": [
        "430c2012aeaee218",
        "707d9ad44a95eacb",
        "f5454af6bbc138b6",
        "427ae6ab60a65a54",
        "6df3ba65b4568b78",
        "3b50e3b08a73ff87",
    ],
    "all": [
        "870e09b11e58d75b",
        "c4cb8134490ba01e",
        "0faf36831146002c",
        "68c1d7a956aa8056",
        "c48215118f644e9c",
        "7610b16c701ec9b1",
    ],
    "none": ["43dbcfd0e0b1a26f"],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_hashes_never_change(name: str) -> None:
    found = [f"{value:016x}" for value in route_hashes([COLUMNS[name]], 42)]
    assert found == GOLDEN[name]


def test_a_composite_hash_never_changes() -> None:
    found = [f"{value:016x}" for value in route_hashes(list(COLUMNS.values()), 42)]
    assert found == GOLDEN["all"]
    assert f"{route_hashes([], 42)[0]:016x}" == GOLDEN["none"][0]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4), st.integers(0, 2**64 - 1))
def test_hashes_do_not_depend_on_how_rows_lie(data: st.DataObject, names: list[str], seed: int) -> None:
    columns = [COLUMNS[name] for name in names]
    whole = route_hashes(columns, seed)
    cut = data.draw(st.integers(0, 6))
    parts = [route_hashes([each.slice(*part) for each in columns], seed) for part in ((0, cut), (cut, 6 - cut))]
    assert np.concatenate(parts).tolist() == whole.tolist()
    row = data.draw(st.integers(0, 5))
    rebuilt = [
        pa.array([each[row].as_py() if pa.types.is_binary(each.type) else each[row]], each.type) for each in columns
    ]
    assert route_hashes(rebuilt, seed)[0] == whole[row]


def test_equal_keys_hash_alike_and_others_do_not() -> None:
    def one(value: Any, kind: pa.DataType) -> int:
        return int(route_hashes([pa.array([value], kind)], 3)[0])

    assert one("text", pa.string()) == one("text", pa.large_string()) == one("text", pa.string_view())
    assert one(b"text", pa.binary()) == one(b"text", pa.large_binary()) == one(b"text", pa.binary(4))
    assert one(-0.0, pa.float64()) == one(0.0, pa.float64()) == one(-0.0, pa.float32())
    assert one(5, pa.int8()) == one(5, pa.int64())
    nan = np.array([np.nan, -np.nan], np.float64)
    nan.view(np.uint64)[1] |= 7
    assert len(set(route_hashes([pa.array(nan)], 3).tolist())) == 1
    dictionary = pa.array(["b", "a", None, "b"]).dictionary_encode()
    assert route_hashes([dictionary], 3).tolist() == route_hashes([dictionary.dictionary_decode()], 3).tolist()
    pair = [pa.array(["ab", "a", None, ""]), pa.array(["c", "bc", "", None])]
    assert len(set(route_hashes(pair, 3).tolist())) == 4
    assert one(None, pa.int64()) != one(0, pa.int64())
    assert one(None, pa.string()) != one("", pa.string())


def test_many_columns_and_long_values() -> None:
    columns = [pa.array([number, None]) for number in range(70)] + [pa.array(["x" * 100_000, "y" * 300_000])]
    first = route_hashes(columns, 1)
    columns[69] = pa.array([69, 0])
    second = route_hashes(columns, 1)
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_groups_and_owners_are_even() -> None:
    hashes = route_hashes([pa.array([f"customer-{number:08d}" for number in range(128_000)])], 9)
    assert len(set(hashes.tolist())) == 128_000
    counts = np.bincount(key_groups(hashes), minlength=128)
    assert counts.min() > 850
    assert counts.max() < 1150
    owners = owner_of_groups(np.arange(128), 128, 3)
    assert owners.tolist() == sorted(owners.tolist())
    assert np.bincount(owners).tolist() in ([43, 43, 42], [43, 42, 43])
    low = np.bincount(hashes & np.uint64(127), minlength=128)  # the index takes these
    assert low.min() > 850
    numbers = route_hashes([pa.array(np.arange(128_000))], 9)
    assert np.bincount(key_groups(numbers), minlength=128).min() > 850
    assert np.bincount(numbers & np.uint64(127), minlength=128).min() > 850


def test_a_split_has_one_owner() -> None:
    owners = {split: split_owner(split, 7, 128, 4) for split in map(str, range(100))}
    assert owners == {split: split_owner(split, 7, 128, 4) for split in owners}
    assert set(owners.values()) == {0, 1, 2, 3}
    assert split_owner("any", 7, 128, 1) == 0


def test_seeds_differ() -> None:
    column = [pa.array(["a", "b"])]
    assert not set(route_hashes(column, 1).tolist()) & set(route_hashes(column, 2).tolist())
    assert route_hashes([], 1, rows=3).tolist() == [int(route_hashes([], 1)[0])] * 3
    assert route_hashes([], 1)[0] != route_hashes([], 2)[0]


def test_a_type_that_is_no_key_is_refused() -> None:
    with pytest.raises(InvalidFlow, match="cannot be a key"):
        route_hashes([pa.array([[1]])], 1)


def test_importing_does_not_load_the_compiler() -> None:
    code = "import sys, flowstate.plan.keys; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
