"""What is there for a principal: views, and rows of them. What may not be seen is not there.

The filter of a principal's rights is always applied before anything that the principal asks is evaluated, so that no condition, and no
error of one, is ever about a row that is not hers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow
from flowstate.view.directory import Directory, ViewInfo
from flowstate.view.rights import Action, Principal
from flowstate_flight.expression import DecodedFilter, encode_filter

#: Filters that are kept, since making one takes as long as a lookup.
KEPT = 1000
_made: dict[tuple[int, str, str], tuple[Principal, ViewInfo, RowFilter]] = {}
UNREADABLE = "a row of this view cannot be read now; ask who runs this job"


class RowFilter:
    """The rows of one view that are there for a principal. `columns` are those that decide it."""

    def __init__(self, rows: pc.Expression, info: ViewInfo) -> None:
        """Raises InvalidFlow if the view lacks a column that decides."""
        self.rows = rows
        try:
            self._encoded, self.columns = encode_filter(rows, info.schema.remove_metadata())
        except InvalidFlow:
            message = (
                f"view {info.name!r} has no such columns as your rights ask for; ask who runs this job to correct them"
            )
            raise InvalidFlow(message) from None

    def decoded(self, info: ViewInfo, also: pc.Expression | None = None) -> DecodedFilter | None:
        """For a ticket: these rows, and where both can be said in one, those of them for which `also` is true. None if a ticket cannot say
        it. What a ticket says consists of comparisons alone, which fail on no value: both may be evaluated at once."""
        if self._encoded is None:
            return None
        if also is not None:
            both = self.rows & also
            encoded, names = encode_filter(both, info.schema.remove_metadata())
            if encoded is not None:
                return DecodedFilter(encoded, both, names, {})
        return DecodedFilter(self._encoded, self.rows, self.columns, {})

    def keys(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Those that may be looked up, as far as the keys alone can tell."""
        return keys.filter(self.rows) if set(self.columns) <= set(keys.schema.names) else keys

    def batch(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows.filter(self.rows)

    def batches(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Those of a scan. What cannot be read is not told: the error names the row, and that may be another's."""
        try:
            for each in batches:
                yield each.filter(self.rows)
        except InvalidFlow:
            raise InvalidFlow(UNREADABLE) from None
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()


def row_filter(who: Principal, info: ViewInfo, action: Action = "read") -> RowFilter | None:
    """What must be applied to whatever is read of a view; None if every row may be seen. Raises InvalidFlow."""
    rows = who.rows(info.name, action)
    if rows is None:
        return None
    place = id(who), info.name, action
    known = _made.get(place)
    if known is None or known[0] is not who or known[1] is not info:
        if len(_made) >= KEPT:
            _made.clear()
        known = _made[place] = who, info, RowFilter(rows, info)
    return known[2]


def seen_by(who: Principal, directory: Directory, action: Action = "read") -> Directory | None:
    """The directory with those views that are there for `who`; None if the job itself is not."""
    views = {name: info for name, info in directory.views.items() if who.may(action, name)}
    if len(views) == len(directory.views) and who.may("control"):
        return directory
    return replace(directory, views=views) if views or who.may("control") else None
