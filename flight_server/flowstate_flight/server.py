"""The Flight service of one worker process: every partition that the process hosts, of any number of jobs, on one port.

What any Arrow client may rely on: `list_flights`; `get_flight_info` for the path (view) or (job, view), one endpoint per partition;
`do_get` with such an endpoint's ticket; the actions ``directory``, ``lookup``, ``cut`` and ``status``; `do_exchange` with the command
``{"v": 1, "kind": "lookup", "job", "view"}``. `requests` turns a request into an answer; this file is the shell around it.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import flight

from flowstate.errors import Fenced, InvalidFlow, Unavailable
from flowstate.view.directory import Directory, LivePartition
from flowstate_flight.connections import sever
from flowstate_flight.fault import describe, to_flight
from flowstate_flight.requests import LookupStream, Requests
from flowstate_flight.ticket import Ticket, read_json

Handler = TypeVar("Handler", bound=Callable[..., Any])
#: Runs one exchange of the runtime: (command, reader, writer, context). It returns when the peer has ended the stream.
ExchangeHandler = Callable[[dict[str, Any], Any, Any, Any], None]

ACTIONS = [
    ("directory", 'the routing table of a job as JSON; the body is {} or {"job": name}'),
    ("lookup", "the rows of some keys as an Arrow IPC stream; the body is a ticket with 'keys'"),
    ("status", "what this service hosts, as JSON"),
    (
        "cut",
        'one consistent cut of a job, made now: {"cut", "position"}; the body is {"job"?: name, "timeout"?: seconds}',
    ),
    ("ping", "whether this process answers, and whether it is still in its job, as JSON; the body is {}"),
]


class FlightService:
    """One server; registering and asking are safe from any thread."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, advertise: str | None = None, **options: Any) -> None:
        """Listen at once. `advertise` is the host name that others reach this machine by; `options` go to pyarrow's
        FlightServerBase (authentication, TLS, middleware). Raises Unavailable if the port is taken."""
        self.requests = Requests()
        self._lock = threading.Lock()
        self._closing = False
        self._exchange_handler: ExchangeHandler | None = None
        scheme = "grpc+tls" if options.get("tls_certificates") else "grpc"
        try:
            self._server = _Server(self, f"{scheme}://{host}:{port}", **options)
        except (pa.ArrowException, OSError) as error:
            message = "the Flight service cannot listen here; choose another port or stop what holds it"
            raise Unavailable(message, host=host, port=port) from error
        self.port: int = self._server.port
        self.location = f"{scheme}://{advertise or host}:{self.port}"

    def register(self, partition: LivePartition) -> None:
        """Serve a partition from now on. A newer epoch replaces an older one; an older one is refused (Fenced)."""
        with self._lock:
            known = self.requests.hosted.get((partition.job, partition.partition))
            if known is not None and known.epoch > partition.epoch:
                message = "a newer incarnation of this partition is already served here"
                raise Fenced(message, partition=partition.partition, epoch=partition.epoch, served=known.epoch)
            self.requests.hosted = {**self.requests.hosted, (partition.job, partition.partition): partition}

    def unregister(self, job: str, partition: int) -> None:
        """Serve it no longer. Streams that have begun go on with the state that they hold."""
        with self._lock:
            left = {key: value for key, value in self.requests.hosted.items() if key != (job, partition)}
            self.requests.hosted = left

    def set_directory(self, directory: Directory) -> None:
        """Take a newer routing table of its job; an older one is ignored."""
        with self._lock:
            known = self.requests.directories.get(directory.job)
            if known is None or known.version <= directory.version:
                self.requests.directories = {**self.requests.directories, directory.job: directory}

    def drop_job(self, job: str) -> None:
        """Forget a job: its partitions and its directory."""
        with self._lock:
            self.requests.hosted = {key: value for key, value in self.requests.hosted.items() if key[0] != job}
            self.requests.directories = {key: it for key, it in self.requests.directories.items() if key != job}

    def set_exchange_handler(self, handler: ExchangeHandler | None) -> None:
        """Who runs exchanges of kind ``partition-exchange``. What it raises reaches the peer as a clean Flight error."""
        self._exchange_handler = handler

    def set_ping_handler(self, handler: Callable[[dict[str, Any]], dict[str, Any]] | None) -> None:
        """Who answers the action ``ping``: JSON in, JSON out, fast. Without one the answer is {}."""
        self.requests.pinged = handler

    def set_cut_handler(self, handler: Callable[[str, float], dict[str, Any]] | None) -> None:
        """Who makes a consistent cut of a job within some seconds: ``{"cut": number, "position": {split: [offset, floors]}}``."""
        self.requests.cutter = handler

    def close(self, grace: float = 0.5) -> None:
        """Stop: requests under way get `grace` seconds, then their connections are cut. Returns within about a second more,
        also with idle exchanges open."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self.requests.hosted, self.requests.directories = {}, {}
        stopping = threading.Thread(target=self._server.shutdown, name="flight-shutdown", daemon=True)
        stopping.start()
        stopping.join(grace)
        for _ in range(20):
            if not stopping.is_alive():
                return
            sever(self.port)
            stopping.join(0.05)

    def __enter__(self) -> FlightService:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _clean(handler: Handler) -> Handler:
    """Nothing but clean Flight errors leaves `handler`."""

    @functools.wraps(handler)
    def wrapped(self: _Server, *arguments: Any) -> Any:
        try:
            if self.service._closing:
                raise Unavailable("this worker is stopping; ask the directory who took over", retry_after=0.5)
            return handler(self, *arguments)
        except BaseException as error:
            raise to_flight(error) from None

    return wrapped  # type: ignore[return-value]


def _clean_iterator(values: Iterator[Any]) -> Iterator[Any]:
    """The same for what is raised in the middle of a stream."""
    try:
        yield from values
    except GeneratorExit:
        raise
    except BaseException as error:
        raise to_flight(error) from None


class _Server(flight.FlightServerBase):
    """pyarrow's handlers. They run on gRPC's threads: no threading.local here, which is destroyed after every call."""

    def __init__(self, service: FlightService, location: str, **options: Any) -> None:
        self.service = service
        super().__init__(location, **options)

    @_clean
    def list_flights(self, context: Any, criteria: bytes) -> Any:
        return _clean_iterator(iter(self.service.requests.all_flights()))

    @_clean
    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        return self.service.requests.flight_info(descriptor)

    @_clean
    def get_schema(self, context: Any, descriptor: Any) -> Any:
        return flight.SchemaResult(self.service.requests.flight_info(descriptor).schema)

    @_clean
    def do_get(self, context: Any, ticket: Any) -> Any:
        schema, batches = self.service.requests.read(Ticket.from_bytes(ticket.ticket))
        return flight.GeneratorStream(schema, _clean_iterator(batches))

    @_clean
    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        raise InvalidFlow("views are read only; events come in through their log")

    @_clean
    def list_actions(self, context: Any) -> Any:
        return ACTIONS

    @_clean
    def do_action(self, context: Any, action: Any) -> Any:
        return _clean_iterator(iter([self.service.requests.action(action.type, action.body.to_pybytes())]))

    @_clean
    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        command = read_json(descriptor.command or b"", "command of an exchange")
        if command.get("kind") == "partition-exchange":
            handler = self.service._exchange_handler
            if handler is None:
                raise Unavailable("this worker takes no data from others yet", retry_after=0.5)
            handler(command, reader, writer, context)
            return
        self._lookups(LookupStream(self.service.requests, command), reader, writer)

    def _lookups(self, stream: LookupStream, reader: Any, writer: Any) -> None:
        """Answer each message by one message, in order. An error is the answer to its message and ends nothing."""
        writer.begin(stream.schema)
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                return
            except (pa.ArrowException, flight.FlightError, OSError):
                return  # the peer went away, or sent what is no Arrow message: there is nobody to tell
            reply: dict[str, Any] = {}
            rows = None
            try:
                metadata = chunk.app_metadata
                asked = read_json(metadata.to_pybytes() if metadata is not None else b"", "metadata of a key batch")
                reply["id"] = asked.get("id")
                if self.service._closing:
                    raise Unavailable("this worker is stopping; ask the directory who took over", retry_after=0.5)
                rows, reply["answer"] = stream.answer(asked, chunk.data)
            except BaseException as error:
                rows, reply["error"] = None, describe(error)
            try:
                encoded = pa.py_buffer(json.dumps(reply).encode())
                if rows is None:
                    writer.write_metadata(encoded)
                else:
                    writer.write_with_metadata(rows, encoded)
            except (pa.ArrowException, flight.FlightError, OSError):
                return  # the peer went away
