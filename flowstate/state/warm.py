"""Makes the machine code of keyed state ready by using every kernel once, on a few rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from flowstate.plan.keys import route_hashes, seed_word
from flowstate.plan.spec import AggregateSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec
from flowstate.state.index import Scratch
from flowstate.state.kernels import index
from flowstate.state.table import KeyedTable

_TIME = pa.timestamp("us", "UTC")
_WIDE = pa.decimal128(38, 0)


def _spec() -> TableSpec:
    """A table that needs them all."""
    inputs = {"i": pa.int64(), "d": pa.decimal128(10, 2), "w": _WIDE, "f": pa.float64(), "s": pa.string()}
    functions = [("sum", "i"), ("sum", "d"), ("sum", "w"), ("sum", "f"), ("var", "f"), ("count", "i")]
    functions += [(function, name) for function in ("min", "last") for name in inputs]
    results = {"len": pa.int64(), "count": pa.int64(), "var": pa.float64()}
    aggregates = tuple(
        AggregateSpec(f"{function}_{name}", function, name, inputs[name], _result(function, inputs[name], results))
        for function, name in functions
    )
    keys = (
        pa.field("k", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("x", pa.decimal128(10, 2)),
        pa.field("l", pa.string()),
    )
    window = WindowSpec("at", Period(microseconds=1), _TIME, grace=0, keep=0)
    return TableSpec("warm_up", keys, window, (AggregateSpec("len", "len", None, None, pa.int64()), *aggregates), _TIME)


def _result(function: str, kind: pa.DataType, results: dict[str, pa.DataType]) -> pa.DataType:
    if function == "sum":
        return pa.decimal128(38, kind.scale) if pa.types.is_decimal(kind) else kind
    return results.get(function, kind)


def warm_up() -> None:
    rows = 100
    numbers = pa.array([*range(rows - 1), None], pa.int64())
    batch = pa.record_batch(
        {
            "k": numbers.cast(pa.string()),
            "n": numbers,
            "x": numbers.cast(pa.int8()).cast(pa.decimal128(10, 2)),
            "l": numbers.cast(pa.string()),
            "at": pa.array([0, 1] * (rows // 2), pa.int64()).view(_TIME),
            "at_end": pa.array([1, 2] * (rows // 2), pa.int64()).view(_TIME),
            "i": numbers,
            "d": numbers.cast(pa.int8()).cast(pa.decimal128(10, 2)),
            "w": numbers.cast(_WIDE),
            "f": numbers.cast(pa.float64()),
            "s": numbers.cast(pa.string()),
            "__offset": pa.array(range(rows), pa.int64()),
            "__time": pa.array([0] * rows, pa.int64()),
        }
    )
    spec = _spec()
    names = list(spec.routing_keys)
    table = KeyedTable(spec, seed=0)
    table.apply(batch, route_hashes([batch.column(name) for name in names], 0))
    other = KeyedTable(spec, seed=0)
    other.restore([each.state() for each in table.view().chunks], lambda hashes: np.ones(len(hashes), np.bool_))
    for _ in other.view().batches():
        pass
    for count in (1, 2):
        other.lookup(batch.select(names).slice(0, count))
    other.apply(batch.slice(1))
    other.expire(1)
    other.lookup(batch.select(names))  # in the one window that is left
    rows_alone = (AggregateSpec("len", "len", None, None, pa.int64()),)
    for kind in (pa.string(), pa.int64()):
        simple = KeyedTable(TableSpec("warm_up", (pa.field("k", kind),), None, rows_alone), seed=0)
        keys = pa.record_batch({"k": numbers.cast(kind)})
        simple.apply(keys)
        simple.lookup(keys.slice(0, 2))
        simple.save_first()
        view = simple.view()
        simple.apply(keys)
        for _ in view.batches():
            pass
    low, high = np.zeros(64, np.uint64), np.zeros(64, np.uint64)  # tables are divided where there are thousands of keys
    index.divide(low.ctypes.data, high.ctypes.data, len(low), 0, 1, seed_word(0), Scratch().words())
