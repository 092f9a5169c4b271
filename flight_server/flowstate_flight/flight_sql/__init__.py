"""Flight SQL, as the drivers ADBC and JDBC speak it, in front of a `RunSql`. Read only, and nothing is kept between two calls.

`messages` reads and writes the commands; `call` says who asks, how fresh, and whether she is still there; `statements` describes and runs
queries; `metadata` and `sql_info` tell of tables and of the server; `columns` makes types that every driver reads; `service` joins them.
"""

from __future__ import annotations

from flowstate_flight.flight_sql.messages import is_flight_sql
from flowstate_flight.flight_sql.service import SQL_ACTIONS, FlightSql

__all__ = ["SQL_ACTIONS", "FlightSql", "is_flight_sql"]
