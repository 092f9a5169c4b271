"""What the scenarios count: a duplicate, a loss or a gap that is there is found."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.billing_run import Asked, Reckoning, invoices, reckon, seen
from flowstate.testing import billing

SENT = list(billing.events(random.Random(3), months=3))
EXPECTED = billing.customer_totals(SENT)


def asked(
    name: str, ended: float, *, live: bool = True, age: float = 0.0, error: str = "", epoch: int = 1, at: int = 0
) -> Asked:
    return Asked(ended - 0.01, ended, name, error, live, ended - age, epoch, 1, 1, at)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_each_row_that_is_doubled_lost_or_changed_is_counted(data: st.DataObject) -> None:
    rows = [(key, month, total) for (key, month), total in EXPECTED.items()]
    assert reckon(rows, EXPECTED) == Reckoning(len(rows), 0, 0, 0)
    assert reckon(rows, EXPECTED).exact
    some = st.sets(st.integers(0, len(rows) - 1), max_size=5)
    doubled, lost, changed = data.draw(some), data.draw(some), data.draw(some)
    found = []
    for number, (key, month, total) in enumerate(rows):
        if number not in lost:
            one = (key, month, total + Decimal("0.01") if number in changed else total)
            found += [one] * (2 if number in doubled else 1)
    counted = reckon(found, EXPECTED)
    assert counted.lost == len(lost)
    assert counted.duplicates == len(doubled - lost)
    assert counted.wrong == sum(2 if number in doubled else 1 for number in changed - lost)
    assert counted.exact == (not lost and not doubled - lost and not changed - lost)


def test_invoices_are_read_as_they_lie_in_several_folders(tmp_path: Path) -> None:
    """`month_end` is what the files have; a month is named by its start."""
    day = 24 * 3600 * 1000
    for number, folder in enumerate(("a/month=x", "b")):
        (tmp_path / folder).mkdir(parents=True)
        end = pa.array([30 * day * (number + 1)], pa.timestamp("ms", "UTC"))
        table = pa.table(
            {"customer": ["Emma"], "month_end": end, "total": pa.array([Decimal("100.00")], pa.decimal128(12, 2))}
        )
        pq.write_table(table, tmp_path / folder / "part.parquet")
    found = invoices([tmp_path / "a", tmp_path / "b"], "customer")
    months = sorted({month for _, month in EXPECTED})
    assert found == [("Emma", months[0], Decimal("100.00")), ("Emma", months[1], Decimal("100.00"))]


def test_gaps_failures_ages_and_steps_back_are_seen() -> None:
    log = [
        asked("a", 1.0, at=10),
        asked("a", 1.1, at=20),
        asked("a", 1.2, error="Unavailable: away"),
        asked("a", 2.1, live=False, age=5.0, at=15),
        asked("a", 4.0, epoch=2, at=12),
        asked("a", 4.1, epoch=2, at=11),
        asked("b", 1.0), asked("b", 4.9),
        asked("c", 9.0),
    ]  # fmt: skip
    found = seen(log, ["a"], 1.0, 4.2)
    assert found.answers == 5
    assert found.failures == ["Unavailable: away"]
    assert round(found.gap, 3) == 1.9  # a saved answer is an answer
    assert round(found.gap_live, 3) == 2.9  # but no live one
    assert round(found.oldest, 3) == 5.0
    assert found.went_back == ["a WENT BACK from 12 to 11 in epoch 2"]  # a new epoch may begin further back
    assert round(seen(log, ["a", "b"], 1.0, 5.0).gap, 3) == 3.9  # the longest of all keys
    assert round(seen(log, ["c"], 1.0, 5.0).gap, 3) == 4.0  # no answer at all is a gap too
