"""Which path asks for what:

* ``GET /views``: the names, keys and columns of all views.
* ``GET /views/{view}?columns=&limit=``: rows. ``GET /views/{view}/{key...}``: the rows of one key, a segment for each of its columns
  (``%2F`` for a slash); or ``GET /views/{view}?key=["anna", 7]``, which also says null, and what a path cannot. 404 if there is none.
* ``GET /views/{view}/changes?columns=``: what changes, as Server-Sent Events (`events`); the header ``Last-Event-ID``, or ``resume=``,
  goes on where one ended. With ``key=`` of one key alone.
* ``POST /sql`` with ``{"query", "params"?, "fresh"?}``.

Rows are JSON, or an Arrow IPC stream if the header ``Accept`` names it. Freshness is said by ``max_age``, ``at_least`` (JSON),
``wait``, ``consistent=true`` and ``snapshot`` (`flowstate.view.freshness`). Where an access is given, a bearer token says who asks,
or a user and a password, or else the client certificate of a connection with mutual TLS (`callers`).

Errors are ``{"error": {"kind", "message", "facts"}}``: 400 for what has to be mended, 401 without a credential, 403 without the right to an
action, 404 for a view or key that is not there (or not there for who asks), 503 with ``Retry-After`` for what will be there again.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pyarrow.compute as pc
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.view.answer import Answer
from flowstate.view.columns import chosen
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import LATEST
from flowstate.view.rights import Principal
from flowstate.view.sql import RunSql
from flowstate_flight.client import FlightReader
from flowstate_flight.fault import describe
from flowstate_flight.keys import key_batch
from flowstate_flight.restricted import RestrictedReader
from flowstate_http import events
from flowstate_http.answering import ARROW, JSON, Reply, error_data, headers, rows_arrow, rows_json, told, view_data
from flowstate_http.asking import FRESH, MAX_BODY, Query, Refused, key_of, segments, statement
from flowstate_http.callers import Callers

#: Requests that are worked on at once, and streams of changes that are open; more of the first wait, more of the second are refused.
AT_ONCE, MOST_STREAMS = 16, 64
WRITERS = 2  # threads that make texts of changes, for all streams
#: Seconds after which a credential is looked at again in a stream.
AGAIN = 5.0
SQL_TIMEOUT = 300.0


class App:
    """An ASGI application."""

    def __init__(
        self,
        reader: FlightReader,
        run_sql: RunSql | None,
        callers: Callers,
        clock: Clock,
        hosts: frozenset[str] | None = None,
    ) -> None:
        """`hosts` are the names by which it may be asked (None: any). Where nobody has to show anything, this keeps a page of somebody
        else, of which a browser believes that it comes from this machine, from reading what is here."""
        self.reader, self.run_sql, self.callers, self.clock, self.hosts = reader, run_sql, callers, clock, hosts
        self.closing = threading.Event()
        self.streams = 0
        self._writing = ThreadPoolExecutor(WRITERS, "flowstate-http-changes")
        self._limits: tuple[anyio.CapacityLimiter, anyio.CapacityLimiter] | None = None

    def close(self) -> None:
        """When nothing is served any more."""
        self._writing.shutdown(wait=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            response = await self._respond(request)
            await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        if self._limits is None:
            self._limits = anyio.CapacityLimiter(AT_ONCE), anyio.CapacityLimiter(MOST_STREAMS)
        gone = threading.Event()
        try:
            if self.closing.is_set():
                raise Unavailable("this service is stopping", retry_after=1.0)
            work = await self._work(request, gone)
            return await self._begin(request, work, gone)
        except Exception as error:
            status, data, more = error_data(error)
            if status == 401:
                more["www-authenticate"] = self.callers.challenge
            return Response(json.dumps(data), status, more, JSON)

    async def _work(self, request: Request, gone: threading.Event) -> Callable[[], Reply]:
        """What is to be done for a request, in a thread."""
        self._check_host(request)
        call = await self.callers.caller(request)
        who = call()
        path = request.scope.get("raw_path") or request.scope["path"].encode()
        parts = segments(path.removeprefix(request.scope.get("root_path", "").encode()))
        arrow = ARROW in request.headers.get("accept", "")
        given = request.query_params.multi_items()
        if parts == ["sql"]:
            return await self._sql(request, who, arrow, gone, given)
        if parts[:1] != ["views"] or (len(parts) > 1 and not parts[1]):
            raise Refused(
                404, "there is nothing here; ask for /views, /views/{view}, /views/{view}/{key}, or post to /sql"
            )
        if request.method != "GET":
            raise Refused(405, "views are read by GET", method=request.method)
        if len(parts) == 1 or parts[1:] == [""]:
            Query(given, ())
            return functools.partial(self._views, who)
        view, rest = parts[1], parts[2:]
        if rest == ["changes"]:
            query = Query(given, ("columns", "resume", "key"))
            resume = request.headers.get("last-event-id") or query.text("resume") or None
            return functools.partial(self._changes, who, call, view, query, resume, gone)
        query = Query(given, ("columns", "limit", "key", *FRESH) if not rest else ("columns", *FRESH))
        return functools.partial(self._rows, who, view, rest or query.keys(), query, arrow)

    def _check_host(self, request: Request) -> None:
        if self.hosts is not None:
            host = request.headers.get("host", "")
            name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
            if name.lower() not in self.hosts:
                raise Refused(403, "this service is asked by the name of this machine alone", host=host[:100])

    # what is asked, in threads

    def _info(self, reader: RestrictedReader, view: str) -> ViewInfo:
        try:
            return reader.info(view)
        except InvalidFlow as error:
            raise Refused(404, error.message, **error.facts) from None

    def _views(self, who: Principal) -> Reply:
        reader = RestrictedReader(self.reader, who)
        directory = reader.directory()
        data = {"job": directory.job, "views": [view_data(each) for each in directory.views.values()]}
        return Reply(iter([json.dumps(data).encode() + b"\n"]))

    def _rows(self, who: Principal, view: str, key: list[Any] | None, query: Query, arrow: bool) -> Reply:
        reader = RestrictedReader(self.reader, who)
        info = self._info(reader, view)
        columns, limit, fresh = query.names("columns"), query.number("limit"), query.fresh()
        if key is not None:
            found = reader.lookup(view, key_of(info, key), columns, fresh)
            if found.num_rows == 0:
                raise Refused(404, "there is no such key", view=view)
            schema, batches = (
                found.schema,
                iter(found.to_batches() if limit is None else found.slice(0, limit).to_batches()),
            )
        else:
            stream = reader.scan_reader(view, columns, None, None, limit, fresh)
            schema, batches = stream.schema, iter(stream)
        answer = Answer.of(schema)
        if arrow:
            return Reply(rows_arrow(schema, batches), ARROW, headers=headers(answer))
        first = {"view": view, **({"answer": told(answer)} if answer is not None else {})}
        return Reply(rows_json(schema, batches, first), headers=headers(answer))

    def _changes(
        self,
        who: Principal,
        call: Callable[[], Principal],
        view: str,
        query: Query,
        resume: str | None,
        gone: threading.Event,
    ) -> Reply:
        reader = RestrictedReader(self.reader, who)
        info = self._info(reader, view)
        names, key = query.names("columns"), query.keys()
        if names is not None:
            chosen(view, info.schema, names)
        condition = _equals(info, key_of(info, key)) if key is not None else None
        changes = reader.changes(view, names, condition, resume)
        looked = self.clock.monotonic()

        def still() -> None:
            nonlocal looked
            if self.closing.is_set():
                raise Unavailable("this service is stopping", retry_after=1.0)
            if self.callers.access is not None and self.clock.monotonic() - looked > AGAIN:
                looked = self.clock.monotonic()
                if call() is not who:
                    raise Refused(401, "not let in any more")

        found = events.events(changes, list(info.keys), gone, still, self.clock, self._writing)
        return Reply(found, events.KIND, headers={"cache-control": "no-store", "x-accel-buffering": "no"})

    async def _sql(
        self, request: Request, who: Principal, arrow: bool, gone: threading.Event, given: list[tuple[str, str]]
    ) -> Callable[[], Reply]:
        if self.run_sql is None:
            raise Refused(404, "no SQL is served here")
        if not who.may("sql"):
            raise Refused(403, "you have no right to run queries")
        if request.method != "POST":
            raise Refused(405, "queries are posted", method=request.method)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise Refused(415, f"the body of a query is {JSON}")
        text, params, fresh = statement(await _body(request))
        asked = Query(given, FRESH).fresh()
        if asked != LATEST:
            if fresh != LATEST:
                raise InvalidFlow("freshness is said in the body or in the address, not in both")
            fresh = asked
        return functools.partial(self._run, text, params, fresh, who, arrow, gone)

    def _run(self, text: str, params: Any, fresh: Any, who: Principal, arrow: bool, gone: threading.Event) -> Reply:
        assert self.run_sql is not None
        found = self.run_sql.run(text, params, fresh=fresh, who=who, timeout=SQL_TIMEOUT, cancelled=gone.is_set)

        def last() -> dict[str, Any]:
            return {"answers": {name: told(each) for name, each in found.answers.items()}}

        if arrow:
            return Reply(rows_arrow(found.schema, found.batches()), ARROW, end=found.cancel)
        return Reply(rows_json(found.schema, found.batches(), {}, last), end=found.cancel)

    # threads

    async def _begin(self, request: Request, work: Callable[[], Reply], gone: threading.Event) -> Response:
        """The beginning of a response, with its first piece: most errors come before that."""
        assert self._limits is not None

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone.set()

        def first() -> tuple[Reply, bytes | None]:
            reply = work()
            try:
                return reply, next(reply.pieces, None)
            except BaseException:
                reply.close()
                raise

        reply: Reply | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                reply, piece = await anyio.to_thread.run_sync(first, limiter=self._limits[0])
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
        if reply is None:
            raise failure
        streams = reply.kind == events.KIND
        if streams and self.streams >= MOST_STREAMS:
            reply.close()
            raise Unavailable("too many streams of changes are open here", retry_after=5.0, streams=self.streams)
        return _Streamed(self, reply, piece, gone, self._limits[int(streams)])


class _Streamed(StreamingResponse):
    """A response whose pieces are made in threads. However it ends, whoever makes them hears of it at once."""

    def __init__(
        self, app: App, reply: Reply, first: bytes | None, gone: threading.Event, limiter: anyio.CapacityLimiter
    ) -> None:
        super().__init__(self._pieces(first), reply.status, reply.headers, reply.kind)
        self._app, self._reply, self._gone, self._limiter = app, reply, gone, limiter
        self._counts = reply.kind == events.KIND

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._app.streams += self._counts
        try:
            await super().__call__(scope, receive, send)
        except Exception as error:
            describe(error)  # logs what is not ours; the connection breaks off, since it is too late for a status
            raise
        finally:
            self._app.streams -= self._counts
            self._gone.set()
            self._reply.close()

    async def _pieces(self, first: bytes | None) -> AsyncIterator[bytes]:
        piece = first
        while piece is not None:
            yield piece
            piece = await anyio.to_thread.run_sync(self._step, limiter=self._limiter, abandon_on_cancel=True)

    def _step(self) -> bytes | None:
        try:
            return next(self._reply.pieces, None)
        finally:
            if self._gone.is_set():
                self._reply.close()


def _equals(info: ViewInfo, key: tuple[Any, ...]) -> pc.Expression:
    """True for the rows of a key."""
    batch = key_batch(info, key)
    whole = pc.scalar(True)
    for name in batch.schema.names:
        value = batch.column(name)[0]
        whole = whole & (pc.field(name) == value if value.is_valid else pc.field(name).is_null())
    return whole


async def _body(request: Request) -> bytes:
    held, size = [], 0
    try:
        async for each in request.stream():
            held.append(each)
            size += len(each)
            if size > MAX_BODY:
                raise Refused(413, "the body is too long", limit=MAX_BODY)
    except ClientDisconnect:
        raise Refused(400, "the body broke off") from None
    return b"".join(held)
