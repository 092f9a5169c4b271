"""Who asks: a bearer token, a user with a password (``Authorization: Basic``), or the client certificate of the connection.

What is shown counts before a certificate; with mutual TLS there is no login by password, as in Flight. A password takes 40 ms to check, on
purpose, so a login is remembered: the token that `Access.login` gave, by a digest with a key of this process. The token ends with its time,
with the password that it was made by, and with its user; then the password is checked again. A wrong one is checked every time.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable

import anyio
import anyio.to_thread
from starlette.requests import Request

from flowstate.errors import FlowstateError
from flowstate.view.rights import ANYBODY, Access, Principal
from flowstate_http.asking import Refused
from flowstate_http.encryption import SHOWN

LOGINS = 16  # that wait in threads until their password is checked
REMEMBERED = 4096

log = logging.getLogger("flowstate.http")


class Callers:
    """By `access`; without one, anybody. `passwords`: whether users log in by theirs. To be used in one event loop."""

    def __init__(self, access: Access | None, *, passwords: bool) -> None:
        self.access, self._passwords = access, passwords
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, str] = OrderedDict()  # login tokens
        self._lock = threading.Lock()
        self._limiter: anyio.CapacityLimiter | None = None

    @property
    def challenge(self) -> str:
        """What an answer with status 401 asks for."""
        return 'Basic realm="flowstate", charset="UTF-8", Bearer' if self._passwords else "Bearer"

    async def caller(self, request: Request) -> Callable[[], Principal]:
        """Who asks, to be asked again. That, and this, raise Refused; this also Unavailable while too many log in."""
        access = self.access
        if access is None:
            return lambda: ANYBODY
        shown = request.headers.getlist("authorization")
        kind, _, credential = (shown[0] if len(shown) == 1 else "").partition(" ")
        credential = credential.strip()
        if kind.lower() == "basic" and self._passwords:
            credential = await self._login(access, credential)
        elif kind.lower() != "bearer":
            credential = ""
        certificate = None if shown else request.scope.get("state", {}).get(SHOWN)

        def look() -> Principal:
            principal = None
            if certificate is not None:
                principal = access.of_certificate(certificate)
            elif credential:
                principal = access.of_token(credential)
            if principal is None:
                raise self._refused()
            return principal

        return look

    def _refused(self) -> Refused:
        ways = "a bearer token, or a user and a password" if self._passwords else "a bearer token"
        return Refused(401, f"not let in: show {ways}, or connect with a client certificate")

    async def _login(self, access: Access, credential: str) -> str:
        """The token of a login; '' if there is none."""
        digest = hmac.digest(self._key, credential.encode(), hashlib.sha256)
        with self._lock:
            token = self._known.get(digest, "")
        if token and access.of_token(token) is not None:
            return token
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(LOGINS)
        token = await anyio.to_thread.run_sync(_login, access, credential, limiter=self._limiter)
        with self._lock:
            self._known.pop(digest, None)
            if token:
                self._known[digest] = token
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return token


def _login(access: Access, credential: str) -> str:
    try:
        padded = credential + "=" * (-len(credential) % 4)
        user, _, password = b64decode(padded, validate=True).decode().partition(":")
        return access.login(user, password) or ""
    except FlowstateError:
        raise
    except ValueError:
        return ""
    except Exception as error:
        log.error("looking at a credential failed: %s", type(error).__name__)
        return ""
