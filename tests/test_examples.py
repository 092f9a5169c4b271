"""The examples run as a reader runs them: in a process of their own, offline, and with the right answers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from flowstate.testing import billing

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NUMBERED = sorted(EXAMPLES.glob("[0-9]*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str, folder: Path) -> list[str]:
    """The lines that an example prints; it must end well, say nothing on stderr, and leave nothing in its folder."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], cwd=folder, capture_output=True, text=True, timeout=150
    )
    # On a busy machine a worker takes longer to exit than Dask likes, after the job has stopped.
    said = [line for line in done.stderr.splitlines() if "Worker process still alive after" not in line]
    assert (done.returncode, said) == (0, []), done.stdout
    assert list(folder.iterdir()) == []
    return done.stdout.splitlines()


def test_counts(tmp_path: Path) -> None:
    lines = run("01_counts.py", "200000", folder=tmp_path)
    expected = Counter(load("01_counts.py").bumps(200_000)["item"].to_pylist())
    for line, item in zip(lines[:3], ("abc", "foo", "xyz"), strict=True):
        assert line.startswith(f"{item}: {expected[item]} (query took ")
    assert lines[3:] == [
        f"200000 bumps of {len(expected)} items, at most {max(expected.values())} of one",
        "every count is right",
    ]


def test_impressions(tmp_path: Path) -> None:
    lines = run("02_impressions.py", folder=tmp_path)
    expected = load("02_impressions.py").write_log(tmp_path / "events.jsonl")
    hours = sorted(hour for advertisement, hour in expected if advertisement == "ad-00")
    assert lines[0] == " ".join(["ad-00 per hour:", *(str(expected["ad-00", hour]) for hour in hours)])
    totals: Counter[str] = Counter()
    for (advertisement, _), number in expected.items():
        totals[advertisement] += number
    assert lines[1:4] == [f"{advertisement}: {number} impressions" for advertisement, number in totals.most_common(3)]
    assert lines[4] == f"{len(expected)} hourly counts, all right"


def test_billing(tmp_path: Path) -> None:
    lines = run("03_billing.py", "13", "2", folder=tmp_path)
    assert lines[0] == "Emma: " + " ".join(["100.00"] * 12)
    for customer, cents in billing.MONTHLY_CENTS.items():
        assert any(customer in line and f"{cents * 12 / 100:.2f}" in line for line in lines)
    months = [number for number in range(13) if number != 11]
    assert lines[-13:] == [*(f"month {number:3d}: 900.00 even" for number in months), "108 invoices, all even"]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.name)
def test_examples_are_short_and_offline(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    assert "://" not in text


def test_examples_are_numbered_without_a_gap() -> None:
    assert [path.name[:2] for path in NUMBERED] == [f"{number:02d}" for number in range(1, len(NUMBERED) + 1)]
