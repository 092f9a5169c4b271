"""What flowstate top makes of what it is told: rates, sentences, and a screen of any size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from test_flight_control import ACCESS, READER, supervised

from flowstate.command.observer import Observer
from flowstate.command.place import Place
from flowstate.command.sight import Course, Sight, of_overview
from flowstate.command.top_screen import as_json, line, painted, plain, screen, size, span
from flowstate.view.access import Access
from flowstate_flight.client import FlightReader
from flowstate_flight.server import FlightService

NOW = 1_800_000_000.0


def overview(rows: int = 100, offset: int = 50, epoch: int = 1, **more: Any) -> dict[str, Any]:
    """Of a job of two partitions; `offset` is the place of the second one."""

    def member(number: int, epoch: int, rows: int, offset: int) -> dict[str, Any]:
        report = {
            "epoch": epoch, "state": "live", "position": {"log/a": [offset, 0]}, "watermark": int((NOW - 90) * 1e6), "rows": rows,
            "keys": {"totals": 7}, "waiting": 0, "filling": [], "snapshot": {"version": 3, "at": NOW - 2, "seconds": 0.1},
            "problems": {}, "damaged": [], "sinks": [],
        }  # fmt: skip
        return {"state": "live", "epoch": epoch, "worker": f"tcp://w{number}", "reason": None, "report": report}

    told = {
        "name": "billing", "state": "running", "run": 2, "problems": {},
        "ready": True, "paused": None, "saved_cut": {"number": 9, "at": NOW - 2},
        "workers": {"tcp://w0": "grpc://10.0.0.1:1", "tcp://w1": "grpc://10.0.0.2:1"},
        "partitions": {"0": member(0, 1, 100, 50), "1": member(1, epoch, rows, offset)},
        "splits": {"log/a": {"label": "/a/rather/long/path/to/the/events.jsonl", "reader": 0}},
    }  # fmt: skip
    return told | more


def test_rates_begin_anew_with_an_incarnation() -> None:
    course = Course()
    course.add(of_overview(overview(rows=100), NOW))
    assert course.rate("rows") is None
    course.add(of_overview(overview(rows=300), NOW + 2))
    assert course.rate("rows", 1) == 100
    assert course.rate("rows", 0) == 0
    course.add(of_overview(overview(rows=40, epoch=2), NOW + 4))
    assert course.rate("rows", 1) == pytest.approx(10), "40 rows in the 4 seconds that are looked at"


def test_who_is_late_is_told_unless_the_dashboard_has_judged() -> None:
    for figures, expected in (({}, 1), ({"lag": {"log/a": 0}, "troubles": []}, 0)):
        course = Course()
        course.add(of_overview(overview(figures=figures), NOW))
        sight = course.add(of_overview(overview(offset=20, figures=figures), NOW + 1.5))
        assert len(sight.troubles) == expected
        assert sight.splits[0].behind == 30 * expected
    (sentence,) = (each for each in one_that_is_late().troubles if "late" in each)
    assert sentence == (
        "partition 1 is late: in split /a/rather/long/path/to/the/events.jsonl it is 30 before where another one was 2 s ago"
    )


def one_that_is_late() -> Sight:
    course = Course()
    course.add(of_overview(overview(), NOW))
    return course.add(of_overview(overview(offset=20), NOW + 2))


def test_what_is_wrong_is_told_in_sentences() -> None:
    told = overview(problems={"discovery": "no broker"}, paused="nothing is read until sinks take it")
    told["partitions"]["1"] |= {"state": "vacant", "worker": None, "reason": "its worker was lost"}
    told["partitions"]["0"]["report"]["problems"] = {"log/a": "the broker is away"}
    assert list(of_overview(told, NOW).troubles) == [
        "nothing is read until sinks take it",
        "partition 1 is away; what it saved 2 s ago answers: its worker was lost",
        "new splits could not be looked for: no broker",
        "split /a/rather/long/path/to/the/events.jsonl cannot be read (partition 0): the broker is away",
    ]


@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 80))
def test_a_screen_of_any_size_is_never_left(width: int, height: int, troubles: int) -> None:
    course = Course()
    course.add(of_overview(overview(), NOW))
    told = overview(
        rows=300, figures={"lag": {"log/a": 5}, "troubles": [f"it is {'very ' * 20}late\x1b[31m"] * troubles}
    )
    sight = course.add(of_overview(told, NOW + 2))
    lines = screen(sight, course, width, height, NOW + 2)
    assert len(lines) == height
    assert all(each.cell_len <= width for each in lines)
    shown = painted(lines, width)
    assert "\x1b[31mred" not in shown
    assert shown.count("\n") == height - 1, "the last line does not scroll the others away"
    if width > 150 and height > 20 and not troubles:
        for text in ("billing", "running", "100 rows/s", "14 keys", "lag 5", "10.0.0.2:1", "events.jsonl"):
            assert text in plain(lines)


def test_lines_and_objects_tell_the_same() -> None:
    course = Course()
    course.add(of_overview(overview(), NOW))
    sight = course.add(
        of_overview(overview(rows=300, figures={"lag": {"log/a": 5}, "troubles": ["it rains"]}), NOW + 2)
    )
    said = line(sight, course, NOW + 2)
    assert (
        said
        == "billing running, 100 rows/s, 14 keys, lag 5, watermark 92 s behind, snapshot 9 saved 4.0 s ago; ! it rains"
    )
    told = json.loads(as_json(sight, course))
    assert (told["rows_per_second"], told["keys"], told["snapshot"], told["troubles"]) == (100.0, 14, 9, ["it rains"])
    assert told["splits"][0]["lag"] == 5
    assert told["partitions"][1]["place"] == "grpc://10.0.0.2:1"


def test_who_may_not_control_a_job_sees_its_partitions() -> None:
    with FlightService(access=Access(ACCESS)) as service:
        supervised(service)
        for each in partitions_of("billing", VIEWS, TABLES, 2):
            service.register(each)
        service.set_directory(directory_of("billing", VIEWS, [service.location] * 2))
        with FlightReader(service.location, token=READER[0]) as reader:
            sight = Observer(Place(service.location), reader, None).look()
    assert (sight.state, sight.troubles) == ("running", ())
    assert [each.state for each in sight.partitions] == ["live", "live"]
    assert sight.total("rows") is None
    assert "rows/s" not in "".join(each.plain for each in screen(sight, Course(), 100, 30, NOW))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (90, "90 s"), (600, "10 min"), (9e3, "2 h"), (4e5, "5 d")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_sizes() -> None:
    assert [size(each) for each in (999, 1500, 2e6, 3.25e9)] == ["999 B", "1.5 kB", "2.0 MB", "3.2 GB"]
    assert Text(size(7e15)).plain == "7,000.0 TB"
