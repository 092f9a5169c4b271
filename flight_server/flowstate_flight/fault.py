"""Our errors through Flight and back: the kind travels as JSON in `extra_info`, the text stays clean.

pyarrow ships the server's traceback, with paths and lines of code, to the client for every exception that is not a Flight error. So
every handler raises only what `to_flight` makes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow import flight

from flowstate.errors import Behind, CorruptData, Fenced, FlowstateError, InternalError, InvalidFlow, Moved, Unavailable

log = logging.getLogger("flowstate.flight")

_KINDS: dict[str, type[FlowstateError]] = {
    each.__name__: each for each in (InvalidFlow, Behind, Unavailable, Moved, Fenced, CorruptData, InternalError)
}


class Refused(InvalidFlow):
    """A service did not take what was shown."""


def describe(error: BaseException) -> dict[str, Any]:
    """An error as plain data: ``{"kind", "message", "facts"}``. What is not ours is logged here and named only by its type."""
    if isinstance(error, FlowstateError):
        kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _KINDS), "InternalError")
        return {"kind": kind, "message": error.message, "facts": {key: _plain(it) for key, it in error.facts.items()}}
    log.error("a Flight handler failed", exc_info=error)
    message = "the server failed on this request; its log says why"
    return {"kind": "InternalError", "message": message, "facts": {"error": type(error).__name__}}


def rebuild(data: Mapping[str, Any]) -> FlowstateError:
    """The error that `describe` took apart."""
    kind = _KINDS.get(str(data.get("kind")), InternalError)
    facts = {str(key): value for key, value in dict(data.get("facts") or {}).items() if key != "message"}
    message = str(data.get("message"))
    if issubclass(kind, Unavailable):
        after = facts.pop("retry_after", 1.0)
        return kind(message, retry_after=float(after) if isinstance(after, int | float) else 1.0, **facts)
    facts.pop("retry_after", None)
    return kind(message, **facts)


def to_flight(error: BaseException) -> flight.FlightError:
    """The Flight error to raise in a handler. Away and moved are `FlightUnavailableError`, our own faults
    `FlightInternalError`, everything that the asker can mend `FlightServerError`."""
    if isinstance(error, flight.FlightError):
        return error
    data = describe(error)
    extra = json.dumps(data).encode()
    facts = " ".join(f"{name}={value!r}" for name, value in data["facts"].items())
    text = f"{data['message']} {facts}".strip()
    if data["kind"] in ("Unavailable", "Behind", "Moved", "Fenced"):
        return flight.FlightUnavailableError(text, extra)
    if data["kind"] in ("InternalError", "CorruptData"):
        return flight.FlightInternalError(text, extra)
    return flight.FlightServerError(text, extra)


def from_flight(error: BaseException, **facts: object) -> FlowstateError:
    """Our error for what a Flight call raised; `facts` are added to errors that are not ours."""
    if isinstance(error, FlowstateError):
        return error
    extra = getattr(error, "extra_info", None)
    if extra:
        try:
            data = json.loads(extra)
        except ValueError:
            data = None
        if isinstance(data, dict) and "kind" in data:
            return rebuild(data)
    reason = str(error).partition("\n")[0][:200]
    if isinstance(error, flight.FlightUnauthenticatedError | flight.FlightUnauthorizedError):
        return Refused("the server refused these credentials", reason=reason, **facts)
    if isinstance(
        error,
        flight.FlightUnavailableError
        | flight.FlightTimedOutError
        | flight.FlightCancelledError
        | flight.FlightInternalError,
    ):
        return Unavailable("no answer from a worker; it may be restarting", retry_after=0.5, reason=reason, **facts)
    if isinstance(error, pa.ArrowException | flight.FlightError | OSError):
        return Unavailable("the stream from a worker broke off", retry_after=0.5, reason=reason, **facts)
    return InternalError(
        "a Flight call failed in an unforeseen way", error=type(error).__name__, reason=reason, **facts
    )


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return str(value)
