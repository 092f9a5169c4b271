"""Tickets: what is one is read back as it was, and everything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstate.errors import InvalidFlow
from flowstate.plan.position import Place
from flowstate.view.freshness import LONGEST_WAIT, Freshness
from flowstate_flight.ticket import MAX_TICKET_BYTES, Ticket, read_keys, write_keys

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
numbers = st.integers(0, 2**31 - 1)
tickets = st.builds(
    Ticket,
    names,
    names,
    numbers,
    st.none() | st.lists(names, min_size=1, max_size=4, unique=True).map(tuple),
    st.none() | st.binary(max_size=50),
    st.none() | st.binary(max_size=50),
    st.none() | numbers,
    st.builds(
        Freshness, st.none() | st.floats(0, 1e9), st.dictionaries(names, st.builds(Place, numbers, numbers), max_size=3)
    )
    | st.builds(Freshness, cut=st.none() | numbers)
    | st.builds(Freshness, snapshot=numbers),
    st.none() | st.floats(0, LONGEST_WAIT),
    st.none() | numbers,
)
plain: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3),
)


@given(tickets)
@settings(deadline=None)
def test_round_trip(ticket: Ticket) -> None:
    assert Ticket.from_bytes(ticket.to_bytes()) == ticket


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_bytes_that_are_no_ticket(raw: bytes) -> None:
    with pytest.raises(InvalidFlow):
        Ticket.from_bytes(raw)


@given(
    tickets,
    st.dictionaries(
        st.sampled_from(["v", "job", "columns", "filter", "keys", "limit", "fresh", "wait", "epoch", "x"]), plain
    ),
)
@settings(deadline=None)
def test_a_spoilt_ticket_is_refused_or_means_what_it_says(ticket: Ticket, spoilt: dict[str, Any]) -> None:
    data = {**json.loads(ticket.to_bytes()), **spoilt}
    try:
        read = Ticket.from_bytes(json.dumps(data).encode())
    except InvalidFlow:
        return
    assert json.loads(read.to_bytes()) == {
        name: value for name, value in data.items() if value is not None and (name, value) != ("fresh", {})
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, "version"),
        ({"v": True}, "version"),
        ({"pickle": "x"}, "field that version 1 does not know"),
        ({"partition": -1}, "whole number"),
        ({"partition": True}, "whole number"),
        ({"partition": None}, "whole number"),
        ({"job": 5}, "'job' of a ticket is a name"),
        ({"view": ""}, "'view' of a ticket is a name"),
        ({"view": "\ud800"}, "valid text"),
        ({"columns": "total"}, "list of names"),
        ({"columns": []}, "at least one"),
        ({"columns": ["a", "a"]}, "twice"),
        ({"filter": "*"}, "base64"),
        ({"wait": -1}, "number of seconds"),
        ({"wait": 1e9}, "at most 60"),
        ({"fresh": 5}, "JSON object"),
        ({"fresh": {"maxage": 5}}, "JSON object"),
        ({"fresh": {"max_age": -5}}, "number of seconds"),
        ({"fresh": {"at_least": {"a": "b"}}}, "maps splits to the offset"),
        ({"fresh": {"snapshot": 3, "max_age": 1}}, "position of its own"),
        ({"limit": 1.5}, "whole number"),
        ({"epoch": 2**70}, "whole number"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    data = {"v": 1, "job": "j", "view": "v", "partition": 0, **change}
    with pytest.raises(InvalidFlow, match=message):
        Ticket.from_bytes(json.dumps(data).encode())


def test_size_is_bounded() -> None:
    with pytest.raises(InvalidFlow, match="too long"):
        Ticket.from_bytes(b" " * (MAX_TICKET_BYTES + 1))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InvalidFlow, match="not JSON"):
        Ticket.from_bytes(b"[" * 100_000)


def test_a_command_is_for_all_partitions() -> None:
    command = Ticket("j", "v", limit=3)
    assert Ticket.from_bytes(command.to_bytes(), partition=False) == command
    with pytest.raises(InvalidFlow, match="all partitions"):
        Ticket.from_bytes(Ticket("j", "v", 0).to_bytes(), partition=False)


def test_keys() -> None:
    keys = pa.record_batch({"customer": ["a", None], "month": pa.array([1, 2], pa.timestamp("us", "UTC"))})
    assert read_keys(write_keys(keys)).equals(keys)


@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400))
@settings(deadline=None, max_examples=300)
def test_damaged_keys_are_refused_or_valid(at: int, value: int, length: int) -> None:
    raw = bytearray(
        write_keys(pa.record_batch({"customer": ["anna", None, "b"], "day": pa.array([1, 2, 3], pa.date32())}))
    )
    raw[at % len(raw)] = value
    try:
        batch = read_keys(bytes(raw[: len(raw) - length // 4]))
    except InvalidFlow:
        return
    batch.validate(full=True)
