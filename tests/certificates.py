"""Certificates made on the spot: an authority, and what it signs."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Authority:
    """`certificate` is its own, as PEM."""

    name: str = "authority"
    certificate: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = self._begun(self.name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate = own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def sign(self, *names: str) -> tuple[bytes, bytes]:
        """A certificate for these names and addresses, the first of which says who it is, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        begun = self._begun(names[0], key).add_extension(x509.BasicConstraints(False, None), critical=True)
        signed = begun.add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
        return (
            signed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def _begun(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]),
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            key.public_key(),
            x509.random_serial_number(),
            now - dt.timedelta(hours=1),
            now + dt.timedelta(days=1),
        )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
