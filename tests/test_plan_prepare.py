"""Preparing rows for a table: vectors and bisection against doing every row by itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.api.stream import Aggregated, Stream, from_arrow
from flowstate.plan.compile import compile
from flowstate.plan.evaluate import Prepared
from flowstate.plan.expr import col, lit
from flowstate.plan.expr import len as length
from flowstate.plan.expr_choice import when
from flowstate.plan.position import NEVER, OFFSET, TIME, WATERMARK
from flowstate.plan.spec import Route
from flowstate.plan.window import window

SCHEMA = pa.schema(
    {"key": pa.string(), "a": pa.int32(), "b": pa.int32(), "money": pa.decimal128(6, 2), "at": pa.timestamp("ms", "Europe/Berlin"),
     "tags": pa.list_(pa.string()), "offset": pa.int8()}
)  # fmt: skip
HOUR = 3_600_000_000


def events() -> Stream:
    return from_arrow(SCHEMA.empty_table().to_batches() or [_batch([])], event_time="at")


def _batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def double_positive(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Drops rows whose `a` is negative, and says every third row number twice; fails at 13."""
    kept = []
    for row in batch.to_pylist():
        if row["a"] == 13:
            raise ValueError("unlucky")
        if row["a"] is None or row["a"] >= 0:
            kept += [row] * (2 if (row["a"] or 0) % 3 == 2 else 1)
    return pa.RecordBatch.from_pylist(kept, schema=SCHEMA)


def drop_negative(batch: pa.RecordBatch) -> pa.RecordBatch:
    assert not any(name.startswith("__") for name in batch.schema.names)
    return pa.RecordBatch.from_pylist([row for row in batch.to_pylist() if (row["a"] or 0) >= 0], schema=SCHEMA)


EXPLODED = SCHEMA.set(5, pa.field("tags", pa.string()))


def refuse_no(batch: pa.RecordBatch) -> pa.RecordBatch:
    if "no" in batch.column("tags").to_pylist():
        raise ValueError("no")
    return batch


def by_hour(stream: Stream, **options: Any) -> Aggregated:
    return stream.group_by("key", hour=window("at", every="1h", **({"grace": "1h"} | options))).agg(
        total=(col("a") + col("b")).sum(), newest=col("money").last(), n=length(), other=(col("a") + col("b")).max()
    )


FLOWS: dict[str, Callable[[], Aggregated]] = {
    "plain": lambda: by_hour(events()),
    "division": lambda: by_hour(events().with_columns(a=col("a") // col("b"))),
    "filter before": lambda: by_hour(events().filter(col("b") != 0, col("a") // col("b") >= 0)),
    "cast": lambda: by_hour(events().with_columns(b=col("key").cast(pa.int32()))),
    "explode": lambda: by_hour(events().explode("tags").with_columns(b=col("tags").cast(pa.int32()))),
    "select": lambda: by_hour(events().select("key", "at", "b", money=col("money") * 100, a=-col("a"))),
    "explode, then a function": lambda: by_hour(events().explode("tags").map_batches(refuse_no, EXPLODED)),
    "drops": lambda: by_hour(events().map_batches(drop_negative, SCHEMA)),
    "drops and doubles": lambda: by_hour(events().map_batches(double_positive, SCHEMA, per_row=True)),
    "no window": lambda: events().group_by(k=col("a") % col("b")).agg(first=col("key").first(), n=length()),
    "never closes": lambda: by_hour(events(), grace=None),
    "null key and day": lambda: events().group_by(day=window("at", every="1d", keep="1d")).agg(
        sum=when(col("b") > 0).then(col("a") * col("b")).otherwise(0).sum()
    ),
}  # fmt: skip
ROUTES = {name: compile([flow().view("v").node]).routes[0] for name, flow in FLOWS.items()}
INT32 = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([13, 2**31 - 1, -(2**31)]))


@st.composite
def routed(draw: st.DrawFn) -> pa.RecordBatch:
    rows = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "key": st.sampled_from(["1", "2", "x", None]),
                    "a": INT32,
                    "b": INT32,
                    "money": st.one_of(st.none(), st.sampled_from([Decimal("1.10"), Decimal("-9999.99")])),
                    "at": st.one_of(st.none(), *[st.integers(0, 6).map(lambda h: dt.datetime(2024, 3, 31, h, 59, tzinfo=dt.UTC))] * 9),
                    "tags": st.one_of(st.none(), st.lists(st.sampled_from(["1", "2", "no", None]), max_size=3)),
                    "offset": st.integers(0, 9),
                }
            ),
            max_size=24,
        )
    )  # fmt: skip
    batch = _batch(rows)
    times = np.array([0 if row["at"] is None else int(row["at"].timestamp()) * 1_000_000 for row in rows], np.int64)
    before = np.concatenate([[NEVER], np.maximum.accumulate(times)[:-1]]) if rows else times
    hidden = {OFFSET: np.arange(len(rows), dtype=np.int64) * 3 + 7, WATERMARK: before.astype(np.int64), TIME: times}
    for name, values in hidden.items():
        batch = batch.append_column(name, pa.array(values, pa.int64()))
    return batch


