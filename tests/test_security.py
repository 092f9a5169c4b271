"""What is there for whom, on every call of a service: views, rows, keys, cuts, pings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_tables import ordered
from guarded import (
    CALLS,
    COUNT,
    HERS,
    INTERNAL,
    MINE,
    NOBODYS,
    REFUSED,
    SEES,
    SUBTOTALS,
    THEIRS,
    WHERE,
    Guarded,
    act,
    exchange,
    near,
    outcome,
    shows,
    ticket,
    token,
)
from pyarrow import flight

import flowstate as fs
from flowstate.errors import InvalidFlow
from flowstate.runtime.pinging import ping
from flowstate.view.rights import ANYBODY
from flowstate_flight import FlightService, connect
from flowstate_flight.credentials import Credentials
from flowstate_flight.restricted import RestrictedReader
from flowstate_flight.ticket import write_keys
from flowstate_sql.session import Session


@pytest.mark.parametrize("who", SEES)
@pytest.mark.parametrize("call", CALLS | REFUSED)
def test_what_may_not_be_seen_is_not_there_on_any_call(flight_client: flight.FlightClient, who: str, call: str) -> None:
    """Forbidden and unknown answer alike, to the letter."""
    options, asks = shows(token(who)), (CALLS | REFUSED)[call]
    for view, job in WHERE.items():
        if view in SEES[who] and call in REFUSED:
            continue
        got = outcome(lambda: asks(flight_client, options, job, view), view, job)  # noqa: B023
        keyed = view != "subtotals_late" or "lookup" not in call
        if view in SEES[who] and keyed and call != "scan of a partition that is not there":
            assert got == ("there", None)
        if view not in SEES[who]:
            unknown = [(job, near(view)), (near(job), view), (near(job), near(view))]
            if job in {WHERE[each] for each in SEES[who]}:
                unknown = unknown[:1]  # the job itself is there for them
            for elsewhere, other in unknown:
                assert outcome(lambda: asks(flight_client, options, elsewhere, other), other, elsewhere) == got  # noqa: B023
            assert got[0] != "there"


def test_lists_name_what_is_there(flight_client: flight.FlightClient) -> None:
    for who, views in SEES.items():
        options = shows(token(who))
        listed = {each.descriptor.path[1].decode() for each in flight_client.list_flights(options=options)}
        assert listed == views
        status = json.loads(act(flight_client, "status", b"", options))
        assert set(status["jobs"]) == {WHERE[each] for each in views}
        kinds = {each.type for each in flight_client.list_actions(options)}
        assert kinds == {"directory", "lookup", "status", "cut"} | ({"overview", "stop"} if who == "boss" else set())
        if len(status["jobs"]) == 1:
            directory = json.loads(act(flight_client, "directory", b"", options))
            assert {each["name"] for each in directory["views"]} == views


def test_who_sees_nothing_is_told_what_everybody_is_told_where_nothing_is(flight_client: flight.FlightClient) -> None:
    with FlightService() as empty, flight.connect(empty.location) as other:
        for kind in ("directory", "cut"):
            bare = outcome(lambda: act(other, kind, b"", flight.FlightCallOptions()))  # noqa: B023
            assert outcome(lambda: act(flight_client, kind, b"", shows(token("analyst")))) == bare  # noqa: B023


def test_a_cut_is_for_who_sees_the_job(flight_client: flight.FlightClient, guarded: Guarded) -> None:
    asked: list[str] = []
    guarded.service.set_cut_handler(lambda job, timeout: asked.append(job) or {"cut": 7, "position": {}})  # type: ignore[func-returns-value]
    for who in ("anna", "clerk", "boss"):
        assert json.loads(act(flight_client, "cut", b'{"job": "billing"}', shows(token(who))))["cut"] == 7
    hidden = outcome(lambda: act(flight_client, "cut", b'{"job": "other"}', shows(token("anna"))), "other")
    assert hidden == outcome(lambda: act(flight_client, "cut", b'{"job": "othex"}', shows(token("anna"))), "othex")
    assert hidden[0] != "there"
    assert asked == ["billing"] * 3


def test_pings_and_the_exchange_between_workers_are_for_the_job_alone(
    flight_client: flight.FlightClient, guarded: Guarded
) -> None:
    command = flight.FlightDescriptor.for_command(json.dumps({"v": 1, "kind": "partition-exchange", "job": "billing"}))
    strange = flight.FlightDescriptor.for_command(json.dumps({"v": 1, "kind": "partition-exchangE", "job": "billing"}))
    served: list[bytes] = []

    def echo(asked: dict[str, Any], reader: Any, writer: Any, context: Any) -> None:
        for chunk in reader:
            served.append(chunk.app_metadata.to_pybytes())
            writer.write_metadata(chunk.app_metadata)

    def begin(descriptor: flight.FlightDescriptor, options: flight.FlightCallOptions) -> bytes:
        writer, reader = flight_client.do_exchange(descriptor, options)
        try:
            writer.write_metadata(b"rows")
            return bytes(reader.read_chunk().app_metadata.to_pybytes())
        finally:
            reader.cancel()
            with contextlib.suppress(flight.FlightError, pa.ArrowException):
                writer.close()

    guarded.service.set_exchange_handler(echo)
    assert begin(command, shows(INTERNAL)) == b"rows"
    assert act(flight_client, "ping", b"{}", shows(INTERNAL)) == b"{}"
    for who in SEES:
        refused = outcome(lambda: begin(command, shows(token(who))), "partition-exchange")  # noqa: B023
        assert refused[0] == "FlightServerError"
        assert refused == outcome(lambda: begin(strange, shows(token(who))), "partition-exchangE")  # noqa: B023
        ping = outcome(lambda: act(flight_client, "ping", b"{}", shows(token(who))), "ping")  # noqa: B023
        assert ping == outcome(lambda: act(flight_client, "pong", b"{}", shows(token(who))), "pong")  # noqa: B023
    assert served == [b"rows"]
    assert {each.type for each in flight_client.list_actions(shows(INTERNAL))} >= {"ping"}


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


def test_scans_give_the_rows_that_may_be_seen(flight_client: flight.FlightClient) -> None:
    assert scan(flight_client, "boss") == ordered(SUBTOTALS)
    assert scan(flight_client, "anna") == HERS
    assert scan(flight_client, "anna", columns=("events",)) == sorted(
        ({"events": each["events"]} for each in HERS), key=repr
    )
    wide = bytes((pc.field("events") >= 0).to_substrait(pa.schema([SUBTOTALS.schema.field("events")])))
    assert scan(flight_client, "anna", filter=wide) == HERS
    assert len(scan(flight_client, "anna", limit=1)) == 1
    theirs = bytes((pc.field("customer") == "customer-4").to_substrait(pa.schema([SUBTOTALS.schema.field("customer")])))
    assert scan(flight_client, "anna", filter=theirs) == []
    assert len(scan(flight_client, "boss", filter=theirs)) == 2


def test_a_key_that_may_not_be_seen_is_a_key_that_is_not_there(flight_client: flight.FlightClient) -> None:
    options = shows(token("anna"))
    hers = [each.num_rows for each in exchange(flight_client, options, "subtotals", MINE)]
    assert sorted(hers) == [0, 0, 2]
    theirs, nobodys = (exchange(flight_client, options, "subtotals", each) for each in (THEIRS, NOBODYS))
    assert theirs == nobodys
    assert [each.num_rows for each in theirs] == [0] * COUNT
    assert sum(each.num_rows for each in exchange(flight_client, shows(token("boss")), "subtotals", THEIRS)) == 2
    for partition in range(COUNT):
        answers = [ticket("subtotals", partition, keys=write_keys(each)) for each in (THEIRS, NOBODYS)]
        by_action = [act(flight_client, "lookup", each, options) for each in answers]
        assert by_action[0] == by_action[1]
        by_get = [flight_client.do_get(flight.Ticket(each), options).read_all() for each in answers]
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


def test_a_row_that_cannot_be_read_is_not_told_to_others(guarded: Guarded, flight_client: flight.FlightClient) -> None:
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
