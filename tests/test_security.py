"""Who is let in, what is there for whom, on every call of a service; certificates; and that no secret is ever shown."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import pickle
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from certificates import Authority
from flight_tables import TABLES, ordered
from guarded import COUNT, HASHED, INTERNAL, PASSWORD, Guarded, config, shows, token
from pyarrow import flight

import flowstate as fs
from flowstate.clock import ManualClock
from flowstate.errors import InvalidFlow
from flowstate.runtime.pinging import ping
from flowstate.view.rights import ANYBODY
from flowstate_flight import FlightReader, FlightService, auth, connect
from flowstate_flight.credentials import Credentials
from flowstate_flight.restricted import RestrictedReader
from flowstate_flight.ticket import Ticket, write_keys
from flowstate_sql.session import Session

MINE = pa.record_batch({"customer": ["customer-3"], "kind": ["b"]})
THEIRS = pa.record_batch({"customer": ["customer-4"], "kind": ["a"]})
NOBODYS = pa.record_batch({"customer": ["customer-x"], "kind": ["a"]})
SUBTOTALS = TABLES["subtotals"]
HERS = ordered(SUBTOTALS.filter(pc.field("customer") == "customer-3"))


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    guarded = Guarded()
    yield guarded
    guarded.close()


@pytest.fixture(scope="module")
def client(guarded: Guarded) -> Iterator[flight.FlightClient]:
    with flight.connect(guarded.service.location) as client:
        yield client


# every call, by every principal


def path(*names: str) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_path(*names)


def ticket(view: str, partition: int | None = 0, *, job: str = "billing", **fields: Any) -> bytes:
    return Ticket(job, view, partition, **fields).to_bytes()


def act(client: flight.FlightClient, kind: str, body: bytes, options: flight.FlightCallOptions) -> bytes:
    (result,) = client.do_action(flight.Action(kind, body), options)
    return bytes(result.body.to_pybytes())


def exchange(
    client: flight.FlightClient,
    options: flight.FlightCallOptions,
    view: str,
    keys: pa.RecordBatch,
    job: str = "billing",
) -> list[pa.RecordBatch]:
    """The rows of each partition."""
    command = json.dumps({"v": 1, "kind": "lookup", "job": job, "view": view})
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(command), options)
    found = []
    try:
        writer.begin(keys.schema)
        for partition in range(COUNT if job == "billing" else 1):
            writer.write_with_metadata(keys, json.dumps({"partition": partition, "id": 1}).encode())
            chunk = reader.read_chunk()
            reply = json.loads(chunk.app_metadata.to_pybytes())
            if "error" in reply:
                raise flight.FlightServerError(json.dumps(reply["error"]))
            found.append(chunk.data)
    finally:
        reader.cancel()
        with contextlib.suppress(flight.FlightError, pa.ArrowException):
            writer.close()
    return found


Call = Callable[[flight.FlightClient, flight.FlightCallOptions, str, str], Any]
#: Every way to name a view: (client, options, job, view) -> whether, or how much, something is there.
CALLS: dict[str, Call] = {
    "flight info by path": lambda c, o, job, view: c.get_flight_info(path(view), o).schema.names,
    "flight info by job and path": lambda c, o, job, view: c.get_flight_info(path(job, view), o).schema.names,
    "flight info by command": lambda c, o, job, view: (
        c.get_flight_info(flight.FlightDescriptor.for_command(ticket(view, None, job=job)), o).schema.names
    ),
    "schema": lambda c, o, job, view: c.get_schema(path(view), o).schema.names,
    "scan": lambda c, o, job, view: c.do_get(flight.Ticket(ticket(view, job=job)), o).read_all().num_rows,
    "scan in an epoch": lambda c, o, job, view: (
        c.do_get(flight.Ticket(ticket(view, job=job, epoch=4 if job == "billing" else 1)), o).read_all().num_rows
    ),
    "scan of a partition that is not there": lambda c, o, job, view: c.do_get(
        flight.Ticket(ticket(view, 99, job=job)), o
    ).read_all(),
    "lookup by do_get": lambda c, o, job, view: (
        c.do_get(flight.Ticket(ticket(view, job=job, keys=write_keys(MINE))), o).read_all().num_rows
    ),
    "lookup by action": lambda c, o, job, view: len(act(c, "lookup", ticket(view, job=job, keys=write_keys(MINE)), o)),
    "lookup by exchange": lambda c, o, job, view: len(exchange(c, o, view, MINE, job)),
}


def outcome(call: Callable[[], Any], *names: str) -> tuple[str, Any]:
    """What comes of it: there, or the error with `names` taken out, and whatever tells it from another."""
    try:
        call()
    except (flight.FlightError, pa.ArrowException) as error:  # pyarrow's get_schema raises no Flight error
        text, _, _ = str(error).partition(" gRPC client debug context")  # which says how far the client had come
        extra = bytes(getattr(error, "extra_info", None) or b"").decode()
        for each in names:
            for quote in "'\"":
                text, extra = (whole.replace(f"{quote}{each}{quote}", "NAME") for whole in (text, extra))
        return type(error).__name__, (text, extra)
    return "there", None


SEES = {
    "boss": {"subtotals", "subtotals_late", "secrets"},
    "anna": {"subtotals"},
    "clerk": {"subtotals_late"},
    "analyst": set(),
}
WHERE = {"subtotals": "billing", "subtotals_late": "billing", "secrets": "other"}


@pytest.mark.parametrize("who", SEES)
@pytest.mark.parametrize("call", CALLS)
def test_what_may_not_be_seen_is_not_there_on_any_call(client: flight.FlightClient, who: str, call: str) -> None:
    """Forbidden and unknown answer alike, to the letter; unknown names are of the same length, so that hints are equally near."""
    options, asks = shows(token(who)), CALLS[call]
    for view, job in WHERE.items():
        got = outcome(lambda: asks(client, options, job, view), view, job)  # noqa: B023
        keyed = view != "subtotals_late" or "lookup" not in call
        if view in SEES[who] and keyed and call != "scan of a partition that is not there":
            assert got == ("there", None)
        if view not in SEES[who]:
            unknown = [(job, near(view)), (near(job), view), (near(job), near(view))]
            if job in {WHERE[each] for each in SEES[who]}:
                unknown = unknown[:1]  # the job itself is there for them
            for elsewhere, other in unknown:
                assert outcome(lambda: asks(client, options, elsewhere, other), other, elsewhere) == got  # noqa: B023
            assert got[0] != "there"


def near(name: str) -> str:
    """A name that is nobody's, and for hints as near to others as `name`."""
    return name[:-1] + "x"


