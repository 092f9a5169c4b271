"""One stable address for a job: a Flight service that answers for all partitions at once, wherever they are, live or saved.

A client uses it as it uses a worker (see `server`), but needs to know nothing of partitions: a flight has one endpoint without a location,
which means here, and its ticket is the command itself; an exchange of lookups, and the action ``lookup``, take keys of any partition.
A read may ask for a consistent cut or a saved snapshot, which one partition cannot give. `RunSql`, if there is one, is asked by Flight SQL.

It holds nothing but what its reader has learned, so that it may be started again at any time, and several may run side by side.
"""

from __future__ import annotations

from typing import Any, Protocol

from pyarrow import flight

from flowstate.errors import InvalidFlow
from flowstate.view.rights import ANYBODY, Principal
from flowstate.view.sql import RunSql
from flowstate.view.tls import Tls
from flowstate_flight.auth import Admits, principal_of, server_options
from flowstate_flight.client import FlightReader
from flowstate_flight.flight_sql import SQL_ACTIONS, FlightSql, is_flight_sql
from flowstate_flight.flight_sql.call import HEADERS, Call, CallHeaders, Handshakes
from flowstate_flight.gateway_requests import GatewayRequests
from flowstate_flight.handlers import clean, clean_iterator
from flowstate_flight.server import Server, Service, still
from flowstate_flight.subscribing import going_on


class Beside(Protocol):
    """Another service of the same process, by another protocol, which reads by the same reader."""

    address: str

    def close(self) -> None: ...


class Gateway(Service):
    """Serves what `reader` reads until it is closed, and closes `reader` and `sql` with itself. Listens at once, also when there is no job
    yet: then it says so to whoever asks. `address` is where clients connect to, like ``grpc://127.0.0.1:8815``. What is put `beside` it is
    closed with it, and first."""

    beside: Beside | None = None

    def __init__(
        self,
        reader: FlightReader,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        sql: RunSql | None = None,
        access: Admits = None,
        tls: Tls | None = None,
        advertise: str | None = None,
    ) -> None:
        """Everything else as for a `Service`."""
        self.reader, self.sql = reader, sql
        self.flight_sql = FlightSql(reader, sql) if sql is not None else None
        given = server_options(host, access, tls)
        options: dict[str, Any] = {"middleware": {**given.get("middleware", {}), HEADERS: CallHeaders()}}
        if "auth_handler" not in given and not given.get("verify_client"):
            options["auth_handler"] = Handshakes()
        super().__init__(
            GatewayRequests(reader), _Server, host, port, access=access, tls=tls, advertise=advertise, **options
        )

    @property
    def address(self) -> str:
        return self.location

    @property
    def http_address(self) -> str | None:
        """Where the same is to be had by HTTP, like ``http://127.0.0.1:8080``; None if it is not."""
        return None if self.beside is None else self.beside.address

    def close(self, grace: float = 0.5) -> None:
        """Stop within about a second (with HTTP beside it within three), with everything that is under way."""
        if not self.closing:
            if self.beside is not None:
                self.beside.close()
            if self.sql is not None:
                self.sql.close()
            super().close(grace)
            self.reader.close()

    def __repr__(self) -> str:
        return f"<gateway {'closed' if self.closing else self.location}>"


class _Server(Server):
    """Flight SQL, told from the rest by the form of its commands."""

    service: Gateway

    def _sql(self, context: Any) -> tuple[FlightSql, Call]:
        """Raises InvalidFlow where no SQL is served, or the caller has no right to it."""
        who: Principal = principal_of(context) if self.service.guarded else ANYBODY
        if self.service.flight_sql is None or not who.may("sql"):
            raise InvalidFlow("no SQL is served here; ask with paths and tickets instead")
        return self.service.flight_sql, Call.of(context, who)

    @clean
    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        if not _asks_sql(descriptor):
            return self.requests(context).flight_info(descriptor)
        sql, call = self._sql(context)
        return sql.flight_info(call, descriptor)

    @clean
    def get_schema(self, context: Any, descriptor: Any) -> Any:
        if not _asks_sql(descriptor):
            return flight.SchemaResult(self.requests(context).flight_info(descriptor).schema)
        sql, call = self._sql(context)
        return flight.SchemaResult(sql.schema(call, descriptor.command))

    @clean
    def do_get(self, context: Any, ticket: Any) -> Any:
        if is_flight_sql(ticket.ticket):
            sql, call = self._sql(context)
            schema, batches = sql.read(call, ticket.ticket)
        else:
            requests = self.requests(context)
            asked = requests.ticket(ticket.ticket)
            schema, batches = requests.read(asked)
            if asked.changes:
                batches = going_on(batches, still(self.service, context))
        return flight.GeneratorStream(schema, clean_iterator(batches))

    @clean
    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        if not _asks_sql(descriptor):
            raise InvalidFlow("views are read only; events come in through their log")
        sql, call = self._sql(context)
        writer.write(sql.bind(call, descriptor.command, reader))

    @clean
    def list_actions(self, context: Any) -> Any:
        listed = self.requests(context).actions()
        return listed if self.service.flight_sql is None else [*listed, *SQL_ACTIONS]

    @clean
    def do_action(self, context: Any, action: Any) -> Any:
        body = action.body.to_pybytes()
        if action.type not in dict(SQL_ACTIONS):
            return clean_iterator(iter([self.requests(context).action(action.type, body)]))
        sql, call = self._sql(context)
        return clean_iterator(iter(sql.action(call, action.type, body)))


def _asks_sql(descriptor: Any) -> bool:
    return descriptor.descriptor_type == flight.DescriptorType.CMD and is_flight_sql(descriptor.command)
