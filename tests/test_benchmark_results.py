"""What a benchmark records is what the report reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.results import VARIABLE, Result, read, record


def test_a_figure_comes_back_with_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    record("kafka_peers", "throughput", 2.75, "M events/s", goal="at least 2.5", partitions=1, format="json")
    record("kafka_peers", "throughput", 0.5, "M events/s", system="flink", partitions=1, format="json")
    ours, theirs = read(file)
    assert (ours.benchmark, ours.measure, ours.value, ours.unit) == ("kafka_peers", "throughput", 2.75, "M events/s")
    assert ours.settings == {"partitions": 1, "format": "json"}
    assert ours.met is True and theirs.met is None
    assert ours.name != theirs.name
    assert ours.machine["cores"] >= 1 and ours.versions["python"] and ours.at.endswith("Z") and ours.load >= 0


def test_without_a_file_nothing_is_written_and_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    record("lookup", "p50", 0.4, "ms")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_goal_has_a_direction() -> None:
    def result(value: float, goal: str) -> Result:
        return Result("latency", "p99", value, "ms", goal=goal)

    assert result(9.9, "at most 10").met and not result(10.1, "at most 10").met
    assert result(1.7, "at least 1.7").met and not result(1.69, "at least 1.7").met
    with pytest.raises(ValueError, match="a goal is written 'at least 5'"):
        record("latency", "p99", 1.0, "ms", goal="10 ms")


def test_writers_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: record("many", "number", each, "x", text="x" * 5000), range(200)))
    assert sorted(each.value for each in read(file)) == list(range(200))


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('{"benchmark": "a"}\n')
    with pytest.raises(ValueError, match="line=1"):
        read(file)