def test_lists_name_what_is_there(client: flight.FlightClient) -> None:
    for who, views in SEES.items():
        options = shows(token(who))
        listed = {each.descriptor.path[1].decode() for each in client.list_flights(options=options)}
        assert listed == views
        status = json.loads(act(client, "status", b"", options))
        assert set(status["jobs"]) == {WHERE[each] for each in views}
        kinds = {each.type for each in client.list_actions(options)}
        assert kinds == {"directory", "lookup", "status", "cut"}
        if len(status["jobs"]) == 1:
            directory = json.loads(act(client, "directory", b"", options))
            assert {each["name"] for each in directory["views"]} == views


def test_who_sees_nothing_is_told_what_everybody_is_told_where_nothing_is(client: flight.FlightClient) -> None:
    with FlightService() as empty, flight.connect(empty.location) as other:
        for kind in ("directory", "cut"):
            bare = outcome(lambda: act(other, kind, b"", flight.FlightCallOptions()))  # noqa: B023
            assert outcome(lambda: act(client, kind, b"", shows(token("analyst")))) == bare  # noqa: B023


def test_a_cut_is_for_who_sees_the_job(client: flight.FlightClient, guarded: Guarded) -> None:
    asked: list[str] = []
    guarded.service.set_cut_handler(lambda job, timeout: asked.append(job) or {"cut": 7, "position": {}})  # type: ignore[func-returns-value]
    for who in ("anna", "clerk", "boss"):
        assert json.loads(act(client, "cut", b'{"job": "billing"}', shows(token(who))))["cut"] == 7
    hidden = outcome(lambda: act(client, "cut", b'{"job": "other"}', shows(token("anna"))), "other")
    assert hidden == outcome(lambda: act(client, "cut", b'{"job": "othex"}', shows(token("anna"))), "othex")
    assert hidden[0] != "there"
    assert asked == ["billing"] * 3


