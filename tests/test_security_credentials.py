"""Who is let in: tokens, logins, certificates, where a service may listen; and that no secret is ever shown."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import pickle
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from certificates import Authority
from flight_tables import ordered
from guarded import (
    CALLS,
    HASHED,
    HERS,
    INTERNAL,
    MINE,
    PASSWORD,
    SEES,
    SUBTOTALS,
    Guarded,
    act,
    config,
    path,
    shows,
    ticket,
    token,
)
from pyarrow import flight

import flowstate as fs
from flowstate.clock import ManualClock
from flowstate.errors import InvalidFlow
from flowstate.runtime.pinging import ping
from flowstate.view import access as access_of
from flowstate.view.rights import ANYBODY
from flowstate_flight import FlightReader, FlightService, auth, connect
from flowstate_flight.credentials import Credentials

# credentials


def refused(call: Callable[[], Any]) -> None:
    with pytest.raises((flight.FlightUnauthenticatedError, OSError)) as error:  # pyarrow's get_schema raises an OSError
        call()
    assert str(error.value).startswith(auth.NOT_LET_IN)
    assert "Unauthenticated" in str(error.value)
    assert "Traceback" not in str(error.value)


def header(text: str) -> flight.FlightCallOptions:
    return flight.FlightCallOptions(headers=[(b"authorization", text.encode())], timeout=20)


WRONG = {
    "nothing": flight.FlightCallOptions(timeout=20),
    "empty": header(""),
    "no kind": header("secret"),
    "unknown token": header(f"Bearer {fs.Access.make_token()[0]}"),
    "nearly": header(f"Bearer {token('boss')[:-1]}"),
    "with more": header(f"Bearer {token('boss')}x"),
    "the hash": header(f"Bearer {config()['principals']['boss']['tokens'][0]}"),
    "expired": header(f"Bearer {token('former')}"),
    "basic in a call": header("Basic " + b64encode(f"anna:{PASSWORD}".encode()).decode()),
    "twice": flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token('boss')}".encode())] * 2, timeout=20),
    "a forged login": header("Bearer fsl_WyJhbm5hIiwgOTk5OTk5OTk5OV0=." + "0" * 64),
    "a login of no sense": header("Bearer fsl_...=."),
    "a long one": header("Bearer " + "x" * 5000),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_in_the_same_words(flight_client: flight.FlightClient, what: str) -> None:
    options = WRONG[what]
    refused(lambda: list(flight_client.list_flights(options=options)))
    refused(lambda: flight_client.get_flight_info(path("subtotals"), options))
    refused(lambda: flight_client.get_schema(path("subtotals"), options))
    refused(lambda: flight_client.do_get(flight.Ticket(ticket("subtotals")), options).read_all())
    refused(lambda: list(flight_client.list_actions(options)))
    for kind in ("directory", "lookup", "status", "cut", "ping", "nonsense"):
        refused(lambda: act(flight_client, kind, b"", options))  # noqa: B023
    refused(lambda: flight_client.do_exchange(flight.FlightDescriptor.for_command(b"{}"), options)[1].read_chunk())
    refused(lambda: flight_client.do_put(path("subtotals"), MINE.schema, options)[0].close())


def test_a_login_gives_a_token_and_tells_nothing_when_it_fails(flight_client: flight.FlightClient) -> None:
    given = flight_client.authenticate_basic_token("anna", PASSWORD)
    seen = flight_client.list_flights(options=flight.FlightCallOptions(headers=[given]))
    assert [each.descriptor.path for each in seen] == [[b"billing", b"subtotals"]]
    texts = set()
    for user, password in (
        ("anna", "wrong"),
        ("nobody", PASSWORD),
        ("boss", PASSWORD),
        ("", ""),
        ("anna", ""),
        ("", PASSWORD),
    ):
        with pytest.raises(flight.FlightUnauthenticatedError) as error:
            flight_client.authenticate_basic_token(user, password)
        texts.add(str(error.value))
    assert len(texts) == 1


def test_a_login_costs_the_same_for_who_is_not_there(monkeypatch: pytest.MonkeyPatch, guarded: Guarded) -> None:
    asked: list[tuple[int, ...]] = []
    whole = access_of._scrypt

    def counted(password: str, *given: Any) -> bytes:
        asked.append(given[:3])
        return whole(password, *given)

    monkeypatch.setattr(access_of, "_scrypt", counted)
    for user, password in (("anna", "wrong"), ("nobody", PASSWORD), ("boss", PASSWORD), ("", ""), ("anna", "x" * 9000)):
        assert guarded.access.login(user, password) is None
    assert asked == [access_of.SCRYPT] * 5


def test_a_login_without_padding_is_taken_as_go_sends_it(guarded: Guarded) -> None:
    # the middleware itself, since no Python client leaves the padding out
    made = auth.server_options("127.0.0.1", guarded.access)["middleware"][auth.NAME]
    bare = b64encode(f"anna:{PASSWORD}".encode()).decode().rstrip("=")
    assert len(bare) % 4  # or it shows nothing

    class Info:
        method = flight.FlightMethod.HANDSHAKE

    given = made.start_call(Info, {"authorization": [f"Basic {bare}"]}).sending_headers()["authorization"]
    assert guarded.access.of_token(given.removeprefix("Bearer ")).name == "anna"


def test_a_login_ends_with_its_time_and_with_its_password() -> None:
    clock = ManualClock()
    access = fs.Access({**config(), "login": "1h"}, clock=clock)
    given = access.login("anna", PASSWORD)
    assert given is not None
    assert fs.Access(config(), clock=clock).of_token(given) is None  # another job does not take it
    altered = given[:-1] + ("0" if given[-1] != "0" else "1")
    assert access.of_token(altered) is None
    clock.advance(3599)
    assert access.of_token(given) is not None
    clock.advance(2)
    assert access.of_token(given) is None
    key = {"signing_key": "k" * 32}
    one, other = fs.Access(config() | key), fs.Access(config() | key)
    given = one.login("anna", PASSWORD)
    assert given is not None
    assert other.of_token(given) is not None  # services that share a key take each other's
    changed = config() | key
    changed["principals"]["anna"]["password"] = fs.Access.hash_password(PASSWORD)
    assert fs.Access(changed).of_token(given) is None


def test_every_worker_takes_the_login_of_another() -> None:
    access = fs.Access(config())
    given = access.login("anna", PASSWORD)
    assert given is not None
    assert pickle.loads(pickle.dumps(access)).of_token(given).name == "anna"


def test_a_principal_ends_at_a_date() -> None:
    clock = ManualClock()
    held = config()
    held["principals"]["anna"]["expires"] = dt.datetime.fromtimestamp(clock.wall() + 100, dt.UTC)
    access = fs.Access(held, clock=clock)
    given = access.login("anna", PASSWORD)
    assert given is not None
    assert access.of_token(token("anna")) is not None
    assert access.of_certificate("anna.example.org") is not None
    clock.advance(101)
    assert access.of_token(token("anna")) is None
    assert access.of_token(given) is None
    assert access.of_certificate("anna.example.org") is None
    assert access.login("anna", PASSWORD) is None


def test_an_exchange_ends_when_the_credential_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "AGAIN", -1.0)  # look every time
    clock = ManualClock()
    held = config()
    held["principals"]["anna"]["expires"] = dt.datetime.fromtimestamp(clock.wall() + 100, dt.UTC)
    guarded = Guarded(access=fs.Access(held, clock=clock))
    with flight.connect(guarded.service.location) as client:
        command = json.dumps({"v": 1, "kind": "lookup", "job": "billing", "view": "subtotals"})
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(command), shows(token("anna")))
        writer.begin(MINE.schema)
        for _ in range(3):
            writer.write_with_metadata(MINE, b'{"partition": 0, "id": 1}')
            assert "answer" in json.loads(reader.read_chunk().app_metadata.to_pybytes())
        clock.advance(200)
        writer.write_with_metadata(MINE, b'{"partition": 0, "id": 1}')
        refused(reader.read_chunk)
        with contextlib.suppress(flight.FlightError, pa.ArrowException):
            writer.close()
    guarded.close()


def test_a_reader_logs_in_and_again_after_a_service_was_replaced() -> None:
    first = Guarded()
    reader = FlightReader(first.service.location, "billing", login=("anna", PASSWORD))
    assert ordered(reader.lookup("subtotals", ("customer-3", "b"))) == HERS
    first.close()
    second = Guarded(port=first.service.port)  # with another key: the token of the first login is worth nothing here
    assert ordered(reader.lookup("subtotals", ("customer-3", "b"))) == HERS
    assert ordered(reader.scan("subtotals")) == HERS
    reader.close()
    with pytest.raises(InvalidFlow, match="refused these credentials"):
        connect(second.service.location, login=("anna", "wrong"))
    with pytest.raises(InvalidFlow, match="refused these credentials"):
        connect(second.service.location)
    with pytest.raises(InvalidFlow, match="not both"):
        connect(second.service.location, token="a", login=("anna", "b"))
    second.close()
    with FlightService() as open_, pytest.raises(InvalidFlow, match="takes no logins"):
        connect(open_.location, login=("anna", PASSWORD))


# certificates


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def test_tls(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.sign("127.0.0.1", "localhost")
    (tmp_path / "certificate.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    tls = fs.Tls.from_files(tmp_path / "certificate.pem", str(tmp_path / "key.pem"), roots=authority.certificate)
    guarded = Guarded(tls=tls)
    place = guarded.service.location
    assert place.startswith("grpc+tls://127.0.0.1:")
    with fs.connect(place, "billing", token=token("anna"), tls_root_certs=authority.certificate) as reads:
        assert ordered(reads["subtotals"].to_table()) == HERS
        assert ordered(reads["subtotals"]["customer-3", "b"]) == HERS
    with fs.connect(place, "billing", login=("anna", PASSWORD), tls_root_certs=authority.certificate) as reads:
        assert ordered(reads["subtotals"].to_table()) == HERS
    for wrong in ({"tls_root_certs": Authority("another").certificate}, {}):
        with pytest.raises(fs.Unavailable, match="no answer from a worker"):
            fs.connect(place, token=token("anna"), patience=1.0, **wrong)
    with pytest.raises(fs.Unavailable):  # a name that is not in the certificate
        fs.connect(place, token=token("anna"), tls_root_certs=authority.certificate, override_hostname="x.example.org")
    guarded.close()


def test_mutual_tls(authority: Authority) -> None:
    """The certificate says who it is; a token counts before it; without either, and with a strange one, nobody is let in."""
    certificate, key = authority.sign("workers.example.org")
    tls = fs.Tls(certificate, key, authority.certificate, authority.certificate, "workers.example.org")
    guarded = Guarded(tls=tls)

    def reads(signer: Authority = authority, name: str = "anna.example.org", **options: Any) -> fs.api.job.Reads:
        chain, private = signer.sign(name)
        options = {
            "tls_root_certs": authority.certificate, "override_hostname": "workers.example.org",
            "cert_chain": chain, "private_key": private, "patience": 1.0, **options,
        }  # fmt: skip
        return fs.connect(guarded.service.location, "billing", **options)

    with reads() as hers:
        assert ordered(hers["subtotals"].to_table()) == HERS
        assert ordered(hers["subtotals"]["customer-3", "b"]) == HERS
        assert list(hers) == ["subtotals"]
    with reads(token=token("clerk")) as clerks:
        assert list(clerks) == ["subtotals_late"]
    with pytest.raises(InvalidFlow, match="refused these credentials"):
        reads(name="stranger.example.org")
    with pytest.raises(InvalidFlow, match="refused these credentials"):
        reads(token="fst_wrong")
    with pytest.raises(fs.Unavailable):
        reads(signer=Authority())
    with pytest.raises(fs.Unavailable):
        reads(cert_chain=None, private_key=None)
    own = Credentials(token=INTERNAL, **tls.connecting())
    assert ping(guarded.service.location, own, number=1) == {}
    with connect(guarded.service.location, "billing", token=INTERNAL, **tls.connecting()) as whole:
        assert whole.scan("subtotals").num_rows == SUBTOTALS.num_rows
    guarded.close()


def test_certificates_that_cannot_be_used_are_told(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "key.pem").write_text("top secret")
    for given in (tmp_path / "none.pem", tmp_path / "key.pem", 5, ""):
        with pytest.raises(InvalidFlow) as error:
            fs.Tls.from_files(given, authority.certificate)  # type: ignore[arg-type]
        assert "top secret" not in str(error.value)
    with pytest.raises(fs.FlowstateError):
        FlightService(tls=fs.Tls(b"-----BEGIN CERTIFICATE-----", b"x", b"x"))


# who may be reached


def test_nobody_listens_elsewhere_without_saying_who_is_let_in() -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "no-such-host.example.org"):
        with pytest.raises(InvalidFlow, match=r"access=fs.Access.from_file.*access='none'"):
            FlightService(host)
        with pytest.raises(InvalidFlow, match="access="):
            FlightService(host, tls=None, access=None)
    with pytest.raises(InvalidFlow, match="access is an Access, or 'none'"):
        FlightService(access="all")  # type: ignore[arg-type]
    for host in ("127.0.0.1", "127.0.0.2", "localhost"):
        FlightService(host).close()
    FlightService("0.0.0.0", access="none").close()
    guarded = Guarded(host="0.0.0.0", advertise="127.0.0.1")
    with connect(guarded.service.location, "billing", token=token("anna")) as reader:
        assert reader.views() == ["subtotals"]
    guarded.close()


def test_a_service_without_access_asks_nothing_and_looks_at_nothing() -> None:
    assert auth.server_options("127.0.0.1", None) == {}
    assert auth.server_options("0.0.0.0", "none") == {}
    with FlightService() as service:
        assert not service.guarded
        assert service.requests.seen_by(ANYBODY) is service.requests


# secrets


def test_no_secret_is_shown(
    guarded: Guarded, flight_client: flight.FlightClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    given = guarded.access.login("anna", PASSWORD)
    assert given is not None
    shown: list[str] = []
    secrets = [PASSWORD, HASHED, INTERNAL, given, *(token(each) for each in SEES)]
    secrets += [each["tokens"][0] for each in config()["principals"].values()]

    def note(call: Callable[[], Any]) -> None:
        try:
            shown.append(repr(call()))
        except Exception as error:
            shown.extend(
                [str(error), repr(error), repr(getattr(error, "extra_info", b"")), repr(getattr(error, "facts", {}))]
            )

    for each in (*SEES, "former"):
        options = shows(token(each))
        for call in CALLS.values():
            note(lambda: call(flight_client, options, "billing", "subtotals"))  # noqa: B023
        note(lambda: act(flight_client, "status", b"", options))  # noqa: B023
        note(lambda: act(flight_client, "nonsense", b"", options))  # noqa: B023
    for options in WRONG.values():
        note(lambda: act(flight_client, "status", b"", options))  # noqa: B023
    note(lambda: flight_client.authenticate_basic_token("anna", PASSWORD + "x"))
    for reader in (
        connect(guarded.service.location, "billing", token=token("anna")),
        connect(guarded.service.location, "billing", login=("anna", PASSWORD)),
    ):
        for it in (reader, vars(reader), vars(reader._pool), reader._pool._credentials):
            note(lambda: it)  # noqa: B023
        reader.close()
    note(lambda: connect(guarded.service.location, login=("anna", PASSWORD + "x")))
    principal = guarded.access.of_token(token("anna"))
    for it in (guarded.access, principal, guarded.service, vars(guarded.service)):
        note(lambda: it)  # noqa: B023
    tls = fs.Tls(b"-----BEGIN CERTIFICATE-----\nx", b"-----BEGIN PRIVATE KEY-----\nSECRET", b"roots")
    note(lambda: tls)
    for text in (*shown, caplog.text):
        assert not [each for each in [*secrets, "SECRET"] if each in text], text
    assert len(shown) > 50
