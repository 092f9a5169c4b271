"""Rows and errors as HTTP carries them.

Values are JSON as `flowstate.sink.json_text` writes it, exactly: decimals and integers are numbers with all their digits (a reader that
makes them floats loses some; Arrow does not), timestamps ISO 8601, in UTC where they have a zone. Answers are told in the body, and the
most important of it in headers, which come first.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from flowstate.errors import Behind, Fenced, InvalidFlow, Moved, Unavailable
from flowstate.plan.position import FOREVER, NEVER
from flowstate.sink import json_text
from flowstate.view.answer import Answer
from flowstate.view.directory import ViewInfo
from flowstate_flight.fault import Refused as RefusedUpstream
from flowstate_flight.fault import describe
from flowstate_http.asking import Refused

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
MAX_HEADER = 2048

log = logging.getLogger("flowstate.http")


@dataclass
class Reply:
    """What goes back: a body in pieces, made while it is sent. `end` is called when no more of them are wanted."""

    pieces: Iterator[bytes]
    kind: str = JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    end: Callable[[], None] = lambda: None

    def close(self) -> None:
        """From any thread; safe to repeat."""
        try:
            self.pieces.close()  # type: ignore[attr-defined]
        except AttributeError:  # no generator
            pass
        except ValueError:  # a thread is in it, and closes it when it comes out
            return
        self.end()


def told(answer: Answer) -> dict[str, Any]:
    """How fresh an answer is, for people: its oldest part, and every part by itself."""
    return {
        "job": answer.job,
        "live": answer.live,
        "consistent": answer.consistent,
        "as_of": _iso(answer.as_of) if answer.parts else None,
        "watermark": _watermark(answer.watermark) if answer.parts else None,
        "position": position(answer),
        "parts": [
            {
                "partition": each.partition,
                "epoch": each.epoch,
                "origin": each.origin,
                "as_of": _iso(each.as_of),
                "watermark": _watermark(each.watermark),
                "position": {split: list(place) for split, place in each.position.items()},
                "snapshot": each.snapshot,
            }
            for each in answer.parts
        ],
    }


def position(answer: Answer) -> dict[str, list[int]]:
    """By split, the place that every part has applied."""
    found: dict[str, Any] = {}
    for part in answer.parts:
        for split, place in part.position.items():
            found[split] = min(found.get(split, place), place)
    return {split: list(place) for split, place in found.items()}


def headers(answer: Answer | None) -> dict[str, str]:
    if answer is None or not answer.parts:
        return {}
    found = {"flowstate-origin": "live" if answer.live else "saved", "flowstate-as-of": _iso(answer.as_of)}
    if (watermark := _watermark(answer.watermark)) is not None:
        found["flowstate-watermark"] = watermark
    text = json.dumps(position(answer))
    if len(text) <= MAX_HEADER:
        found["flowstate-position"] = text
    return found


def view_data(info: ViewInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "kind": info.kind,
        "keys": list(info.keys),
        "routing_keys": list(info.routing_keys),
        "window": info.window,
        "columns": columns(info.schema),
    }


def columns(schema: pa.Schema) -> list[dict[str, Any]]:
    return [{"name": each.name, "type": str(each.type), "nullable": each.nullable} for each in schema]


def row_texts(table: pa.Table | pa.RecordBatch) -> list[bytes]:
    """Each row as the text of a JSON object. Raises InvalidFlow."""
    whole = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
    try:
        return json_text.rows(whole)
    except NotImplementedError as error:
        raise InvalidFlow(
            "a column of this type has no JSON; ask for Arrow instead", type=str(error), accept=ARROW
        ) from None


def rows_json(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], first: Mapping[str, Any], last: Any = None
) -> Iterator[bytes]:
    """``{...first, "columns", "rows", ...last()}``, a piece per batch."""
    head = json.dumps({**first, "columns": columns(schema)})
    yield head[:-1].encode() + b', "rows": ['
    between = b"\n"
    for each in batches:
        texts = row_texts(each)
        if texts:
            yield between + b",\n".join(texts)
            between = b",\n"
    tail = json.dumps(last()) if last is not None else "{}"
    yield b"\n]" + (b", " + tail[1:].encode() if len(tail) > 2 else b"}") + b"\n"


def rows_arrow(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """An Arrow IPC stream, a piece per batch."""
    sink = _Pieces()
    with pa.ipc.new_stream(sink, schema) as writer:
        for each in batches:
            writer.write_batch(each)
            yield sink.taken()
    yield sink.taken()


class _Pieces:
    """A file that is emptied while it is written."""

    closed = False

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def write(self, data: Any) -> int:
        self._held.append(bytes(data))
        return len(self._held[-1])

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def writable(self) -> bool:
        return True

    def taken(self) -> bytes:
        held, self._held = b"".join(self._held), []
        return held


def error_data(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error. What is not ours is logged, and named by its type alone."""
    if isinstance(error, Refused):
        kind = "NotFound" if error.status == 404 else "Refused"
        data = {**describe(InvalidFlow(error.message, **error.facts)), "kind": kind}
        return error.status, {"error": data}, {}
    data = describe(error)
    if isinstance(error, RefusedUpstream):
        return 502, {"error": data}, {}
    if isinstance(error, Unavailable | Behind | Moved | Fenced):
        after = max(1, math.ceil(getattr(error, "retry_after", 1.0)))
        return 503, {"error": data}, {"retry-after": str(after)}
    return 400 if isinstance(error, InvalidFlow) else 500, {"error": data}, {}


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _watermark(micros: int) -> str | None:
    if micros in (NEVER, FOREVER):
        return None
    try:
        return _iso(micros / 1e6)
    except (OverflowError, ValueError, OSError):
        return None