def test_pings_and_the_exchange_between_workers_are_for_the_job_alone(
    client: flight.FlightClient, guarded: Guarded
) -> None:
    command = flight.FlightDescriptor.for_command(json.dumps({"v": 1, "kind": "partition-exchange", "job": "billing"}))
    strange = flight.FlightDescriptor.for_command(json.dumps({"v": 1, "kind": "partition-exchangE", "job": "billing"}))
    served: list[bytes] = []

    def echo(asked: dict[str, Any], reader: Any, writer: Any, context: Any) -> None:
        for chunk in reader:
            served.append(chunk.app_metadata.to_pybytes())
            writer.write_metadata(chunk.app_metadata)

    def begin(descriptor: flight.FlightDescriptor, options: flight.FlightCallOptions) -> bytes:
        writer, reader = client.do_exchange(descriptor, options)
        try:
            writer.write_metadata(b"rows")
            return bytes(reader.read_chunk().app_metadata.to_pybytes())
        finally:
            reader.cancel()
            with contextlib.suppress(flight.FlightError, pa.ArrowException):
                writer.close()

    guarded.service.set_exchange_handler(echo)
    assert begin(command, shows(INTERNAL)) == b"rows"
    assert act(client, "ping", b"{}", shows(INTERNAL)) == b"{}"
    for who in SEES:
        refused = outcome(lambda: begin(command, shows(token(who))), "partition-exchange")  # noqa: B023
        assert refused[0] == "FlightServerError"
        assert refused == outcome(lambda: begin(strange, shows(token(who))), "partition-exchangE")  # noqa: B023
        ping = outcome(lambda: act(client, "ping", b"{}", shows(token(who))), "ping")  # noqa: B023
        assert ping == outcome(lambda: act(client, "pong", b"{}", shows(token(who))), "pong")  # noqa: B023
    assert served == [b"rows"]
    assert {each.type for each in client.list_actions(shows(INTERNAL))} >= {"ping"}


def test_processes_of_the_job_reach_each_other_by_their_own_token(guarded: Guarded) -> None:
    place = guarded.service.location
    assert ping(place, Credentials(token=INTERNAL), number=1) == {}
    for stranger in (Credentials(), Credentials(token=token("boss")), Credentials(token="x")):
        assert ping(place, stranger, number=1) is None


# rows


def scan(client: flight.FlightClient, who: str, **fields: Any) -> list[dict[str, object]]:
    asked = [ticket("subtotals", each, **fields) for each in range(COUNT)]
    tables = [client.do_get(flight.Ticket(each), shows(token(who))).read_all() for each in asked]
    return ordered(pa.concat_tables([each.replace_schema_metadata() for each in tables]))


def test_scans_give_the_rows_that_may_be_seen(client: flight.FlightClient) -> None:
    assert scan(client, "boss") == ordered(SUBTOTALS)
    assert scan(client, "anna") == HERS
    assert scan(client, "anna", columns=("events",)) == sorted(({"events": each["events"]} for each in HERS), key=repr)
    wide = bytes((pc.field("events") >= 0).to_substrait(pa.schema([SUBTOTALS.schema.field("events")])))
    assert scan(client, "anna", filter=wide) == HERS
    assert len(scan(client, "anna", limit=1)) == 1
    theirs = bytes((pc.field("customer") == "customer-4").to_substrait(pa.schema([SUBTOTALS.schema.field("customer")])))
    assert scan(client, "anna", filter=theirs) == []
    assert len(scan(client, "boss", filter=theirs)) == 2


