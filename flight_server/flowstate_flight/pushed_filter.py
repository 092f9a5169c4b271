"""A reader's filter, as it is asked: pushed down to the partitions, or applied to what comes back."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.view.directory import ViewInfo
from flowstate_flight.expression import DecodedFilter, encode_filter
from flowstate_flight.key_filter import allowed_keys


@dataclass(frozen=True)
class PushedFilter:
    """`encoded` goes into tickets, and reads the columns `names`. `after` is what no ticket can say, and is to be applied here. `given` is
    the filter as it came."""

    encoded: bytes | None = None
    names: tuple[str, ...] = ()
    after: pc.Expression | None = None
    given: pc.Expression | DecodedFilter | None = None

    @staticmethod
    def of(filter: pc.Expression | DecodedFilter | None, schema: pa.Schema) -> PushedFilter:
        """Raises InvalidFlow if the filter does not fit the schema."""
        if filter is None:
            return PushedFilter()
        if isinstance(filter, DecodedFilter):
            return PushedFilter(filter.encoded, tuple(filter.names), None, filter)
        encoded, names = encode_filter(filter, schema)
        return PushedFilter(encoded, tuple(names), filter if encoded is None else None, filter)

    def keys(self, info: ViewInfo) -> pa.RecordBatch | None:
        """The only routing keys whose rows the partitions would let through; None if it may be any."""
        return None if self.encoded is None else allowed_keys(self.encoded, list(self.names), info)

    def applied(self, table: pa.Table) -> pa.Table:
        """The rows that a partition would let through."""
        if isinstance(self.given, DecodedFilter):
            return self.given.apply(table)
        return table if self.given is None else table.filter(self.given)
