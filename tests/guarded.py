"""A service that lets some in, who they are, and every call that can be made of it, for the tests of security. No Dask."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS, ordered
from pyarrow import flight

import flowstate as fs
from flowstate_flight import FlightService
from flowstate_flight.ticket import Ticket, write_keys

COUNT = 3
PASSWORD = "correct horse battery"
HASHED = fs.Access.hash_password(PASSWORD)  # 40 ms, once
#: Who there is: name -> (bearer token, what stands in the file)
TOKENS = {name: fs.Access.make_token() for name in ("boss", "anna", "clerk", "analyst", "former")}
GRANTS: dict[str, list[dict[str, Any]]] = {
    "boss": [{"actions": ["read", "sql", "control"]}],
    "anna": [{"actions": ["read", "sql"], "views": ["subtotals"], "rows": {"customer": "customer-3"}}],
    "clerk": [{"actions": ["read"], "views": ["subtotals_late"]}],
    "analyst": [{"actions": ["sql"]}],
    "former": [{"actions": ["read", "sql", "control"]}],
}
#: A token that only the processes of a job know.
INTERNAL = "internal-token-of-this-test"


def config() -> dict[str, Any]:
    principals: dict[str, Any] = {
        name: {"tokens": [TOKENS[name][1]], "grants": grants} for name, grants in GRANTS.items()
    }
    principals["anna"] |= {"password": HASHED, "certificates": ["anna.example.org"]}
    principals["former"]["expires"] = dt.date(2020, 1, 1)
    return {"principals": principals}


def token(name: str) -> str:
    return TOKENS[name][0]


def shows(token: str) -> flight.FlightCallOptions:
    return flight.FlightCallOptions(headers=[(b"authorization", b"Bearer " + token.encode())], timeout=20)


class Guarded:
    """Two jobs of the same views: `billing`, and `other`, of which nobody but the boss sees anything: its only view is `secrets`."""

    def __init__(self, **options: Any) -> None:
        self.access = fs.Access(config())
        options = {"access": self.access, "internal": INTERNAL, **options}
        self.service = FlightService(**options)
        self.partitions = partitions_of("billing", VIEWS, TABLES, COUNT, epoch=4)
        hidden = {"secrets": replace(VIEWS["subtotals"], name="secrets")}
        self.others = partitions_of("other", hidden, {"secrets": TABLES["subtotals"]}, 1)
        for each in [*self.partitions, *self.others]:
            self.service.register(each)
        location = self.service.location
        self.service.set_directory(directory_of("billing", VIEWS, [location] * COUNT, epoch=4))
        self.service.set_directory(directory_of("other", hidden, [location]))

    def close(self) -> None:
        self.service.close()


# what is asked of it

MINE = pa.record_batch({"customer": ["customer-3"], "kind": ["b"]})
THEIRS = pa.record_batch({"customer": ["customer-4"], "kind": ["a"]})
NOBODYS = pa.record_batch({"customer": ["customer-x"], "kind": ["a"]})
SUBTOTALS = TABLES["subtotals"]
HERS = ordered(SUBTOTALS.filter(pc.field("customer") == "customer-3"))


def path(*names: str) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_path(*names)


def ticket(view: str, partition: int | None = 0, *, job: str = "billing", **fields: Any) -> bytes:
    return Ticket(job, view, partition, **fields).to_bytes()


def act(client: flight.FlightClient, kind: str, body: bytes, options: flight.FlightCallOptions) -> bytes:
    (result,) = client.do_action(flight.Action(kind, body), options)
    return bytes(result.body.to_pybytes())


def exchange(
    client: flight.FlightClient,
    options: flight.FlightCallOptions,
    view: str,
    keys: pa.RecordBatch,
    job: str = "billing",
) -> list[pa.RecordBatch]:
    """The rows of each partition."""
    command = json.dumps({"v": 1, "kind": "lookup", "job": job, "view": view})
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(command), options)
    found = []
    try:
        writer.begin(keys.schema)
        for partition in range(COUNT if job == "billing" else 1):
            writer.write_with_metadata(keys, json.dumps({"partition": partition, "id": 1}).encode())
            chunk = reader.read_chunk()
            reply = json.loads(chunk.app_metadata.to_pybytes())
            if "error" in reply:
                raise flight.FlightServerError(json.dumps(reply["error"]))
            found.append(chunk.data)
    finally:
        reader.cancel()
        with contextlib.suppress(flight.FlightError, pa.ArrowException):
            writer.close()
    return found


Call = Callable[[flight.FlightClient, flight.FlightCallOptions, str, str], Any]
#: Every way to name a view: (client, options, job, view) -> whether, or how much, something is there.
CALLS: dict[str, Call] = {
    "flight info by path": lambda c, o, job, view: c.get_flight_info(path(view), o).schema.names,
    "flight info by job and path": lambda c, o, job, view: c.get_flight_info(path(job, view), o).schema.names,
    "flight info by command": lambda c, o, job, view: (
        c.get_flight_info(flight.FlightDescriptor.for_command(ticket(view, None, job=job)), o).schema.names
    ),
    "schema": lambda c, o, job, view: c.get_schema(path(view), o).schema.names,
    "scan": lambda c, o, job, view: c.do_get(flight.Ticket(ticket(view, job=job)), o).read_all().num_rows,
    "scan in an epoch": lambda c, o, job, view: (
        c.do_get(flight.Ticket(ticket(view, job=job, epoch=4 if job == "billing" else 1)), o).read_all().num_rows
    ),
    "scan of a partition that is not there": lambda c, o, job, view: c.do_get(
        flight.Ticket(ticket(view, 99, job=job)), o
    ).read_all(),
    "lookup by do_get": lambda c, o, job, view: (
        c.do_get(flight.Ticket(ticket(view, job=job, keys=write_keys(MINE))), o).read_all().num_rows
    ),
    "lookup by action": lambda c, o, job, view: len(act(c, "lookup", ticket(view, job=job, keys=write_keys(MINE)), o)),
    "lookup by exchange": lambda c, o, job, view: len(exchange(c, o, view, MINE, job)),
}


def _raw(view: str, job: str, **fields: Any) -> flight.Ticket:
    data = {"v": 1, "job": job, "view": view, "partition": 0, **fields}
    return flight.Ticket(json.dumps(data).encode())


#: What has tests of its own where it is allowed.
REFUSED: dict[str, Call] = {
    "changes": lambda c, o, job, view: c.do_get(_raw(view, job, changes=True), o).read_chunk(),
    "partial query": lambda c, o, job, view: c.do_get(_raw(view, job, partial="{}"), o).read_all(),
    "in a cut": lambda c, o, job, view: c.do_get(_raw(view, job, fresh={"cut": 1}), o).read_all(),
    "past a position": lambda c, o, job, view: c.do_get(
        _raw(view, job, fresh={"at_least": {"events-0": [10**9, 0]}}), o
    ).read_all(),
    "unknown columns": lambda c, o, job, view: c.do_get(_raw(view, job, columns=["nonsense"]), o).read_all(),
    "damaged keys": lambda c, o, job, view: c.do_get(_raw(view, job, keys="AAAA"), o).read_all(),
    "damaged filter": lambda c, o, job, view: c.do_get(_raw(view, job, filter="AAAA"), o).read_all(),
}


def outcome(call: Callable[[], Any], *names: str) -> tuple[str, Any]:
    """What comes of it: there, or the error with `names` taken out, and whatever tells it from another."""
    try:
        call()
    except (flight.FlightError, pa.ArrowException) as error:  # pyarrow's get_schema raises no Flight error
        text, _, _ = str(error).partition(" gRPC client debug context")  # which says how far the client had come
        extra = bytes(getattr(error, "extra_info", None) or b"").decode()
        for each in names:
            for quote in "'\"":
                text, extra = (whole.replace(f"{quote}{each}{quote}", "NAME") for whole in (text, extra))
        return type(error).__name__, (text, extra)
    return "there", None


SEES = {
    "boss": {"subtotals", "subtotals_late", "secrets"},
    "anna": {"subtotals"},
    "clerk": {"subtotals_late"},
    "analyst": set(),
}
WHERE = {"subtotals": "billing", "subtotals_late": "billing", "secrets": "other"}


def near(name: str) -> str:
    """A name that is nobody's, and for hints as near to others as `name`."""
    return name[:-1] + "x"
