"""Who calls a Flight service, for every service here: the one of a worker, and the gateway.

A `server.Service` takes ``access=`` and ``tls=``; its `Server` asks for ``requests.seen_by(principal_of(context))`` in every handler, so
a subclass of `Requests` says there what is left for a principal, for example with the same requests over a
`flowstate_flight.restricted.RestrictedReader(reader, who)`. Another kind of service does the same by itself::

    server = Server("grpc://...", **server_options(host, access, tls))   # FlightServerBase
    who = principal_of(context)                   # in a handler: a `Principal`; ANYBODY where nothing has to be shown
    caller = caller_of(context); caller.now()     # in a call that goes on: raises when the credential has ended meanwhile

A call shows a bearer token (header ``authorization: Bearer ...``), which a Handshake with a user and a password gives (pyarrow's
`authenticate_basic_token`, ADBC, JDBC), or comes over a connection with a client certificate. A header counts before a certificate.
What is shown is looked at before any handler runs; what is refused is refused in the same words, whatever was wrong with it.

With mutual TLS there is no Handshake: gRPC names the peer of a connection only where no handler for Handshakes is installed.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
from base64 import b64decode
from collections.abc import Callable
from typing import Any, Literal

from pyarrow import flight

from flowstate.clock import Clock, SystemClock
from flowstate.errors import FlowstateError, InvalidFlow
from flowstate.view.rights import ANYBODY, Access, Principal
from flowstate.view.tls import Tls
from flowstate_flight.fault import to_flight

log = logging.getLogger("flowstate.flight")

NAME = "flowstate-auth"
#: The other processes of the job: what they exchange, and the supervisor's pings. It may read everything.
INTERNAL = Principal("flowstate")
#: Seconds after which a credential is looked at again in a call that goes on.
AGAIN = 5.0
NOT_LET_IN = "not let in: show a bearer token, log in by a handshake, or connect with a client certificate"
#: An access; "none" where everybody who reaches the port may read everything, wherever it listens; None for that on loopback alone.
Admits = Access | Literal["none"] | None


class Caller:
    """Who makes a call."""

    def __init__(self, principal: Principal, look: Callable[[], Principal | None], clock: Clock) -> None:
        """`look`: whose the credential is now."""
        self._principal, self._look, self._clock = principal, look, clock
        self._looked = clock.monotonic()

    def now(self) -> Principal:
        """Raises FlightUnauthenticatedError when the credential is not good any more, which is noticed within `AGAIN` seconds."""
        now = self._clock.monotonic()
        if now - self._looked > AGAIN:
            found = self._look()
            if found is None:
                raise unauthenticated()
            self._principal, self._looked = found, now
        return self._principal


_ANYBODY = Caller(ANYBODY, lambda: ANYBODY, SystemClock())


def caller_of(context: Any) -> Caller:
    """Who makes the call of a handler's `context`. Raises FlightUnauthenticatedError."""
    middleware = context.get_middleware(NAME)
    return _ANYBODY if middleware is None else middleware.caller(context)


def principal_of(context: Any) -> Principal:
    """The same, for a call that is short."""
    return caller_of(context).now()


def location_of(scheme: str, host: str, port: int) -> str:
    """An address as Flight writes it."""
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme}://{shown}:{port}"


def server_options(host: str, access: Admits, tls: Tls | None = None, *, internal: str | None = None) -> dict[str, Any]:
    """Arguments of `FlightServerBase` for a service that listens at `host`; none that cost a call anything without an access.
    `internal` is the token of `INTERNAL`. Raises InvalidFlow if others than this machine would be let in without a word about it."""
    options: dict[str, Any] = {} if tls is None else tls.serving()
    if access is None or isinstance(access, str):
        if access not in (None, "none"):
            raise InvalidFlow("access is an Access, or 'none' to let everybody read everything", got=access)
        if access is None and not is_loopback(host):
            raise InvalidFlow(
                "this would let everybody who reaches this address read everything; give access=fs.Access.from_file(...) (--access) "
                "and tls=, or listen on 127.0.0.1; access='none' says that it is meant so",
                host=host,
            )
        return options
    certificates = tls is not None and tls.clients is not None
    options["middleware"] = {NAME: _Factory(access, internal, certificates)}
    if not certificates:
        options["auth_handler"] = _Handshakes()
    return options


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = {str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(each).is_loopback for each in found)


def unauthenticated() -> flight.FlightUnauthenticatedError:
    return flight.FlightUnauthenticatedError(NOT_LET_IN)


class _Handshakes(flight.ServerAuthHandler):
    """Flight refuses every Handshake of a service without a handler. What is shown in one is looked at by the middleware."""

    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        """Nothing is left to say."""

    def is_valid(self, token: bytes) -> str:
        return ""


class _Middleware(flight.ServerMiddleware):
    """Of one call."""

    def __init__(self, factory: _Factory, token: str | None, principal: Principal | None, given: str | None) -> None:
        """`token`: the bearer token that was shown, and whose it is; `given`: one to answer a login with."""
        self._factory, self._token, self._principal, self._given = factory, token, principal, given

    def caller(self, context: Any) -> Caller:
        factory, token = self._factory, self._token
        if token is None:
            identity = _text(context.peer_identity())
            self._principal = factory.access.of_certificate(identity) if identity else None
            look: Callable[[], Principal | None] = lambda: factory.access.of_certificate(identity)  # noqa: E731
        else:
            look = lambda: factory.whose(token)  # noqa: E731
        if self._principal is None:
            raise unauthenticated()
        return Caller(self._principal, look, factory.clock)

    def sending_headers(self) -> dict[str, str]:
        return {} if self._given is None else {"authorization": f"Bearer {self._given}"}


class _Factory(flight.ServerMiddlewareFactory):
    """Called by gRPC at the beginning of every call. Whatever goes wrong here must not reach the client with its traceback."""

    def __init__(self, access: Access, internal: str | None, certificates: bool) -> None:
        self.access, self.clock = access, SystemClock()
        self._internal, self._certificates = internal and internal.encode(), certificates

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> _Middleware:
        try:
            return self._begin(info.method == flight.FlightMethod.HANDSHAKE, headers.get("authorization") or [])
        except flight.FlightError:
            raise
        except FlowstateError as error:
            raise to_flight(error) from None
        except BaseException as error:
            log.error("looking at a credential failed: %s", type(error).__name__)  # its text may hold one
            raise unauthenticated() from None

    def whose(self, token: str) -> Principal | None:
        if self._internal and hmac.compare_digest(self._internal, token.encode()):
            return INTERNAL
        return self.access.of_token(token)

    def _begin(self, handshake: bool, shown: list[Any]) -> _Middleware:
        if not shown and self._certificates and not handshake:
            return _Middleware(self, None, None, None)  # the connection says who it is, to the handler alone
        kind, _, credential = (shown[0] if len(shown) == 1 and isinstance(shown[0], str) else "").partition(" ")
        credential = credential.strip()
        if kind.lower() == "bearer" and not handshake:
            principal = self.whose(credential)
            if principal is not None:
                return _Middleware(self, credential, principal, None)
        elif kind.lower() == "basic" and handshake:
            padded = credential + "=" * (-len(credential) % 4)  # Go sends none
            user, _, password = b64decode(padded, validate=True).decode().partition(":")
            given = self.access.login(user, password)
            if given is not None:
                return _Middleware(self, None, None, given)
        raise unauthenticated()


def _text(identity: bytes | str) -> str:
    return identity.decode("utf-8", "replace") if isinstance(identity, bytes) else identity
