"""What a client shows, and how it connects: shared by everything here that opens a Flight connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import flight

from flowstate.clock import Clock, SystemClock
from flowstate.errors import InvalidFlow

Result = TypeVar("Result")
#: Seconds after which a client logs in again. Services let a login last longer.
LOGIN_AGAIN = 600.0
#: Seconds for one login.
LOGIN_TIMEOUT = 10.0


class Credentials:
    """A bearer token, or a user with a password, or neither. Thread safe; shows nothing of them."""

    def __init__(
        self,
        token: str | None = None,
        login: tuple[str, str] | None = None,
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        """`options` go to `pyarrow.flight.connect`. Raises InvalidFlow."""
        if token is not None and login is not None:
            raise InvalidFlow("a client shows a token, or logs in with a user and a password, not both")
        if token is not None and not _sendable(token):
            raise InvalidFlow("a token is one line of plain characters")
        if login is not None and (":" in login[0] or not all(isinstance(each, str) for each in login)):
            raise InvalidFlow("a login is the name of a user, without ':', and a password")
        self._token, self._login, self._options = token, login, options
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._since = 0.0

    def connect(self, location: str, **options: Any) -> flight.FlightClient:
        """A client of `location`. Raises InvalidFlow if that is no address."""
        try:
            return flight.connect(location, **{**self._options, **options})
        except (pa.ArrowException, KeyError, ValueError) as error:
            message = (
                "this is no address of a Flight service; it looks like grpc://127.0.0.1:8815 or grpc+tls://host:8815"
            )
            raise InvalidFlow(message, address=location) from error

    def options(self, client: flight.FlightClient, timeout: float | None = None) -> flight.FlightCallOptions | None:
        """For one call of `client`, which must be made with these credentials; `timeout` seconds for it. It logs in where that is due, and
        raises what Flight raises when it is refused."""
        headers = self.headers(client)
        if not headers:
            return None if timeout is None else flight.FlightCallOptions(timeout=timeout)
        return flight.FlightCallOptions(timeout=timeout, headers=headers)

    def headers(self, client: flight.FlightClient) -> list[tuple[bytes, bytes]]:
        if self._login is not None:
            with self._lock:
                now = self._clock.monotonic()
                if self._token is None or now - self._since > LOGIN_AGAIN:
                    waiting = flight.FlightCallOptions(timeout=LOGIN_TIMEOUT)
                    try:
                        shown = client.authenticate_basic_token(*self._login, waiting)[1].decode()
                    except pa.ArrowNotImplementedError:
                        raise InvalidFlow("this service takes no logins; show it a token, or nothing") from None
                    self._token, self._since = shown.partition(" ")[2], now
        return [] if self._token is None else [(b"authorization", b"Bearer " + self._token.encode())]

    def call(
        self, client: flight.FlightClient, timeout: float, make: Callable[[flight.FlightCallOptions], Result]
    ) -> Result:
        """One call of `client` by its options, made again after a new login if it is refused."""
        try:
            return make(self.options(client, timeout))
        except flight.FlightUnauthenticatedError:
            if not self.renewable:
                raise
            self.renew()
            return make(self.options(client, timeout))

    @property
    def renewable(self) -> bool:
        """Whether logging in anew may help a call that was refused."""
        return self._login is not None

    def renew(self) -> None:
        """The next call logs in anew, if it can."""
        if self._login is not None:
            with self._lock:
                self._token = None

    def __repr__(self) -> str:
        return "<credentials>"


def _sendable(token: str) -> bool:
    return isinstance(token, str) and 0 < len(token) <= 4096 and token.isascii() and token.isprintable()
