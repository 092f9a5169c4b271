"""Windows: against DuckDB's calendar, against a naive twin over zoneinfo, and at the places where clocks are set."""

from __future__ import annotations

import datetime as dt
import pickle
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import InvalidFlow
from flowstate.plan.position import FOREVER
from flowstate.plan.window import DAY, Period, duration, every_period, microseconds, offset_period, window

EPOCH = dt.datetime(1970, 1, 1)
MICRO = dt.timedelta(microseconds=1)
# Clocks set at midnight (Havana, Sao Paulo), by half an hour (Lord Howe), a day left out (Apia), no whole hours (Kolkata).
ZONES = [
    "Europe/Berlin", "America/New_York", "America/Havana", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia",
    "Asia/Kolkata", "Asia/Kathmandu", "Africa/Casablanca",
]  # fmt: skip


def at(year: int, *rest: int) -> int:
    """Microseconds of a wall clock time in UTC."""
    return (dt.datetime(year, *(rest or (1, 1))) - EPOCH) // MICRO  # type: ignore[misc,arg-type]


def times(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(least, most), min_size=1, max_size=30)


def assign(values: list[int], type_: pa.DataType, **options: str) -> tuple[list[int], list[int]]:
    """Starts and ends in microseconds, of times in microseconds."""
    spec = window("at", **options).named("w", type_)  # type: ignore[arg-type]
    array = (
        pa.array(values, pa.int64()).cast(pa.timestamp("us")).cast(pa.timestamp("us", type_.tz)).cast(type_, safe=False)
    )
    starts, ends = spec.assign(array)
    assert starts.type == ends.type == type_
    return microseconds(starts).tolist(), microseconds(ends).tolist()


