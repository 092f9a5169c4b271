"""The listening side: uvicorn in a thread of this process, and its orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import Self

import uvicorn

from flowstate.clock import Clock, SystemClock
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.view.sql import RunSql
from flowstate.view.tls import Tls
from flowstate_flight.auth import Admits, is_loopback, location_of
from flowstate_flight.client import FlightReader
from flowstate_http.app import App
from flowstate_http.callers import Callers
from flowstate_http.encryption import Connection, context_of

CONNECTIONS = 512
IDLE = 15  # seconds that a connection stays open between two requests
GRACE = 1  # seconds that requests under way get when the service closes

log = logging.getLogger("flowstate.http")


class HttpService:
    """Serves what `reader` reads until it is closed; it leaves `reader` and `run_sql` open. Listens at once. `address` is where it is, like
    ``http://127.0.0.1:8080``, or ``https://...`` with `tls`."""

    def __init__(
        self,
        reader: FlightReader,
        run_sql: RunSql | None = None,
        access: Admits = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: Tls | None = None,
        advertise: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Without an `access` everybody who reaches the port may read everything, so that is refused for any but a loopback address, unless
        it is said: ``access="none"``. A bearer token says who asks, or a user and a password; or, if `tls` has `clients`, a token or
        the certificate of the connection. `advertise` is the name that others reach this machine by.

        Raises InvalidFlow, and Unavailable if the port is taken."""
        if isinstance(access, str) and access != "none":
            raise InvalidFlow("access is an Access, or 'none' to let everybody read everything", got=access)
        if access is None and not is_loopback(host):
            raise InvalidFlow(
                "this would let everybody who reaches this address read everything; give access=fs.Access.from_file(...) (--access) "
                "and tls=, or listen on 127.0.0.1; access='none' says that it is meant so",
                host=host,
            )
        encrypted = None if tls is None else context_of(tls)
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.address = location_of("http" if tls is None else "https", advertise or host, self.port)
        known = {host.lower(), (advertise or host).lower()}
        names = frozenset({"localhost", "127.0.0.1", "[::1]", *known, *(f"[{each}]" for each in known)})
        guarding = None if access is None or isinstance(access, str) else access
        callers = Callers(guarding, passwords=tls is None or tls.clients is None)
        self.app = App(reader, run_sql, callers, clock or SystemClock(), names if access is None else None)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                http=Connection,
                ssl_context_factory=None if encrypted is None else lambda config, default: encrypted,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self._thread = threading.Thread(target=self._run, name="flowstate-http", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._server.serve(sockets=[self._socket]))

    def close(self) -> None:
        """Stop within about two seconds, with everything that is under way. Safe to repeat."""
        self.app.closing.set()
        self._server.should_exit = True
        self._thread.join(GRACE + 5.0)
        self.app.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<http {'closed' if self.app.closing.is_set() else self.address}>"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InvalidFlow("this is no host to listen at", host=host) from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(CONNECTIONS)
        return found
    except (OSError, OverflowError) as error:
        found.close()
        message = "the HTTP service cannot listen here; choose another port or stop what holds it"
        raise Unavailable(message, host=host, port=port) from error
