"""The actions by which a job is looked at as a whole, and ended: who may, at a worker and at a gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS
from pyarrow import flight

from flowstate.errors import InvalidFlow
from flowstate.view.access import Access
from flowstate_flight.actions import CONTROL
from flowstate_flight.client import FlightReader
from flowstate_flight.controlling import controlled
from flowstate_flight.gateway import Gateway
from flowstate_flight.server import FlightService

COUNT = 2
BOSS, READER = Access.make_token(), Access.make_token()
ACCESS = {
    "principals": {
        "boss": {"tokens": [BOSS[1]], "grants": [{"actions": ["read", "sql", "control"]}]},
        "reader": {"tokens": [READER[1]], "grants": [{"actions": ["read", "sql"]}]},
    }
}


def supervised(service: FlightService) -> list[tuple[str, str]]:
    """What its supervisor is asked from now on."""
    asked: list[tuple[str, str]] = []

    def control(kind: str, job: str) -> dict[str, str]:
        asked.append((kind, job))
        return {"name": job, "state": "stopped" if kind == "stop" else "running"}

    for each in partitions_of("billing", VIEWS, TABLES, COUNT):
        service.register(each)
    service.set_directory(directory_of("billing", VIEWS, [service.location] * COUNT))
    service.set_control_handler(control)
    return asked


@pytest.fixture
def worker() -> Iterator[tuple[FlightService, list[tuple[str, str]]]]:
    with FlightService(access=Access(ACCESS)) as service:
        yield service, supervised(service)


def test_only_who_may_control_a_job_is_answered(worker: tuple[FlightService, list[tuple[str, str]]]) -> None:
    service, asked = worker
    with Gateway(FlightReader(service.location, token=BOSS[0]), access=Access(ACCESS)) as gateway:
        for address in (service.location, gateway.address):
            with FlightReader(address, token=READER[0]) as reader:
                for kind in CONTROL:
                    with pytest.raises(InvalidFlow, match="there is no action 'overview'"):
                        controlled(reader, kind)
            assert asked == []
            with FlightReader(address, token=BOSS[0]) as reader:
                assert controlled(reader, "overview") == {"name": "billing", "state": "running"}
                assert controlled(reader, "stop")["state"] == "stopped"
            assert asked.count(("stop", "billing")) == 1
            asked.clear()
            for token, seen in ((READER[0], set()), (BOSS[0], set(CONTROL))):
                with flight.connect(address) as client:
                    options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())])
                    assert {each.type for each in client.list_actions(options)} & set(CONTROL) == seen


def test_what_everybody_may_read_nobody_stops_from_elsewhere() -> None:
    with (
        FlightService("0.0.0.0", access="none") as service,
        flight.connect(f"grpc://127.0.0.1:{service.port}") as client,
    ):
        asked = supervised(service)
        with pytest.raises(flight.FlightServerError, match="nobody stops a job by it"):
            list(client.do_action("stop"))
        assert asked == []
        [told] = client.do_action("overview")
        assert json.loads(told.body.to_pybytes())["state"] == "running"
        for body in (b"[]", b'{"job": 1}', b'{"else": 1}'):
            with pytest.raises(flight.FlightServerError):
                list(client.do_action(flight.Action("overview", body)))
