"""Reading a job from anywhere: lookups ask only the owners of the keys, scans all partitions at once.

How a read chooses between live and saved state is told in `flowstate.view.saved`, and done in `gathering`. What was already answered by
other partitions is kept, so an answer may hold parts of different age; its `Answer` says so part by part, and a cut has no such spread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.clock import Clock, SystemClock
from flowstate.errors import Behind, FlowstateError, InvalidFlow
from flowstate.view.answer import Answer
from flowstate.view.columns import chosen
from flowstate.view.directory import Directory, LivePartition, PartitionInfo, ViewInfo
from flowstate.view.freshness import LATEST, Freshness
from flowstate.view.saved import SavedStates
from flowstate_flight.changes import Changes
from flowstate_flight.cuts import Cuts
from flowstate_flight.exchange_call import waiting
from flowstate_flight.expression import DecodedFilter
from flowstate_flight.gathering import Gathering, Reading
from flowstate_flight.keys import MANY, key_batch, owners
from flowstate_flight.lookups import Lookup, among, equals_any
from flowstate_flight.opening import Opened, check_age, left_of, nothing, open_part
from flowstate_flight.partial import Partial
from flowstate_flight.pool import Pool
from flowstate_flight.pushed_filter import PushedFilter
from flowstate_flight.requests import Requests
from flowstate_flight.routing import DirectorySource, Routing
from flowstate_flight.subscribing import columns_of
from flowstate_flight.ticket import Ticket, write_keys

#: Keys that a cut is asked for by a filter; for more, whose filter would be long, all rows of their owners come and are chosen from here.
FEW_KEYS = 32


def connect(address: str | Sequence[str], job: str | None = None, **options: Any) -> FlightReader:
    """A reader of the job that the worker (or gateway) at `address` serves, ``grpc://host:port`` or ``host:port``."""
    reader = FlightReader(address, job, **options)
    reader.views()
    return reader


