"""Changes as Server-Sent Events (`EventSource` in a browser, ``curl -N``).

The events are the steps of `flowstate.view.changes`: ``reset`` and ``rows`` and ``removed`` with ``{"partition", "rows" | "keys"}``, and
``position`` with ``{"answer"}``. An event that others can go on from has an id, which a browser sends back as ``Last-Event-ID`` by itself
when it connects again. In the middle of a round the id is empty, which makes it begin anew. ``failed`` with ``{"error"}`` comes last.
Comments come when nothing else does, so that a connection that is gone shows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import pyarrow as pa

from flowstate.clock import Clock
from flowstate.errors import FlowstateError
from flowstate.view.changes import Change
from flowstate_flight.answering import sliced
from flowstate_flight.changes import Changes
from flowstate_http.answering import error_data, row_texts, told

KIND = "text/event-stream"
RETRY = 1000  # milliseconds after which a client connects again
POSITION_EVERY = 1.0  # seconds between two positions at which nothing is new
COMMENT_EVERY = 5.0
PIECE_BYTES = 1 << 17  # of rows, about, that become text at once: a client that does not read holds two such texts


def events(
    changes: Changes,
    keys: list[str],
    gone: threading.Event,
    still: Callable[[], object],
    clock: Clock,
    writing: Executor,
) -> Iterator[bytes]:
    """The stream, until `gone`, or until `still` raises. Rows become text in the few threads of `writing`: each stream waits in a thread of
    its own, and Arrow keeps memory for each thread that has ever computed anything."""
    with changes:
        yield f"retry: {RETRY}\n\n".encode()
        news, said = True, clock.monotonic()
        try:
            while not gone.is_set():
                change = changes.take(0.5)
                now = clock.monotonic()
                still()
                if change is None:
                    if now - said >= COMMENT_EVERY:
                        said = now
                        yield b":\n\n"
                    continue
                if change.kind == "position" and not news and now - said < POSITION_EVERY:
                    continue
                news, said = change.kind != "position", now
                yield from event(change, keys, writing)
        except FlowstateError as error:
            yield _event("failed", json.dumps(error_data(error)[1]))


def event(change: Change, keys: list[str], writing: Executor) -> Iterator[bytes]:
    """The text of an event, in pieces."""
    identity = change.resume if isinstance(change.resume, str) else ""
    if change.kind == "position":
        assert change.answer is not None
        yield _event("position", json.dumps({"answer": told(change.answer)}), identity)
        return
    data: dict[str, Any] = {"partition": change.partition}
    if change.missed:
        data["missed"] = change.missed
    text = _event(change.kind, json.dumps(data), identity)
    if change.kind not in ("rows", "removed"):
        yield text
        return
    name, rows = ("rows", change.rows) if change.kind == "rows" else ("keys", change.rows.select(keys))
    head = text.removesuffix(b"}\n\n") + f', "{name}": ['.encode()
    *parts, last = sliced(rows, PIECE_BYTES)
    for part in parts:
        yield head + writing.submit(_texts, part).result()
        head = b","
    yield head + writing.submit(_texts, last).result() + b"]}\n\n"


def _texts(rows: pa.RecordBatch) -> bytes:
    return b",".join(row_texts(rows))


def _event(kind: str, text: str, identity: str | None = None) -> bytes:
    """`text` is JSON, so that it has no line's end."""
    head = "" if identity is None else f"id: {identity}\n"
    return f"{head}event: {kind}\ndata: {text}\n\n".encode()
