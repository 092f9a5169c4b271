"""Reading a job from anywhere: lookups ask only the owners of the keys, scans all partitions at once.

A partition that moved or is away is asked again, by a newer directory, until `patience` seconds are over; then the read fails with
Unavailable. What was already answered by other partitions is kept, so an answer may hold parts of slightly different age; its
`Answer` says so part by part, and a cut has no such spread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.clock import Clock, SystemClock
from flowstate.errors import FlowstateError, InternalError, InvalidFlow, Moved, Unavailable
from flowstate.view.answer import Answer
from flowstate.view.columns import chosen
from flowstate.view.directory import Directory, PartitionInfo, ViewInfo
from flowstate_flight.exchange_call import StreamBroken
from flowstate_flight.expression import encode_filter
from flowstate_flight.key_filter import allowed_keys
from flowstate_flight.keys import key_batch, owners
from flowstate_flight.pool import Pool
from flowstate_flight.routing import DirectorySource, Routing
from flowstate_flight.ticket import Ticket, write_keys

Part = TypeVar("Part")
Share = TypeVar("Share")
Opened = tuple[pa.Schema, Iterator[pa.RecordBatch], Callable[[], None]]


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
        patience: float = 10.0,
        timeout: float = 10.0,
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        """`source`: addresses of workers, or a function that gives the directory. `timeout`: seconds for one answer;
        `patience`: seconds for a read over all its attempts. `options` go to `pyarrow.flight.connect`."""
        self._clock = clock or SystemClock()
        self._pool = Pool(self._clock, **options)
        self._routing = Routing(source, job, self._pool, timeout)
        self._patience = patience
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="flight-reader")
        self._waiting = threading.Event()  # set by close, so that nobody sleeps on

    def directory(self) -> Directory:
        return self._routing.current()

    def views(self) -> list[str]:
        """The names of all views."""
        return list(self.directory().views)

    def info(self, view: str) -> ViewInfo:
        """Schema and keys of a view. Asks for a newer directory before it says that there is none."""
        directory = self.directory()
        if view not in directory.views:
            directory = self._routing.refresh(directory)
        return self._routing.view(directory, view)

    def lookup(self, view: str, keys: Any, columns: Sequence[str] | None = None, cut: int | None = None) -> pa.Table:
        """The rows of some keys (see `keys.key_batch` for what may be given), in no particular order.

        Routing keys are required; further key columns, such as the window's start, narrow it. Keys that are not there
        give no row.
        """
        info = self.info(view)
        batch = key_batch(info, keys)
        schema = self._columns(info, columns)
        if cut is not None:
            directory = self.directory()
            condition = _equals_any(batch)
            chosen = list(owners(directory, info, batch))
            return self.scan(view, columns, condition, partitions=chosen, cut=cut)
        if batch.num_rows == 0:
            return schema.remove_metadata().empty_table()

        def ask(directory: Directory, place: PartitionInfo, share: pa.RecordBatch) -> tuple[pa.RecordBatch, Answer]:
            return self._lookup_once(directory, place, view, share)

        parts = self._from_owners(lambda directory: owners(directory, info, batch), ask)
        answer = Answer.merge([each[1] for each in parts])
        table = pa.Table.from_batches([each[0] for each in parts])
        if columns is not None:
            table = table.select(schema.names)
        return table.replace_schema_metadata(answer.attach(schema.remove_metadata()).metadata)

    def scan(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        partitions: Sequence[int] | None = None,
        cut: int | None = None,
        limit: int | None = None,
    ) -> pa.Table:
        """The rows of a view for which `filter` is true, at most `limit` of them, in no particular order."""
        return self.scan_reader(view, columns, filter, partitions, cut, limit).read_all()

    def scan_reader(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        partitions: Sequence[int] | None = None,
        cut: int | None = None,
        limit: int | None = None,
    ) -> pa.RecordBatchReader:
        """The same as a stream. All partitions are asked at once (with a filter that fixes the routing keys, their owners alone), so
        it shows the state of this moment; the answer is in the metadata of its schema. A stream that breaks half-way raises Unavailable."""
        info = self.info(view)
        schema = self._columns(info, columns).remove_metadata()
        if limit is not None and limit < 0:
            raise InvalidFlow("a limit is not negative", limit=limit)
        encoded, after, wanted, keys = None, None, schema.names, None
        if filter is not None:
            encoded, needed = encode_filter(filter, info.schema)
            if encoded is not None:
                keys = allowed_keys(encoded, needed, info)
            else:
                after = filter
                wanted = [*schema.names, *(name for name in needed if name not in schema.names)]
        inner = limit if after is None else None

        by_index = keys is not None and cut is None and _indexed(info, keys)

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

        def ask(directory: Directory, place: PartitionInfo, share: pa.RecordBatch | None) -> Opened:
            ticket = Ticket(
                directory.job,
                view,
                place.partition,
                tuple(wanted),
                encoded,
                write_keys(share) if share is not None else None,
                inner,
                cut,
                place.epoch,
            )
            return self._open(place, ticket)

        opened = self._from_owners(shares, ask)
        if not opened:
            return pa.RecordBatchReader.from_batches(schema, iter(()))
        parts = [Answer.of(each[0]) for each in opened]
        answer = Answer.merge([each for each in parts if each is not None], consistent=cut is not None)
        return pa.RecordBatchReader.from_batches(answer.attach(schema), _joined(opened, schema, after, limit))

    def close(self) -> None:
        """Close every connection. Streams that are open break."""
        self._waiting.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

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

    def _from_owners(
        self,
        shares: Callable[[Directory], Mapping[int, Share]],
        ask: Callable[[Directory, PartitionInfo, Share], Part],
    ) -> list[Part]:
        """`ask` every partition for its share, all at once, and those that moved or are away again until patience ends."""
        directory = self.directory()
        deadline = self._clock.monotonic() + self._patience
        done: dict[int, Part] = {}
        pause = 0.01
        while True:
            todo = {number: share for number, share in shares(directory).items() if number not in done}
            places = {each.partition: each for each in directory.partitions}
            failure: FlowstateError | None = None
            for number, outcome in self._ask_all(directory, places, todo, ask).items():
                if isinstance(outcome, FlowstateError):
                    failure = outcome
                else:
                    done[number] = outcome
            if failure is None:
                return [done[number] for number in done]
            left = deadline - self._clock.monotonic()
            if left <= 0 or self._waiting.wait(min(pause, left)):
                message = "a partition did not answer in time; it may be recovering"
                raise Unavailable(message, retry_after=1.0, waited=self._patience) from failure
            pause = min(pause * 2, 0.5)
            try:
                newer = self._routing.refresh(directory)
            except Unavailable:
                continue
            if len(newer.partitions) != len(directory.partitions) or newer.seed != directory.seed:
                done = {}  # the job was rescaled: shares of another division do not add up
            directory = newer

    def _ask_all(
        self,
        directory: Directory,
        places: Mapping[int, PartitionInfo],
        todo: Mapping[int, Share],
        ask: Callable[[Directory, PartitionInfo, Share], Part],
    ) -> dict[int, Part | FlowstateError]:
        """What each partition gave; only errors worth another try are returned, the others raised."""

        def one(number: int) -> Part | FlowstateError:
            place = places.get(number)
            if place is None:
                return InternalError("the directory lacks a partition", partition=number)
            try:
                return ask(directory, place, todo[number])
            except (Moved, Unavailable) as error:
                return error

        if len(todo) == 1:  # the usual lookup: no other thread, 50 us less
            number = next(iter(todo))
            return {number: one(number)}
        return dict(zip(todo, self._threads.map(one, todo), strict=True))

    def _lookup_once(
        self, directory: Directory, place: PartitionInfo, view: str, keys: pa.RecordBatch
    ) -> tuple[pa.RecordBatch, Answer]:
        if place.location is None:
            raise Unavailable("this partition is being recovered", retry_after=0.5, partition=place.partition)
        try:
            return self._pool.lookup(
                place.location, directory.job, view, place.partition, place.epoch, keys, self._timeout
            )
        except StreamBroken:
            self._pool.forget(place.location)
        # a proxy on the way may not carry exchanges: the same by do_get
        ticket = Ticket(directory.job, view, place.partition, keys=write_keys(keys), epoch=place.epoch)
        schema, batches, _ = self._open(place, ticket)
        answer = Answer.of(schema)
        if answer is None:
            raise InternalError("a lookup came back without its answer", partition=place.partition)
        table = pa.Table.from_batches(batches, schema.remove_metadata()).combine_chunks()
        rows = table.to_batches()
        return (rows[0] if rows else pa.RecordBatch.from_pylist([], schema.remove_metadata())), answer

    def _open(self, place: PartitionInfo, ticket: Ticket) -> Opened:
        """Schema (with the answer), batches, and how to end it."""
        if place.location is None:
            raise Unavailable("this partition is being recovered", retry_after=0.5, partition=place.partition)
        return self._pool.open(place.location, ticket.to_bytes(), self._timeout)


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


def _indexed(info: ViewInfo, keys: pa.RecordBatch) -> bool:
    """Whether a partition may find these keys by its index instead of scanning for them: where equal for the filter and equal
    for the index are the same, so not for floats (two zeros, NaN) nor for null."""
    names = list(info.routing_keys)
    plain = names == list(info.keys[: len(names)]) and keys.schema.names == names
    return plain and all(each.null_count == 0 and not pa.types.is_floating(each.type) for each in keys.columns)


def _equals_any(keys: pa.RecordBatch) -> pc.Expression:
    """True for rows whose key columns equal a row of `keys`, null equal to null."""
    condition = pc.scalar(False)
    for row in range(keys.num_rows):
        whole = pc.scalar(True)
        for name in keys.schema.names:
            value = keys.column(name)[row]
            whole = whole & (pc.field(name) == value if value.is_valid else pc.field(name).is_null())
        condition = condition | whole
    return condition
