"""A gateway with SQL over a job in memory: subtotals, and a view with a column of each type. For the tests of its drivers."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from decimal import Decimal

import pyarrow as pa
from flight_memory import MemoryPartition, directory_of, partitions_of
from flight_tables import TABLES, VIEWS

from flowstate.view.directory import ViewInfo
from flowstate_flight import FlightReader, FlightService
from flowstate_flight.gateway import Gateway
from flowstate_sql.served import ServedSql

ZONED = dt.datetime(1969, 12, 31, 23, 59, 59, 123456, tzinfo=dt.UTC)
NAIVE = dt.datetime(2026, 3, 29, 2, 30, 0, 5000)
#: Two rows of every type: values, and nulls.
TYPES: dict[str, tuple[pa.DataType, object]] = {
    "id": (pa.string(), "ä'\"€"),
    "long": (pa.int64(), -(2**63)),
    "small": (pa.int16(), -7),
    "unsigned": (pa.uint32(), 4_000_000_000),
    "double": (pa.float64(), 0.1),
    "float": (pa.float32(), 0.5),
    "flag": (pa.bool_(), True),
    "total": (pa.decimal128(38, 2), Decimal("123456789012345678901234567890123456.78")),
    "day": (pa.date32(), dt.date(1950, 2, 3)),
    "zoned": (pa.timestamp("us", "UTC"), ZONED),
    "naive": (pa.timestamp("us"), NAIVE),
    "raw": (pa.binary(), b"\x00\xff"),
    "numbers": (pa.list_(pa.int64()), [1, None, 3]),
    "names": (pa.list_(pa.string()), ["a", None]),
}
KINDS = pa.table(
    {name: pa.array([value, "none" if name == "id" else None], kind) for name, (kind, value) in TYPES.items()}
)
ALL_VIEWS = {**VIEWS, "kinds": ViewInfo("kinds", KINDS.schema, "keyed", ("id",), ("id",))}
ALL_TABLES = {**TABLES, "kinds": KINDS}
#: A query that takes longer than any test.
ENDLESS = (
    "select count(*) from subtotals a, subtotals b, subtotals c, subtotals d, subtotals e, subtotals f "
    "where a.events + b.events + c.events + d.events + e.events + f.events = -1"
)


#: One that gives rows at once, and more than anybody reads.
FLOWING = "select a.events from subtotals a, subtotals b, subtotals c, subtotals d"


class SqlGateway:
    """`partitions` may be changed; a cut of them is always number 7."""

    def __init__(self) -> None:
        self.worker = FlightService()
        self.partitions: list[MemoryPartition] = partitions_of("billing", ALL_VIEWS, ALL_TABLES, 2)
        for each in self.partitions:
            self.worker.register(each)
            each.cuts[7] = dict(each.tables)
        self.worker.set_cut_handler(lambda job, timeout: {"cut": 7, "position": {"events-0": [100, 1]}})
        self.worker.set_directory(directory_of("billing", ALL_VIEWS, [self.worker.location] * 2))
        reader = FlightReader(self.worker.location, grace=1.0, patience=4.0)
        self.gateway = Gateway(reader, sql=ServedSql(reader))

    @property
    def address(self) -> str:
        return self.gateway.address


@contextlib.contextmanager
def sql_gateway() -> Iterator[SqlGateway]:
    served = SqlGateway()
    try:
        yield served
    finally:
        served.gateway.close()
        served.worker.close()
