"""Lookups of a reader: what comes back on an exchange, and keys that are given many times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS, ordered
from pyarrow import flight

from flowstate.clock import SystemClock
from flowstate.errors import InternalError, InvalidFlow
from flowstate.plan.position import Place
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import Freshness
from flowstate_flight import FlightReader, FlightService, connect
from flowstate_flight.exchange_call import ExchangeCall, StreamBroken, Watchdog
from flowstate_flight.handlers import Numbered
from flowstate_flight.keys import MANY, key_batch
from flowstate_flight.lookups import joined
from flowstate_flight.ticket import MAX_KEYS

KEYS = pa.record_batch({"customer": ["anna"]})
ANSWER = Answer("billing", "subtotals", (PartitionAnswer(0, 1, {"s": Place(7, 0)}, 5, 17.5, "live"),))


class Other(flight.FlightServerBase):
    """A service of somebody else: the reply to a question is what `says` makes of it."""

    def __init__(self, says: Callable[[dict[str, Any]], str]) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.asked: list[dict[str, Any]] = []
        self._says = says

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        writer.begin(KEYS.schema)
        for chunk in reader:
            self.asked.append(json.loads(chunk.app_metadata.to_pybytes()))
            writer.write_with_metadata(chunk.data, pa.py_buffer(self._says(self.asked[-1]).encode()))


def replies(says: Callable[[dict[str, Any]], str], *fresh: Freshness) -> tuple[list[Any], list[dict[str, Any]]]:
    """What each of two questions gave, or raised, and what the service was asked."""
    watchdog, found = Watchdog(SystemClock()), list[Any]()
    with Other(says) as server, flight.connect(f"grpc://127.0.0.1:{server.port}") as client:
        call = ExchangeCall(client, "billing", "subtotals", KEYS.schema, watchdog)
        for each in fresh or (Freshness(), Freshness()):
            try:
                found.append(call.lookup(0, 1, KEYS, 5.0, each))
            except (InvalidFlow, InternalError, StreamBroken) as error:
                found.append(error)
        call.close()
        watchdog.close()
        return found, server.asked


def test_a_reply_is_read_however_its_json_is_written() -> None:
    data = ANSWER.to_data()
    for says in (
        lambda asked: f'{{"id": {asked["id"]}, "answer": {ANSWER.to_json()}}}',
        lambda asked: json.dumps({"answer": data, "id": asked["id"]}, separators=(",", ":")),
        lambda asked: json.dumps({"id": asked["id"], "more": [], "answer": data}, indent=2),
    ):
        found, asked = replies(says)
        assert [rows for rows, _ in found] == [KEYS, KEYS]
        assert [Answer.from_json(said) for _, said in found] == [ANSWER, ANSWER]
        assert [{name: each[name] for name in ("partition", "epoch")} for each in asked] == 2 * [
            {"partition": 0, "epoch": 1}
        ]
        assert asked[0]["id"] != asked[1]["id"]


def test_what_is_asked_of_the_answer_goes_along() -> None:
    fresh = Freshness(at_least={'a "split"': Place(5, 0)}, wait=0.25)
    _, asked = replies(lambda asked: f'{{"id": {asked["id"]}, "answer": {ANSWER.to_json()}}}', fresh)
    assert asked[0]["fresh"] == {"at_least": {'a "split"': [5, 0]}}
    assert asked[0]["wait"] == 0.25


def test_an_error_is_noticed_at_once_and_a_reply_to_another_question_ends_the_stream() -> None:
    error = {"kind": "InvalidFlow", "message": "there is no such key", "facts": {}}
    found, _ = replies(lambda asked: json.dumps({"id": asked["id"], "error": error}))
    assert [type(each) for each in found] == [InvalidFlow, InvalidFlow]
    found, asked = replies(lambda asked: f'{{"id": {asked["id"] + 10}, "answer": {ANSWER.to_json()}}}')
    assert isinstance(found[0], InternalError)
    assert found[0].facts == {"got": 11, "id": 1}
    assert isinstance(found[1], StreamBroken)
    assert len(asked) == 1


@pytest.fixture
def reader() -> Iterator[FlightReader]:
    with FlightService() as service:
        for each in partitions_of("billing", VIEWS, TABLES, 2):
            service.register(each)
        service.set_directory(directory_of("billing", VIEWS, [service.location] * 2))
        with connect(service.location, patience=4.0) as reader:
            yield reader


@pytest.mark.parametrize("times", [2, MANY, MAX_KEYS])
def test_a_key_that_is_given_often_gives_its_rows_once(reader: FlightReader, times: int) -> None:
    keys = {"customer": ["customer-3", "customer-4"] * times, "kind": ["b", "a"] * times}
    once = {name: each[:2] for name, each in keys.items()}
    assert ordered(reader.lookup("subtotals", keys)) == ordered(reader.lookup("subtotals", once))
    assert reader.lookup("subtotals", once).num_rows == 4  # of two windows


def test_the_answers_of_several_partitions_are_one(reader: FlightReader) -> None:
    names = [f"customer-{each}" for each in range(40)]
    table = reader.lookup("subtotals", {"customer": names, "kind": ["a"] * 40}, columns=["total"])
    assert list(table.schema.metadata) == [b"flowstate.answer"]
    answer = Answer.of(table.schema)
    assert answer is not None
    assert sorted(each.partition for each in answer.parts) == [0, 1]
    assert (answer.job, answer.view, answer.live) == ("billing", "subtotals", True)


def test_the_metadata_of_messages_reads_as_its_json_however_it_is_written() -> None:
    read = Numbered()
    numbered = [f'{{"partition": 0, "id": {number}, "epoch": 7}}' for number in (1, 2, 999, 10**17, 10**18, 10**30)]
    others = [
        '{"partition": 0, "id": "x", "epoch": 7}',
        '{"partition": 1, "id": 5, "epoch": 7}',
        '{"partition": 1, "id": 6, "epoch": 8}',
        '{"partition": 1, "id": -6, "epoch": 8}',
        '{"partition": 1, "id": 6.5, "epoch": 8}',
        '{"partition": 1, "id": 6, "id": 9, "epoch": 8}',
        '{"partition": 1, "id": 6, "epoch": 8, "fresh": {"max_age": 1}}',
        '{"epoch": 8, "id": 6, "partition": 1}',
    ]
    for text in (*numbered, *others, *numbered):
        assert read(text.encode()) == json.loads(text)
    for damaged in (
        '{"partition": 0, "id": 007, "epoch": 7}',
        '{"partition": 0, "id": , "epoch": 7}',
        "",
        '{"partition": 0, "id": 7',
    ):
        with pytest.raises(InvalidFlow):
            read(damaged.encode())


def test_one_key_as_it_is_and_in_a_list_is_the_same_question() -> None:
    info = ViewInfo("totals", pa.schema([("k", pa.string()), ("n", pa.int64())]), "keyed", ("k",), ("k",))
    numbers = ViewInfo("totals", pa.schema([("k", pa.int64())]), "keyed", ("k",), ("k",))
    for view, key in ((info, "anna"), (info, ""), (info, "ä"), (numbers, 7), (numbers, -(2**63))):
        assert key_batch(view, key).equals(key_batch(view, [key]))
    for view, wrong in ((info, "\ud800"), (info, 7), (numbers, 2**63), (numbers, True), (numbers, "7")):
        with pytest.raises(InvalidFlow):
            key_batch(view, wrong)


def test_answers_that_are_joined_say_what_they_say_when_they_are_merged() -> None:
    names = ["billing", 'a"parts": [b', '], "consistent": false}', "ä\\"]
    for name in names:
        parts = [
            PartitionAnswer(
                number, 1, {f"{name}/{number}": Place(7, 0)}, -5, 17.25, "saved" if number else "live", number or None
            )
            for number in range(3)
        ]
        answers = [Answer(name, name, (each,)) for each in parts]
        merged = Answer.merge(answers).to_json()
        assert joined([each.to_json().encode() for each in answers]).decode() == merged
        assert joined([json.dumps(each.to_data()).encode() for each in answers]).decode() == merged
        compact = [json.dumps(each.to_data(), separators=(",", ":")).encode() for each in answers]
        assert joined(compact).decode() == merged
        consistent = [answers[0], answers[1]._replace(consistent=True)]
        assert joined([each.to_json().encode() for each in consistent]).decode() == Answer.merge(consistent).to_json()
