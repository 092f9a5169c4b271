"""What every Flight service here does around its handlers: clean errors, streams of lookups, and an end within a second."""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterator
from time import thread_time
from typing import Any, Protocol, TypeVar

import pyarrow as pa
from pyarrow import flight

from flowstate.errors import Unavailable
from flowstate_flight.connections import sever
from flowstate_flight.fault import describe, to_flight
from flowstate_flight.ticket import read_json

Handler = TypeVar("Handler", bound=Callable[..., Any])
_ZERO = ord("0")


class Lookups(Protocol):
    """One exchange of lookups: `schema` is that of its rows."""

    schema: pa.Schema

    def answer(self, asked: dict[str, Any], keys: pa.RecordBatch | None) -> tuple[pa.RecordBatch, str]:
        """One message: rows in the columns of `schema`, and the answer as JSON."""


def stopping() -> Unavailable:
    """What a service says while it closes."""
    return Unavailable("this service is stopping; ask the directory who took over", retry_after=0.5)


def clean(handler: Handler) -> Handler:
    """Nothing but clean Flight errors leaves `handler`, a method of a server with a `service` that may be `closing`."""

    @functools.wraps(handler)
    def wrapped(self: Any, *arguments: Any) -> Any:
        try:
            if self.service.closing:
                raise stopping()
            return handler(self, *arguments)
        except BaseException as error:
            raise to_flight(error) from None

    # pyarrow sends the traceback of a Flight error that comes from get_schema, and from it alone: a frame without a file says no path.
    wrapped.__code__ = wrapped.__code__.replace(co_filename="flowstate")  # type: ignore[attr-defined]
    return wrapped  # type: ignore[return-value]


def clean_iterator(values: Iterator[Any]) -> Iterator[Any]:
    """The same for what is raised in the middle of a stream."""
    try:
        yield from values
    except GeneratorExit:
        raise
    except BaseException as error:
        raise to_flight(error) from None


#: The metadata of a message as our own readers write it, and its number.
_NUMBERED = re.compile(rb'\{"partition": \d{1,9}, "id": ([1-9]\d{0,17}), "epoch": \d{1,18}\}')


class Numbered:
    """Reads the metadata of messages. Those of one stream usually differ by their number alone: then their JSON is read once."""

    def __init__(self) -> None:
        self._before, self._after, self._asked = b"", b"", dict[str, Any]()

    def __call__(self, raw: bytes) -> dict[str, Any]:
        """The JSON object. Raises InvalidFlow."""
        before, after = self._before, self._after
        if before and raw.startswith(before) and raw.endswith(after):
            number = raw[len(before) : -len(after)]
            if number.isdigit() and number[0] != _ZERO and len(number) < 19:
                return {**self._asked, "id": int(number)}
        asked = read_json(raw, "metadata of a key batch")
        if found := _NUMBERED.fullmatch(raw):
            self._before, self._after, self._asked = raw[: found.start(1)], raw[found.end(1) :], asked
        return asked


def answer_lookups(
    stream: Lookups,
    reader: Any,
    writer: Any,
    closing: Callable[[], bool],
    still: Callable[[], object] = lambda: None,
    spent: Callable[[float], object] = lambda seconds: None,
) -> None:
    """Answer each message by one message, in order. An error is the answer to its message and ends nothing, but for what `still` raises,
    which is called at every message: the caller may not ask any more. `spent` is called after every answer, with the seconds of processor
    time that it took of this thread, and may pause."""
    writer.begin(stream.schema)
    read, begun = Numbered(), thread_time()
    while True:
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return
        except (pa.ArrowException, flight.FlightError, OSError):
            return  # the peer went away, or sent what is no Arrow message: there is nobody to tell
        still()
        number: object = None
        rows = None
        try:
            metadata = chunk.app_metadata
            asked = read(metadata.to_pybytes() if metadata is not None else b"")
            number = asked.get("id")
            if closing():
                raise stopping()
            rows, answer = stream.answer(asked, chunk.data)
            said = f'{{"id": {number if type(number) is int else json.dumps(number)}, "answer": {answer}}}'
        except BaseException as error:
            rows, said = None, json.dumps({"id": number, "error": describe(error)})
        try:
            encoded = pa.py_buffer(said.encode())
            if rows is None:
                writer.write_metadata(encoded)
            else:
                writer.write_with_metadata(rows, encoded)
        except (pa.ArrowException, flight.FlightError, OSError):
            return  # the peer went away
        before, begun = begun, thread_time()
        spent(begun - before)


def shut_down(server: flight.FlightServerBase, grace: float) -> None:
    """Stop: requests under way get `grace` seconds, then their connections are cut. Returns within about a second more,
    also with idle exchanges open."""
    port = server.port
    ending = threading.Thread(target=server.shutdown, name="flight-shutdown", daemon=True)
    ending.start()
    ending.join(grace)
    for _ in range(20):
        if not ending.is_alive():
            return
        sever(port)
        ending.join(0.05)
