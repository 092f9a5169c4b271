"""Lookups of a reader: only the owners of the keys are asked, each by one message on an exchange that stays open.

What an answer says of itself stays the JSON that came: it is read when several are made into one, when its age matters, and by who looks.
"""

from __future__ import annotations

import functools
import operator

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InternalError
from flowstate.view.answer import METADATA_KEY, Answer
from flowstate.view.directory import Directory, LivePartition, PartitionInfo, ViewInfo
from flowstate.view.freshness import Freshness
from flowstate_flight.exchange_call import Found, StreamBroken, waiting
from flowstate_flight.gathering import Gathering, Reading
from flowstate_flight.keys import owners
from flowstate_flight.opening import Opened, check_age, left_of, open_part
from flowstate_flight.ticket import Ticket, write_keys

#: Seconds that one key may take, beside `grace`: a question about a million keys is not answered in the time of one.
PER_KEY = 1e-5
#: What is before and behind the parts of an answer in its JSON; no name in it can look like that, since its quotes are escaped.
_PARTS, _END = b'"parts": [', b'], "consistent": false}'


class Lookup:
    """One question about some keys of a view. `live`, `saved` and `through` are what `Gathering` does for a part of it."""

    def __init__(self, reading: Reading, info: ViewInfo, keys: pa.RecordBatch, fresh: Freshness) -> None:
        self._reading, self._info, self._keys, self._fresh = reading, info, keys, fresh
        self._begun = reading.clock.monotonic()

    def rows(self, until: float | None = None) -> pa.Table:
        """All columns, with the answer. Keys that are not there give no row. `until` is as for `Gathering.parts`."""
        parts = Gathering(
            self._reading,
            self._info.name,
            self._shares,
            self._live,
            self._saved,
            fresh=self._fresh,
            first=PER_KEY * self._keys.num_rows,
            whole=self._through,
        ).parts(until)
        told = joined([each[1] for each in parts])
        return pa.Table.from_batches([each[0] for each in parts]).replace_schema_metadata({METADATA_KEY: told})

    def _shares(self, directory: Directory) -> dict[int, pa.RecordBatch]:
        return owners(directory, self._info, self._keys)

    def _live(self, directory: Directory, place: PartitionInfo, keys: pa.RecordBatch, timeout: float) -> Found:
        found = self._ask(directory, place, keys, timeout, left_of(self._fresh, self._begun, self._reading.clock))
        if self._fresh.max_age is not None:
            check_age(Answer.from_json(found[1]), self._fresh, self._reading.clock)
        return found

    def _saved(self, directory: Directory, part: LivePartition, keys: pa.RecordBatch) -> Found:
        rows, answer = part.lookup(self._info.name, keys)
        whole = self._info.schema
        return (rows if rows.schema.equals(whole) else rows.select(whole.names)), answer.to_json().encode()

    def _through(self, job: str, gateway: str, timeout: float) -> Found:
        wait = waiting(left_of(self._fresh, self._begun, self._reading.clock), timeout)
        asked = Ticket(job, self._info.name, keys=write_keys(self._keys), fresh=self._fresh, wait=wait)
        return _one_batch(open_part(self._reading, gateway, asked, timeout))

    def _ask(
        self, directory: Directory, place: PartitionInfo, keys: pa.RecordBatch, timeout: float, fresh: Freshness
    ) -> Found:
        """One attempt, over an exchange, or where these do not get through, by do_get; `timeout` seconds in all."""
        assert place.location is not None
        pool, clock, view = self._reading.pool, self._reading.clock, self._info.name
        begun = clock.monotonic()
        try:
            return pool.lookup(place.location, directory.job, view, place.partition, place.epoch, keys, timeout, fresh)
        except StreamBroken:
            pool.forget(place.location)
            left = timeout - (clock.monotonic() - begun)
            if left < 0.1 * timeout:  # it was cut off
                raise
        # a proxy on the way may not carry exchanges: the same by do_get
        ticket = Ticket(
            directory.job,
            view,
            place.partition,
            keys=write_keys(keys),
            fresh=fresh,
            wait=waiting(fresh, left),
            epoch=place.epoch,
        )
        return _one_batch(open_part(self._reading, place.location, ticket, left))


def joined(told: list[bytes]) -> bytes:
    """What several answers about one view say, as one: what `Answer.merge` gives, without reading what is written as our services do."""
    if len(told) == 1:
        return told[0]
    head, parts, _ = told[0].partition(_PARTS)
    before, inner = head + parts, list[bytes]()
    for each in told:
        if not each.startswith(before) or not each.endswith(_END):
            return Answer.merge([Answer.from_json(each) for each in told]).to_json().encode()
        inner.append(each[len(before) : -len(_END)])
    return before + b", ".join(inner) + _END


def _one_batch(opened: Opened) -> Found:
    """The rows of a lookup that came as a stream."""
    schema, batches, _ = opened
    told = (schema.metadata or {}).get(METADATA_KEY)
    if told is None:
        raise InternalError("a lookup came back without its answer")
    table = pa.Table.from_batches(batches, schema.remove_metadata()).combine_chunks()
    rows = table.to_batches()
    return (rows[0] if rows else pa.RecordBatch.from_pylist([], schema.remove_metadata())), told


def among(table: pa.Table, keys: pa.RecordBatch) -> pa.Table:
    """The rows of `table` whose key columns equal a row of `keys`, null equal to null."""
    found = pa.chunked_array([pa.repeat(pa.scalar(0, pa.int64()), table.num_rows)])
    wanted = pa.repeat(pa.scalar(0, pa.int64()), keys.num_rows)
    for name in keys.schema.names:  # number the values of each column, then the pairs of that and what was before
        values = keys.column(name).unique()
        pairs = [
            pc.add(pc.multiply(before, len(values)), pc.cast(pc.index_in(column, value_set=values), pa.int64()))
            for before, column in ((found, table.column(name)), (wanted, keys.column(name)))
        ]
        known = pairs[1].unique()
        found, wanted = (pc.cast(pc.index_in(each, value_set=known, skip_nulls=True), pa.int64()) for each in pairs)
    return table.filter(pc.is_valid(found))


def equals_any(keys: pa.RecordBatch) -> pc.Expression:
    """True for rows whose key columns equal a row of `keys`, null equal to null."""

    def equals(name: str, value: pa.Scalar) -> pc.Expression:
        return pc.field(name) == value if value.is_valid else pc.field(name).is_null()

    rows = [
        functools.reduce(operator.and_, [equals(name, keys.column(name)[row]) for name in keys.schema.names])
        for row in range(keys.num_rows)
    ]
    return functools.reduce(operator.or_, rows) if rows else pc.scalar(False)
