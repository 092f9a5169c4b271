"""Keyed state against its naive twin: any types, nulls, batches, slices, restores, partitions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import CorruptData, InvalidFlow
from flowstate.plan.keys import key_groups, owner_of_groups, route_hashes
from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.state.table import KeyedTable
from flowstate.testing.reference import ReferenceTable, plain, typed

TIME = pa.timestamp("ms", "UTC")
MONEY = pa.decimal128(12, 2)

KEYS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "bool": (pa.bool_(), [True, False]),
    "int8": (pa.int8(), [-128, 0, 7]),
    "int32": (pa.int32(), [-(2**31), 0, 5]),
    "int64": (pa.int64(), [-(2**63), 2**63 - 1, 0, 1]),
    "uint64": (pa.uint64(), [0, 2**64 - 1, 2**63]),
    "float32": (pa.float32(), [0.0, -0.0, 1.5, math.nan]),
    "float64": (pa.float64(), [0.0, -0.0, -1.5, math.nan, math.inf]),
    "string": (pa.string(), ["", "a", "bb", "customer-00000001", "x" * 8, "ä" * 30, "a\0"]),
    "large_string": (pa.large_string(), ["", "a", "bb", "y" * 1000]),
    "binary": (pa.binary(), [b"", b"\0", b"\0\0", b"\xff" * 9]),
    "date32": (pa.date32(), [0, -1, 20000]),
    "timestamp": (pa.timestamp("ns"), [0, 1, -(2**62)]),
    "decimal": (pa.decimal128(30, 2), [Decimal("0.00"), Decimal("-1.50"), Decimal("12345678901234567890123.25")]),
    "time32": (pa.time32("s"), [0, 86399]),
    "duration": (pa.duration("us"), [0, -5]),
}
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    **KEYS,
    "money": (MONEY, [Decimal("0.01"), Decimal("-0.01"), Decimal("9999999999.99"), Decimal("123.45")]),
    "wide": (pa.decimal128(38, 0), [Decimal(10**37), Decimal(-(10**37)), Decimal(1)]),
    "near": (pa.float64(), [0.0, 1.5, -2.25, 1e6, 3.1]),
    "int16": (pa.int16(), [-5, 0, 32767]),
    "uint32": (pa.uint32(), [0, 2**32 - 1, 7]),
}
SUMMED = ("money", "wide", "near", "int8", "int16", "int32", "int64", "uint32", "uint64", "decimal")
RESULT = {"near": pa.float64(), "uint32": pa.uint64(), "uint64": pa.uint64()}


def aggregate_spec(function: str, input: str | None, **options: Any) -> AggregateSpec:
    kind = VALUES[input][0] if input else None
    result = kind
    if function in ("len", "count"):
        result = pa.int64()
    elif function in ("mean", "var", "std"):
        result = pa.float64()
    elif function == "sum" and kind is not None:
        result = pa.decimal128(38, kind.scale) if pa.types.is_decimal(kind) else RESULT.get(str(input), pa.int64())
    name = function if input is None else f"{function}_{input}"
    return AggregateSpec(name, function, None if input is None else f"in_{input}", kind, result, options)


def aggregates() -> st.SearchStrategy[AggregateSpec]:
    any_value = st.sampled_from(sorted(VALUES))
    return st.one_of(
        st.just(aggregate_spec("len", None)),
        st.builds(aggregate_spec, st.just("count"), any_value),
        st.builds(aggregate_spec, st.sampled_from(["sum", "mean"]), st.sampled_from(SUMMED)),
        st.builds(
            lambda function, input, ddof: aggregate_spec(function, input, ddof=ddof),
            st.sampled_from(["var", "std"]),
            st.sampled_from(["near", "money", "int16"]),
            st.integers(0, 2),
        ),
        st.builds(aggregate_spec, st.sampled_from(["min", "max", "first", "last"]), any_value),
    )


@st.composite
def tables(draw: st.DrawFn) -> tuple[TableSpec, pa.RecordBatch]:
    kinds = draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=3))
    keys = tuple(pa.field(f"k{place}", KEYS[kind][0]) for place, kind in enumerate(kinds))
    wanted = draw(st.lists(aggregates(), min_size=1, max_size=5, unique_by=lambda each: each.name))
    window = WindowSpec("month", Period(months=1), TIME, grace=1000, keep=5000) if draw(st.booleans()) else None
    spec = TableSpec("t", keys, window, tuple(wanted), TIME if window else None)
    rows = draw(st.integers(0, 60))

    def column(kind: pa.DataType, values: list[Any]) -> pa.Array:
        values = draw(st.lists(st.sampled_from([*values, None]), min_size=rows, max_size=rows))
        return typed(values, kind)

    columns = {each.name: column(*KEYS[kind]) for each, kind in zip(keys, kinds, strict=True)}
    if window is not None:
        starts = draw(st.lists(st.sampled_from([0, 1000, 2000, 5000]), min_size=rows, max_size=rows))
        columns["month"] = pa.array(starts, pa.int64()).view(TIME)
        columns["month_end"] = pa.array([each + 1000 for each in starts], pa.int64()).view(TIME)
    for each in wanted:
        if each.input is not None:
            columns[each.input] = column(*VALUES[each.input.removeprefix("in_")])
    columns["__offset"] = pa.array(range(rows), pa.int64())
    if spec.ordered:
        times = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
        columns["__time"] = pa.array(times, pa.int64())
    return spec, pa.RecordBatch.from_pydict(columns)


def cuts(rows: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, rows), max_size=6).map(lambda inner: [0, *sorted(inner), rows])


def pieces(batch: pa.RecordBatch, at: list[int]) -> list[pa.RecordBatch]:
    return [batch.slice(first, last - first) for first, last in itertools.pairwise(at)]


def canonical(spec: TableSpec, batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """Rows that can be compared and counted: one NaN, -0.0 in keys is 0.0, floats that were added up to nine digits."""
    rough = {each.name for each in spec.aggregates if each.function in ("mean", "var", "std")}
    rough |= {
        each.name for each in spec.aggregates if each.function == "sum" and pa.types.is_floating(each.result_type)
    }
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values: list[Any] = plain(column)
        if pa.types.is_floating(column.type):
            in_key = name in spec.key_schema.names
            values = [_float(value, name in rough, in_key) for value in values]
        columns.append(values)
    return sorted(zip(*columns, strict=True), key=repr) if columns else []


class Rough:
    """A float that was added up: equal up to rounding. Rows are sorted by their keys, which come before it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rough) and math.isclose(self.value, other.value, rel_tol=1e-9, abs_tol=1e-6)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "a float"


