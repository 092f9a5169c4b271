"""Changes are told of rows that may be seen, and for as long as the credential is good: by workers, and by a gateway."""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from guarded import INTERNAL
from hand_job import Event, HandJob, Told
from pyarrow import flight

import flowstate as fs
from flowstate.clock import ManualClock
from flowstate.errors import InvalidFlow
from flowstate_flight import FlightReader, auth
from flowstate_flight.gateway import Gateway
from flowstate_flight.restricted import RestrictedReader
from flowstate_flight.ticket import Ticket

WHO = ["anna", "bert", "carla", None]
TOKEN, HASHED = fs.Access.make_token()


def access(clock: ManualClock | None = None) -> fs.Access:
    anna: dict[str, Any] = {
        "tokens": [HASHED],
        "grants": [{"actions": ["read"], "views": ["totals", "hours_late"], "rows": {"who": "anna"}}],
    }
    if clock is not None:
        anna["expires"] = dt.datetime.fromtimestamp(clock.wall() + 100, dt.UTC)
    return fs.Access({"principals": {"anna": anna}}, clock=clock)


@pytest.fixture(params=["a reader of hers", "a gateway", "a restricted reader"])
def told(request: pytest.FixtureRequest) -> Iterator[tuple[HandJob, Any]]:
    """A job, and a reader as she has one."""
    with ExitStack() as stack:
        given = access()
        job = stack.enter_context(HandJob(access=given, internal=INTERNAL))
        locations = [each.location for each in job.services]
        if request.param == "a reader of hers":
            reader: Any = stack.enter_context(FlightReader(locations, token=TOKEN))
        elif request.param == "a gateway":
            gateway = stack.enter_context(Gateway(FlightReader(locations, token=INTERNAL), access=given))
            reader = stack.enter_context(FlightReader(gateway.address, token=TOKEN))
        else:
            whole = stack.enter_context(FlightReader(locations, token=INTERNAL))
            anna = given.of_token(TOKEN)
            assert anna is not None
            reader = RestrictedReader(whole, anna)
        yield job, reader


@pytest.mark.parametrize("view", ["totals", "hours_late"])
def test_changes_are_told_of_rows_that_may_be_seen(told: tuple[HandJob, Any], view: str) -> None:
    job, reader = told
    chance, table = random.Random(view), Told(job.keys(view))
    with reader.changes(view) as changes:
        for step in range(8):
            given: list[Event] = [
                (chance.choice(WHO), step * 1800 + chance.randrange(3600), chance.randrange(50), "x") for _ in range(20)
            ]
            job.append("a", given)
            hers = sorted(repr(row) for row in job.rows(view) if row["who"] == "anna")
            deadline = time.monotonic() + 20
            while sorted(map(repr, table.rows())) != hers:
                assert time.monotonic() < deadline
                change = changes.take(1.0)
                if change is not None:
                    assert {row["who"] for row in change.rows.to_pylist()} <= {"anna"}
                    table.take(change)
    assert len(hers) > 0


def test_changes_of_a_view_that_may_not_be_seen_are_of_one_that_is_not_there(told: tuple[HandJob, Any]) -> None:
    _, reader = told
    texts = set()
    for view in ("hours", "hourx"):
        with pytest.raises(InvalidFlow) as error, reader.changes(view) as changes:
            next(changes)
        assert "hours'" not in str(error.value).replace(f"{view!r}", "")
        texts.add(str(error.value).partition(";")[0].replace(view, "NAME"))  # the hint is for what is near to be seen
    assert len(texts) == 1


def test_changes_end_with_the_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "AGAIN", -1.0)  # look every time
    clock = ManualClock()
    with HandJob(1, access=access(clock)) as job, flight.connect(job.services[0].location) as client:
        job.append("a", [("anna", 1, 1, "x")])
        options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())], timeout=60)
        stream = client.do_get(flight.Ticket(Ticket("hand", "totals", 0, changes=True).to_bytes()), options)
        for _ in range(3):
            stream.read_chunk()
        clock.advance(200)
        with pytest.raises(flight.FlightUnauthenticatedError):
            stream.read_all()
