"""The Flight service of one worker process: every partition that the process hosts, of any number of jobs, on one port.

What any Arrow client may rely on: `list_flights`; `get_flight_info` for the path (view) or (job, view), one endpoint per partition;
`do_get` with such an endpoint's ticket; the actions ``directory``, ``lookup``, ``cut`` and ``status``; `do_exchange` with the command
``{"v": 1, "kind": "lookup", "job", "view"}``. `requests` turns a request into an answer; this file is the shell around it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

import pyarrow as pa
from pyarrow import flight

from flowstate.clock import SystemClock
from flowstate.errors import Fenced, InvalidFlow, Unavailable
from flowstate.view.directory import Directory, LivePartition
from flowstate.view.rights import ANYBODY
from flowstate.view.tls import Tls
from flowstate_flight.auth import (
    INTERNAL,
    Admits,
    caller_of,
    is_loopback,
    location_of,
    principal_of,
    server_options,
    unauthenticated,
)
from flowstate_flight.handlers import answer_lookups, clean, clean_iterator, shut_down, stopping
from flowstate_flight.partial import PartialHandler
from flowstate_flight.requests import Requests
from flowstate_flight.share import Share
from flowstate_flight.subscribing import going_on
from flowstate_flight.ticket import read_json

#: Runs one exchange of the runtime: (command, reader, writer, context). It returns when the peer has ended the stream.
ExchangeHandler = Callable[[dict[str, Any], Any, Any, Any], None]


class Service:
    """A listening server and its orderly end; what it answers is its `requests`, and how, its `server`."""

    def __init__(
        self,
        requests: Requests,
        server: type[Server],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        access: Admits = None,
        tls: Tls | None = None,
        internal: str | None = None,
        advertise: str | None = None,
        **options: Any,
    ) -> None:
        """Listen at once. With an `access`, who has no right to something finds that it is not there; without one everybody who reaches
        the port may read everything, so that is refused for any but a loopback address, unless it is said: ``access="none"``. `internal`
        is the token of the other processes of the job. `advertise` is the host name that others reach this machine by; `options` go to
        pyarrow's FlightServerBase. Raises Unavailable if the port is taken, InvalidFlow for what must be mended."""
        self.requests = requests
        self.guarded = not (access is None or isinstance(access, str))
        requests.anybody_stops = access != "none" or is_loopback(host)
        self.closing = False
        self._lock = threading.Lock()
        self._share = Share(SystemClock())
        self._pressed: Callable[[], bool] = _never
        self._exchange_handler: ExchangeHandler | None = None
        options = {**server_options(host, access, tls, internal=internal), **options}
        scheme = "grpc+tls" if options.get("tls_certificates") else "grpc"
        try:
            self._server = server(self, location_of(scheme, host, port), **options)
        except (pa.ArrowException, OSError) as error:
            message = "the Flight service cannot listen here; choose another port or stop what holds it"
            raise Unavailable(message, host=host, port=port) from error
        self.port: int = self._server.port
        self.location = location_of(scheme, advertise or host, self.port)

    def spent(self, seconds: float) -> None:
        """Lookups took so much processor time; returns when more of them may be answered (`share`)."""
        if wait := self._share.spend(seconds, self._pressed):
            self._share.pause(wait)

    def close(self, grace: float = 0.5) -> None:
        """Stop: requests under way get `grace` seconds, then their connections are cut. Returns within about a second more,
        also with idle exchanges open."""
        with self._lock:
            if self.closing:
                return
            self.closing = True
        self.requests.close()
        self._share.close()
        shut_down(self._server, grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class FlightService(Service):
    """The service of a worker; registering and asking are safe from any thread."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, **options: Any) -> None:
        """As a `Service`."""
        super().__init__(Requests(), Server, host, port, **options)

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

    def set_partial_handler(self, handler: PartialHandler | None) -> None:
        """Who answers questions about the rows of one partition (`partial`). Without one they are refused, and the rows are asked for."""
        self.requests.partial_handler = handler

    def set_sinks_handler(self, handler: Callable[[], Mapping[tuple[str, int], list[dict[str, Any]]]] | None) -> None:
        """Who tells how the sinks of the partitions here are doing, by (job, partition), each list in the order of the flow's sinks."""
        self.requests.sinks = handler

    def set_control_handler(self, handler: Callable[[str, str], dict[str, Any]] | None) -> None:
        """Who answers actions of `actions.CONTROL` about a job: (action, job) -> plain data."""
        self.requests.controller = handler

    def set_pressed_handler(self, handler: Callable[[], bool]) -> None:
        """Who tells whether rows wait to be taken in here; then lookups have no more than their `share`."""
        self._pressed = handler

    def set_cut_handler(self, handler: Callable[[str, float], dict[str, Any]] | None) -> None:
        """Who makes a consistent cut of a job within some seconds: ``{"cut": number, "position": {split: [offset, floors]}}``."""
        self.requests.cutter = handler


def _never() -> bool:
    return False


def still(service: Service, context: Any) -> Callable[[], None]:
    """What ends a stream that does not end: the service, or the right to it."""
    caller = caller_of(context)
    who = caller.now()

    def check() -> None:
        if service.closing:
            raise stopping()
        if caller.now() is not who:
            raise unauthenticated()

    return check


class Server(flight.FlightServerBase):
    """pyarrow's handlers. They run on gRPC's threads: no threading.local here, which is destroyed after every call."""

    def __init__(self, service: Service, location: str, **options: Any) -> None:
        self.service = service
        super().__init__(location, **options)

    def requests(self, context: Any) -> Requests:
        """What is there for the caller."""
        requests = self.service.requests
        return requests.seen_by(principal_of(context)) if self.service.guarded else requests

    @clean
    def list_flights(self, context: Any, criteria: bytes) -> Any:
        return clean_iterator(iter(self.requests(context).all_flights()))

    @clean
    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        return self.requests(context).flight_info(descriptor)

    @clean
    def get_schema(self, context: Any, descriptor: Any) -> Any:
        return flight.SchemaResult(self.requests(context).flight_info(descriptor).schema)

    @clean
    def do_get(self, context: Any, ticket: Any) -> Any:
        requests = self.requests(context)
        asked = requests.ticket(ticket.ticket)
        schema, batches = requests.read(asked)
        if asked.changes:
            batches = going_on(batches, still(self.service, context))
        return flight.GeneratorStream(schema, clean_iterator(batches))

    @clean
    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        raise InvalidFlow("views are read only; events come in through their log")

    @clean
    def list_actions(self, context: Any) -> Any:
        return self.requests(context).actions()

    @clean
    def do_action(self, context: Any, action: Any) -> Any:
        return clean_iterator(iter([self.requests(context).action(action.type, action.body.to_pybytes())]))

    @clean
    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        caller = caller_of(context)
        command = read_json(descriptor.command or b"", "command of an exchange")
        if command.get("kind") == "partition-exchange" and caller.now() is (
            INTERNAL if self.service.guarded else ANYBODY
        ):
            handler = self.service._exchange_handler
            if handler is None:
                raise Unavailable("this worker takes no data from others yet", retry_after=0.5)
            handler(command, reader, writer, context)
            return
        who = caller.now()

        def check() -> None:
            if caller.now() is not who:
                raise Unavailable("what you may read has changed; begin another exchange", retry_after=0.1)

        stream = self.service.requests.seen_by(who).lookups(command)
        answer_lookups(stream, reader, writer, lambda: self.service.closing, check, self.service.spent)
