"""TLS of the HTTP service: the same `flowstate.view.tls.Tls` as for Flight, and who shows a client certificate."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from flowstate.errors import InvalidFlow
from flowstate.view.tls import Tls

#: Where the name in a client's certificate stands in the `state` of an ASGI scope; it is there for connections with one alone.
SHOWN = "flowstate.certificate"
_NAMES = ("DNS", "URI", "email", "IP Address")


def context_of(tls: Tls) -> ssl.SSLContext:
    """What a listening socket needs. With `Tls.clients` nobody connects without a certificate that they have signed. Raises InvalidFlow."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        with TemporaryDirectory(prefix="flowstate-") as folder:  # of this user alone; OpenSSL takes keys from files
            certificate, key = Path(folder, "certificate"), Path(folder, "key")
            certificate.write_bytes(tls.certificate)
            key.write_bytes(tls.key)
            context.load_cert_chain(certificate, key, password=_none)
        if tls.clients is not None:
            context.load_verify_locations(cadata=tls.clients.decode())
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        message = (
            "HTTP cannot use this certificate; it takes a certificate, the key that belongs to it, and no password"
        )
        raise InvalidFlow(message, reason=reason) from None
    return context


def _none() -> bytes:
    """OpenSSL would ask for the password of a key at the terminal."""
    raise ValueError("the key has a password")


class Connection(H11Protocol):
    """One connection, which tells the application by `SHOWN` who is at its other end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        encrypted = transport.get_extra_info("ssl_object")
        name = None if encrypted is None else first_name(encrypted.getpeercert())
        if name is not None:
            self.app_state = {**self.app_state, SHOWN: name}


def first_name(certificate: Any) -> str | None:
    """The first subject alternative name of a certificate that was checked, as Flight takes it."""
    names = (certificate or {}).get("subjectAltName", ())
    return next((str(name) for kind, name in names if kind in _NAMES), None)
