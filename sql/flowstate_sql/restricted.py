"""A reader for a principal's queries: also the parts of them that partitions compute see only what is there for her.

Her filter goes with the question as one that is applied to the rows before anything else, and that is never left out: what is computed for
her in a partition is computed over her rows, so no error of it, and no time limit or memory that it needs, is about a row of others.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow
from flowstate.view.freshness import LATEST, Freshness
from flowstate.view.rights import Principal
from flowstate_flight.client import FlightReader
from flowstate_flight.expression import DecodedFilter
from flowstate_flight.partial import Partial
from flowstate_flight.restricted import RestrictedReader, hidden


class RestrictedSplitReader(RestrictedReader):
    """A `tiers.SplitReader` for what `who` may ask by SQL."""

    def __init__(self, reader: FlightReader, who: Principal) -> None:
        super().__init__(reader, who, "sql")
        self.who = who

    def partial_reader(
        self,
        view: str,
        partial: Partial,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        """InvalidFlow where her rows cannot be chosen by the partitions: then nothing is computed there."""
        if self._filter(view) is None:
            return self._reader.partial_reader(view, partial, columns, filter, fresh)
        chosen = self._chosen(view, filter)
        if chosen is None:
            raise InvalidFlow("the rows of this view are chosen before anything is computed; ask for the rows")
        try:
            return self._reader.partial_reader(view, partial, columns, chosen, fresh)
        except InvalidFlow as error:
            raise hidden(error) from None

    def asked(self, view: str, filter: pc.Expression | None = None) -> list[int]:
        self.info(view)  # raises for what is not there for her
        chosen = self._chosen(view, filter)
        return self._reader.asked(view, filter if chosen is None else chosen.expression)

    def _chosen(self, view: str, filter: pc.Expression | None) -> DecodedFilter | None:
        """Her rows, and of them, where that can be said in one, those for which `filter` is true. None without a filter of rows, or if a
        partition cannot be told of it."""
        rows, info = self._filter(view), self.info(view)
        return None if rows is None else rows.decoded(info, filter)
