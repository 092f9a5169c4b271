"""HTTP by TLS, also mutual, by itself and beside a gateway: the same certificates, and the same rights."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from guarded import INTERNAL
from hand_job import HandJob
from pyarrow import flight

import flowstate as fs
from flowstate.errors import InvalidFlow, Unavailable

AUTHORITY, CLIENTS = Authority(), Authority("clients")
CERTIFICATE, KEY = AUTHORITY.sign("localhost", "127.0.0.1")
TLS = fs.Tls(CERTIFICATE, KEY, AUTHORITY.certificate)
MUTUAL = fs.Tls(CERTIFICATE, KEY, AUTHORITY.certificate, CLIENTS.certificate)
ANNA, ALL = fs.Access.make_token(), fs.Access.make_token()
ACCESS = {
    "principals": {
        "anna": {
            "tokens": [ANNA[1]],
            "certificates": ["anna.example.org"],
            "grants": [{"actions": ["read", "sql"], "views": ["totals"], "rows": {"who": "anna"}}],
        },
        "all": {"tokens": [ALL[1]], "grants": [{"actions": ["read", "sql"]}]},
    }
}
WHO = ["anna", "bert"]


@pytest.fixture(scope="module")
def job() -> Iterator[HandJob]:
    with HandJob(access=fs.Access(ACCESS), internal=INTERNAL) as job:
        job.append("a", [(who, 10, index, "x") for index, who in enumerate(WHO)])
        yield job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of clients, as their files."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("anna.example.org", "bert.example.org"):
        certificate, key = CLIENTS.sign(name, "other.example.org")
        (folder / name).write_bytes(certificate + key)
    certificate, key = Authority("somebody").sign("anna.example.org")
    (folder / "stranger").write_bytes(certificate + key)
    return folder


def trusting(shown: Path | None = None, roots: bytes = AUTHORITY.certificate) -> ssl.SSLContext:
    """A client that trusts `roots` alone, and shows a certificate."""
    context = ssl.create_default_context(cadata=roots.decode())
    if shown is not None:
        context.load_cert_chain(shown)
    return context


def ask(
    address: str | None, path: str, context: ssl.SSLContext | None = None, token: str | None = None
) -> tuple[int, Any]:
    assert address is not None
    place = urlsplit(address)
    assert place.hostname is not None
    if place.scheme == "https":
        connection: Any = http.client.HTTPSConnection(
            place.hostname, place.port, timeout=20, context=context or trusting()
        )
    else:
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    try:
        connection.request("GET", path, headers={} if token is None else {"authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def rows(said: tuple[int, Any]) -> list[str]:
    assert said[0] == 200, said
    return sorted(row["who"] for row in said[1]["rows"])


def test_it_is_reached_by_https_alone(job: HandJob) -> None:
    with fs.http(job.services[0].location, token=INTERNAL, access=fs.Access(ACCESS), tls=TLS) as served:
        assert served.address.startswith("https://127.0.0.1:")
        assert rows(ask(served.address, "/views/totals", token=ALL[0])) == WHO
        assert rows(ask(served.address, "/views/totals", token=ANNA[0])) == ["anna"]
        assert ask(served.address, "/views/totals")[0] == 401
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(served.address, "/views/totals", trusting(roots=CLIENTS.certificate), ALL[0])
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as plain:
            plain.sendall(b"GET /views HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert not plain.recv(1000).startswith(b"HTTP/")
        assert rows(ask(served.address, "/views/totals", token=ALL[0])) == WHO


def test_a_client_certificate_says_who_asks(job: HandJob, folder: Path) -> None:
    with fs.http(job.services[0].location, token=INTERNAL, access=fs.Access(ACCESS), tls=MUTUAL) as served:
        for context in (trusting(), trusting(folder / "stranger")):
            with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
                ask(served.address, "/views/totals", context, ALL[0])
        anna, bert = trusting(folder / "anna.example.org"), trusting(folder / "bert.example.org")
        assert rows(ask(served.address, "/views/totals", anna)) == ["anna"]
        assert rows(ask(served.address, "/views/totals", anna, ALL[0])) == WHO, "a token counts before the certificate"
        assert ask(served.address, "/views/totals", anna, "fst_wrong")[0] == 401
        assert ask(served.address, "/views/totals", bert)[0] == 401
        assert ask(served.address, "/views/hours", anna)[0] == 404


def test_http_stands_beside_a_gateway_with_the_same_rights(job: HandJob, folder: Path) -> None:
    address, options = job.services[0].location, {"token": INTERNAL, "access": fs.Access(ACCESS)}
    with fs.gateway(address, http_port=0, tls=MUTUAL, **options) as served:  # type: ignore[arg-type]
        anna = folder / "anna.example.org"
        assert rows(ask(served.http_address, "/views/totals", trusting(anna))) == ["anna"]
        assert rows(ask(served.http_address, "/views/totals", trusting(anna), ALL[0])) == WHO
        shown = {"cert_chain": anna.read_bytes(), "private_key": anna.read_bytes()}
        with flight.connect(served.address, tls_root_certs=AUTHORITY.certificate, **shown) as client:
            path = flight.FlightDescriptor.for_path("totals")
            [endpoint] = client.get_flight_info(path).endpoints
            assert client.do_get(endpoint.ticket).read_all().column("who").to_pylist() == ["anna"]
    with pytest.raises(OSError, match=r".+"):
        ask(served.http_address, "/views", trusting(anna))
    with fs.gateway(address, http_port=0, **options) as served:  # type: ignore[arg-type]
        assert rows(ask(served.http_address, "/views/totals", token=ANNA[0])) == ["anna"]
        assert ask(served.http_address, "/views/totals")[0] == 401
    with fs.gateway(address, **options) as served:  # type: ignore[arg-type]
        assert served.http_address is None
    with fs.gateway(address, http_port=0, advertise="reports.example.org", token=INTERNAL) as served:
        assert (served.http_address or "").startswith("http://reports.example.org:")
        port = urlsplit(served.http_address or "").port
        for name, status in (("reports.example.org", 200), ("localhost", 200), ("evil.example.org", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/views", headers={"host": name})
            assert connection.getresponse().status == status
            connection.close()


def test_a_gateway_with_http_does_not_begin_by_half(job: HandJob) -> None:
    with fs.gateway(job.services[0].location, http_port=0, token=INTERNAL) as served:
        taken = urlsplit(served.http_address or "").port
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(Unavailable, match="HTTP service cannot listen"):
            fs.gateway(job.services[0].location, port=port, http_port=taken, token=INTERNAL)
        fs.gateway(job.services[0].location, port=port, token=INTERNAL).close()  # nobody was left there
    for served_by in (fs.gateway, fs.http):
        more = {"http_port": 0} if served_by is fs.gateway else {}
        with pytest.raises(InvalidFlow, match=r"access=fs.Access.from_file.*tls=.*access='none'"):
            served_by(job.services[0].location, host="0.0.0.0", tls=TLS, **more)  # type: ignore[arg-type]


def test_certificates_that_do_not_do_are_refused_without_showing_them(job: HandJob) -> None:
    key = serialization.load_pem_private_key(KEY, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    for certificate, held, clients in (
        (CERTIFICATE, AUTHORITY.sign("other")[1], None),
        (CERTIFICATE, locked, None),
        (KEY, KEY, None),
        (CERTIFICATE, KEY, b"-----BEGIN CERTIFICATE-----\nSECRET\n-----END CERTIFICATE-----\n"),
    ):
        with pytest.raises(InvalidFlow, match="HTTP cannot use this certificate") as error:
            fs.http(job.services[0].location, token=INTERNAL, tls=fs.Tls(certificate, held, CERTIFICATE, clients))
        assert "SECRET" not in str(error.value)
        assert "BEGIN" not in str(error.value)


def test_the_command_serves_both(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "certificate.pem").write_bytes(CERTIFICATE)
    (tmp_path / "key.pem").write_bytes(KEY)
    (tmp_path / "roots.pem").write_bytes(AUTHORITY.certificate)
    (tmp_path / "access.toml").write_text(
        f'[principals.all]\ntokens = ["{ALL[1]}"]\n[[principals.all.grants]]\nactions = ["read"]\n'
    )
    options = ["--port", "0", "--http-port", "0", "--access", "access.toml"]
    options += ["--tls-certificate", "certificate.pem", "--tls-key", "key.pem", "--tls-roots", "roots.pem"]
    command = [sys.executable, "-m", "flowstate.command", "gateway", str(tmp_path / "snapshots"), *options]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline().strip(), process.stdout.readline().strip()
        assert first.startswith("grpc+tls://127.0.0.1:")
        assert second.startswith("https://127.0.0.1:")
        assert ask(second, "/views")[0] == 401
        status, said = ask(second, "/views", token=ALL[0])
        assert (status, said["error"]["kind"], said["error"]["message"]) == (
            503,
            "Unavailable",
            "there is no job here yet",
        )
        assert str(tmp_path) not in json.dumps(said)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    refused = subprocess.run(
        [*command[:4], "x", "--host", "0.0.0.0", "--http-port", "0"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert "access='none'" in refused.stderr
