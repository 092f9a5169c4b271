"""A reader for a principal's queries: also the parts of them that partitions compute see only what is there for her."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow
from flowstate.view.freshness import LATEST, Freshness
from flowstate.view.rights import Principal
from flowstate_flight.client import FlightReader
from flowstate_flight.partial import Partial
from flowstate_flight.restricted import RestrictedReader


class RestrictedSplitReader(RestrictedReader):
    """A `tiers.SplitReader` for what `who` may ask by SQL."""

    def __init__(self, reader: FlightReader, who: Principal) -> None:
        super().__init__(reader, who, "sql")
        self.who = who

    def sees_all_rows(self, view: str) -> bool:
        return self._filter(view) is None

    def partial_reader(
        self,
        view: str,
        partial: Partial,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        """Where she may see some of the rows only, InvalidFlow: a partition computes for its gateway, over all rows."""
        if self._filter(view) is not None:
            raise InvalidFlow("the rows of this view are chosen before anything is computed; ask for the rows")
        return self._reader.partial_reader(view, partial, columns, filter, fresh)

    def asked(self, view: str, filter: pc.Expression | None = None) -> list[int]:
        self.info(view)  # raises for what is not there for her
        return self._reader.asked(view, filter)