def _float(value: float | None, rough: bool, in_key: bool) -> Any:
    if value is None or math.isnan(value):
        return None if value is None else "nan"
    if rough:
        return Rough(value)
    return repr(value + 0.0 if in_key else value)


def rows_of(table: KeyedTable) -> pa.RecordBatch:
    view = table.view()
    found = list(view.batches())
    assert sum(each.num_rows for each in found) == view.rows == table.rows
    assert all(each.schema == table.spec.schema for each in found)
    return pa.concat_batches(found) if found else pa.RecordBatch.from_pylist([], schema=table.spec.schema)


@settings(max_examples=150, deadline=None)
@given(st.data(), tables(), st.sampled_from([1, 2, 8, 16384]))
def test_table_agrees_with_the_naive_twin(
    data: st.DataObject, made: tuple[TableSpec, pa.RecordBatch], chunk_rows: int
) -> None:
    spec, batch = made
    reference = ReferenceTable(spec)
    table = KeyedTable(spec, seed=5, chunk_rows=chunk_rows)
    held = []
    for piece in pieces(batch, data.draw(cuts(batch.num_rows))):
        action = data.draw(st.sampled_from(["apply", "apply hashed", "restore", "hold"]))
        reference.apply(piece)
        hashes = route_hashes([piece.column(name) for name in spec.routing_keys], 5, rows=piece.num_rows)
        table.apply(piece, hashes if action == "apply hashed" else None)
        if action == "restore":
            saved = [each.state() for each in table.view().chunks]
            table = KeyedTable(spec, seed=5, chunk_rows=chunk_rows)
            table.restore(data.draw(st.permutations(saved)), None)
        elif action == "hold":
            try:
                held.append((table.view(), reference.results()))
            except InvalidFlow:
                continue
    try:
        expected = reference.results()
    except InvalidFlow:
        with pytest.raises(InvalidFlow, match="does not fit"):
            rows_of(table)
        return
    assert canonical(spec, rows_of(table)) == canonical(spec, expected)
    for view, then in held:
        found = list(view.batches())
        rows = [row for each in found for row in canonical(spec, each)]
        assert sorted(rows, key=repr) == canonical(spec, then)
    _check_lookup(data, spec, table, expected)
    _check_windows(data, spec, table, reference)


def _check_lookup(data: st.DataObject, spec: TableSpec, table: KeyedTable, expected: pa.RecordBatch) -> None:
    if not expected.num_rows:
        return
    names = spec.key_schema.names[: data.draw(st.sampled_from([len(spec.keys), len(spec.key_schema)]))]
    wanted = data.draw(st.lists(st.integers(0, expected.num_rows - 1), min_size=1, max_size=4))
    asked = (
        expected.select(names).take(wanted)
        if names
        else pa.RecordBatch.from_struct_array(pa.array([{}], pa.struct([])))
    )
    found = canonical(spec, table.lookup(asked))
    if not names:
        assert found == canonical(spec, expected)
        return
    keys = {repr(row) for row in canonical(spec, asked)}
    mask = [repr(row) in keys for row in _rows(spec, expected.select(names))]
    assert found == canonical(spec, expected.filter(pa.array(mask)))


