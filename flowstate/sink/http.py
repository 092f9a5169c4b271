"""An HTTP service, each row once by its idempotency key.

`prepare` stages rows as Arrow IPC, at most `PART_ROWS` to an object; `publish` sends one request per row, or per `batch` of rows, with an
``Idempotency-Key`` that is the same for everybody who ever publishes that object: the identity of the sink, the name of the staged object,
the number of the (first) row. Nobody can know whether a request without an answer was taken, so it is sent again; **the other side must
take a key once**. Then each row counts once, whoever dies when. What a publisher has sent of an object is not durable and need not be.

An answer decides what becomes of a request:

* 2xx: taken.
* none, a part of one, 408, 425, 429, 5xx: again, after a growing and random pause (``Retry-After`` is honoured); no answer for `patience`
  seconds: `Unavailable`, and whoever publishes tries again later, with what is left.
* 409: again, since the other side may be busy with the same key of another publisher; after `patience` seconds: rejected.
* 401, 405, 407, and 404 where the URL is the same for all rows: `InvalidFlow`. They are not about a row, so no row is given up for them.
* 3xx: `InvalidFlow`; no redirect is followed, since rows and credentials would go where nobody sent them.
* other 4xx: the rows of the request are rejected, which is durable (`sink.rejected`) before publishing is done; the others go on.
"""

from __future__ import annotations

import random
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import pyarrow as pa

from flowstate.clock import SystemClock
from flowstate.errors import CorruptData, FlowstateError, InvalidFlow, Unavailable, did_you_mean
from flowstate.plan.output import StagedOutput
from flowstate.plan.spec import SinkSpec
from flowstate.sink import json_text
from flowstate.sink.base import Sink, Stage
from flowstate.sink.http_client import Answer, Connection, NoAnswer
from flowstate.sink.http_request import Request, Template, checked_headers, requests
from flowstate.sink.identity import identity
from flowstate.sink.rejected import reject, rejected_of
from flowstate.sink.staging import from_ipc, read_staged, stage_rows
from flowstate.store import Store

_OPTIONS = ("method", "headers", "batch", "connections", "timeout", "patience", "ca_file")
PART_ROWS = 10_000
PART_BYTES = 16 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_AGAIN = (408, 425, 429)
_NOT_ABOUT_A_ROW = (401, 405, 407)


