"""HTTP: rows by key and whole, SQL, changes as events, rights, and clients that leave in the middle."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pyarrow as pa
import pytest
from hand_job import WHO, HandJob, Told, events, ordered_rows
from waiting import until

import flowstate as fs
from flowstate.errors import InvalidFlow, Unavailable
from flowstate.view.changes import Change
from flowstate_flight.client import FlightReader
from flowstate_http import HttpService
from flowstate_sql.served import ServedSql

ARROW = "application/vnd.apache.arrow.stream"
ANNA, ALL = fs.Access.make_token(), fs.Access.make_token()
READER = fs.Access.make_token()
ACCESS = {
    "principals": {
        "anna": {
            "tokens": [ANNA[1]],
            "grants": [{"actions": ["read", "sql"], "views": ["totals"], "rows": {"who": "anna"}}],
        },
        "all": {"tokens": [ALL[1]], "grants": [{"actions": ["read", "sql"]}]},
        "reader": {"tokens": [READER[1]], "grants": [{"actions": ["read"]}]},
    }
}


@pytest.fixture(scope="module")
def job() -> Iterator[HandJob]:
    with HandJob() as job:
        job.append("a", [(who, 10, index, "x" * index) for index, who in enumerate(WHO)])
        job.append("a", [("anna", 3700, 100, 'a "note"\n'), ("a/b c", 3700, -1, None)])
        yield job


@pytest.fixture(scope="module")
def reader(job: HandJob) -> Iterator[FlightReader]:
    with FlightReader([each.location for each in job.services]) as reader:
        yield reader


@pytest.fixture(scope="module")
def sql(reader: FlightReader) -> Iterator[ServedSql]:
    served = ServedSql(reader)
    yield served
    served.close()


@pytest.fixture(scope="module")
def service(reader: FlightReader, sql: ServedSql) -> Iterator[HttpService]:
    with HttpService(reader, sql) as service:
        yield service


@pytest.fixture(scope="module")
def guarded(reader: FlightReader, sql: ServedSql) -> Iterator[HttpService]:
    with HttpService(reader, sql, fs.Access(ACCESS)) as service:
        yield service


def ask(
    service: HttpService, path: str, body: Any = None, *, token: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        if body is not None:
            sent.setdefault("content-type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, body, sent)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def found(service: HttpService, path: str, body: Any = None, **more: Any) -> Any:
    status, _, text = ask(service, path, body, **more)
    assert status == 200, text
    return json.loads(text, parse_float=Decimal)


def refused(service: HttpService, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
    status, _, text = ask(service, path, body, **more)
    error = json.loads(text)["error"]
    assert set(error) == {"kind", "message", "facts"}
    return status, error["kind"]


def test_views_are_listed(service: HttpService) -> None:
    listed = {each["name"]: each for each in found(service, "/views")["views"]}
    assert {"totals", "hours", "hours_late", "dead_letters"} <= set(listed)
    assert listed["hours"]["keys"] == ["who", "hour", "hour_end"]
    assert listed["totals"]["columns"][0] == {"name": "who", "type": "string", "nullable": True}


def test_a_key_gives_its_rows_exactly(service: HttpService) -> None:
    answer = found(service, "/views/totals/anna")
    assert answer["rows"] == [
        {"who": "anna", "total": Decimal("100.00"), "longest": 'a "note"\n', "newest": 'a "note"\n'}
    ]
    assert b'"total":100.00' in ask(service, "/views/totals/anna")[2]  # every digit
    assert answer["answer"]["live"]
    assert answer["answer"]["position"] == {"a": [len(WHO) + 2, 0]}
    hours = found(service, "/views/hours/anna")["rows"]
    assert sorted(each["hour"] for each in hours) == ["1970-01-01T00:00:00Z", "1970-01-01T01:00:00Z"]
    one = found(service, "/views/hours/anna/1970-01-01T01:00:00Z?columns=total,hour")["rows"]
    assert one == [{"total": Decimal("100.00"), "hour": "1970-01-01T01:00:00Z"}]


def test_keys_that_a_path_can_hardly_hold(service: HttpService) -> None:
    assert found(service, "/views/totals/a%2Fb%20c")["rows"][0]["who"] == "a/b c"
    assert found(service, "/views/totals?key=" + quote('["a/b c"]'))["rows"][0]["who"] == "a/b c"
    assert found(service, "/views/totals?key=[null]")["rows"][0]["who"] is None


def test_a_view_is_read_in_whole_and_in_part(service: HttpService, job: HandJob) -> None:
    rows = found(service, "/views/totals")["rows"]
    assert ordered_rows(rows) == ordered_rows(job.rows("totals"))
    some = found(service, "/views/totals?columns=who&limit=3")
    assert len(some["rows"]) == 3
    assert all(set(each) == {"who"} for each in some["rows"])
    assert found(service, "/views/totals?limit=0")["rows"] == []
    assert found(service, "/views/dead_letters")["rows"] == []


def test_arrow_is_given_to_who_asks_for_it(service: HttpService, job: HandJob) -> None:
    for path, body in (("/views/totals", None), ("/sql", {"query": "select * from totals"})):
        status, headers, raw = ask(service, path, body, accept=ARROW)
        assert (status, headers["content-type"]) == (200, ARROW)
        assert ordered_rows(pa.ipc.open_stream(raw).read_all().to_pylist()) == ordered_rows(job.rows("totals"))


def test_an_answer_says_how_fresh_it_is(service: HttpService, job: HandJob) -> None:
    _, headers, _ = ask(service, "/views/totals/anna")
    assert headers["flowstate-origin"] == "live"
    assert headers["flowstate-as-of"].endswith("Z")
    assert json.loads(headers["flowstate-position"]) == {"a": [len(WHO) + 2, 0]}
    assert found(service, "/views/totals/anna?max_age=0&at_least=" + quote('{"a": 8}'))["rows"]
    with FlightReader([each.location for each in job.services], patience=0.3) as hurried, HttpService(hurried) as other:
        status, headers, text = ask(other, "/views/totals/anna?at_least=" + quote('{"a": 1000}'))
    assert (status, json.loads(text)["error"]["kind"]) == (503, "Behind")
    assert int(headers["retry-after"]) >= 1


def test_sql(service: HttpService) -> None:
    answer = found(service, "/sql", {"query": "select who, total from totals where who = ?", "params": ["anna"]})
    assert answer["rows"] == [{"who": "anna", "total": Decimal("100.00")}]
    assert answer["answers"]["totals"]["live"]
    many = found(service, "/sql", {"query": "select range as n from range(20000)"})["rows"]
    assert [each["n"] for each in many] == list(range(20000))
    assert found(service, "/sql", {"query": "select 1 as one where false"})["rows"] == []
    assert refused(service, "/sql", {"query": "selec 1"}) == (400, "InvalidFlow")
    assert refused(service, "/sql", {"query": "select * from nothing"}) == (400, "InvalidFlow")
    assert refused(service, "/sql", {"query": "select 1", "more": 1}) == (400, "InvalidFlow")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404), ("/nothing", 404), ("/views/nothing", 404), ("/views/nothing/anna", 404), ("/views/nothing/changes", 404),
        ("/views/totals/nobody", 404), ("/views/totals/", 404), ("/views//x", 404), ("/views/totals?limit=-1", 400),
        ("/views/totals?limit=x", 400), ("/views/totals?columns=nothing", 400), ("/views/totals?column=who", 400),
        ("/views/totals?limit=1&limit=2", 400), ("/views/totals/anna/b", 400), ("/views/hours/anna/yesterday", 400),
        ("/views/totals?max_age=old", 400), ("/views/totals?at_least=[]", 400), ("/views/totals?consistent=1", 400),
        ("/views/totals?key=anna", 400), ("/views/totals?key=[]", 400), ("/views/totals/%FF", 400),
        ("/views/totals/changes?resume=nothing", 400), ("/views/totals/changes?columns=total", 400), ("/sql", 405),
    ],
)  # fmt: skip
def test_what_is_not_there_or_not_right_is_said(service: HttpService, path: str, status: int) -> None:
    assert refused(service, path)[0] == status


def test_a_request_of_another_kind_is_refused(service: HttpService) -> None:
    assert refused(service, "/views/totals", b"{}")[0] == 405
    assert refused(service, "/sql", b"select 1", content_type="text/plain")[0] == 415
    assert refused(service, "/sql", b"x" * (5 << 20))[0] == 413
    assert refused(service, "/views", host="evil.example.org")[0] == 403


class Events:
    """A client of Server-Sent Events, as a browser's."""

    def __init__(self, service: HttpService, path: str, identity: str = "", token: str | None = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        headers = {"last-event-id": identity} if identity else {}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        self.connection.request("GET", path, headers=headers)
        self.response = self.connection.getresponse()
        self.identity = identity

    def __enter__(self) -> Events:
        assert self.response.status == 200, self.response.read()
        assert self.response.getheader("content-type", "").startswith("text/event-stream")
        return self

    def __exit__(self, *exception: object) -> None:
        self.response.close()
        self.connection.close()

    def next(self) -> tuple[str, Any]:
        kind, data = "", ""
        while True:
            line = self.response.readline().decode().rstrip("\n")
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                data = value
            elif name in ("id", "id:"):
                self.identity = value
            elif line == "" and kind:
                return kind, json.loads(data, parse_float=Decimal)

    def told(self, table: Told, wanted: int) -> None:
        """Until every split stands at `wanted`."""
        while True:
            kind, data = self.next()
            if kind == "position":
                if all(place[0] == wanted for part in data["answer"]["parts"] for place in part["position"].values()):
                    return
                continue
            assert kind in ("reset", "rows", "removed"), data
            rows = data.get("rows", data.get("keys", []))
            batch = pa.RecordBatch.from_pylist(rows) if rows else pa.record_batch({"none": pa.array([], pa.int8())})
            table.take(Change(kind, data["partition"], batch))


def test_changes_come_as_events_and_go_on_where_they_ended() -> None:
    with (
        HandJob() as job,
        FlightReader([each.location for each in job.services]) as reader,
        HttpService(reader) as service,
    ):
        chance, table, identity = random.Random(4), Told(["who"]), ""
        for step in range(4):
            job.append("a", events(chance, 10))
            with Events(service, "/views/totals/changes", identity) as stream:
                stream.told(table, len(job.log["a"]))
                job.append("a", events(chance, 10))
                stream.told(table, len(job.log["a"]))
                identity = stream.identity
            assert ordered_rows(table.rows()) == ordered_rows(job.rows("totals")), step
        assert table.resets == 2
        with Events(service, "/views/totals/changes?columns=who,total&key=" + quote('["anna"]')) as stream:
            kinds = [stream.next() for _ in range(3)]
        assert [each[0] for each in kinds] == ["reset", "rows", "position"]
        assert [set(row) for row in kinds[1][1]["rows"]] == [{"who", "total"}]
        until(lambda: sum(each.subscribers() for each in job.served.values()) == 0)  # who has gone is gone everywhere


def test_rights_hold_on_every_path(guarded: HttpService, job: HandJob) -> None:
    assert refused(guarded, "/views")[0] == 401
    assert ask(guarded, "/views")[1]["www-authenticate"] == 'Basic realm="flowstate", charset="UTF-8", Bearer'
    assert refused(guarded, "/views", token="fst_wrong")[0] == 401
    assert len(found(guarded, "/views", token=ALL[0])["views"]) > 1
    assert [each["name"] for each in found(guarded, "/views", token=ANNA[0])["views"]] == ["totals"]
    assert [row["who"] for row in found(guarded, "/views/totals", token=ANNA[0])["rows"]] == ["anna"]
    assert [row["who"] for row in found(guarded, "/views/totals/anna", token=ANNA[0])["rows"]] == ["anna"]
    hidden = [ask(guarded, f"/views/{path}", token=ANNA[0]) for path in ("totals/bert", "totals/none", "hours/anna")]
    assert [each[0] for each in hidden] == [404, 404, 404]
    assert hidden[0][2] == hidden[1][2]  # the same, whether or not the key is there
    assert found(guarded, "/sql", {"query": "select who from totals"}, token=ANNA[0])["rows"] == [{"who": "anna"}]
    assert refused(guarded, "/sql", {"query": "select 1"}, token=READER[0])[0] == 403
    with Events(guarded, "/views/totals/changes", token=ANNA[0]) as stream:
        table = Told(["who"])
        stream.told(table, len(job.log["a"]))
        assert [row["who"] for row in table.rows()] == ["anna"]
    assert refused(guarded, "/views/hours/changes", token=ANNA[0])[0] == 404


def test_it_listens_elsewhere_only_with_an_access(reader: FlightReader) -> None:
    with pytest.raises(InvalidFlow, match="everybody"):
        HttpService(reader, host="0.0.0.0")
    HttpService(reader, host="0.0.0.0", access=fs.Access(ACCESS)).close()
    with HttpService(reader) as service, pytest.raises(Unavailable, match="listen"):
        HttpService(reader, port=service.port)


def test_a_job_is_served_by_the_address_of_a_worker(job: HandJob) -> None:
    with fs.http(job.services[0].location) as served:
        with urlopen(f"{served.address}/views/totals/anna", timeout=20) as response:
            assert json.load(response)["rows"][0]["who"] == "anna"
        with pytest.raises(Unavailable, match="listen"):
            fs.http(job.services[0].location, port=served.port)
    served.close()
    with pytest.raises(InvalidFlow, match="everybody"):
        fs.http(job.services[0].location, host="0.0.0.0")
    with pytest.raises(InvalidFlow, match="where the job is"):
        fs.http()


class Endless:
    """A query that gives rows for as long as anybody takes them."""

    def __init__(self) -> None:
        self.schema = pa.schema({"n": pa.int64()})
        self.answers: dict[str, Any] = {}
        self.cancelled = threading.Event()
        self.gone: Any = None

    def run(self, query: str, params: Any = None, *, cancelled: Any = None, **more: Any) -> Endless:
        self.gone = cancelled
        return self

    def batches(self) -> Iterator[pa.RecordBatch]:
        number = 0
        while not self.gone():
            yield pa.record_batch({"n": [number]})
            number += 1
            time.sleep(0.001)

    def cancel(self) -> None:
        self.cancelled.set()


def test_a_query_ends_when_who_asked_has_gone(reader: FlightReader) -> None:
    endless = Endless()
    with HttpService(reader, endless) as service:  # type: ignore[arg-type]
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            body = b'{"query": "select 1"}'
            head = f"POST /sql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            assert not endless.cancelled.is_set()
        assert endless.cancelled.wait(10)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(service: HttpService) -> None:
    def curl(*arguments: str) -> Any:
        done = subprocess.run(["curl", "-sS", "--max-time", "20", *arguments], capture_output=True, check=True)
        return json.loads(done.stdout, parse_float=Decimal)

    assert curl(f"{service.address}/views/totals/anna")["rows"][0]["total"] == Decimal("100.00")
    body = json.dumps({"query": "select count(*) as n from totals"})
    asked = curl("-H", "content-type: application/json", "-d", body, f"{service.address}/sql")
    assert asked["rows"] == [{"n": len(WHO) + 1}]