class FlightReader:
    """Reads views of one job. Thread safe; not to be used after a fork."""

    def __init__(
        self,
        source: DirectorySource,
        job: str | None = None,
        *,
        saved: SavedStates | None = None,
        grace: float = 1.0,
        patience: float = 10.0,
        timeout: float = 10.0,
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        """`source`: addresses of workers, or a function that gives the directory; it may be empty if there are `saved` states.

        `grace`: seconds for which a partition that is away is looked for before its saved state is read; `timeout`: seconds for one
        answer of one that is there; `patience`: seconds for a read in all. `options` go to `pyarrow.flight.connect`."""
        self._clock = clock or SystemClock()
        self._pool = Pool(self._clock, **options)
        self._routing = Routing(source, job, self._pool, timeout, self._clock, saved)
        self._reading = Reading(
            self._pool, self._routing, saved, self._clock, grace=grace, patience=patience, timeout=timeout
        )
        self._cuts = Cuts(self._reading)

    def directory(self) -> Directory:
        return self._routing.current()

    def refresh(self) -> Directory:
        """A newer directory than the one that is known, if anybody has one."""
        return self._routing.refresh(self._routing.current())

    def away(self) -> list[int]:
        """Partitions that did not answer lately."""
        return self._reading.presence.everyone()

    def statuses(self, timeout: float = 2.0) -> list[dict[str, Any]]:
        """What each worker of the job says of itself (the action ``status``), without those that do not answer within `timeout` seconds."""
        locations = list(dict.fromkeys(each.location for each in self.directory().partitions if each.location))

        def ask(location: str) -> dict[str, Any] | None:
            try:
                told = json.loads(self._pool.act(location, "status", b"", timeout))
            except FlowstateError:
                return None
            return told if isinstance(told, dict) else None

        return [each for each in self._reading.threads.map(ask, locations) if each is not None]

    def views(self) -> list[str]:
        """The names of all views."""
        return list(self.directory().views)

    def info(self, view: str) -> ViewInfo:
        """Schema and keys of a view. Asks for a newer directory before it says that there is none."""
        directory = self.directory()
        if view not in directory.views:
            directory = self._routing.refresh(directory)
        return self._routing.view(directory, view)

    def make_cut(self, timeout: float = 5.0) -> dict[str, Any]:
        """One consistent cut over all partitions, made now and kept there on a lease: ``{"cut": number, "position": {split: place}}``.
        Who reads it more than once calls `keep_cut`. Raises Unavailable if it does not come about within `timeout` seconds."""
        return self._cuts.make(timeout)

    def keep_cut(self, made: Mapping[str, Any]) -> None:
        """See `Cuts.keep`."""
        self._cuts.keep(made)

    def moment(self, fresh: Freshness) -> Freshness:
        """See `Cuts.moment`."""
        return self._cuts.moment(fresh)

    def lookup(
        self,
        view: str,
        keys: Any,
        columns: Sequence[str] | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.Table:
        """The rows of some keys (see `keys.key_batch` for what may be given), in no particular order.

        Routing keys are required; further key columns, such as the window's start, narrow it. Keys that are not there
        give no row.
        """
        fresh = self.moment(fresh)
        info = self.info(view)
        batch = key_batch(info, keys)
        schema = self._columns(info, columns)
        if fresh.cut is not None:
            chosen = list(owners(self.directory(), info, batch))
            if batch.num_rows <= FEW_KEYS:
                return self.scan(view, columns, equals_any(batch), partitions=chosen, fresh=fresh)
            names = [*schema.names, *(name for name in batch.schema.names if name not in schema.names)]
            return among(self.scan(view, names, partitions=chosen, fresh=fresh), batch).select(schema.names)
        if batch.num_rows == 0:
            return schema.remove_metadata().empty_table()
        rows = Lookup(self._reading, info, batch, fresh).rows()
        return rows if columns is None else rows.select(schema.names)

    def scan(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.Table:
        """The rows of a view for which `filter` is true, at most `limit` of them, in no particular order."""
        return self.scan_reader(view, columns, filter, partitions, limit, fresh).read_all()

    def scan_reader(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | DecodedFilter | None = None,
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        """The same as a stream. All partitions are asked at once (with a filter that fixes the routing keys, their owners alone), so
        it shows the state of this moment; the answer is in the metadata of its schema. `AHEAD` bytes of each partition are read at once;
        when a worker is lost after that, in the middle of a long stream, it raises Unavailable."""
        if limit is not None and limit < 0:
            raise InvalidFlow("a limit is not negative", limit=limit)
        pushed = PushedFilter.of(filter, self.info(view).schema)
        return self._cuts.read(
            self.moment(fresh),
            lambda at, until: self._scan_at(at, until, view, columns, pushed, partitions, limit),
        )

    def partial_reader(
        self,
        view: str,
        partial: Partial,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | DecodedFilter | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        """What the same partitions answer to `partial` about the rows that `scan_reader` would give of each. `filter` is a help alone,
        unless it is decoded: where it cannot be pushed down, the partitions are asked about all their rows, so `partial` says it again.
        Raises InvalidFlow if a partition cannot answer."""
        pushed = PushedFilter.of(filter, self.info(view).schema)
        if pushed.after is not None:
            pushed = PushedFilter()
        return self._cuts.read(
            self.moment(fresh),
            lambda at, until: self._scan_at(at, until, view, columns, pushed, partial=partial),
        )

    def asked(self, view: str, filter: pc.Expression | None = None) -> list[int]:
        """The partitions that a scan with `filter` asks."""
        info = self.info(view)
        return _asked(self.directory(), info, PushedFilter.of(filter, info.schema).keys(info))

    def _scan_at(
        self,
        fresh: Freshness,
        until: float,
        view: str,
        columns: Sequence[str] | None,
        pushed: PushedFilter,
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        partial: Partial | None = None,
    ) -> pa.RecordBatchReader:
        """With its cut made, if in one, and until a monotonic time."""
        info = self.info(view)
        schema = self._columns(info, columns).remove_metadata()
        keys, after, wanted = pushed.keys(info), pushed.after, schema.names
        if after is not None:
            wanted = [*schema.names, *(name for name in pushed.names if name not in schema.names)]
        inner = limit if after is None else None

        by_index = keys is not None and fresh.cut is None and _indexed(info, keys)
        if by_index and keys is not None and 0 < keys.num_rows <= MANY and partial is None and partitions is None:
            found = Lookup(self._reading, info, _as_looked_up(info, keys), fresh).rows(until)
            rows = pushed.applied(found).select(schema.names).slice(0, limit)
            return pa.RecordBatchReader.from_batches(schema.with_metadata(found.schema.metadata), rows.to_batches())

        def shares(directory: Directory) -> dict[int, pa.RecordBatch | None]:
            known = [each.partition for each in directory.partitions]
            for each in partitions or []:
                if each not in known:
                    raise InvalidFlow("there is no such partition", partition=each, partitions=len(known))
            if partitions is None and keys is not None:
                if keys.num_rows == 0:  # one is always asked: an empty answer says how fresh it is, too
                    return dict.fromkeys(known[:1])
                owning = owners(directory, info, keys)
                return {number: share if by_index else None for number, share in owning.items()}
            return dict.fromkeys(known if partitions is None else partitions)

        def ticket(
            directory: Directory,
            number: int,
            share: pa.RecordBatch | None,
            epoch: int | None,
            wait: float | None = None,
        ) -> Ticket:
            asked = write_keys(share) if share is not None else None
            text = partial.text if partial is not None else None
            return Ticket(
                directory.job, view, number, tuple(wanted), pushed.encoded, asked, inner, fresh, wait, epoch, text
            )

        begun = self._clock.monotonic()

        def live(directory: Directory, place: PartitionInfo, share: pa.RecordBatch | None, timeout: float) -> Opened:
            assert place.location is not None
            wait = waiting(left_of(fresh, begun, self._clock), timeout)
            asked = ticket(directory, place.partition, share, place.epoch, wait)
            opened = open_part(self._reading, place.location, asked, timeout)
            try:
                check_age(Answer.of(opened[0]), fresh, self._clock)
            except Behind:
                opened[2]()
                raise
            return opened

        def saved(directory: Directory, part: LivePartition, share: pa.RecordBatch | None) -> Opened:
            here = Requests()
            here.hosted = {(directory.job, part.partition): part}
            here.directories = {directory.job: directory}
            here.partial_handler = partial.handler if partial is not None else None
            asked = ticket(directory, part.partition, share, None)
            return *here.read(
                replace(asked, fresh=LATEST)
            ), nothing  # it is as fresh as was asked for, or was not chosen

        def through(job: str, gateway: str, timeout: float) -> Opened:
            if partial is not None:
                raise InvalidFlow("a gateway computes no parts of queries; ask for the rows")
            wait = waiting(left_of(fresh, begun, self._clock), timeout)
            asked = Ticket(job, view, None, tuple(wanted), pushed.encoded, limit=inner, fresh=fresh, wait=wait)
            return open_part(self._reading, gateway, asked, timeout)

        opened: list[Opened] = Gathering(
            self._reading,
            view,
            shares,
            live,
            saved,
            fresh=fresh,
            drop=lambda part: part[2](),
            whole=through if partitions is None else None,
        ).parts(until)
        if partial is not None:
            schema = _as_expected(opened, partial)
        if not opened:
            return pa.RecordBatchReader.from_batches(schema, iter(()))
        parts = [Answer.of(each[0]) for each in opened]
        answer = Answer.merge([each for each in parts if each is not None], consistent=fresh.cut is not None)
        return pa.RecordBatchReader.from_batches(answer.attach(schema), _joined(opened, schema, after, limit))

    def changes(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | DecodedFilter | None = None,
        resume: str | None = None,
        *,
        hidden: bool = False,
    ) -> Changes:
        """What changes in a view: first its rows, then whatever changes, until it is closed; see `flowstate.view.changes` for the steps
        in which it is told. `resume` is the token of a position that was told before, for the same columns and filter. Live state alone:
        Unavailable if a partition is away for longer than the reader has patience. `filter` consists of comparisons alone, so that it
        can be evaluated where the rows are; with one that fixes the routing keys, only their owners are asked."""
        info = self.info(view)
        schema = columns_of(info, Ticket("job", view, columns=None if columns is None else tuple(columns)))
        pushed = PushedFilter.of(filter, info.schema)
        if pushed.after is not None:
            raise InvalidFlow("changes cannot be filtered by this; use comparisons, or filter what is told", view=view)
        keys = pushed.keys(info)

        def chosen(directory: Directory) -> Sequence[int]:
            return _asked(directory, info, keys)

        return Changes(self._reading, view, schema, pushed.encoded, resume, chosen, hidden=hidden)

    def close(self) -> None:
        """Close every connection. Streams that are open break."""
        self._reading.closing.set()
        self._reading.threads.shutdown(wait=False, cancel_futures=True)
        self._routing.close()
        self._pool.close()
        if self._reading.saved is not None:
            self._reading.saved.close()

    def __enter__(self) -> FlightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _columns(self, info: ViewInfo, columns: Sequence[str] | None) -> pa.Schema:
        if columns is None:
            return info.schema
        if not columns or isinstance(columns, str):
            raise InvalidFlow("columns is a list with at least one name")
        return chosen(info.name, info.schema, columns)


def _asked(directory: Directory, info: ViewInfo, keys: pa.RecordBatch | None) -> list[int]:
    """The partitions that may have rows of `keys` (None: of any)."""
    known = [each.partition for each in directory.partitions]
    if keys is None:
        return known
    return (
        sorted(owners(directory, info, keys)) if keys.num_rows else known[:1]
    )  # one says how fresh an empty answer is


def _as_expected(opened: Sequence[Opened], partial: Partial) -> pa.Schema:
    """The schema of every part."""
    for found, _, _ in opened:
        if found.names != partial.schema.names or found.types != partial.schema.types:
            for _, _, cancel in opened:
                cancel()
            raise InvalidFlow("a partition answers a partial query in another form; ask for the rows")
    return partial.schema


def _joined(
    opened: Sequence[Opened], schema: pa.Schema, after: pc.Expression | None, limit: int | None
) -> Iterator[pa.RecordBatch]:
    """The streams one after the other. Those not yet read wait at their servers by Flight's own back-pressure."""
    left = limit
    with ExitStack() as stack:
        for _, _, cancel in opened:
            stack.callback(cancel)
        for _, batches, _ in opened:
            for batch in batches:
                piece = batch
                if after is not None:
                    piece = batch.filter(after).select(schema.names)
                if left is not None:
                    if left == 0:
                        return
                    piece = piece.slice(0, left)
                    left -= piece.num_rows
                yield pa.RecordBatch.from_arrays(piece.columns, schema=schema)


def _as_looked_up(info: ViewInfo, keys: pa.RecordBatch) -> pa.RecordBatch:
    """Keys with the schema that all lookups have, so that they share their exchanges."""
    return pa.RecordBatch.from_arrays(keys.columns, schema=info.key_schemas[keys.num_columns])


def _indexed(info: ViewInfo, keys: pa.RecordBatch) -> bool:
    """Whether a partition may find these keys by its index instead of scanning for them: where equal for the filter and equal
    for the index are the same, so not for floats (two zeros, NaN) nor for null."""
    names = list(info.routing_keys)
    plain = names == list(info.keys[: len(names)]) and keys.schema.names == names
    return plain and all(each.null_count == 0 and not pa.types.is_floating(each.type) for each in keys.columns)
