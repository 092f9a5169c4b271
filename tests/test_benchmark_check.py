"""A worse ratio fails the check; what cannot be compared does not pass for good."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.check import main
from benchmarks.results import Result


def results(path: Path, *values: tuple[str, float, str, dict[str, int]]) -> str:
    lines = [
        asdict(Result("memory_peers", measure, value, unit, "duckdb", settings=settings))
        for measure, value, unit, settings in values
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return str(path)


def test_only_a_drop_of_more_than_a_fifth_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ["--kept", str(tmp_path / "kept.json")]
    before = results(
        tmp_path / "a", ("by CPU", 2.0, "x", {"groups": 5}), ("by CPU, restored", 3.0, "x", {}), ("rate", 50, "M/s", {})
    )
    assert main([before, "--record", *kept]) == 0
    assert "2 ratios are kept" in capsys.readouterr().out
    assert main([before, *kept]) == 0
    assert (
        main([results(tmp_path / "b", ("by CPU", 1.61, "x", {"groups": 5}), ("by CPU, restored", 3.5, "x", {})), *kept])
        == 0
    )
    capsys.readouterr()
    assert (
        main([results(tmp_path / "c", ("by CPU", 1.59, "x", {"groups": 5}), ("by CPU, restored", 3.0, "x", {})), *kept])
        == 1
    )
    said = capsys.readouterr().out
    assert "DROPPED     1.59x, kept 2.00x  memory_peers: by CPU, duckdb (groups=5)" in said
    assert "2 ratios compared, 1 dropped" in said


def test_a_single_outlier_among_several_is_no_drop(tmp_path: Path) -> None:
    kept = ["--kept", str(tmp_path / "kept.json")]
    main([results(tmp_path / "a", ("by CPU", 2.0, "x", {})), "--record", *kept])
    many = results(tmp_path / "b", *(("by CPU", each, "x", {}) for each in (2.1, 0.5, 1.9)))
    assert main([many, *kept]) == 0


def test_other_settings_are_another_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ["--kept", str(tmp_path / "kept.json")]
    main([results(tmp_path / "a", ("by CPU", 2.0, "x", {"groups": 5})), "--record", *kept])
    assert main([results(tmp_path / "b", ("by CPU", 0.1, "x", {"groups": 6})), *kept]) == 2
    assert "nothing to compare" in capsys.readouterr().out


def test_recording_keeps_what_was_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ["--kept", str(tmp_path / "kept.json")]
    main([results(tmp_path / "a", ("by CPU", 2.0, "x", {}), ("by CPU, restored", 3.0, "x", {})), "--record", *kept])
    new = results(tmp_path / "b", ("by CPU", 1.0, "x", {}))
    main([new, "--record", *kept])
    capsys.readouterr()
    assert main([new, *kept]) == 0
    assert "1 ratios compared, 0 dropped to less than 80% of what is kept, 1 not measured" in capsys.readouterr().out
