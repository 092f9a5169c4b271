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

#: What the text of an error and its facts may weigh. gRPC carries them three times, and beyond 8 KiB the client hears of no error but that
#: the call has failed.
MESSAGE, FACTS = 1000, 600

_KINDS: dict[str, type[FlowstateError]] = {
    each.__name__: each for each in (InvalidFlow, Behind, Unavailable, Moved, Fenced, CorruptData, InternalError)
}


class Refused(InvalidFlow):
    """A service did not take what was shown."""


def describe(error: BaseException) -> dict[str, Any]:
    """An error as plain data: ``{"kind", "message", "facts"}``. What is not ours is logged here and named only by its type."""
    if isinstance(error, FlowstateError):
        kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _KINDS), "InternalError")
        return {"kind": kind, "message": _cut(error.message, MESSAGE), "facts": _facts(error.facts)}
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


def _facts(facts: Mapping[str, object]) -> dict[str, object]:
    """As plain data; the first ones, if they are too many."""
    found, left = dict[str, object](), FACTS
    for name, value in facts.items():
        found[name] = _plain(value, left)
        left -= len(name) + _weight(str(found[name]))
        if left <= 0:
            break
    return found


def _plain(value: object, most: int) -> object:
    if isinstance(value, int) and abs(value) >= 1 << 64:
        value = str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if not isinstance(value, tuple | list):
        return _cut(str(value), most)
    found = list[object]()
    for each in value:
        found.append(_plain(each, most))
        most -= 4 + _weight(str(found[-1]))
        if most <= 0 and len(found) < len(value):
            return [*found, "..."]
    return found


def _cut(text: str, most: int) -> str:
    """The beginning of `text`, of at most so much weight, as text that can be sent."""
    if len(text) * 12 > most and _weight(text[: most + 1]) > most:
        while len(text) > most or _weight(text) > most:
            text = text[: min(most, len(text) * 9 // 10)]
        text += "..."
    return text.encode(errors="backslashreplace").decode()


def _weight(text: str) -> int:
    """Bytes of `text` as gRPC escapes it, about."""
    return sum(1 if " " <= each <= "~" else 3 * len(each.encode(errors="replace")) for each in text)
