"""Windows of event time: stretches that follow one another without a hole, each known by its start and its end.

Hours and less are absolute time, counted from 1970-01-01T00:00Z. Days, weeks (from Monday), months and years are those of the
calendar in the zone of the column, so that a day may last 23 or 25 hours. Every window is the half-open stretch between two
neighbouring *boundaries*: instants that exist even where the wall clock jumps (a boundary that the clock skips is the first instant
after the jump, one that it shows twice is the earlier). Days are counted from 1970-01-01; `offset` moves all boundaries.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow
from flowstate.plan.position import FOREVER

Int64s = npt.NDArray[np.int64]

DAY = 86_400_000_000
_MICROSECONDS = {"us": 1, "ms": 1000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": DAY, "w": 7 * DAY}
_MONTHS = {"mo": 1, "q": 3, "y": 12}
_PART = re.compile(r"(\d+)(us|ms|mo|s|m|h|d|w|q|y)")
_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_UTC = {None, "", "UTC", "utc", "Etc/UTC", "GMT", "Etc/GMT", "Z", "Zulu", "+00:00", "-00:00"}
_MONDAY = 4 * DAY  # 1970-01-05
# Calendars are computed for years 1 to 9999 only: an instant outside is no date that people write down.
_LEAST, _MOST = -62_135_596_800_000_000, 253_402_300_799_999_999


Duration = str | datetime.timedelta


def duration(text: Duration) -> int:
    """Microseconds of ``"12h"``, ``"1h30m"``, ``"500ms"`` (units us, ms, s, m, h, d, w), or of a timedelta."""
    if isinstance(text, datetime.timedelta):
        micros = text // datetime.timedelta(microseconds=1)
        if micros < 0:
            raise InvalidFlow("a duration is not negative", duration=str(text))
        return micros
    return sum(number * _MICROSECONDS[unit] for number, unit in _parts(text, _MICROSECONDS, "us, ms, s, m, h, d, w"))


def duration_text(micros: int) -> str:
    """`duration`, the other way round: ``"1h30m"``."""
    parts = []
    for unit in ("d", "h", "m", "s", "ms", "us"):
        number, micros = divmod(micros, _MICROSECONDS[unit])
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def _parts(text: str, units: dict[str, int], known: str) -> list[tuple[int, str]]:
    parts = [(int(number), unit) for number, unit in _PART.findall(text)] if isinstance(text, str) else []
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != re.sub(r"(?<!\d)0+(?=\d)", "", text):
        raise InvalidFlow(f"a duration is written like '15m', '12h' or '1h30m', with units {known}", duration=text)
    for _, unit in parts:
        if unit not in units:
            raise InvalidFlow(f"a length of time in {unit!r} has no fixed size here; use units {known}", duration=text)
    return parts


_FEW, _MANY = 64, 256  # boundaries and times: so many are found by a kernel


@dataclass(frozen=True)
class Period:
    """A length of time: either `months` of the calendar, or `days` of the calendar, or absolute `microseconds`; as an offset,
    a sum of them. `monday` says that days are counted from a Monday."""

    months: int = 0
    days: int = 0
    microseconds: int = 0
    monday: bool = False

    def __str__(self) -> str:
        if self.monday:
            return f"{self.days // 7}w"
        years = self.months % 12 == 0
        written = [
            (self.months // 12 if years else self.months, "y" if years else "mo"),
            (self.days, "d"),
            (self.microseconds, "us"),
        ]
        text = "".join(f"{abs(number)}{unit}" for number, unit in written if number)
        return ("-" if min(self.months, self.days, self.microseconds) < 0 else "") + (text or "0s")


def period_text(period: Period) -> str:
    """As somebody would write it: ``"15m"``, where ``str`` counts microseconds."""
    if period.microseconds and not (period.months or period.days):
        return ("-" if period.microseconds < 0 else "") + duration_text(abs(period.microseconds))
    return str(period)


def every_period(text: str | datetime.timedelta) -> Period:
    """The length of a window: ``"15m"``, ``"1h"``, ``"30d"``, ``"1w"``, ``"1mo"``, ``"1q"``, ``"1y"``."""
    if isinstance(text, datetime.timedelta):
        period = Period(microseconds=duration(text))
    else:
        parts = _parts(text, _MICROSECONDS | _MONTHS, "us, ms, s, m, h, d, w, mo, q, y")
        total = sum(number * _MICROSECONDS.get(unit, 0) for number, unit in parts)
        months = sum(number * _MONTHS.get(unit, 0) for number, unit in parts)
        units = {unit for _, unit in parts}
        if months and total:
            raise InvalidFlow("a window is either months or a number of days, not both", every=text)
        if units == {"w"}:
            period = Period(days=total // DAY, monday=True)
        elif units <= {"d", "w"}:
            period = Period(days=total // DAY)
        else:
            period = Period(months=months, microseconds=total)
    if not (period.months or period.days or period.microseconds):
        raise InvalidFlow("a window is longer than nothing; say for example every='1h'", every=str(text))
    return period


def offset_period(text: str | datetime.timedelta | None) -> Period:
    """What all boundaries are moved by: ``"6h"``, ``"-2h"``, ``"1mo"``, ``"3mo14d"``."""
    if text is None:
        return Period()
    if isinstance(text, datetime.timedelta):
        return Period(microseconds=text // datetime.timedelta(microseconds=1))
    sign = -1 if text.startswith("-") else 1
    parts = _parts(text.removeprefix("-"), _MICROSECONDS | _MONTHS, "us, ms, s, m, h, d, w, mo, q, y")
    days = sum(number * _MICROSECONDS[unit] // DAY for number, unit in parts if unit in ("d", "w"))
    micros = sum(number * _MICROSECONDS[unit] for number, unit in parts if unit in _MICROSECONDS and unit not in "dw")
    months = sum(number * _MONTHS.get(unit, 0) for number, unit in parts)
    return Period(sign * months, sign * days, sign * micros)


def microseconds(times: pa.Array | pa.ChunkedArray) -> Int64s:
    """Timestamps or dates as int64 microseconds since 1970 (rounded down; whatever for nulls); an error if one does not fit."""
    if isinstance(times, pa.ChunkedArray):
        times = times.combine_chunks()
    if times.null_count:
        times = pc.fill_null(times, pa.scalar(0, pa.int64()).cast(_bare(times.type)).cast(times.type))
    if pa.types.is_date32(times.type):
        return times.cast(pa.int32()).to_numpy(zero_copy_only=False).astype(np.int64) * DAY
    values: Int64s = times.view(pa.int64()).to_numpy(zero_copy_only=False)
    unit = times.type.unit
    if unit == "ns":
        return values // 1000
    factor = 1_000_000 // _PER_SECOND[unit]
    if factor > 1 and len(values):
        limit = FOREVER // factor
        if values.min() < -limit or values.max() > limit:
            raise pa.ArrowInvalid("a time is out of range")
        return values * factor
    return values


def _bare(type_: pa.DataType) -> pa.DataType:
    return pa.int32() if pa.types.is_date32(type_) else pa.int64()


@dataclass(frozen=True)
class WindowSpec:
    """A named window over event times of type `time_type` (timestamp of any unit, with or without a zone, or date32).

    `grace` and `keep` are microseconds after the window's end, or None. A window closes at end + grace; one that has no grace but
    is forgotten (`keep`) closes when it is forgotten, because a row that came after would start it anew; any other never closes.
    """

    name: str
    every: Period
    time_type: pa.DataType
    offset: Period = Period()
    grace: int | None = None
    keep: int | None = None

    @property
    def end_name(self) -> str:
        return f"{self.name}_end"

    @property
    def time_zone(self) -> str | None:
        """The zone whose calendar counts; None is UTC."""
        zone = None if pa.types.is_date32(self.time_type) else self.time_type.tz
        return None if zone in _UTC else str(zone)

    def closes(self, end_us: int) -> int:
        """When the window that ends at `end_us` closes, in microseconds; `FOREVER` if it never does."""
        after = self.grace if self.grace is not None else self.keep
        return FOREVER if after is None else min(FOREVER, end_us + after)

    def closes_array(self, ends_us: Int64s) -> Int64s:
        after = self.grace if self.grace is not None else self.keep
        if after is None:
            return np.full(len(ends_us), FOREVER, np.int64)
        return np.minimum(ends_us, FOREVER - after) + after

    def expires(self, end_us: int) -> int:
        """When the window that ends at `end_us` is forgotten, in microseconds; `FOREVER` if it never is."""
        return FOREVER if self.keep is None else min(FOREVER, end_us + self.keep)

    def assign(self, times: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
        """Start and end of the window of each time, in the type of `times`; null where the time is null.

        `pa.ArrowInvalid` if a window would begin or end outside the years 1 to 9999 or what the type can say.
        """
        if isinstance(times, pa.ChunkedArray):
            times = times.combine_chunks()
        if times.type != self.time_type:
            raise InvalidFlow("a window got times of another type", window=self.name, type=str(times.type))
        dates = pa.types.is_date32(times.type)
        bare = times.view(_bare(times.type))
        valid = np.asarray(pc.is_valid(bare)) if bare.null_count else None
        if valid is not None:
            bare = pc.drop_null(bare)
        values: Int64s = bare.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        if len(values):
            starts, ends = self._edges(values, _PER_SECOND["us" if dates else times.type.unit], dates)
        else:
            starts = ends = values
        return _typed(starts, valid, times.type), _typed(ends, valid, times.type)

    def _edges(self, values: Int64s, per_second: int, dates: bool) -> tuple[Int64s, Int64s]:
        if dates:
            _check(int(values.min()) * DAY, int(values.max()) * DAY, self)
            starts, ends = self._edges(values * DAY, 1_000_000, False)
            return starts // DAY, ends // DAY
        least, most = (int(each) * 1_000_000 // per_second for each in (values.min(), values.max()))
        _check(least, most, self)
        if self.every.months or (self.time_zone is not None and self.every.days):
            boundaries = self._boundaries(values if per_second == 1_000_000 else None, values, per_second, least, most)
            if len(boundaries) <= _FEW and len(values) >= _MANY and per_second <= 1_000_000:
                from flowstate.plan.event_times import find_windows  # numba: not for who only builds a flow

                starts, ends = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
                find_windows(np.ascontiguousarray(values), boundaries, starts, ends)
                return starts, ends
            at = np.searchsorted(boundaries, values, side="right") - 1
            return boundaries[at], boundaries[at + 1]
        width = _in_unit(self.every.days * DAY + self.every.microseconds, per_second, self)
        move = self.offset.days * DAY + self.offset.microseconds + (_MONDAY if self.every.monday else 0)
        shift = _in_unit(move, per_second, self) % width
        if max(abs(int(values.min())), abs(int(values.max()))) > FOREVER - 2 * width:
            raise pa.ArrowInvalid("a window begins or ends outside what its type can say")
        starts = values - (values % width - shift) % width
        return starts, starts + width

    def _boundaries(self, micros: Int64s | None, values: Int64s, per_second: int, least: int, most: int) -> Int64s:
        """Boundaries around all `values`, in their unit, ascending.

        Each time's window is found among its neighbours: the number of its window by UTC is off by less than two, because no zone
        is a whole day away from UTC.
        """
        first, last = self._number(np.array([least, most], np.int64))
        if last - first <= 4 * len(values) + 1000:
            numbers = np.arange(first - 2, last + 4, dtype=np.int64)
        else:
            if micros is None:
                micros = values // 1000 if per_second == 1_000_000_000 else values * (1_000_000 // per_second)
            near = np.unique(self._number(micros))
            numbers = np.unique(near[:, None] + np.arange(-2, 4, dtype=np.int64)[None, :])
        boundaries = self._instants(numbers)
        if per_second <= 1_000_000:
            divisor = 1_000_000 // per_second
            if divisor > 1 and (boundaries % divisor).any():
                raise pa.ArrowInvalid("a window begins between two values of its type")
            return boundaries // divisor
        if boundaries[0] < -(FOREVER // 1000) or boundaries[-1] > FOREVER // 1000:
            inside = (boundaries >= -(FOREVER // 1000)) & (boundaries <= FOREVER // 1000)
            boundaries = boundaries[inside]
            if not len(boundaries) or boundaries[0] > least or boundaries[-1] <= most:
                raise pa.ArrowInvalid("a window begins or ends outside what its type can say")
        return boundaries * 1000

    def _number(self, micros: Int64s) -> Int64s:
        """Number of the calendar window that holds a wall clock time."""
        days = (micros - self.offset.microseconds) // DAY - self.offset.days
        if self.every.months:
            months = days.astype("M8[D]").astype("M8[M]").astype(np.int64)
            return np.asarray((months - self.offset.months) // self.every.months)
        return np.asarray((days - (_MONDAY // DAY if self.every.monday else 0)) // self.every.days)

    def _instants(self, numbers: Int64s) -> Int64s:
        """Microseconds at which the windows with these numbers begin."""
        if self.every.months:
            months = numbers * self.every.months + self.offset.months
            days = months.astype("M8[M]").astype("M8[D]").astype(np.int64)
        else:
            days = numbers * self.every.days + (_MONDAY // DAY if self.every.monday else 0)
        wall = (days + self.offset.days) * DAY + self.offset.microseconds
        if self.time_zone is None:
            return np.asarray(wall)
        local = pa.array(wall, pa.timestamp("us"))
        zoned = pc.assume_timezone(local, self.time_zone, ambiguous="earliest", nonexistent="latest")
        return np.asarray(zoned.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _check(least: int, most: int, spec: WindowSpec) -> None:
    # Room for the neighbours of the outermost windows, whose boundaries are computed too.
    room = 8 * (spec.every.days * DAY + spec.every.microseconds + spec.every.months * 31 * DAY)
    room += abs(spec.offset.days) * DAY + abs(spec.offset.microseconds) + abs(spec.offset.months) * 31 * DAY
    if least < _LEAST or most > _MOST:
        raise pa.ArrowInvalid("a time is outside the years 1 to 9999")
    if room > _MOST:
        raise InvalidFlow("a window is too long", every=str(spec.every), offset=str(spec.offset))


def _in_unit(micros: int, per_second: int, spec: WindowSpec) -> int:
    value, rest = divmod(micros * per_second, 1_000_000)
    if rest:
        raise InvalidFlow(
            "a window begins between two values of its column's type; use a finer timestamp type, or a longer window",
            window=spec.name, every=str(spec.every), offset=str(spec.offset), type=str(spec.time_type),
        )  # fmt: skip
    return value


def _typed(values: Int64s, valid: npt.NDArray[np.bool_] | None, type_: pa.DataType) -> pa.Array:
    if valid is None:
        numbers = pa.array(values, pa.int64())
        return numbers.view(type_) if pa.types.is_timestamp(type_) else numbers.cast(_bare(type_)).cast(type_)
    full = np.zeros(len(valid), np.int64)
    full[valid] = values
    return pa.array(full, pa.int64(), mask=~valid).cast(_bare(type_)).cast(type_)


@dataclass(frozen=True)
class Window:
    """A window as the user writes it, before it has a name and a type: what `window` returns."""

    column: str
    every: Period
    offset: Period = Period()
    grace: int | None = None
    keep: int | None = None

    def named(self, name: str, type_: pa.DataType) -> WindowSpec:
        """The window as a key called `name` over a column of `type_`. `InvalidFlow` if that column cannot carry it."""
        if not (pa.types.is_timestamp(type_) or pa.types.is_date32(type_)):
            raise InvalidFlow(
                "a window needs a timestamp or date32 column; cast it first", column=self.column, type=str(type_)
            )
        spec = WindowSpec(name, self.every, type_, self.offset, self.grace, self.keep)
        if pa.types.is_date32(type_) and (self.every.microseconds or self.offset.microseconds):
            raise InvalidFlow(
                "a window over dates is a number of whole days, weeks, months or years",
                window=name,
                every=str(self.every),
            )
        if self.offset.months and not self.every.months:
            raise InvalidFlow(
                "an offset in months needs a window of months or years", window=name, offset=str(self.offset)
            )
        if spec.time_zone is not None and self.every.microseconds and self.offset.days:
            raise InvalidFlow("a window of hours or less takes an offset of hours or less", window=name)
        probe = pa.array([0], pa.int64()).cast(_bare(type_)).cast(type_)
        try:
            spec.assign(probe)
        except pa.ArrowInvalid as error:
            raise InvalidFlow("a window cannot be laid over this column", window=name, type=str(type_)) from error
        return spec


def window(
    column: str,
    *,
    every: str | datetime.timedelta,
    offset: str | datetime.timedelta | None = None,
    grace: str | datetime.timedelta | None = None,
    keep: str | datetime.timedelta | None = None,
) -> Window:
    """A key for `group_by`: ``group_by("customer", month=window("at", every="1mo", grace="3d"))``.

    `every` is the length: absolute ("15m", "1h") or of the calendar ("1d", "30d", "1w", "1mo", "1y"). `offset` moves all windows.
    `grace` is how long after its end the window still takes rows; then it closes, its rows are final and later ones are late.
    `keep` is how long after its end the window stays in memory.
    """
    if not isinstance(column, str):
        raise InvalidFlow("a window is over a column, given by name", column=str(column))
    after = None if grace is None else duration(grace)
    kept = None if keep is None else duration(keep)
    if after is not None and kept is not None and kept < after:
        raise InvalidFlow("a window must be kept for at least its grace", grace=str(grace), keep=str(keep))
    return Window(column, every_period(every), offset_period(offset), after, kept)