def naive(route: Route, batch: pa.RecordBatch, split: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Every record by itself; one that cannot be computed fails alone."""
    parts = [route.prepare(batch.slice(at, 1), split) for at in range(batch.num_rows)]
    late = [row for part in parts for row in (part.late.to_pylist() if part.late is not None else [])]
    return (
        [row for part in parts for row in part.rows.to_pylist()],
        late,
        [row for part in parts for row in part.failed.to_pylist()],
    )


def plain(prepared: Prepared) -> tuple[list[Any], list[Any], list[Any]]:
    late = [] if prepared.late is None else prepared.late.to_pylist()
    return prepared.rows.to_pylist(), late, sorted(prepared.failed.to_pylist(), key=lambda row: row["offset"])


@pytest.mark.parametrize("flow", FLOWS)
@settings(max_examples=20, deadline=None)
@given(batch=routed(), cut=st.integers(0, 24))
def test_however_rows_are_cut_the_result_is_that_of_each_row(flow: str, batch: pa.RecordBatch, cut: int) -> None:
    route = ROUTES[flow]
    whole = route.prepare(batch, "s")
    assert whole.rows.schema.equals(route.schema)
    assert (whole.late is None) == (route.late_schema is None)
    if whole.late is not None:
        assert whole.late.schema.equals(route.late_schema)
    assert plain(whole) == naive(route, batch, "s")
    two = [plain(route.prepare(batch.slice(0, cut), "s")), plain(route.prepare(batch.slice(cut), "s"))]
    assert plain(whole) == tuple(one + other for one, other in zip(*two, strict=True))
    # Nothing is lost: every record that no step drops on purpose is in one of the three.
    if flow not in ("filter before", "drops", "drops and doubles"):
        late = [] if whole.late is None else whole.late.column("offset").to_pylist()
        offsets = {*whole.rows.column(OFFSET).to_pylist(), *late, *whole.failed.column("offset").to_pylist()}
        assert offsets == set(batch.column(OFFSET).to_pylist())
    failed = whole.failed.column("offset").to_pylist()
    assert len(failed) == len(set(failed))
    assert not set(failed) & set(whole.rows.column(OFFSET).to_pylist())


@settings(max_examples=30, deadline=None)
@given(batch=routed())
def test_a_division_is_done_as_python_does_it(batch: pa.RecordBatch) -> None:
    """A twin that shares no code with the library."""
    rows, late, failed = [], [], []
    for row in batch.to_pylist():
        a, b, at = row["a"], row["b"], row["at"]
        try:
            a = None if a is None or b is None else a // b
            total = None if a is None or b is None else a + b
            if any(each is not None and not -(2**31) <= each < 2**31 for each in (a, total)):
                raise OverflowError
            start = at.astimezone(dt.UTC).replace(minute=0)
        except (ZeroDivisionError, OverflowError, AttributeError):
            failed.append(row[OFFSET])
            continue
        end = int(start.timestamp()) * 1_000_000 + HOUR
        if end + HOUR <= row[WATERMARK]:
            late.append((row[OFFSET], "s", row["key"]))
        else:
            rows.append((row[OFFSET], row["key"], start, total, row["money"], row[TIME]))
    got = ROUTES["division"].prepare(batch, "s")
    assert [(r[OFFSET], r["key"], r["hour"], r["(a + b)"], r["money"], r[TIME]) for r in got.rows.to_pylist()] == rows
    assert got.late is not None
    assert [(r["offset"], r["split"], r["key"]) for r in got.late.to_pylist()] == late
    assert sorted(got.failed.column("offset").to_pylist()) == failed


def batch_of(*rows: dict[str, Any], watermark: int = NEVER) -> pa.RecordBatch:
    blank = dict.fromkeys(SCHEMA.names) | {"at": dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "key": "k"}
    batch = _batch([blank | row for row in rows])
    for name, values in ((OFFSET, range(len(rows))), (WATERMARK, [watermark] * len(rows)), (TIME, range(len(rows)))):
        batch = batch.append_column(name, pa.array(values, pa.int64()))
    return batch


def test_reasons_name_the_expression() -> None:
    failed = (
        ROUTES["division"]
        .prepare(batch_of({"a": 1, "b": 0}, {"a": 1, "b": 1}, {"at": None, "a": 1, "b": 1}), "s")
        .failed
    )
    assert sorted(failed.to_pylist(), key=lambda row: row["offset"]) == [
        {"offset": 0, "reason": "divide by zero in a = (a // b)"},
        {"offset": 2, "reason": "null event time: 'at' is null, so the row has no window"},
    ]
    overflow = ROUTES["plain"].prepare(batch_of({"a": 2**31 - 1, "b": 1}), "s").failed.to_pylist()
    assert overflow == [{"offset": 0, "reason": "overflow in (a + b)"}]
    mapped = ROUTES["drops and doubles"].prepare(batch_of({"a": 13}, {"a": 1}), "s")
    assert mapped.failed.to_pylist() == [{"offset": 0, "reason": "ValueError: unlucky"}]
    assert mapped.rows.num_rows == 1


def test_late_is_when_the_window_closed_before_the_row() -> None:
    closes = (
        int(dt.datetime(2024, 1, 1, 2, tzinfo=dt.UTC).timestamp()) * 1_000_000
    )  # end of the hour, and an hour of grace
    for watermark, late in ((closes - 1, 0), (closes, 1)):
        got = ROUTES["plain"].prepare(batch_of({"offset": 5}, watermark=watermark), "s")
        assert got.late is not None and (got.rows.num_rows, got.late.num_rows) == (1 - late, late)
    assert got.late.schema.names[:2] == ["split", "offset"]
    row = got.late.to_pylist()[0]
    assert (row["split"], row["offset"], row["offset_value"]) == ("s", 0, 5)
    never = ROUTES["never closes"].prepare(batch_of({}, watermark=2**62), "s")
    assert never.late is None and never.rows.num_rows == 1


def test_exploded_rows_stand_or_fall_together() -> None:
    got = ROUTES["explode"].prepare(
        batch_of({"tags": ["1", "no", "2"], "a": 1}, {"tags": ["3", "4"], "a": 1}, {"tags": [], "a": 1}), "s"
    )
    assert got.failed.column("offset").to_pylist() == [0]
    assert [(row[OFFSET], row["(a + b)"]) for row in got.rows.to_pylist()] == [(1, 4), (1, 5), (2, None)]


def test_several_lists_are_taken_apart_side_by_side() -> None:
    schema = pa.schema(
        {"k": pa.string(), "x": pa.list_(pa.int64()), "y": pa.large_list(pa.string()), "z": pa.list_(pa.int8(), 2)}
    )
    stream = from_arrow([pa.RecordBatch.from_pylist([], schema=schema)])
    grouped = stream.explode("x", "y", "z").group_by("k").agg(x=col("x").sum(), y=col("y").min(), z=col("z").max())
    route = compile([grouped.view("v").node]).routes[0]
    rows = [{"k": "a", "x": [1, 2], "y": ["p", "q"], "z": [5, 6]}, {"k": "b", "x": [1], "y": ["p"], "z": [5, 6]}]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema).append_column(OFFSET, pa.array([0, 1], pa.int64()))
    batch = batch.append_column(WATERMARK, pa.array([NEVER, NEVER], pa.int64()))
    got = route.prepare(batch, "s")
    assert [tuple(row.values()) for row in got.rows.to_pylist()] == [("a", 1, "p", 5, 0), ("a", 2, "q", 6, 0)]
    assert got.failed.to_pylist() == [{"offset": 1, "reason": "lists of different lengths in explode(x, y, z)"}]


def wrong_type(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.set_column(1, "a", batch.column("a").cast(pa.int64()))


def wrong_names(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.drop_columns(["tags"])


def no_batch(batch: pa.RecordBatch) -> Any:
    return batch.to_pylist()


def a_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (wrong_type, "returned 'a' as int64, declared is int32"),
        (wrong_names, "returned columns"),
        (no_batch, "returned list"),
    ],
)
def test_what_a_function_returns_is_checked(function: Any, message: str) -> None:
    route = compile([by_hour(events().map_batches(function, SCHEMA)).view("v").node]).routes[0]
    got = route.prepare(batch_of({}, {}), "s")
    assert got.rows.num_rows == 0 and message in got.failed.column("reason")[1].as_py()


def test_a_function_may_return_a_table_and_is_asked_once_if_rows_stay() -> None:
    calls = []

    def counted(batch: pa.RecordBatch) -> pa.Table:
        calls.append(batch.num_rows)
        return a_table(batch)

    route = compile([by_hour(events().map_batches(counted, SCHEMA)).view("v").node]).routes[0]
    assert route.prepare(batch_of({}, {}, {}), "s").rows.num_rows == 3
    assert calls == [3]


def test_first_without_event_time_is_ordered_by_place() -> None:
    stream = from_arrow(pa.table({"k": ["a"], "x": [1]}))
    plan = compile([stream.group_by("k", one=lit(1)).agg(x=col("x").first()).view("v").node])
    batch = pa.RecordBatch.from_pydict({"k": ["a"], "x": [1], OFFSET: [4], WATERMARK: [NEVER]})
    assert plan.routes[0].prepare(batch, "s").rows.to_pylist() == [{"k": "a", "one": 1, "x": 1, OFFSET: 4, TIME: 0}]
