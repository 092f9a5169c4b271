"""HTTP of any content: paths, parameters, bodies and headers by the rules, and bytes on the socket that keep to none."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from random import Random
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from attack import ANNA, VALUES, Target, cases, damaged, nested, only_hers
from waiting import until

from flowstate_http import HttpService

ARROW = "application/vnd.apache.arrow.stream"
PIECES = [
    *("views", "totals", "hours", "changes", "sql", "anna", "bert", "", "..", "%00", "%FF", "%2F", "%", "é", "x" * 3000, "null", "{}"),
    *("1970", "anna/1970-01-01T01:00:00Z", "totals/anna", "totals/anna", "totals/bert", "hours/anna", "dead_letters", "1e400", "\x7f"),
]  # fmt: skip
PARAMETERS = [
    *("key=[1]", 'key=["anna"]', "key=[null]", "key=[1e99999999999999999999]", "key=[[]]", "key=anna", "limit=1", "limit=-1", "limit=x"),
    *('key=["anna","1970-01-01T01:00:00Z"]', "limit=99999999999999999999", "columns=who", "columns=who,who", "columns=["),
    *("max_age=nan", "max_age=-1", "max_age=1e-9", 'at_least={"a":1}', 'at_least={"a":[99999,0]}', "at_least=[]", "consistent=true"),
    *("consistent=1", "snapshot=9", "snapshot=", 'columns=["who"]', "resume=x", "resume=e30", "x=y", "=", "key", "a&a", "%FF=%FF"),
]  # fmt: skip
SOUND = [
    "/views",
    "/views/totals/anna",
    "/views/totals?columns=who",
    "/views/hours?limit=1",
    "/views/totals/changes",
    "/views/hours/anna",
]
QUERIES = [
    "select 1 as one",
    "from totals",
    "selec",
    "",
    "select $1",
    "select ?",
    "attach '/etc/passwd'",
    "select 1; select 2",
    "\0",
]
STATUSES = {200, 400, 401, 403, 404, 405, 413, 415, 422, 431, 501, 503}


def path(chance: Random) -> str:
    if chance.random() < 0.2:
        return chance.choice(SOUND)
    parts = chance.choices(PIECES, k=chance.choice((0, 1, 1, 2, 3)))
    whole = "/" + "/".join(["views", *parts] if chance.random() < 0.7 else parts)
    if chance.random() < 0.5:
        whole += "?" + "&".join(chance.choices(PARAMETERS, k=chance.choice((1, 1, 2, 3))))
    if chance.random() < 0.2:
        whole = damaged(chance, whole.encode()).decode("latin-1")
    return (
        quote(whole, safe="/?&=%[]{}:\"',")
        if chance.random() < 0.97
        else "".join(filter(str.isalnum, whole)).encode("ascii", "ignore").decode()
    )


def body(chance: Random) -> bytes:
    data: dict[str, Any] = {"query": chance.choice(QUERIES)}
    if chance.random() < 0.5:
        data["params"] = chance.choice(([1], ["anna"], [VALUES], {"a": [1]}, [None], "x", [2**80], [1e308]))
    if chance.random() < 0.3:
        data["fresh"] = chance.choice(VALUES)
    if chance.random() < 0.2:
        data[chance.choice(("query", "params", "fresh", "more"))] = chance.choice(VALUES)
    raw = json.dumps(data).encode()
    match chance.randrange(8):
        case 0:
            return damaged(chance, raw)
        case 1:
            return chance.choice(
                (b"", b"{", b"[]", b"\xff" * 50, b'{"query": "select $1", "params": [1e99999999999999999999]}')
            )
        case 2:
            return f'{{"query": "select 1", "params": {nested(chance)}}}'.encode()
        case _:
            return raw


def headers(chance: Random, posts: bool) -> dict[str, str]:
    given = {"accept": chance.choice((ARROW, "*/*", "", "x" * 500))}
    if chance.random() < 0.95:
        given["authorization"] = f"Bearer {ANNA[0]}"
    else:
        given["authorization"] = chance.choice(("Bearer", "Bearer x", f"bearer  {ANNA[0]}", "Basic AAAA", "é", ANNA[0]))
    if posts:
        given["content-type"] = chance.choice(
            ("application/json",) * 6 + ("text/plain", "application/json; charset=x", "")
        )
    if chance.random() < 0.1:
        given[chance.choice(("last-event-id", "x-" + "y" * 300, "if-none-match", "range", "expect"))] = chance.choice(
            ("", "7", "x" * 100)
        )
    return given


class Client:
    """One connection, until the service closes it."""

    def __init__(self, web: HttpService) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)

    def ask(self, chance: Random) -> int:
        posts = chance.random() < 0.35
        asked = "/sql" if posts and chance.random() < 0.9 else path(chance)
        sent = body(chance) if posts else None
        method = chance.choice(("POST",) * 9 + ("PUT",)) if posts else chance.choice(("GET",) * 19 + ("DELETE",))
        self.connection.request(method, asked, sent, headers(chance, posts))
        response = self.connection.getresponse()
        if response.getheader("content-type", "").startswith("text/event-stream"):
            assert response.read(10)
            self.connection.close()  # it stays open
            return response.status
        text = response.read()
        assert response.status in STATUSES, (asked, sent, response.status, text)
        kind = response.getheader("content-type", "")
        if response.status == 200 and kind == ARROW:
            only_hers(pa.ipc.open_stream(text).read_all())
        elif kind == "application/json":
            told = json.loads(text)
            if response.status != 200:
                assert set(told["error"]) == {"kind", "message", "facts"}
                assert "Traceback" not in text.decode()
                assert len(text) < 10_000
            else:
                assert {row["who"] for row in told.get("rows", ()) if "who" in row} <= {"anna"}
        if response.will_close:
            self.connection.close()
        return response.status


def noise(chance: Random, web: HttpService) -> None:
    """A connection of its own, with what is no HTTP, or breaks off, or claims a length that does not come."""
    sound = f"GET /views/totals HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ANNA[0]}\r\n\r\n".encode()
    posted = f"POST /sql HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ANNA[0]}\r\ncontent-type: application/json\r\n".encode()
    raw = chance.choice(
        [
            chance.randbytes(chance.randrange(200)) + b"\r\n\r\n",
            b"GET /views HTTP/1.1\r\n" + chance.randbytes(chance.randrange(200)) + b"\r\n\r\n",
            damaged(chance, sound),
            sound[: chance.randrange(len(sound))],
            sound * 5,
            b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
            posted + b"content-length: 99\r\n\r\n{",
            posted + b"content-length: -1\r\n\r\n{}",
            posted + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
            posted + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
            posted + b"transfer-encoding: chunked\r\n\r\n5\r\n{}\r\n0\r\n\r\n",
            posted + b'expect: 100-continue\r\ncontent-length: 21\r\n\r\n{"query": "select 1"}',
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            b"\x16\x03\x01" + chance.randbytes(50),
        ]
    )
    with socket.create_connection(("127.0.0.1", web.port), timeout=20) as client:
        try:
            client.sendall(raw)
            if chance.random() < 0.2:
                return  # and is gone
            client.shutdown(socket.SHUT_WR)
            answered = b""
            while piece := client.recv(65536):
                answered += piece
        except (ConnectionResetError, BrokenPipeError):
            return
    assert not answered or answered.startswith(b"HTTP/1.1 "), answered[:200]
    assert b"Traceback" not in answered
    assert b"HTTP/1.1 500" not in answered, raw


def columns(web: HttpService) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
    connection.request("GET", "/views/totals?columns=who", None, {"authorization": f"Bearer {ANNA[0]}"})
    with contextlib.closing(connection):
        return json.loads(connection.getresponse().read()).get("rows")


@pytest.mark.timeout(900)
def test_requests(attacked: Target, web: HttpService) -> None:
    chance, client = Random(11), Client(web)
    statuses: dict[int, int] = {}
    for number in cases(grows=16):
        if number % 8 == 0:
            noise(chance, web)
            continue
        status = client.ask(chance)
        statuses[status] = statuses.get(status, 0) + 1
    client.connection.close()
    print(statuses)
    assert {200, 400, 401, 404, 405, 415} <= set(statuses)
    assert statuses[200] > sum(statuses.values()) // 10
    until(lambda: columns(web) == [{"who": "anna"}])
    until(lambda: web.app.streams == 0)
    until(lambda: sum(each.subscribers() for each in attacked.job.served.values()) == 0)