class HttpSink(Sink):
    """`spec.url` may name columns: ``https://billing/invoices/{customer}``. `spec.options`: `method` (POST, PUT, PATCH), `headers` (may
    hold secrets: they are never shown), `batch` (rows per request; more than one are sent as a JSON array, which is taken or refused as
    one), `connections` (at once, default 4), `timeout` (seconds for an answer, 10), `patience` (seconds for a request, with all tries, 10),
    `ca_file` (authorities to trust instead of the system's). `reached` is told ``send``, ``answered``, ``reject``, ``done``, for tests."""

    def __init__(self, spec: SinkSpec, *, sink: int = 0, reached: Callable[[str], None] | None = None) -> None:
        options: Mapping[str, Any] = spec.options
        for name in options:
            if name not in _OPTIONS:
                raise InvalidFlow(f"sink_http has no option {name!r}{did_you_mean(name, _OPTIONS)}", table=spec.table)
        self.spec, self.sink = spec, sink
        self.template = Template(spec.url)
        self.method = str(options.get("method") or "POST").upper()
        if self.method not in ("POST", "PUT", "PATCH"):
            raise InvalidFlow("sink_http sends with POST, PUT or PATCH", table=spec.table, method=self.method)
        self._headers = checked_headers(options.get("headers"))
        self.batch = _number(options, "batch", 1, whole=True)
        self.connections = _number(options, "connections", 4, whole=True)
        self.timeout = _number(options, "timeout", 10.0)
        self.patience = _number(options, "patience", 10.0)
        if self.batch > 1 and self.template.columns:
            message = "rows of a batch have one URL, so it can name no columns; leave out batch=, or the columns"
            raise InvalidFlow(message, table=spec.table, columns=self.template.columns)
        self._ca_file = options.get("ca_file")
        self._clock, self._chance = SystemClock(), random.Random()
        self._reached = reached or _nothing
        self._one = threading.Lock()
        self._stop = threading.Event()
        #: What is known of an object whose publishing did not end: first rows of requests that were answered, and reasons of refusals.
        self._unfinished: tuple[str, set[int], dict[int, str]] = ("", set(), {})

    def __getstate__(self) -> tuple[SinkSpec, int]:
        return self.spec, self.sink

    def __setstate__(self, state: tuple[SinkSpec, int]) -> None:
        spec, sink = state
        HttpSink.__init__(self, spec, sink=sink)

    def check(self, schema: pa.Schema) -> None:
        """Sends nothing: a request is a row."""
        for name in self.template.columns:
            if name not in schema.names:
                hint = did_you_mean(name, schema.names)
                raise InvalidFlow(f"the URL names no column: {name!r}{hint}", table=self.spec.table)
            if pa.types.is_nested(schema.field(name).type):
                message = "a column in a URL holds plain values"
                raise InvalidFlow(message, table=self.spec.table, column=name, type=str(schema.field(name).type))
        for field in schema:
            if not json_text.supports(field.type):
                message = "this column has no JSON; cast it, or leave it out with select"
                raise InvalidFlow(message, table=self.spec.table, column=field.name, type=str(field.type))
        self._context()

    def prepare(self, stage: Stage, rows: pa.Table | None, open: Sequence[StagedOutput] = ()) -> Sequence[StagedOutput]:
        if rows is None or rows.num_rows == 0:
            return list(open)
        # In the name, since keys stand for batches: another size must not meet them.
        suffix = f"-x{self.batch}" if self.batch > 1 else ""
        staged = stage_rows(stage, self.sink, rows, most_rows=PART_ROWS, most_bytes=PART_BYTES, suffix=suffix)
        return [*open, *staged]

    def publish(self, store: Store, staged: StagedOutput) -> int:
        with self._one:
            refused = rejected_of(store, staged)
            if refused is not None:
                return refused
            try:
                rows = from_ipc(read_staged(store, staged))
            except FileNotFoundError as error:
                message = "staged output is gone, so nobody knows whether it was sent; restore the snapshot folder from a backup"
                raise CorruptData(message, object=staged.path, target=staged.target) from error
            named = re.search(r"-x(\d+)$", staged.target)
            waiting = requests(
                rows,
                self.template,
                self._headers,
                int(named[1]) if named else 1,
                f"{identity(store, self.sink)}-{staged.target}",
                self.spec.mode == "changes",
            )
            if self._unfinished[0] != staged.path:
                self._unfinished = (staged.path, set(), {})
            _, answered, reasons = self._unfinished
            self._send([each for each in waiting if each.first not in answered], rows, answered, reasons)
            if reasons:
                self._reached("reject")
                reject(store, staged, rows, reasons)
            self._unfinished = ("", set(), {})
            self._reached("done")
            return len(reasons)

    def close(self) -> None:
        self._stop.set()
        with self._one:
            self._stop.clear()

    def _send(self, waiting: Sequence[Request], rows: pa.Table, answered: set[int], reasons: dict[int, str]) -> None:
        """Over several connections. The first error ends all of them."""
        lanes = min(self.connections, len(waiting)) if self._apart(rows) else 1
        context = self._context()
        queue, lock, failed = iter(waiting), threading.Lock(), list[BaseException]()

        def take() -> Iterator[Request]:
            while not failed:
                with lock:
                    request = next(queue, None)
                if request is None:
                    return
                yield request

        def lane() -> None:
            connection = Connection(self.template.place, self.timeout, context, self._clock)
            try:
                for request in take():
                    reason = request.reason if request.target is None else self._deliver(connection, request, failed)
                    with lock:
                        if reason is not None:
                            reasons.update(dict.fromkeys(range(request.first, request.first + request.rows), reason))
                        answered.add(request.first)
            except BaseException as error:
                failed.append(error)
            finally:
                connection.close()

        if lanes <= 1:
            lane()
        else:
            with ThreadPoolExecutor(lanes, "http-sink") as pool:
                for _ in range(lanes):
                    pool.submit(lane)
        if failed:
            # What must be changed is said first.
            raise min(failed, key=lambda each: isinstance(each, Unavailable))

    def _apart(self, rows: pa.Table) -> bool:
        """Whether rows may overtake one another: they may where no key has two."""
        if self.spec.mode != "changes":
            return True
        keys = [each for each in self.spec.keys if each in rows.schema.names]
        if not keys:
            return False
        texts = json_text.arrays(rows.select(keys))
        return len(set(texts)) == len(texts)

    def _deliver(self, connection: Connection, request: Request, failed: Sequence[object]) -> str | None:
        """Send until it is answered. Why the rows were refused, or None."""
        assert request.target is not None
        deadline, pause = self._clock.monotonic() + self.patience, _FIRST_PAUSE
        while True:
            self._reached("send")
            wait, answer = 0.0, None
            try:
                answer = connection.ask(self.method, request.target, request.body, request.headers)
            except NoAnswer as error:
                told = str(error)
            else:
                self._reached("answered")
                if 200 <= answer.status < 300:
                    return None
                if not (answer.status in (*_AGAIN, 409) or answer.status >= 500):
                    return self._refusal(answer)
                told, wait = f"it answers {answer.status}", self._asked_to_wait(answer.retry_after)
            wait = max(wait, pause * self._chance.uniform(0.5, 1.0))
            if self._clock.monotonic() + wait > deadline:
                if answer is not None and answer.status == 409:
                    return _reason(answer)
                raise self._away(told, wait)
            if self._stop.wait(wait) or failed:
                raise self._away("it was stopped", 1.0)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _refusal(self, answer: Answer) -> str:
        status = answer.status
        if status in _NOT_ABOUT_A_ROW or (status == 404 and not self.template.columns):
            message = f"the service answers {status} to every row alike; correct the URL, method= or headers="
            raise self._invalid(message, status)
        if not 400 <= status < 500:
            message = f"the service answers {status}, which is not followed; give the URL that takes the rows"
            raise self._invalid(message, status)
        return _reason(answer)

    def _asked_to_wait(self, retry_after: str | None) -> float:
        """Seconds, of a number or a date."""
        text = (retry_after or "").strip()
        if text.isdigit() and text.isascii():
            return float(text[:9])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - self._clock.wall()) if text else 0.0
        except (ValueError, TypeError, OverflowError):
            return 0.0

    def _invalid(self, message: str, status: int) -> FlowstateError:
        return InvalidFlow(message, table=self.spec.table, host=self.template.place.hostname, status=status)

    def _away(self, told: str, wait: float) -> FlowstateError:
        message = f"the http service does not take the rows ({told}); they wait in the snapshots and are sent again"
        place = self.template.place
        return Unavailable(
            message, retry_after=max(1.0, wait), table=self.spec.table, host=place.hostname, port=place.port
        )

    def _context(self) -> ssl.SSLContext | None:
        if self.template.place.scheme != "https":
            return None
        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as error:
            message = "ca_file= cannot be read as certificates; give a file in PEM format, which every worker has"
            raise InvalidFlow(message, table=self.spec.table, ca_file=str(self._ca_file)) from error


def _reason(answer: Answer) -> str:
    body = answer.body.decode(errors="replace").strip()
    return f"http {answer.status}: {body}" if body else f"http {answer.status}"


def _number(options: Mapping[str, Any], name: str, default: Any, *, whole: bool = False) -> Any:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < 100_000:
        raise InvalidFlow(f"{name} is a {'whole number' if whole else 'number'} above zero", given=value)
    return value


def _nothing(step: str) -> None:
    return None