def test_a_key_that_may_not_be_seen_is_a_key_that_is_not_there(client: flight.FlightClient) -> None:
    options = shows(token("anna"))
    hers = [each.num_rows for each in exchange(client, options, "subtotals", MINE)]
    assert sorted(hers) == [0, 0, 2]
    theirs, nobodys = (exchange(client, options, "subtotals", each) for each in (THEIRS, NOBODYS))
    assert theirs == nobodys
    assert [each.num_rows for each in theirs] == [0] * COUNT
    assert sum(each.num_rows for each in exchange(client, shows(token("boss")), "subtotals", THEIRS)) == 2
    for partition in range(COUNT):
        answers = [ticket("subtotals", partition, keys=write_keys(each)) for each in (THEIRS, NOBODYS)]
        by_action = [act(client, "lookup", each, options) for each in answers]
        assert by_action[0] == by_action[1]
        by_get = [client.do_get(flight.Ticket(each), options).read_all() for each in answers]
        assert by_get[0].equals(by_get[1], check_metadata=True)
        assert by_get[0].num_rows == 0


def test_readers_and_sql_see_the_same(guarded: Guarded) -> None:
    """A reader with a token of hers, and one of everybody's that is restricted to her, are the same to her."""
    place = guarded.service.location
    with connect(place, token=token("anna")) as hers, connect(place, "billing", token=token("boss")) as whole:
        restricted = RestrictedReader(whole, guarded.access.of_token(token("anna")) or ANYBODY)
        for reader in (hers, restricted):
            assert reader.views() == ["subtotals"]
            assert list(reader.directory().views) == ["subtotals"]
            assert ordered(reader.scan("subtotals")) == HERS
            assert reader.scan("subtotals", ["events"], pc.field("customer") == "customer-4").num_rows == 0
            assert reader.scan("subtotals", ["events"], pc.field("events") > 0, limit=1).schema.names == ["events"]
            assert ordered(reader.lookup("subtotals", [("customer-3", "b"), ("customer-4", "a")])) == HERS
            assert reader.lookup("subtotals", ("customer-4", "a"), ["total"]).num_rows == 0
            with pytest.raises(InvalidFlow, match="has no view 'subtotals_late'; did you mean 'subtotals'"):
                reader.scan("subtotals_late")
            session = Session(reader)
            sums = "select count(*), sum(events) from subtotals"
            assert session.sql(sums).fetchall() == [(2, sum(each["events"] for each in HERS))]  # type: ignore[misc]
            assert session.sql("select * from subtotals where customer <> 'customer-3'").fetchall() == []
            with pytest.raises(InvalidFlow) as unknown:
                session.sql("select * from subtotals_late")
            assert "late" not in str(unknown.value).replace("subtotals_late", "")
            session.close()


def test_a_condition_of_the_asker_meets_no_row_of_others(guarded: Guarded) -> None:
    """Dividing by zero in a row of another would tell that there is one."""
    with connect(guarded.service.location, "billing", token=token("boss")) as whole:
        hers = RestrictedReader(whole, guarded.access.of_token(token("anna")) or ANYBODY)
        for number in (4, 5, 1000):  # of customer-4, of customer-5, of nobody
            divides = pc.scalar(1) / (pc.field("events") - number) != 7
            assert ordered(hers.scan("subtotals", filter=divides)) == HERS
        with pytest.raises(pa.ArrowInvalid, match="divide by zero"):
            whole.scan("subtotals", filter=pc.scalar(1) / (pc.field("events") - 4) != 7)


def test_a_row_that_cannot_be_read_is_not_told_to_others(guarded: Guarded, client: flight.FlightClient) -> None:
    class Broken:
        """The sum of customer-4 does not fit its type."""

        def __init__(self, whole: Any) -> None:
            self.whole, self.job, self.partition, self.epoch = whole, whole.job, whole.partition, whole.epoch + 1

        def error(self) -> InvalidFlow:
            return InvalidFlow("a result does not fit its type", key={"customer": "customer-4"})

        def scan(self, *arguments: Any) -> Any:
            schema, batches, answer = self.whole.scan(*arguments)

            def failing() -> Iterator[pa.RecordBatch]:
                yield from batches
                raise self.error()

            return schema, failing(), answer

        def lookup(self, view: str, keys: pa.RecordBatch) -> Any:
            if "customer-4" in keys.column("customer").to_pylist():
                raise self.error()
            return self.whole.lookup(view, keys)

    whole = Guarded()
    for each in whole.partitions:
        whole.service.register(Broken(each))  # type: ignore[arg-type]
    with flight.connect(whole.service.location) as one:
        raw = flight.Ticket(ticket("subtotals"))
        with pytest.raises(flight.FlightServerError, match="customer-4"):
            one.do_get(raw, shows(token("boss"))).read_all()
        with pytest.raises(flight.FlightServerError, match="cannot be read now") as error:
            one.do_get(raw, shows(token("anna"))).read_all()
        assert "customer-4" not in str(error.value) + repr(error.value.extra_info)
        assert [each.num_rows for each in exchange(one, shows(token("anna")), "subtotals", THEIRS)] == [0] * COUNT
        assert sum(each.num_rows for each in exchange(one, shows(token("anna")), "subtotals", MINE)) == 2
    whole.close()


