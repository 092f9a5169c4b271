"""Arrow Flight in front of live partitions: one service per worker process, and the client that finds the owner of a key.

`ticket` says what may be asked, as plain JSON that any Arrow client can write. `server` answers it from the partitions that its
process hosts: scans by do_get, keys by one long-lived do_exchange, the routing table by the action ``directory``. `exchange_call`
is the client's end of such a stream; `client` holds the directory, asks only the owners, and asks again when a partition moved;
`mapping` dresses a view as a Mapping. `expression` reads which columns a filter names and which keys it allows. `fault` carries our
errors through Flight's and back.
"""

from __future__ import annotations

from flowstate_flight.client import FlightReader, connect
from flowstate_flight.mapping import ViewMapping
from flowstate_flight.server import FlightService
from flowstate_flight.ticket import Ticket

__all__ = ["FlightReader", "FlightService", "Ticket", "ViewMapping", "connect"]
