"""A service that lets some in, and who they are, for the tests of security. No Dask."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from flight_memory import directory_of, partitions_of
from flight_tables import TABLES, VIEWS
from pyarrow import flight

import flowstate as fs
from flowstate_flight import FlightService

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
