"""Billable events of nine customers: the workload of the demo, the examples and the end-to-end tests.

Every customer's events of a month add up to the same even total, so a lost, doubled or misplaced event shows at once: each customer's
month equals `MONTHLY_CENTS`, and each month that has events sums to 900.00 over the customers and over the kinds.

Event time starts in 1970. A year is twelve months of 30 days, and the twelfth month of each has no events. Events arrive out of order
(neighbours up to 12 h apart change places) and late (one in 51 changes places with the one 50 further on), never later than 3 days
after the newest event time less 12 h. The same seed gives the same events, to the byte. After Queryable Billing (Bode and Knauf, 2017).
"""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from flowstate.clock import Clock, SystemClock
from flowstate.errors import InvalidFlow

SCHEMA = pa.schema(
    {"customer": pa.string(), "kind": pa.string(), "amount": pa.decimal128(12, 2), "at": pa.timestamp("ms", "UTC")}
)

#: What each customer's events of a month add up to, in cents.
MONTHLY_CENTS: Mapping[str, int] = {
    "Emma": 10_000,
    "Olivia": 8_000,
    "Sophia": 12_000,
    "Ava": 6_000,
    "Isa": 2_000,
    "Noah": 20_000,
    "William": 25_000,
    "Liam": 3_000,
    "Jacob": 4_000,
}
KINDS = ("MESSAGE", "DATA", "CALL", "PACK", "MISC")

HOUR = 3_600_000  # milliseconds, as all event times here
DAY = 24 * HOUR
MONTH = 30 * DAY
YEAR = 12 * MONTH
EVENTS_PER_MONTH = 1_063  # on average
LIVE_EVENTS_PER_SECOND = EVENTS_PER_MONTH / 10  # 30 event days in about 10 seconds

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OTHER_EVENTS = "the log holds other events: use an empty folder, or the seed and months that it was written with"


class BillableEvent(NamedTuple):
    """One billable event; `at` in milliseconds since 1970 UTC."""

    customer: str
    kind: str
    cents: int
    at: int

    @property
    def amount(self) -> Decimal:
        return Decimal(self.cents).scaleb(-2)

    @property
    def time(self) -> datetime:
        return _EPOCH + timedelta(milliseconds=self.at)

    @property
    def month(self) -> datetime:
        """Start of the 30-day window that it belongs to."""
        return _EPOCH + timedelta(milliseconds=self.at - self.at % MONTH)

    def row(self) -> dict[str, object]:
        """The event as a row of `SCHEMA`."""
        return {"customer": self.customer, "kind": self.kind, "amount": self.amount, "at": self.time}

    def json(self) -> bytes:
        """One JSON object without a line end; `amount` a number with two decimals, `at` ISO 8601 with milliseconds."""
        at = self.time.isoformat(timespec="milliseconds").removesuffix("+00:00")
        amount = f"{self.cents // 100}.{self.cents % 100:02d}"
        return f'{{"customer":"{self.customer}","kind":"{self.kind}","amount":{amount},"at":"{at}Z"}}'.encode()


def events(source: random.Random, months: int | None = None) -> Iterator[BillableEvent]:
    """Events in the order in which they are sent, of the first `months` months, or without end."""
    for number in count():
        if months is not None and months <= 12 * number:
            return
        for event in year(source, number):
            if months is None or event.at < months * MONTH:
                yield event


def year(source: random.Random, number: int) -> list[BillableEvent]:
    """The events of one year, whose twelfth month is empty, in the order in which they are sent."""
    sent = []
    for month in range(11):
        start = number * YEAR + month * MONTH
        for customer, total in MONTHLY_CENTS.items():
            for cents in _amounts(source, total):
                sent.append(
                    BillableEvent(customer, source.choice(KINDS), cents, source.randrange(start, start + MONTH))
                )
    sent.sort(key=lambda event: event.at)
    for first in range(0, len(sent) - 1, 2):
        if sent[first].at + 12 * HOUR > sent[first + 1].at and source.random() < 0.1:
            sent[first], sent[first + 1] = sent[first + 1], sent[first]
    for first in range(0, len(sent) - 50, 51):
        if sent[first].at + 3 * DAY > sent[first + 50].at:
            sent[first], sent[first + 50] = sent[first + 50], sent[first]
    return sent


