"""The billing generator against its specification: totals, order, lateness, bytes, and the growing log."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path

import pytest

from flowstate.clock import ManualClock
from flowstate.errors import InvalidFlow
from flowstate.testing import billing

SEEDS = [1, 2, 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_month_but_the_twelfth_sums_to_900(seed: int) -> None:
    sent = list(billing.events(random.Random(seed), months=36))
    months: defaultdict[datetime, Decimal] = defaultdict(Decimal)
    kinds: defaultdict[datetime, Decimal] = defaultdict(Decimal)
    for (_, month), total in billing.customer_totals(sent).items():
        months[month] += total
    for (_, month), total in billing.kind_totals(sent).items():
        kinds[month] += total
    start = datetime(1970, 1, 1, tzinfo=UTC)
    expected = {start + timedelta(days=30 * index): Decimal("900.00") for index in range(36) if index % 12 != 11}
    assert months == expected
    assert kinds == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_each_customer_reaches_the_configured_total_each_month(seed: int) -> None:
    totals = billing.customer_totals(billing.events(random.Random(seed), months=24))
    assert len(totals) == 9 * 22
    for (customer, _), total in totals.items():
        assert total == Decimal(billing.MONTHLY_CENTS[customer]) / 100


@pytest.mark.parametrize("seed", SEEDS)
def test_amounts_and_number_of_events_are_as_specified(seed: int) -> None:
    sent = list(billing.events(random.Random(seed), months=120))
    per_customer_month = Counter((event.customer, event.month) for event in sent)
    assert len(per_customer_month) == 9 * 110
    isa = [number for (customer, _), number in per_customer_month.items() if customer == "Isa"]
    william = [number for (customer, _), number in per_customer_month.items() if customer == "William"]
    assert sum(isa) / len(isa) == pytest.approx(93, abs=3)
    assert sum(william) / len(william) == pytest.approx(141, abs=3)
    assert len(sent) / 110 == pytest.approx(billing.EVENTS_PER_MONTH, abs=10)
    assert min(event.cents for event in sent) == 1
    for customer, total in billing.MONTHLY_CENTS.items():
        assert max(event.cents for event in sent if event.customer == customer) <= total // 10 + 1
    kinds = Counter(event.kind for event in sent)
    assert set(kinds) == set(billing.KINDS)
    assert max(kinds.values()) / min(kinds.values()) < 1.05


@pytest.mark.parametrize("seed", SEEDS)
def test_amounts_end_with_two_cents_and_stay_below_a_tenth_of_what_is_left(seed: int) -> None:
    source = random.Random(seed)
    for total in billing.MONTHLY_CENTS.values():
        amounts = billing._amounts(source, total)
        assert sum(amounts) == total
        assert amounts[-1] == 2
        left = total
        for cents in amounts[:-1]:
            assert 1 <= cents <= left // 10 + 1
            left -= cents


@pytest.mark.parametrize("seed", SEEDS)
def test_events_come_late_but_never_later_than_the_grace(seed: int) -> None:
    newest, latest, out_of_order = 0, -(10**12), 0
    sent = list(billing.events(random.Random(seed), months=120))
    for event in sent:
        latest = max(latest, newest - 12 * billing.HOUR - event.at)
        out_of_order += event.at < newest
        newest = max(newest, event.at)
    assert 24 * billing.HOUR < latest < 3 * billing.DAY  # really late, and within the grace
    assert out_of_order > len(sent) / 20


def test_a_seed_gives_the_same_events_and_another_seed_others() -> None:
    def first(seed: int) -> list[bytes]:
        return [event.json() for event in islice(billing.events(random.Random(seed)), 15_000)]

    assert first(7) == first(7)
    assert first(7) != first(8)


def test_the_number_of_months_is_the_number_of_windows() -> None:
    for months, generated in [(0, 0), (1, 1), (11, 11), (12, 11), (13, 12), (25, 23)]:
        assert len({event.month for event in billing.events(random.Random(1), months=months)}) == generated


def test_fewer_months_are_the_same_events_without_the_later_ones() -> None:
    year = list(billing.events(random.Random(3), months=12))
    few = list(billing.events(random.Random(3), months=2))
    assert few == [event for event in year if event.at < 2 * billing.MONTH]
    endless = billing.events(random.Random(3))
    assert list(islice(endless, len(year))) == year


def test_json_and_row_say_the_same_as_the_event() -> None:
    event = billing.BillableEvent("Emma", "CALL", 7, 86_400_001)
    assert event.json() == b'{"customer":"Emma","kind":"CALL","amount":0.07,"at":"1970-01-02T00:00:00.001Z"}'
    assert event.row() == {
        "customer": "Emma",
        "kind": "CALL",
        "amount": Decimal("0.07"),
        "at": datetime(1970, 1, 2, 0, 0, 0, 1000, tzinfo=UTC),
    }
    assert event.month == datetime(1970, 1, 1, tzinfo=UTC)
    assert list(event.row()) == billing.SCHEMA.names
    for each in islice(billing.events(random.Random(3)), 1_000):
        assert json.loads(each.json(), parse_float=Decimal) == {
            "customer": each.customer,
            "kind": each.kind,
            "amount": each.amount,
            "at": each.time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{each.at % 1000:03d}Z",
        }


def test_the_log_keeps_the_order_of_each_customer_and_uses_both_splits(tmp_path: Path) -> None:
    sent = list(billing.events(random.Random(5), months=2))
    log = billing.FileLog(tmp_path, splits=2)
    assert log.append(sent) == len(sent)
    for split, path in enumerate(log.paths):
        expected = [event.json() for event in sent if billing.split_of(event.customer, 2) == split]
        assert expected
        assert path.read_bytes().splitlines() == expected


def test_a_log_begins_with_an_event_in_every_split_and_is_then_gone_on_with(tmp_path: Path) -> None:
    sent = list(billing.events(random.Random(5), months=1))
    log = billing.FileLog(tmp_path / "log", splits=4)
    log.begin(iter(sent))
    lines = [path.read_bytes().splitlines() for path in log.paths]
    assert min(map(len, lines)) == 1
    assert sum(map(len, lines)) < 100
    log.begin(iter(sent))
    assert [path.read_bytes().splitlines() for path in log.paths] == lines
    assert log.append(sent) == len(sent) - sum(map(len, lines))


def test_a_log_that_was_cut_off_anywhere_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    sent = list(billing.events(random.Random(5), months=1))
    whole = billing.FileLog(tmp_path / "whole")
    whole.append(sent)
    source = random.Random(11)
    for attempt in range(10):
        log = billing.FileLog(tmp_path / f"cut-{attempt}")
        for path, complete in zip(log.paths, whole.paths, strict=True):
            path.write_bytes(complete.read_bytes()[: source.randrange(complete.stat().st_size + 1)])
        log.append(sent)
        assert [path.read_bytes() for path in log.paths] == [path.read_bytes() for path in whole.paths]


def test_a_log_of_another_seed_is_refused_and_left_alone(tmp_path: Path) -> None:
    log = billing.FileLog(tmp_path)
    log.append(billing.events(random.Random(1), months=1))
    before = [path.read_bytes() for path in log.paths]
    with pytest.raises(InvalidFlow, match="the seed and months that it was written with"):
        log.append(billing.events(random.Random(2), months=1))
    assert [path.read_bytes() for path in log.paths] == before


def test_a_log_that_goes_further_is_refused_and_left_alone(tmp_path: Path) -> None:
    log = billing.FileLog(tmp_path)
    log.append(billing.events(random.Random(1), months=12))
    before = [path.read_bytes() for path in log.paths]
    with pytest.raises(InvalidFlow, match="holds other events"):
        log.append([])
    assert [path.read_bytes() for path in log.paths] == before


class _Waits(threading.Event):
    """An event that is waited for by moving a clock."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock, self.until = clock, float("inf")

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.clock.advance(timeout)
        if self.clock.now >= self.until:
            self.set()
        return self.is_set()


def test_a_paced_log_takes_ten_seconds_a_month_and_can_be_stopped(tmp_path: Path) -> None:
    clock = ManualClock()
    sent = list(billing.events(random.Random(1), months=3))
    log = billing.FileLog(tmp_path / "all", clock=clock)
    log.append(sent, events_per_second=billing.LIVE_EVENTS_PER_SECOND, stop=_Waits(clock))
    assert clock.now == pytest.approx(30, abs=1)

    clock = ManualClock()
    stop = _Waits(clock)
    stop.until = 5
    log = billing.FileLog(tmp_path / "half", clock=clock)
    appended = log.append(sent, events_per_second=billing.LIVE_EVENTS_PER_SECOND, stop=stop)
    assert appended == pytest.approx(5 * billing.LIVE_EVENTS_PER_SECOND, abs=2)
    assert sum(len(path.read_bytes().splitlines()) for path in log.paths) == appended
