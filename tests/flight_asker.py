"""Plain Arrow Flight, nothing of flowstate: what a worker answers for its partitions. Usage: flight_asker.py ADDRESS VIEW

For every line on standard input it asks again, and says one line of JSON: per partition the origin and the time that its answer claims, or
the error.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pyarrow as pa
from pyarrow import flight


def main() -> None:
    address, view = sys.argv[1:]
    client = flight.connect(address)
    options = flight.FlightCallOptions(timeout=5)
    endpoints = client.get_flight_info(flight.FlightDescriptor.for_path(view), options).endpoints
    mine = [each for each in endpoints if any(place.uri.decode() == address for place in each.locations)]
    print("up", len(mine), flush=True)
    for _ in sys.stdin:
        print(json.dumps([of(client, each, options) for each in mine]), flush=True)


def of(client: flight.FlightClient, endpoint: Any, options: Any) -> dict[str, Any]:
    try:
        table = client.do_get(endpoint.ticket, options).read_all()
    except (pa.ArrowException, flight.FlightError) as error:
        return {"error": str(error)[:300]}
    part = json.loads(table.schema.metadata[b"flowstate.answer"])["parts"][0]
    return {
        "origin": part["origin"],
        "age": time.time() - part["as_of"],
        "epoch": part["epoch"],
        "rows": table.num_rows,
    }


if __name__ == "__main__":
    main()
