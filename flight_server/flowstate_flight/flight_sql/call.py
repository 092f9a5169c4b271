"""One call of Flight SQL: who asks, how fresh the answer must be, and whether somebody still waits for it.

Drivers have no place for such wishes but the headers of a call (JDBC: properties of the URL; ADBC: options
``adbc.flight.sql.rpc.call_header.NAME``):

* ``x-flowstate-max-age``: seconds; ``x-flowstate-at-least``: JSON like ``{"topic/0": 17}``; ``x-flowstate-consistent``: true or false;
  ``x-flowstate-snapshot``: a number; ``x-flowstate-wait``: seconds; see `flowstate.view.freshness`.
* ``x-flowstate-timeout``: seconds for a query.
* ``x-flowstate-timestamps: naive``: timestamps lose their zone and show the wall clock in UTC, for drivers that cannot read zones.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pyarrow import flight

from flowstate.errors import FlowstateError, InvalidFlow, did_you_mean
from flowstate.view.freshness import LATEST, Freshness, checked
from flowstate.view.rights import ANYBODY, Principal
from flowstate_flight.fault import to_flight
from flowstate_flight.flight_sql.columns import PLAIN, Reads

HEADERS = "flowstate-headers"
_PREFIX = "x-flowstate-"
_KNOWN = ("max-age", "at-least", "consistent", "snapshot", "wait", "timeout", "timestamps")


class Call:
    """`ended` must be called before the handler's call is over: its context is nothing that may be asked afterwards."""

    def __init__(
        self,
        who: Principal = ANYBODY,
        fresh: Freshness = LATEST,
        timeout: float | None = None,
        reads: Reads = PLAIN,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.who, self.fresh, self.timeout, self.reads = who, fresh, timeout, reads
        self._gone: Callable[[], bool] | None = gone
        self._lock = threading.Lock()

    @staticmethod
    def of(context: Any, who: Principal) -> Call:
        """The call of a handler's context. Raises InvalidFlow for headers that cannot be kept to."""
        middleware = context.get_middleware(HEADERS)
        headers: Mapping[str, str] = {} if middleware is None else middleware.headers
        fresh, timeout, naive = read_headers({name: each for name, each in headers.items() if name.startswith(_PREFIX)})
        return Call(
            who, fresh, timeout, Reads(naive, "grpc-java" in headers.get("user-agent", "")), context.is_cancelled
        )

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more. From any thread, at any time."""
        with self._lock:
            return self._gone is None or self._gone()

    def ended(self) -> None:
        with self._lock:
            self._gone = None


def read_headers(headers: Mapping[str, str]) -> tuple[Freshness, float | None, bool]:
    """Freshness, seconds for the query, and whether timestamps shall be naive. Raises InvalidFlow."""
    given = {name[len(_PREFIX) :]: value.strip() for name, value in headers.items()}
    for name in given:
        if name not in _KNOWN:
            raise InvalidFlow(f"there is no header {_PREFIX + name!r}{did_you_mean(name, _KNOWN)}")
    asked: dict[str, Any] = {}
    try:
        if "max-age" in given:
            asked["max_age"] = float(given["max-age"])
        if "at-least" in given:
            asked["at_least"] = json.loads(given["at-least"])
        if "consistent" in given:
            asked["consistent"] = _truth(given["consistent"])
        if "snapshot" in given:
            asked["snapshot"] = int(given["snapshot"])
        if "wait" in given:
            asked["wait"] = float(given["wait"])
        timeout = float(given["timeout"]) if "timeout" in given else None
    except (ValueError, RecursionError):
        message = (
            f'headers are like {_PREFIX}max-age: 5, {_PREFIX}at-least: {{"topic/0": 17}}, {_PREFIX}consistent: true, '
            f"{_PREFIX}snapshot: 3, {_PREFIX}wait: 0.5, {_PREFIX}timeout: 30"
        )
        raise InvalidFlow(message, got={name: value[:100] for name, value in given.items()}) from None
    if timeout is not None and not 0 < timeout < 1e6:
        raise InvalidFlow(f"{_PREFIX}timeout is a positive number of seconds", got=timeout)
    timestamps = given.get("timestamps", "zoned")
    if timestamps not in ("zoned", "naive"):
        raise InvalidFlow(f"{_PREFIX}timestamps is zoned or naive", got=timestamps[:100])
    return checked(**asked) if asked else LATEST, timeout, timestamps == "naive"


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def to_driver(error: BaseException) -> flight.FlightError:
    """The error to raise in a handler. Never "unavailable" or "unauthorized" for what a query met: drivers would connect anew, and ask
    again and again, and tell nobody why."""
    found = to_flight(error)
    if isinstance(error, FlowstateError) and isinstance(found, flight.FlightUnavailableError):
        return flight.FlightServerError(str(found), found.extra_info)
    return found


class CallHeaders(flight.ServerMiddlewareFactory):
    """Keeps the headers of a call that are ours, and which driver makes it."""

    def start_call(self, info: Any, headers: Mapping[str, list[Any]]) -> _Headers:
        ours = {
            name: values[-1] for name, values in headers.items() if values and name.startswith((_PREFIX, "user-agent"))
        }
        return _Headers({name: value for name, value in ours.items() if isinstance(value, str)})


class _Headers(flight.ServerMiddleware):
    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers


class Handshakes(flight.ServerAuthHandler):
    """Drivers begin with a Handshake when they were given a user, which Flight refuses without a handler. Here it lets everybody in."""

    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        """There is nothing to look at."""

    def is_valid(self, token: bytes) -> str:
        return ""
