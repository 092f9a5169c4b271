"""The page says what was reached, what was missed, and where others did better; drawings are well-formed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.drawing import lines, short
from benchmarks.report import latest, number, write
from benchmarks.results import Result


def result(
    measure: str, value: float, unit: str, system: str = "flowstate", goal: str | None = None, **settings: Any
) -> Result:
    machine = {"processor": "a fast one", "cores": 2, "memory": 24.0, "system": "Linux"}
    return Result(
        "memory_peers",
        measure,
        value,
        unit,
        system,
        goal,
        settings,
        "2026-11-22T00:00:00Z",
        "abc",
        0.5,
        machine,
        {"duckdb": "2"},
    )


RESULTS = [
    result("rows taken in", 50.0, "M rows/s", groups=20_000),
    result("rows taken in", 14.0, "M rows/s", groups=2_000_000),
    result("processor", 0.02, "CPU s/M rows", groups=20_000),
    result("processor", 0.07, "CPU s/M rows", groups=2_000_000),
    result("rows taken in", 60.0, "M rows/s", "duckdb", groups=20_000),
    result("ours to it, by CPU", 0.83, "x", "duckdb", "at least 1", groups=20_000),
    result("ours to it, by CPU", 2.1, "x", "duckdb", "at least 1.5", groups=2_000_000),
]


def test_the_page_names_what_was_missed_first_and_where_others_did_better(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    write(RESULTS, page, tmp_path / "drawings", "how it was measured")
    said = page.read_text()
    missed = said.index("groups 20,000 | 0.830 x | at least 1 | **missed** |")
    assert missed < said.index("groups 2,000,000 | 2.10 x | at least 1.5 | reached |")
    others = said[said.index("## Where others did better") : said.index("## memory_peers")]
    assert "| memory_peers | duckdb | ours to it, by CPU | groups 20,000 | 0.830 x |" in others
    assert "2.1" not in others
    assert "**Not measured in these runs**: `kafka_peers`" in said and "`memory_peers`," not in said
    assert "a fast one, 2 cores, 24.0 GiB" in said and "duckdb 2" in said and "how it was measured" in said
    assert "(benchmarks/throughput.svg)" in said and (tmp_path / "drawings" / "throughput.svg").exists()
    assert "flowstate: 50 M at 20 k" in (tmp_path / "drawings" / "throughput.svg").read_text()
    assert not (tmp_path / "drawings" / "latency.svg").exists()  # nothing was measured
    write(RESULTS[:3], page, tmp_path / "one", "")
    assert not (tmp_path / "one" / "throughput.svg").exists()  # one point is no line


def test_of_what_was_measured_twice_the_last_counts() -> None:
    twice = [*RESULTS, result("rows taken in", 51.0, "M rows/s", groups=20_000)]
    assert [each.value for each in latest(twice)] == [51.0, 14.0, 0.02, 0.07, 60.0, 0.83, 2.1]


def test_a_drawing_is_well_formed_and_has_every_point_where_it_belongs() -> None:
    found = lines("a < b", "x", "y", {"one": [(1, 1), (100, 100)], "two & more": [(10, 10)]}, limit=("goal", 50))
    root = ElementTree.fromstring(found)
    name = "{http://www.w3.org/2000/svg}"
    first, last = root.findall(f"{name}circle")
    [between] = root.findall(f"{name}rect")
    middle = float(between.get("x", "")) + 4, float(between.get("y", "")) + 4
    assert middle[0] == pytest.approx((float(first.get("cx", "")) + float(last.get("cx", ""))) / 2, abs=0.2)
    assert middle[1] == pytest.approx((float(first.get("cy", "")) + float(last.get("cy", ""))) / 2, abs=0.2)
    assert float(first.get("cy", "")) > float(last.get("cy", ""))  # up is more
    assert {"a < b", "one", "two & more", "goal"} <= {each.text for each in root.iter(f"{name}text")}


def test_nothing_is_drawn_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        lines("a", "x", "y", {})


def test_numbers_have_three_digits_that_say_something() -> None:
    assert [number(each) for each in (0, 0.0123, 0.83, 2.1, 45.67, 123.4, 1234567.0)] == [
        "0",
        "0.012",
        "0.830",
        "2.10",
        "45.7",
        "123",
        "1,234,567",
    ]
    assert [short(each) for each in (0.5, 20_000, 1_500_000)] == ["0.5", "20 k", "1.5 M"]
