"""The ways in which a view of subtotals by customer and month can be read, each with the same three questions.

An answer is plain Python: `Rows` maps (customer, month) to (total, events), `Sums` maps customer to the same. `at_least` is as everywhere.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.parse
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import adbc_driver_flightsql.dbapi
import duckdb
import jdbc_client
import pandas as pd
import polars as pl
import pyarrow as pa
from adbc_driver_flightsql import DatabaseOptions
from go_reader import GoReader
from pyarrow import flight
from required import required

import flowstate_sql
from flowstate.api.job import Reads

Rows = dict[tuple[str, datetime], tuple[Decimal, int]]
Sums = dict[str, tuple[Decimal, int]]
AtLeast = Mapping[str, int]
VIEW = "monthly"
#: Queries over {view}; the customer is the parameter.
ONE = "select customer, month, total, events from {view} where customer = {customer}"
ALL = "select customer, month, total, events from {view}"
GROUPED = "select customer, sum(total) as total, sum(events)::bigint as events from {view} group by customer"
#: Seconds for which a client that has to say it waits for what it asks.
WAIT = 20


class Client(Protocol):
    """One way to read. Each question is answered from a state that has applied `at_least`."""

    def one(self, customer: str, at_least: AtLeast) -> Rows: ...

    def all(self, at_least: AtLeast) -> Rows: ...

    def grouped(self, at_least: AtLeast) -> Sums: ...

    def close(self) -> None: ...


def rows_of(table: pa.Table) -> Rows:
    found = {(row["customer"], row["month"]): (row["total"], row["events"]) for row in table.to_pylist()}
    assert len(found) == table.num_rows, "a row came twice"
    return found


def sums_of(table: pa.Table) -> Sums:
    found = {row["customer"]: (row["total"], row["events"]) for row in table.to_pylist()}
    assert len(found) == table.num_rows, "a row came twice"
    return found


def summed(table: pa.Table) -> Sums:
    """By Arrow, for those who are given rows only."""
    totals = table.group_by("customer").aggregate([("total", "sum"), ("events", "sum")])
    return sums_of(totals.rename_columns(["customer", "total", "events"]))


class PlainFlight:
    """pyarrow.flight and docs/flight.md, at a worker or a gateway."""

    def __init__(self, address: str, job: str) -> None:
        self._address, self._client = address, flight.connect(address)
        self._command = {"v": 1, "job": job, "view": VIEW, "wait": WAIT}

    def _read(self, **fields: Any) -> pa.Table:
        command = flight.FlightDescriptor.for_command(json.dumps({**self._command, **fields}))
        tables = []
        for endpoint in self._client.get_flight_info(command).endpoints:
            with flight.connect(endpoint.locations[0] if endpoint.locations else self._address) as service:
                tables.append(service.do_get(endpoint.ticket).read_all().replace_schema_metadata())
        return pa.concat_tables(tables)

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        keys, sink = pa.record_batch({"customer": [customer]}), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, keys.schema) as writer:
            writer.write_batch(keys)
        return rows_of(self._read(keys=b64encode(sink.getvalue()).decode(), fresh={"at_least": at_least}))

    def all(self, at_least: AtLeast) -> Rows:
        return rows_of(self._read(fresh={"at_least": at_least}))

    def grouped(self, at_least: AtLeast) -> Sums:
        return summed(self._read(columns=["customer", "total", "events"], fresh={"at_least": at_least}))

    def close(self) -> None:
        self._client.close()


class Go:
    """The client in Go, at a worker or a gateway."""

    def __init__(self, address: str, job: str) -> None:
        self._go, self._job = GoReader(address), job

    def _fresh(self, at_least: AtLeast) -> dict[str, Any]:
        return {"fresh": {"at_least": at_least}, "wait": WAIT}

    def _command(self, at_least: AtLeast) -> dict[str, Any]:
        return {"v": 1, "job": self._job, "view": VIEW, **self._fresh(at_least)}

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        asked = {"keys": [{"customer": customer}], "metadata": self._fresh(at_least)}
        return rows_of(self._go.table(do="exchange", job=self._job, view=VIEW, messages=[asked]))

    def all(self, at_least: AtLeast) -> Rows:
        return rows_of(self._go.table(do="read", command=self._command(at_least)))

    def grouped(self, at_least: AtLeast) -> Sums:
        command = {**self._command(at_least), "columns": ["customer", "total", "events"]}
        return summed(self._go.table(do="read", command=command))

    def close(self) -> None:
        self._go.close()


class OwnReader:
    """`fs.connect` or the job itself: a mapping, and SQL in this process."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        return rows_of(self._reads.at(at_least=at_least)[VIEW][customer])

    def all(self, at_least: AtLeast) -> Rows:
        return rows_of(self._reads.to_table(VIEW, at_least=at_least))

    def grouped(self, at_least: AtLeast) -> Sums:
        return sums_of(self._reads.sql(GROUPED.format(view=VIEW), at_least=at_least).to_arrow_table())

    def close(self) -> None:
        """The job is not this client's."""


class OwnSql(OwnReader):
    """The same by SQL alone."""

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        query = ONE.format(view=VIEW, customer="$1")
        return rows_of(self._reads.sql(query, [customer], at_least=at_least).to_arrow_table())

    def all(self, at_least: AtLeast) -> Rows:
        return rows_of(self._reads.sql(ALL.format(view=VIEW), at_least=at_least).to_arrow_table())


