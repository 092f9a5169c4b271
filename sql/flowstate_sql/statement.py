"""One statement of somebody else: what it reads, where it runs, and how it ends.

DuckDB computes on a thread of a pool, one call at a time, so that whoever waits for it is let go as soon as the statement ends, also while
DuckDB, or a partition that it reads, has not noticed yet. The slot that the statement has is free again when it has.

Interleavings that this survives:

1. It is cancelled before DuckDB has begun to run it, and DuckDB forgets the interrupt: the watch interrupts again until the call is over.
2. It is cancelled while nobody waits: the next call says so, and everything it holds is let go at once.
3. It ends by itself while it is cancelled: whichever of the two came first counts, and letting go happens once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import FlowstateError, InternalError, InvalidFlow, Unavailable
from flowstate.view.answer import Answer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import LATEST, Freshness
from flowstate_flight.partial import Partial
from flowstate_sql.limits import Limits
from flowstate_sql.system import SystemReader
from flowstate_sql.travel import Past

#: Rows that DuckDB gives at a time, and bytes of what is passed on at a time.
ROWS = 1 << 15
BYTES = 4 << 20

Result = TypeVar("Result")


class Runs(Protocol):
    """What a statement needs of its session: a relation, the cursors that it made for it, and what it read."""

    def relation(self) -> duckdb.DuckDBPyRelation: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...

    @property
    def answers(self) -> Mapping[str, Answer]: ...


class StatementReader:
    """A reader for one statement: it knows views at snapshots, remembers what went wrong, and stops reading when the statement ends."""

    def __init__(self, reader: SystemReader, ended: Callable[[], bool]) -> None:
        self._reader, self._ended = reader, ended
        self.past: Mapping[str, Past] = {}
        self.trouble: FlowstateError | None = None

    def views(self) -> list[str]:
        return [*self._reader.views(), *self.past]

    def info(self, view: str) -> ViewInfo:
        past = self.past.get(view)
        if past is None:
            return self._reader.info(view)
        info = self._reader.info(past.view)
        return ViewInfo(view, info.schema, info.kind, info.keys, info.routing_keys, info.window)

    def apart(self, view: str) -> str | None:
        """See `SystemReader`."""
        past = self.past.get(view)
        return self._reader.apart(view if past is None else past.view)

    def moment(self, fresh: Freshness) -> Freshness:
        return self._reader.moment(fresh)

    def asked(self, view: str, filter: pc.Expression | None = None) -> list[int]:
        past = self.past.get(view)
        return self._reader.asked(view if past is None else past.view, filter)

    def lookup(self, view: str, keys: Any, columns: Sequence[str] | None = None, fresh: Freshness = LATEST) -> pa.Table:
        view, fresh = self._place(view, fresh)
        try:
            found = self._reader.lookup(view, keys, columns, fresh)
            self._check_running()
        except FlowstateError as error:
            self.trouble = error
            raise
        return found

    def partial_reader(
        self,
        view: str,
        partial: Partial,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        view, fresh = self._place(view, fresh)
        try:
            stream = self._reader.partial_reader(view, partial, columns, filter, fresh)
        except InvalidFlow:  # the rows are read instead
            raise
        except FlowstateError as error:
            self.trouble = error
            raise
        return pa.RecordBatchReader.from_batches(stream.schema, self._batches(stream))

    def scan_reader(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        view, fresh = self._place(view, fresh)
        try:
            stream = self._reader.scan_reader(view, columns, filter, partitions, limit, fresh)
        except FlowstateError as error:
            self.trouble = error
            raise
        return pa.RecordBatchReader.from_batches(stream.schema, self._batches(stream))

    def _place(self, view: str, fresh: Freshness) -> tuple[str, Freshness]:
        past = self.past.get(view)
        return (view, fresh) if past is None else (past.view, Freshness(snapshot=past.snapshot))

    def _check_running(self) -> None:
        if self._ended():  # never fewer rows without an error: somebody might take them for all
            raise Unavailable("the query has ended", retry_after=1.0)

    def _batches(self, stream: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        try:
            for batch in stream:
                self._check_running()
                yield batch
        except FlowstateError as error:
            self.trouble = error
            raise
        finally:
            stream.close()


class Running:
    """A `flowstate.view.sql.Statement`."""

    schema: pa.Schema

    def __init__(
        self,
        pool: Executor,
        limits: Limits,
        cancelled: Callable[[], bool],
        deadline: float,
        seconds: float,
        released: Callable[[], None],
    ) -> None:
        """`deadline` is monotonic, `seconds` what it was when this began. `released` is called once, when nothing is held any more."""
        self._pool, self._limits, self._cancelled, self._released = pool, limits, cancelled, released
        self._deadline, self._seconds = deadline, seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._call: Future[Any] | None = None  # that is under way
        self._why: FlowstateError | None = None  # it has ended before its end
        self._over = False
        self._session: Runs | None = None
        self._reader: StatementReader | None = None
        self._rows: pa.RecordBatchReader | None = None
        self._ready: list[pa.RecordBatch | None] = []  # read and not given out; None is the end
        self._answers: Mapping[str, Answer] = {}
        self.broken = False  # DuckDB has failed in a way that it does not recover from

    def begin(self, session: Runs, reader: StatementReader) -> None:
        """Compute the first batch. Raises InvalidFlow, Unavailable."""
        self._session, self._reader = session, reader
        self._within(self._open)

    def only(self, session: Runs, reader: StatementReader, work: Callable[[], Result]) -> Result:
        """Do something else with a session, and end. Raises what `begin` raises."""
        self._session, self._reader = session, reader
        try:
            return self._within(work)
        finally:
            self.cancel()

    def ended(self) -> bool:
        return self._why is not None

    @property
    def answers(self) -> Mapping[str, Answer]:
        return self._session.answers if self._session is not None else self._answers

    def batches(self) -> Iterator[pa.RecordBatch]:
        seen = 0
        try:
            while (batch := self._following()) is not None:
                seen += batch.num_rows
                if seen > self._limits.rows:
                    raise self._end(self._limits.too_many_rows())
                yield from pieces(batch)
            if self._why is not None:
                raise self._why
        finally:
            self._let_go()

    def cancel(self) -> None:
        self._end(Unavailable("the query was cancelled", retry_after=1.0))

    def look(self, now: float) -> None:
        """See `limits.Watched`."""
        if self._why is not None:
            self._interrupt()
        elif now > self._deadline:
            self._end(self._limits.out_of_time(self._seconds))
        elif self._gone():
            self.cancel()

    def _gone(self) -> bool:
        try:
            return self._cancelled()
        except Exception:  # whoever cannot say that she is still there is gone
            return True

    def _open(self) -> None:
        assert self._session is not None
        self._rows = self._session.relation().to_arrow_reader(ROWS)
        self.schema = self._rows.schema.remove_metadata()
        first = self._next()
        self._ready = [first]
        if first is not None and first.num_rows < ROWS:  # all there is, usually
            self._ready.append(self._next())

    def _following(self) -> pa.RecordBatch | None:
        with self._lock:
            if self._ready:
                return self._ready.pop(0)
        return self._within(self._next)

    def _next(self) -> pa.RecordBatch | None:
        assert self._rows is not None
        try:
            batch = self._rows.read_next_batch()
        except StopIteration:
            return None
        return batch.replace_schema_metadata(None)

    def _within(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done on the pool; or why the statement has ended."""
        with self._lock:
            if self._why is not None:
                raise self._why
            if self._over:
                raise InvalidFlow("the rows of a statement are read once")
            self._wake.clear()
            try:
                call: Future[Result] = self._pool.submit(work)
            except RuntimeError:
                raise Unavailable("no SQL is served here any more", retry_after=1.0) from None
            self._call = call
        call.add_done_callback(self._done)
        self._wake.wait()  # bounded by the watch, which ends every statement at its deadline
        if self._why is not None:
            raise self._why
        try:
            return call.result()
        except BaseException as error:
            raise self._end(self._meaning(error)) from None

    def _done(self, call: Future[Any]) -> None:
        with self._lock:
            self._call = None
            ended = self._why is not None
        self._wake.set()
        if ended:
            self._let_go()

    def _end(self, why: FlowstateError) -> FlowstateError:
        """End it; the reason that came first counts."""
        with self._lock:
            if self._why is None:
                self._why = why
            why, idle = self._why, self._call is None
        self._wake.set()
        if idle:
            self._let_go()
        else:
            self._interrupt()
        return why

    def _interrupt(self) -> None:
        session = self._session
        if session is not None:
            session.interrupt()

    def _let_go(self) -> None:
        """Free everything, once, unless a call is under way, which does it when it is over."""
        with self._lock:
            if self._over or self._call is not None:
                if self._why is None and not self._over:
                    self._why = Unavailable("the query was cancelled", retry_after=1.0)
                return
            self._over = True
            self._ready.clear()
        rows, session = self._rows, self._session
        self._rows = None
        if rows is not None:
            with contextlib.suppress(Exception):
                rows.close()
        if session is not None:
            self._answers = dict(session.answers)
            session.close()
        self._released()

    def _meaning(self, error: BaseException) -> FlowstateError:
        """What an error that came out of DuckDB, or of what it reads, is for whoever asked."""
        trouble = None if self._reader is None else self._reader.trouble
        if isinstance(error, FlowstateError):
            if isinstance(error.__cause__, duckdb.Error) and trouble is None:
                return self._of_duckdb(error.__cause__, error)
            return error
        if trouble is not None:
            return trouble
        if isinstance(error, MemoryError):
            return self._limits.out_of_memory()
        if isinstance(error, duckdb.Error | pa.ArrowException | OSError | ValueError | TypeError | RuntimeError):
            return self._of_duckdb(error, None)
        return InternalError("the query could not be run; report it", error=type(error).__name__)

    def _of_duckdb(self, error: BaseException, told: FlowstateError | None) -> FlowstateError:
        """`told`: what has been made of it already."""
        text = " ".join(str(error).split())
        if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory Error" in text[:200]:
            return self._limits.out_of_memory()
        if isinstance(error, duckdb.InterruptException) or "INTERRUPT Error" in text[:200]:
            return Unavailable("the query was cancelled", retry_after=1.0)
        if isinstance(error, duckdb.FatalException | duckdb.InternalException) or "INTERNAL Error" in text[:200]:
            self.broken = True
            return InternalError("DuckDB failed in this query; ask in another way, and report it")
        if told is not None:
            return told
        head, colon, rest = text.partition(": ")
        plain = rest if colon and len(head) < 60 else text
        if "Traceback (most" in plain or 'File "' in plain:
            return InternalError("a view could not be read; report it", error=type(error).__name__)
        return InvalidFlow(plain[:500] or "the query cannot be run")


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """`batch` in parts of about `BYTES` at most; of a single row that is larger, the row."""
    count = max(1, -(-batch.nbytes // BYTES))
    rows = max(1, -(-batch.num_rows // count))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)
