"""How files of CSV are written, where they are not written as RFC 4180 and ISO 8601 say: what a scan is told of it."""

from __future__ import annotations

import codecs
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowstate.errors import InvalidFlow

__all__ = ["Dialect"]

#: A day that a format has to tell, or it tells none.
_SAMPLE = datetime.datetime(2001, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Dialect:
    """`delimiter` stands between fields. With the decimal point ``,`` a dot may stand before each three digits of a number. `time_formats`
    are those of strptime, tried in turn for times and dates; none means ISO 8601. A byte below 128 is ASCII in every `encoding`."""

    delimiter: str = ","
    decimal_point: str = "."
    time_formats: tuple[str, ...] = ()
    encoding: str = "utf-8"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Dialect:
        """From the options of a scan, which hold only what was said. Raises `InvalidFlow`."""
        formats = options.get("time_format") or ()
        formats = tuple(formats) if isinstance(formats, (list, tuple)) else (formats,)
        standard = cls()
        found = cls(
            options.get("delimiter", standard.delimiter),
            options.get("decimal_point", standard.decimal_point),
            formats,
            options.get("encoding", standard.encoding),
        )
        found.check()
        return found

    def check(self) -> None:
        """Raises `InvalidFlow`."""
        sign = self.delimiter
        if not isinstance(sign, str) or len(sign) != 1 or sign in '"\r\n\0' or sign.isalnum():
            raise InvalidFlow("delimiter is one sign, such as ';' or '\\t'", delimiter=sign)
        if self.decimal_point not in (".", ","):
            raise InvalidFlow("decimal_point is '.' or ','", decimal_point=self.decimal_point)
        for each in self.time_formats:
            try:
                told = datetime.datetime.strptime(_SAMPLE.strftime(each), each)
            except (ValueError, TypeError) as error:
                raise InvalidFlow(
                    "time_format is one as strptime knows them, such as '%d.%m.%Y %H:%M'",
                    time_format=each,
                    reason=str(error),
                ) from None
            if told.date() != _SAMPLE.date():
                raise InvalidFlow("time_format tells no whole date: give year, month and day", time_format=each)
        try:
            ascii_as_ever = bytes(range(128)).decode(codecs.lookup(self.encoding).name) == "".join(map(chr, range(128)))
        except (LookupError, TypeError, UnicodeError):
            ascii_as_ever = False
        if not ascii_as_ever:
            raise InvalidFlow(
                "encoding is one that Python knows and in which ASCII stays as it is, such as 'latin-1' or 'cp1252'",
                encoding=self.encoding,
            )
