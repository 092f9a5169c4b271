"""Certificates of a Flight service, and what its clients need to check it and to show themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowstate.errors import InvalidFlow

#: The text of a PEM file, or the path of one.
Pem = bytes | str | os.PathLike[str]


@dataclass(frozen=True)
class Tls:
    """All as PEM. `certificate` (with its chain) and `key` are what every service of a job shows; `roots` by which it is checked, the
    certificate itself if that signs itself. With `clients`, the authority of client certificates, nobody connects without one (mutual
    TLS): the first subject alternative name in it says who that is. Workers show each other `certificate`, so it must be signed by
    `clients` too.

    `hostname` is the name in the certificate, where workers are reached by addresses that it does not hold.
    """

    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    roots: bytes = field(repr=False)
    clients: bytes | None = field(default=None, repr=False)
    hostname: str | None = None

    @staticmethod
    def from_files(
        certificate: Pem, key: Pem, *, roots: Pem | None = None, clients: Pem | None = None, hostname: str | None = None
    ) -> Tls:
        """Read here, so that no worker needs the files. Raises InvalidFlow for what cannot be read."""
        return Tls(
            pem("certificate", certificate),
            pem("key", key),
            pem("roots", certificate if roots is None else roots),
            None if clients is None else pem("clients", clients),
            hostname,
        )

    def serving(self) -> dict[str, Any]:
        """Arguments of `pyarrow.flight.FlightServerBase`."""
        served: dict[str, Any] = {"tls_certificates": [(self.certificate, self.key)]}
        if self.clients is not None:
            served |= {"verify_client": True, "root_certificates": self.clients}
        return served

    def connecting(self) -> dict[str, Any]:
        """Arguments of `pyarrow.flight.connect`, with which a process of the job itself reaches another."""
        given: dict[str, Any] = {"tls_root_certs": self.roots}
        if self.hostname is not None:
            given["override_hostname"] = self.hostname
        if self.clients is not None:
            given |= {"cert_chain": self.certificate, "private_key": self.key}
        return given


def pem(what: str, given: Pem) -> bytes:
    """The PEM that is given, or that lies at the path that is. Raises InvalidFlow, and never says what a file holds."""
    if isinstance(given, bytes):
        text = given
    elif isinstance(given, str) and given.lstrip().startswith("-----BEGIN"):
        text = given.encode()
    else:
        try:
            text = Path(given).read_bytes()
        except (OSError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise InvalidFlow(
                f"{what} is the path of a PEM file that can be read, or its bytes", reason=reason
            ) from None
    if b"-----BEGIN " not in text:
        raise InvalidFlow(
            f"{what} is no PEM; it begins with '-----BEGIN CERTIFICATE-----' or '-----BEGIN PRIVATE KEY-----'"
        )
    return text