def test_rights_that_do_not_fit_the_view_give_nothing(guarded: Guarded) -> None:
    made, hashed = fs.Access.make_token()
    grants = [{"actions": ["read"], "rows": {"customer": "customer-3"}}]
    access = fs.Access({"principals": {"anna": {"tokens": [hashed], "grants": grants}}})
    served = Guarded(access=access)
    with flight.connect(served.service.location) as client:
        with pytest.raises(flight.FlightServerError, match="no such columns as your rights ask for"):
            client.do_get(flight.Ticket(ticket("subtotals_late")), shows(made)).read_all()
        assert client.do_get(flight.Ticket(ticket("subtotals")), shows(made)).read_all().num_rows in (0, 2)
    served.close()


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
def test_what_is_wrong_is_refused_in_the_same_words(client: flight.FlightClient, what: str) -> None:
    options = WRONG[what]
    refused(lambda: list(client.list_flights(options=options)))
    refused(lambda: client.get_flight_info(path("subtotals"), options))
    refused(lambda: client.get_schema(path("subtotals"), options))
    refused(lambda: client.do_get(flight.Ticket(ticket("subtotals")), options).read_all())
    refused(lambda: list(client.list_actions(options)))
    for kind in ("directory", "lookup", "status", "cut", "ping", "nonsense"):
        refused(lambda: act(client, kind, b"", options))  # noqa: B023
    refused(lambda: client.do_exchange(flight.FlightDescriptor.for_command(b"{}"), options)[1].read_chunk())
    refused(lambda: client.do_put(path("subtotals"), MINE.schema, options)[0].close())


def test_a_login_gives_a_token_and_tells_nothing_when_it_fails(client: flight.FlightClient) -> None:
    given = client.authenticate_basic_token("anna", PASSWORD)
    seen = client.list_flights(options=flight.FlightCallOptions(headers=[given]))
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
            client.authenticate_basic_token(user, password)
        texts.add(str(error.value))
    assert len(texts) == 1


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


# the file


FILE = """
login = "2h"
[principals.dashboard]
tokens = ["{token}"]
[[principals.dashboard.grants]]
actions = ["read", "sql"]
views = ["subtotals"]
[[principals.dashboard.grants]]
actions = ["read"]
views = ["totals"]
rows = {{region = ["north", "south"], year = 2026, closed = true, day = 2026-01-02}}
[principals.anna]
password = "{password}"
expires = 2126-01-01
[[principals.anna.grants]]
actions = ["control"]
"""


def test_a_file(tmp_path: Path) -> None:
    made, hashed = fs.Access.make_token()
    file = tmp_path / "access.toml"
    file.write_text(FILE.format(token=hashed, password=HASHED))
    access = fs.Access.from_file(file)
    dashboard = access.of_token(made)
    assert dashboard is not None
    assert dashboard.views(["subtotals", "totals", "others"]) == ["subtotals", "totals"]
    assert dashboard.may("sql", "subtotals")
    assert not dashboard.may("sql", "totals")
    assert not dashboard.may("control")
    assert dashboard.rows("subtotals") is None
    day = dt.date(2026, 1, 2)
    table = pa.table({
        "region": ["north", "south", "west", None], "year": pa.array([2026] * 4, pa.int16()), "closed": [True] * 4, "day": [day] * 4,
    })  # fmt: skip
    assert table.filter(dashboard.rows("totals")).num_rows == 2
    assert access.login("anna", PASSWORD) is not None
    assert access.login("dashboard", PASSWORD) is None
    again = pickle.loads(pickle.dumps(access))
    assert again.fingerprint == access.fingerprint == fs.Access.from_file(file).fingerprint
    assert again.of_token(made).name == "dashboard"


