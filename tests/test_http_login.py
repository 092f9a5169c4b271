"""HTTP by user and password: the users of Flight, on every path, over TLS too; and nothing to learn from a refusal."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import logging
import ssl
import statistics
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from certificates import Authority
from hand_job import HandJob

import flowstate as fs
from flowstate.clock import ManualClock
from flowstate.view.access import Access
from flowstate_flight.client import FlightReader
from flowstate_http import HttpService
from flowstate_sql.served import ServedSql

AUTHORITY, CLIENTS = Authority(), Authority("clients")
CERTIFICATE, KEY = AUTHORITY.sign("localhost", "127.0.0.1")
PASSWORD = "pässword: of anna"
HASH = fs.Access.hash_password(PASSWORD)
GRANTS = [{"actions": ["read", "sql"], "views": ["totals"], "rows": {"who": "anna"}}]
TOKEN, HASHED = fs.Access.make_token()
ACCESS = {
    "principals": {
        "anna": {"password": HASH, "grants": GRANTS},
        "bert": {"tokens": [HASHED], "grants": GRANTS},
        "gone": {"password": HASH, "grants": GRANTS, "expires": dt.date(2020, 1, 1)},
    }
}


class Counted(Access):
    """Counts how often a password is checked."""

    checks = 0

    def login(self, user: str, password: str) -> str | None:
        self.checks += 1
        return super().login(user, password)


@pytest.fixture(scope="module")
def reader() -> Iterator[FlightReader]:
    with HandJob() as job:
        job.append("a", [(who, 10, index, "x") for index, who in enumerate(["anna", "bert"])])
        with FlightReader([each.location for each in job.services]) as reader:
            yield reader


@pytest.fixture(scope="module")
def service(reader: FlightReader) -> Iterator[HttpService]:
    with ExitStack() as stack:
        sql = ServedSql(reader)
        stack.callback(sql.close)
        yield stack.enter_context(HttpService(reader, sql, Counted(ACCESS)))


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def ask(
    service: HttpService, path: str, shown: str | None, body: Any = None, context: ssl.SSLContext | None = None
) -> tuple[int, dict[str, str], bytes]:
    """A stream of changes is read up to its first position."""
    made: Any = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
    more = {} if context is None else {"context": context}
    connection = made("127.0.0.1", service.port, timeout=20, **more)
    try:
        headers = {"content-type": "application/json"} | ({} if shown is None else {"authorization": shown})
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders() if name.lower() != "date"}
        if response.status == 200 and path.endswith("/changes"):
            text = b""
            while b"event: position" not in text:
                text += response.readline()
            return response.status, found, text
        return response.status, found, response.read()
    finally:
        connection.close()


PATHS: list[tuple[str, Any]] = [
    ("/views", None),
    ("/views/totals", None),
    ("/views/totals/anna", None),
    ("/views/totals/changes", None),
    ("/sql", {"query": "select who from totals"}),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_a_user_with_a_password_is_let_in_on_every_path(service: HttpService, path: str, body: Any) -> None:
    status, _, text = ask(service, path, basic("anna", PASSWORD), body)
    assert status == 200, text
    assert b"bert" not in text and (path == "/views" or b"anna" in text)
    assert ask(service, path, basic("anna", "another password"), body)[0] == 401
    assert ask(service, path, None, body)[0] == 401


def test_whatever_is_wrong_gets_the_same_answer_and_is_not_logged(
    service: HttpService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = [
        *(basic("anna", each) for each in ("wrong password", "", PASSWORD + " ", "x" * 6000)),
        *(basic(user, PASSWORD) for user in ("nobody", "bert", "gone", "", "ANNA", "anna\n")),
        *("Basic", "Basic !", "Basic YQ", "Basic /////w==", "basic é", f"Basic {TOKEN}", "Digest anna", f"{TOKEN}"),
        "Bearer " + b64encode(f"anna:{PASSWORD}".encode()).decode(),
        None,
    ]
    answers = {repr(ask(service, "/views", each)) for each in wrong}
    assert len(answers) == 1, answers
    status, headers, text = ask(service, "/views", wrong[0])
    assert status == 401 and headers["www-authenticate"] == 'Basic realm="flowstate", charset="UTF-8", Bearer'
    assert json.loads(text)["error"]["kind"] == "Refused"
    logged = caplog.text
    assert not any(each in logged for each in ("anna", "password", TOKEN))
    assert ask(service, "/views", f"Bearer {TOKEN}")[0] == 200


def test_it_takes_as_long_for_who_is_not_there(service: HttpService) -> None:
    taken: dict[str, list[float]] = {user: [] for user in ("anna", "nobody", "bert")}
    for number in range(5):
        for user, times in taken.items():
            begun = time.perf_counter()
            assert ask(service, "/views", basic(user, f"wrong {number}"))[0] == 401
            times.append(time.perf_counter() - begun)
    least = {user: min(times) for user, times in taken.items()}
    assert min(least.values()) > 0.4 * statistics.median(least.values()), least


def test_a_password_is_checked_once_while_it_holds_and_a_wrong_one_every_time(reader: FlightReader) -> None:
    clock = ManualClock(1_800_000_000.0)
    access = Counted(ACCESS, clock=clock)
    with HttpService(reader, None, access) as service:
        for _ in range(5):
            assert ask(service, "/views", basic("anna", PASSWORD))[0] == 200
        assert access.checks == 1
        for _ in range(3):
            assert ask(service, "/views", basic("anna", "wrong"))[0] == 401
        assert access.checks == 4
        clock.advance(13 * 3600)  # longer than a login lasts
        assert ask(service, "/views", basic("anna", PASSWORD))[0] == 200
        assert access.checks == 5


def test_a_password_that_was_changed_lets_nobody_in_any_more(reader: FlightReader) -> None:
    access = Counted(ACCESS)
    with HttpService(reader, None, access) as service:
        assert ask(service, "/views", basic("anna", PASSWORD))[0] == 200
        changed = {"principals": {"anna": {"password": fs.Access.hash_password("a new one"), "grants": GRANTS}}}
        access._held = Counted(changed)._held  # as when its file was read anew
        assert ask(service, "/views", basic("anna", PASSWORD))[0] == 401
        assert ask(service, "/views", basic("anna", "a new one"))[0] == 200


def test_by_tls_and_not_beside_certificates_of_clients(reader: FlightReader) -> None:
    tls = fs.Tls(CERTIFICATE, KEY, AUTHORITY.certificate)
    trusting = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
    with HttpService(reader, None, Counted(ACCESS), tls=tls) as service:
        assert ask(service, "/views", basic("anna", PASSWORD), context=trusting)[0] == 200
        assert ask(service, "/views", basic("anna", "wrong"), context=trusting)[0] == 401


def test_with_mutual_tls_there_is_no_login_by_password(reader: FlightReader, tmp_path: Any) -> None:
    mutual = fs.Tls(CERTIFICATE, KEY, AUTHORITY.certificate, CLIENTS.certificate)
    shown = tmp_path / "client"
    shown.write_bytes(b"".join(CLIENTS.sign("somebody.example.org")))
    trusting = ssl.create_default_context(cadata=AUTHORITY.certificate.decode())
    trusting.load_cert_chain(shown)
    access = Counted(ACCESS)
    with HttpService(reader, None, access, tls=mutual) as service:
        status, headers, _ = ask(service, "/views", basic("anna", PASSWORD), context=trusting)
        assert status == 401 and headers["www-authenticate"] == "Bearer" and access.checks == 0
        assert ask(service, "/views", f"Bearer {TOKEN}", context=trusting)[0] == 200


def test_users_need_no_tls_where_tokens_need_none(reader: FlightReader) -> None:
    with HttpService(reader, None, Counted(ACCESS), host="0.0.0.0") as service:
        assert ask(service, "/views", f"Bearer {TOKEN}")[0] == 200
        assert ask(service, "/views", basic("anna", PASSWORD))[0] == 200