def _rows(spec: TableSpec, batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    return [canonical(spec, batch.slice(row, 1))[0] for row in range(batch.num_rows)]


def _check_windows(data: st.DataObject, spec: TableSpec, table: KeyedTable, reference: ReferenceTable) -> None:
    if spec.window is None:
        assert table.windows() == []
        assert table.expire(2**62) == 0
        return
    ends = Counter(plain(reference.results().column("month_end")))
    assert table.windows() == sorted((end * 1000, rows) for end, rows in ends.items())
    after, upto = sorted(
        data.draw(st.tuples(*[st.sampled_from([1_000_000, 1_001_000, 2_001_000, 2_001_001, 9_000_000])] * 2))
    )
    closed = reference.results(lambda key: after < key[-1] * 1000 + 1000 <= upto)
    assert canonical(spec, table.view().closed(after, upto)) == canonical(spec, closed)
    upto = data.draw(st.sampled_from([0, 1_004_999, 1_005_000, 2_005_000, 7_000_000]))
    view, before = table.view(), canonical(spec, reference.results())
    assert table.expire(upto) == reference.expire(upto)
    assert canonical(spec, rows_of(table)) == canonical(spec, reference.results())
    rows = [row for each in view.batches() for row in canonical(spec, each)]
    assert sorted(rows, key=repr) == before


@settings(max_examples=60, deadline=None)
@given(st.data(), tables(), st.integers(1, 4), st.integers(1, 4))
def test_state_moves_between_any_numbers_of_partitions(
    data: st.DataObject, made: tuple[TableSpec, pa.RecordBatch], before: int, after: int
) -> None:
    spec, batch = made
    whole = KeyedTable(spec, seed=9)
    whole.apply(batch)
    old = [KeyedTable(spec, seed=9, chunk_rows=4) for _ in range(before)]
    # Rows are dealt out at random, so that several old partitions have state of one key.
    dealt = np.array(
        data.draw(st.lists(st.integers(0, before - 1), min_size=batch.num_rows, max_size=batch.num_rows)), int
    )
    for number, table in enumerate(old):
        table.apply(batch.filter(pa.array(dealt == number)))
    saved = [chunk.state() for table in old for chunk in table.view().chunks]
    new = [KeyedTable(spec, seed=9, chunk_rows=2) for _ in range(after)]
    for number, table in enumerate(new):
        table.restore(
            data.draw(st.permutations(saved)),
            lambda h, number=number: owner_of_groups(key_groups(h), 128, after) == number,
        )
    try:
        expected = canonical(spec, rows_of(whole))
    except InvalidFlow:
        return
    found = [row for table in new for row in canonical(spec, rows_of(table))]
    assert sorted(found, key=repr) == expected


def money_table(**options: Any) -> KeyedTable:
    spec = TableSpec(
        "totals",
        (pa.field("customer", pa.string()),),
        None,
        (
            AggregateSpec("total", "sum", "amount", pa.int64(), pa.int64()),
            AggregateSpec("wide", "sum", "large", pa.decimal128(38, 0), pa.decimal128(38, 0)),
            AggregateSpec("events", "len", None, None, pa.int64()),
        ),
    )
    return KeyedTable(spec, seed=1, **options)


def money(customers: list[str], amounts: list[int], large: list[int] | None = None) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "customer": pa.array(customers),
            "amount": pa.array(amounts, pa.int64()),
            "large": pa.array([Decimal(each) for each in large or [0] * len(amounts)], pa.decimal128(38, 0)),
            "__offset": pa.array(range(len(amounts)), pa.int64()),
        }
    )


def test_a_sum_that_does_not_fit_is_an_error_of_the_reads_that_touch_it_and_nothing_else() -> None:
    table = money_table()
    most, digits = 2**63 - 1, 10**38 - 1
    table.apply(money(["anna", "bert", "anna", "carl", "carl"], [most, 1, 1, 0, 0], [0, 0, 0, digits, 1]))
    view = table.view()
    with pytest.raises(InvalidFlow, match=r"does not fit.*aggregate='total'.*'customer': 'anna'"):
        list(view.batches())
    with pytest.raises(InvalidFlow, match=r"does not fit.*aggregate='wide'.*'customer': 'carl'"):
        list(view.batches(["customer", "wide"]))
    assert pa.Table.from_batches(view.batches(["customer", "events"])).num_rows == 3
    assert table.lookup(pa.record_batch({"customer": ["bert"]})).column("total").to_pylist() == [1]
    with pytest.raises(InvalidFlow, match="anna"):
        table.lookup(pa.record_batch({"customer": ["anna"]}))
    # It was never wrapped: once it fits again, it is exact.
    table.apply(money(["anna", "carl"], [-1, 0], [0, -1]))
    found = {row["customer"]: row for each in table.view().batches() for row in each.to_pylist()}
    assert found["anna"]["total"] == most
    assert found["carl"]["wide"] == digits


