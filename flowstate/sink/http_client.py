"""One HTTP request after another over one connection, with every wait bounded, and errors that show no secrets.

Python's own `http.client`: what a sink needs is a request, a status and the beginning of a body, over a connection that stays open, with
TLS verified against the system's authorities. Retries must know the sink's rules anyway, so a library for them would bring nothing.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult

from flowstate.clock import Clock
from flowstate.errors import InvalidFlow

#: A body that is longer is not waited for; the connection is given up instead.
_MOST_BODY = 1 << 16
SHOWN_BODY = 200


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    retry_after: str | None


class NoAnswer(Exception):
    """The other side gave none, or half of one: nobody knows whether it took the request. The text is for people."""


class Connection:
    """For one thread. `timeout` bounds connecting, and each wait for bytes; the whole answer has to be there within twice that."""

    def __init__(self, place: SplitResult, timeout: float, context: ssl.SSLContext | None, clock: Clock) -> None:
        self._place, self._timeout, self._context, self._clock = place, timeout, context, clock
        self._open: http.client.HTTPConnection | None = None

    def close(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    def ask(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Raises `NoAnswer`."""
        # One that was kept may have been closed by the other side in the meantime: that is no outage.
        kept = self._open is not None
        try:
            return self._ask(method, target, body, headers)
        except (ConnectionError, http.client.RemoteDisconnected) as error:
            self.close()
            if not kept:
                raise NoAnswer(_told(error)) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._meaning(error) from error
        try:
            return self._ask(method, target, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._meaning(error) from error

    def _ask(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        if self._open is None:
            self._open = self._connection()
        deadline = self._clock.monotonic() + 2 * self._timeout
        refused: OSError | None = None
        try:
            self._open.request(method, target, body, dict(headers))
        except (BrokenPipeError, ConnectionResetError) as error:
            refused = error  # it may have answered before it had read all, for example that it is too much
        try:
            response = self._open.getresponse()
        except (OSError, http.client.HTTPException):
            if refused is not None:
                raise refused from None
            raise
        if response.headers.defects:
            raise http.client.IncompleteRead(b"")
        found = self._body(response, deadline)
        if response.will_close or refused is not None or not response.isclosed():
            self.close()
        return Answer(response.status, found[:SHOWN_BODY], response.headers.get("Retry-After"))

    def _body(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        found = b""
        while len(found) < _MOST_BODY:
            piece = response.read1(_MOST_BODY)
            if not piece:
                if response.length:
                    raise http.client.IncompleteRead(found, response.length)
                return found
            found += piece
            if self._clock.monotonic() > deadline:
                raise TimeoutError
        return found

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._place.hostname or "", self._place.port
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=self._timeout)
        return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._context)

    def _meaning(self, error: OSError | http.client.HTTPException) -> Exception:
        if isinstance(error, ssl.SSLCertVerificationError):
            message = "the server's certificate is not trusted; pass ca_file= with the authority that signed it"
            return InvalidFlow(message, host=self._place.hostname, reason=error.verify_message)
        return NoAnswer(_told(error))


def _told(error: OSError | http.client.HTTPException) -> str:
    """Never the text of an `HTTPException`, which may quote a line that was sent."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer was cut off"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return type(error).__name__