def _amounts(source: random.Random, total: int) -> list[int]:
    """Cents that add up to `total`: each at most about a tenth of what is left, the last always 2."""
    amounts = []
    left = total
    while left > 2:
        amounts.append(source.randint(1, left // 10 + 1))
        left -= amounts[-1]
    return [*amounts, left]


def customer_totals(sent: Iterable[BillableEvent]) -> dict[tuple[str, datetime], Decimal]:
    """What `sent` adds up to per customer and start of month."""
    return _totals((event.customer, event) for event in sent)


def kind_totals(sent: Iterable[BillableEvent]) -> dict[tuple[str, datetime], Decimal]:
    """What `sent` adds up to per kind and start of month."""
    return _totals((event.kind, event) for event in sent)


def _totals(keyed: Iterable[tuple[str, BillableEvent]]) -> dict[tuple[str, datetime], Decimal]:
    totals: dict[tuple[str, datetime], Decimal] = {}
    for key, event in keyed:
        totals[key, event.month] = totals.get((key, event.month), Decimal(0)) + event.amount
    return totals


def split_of(customer: str, splits: int) -> int:
    """The split that a customer's events go to: the CRC-32 of the key, as librdkafka's default partitioner has it."""
    return zlib.crc32(customer.encode()) % splits


class FileLog:
    """A growing log in a folder: `splits` files of JSON Lines, each customer's events in one of them.

    The events of a seed are always the same bytes, so a log that was cut off anywhere, within a line too, is continued by appending the
    same events again: what is there already is compared, and not written twice.
    """

    def __init__(self, folder: str | Path, splits: int = 2, clock: Clock | None = None) -> None:
        self.folder = Path(folder)
        self.paths = [self.folder / f"events-{number}.jsonl" for number in range(splits)]
        self._clock = clock or SystemClock()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.paths:
            path.touch()

    def begin(self, sent: Iterable[BillableEvent]) -> None:
        """Append the first events, until every split has one. A file becomes a split with its first line, and one that a running job
        finds later is late with all that the others have closed by then: begin before the job starts."""
        seen = set()
        enough = threading.Event()

        def first() -> Iterator[BillableEvent]:
            for event in sent:
                yield event
                seen.add(split_of(event.customer, len(self.paths)))
                if len(seen) == len(self.paths):
                    enough.set()

        self.append(first(), stop=enough)

    def append(
        self,
        sent: Iterable[BillableEvent],
        *,
        events_per_second: float | None = None,
        stop: threading.Event | None = None,
    ) -> int:
        """Append events as fast as possible, or paced, until they end or `stop` is set; the number that was new.

        `sent` begins with the first event of the log. `InvalidFlow` if the files hold something else, or more.
        """
        stop = stop or threading.Event()
        with ExitStack() as stack:
            old = [stack.enter_context(path.open("rb")) for path in self.paths]
            sizes = [path.stat().st_size for path in self.paths]
            # Unbuffered when paced: every event is there for a reader as soon as it is written.
            buffering = -1 if events_per_second is None else 0
            new = [stack.enter_context(path.open("ab", buffering=buffering)) for path in self.paths]
            appended = 0
            began = self._clock.monotonic()
            for event in sent:
                if stop.is_set():
                    break
                split = split_of(event.customer, len(self.paths))
                line = event.json() + b"\n"
                missing = self._missing(old[split], sizes[split], line)
                if not missing:
                    continue
                if events_per_second is not None:
                    due = began + appended / events_per_second
                    while not stop.is_set() and (early := due - self._clock.monotonic()) > 0:
                        stop.wait(early)
                    if stop.is_set():
                        break
                new[split].write(missing)
                appended += 1
            else:
                for file, size in zip(old, sizes, strict=True):
                    if file.tell() < size:
                        raise InvalidFlow(_OTHER_EVENTS, path=file.name, offset=file.tell())
            return appended

    def _missing(self, old: BinaryIO, size: int, line: bytes) -> bytes:
        """The part of `line` that does not stand in the file yet."""
        offset = old.tell()
        there = old.read(min(len(line), size - offset)) if offset < size else b""
        if not line.startswith(there):
            raise InvalidFlow(_OTHER_EVENTS, path=old.name, offset=offset)
        return line[len(there) :]
