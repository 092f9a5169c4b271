"""What a request asks: credentials, names, keys and freshness, from plain text. Everything that does not fit is an error that says so."""

from __future__ import annotations

import datetime as dt
import json
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa

from flowstate.errors import FlowstateError, InvalidFlow, did_you_mean
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import Freshness, checked
from flowstate_flight.ticket import MAX_COLUMNS, MAX_TICKET_BYTES, name_of

MAX_BODY = MAX_TICKET_BYTES
FRESH = ("max_age", "at_least", "consistent", "snapshot", "wait")


class Refused(FlowstateError):
    """An answer with a status of its own."""

    def __init__(self, status: int, message: str, **facts: object) -> None:
        self.status = status
        super().__init__(message, **facts)


class Query:
    """The query parameters of a request; each once, but for `several`."""

    def __init__(self, given: Iterable[tuple[str, str]], known: Sequence[str]) -> None:
        """Raises InvalidFlow for one that is not `known`."""
        self._given: dict[str, str] = {}
        for name, value in given:
            if name not in known:
                raise InvalidFlow(f"there is no parameter {name[:100]!r} here{did_you_mean(name[:100], known)}")
            if name in self._given:
                raise InvalidFlow("a parameter is given once", parameter=name)
            self._given[name] = value

    def text(self, name: str) -> str | None:
        return self._given.get(name)

    def number(self, name: str) -> int | None:
        text = self._given.get(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise InvalidFlow(f"{name} is a whole number, not negative")
        return int(text)

    def names(self, name: str) -> list[str] | None:
        """Column names, with commas between them; or a JSON array, for names that hold commas."""
        text = self._given.get(name)
        if text is None:
            return None
        found = read_json(text, name) if text.startswith("[") else text.split(",")
        if not isinstance(found, list) or not 0 < len(found) <= MAX_COLUMNS:
            raise InvalidFlow(f"{name} is a list of names, with commas between them")
        names = [name_of(each, name) for each in found]
        if len(set(names)) != len(names):
            raise InvalidFlow(f"{name} names a column twice")
        return names

    def fresh(self) -> Freshness:
        """``max_age`` and ``wait`` in seconds, ``at_least`` as JSON, ``consistent=true``, ``snapshot`` as a number."""
        asked: dict[str, Any] = {}
        for name in ("max_age", "wait"):
            text = self._given.get(name)
            if text is not None:
                try:
                    asked[name] = float(text)
                except ValueError:
                    raise InvalidFlow(f"{name} is a number of seconds") from None
        text = self._given.get("at_least")
        if text is not None:
            asked["at_least"] = read_json(text, "at_least")
        text = self._given.get("consistent")
        if text is not None:
            if text not in ("true", "false"):
                raise InvalidFlow("consistent is true or false")
            asked["consistent"] = text == "true"
        asked["snapshot"] = self.number("snapshot")
        return checked(**asked)

    def keys(self) -> list[Any] | None:
        """The values of ``key``: a JSON array."""
        text = self._given.get("key")
        if text is None:
            return None
        found = read_json(text, "key")
        if not isinstance(found, list) or not found:
            raise InvalidFlow('key is a JSON array with the values of the key, like key=["anna"]')
        return found


def read_json(text: str | bytes, what: str) -> Any:
    """JSON from a client: numbers with a point are exact (`Decimal`). Raises InvalidFlow."""
    try:
        return json.loads(text, parse_float=_exact, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise InvalidFlow(f"{what} is not JSON") from None


def _exact(text: str) -> Decimal | float:
    try:
        found = Decimal(text)
    except ArithmeticError:  # its exponent is beyond all numbers
        return float(text)
    exponent = found.as_tuple().exponent
    fits = isinstance(exponent, int) and -38 <= exponent <= 38 and len(found.as_tuple().digits) <= 38
    return found if fits else float(text)


def _no_number(text: str) -> None:
    raise ValueError(text)


def segments(raw_path: bytes) -> list[str]:
    """The parts of a path, decoded one by one, so that a key may hold a slash (``%2F``). Raises InvalidFlow."""
    try:
        return [unquote_to_bytes(each).decode() for each in raw_path.split(b"/")[1:]]
    except UnicodeDecodeError:
        raise InvalidFlow("a path is UTF-8 text") from None


def key_of(info: ViewInfo, given: Sequence[Any]) -> tuple[Any, ...]:
    """One key of a view from texts (or JSON values), in the types of its columns. Raises InvalidFlow."""
    if not info.routing_keys:
        raise InvalidFlow(f"view {info.name!r} has no key; ask for its rows", view=info.name)
    if not len(info.routing_keys) <= len(given) <= len(info.keys):
        raise InvalidFlow(
            "a key has a value for each of its columns; those of the window may be left out",
            keys=list(info.keys),
            given=len(given),
        )
    return tuple(_value(name, info.schema.field(name).type, each) for name, each in zip(info.keys, given, strict=False))


def _value(name: str, kind: pa.DataType, given: Any) -> Any:
    types = pa.types
    if given is None or not isinstance(given, str):
        if isinstance(given, Decimal) and types.is_floating(kind):
            return float(given)
        return given
    try:
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            return given
        if types.is_boolean(kind):
            return {"true": True, "false": False}[given]
        if types.is_integer(kind):
            if len(given) > 20:
                raise ValueError
            return int(given)
        if types.is_decimal(kind):
            found = Decimal(given)
            if not found.is_finite() or len(given) > 100:
                raise ValueError
            return found
        if types.is_floating(kind):
            return float(given)
        if types.is_timestamp(kind):
            return _timestamp(kind, given)
        if types.is_date(kind):
            return dt.date.fromisoformat(given)
        if types.is_time(kind):
            return dt.time.fromisoformat(given)
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            return b64decode(given, validate=True)
        return pa.array([given]).cast(kind)[0].as_py()
    except (ValueError, KeyError, ArithmeticError, pa.ArrowException):
        pass
    raise InvalidFlow("a value of the key does not fit its column", column=name, type=str(kind), given=given[:100])


def _timestamp(kind: pa.TimestampType, given: str) -> Any:
    if kind.unit == "ns" and "." in given:
        return pa.array([given]).cast(kind)[0]
    found = dt.datetime.fromisoformat(given.replace(" ", "+"))  # a plus sign that was not escaped
    if kind.tz is not None and found.tzinfo is None:
        found = found.replace(tzinfo=dt.UTC)
    if kind.tz is None and found.tzinfo is not None:
        raise ValueError
    return found


def statement(body: bytes) -> tuple[str, Any, Freshness]:
    """Query, parameters and freshness of ``POST /sql``. Raises InvalidFlow."""
    data = read_json(body, "the body")
    if not isinstance(data, dict) or set(data) - {"query", "params", "fresh"} or not isinstance(data.get("query"), str):
        raise InvalidFlow('the body is {"query": text, "params"?: array or object, "fresh"?: {...}}')
    try:
        data["query"].encode()
    except UnicodeEncodeError:
        raise InvalidFlow("the query is not valid text") from None
    params, fresh = data.get("params"), data.get("fresh") or {}
    if not isinstance(params, list | dict | None):
        raise InvalidFlow("params is an array, or an object by name")
    if not isinstance(fresh, Mapping) or set(fresh) - set(FRESH):
        raise InvalidFlow(f"fresh is an object with {', '.join(FRESH)}")
    fresh = {name: float(each) if isinstance(each, Decimal) else each for name, each in fresh.items()}
    return data["query"], params, checked(**fresh)