SOUND = {"tokens": [fs.Access.make_token()[1]], "grants": [{"actions": ["read"]}]}
BAD: dict[str, tuple[Any, str]] = {
    "no principals": ({}, "no principals"),
    "a field": ({"principals": {"a": SOUND}, "acess": 1}, "unknown field 'acess'"),
    "a short key": ({"principals": {"a": SOUND}, "signing_key": "short-SECRET"}, "at least 32"),
    "a field of a principal": ({"principals": {"a": {**SOUND, "token": "SECRET"}}}, "did you mean 'tokens'"),
    "a plain token": ({"principals": {"a": {**SOUND, "tokens": ["SECRET"]}}}, "holds hashes"),
    "a plain password": ({"principals": {"a": {**SOUND, "password": "SECRET"}}}, "holds a hash"),
    "a dear password": ({"principals": {"a": {**SOUND, "password": "scrypt:1099511627776:8:1:SECRETA=:SECR"}}}, "holds a hash"),
    "no grants": ({"principals": {"a": {"tokens": SOUND["tokens"]}}}, "'grants' is a list"),
    "an unknown action": ({"principals": {"a": {"grants": [{"actions": ["SECRET"]}]}}}, "are some of read, sql, control"),
    "no actions": ({"principals": {"a": {"grants": [{"views": ["x"]}]}}}, "are some of read, sql, control"),
    "rows of no sense": ({"principals": {"a": {"grants": [{"actions": ["read"], "rows": {"x": {"SECRET": 1}}}]}}}, "plain values"),
    "no rows": ({"principals": {"a": {"grants": [{"actions": ["read"], "rows": {}}]}}}, "names columns"),
    "views of no sense": ({"principals": {"a": {"grants": [{"actions": ["read"], "views": "SECRET"}]}}}, "list of texts"),
    "expires": ({"principals": {"a": {**SOUND, "expires": "SECRET"}}}, "date or a time"),
    "two with one token": ({"principals": {"a": SOUND, "b": SOUND}}, "belongs to two"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_wrong_says_where_and_shows_nothing(what: str) -> None:
    given, says = BAD[what]
    with pytest.raises(InvalidFlow, match=says) as error:
        fs.Access(given)
    shown = str(error.value) + repr(error.value.facts)
    assert "SECRET" not in shown


def test_a_file_that_is_no_toml_shows_nothing(tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    file.write_text('signing_key = "SECRET-SECRET\n')
    with pytest.raises(InvalidFlow, match="no TOML") as error:
        fs.Access.from_file(file)
    assert "SECRET" not in str(error.value)
    with pytest.raises(InvalidFlow, match="cannot be read"):
        fs.Access.from_file(tmp_path / "none.toml")
    with pytest.raises(InvalidFlow, match="at least 8"):
        fs.Access.hash_password("short")


# secrets


def test_no_secret_is_shown(guarded: Guarded, client: flight.FlightClient, caplog: pytest.LogCaptureFixture) -> None:
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
            note(lambda: call(client, options, "billing", "subtotals"))  # noqa: B023
        note(lambda: act(client, "status", b"", options))  # noqa: B023
        note(lambda: act(client, "nonsense", b"", options))  # noqa: B023
    for options in WRONG.values():
        note(lambda: act(client, "status", b"", options))  # noqa: B023
    note(lambda: client.authenticate_basic_token("anna", PASSWORD + "x"))
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


def test_a_token_is_made_from_the_command_line() -> None:
    """As the documentation says it."""
    program = "import flowstate as fs; print(*fs.Access.make_token())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    made, hashed = done.stdout.split()
    access = fs.Access({"principals": {"a": {"tokens": [hashed], "grants": [{"actions": ["read"]}]}}})
    assert access.of_token(made) is not None
