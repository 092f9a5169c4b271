"""One key through the exchange, do_get and SQL: p50 and p99 in milliseconds, from another process than the server's.

    python benchmarks/lookup.py [KEYS] [REPEATS] [--idle]

The server ingests meanwhile (vectorised work of 20,000 rows a step, with Python between), unless --idle.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import flight

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from flight_memory import Worker, directory_of

from flowstate.view.directory import ViewInfo
from flowstate_flight import connect
from flowstate_flight.ticket import Ticket, write_keys
from flowstate_sql import Session


def measure(name: str, call: Callable[[int], object], repeats: int) -> float:
    for each in range(20):
        call(each)
    taken = []
    for each in range(repeats):
        begin = time.perf_counter()
        call(each)
        taken.append(1e3 * (time.perf_counter() - begin))
    p50, p99 = np.percentile(taken, [50, 99])
    print(f"{name:28s} p50={p50:.3f} ms  p99={p99:.3f} ms")
    return float(p50)


def main() -> None:
    numbers = [int(each) for each in sys.argv[1:] if each.isdigit()]
    keys, repeats = (numbers + [50_000, 2_000][len(numbers) :])[:2]
    table = pa.table(
        {
            "customer": [f"customer-{each:08d}" for each in range(keys)],
            "total": np.arange(keys),
            "events": np.ones(keys),
        }
    )
    view = ViewInfo("totals", table.schema, "keyed", ("customer",), ("customer",))
    worker = Worker("bench", {"totals": view}, {"totals": table}, 1, [0], busy="--idle" not in sys.argv)
    try:
        worker.set_directory(directory_of("bench", {"totals": view}, [worker.location]))
        chance = np.random.default_rng(1)
        names = [f"customer-{each:08d}" for each in chance.integers(0, keys, repeats + 20)]
        with connect(worker.location) as reader:
            measure("exchange", lambda each: reader.lookup("totals", names[each]), repeats)
            client = flight.connect(worker.location)

            def by_ticket(each: int) -> pa.Table:
                ticket = Ticket("bench", "totals", 0, keys=write_keys(pa.record_batch({"customer": [names[each]]})))
                return client.do_get(flight.Ticket(ticket.to_bytes())).read_all()

            measure("do_get with keys", by_ticket, repeats)
            condition = pc.field("customer")
            measure(
                "scan with a key filter",
                lambda each: reader.scan("totals", filter=condition == names[each]),
                repeats // 10,
            )
            session = Session(reader)
            query = "select * from totals where customer = $1"
            measure("SQL", lambda each: session.sql(query, [names[each]]).fetchall(), repeats // 10)
            client.close()
    finally:
        worker.close()


if __name__ == "__main__":
    main()