class OwnDuckDB:
    """The views attached to a DuckDB of the user's, with the customer in a table of hers."""

    def __init__(self, address: str) -> None:
        self._connection = duckdb.connect()
        self._connection.execute("create table asked (customer text)")
        self._live = flowstate_sql.attach(self._connection, address, name="live")

    def _ask(self, query: str, at_least: AtLeast) -> pa.Table:
        self._live.refresh(at_least=at_least)
        return self._connection.sql(query).to_arrow_table()

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        self._connection.execute("insert into asked values ($1)", [customer])
        try:
            query = f"select customer, month, total, events from live.{VIEW} join asked using (customer)"
            return rows_of(self._ask(query, at_least))
        finally:
            self._connection.execute("delete from asked")

    def all(self, at_least: AtLeast) -> Rows:
        return rows_of(self._ask(ALL.format(view=f"live.{VIEW}"), at_least))

    def grouped(self, at_least: AtLeast) -> Sums:
        return sums_of(self._ask(GROUPED.format(view=f"live.{VIEW}"), at_least))

    def close(self) -> None:
        self._live.detach()
        self._connection.close()


class Adbc:
    """The ADBC driver of Flight SQL, at a gateway."""

    def __init__(self, address: str) -> None:
        self._address = address.replace("grpc://", "grpc+tcp://")

    def _connect(self, at_least: AtLeast) -> Any:
        header = f"{DatabaseOptions.RPC_CALL_HEADER_PREFIX.value}x-flowstate-at-least"
        return adbc_driver_flightsql.dbapi.connect(
            self._address, db_kwargs={header: json.dumps(at_least)}, autocommit=True
        )

    def _ask(self, query: str, at_least: AtLeast, params: list[Any] | None = None) -> pa.Table:
        with self._connect(at_least) as connection, connection.cursor() as cursor:
            cursor.execute(query, params)
            return cursor.fetch_arrow_table()

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        return rows_of(self._ask(ONE.format(view=VIEW, customer="$1"), at_least, [customer]))

    def all(self, at_least: AtLeast) -> Rows:
        return rows_of(self._ask(ALL.format(view=VIEW), at_least))

    def grouped(self, at_least: AtLeast) -> Sums:
        return sums_of(self._ask(GROUPED.format(view=VIEW), at_least))

    def close(self) -> None:
        """Connections are closed after every question."""


class Pandas(Adbc):
    """ADBC with `pandas.read_sql`, which passes no parameters on to ADBC."""

    def _ask(self, query: str, at_least: AtLeast, params: list[Any] | None = None) -> pa.Table:
        for number, each in enumerate(params or [], 1):
            query = query.replace(f"${number}", "'" + each.replace("'", "''") + "'")
        with self._connect(at_least) as connection:
            frame = pd.read_sql(query, connection, dtype_backend="pyarrow")
        return pa.Table.from_pandas(frame, preserve_index=False)


class Polars(Adbc):
    """ADBC with `polars.read_database`."""

    def _ask(self, query: str, at_least: AtLeast, params: list[Any] | None = None) -> pa.Table:
        with self._connect(at_least) as connection:
            options = None if params is None else {"parameters": params}
            return pl.read_database(query, connection, execute_options=options).to_arrow()


class Jdbc:
    """The JDBC driver of Flight SQL, at a gateway; one Java process, a connection for each question."""

    def __init__(self, address: str) -> None:
        required(jdbc_client.missing, jdbc_client.fetch)
        command = [
            "java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.timezone=UTC",
            "--add-opens=java.base/java.nio=ALL-UNNAMED", "-cp", f"{jdbc_client.fetch()}/*",
            str(Path(jdbc_client.FOLDER) / "Rows.java"),
        ]  # fmt: skip
        self._url = (
            f"jdbc:arrow-flight-sql://{address.partition('://')[2]}/?useEncryption=false&x-flowstate-timestamps=naive"
        )
        self._java = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, query: str, at_least: AtLeast, *params: str) -> list[list[str]]:
        assert self._java.stdin is not None
        assert self._java.stdout is not None
        url = f"{self._url}&x-flowstate-at-least={urllib.parse.quote(json.dumps(at_least))}"
        self._java.stdin.write("\t".join([url, query, *params]) + "\n")
        self._java.stdin.flush()
        found = []
        while (line := self._java.stdout.readline().rstrip("\n")) != ".":
            assert line and not line.startswith("!"), line
            found.append(line.split("\t"))
        return found

    def _rows(self, found: list[list[str]]) -> Rows:
        rows = {
            (customer, datetime.fromtimestamp(int(month) / 1000, UTC)): (Decimal(total), int(events))
            for customer, month, total, events in found
        }
        assert len(rows) == len(found), "a row came twice"
        return rows

    def one(self, customer: str, at_least: AtLeast) -> Rows:
        return self._rows(self._ask(ONE.format(view=VIEW, customer="?"), at_least, customer))

    def all(self, at_least: AtLeast) -> Rows:
        return self._rows(self._ask(ALL.format(view=VIEW), at_least))

    def grouped(self, at_least: AtLeast) -> Sums:
        found = self._ask(GROUPED.format(view=VIEW), at_least)
        return {customer: (Decimal(total), int(events)) for customer, total, events in found}

    def close(self) -> None:
        for pipe in (self._java.stdin, self._java.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._java.wait(20)