def instant(wall: int, zone: ZoneInfo) -> int:
    """The naive twin of a boundary: first instant at which the clock shows `wall`, or has jumped over it."""
    local = EPOCH + wall * MICRO
    early, late = (
        (local.replace(tzinfo=zone, fold=fold).astimezone(dt.UTC).replace(tzinfo=None) - EPOCH) // MICRO
        for fold in (0, 1)
    )
    shown = (EPOCH + early * MICRO).replace(tzinfo=dt.UTC).astimezone(zone).replace(tzinfo=None)
    if shown == local:
        return early
    low, high = late, early  # in a gap the later rule gives the earlier instant; between both lies the jump
    before = (EPOCH + low * MICRO).replace(tzinfo=dt.UTC).astimezone(zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if (EPOCH + middle * MICRO).replace(tzinfo=dt.UTC).astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def naive_window(value: int, every: Period, offset: Period, zone: ZoneInfo) -> tuple[int, int]:
    """Start and end of a calendar window, by counting windows until one holds `value`."""

    def boundary(number: int) -> int:
        if every.months:
            months = number * every.months + offset.months
            date = dt.datetime(1970 + months // 12, months % 12 + 1, 1)
        else:
            date = EPOCH + dt.timedelta(days=number * every.days + (4 if every.monday else 0))
        return instant((date - EPOCH) // MICRO + offset.days * DAY + offset.microseconds, zone)

    length = every.months * 30.4 * DAY + every.days * DAY
    number = int(value // length) - 3
    while boundary(number + 1) <= value:
        number += 1
    while boundary(number) > value:
        number -= 1
    return boundary(number), boundary(number + 1)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC"])
@settings(max_examples=25, deadline=None)
@given(
    values=times(at(1700), at(2200)),
    every=st.sampled_from(["1mo", "1q", "1y", "1d", "1w", "1h", "15m", "30d", "5mo", "90m", "2w", "7d"]),
)
def test_in_utc_it_is_what_duckdb_says(unit: str, zone: str | None, values: list[int], every: str) -> None:
    values = [value - value % 1_000_000 for value in values]
    starts, ends = assign(values, pa.timestamp(unit, zone), every=every)
    interval = {"mo": "months", "q": "months", "y": "years", "d": "days", "w": "weeks", "h": "hours", "m": "minutes"}
    number, word = every_number(every)
    sql = f"interval '{number * 3 if every.endswith('q') else number} {interval[word]}'"
    origin = "timestamp '1970-01-05'" if word == "w" else "timestamp '1970-01-01'"
    rows = pa.table({"moment": pa.array(values, pa.int64()).cast(pa.timestamp("us"))})
    bucket = f"time_bucket({sql}, moment, {origin})"
    expected = asked(rows, f"select epoch_us({bucket}), epoch_us({bucket} + {sql}) from rows")
    assert list(zip(starts, ends, strict=True)) == expected


def asked(rows: pa.Table, sql: str, zone: str = "UTC") -> list[tuple[int, ...]]:
    with duckdb.connect() as connection:
        connection.execute(f"set TimeZone = '{zone}'")
        connection.register("rows", rows)
        return connection.execute(sql).fetchall()


def every_number(every: str) -> tuple[int, str]:
    word = every.lstrip("0123456789")
    return int(every.removesuffix(word)), word


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
@settings(max_examples=20, deadline=None)
@given(values=times(at(1971), at(2025)), unit=st.sampled_from(["day", "week", "month", "quarter", "year"]))
def test_in_a_zone_it_is_what_duckdb_truncates_to(zone: str, values: list[int], unit: str) -> None:
    every = {"day": "1d", "week": "1w", "month": "1mo", "quarter": "1q", "year": "1y"}[unit]
    starts, _ = assign(values, pa.timestamp("us", zone), every=every)
    rows = pa.table({"moment": pa.array(values, pa.int64()).cast(pa.timestamp("us", "UTC"))})
    expected = asked(rows, f"select epoch_us(date_trunc('{unit}', moment)) from rows", zone)
    assert [(start,) for start in starts] == expected


@settings(max_examples=150, deadline=None)
@given(
    values=times(at(1905), at(2037)),  # from 2038 on Arrow knows no summer time any more
    zone=st.sampled_from(ZONES),
    every=st.sampled_from(["1d", "1w", "2d", "30d", "1mo", "2mo", "1y"]),
    offset=st.sampled_from(["0s", "2h", "2h30m", "-90m", "1d", "15m", "25h"]),
)
def test_in_a_zone_it_is_what_counting_gives(values: list[int], zone: str, every: str, offset: str) -> None:
    starts, ends = assign(values, pa.timestamp("us", zone), every=every, offset=offset)
    for value, start, end in zip(values, starts, ends, strict=True):
        assert (start, end) == naive_window(value, every_period(every), offset_period(offset), ZoneInfo(zone))
        assert start <= value < end


@settings(max_examples=60, deadline=None)
@given(
    values=times(at(1), at(9999)),
    zone=st.sampled_from([None, *ZONES]),
    every=st.sampled_from(["1d", "1w", "1mo", "7mo", "1y", "6h", "1s"]),
    offset=st.sampled_from(["0s", "2h30m", "-36h"]),
)
def test_windows_follow_one_another_without_a_hole(
    values: list[int], zone: str | None, every: str, offset: str
) -> None:
    if every in ("6h", "1s") and "36" in offset:
        offset = "-1h"
    values = [max(at(2), min(at(9998), value)) for value in values]
    starts, ends = assign(values, pa.timestamp("us", zone), every=every, offset=offset)
    assert all(start <= value < end for start, value, end in zip(starts, values, ends, strict=True))
    assert assign(ends, pa.timestamp("us", zone), every=every, offset=offset)[0] == ends
    last = [end - 1 for end in ends]
    assert assign(last, pa.timestamp("us", zone), every=every, offset=offset) == (starts, ends)
    # The same one by one: few rows take another way to the boundaries than many.
    assert [assign([value], pa.timestamp("us", zone), every=every, offset=offset) for value in values] == [
        ([start], [end]) for start, end in zip(starts, ends, strict=True)
    ]


@pytest.mark.parametrize(
    ("zone", "every", "value", "start", "end"),
    [
        # A day of 23 hours, and one of 25.
        ("Europe/Berlin", "1d", at(2024, 3, 31, 12), at(2024, 3, 30, 23), at(2024, 3, 31, 22)),
        ("Europe/Berlin", "1d", at(2024, 10, 27, 12), at(2024, 10, 26, 22), at(2024, 10, 27, 23)),
        # Hours are absolute: the hour that the clock shows twice is two windows.
        ("Europe/Berlin", "1h", at(2024, 10, 27, 0, 30), at(2024, 10, 27, 0), at(2024, 10, 27, 1)),
        ("Europe/Berlin", "1h", at(2024, 10, 27, 1, 30), at(2024, 10, 27, 1), at(2024, 10, 27, 2)),
        # Midnight does not exist: the day begins at one o'clock.
        ("America/Sao_Paulo", "1d", at(2018, 11, 4, 12), at(2018, 11, 4, 3), at(2018, 11, 5, 2)),
        # Midnight exists twice: the day begins at the first.
        ("America/Havana", "1d", at(2024, 11, 3, 5, 30), at(2024, 11, 3, 4), at(2024, 11, 4, 5)),
        # 30 December 2011 did not exist in Samoa.
        ("Pacific/Apia", "1d", at(2011, 12, 30, 12), at(2011, 12, 30, 10), at(2011, 12, 31, 10)),
        ("Pacific/Apia", "1mo", at(2011, 12, 30, 12), at(2011, 12, 1, 10), at(2011, 12, 31, 10)),
        ("Europe/Berlin", "1mo", at(2024, 3, 31, 22, 30), at(2024, 3, 31, 22), at(2024, 4, 30, 22)),
        ("+05:30", "1d", at(2024, 3, 31, 20), at(2024, 3, 31, 18, 30), at(2024, 4, 1, 18, 30)),
    ],
)
def test_where_clocks_are_set(zone: str, every: str, value: int, start: int, end: int) -> None:
    assert assign([value], pa.timestamp("ms", zone), every=every) == ([start], [end])


def test_days_weeks_and_offsets_begin_where_the_docstring_says() -> None:
    monday = at(2024, 4, 1)
    assert assign([monday + 6 * DAY], pa.timestamp("us"), every="1w") == ([monday], [monday + 7 * DAY])
    assert assign([5 * DAY], pa.timestamp("us"), every="30d") == ([0], [30 * DAY])
    assert assign([-1], pa.timestamp("us"), every="30d") == ([-30 * DAY], [0])
    fiscal = assign([at(2024, 3, 31), at(2024, 4, 1)], pa.timestamp("us"), every="1y", offset="3mo")
    assert fiscal == ([at(2023, 4, 1), at(2024, 4, 1)], [at(2024, 4, 1), at(2025, 4, 1)])
    billing = assign([at(2024, 3, 14, 23), at(2024, 3, 15)], pa.timestamp("us"), every="1mo", offset="14d")
    assert billing == ([at(2024, 2, 15), at(2024, 3, 15)], [at(2024, 3, 15), at(2024, 4, 15)])


def test_nulls_dates_and_chunks() -> None:
    spec = window("on", every="1mo").named("month", pa.date32())
    days = pa.chunked_array([[dt.date(2024, 2, 29), None], [dt.date(1969, 12, 31)]], pa.date32())
    starts, ends = spec.assign(days)
    assert starts.to_pylist() == [dt.date(2024, 2, 1), None, dt.date(1969, 12, 1)]
    assert ends.to_pylist() == [dt.date(2024, 3, 1), None, dt.date(1970, 1, 1)]
    assert starts.type == pa.date32()
    empty = spec.assign(pa.array([], pa.date32()))
    assert [len(each) for each in empty] == [0, 0]


def test_times_that_no_calendar_has_are_errors_of_the_row() -> None:
    spec = window("at", every="1mo").named("month", pa.timestamp("us", "Europe/Berlin"))
    for value in (2**62, -(2**62), at(9999) + 400 * DAY):
        with pytest.raises(pa.ArrowInvalid, match="outside the years"):
            spec.assign(pa.array([0, value], pa.int64()).cast(spec.time_type))
    nano = window("at", every="1y").named("year", pa.timestamp("ns"))
    with pytest.raises(pa.ArrowInvalid, match="begins or ends outside"):
        nano.assign(pa.array([2**63 - 10], pa.int64()).cast(pa.timestamp("ns")))


def test_when_a_window_closes_and_is_forgotten() -> None:
    day = 24 * 3600 * 1_000_000
    plain = window("at", every="1h").named("hour", pa.timestamp("us"))
    graced = window("at", every="1h", grace="3d", keep="90d").named("hour", pa.timestamp("us"))
    kept = window("at", every="1h", keep="90d").named("hour", pa.timestamp("us"))
    assert (plain.closes(5), plain.expires(5)) == (FOREVER, FOREVER)
    assert (graced.closes(5), graced.expires(5)) == (5 + 3 * day, 5 + 90 * day)
    assert (kept.closes(5), kept.expires(5)) == (5 + 90 * day, 5 + 90 * day)
    ends = np.array([-7, 0, FOREVER - 3, FOREVER], np.int64)
    for spec in (plain, graced, kept):
        assert spec.closes_array(ends).tolist() == [spec.closes(int(end)) for end in ends]
    assert graced.end_name == "hour_end"
    assert pickle.loads(pickle.dumps(graced)) == graced


def test_durations() -> None:
    assert duration("1h30m") == 5_400_000_000
    assert duration("500ms") == 500_000
    assert duration("0s") == 0
    assert duration("2w") == duration("14d") == duration(dt.timedelta(days=14))
    for wrong in ("", "h", "1", "1 h", "-1h", "1.5h", "1hour", "h1", 5):
        with pytest.raises(InvalidFlow, match="written like"):
            duration(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidFlow, match="no fixed size"):
        duration("1mo")
    with pytest.raises(InvalidFlow, match="not negative"):
        duration(dt.timedelta(seconds=-1))
    assert offset_period("-1mo2d3h") == Period(months=-1, days=-2, microseconds=-3 * 3_600_000_000)


@pytest.mark.parametrize(
    ("options", "type_", "message"),
    [
        ({"every": "0s"}, pa.timestamp("us"), "longer than nothing"),
        ({"every": "1mo1d"}, pa.timestamp("us"), "either months or a number of days"),
        ({"every": "1h", "grace": "3d", "keep": "1d"}, pa.timestamp("us"), "at least its grace"),
        ({"every": "1h"}, pa.string(), "cast it first"),
        ({"every": "1h"}, pa.date32(), "whole days"),
        ({"every": "1d", "offset": "1mo"}, pa.timestamp("us"), "needs a window of months"),
        ({"every": "500ms"}, pa.timestamp("s"), "between two values"),
        ({"every": "1mo", "offset": "1ms"}, pa.timestamp("s", "Europe/Berlin"), "cannot be laid"),
        ({"every": "1d"}, pa.timestamp("us", "Mars/Olympus"), "cannot be laid"),
    ],
)
def test_what_a_window_refuses(options: dict[str, str], type_: pa.DataType, message: str) -> None:
    with pytest.raises(InvalidFlow, match=message):
        window("at", **options).named("w", type_)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(
    value=st.integers(-(2**63) // 1_000_000 + 1, 2**63 // 1_000_000 - 1), unit=st.sampled_from(["s", "ms", "us", "ns"])
)
def test_microseconds_round_down(value: int, unit: str) -> None:
    micros = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}[unit] * value
    got = microseconds(pa.array([value, None], pa.int64()).cast(pa.timestamp(unit, "UTC")))
    assert got[0] == (value // 1000 if unit == "ns" else micros)