@pytest.mark.parametrize("limit", [2**63 - 1, -(2**63)])
def test_sums_reach_both_ends_of_their_type(limit: int) -> None:
    table = money_table()
    table.apply(money(["a"] * 4, [limit, 1 if limit < 0 else -1, limit, 0]))
    with pytest.raises(InvalidFlow, match="does not fit"):
        list(table.view().batches(["total"]))
    table.apply(money(["a"] * 2, [-limit if limit > 0 else 2**63 - 1, 1 if limit > 0 else 0]))
    [batch] = table.view().batches(["total"])
    assert batch.column(0).to_pylist() == [limit]


def test_a_chunk_of_another_table_is_refused() -> None:
    table = money_table()
    with pytest.raises(CorruptData, match="other columns"):
        table.restore([pa.record_batch({"customer": ["a"]})], None)


def test_a_key_of_any_length_fits() -> None:
    table = money_table()
    keys = ["k" * (1 << place) for place in range(0, 22, 3)]
    table.apply(money(keys * 2, list(range(len(keys))) * 2))
    found = table.lookup(pa.record_batch({"customer": keys}))
    assert found.column("customer").to_pylist() == keys
    assert found.column("total").to_pylist() == [2 * each for each in range(len(keys))]


def test_lookup_takes_all_plain_keys_or_the_full_key() -> None:
    table = money_table()
    with pytest.raises(InvalidFlow, match="all plain keys"):
        table.lookup(pa.record_batch({"a": ["x"], "b": ["y"]}))
    assert table.lookup(pa.record_batch({"customer": ["nobody"]})).num_rows == 0


@pytest.mark.parametrize("months", [0, 1, 5])
def test_a_lookup_of_many_keys_is_by_key_in_the_order_given_each_once_then_by_window(months: int) -> None:
    chance = np.random.default_rng(months)
    kinds = [("low", pa.int8()), ("flag", pa.int64()), ("name", pa.string())]
    window = WindowSpec("month", Period(months=1), TIME) if months else None
    aggregates = [AggregateSpec("total", "sum", "low", pa.int8(), pa.int64())]
    aggregates += [AggregateSpec(f"max_{name}", "max", name, kind, kind) for name, kind in kinds]
    spec = TableSpec("t", (pa.field("customer", pa.string()),), window, tuple(aggregates), TIME if months else None)
    table, rows = KeyedTable(spec, seed=3, chunk_rows=64), 4000
    who, low = chance.integers(0, 700, rows), chance.integers(-9, 9, rows)
    start = 1000 * chance.integers(0, max(1, months), rows)
    columns = {
        "customer": pa.array([f"customer-{each}" for each in who]),
        "month": pa.array(start, pa.int64()).view(TIME),
        "month_end": pa.array(start + 1000, pa.int64()).view(TIME),
        "low": pa.array(low, pa.int8()),
        "flag": pa.array([None] * rows, pa.int64()),
        "name": pa.array([None if each % 3 == 0 else f"name-{each}" * (each % 4) for each in who]),
    }
    table.apply(pa.record_batch(columns))
    whole: dict[str, dict[int, dict[str, Any]]] = {}
    for row in pa.Table.from_batches(table.view().batches()).to_pylist():
        number = int(row["month"].timestamp() * 1000) if months else 0
        whole.setdefault(row["customer"], {})[number] = row
    for count in (1, 2, 63, 64, 65, 3000):
        keys = [f"customer-{each}" for each in chance.integers(0, 900, count)]
        expected = [
            whole[each][number] for each in dict.fromkeys(keys) if each in whole for number in sorted(whole[each])
        ]
        assert table.lookup(pa.record_batch({"customer": keys})).to_pylist() == expected
        if months:
            edges = pa.array(1000 * chance.integers(0, months + 1, count), pa.int64())
            full = pa.record_batch(
                [pa.array(keys), edges.view(TIME), pa.array(edges.to_numpy() + 1000).view(TIME)], spec.key_schema
            )
            named = dict.fromkeys(zip(keys, edges.to_pylist(), strict=True))
            expected = [whole[key][number] for key, number in named if number in whole.get(key, {})]
            assert table.lookup(full).to_pylist() == expected
