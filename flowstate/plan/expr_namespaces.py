"""The functions of expressions that belong to one kind of value: ``.str``, ``.dt`` and ``.struct``."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.expr_functions import contains
from flowstate.plan.window import every_period

if TYPE_CHECKING:
    from flowstate.plan.expr import Expr

Call = Callable[..., "Expr"]


class Text:
    """Functions of text: ``col("name").str.upper()``."""

    def __init__(self, expr: Expr, call: Call) -> None:
        self._expr, self._call = expr, call

    def to_uppercase(self) -> Expr:
        return self._call("upper", self._expr)

    def to_lowercase(self) -> Expr:
        return self._call("lower", self._expr)

    upper, lower = to_uppercase, to_lowercase

    def contains(self, pattern: str, *, literal: bool = False) -> Expr:
        """Whether a regular expression (RE2) matches anywhere; with `literal`, whether `pattern` itself is in the text."""
        try:
            contains(pa.array(["probe"]), {"pattern": pattern, "literal": literal})
        except (pa.ArrowException, TypeError) as error:
            raise InvalidFlow(
                f"not a regular expression: {error}; for plain text say literal=True", pattern=pattern
            ) from error
        return self._call("contains", self._expr, pattern=pattern, literal=literal)

    def starts_with(self, prefix: str) -> Expr:
        return self._call("starts_with", self._expr, prefix=prefix)

    def ends_with(self, suffix: str) -> Expr:
        return self._call("ends_with", self._expr, suffix=suffix)

    def slice(self, offset: int, length: int | None = None) -> Expr:
        """`length` characters (all, if None) from `offset`; a negative offset counts from the end."""
        if length is not None and length < 0:
            raise InvalidFlow("a slice has a length of 0 or more", length=length)
        return self._call("slice", self._expr, offset=offset, length=length)

    def strip(self, characters: str | None = None) -> Expr:
        """Without the white space (or any of `characters`) at both ends."""
        return self._call("strip", self._expr, characters=characters)

    strip_chars = strip

    def len_chars(self) -> Expr:
        return self._call("len_chars", self._expr)


class Time:
    """Parts of times, in the zone of the column: ``col("at").dt.hour()``."""

    def __init__(self, expr: Expr, call: Call) -> None:
        self._expr, self._call = expr, call

    def year(self) -> Expr:
        return self._call("year", self._expr)

    def month(self) -> Expr:
        return self._call("month", self._expr)

    def day(self) -> Expr:
        return self._call("day", self._expr)

    def hour(self) -> Expr:
        return self._call("hour", self._expr)

    def minute(self) -> Expr:
        return self._call("minute", self._expr)

    def second(self) -> Expr:
        return self._call("second", self._expr)

    def weekday(self) -> Expr:
        """Monday is 1, Sunday 7."""
        return self._call("weekday", self._expr)

    def date(self) -> Expr:
        return self._call("date", self._expr)

    def truncate(self, every: str | datetime.timedelta) -> Expr:
        """Rounded down to a multiple of `every` ("15m", "1h", "1d", "1w", "1mo", "1y") of the calendar and clock in the zone."""
        every_period(every)
        return self._call("truncate", self._expr, every=str(every) if isinstance(every, str) else every)


class Struct:
    """Fields of a struct: ``col("address").struct.field("city")``."""

    def __init__(self, expr: Expr, call: Call) -> None:
        self._expr, self._call = expr, call

    def field(self, name: str) -> Expr:
        return self._call("field", self._expr, name=name).alias(name)
