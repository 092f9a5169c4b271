"""A gateway: one stable address for a job, for clients in any language."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flowstate.api import arguments
from flowstate.api.finding import served_by
from flowstate.api.http import service_of

if TYPE_CHECKING:
    from flowstate.view.tls import Tls
    from flowstate_flight.auth import Admits
    from flowstate_flight.gateway import Gateway


def gateway(
    address: str | None = None,
    job: str | None = None,
    *,
    snapshots: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    http_port: int | None = None,
    advertise: str | None = None,
    patience: float = 10.0,
    access: Admits = None,
    tls: Tls | None = None,
    token: str | None = None,
) -> Gateway:
    """Serve a job at one address that stays, from this process, by Arrow Flight and Flight SQL (ADBC, JDBC), until it is closed:
    ``fs.gateway(snapshots=url, port=8815).address``.

    `snapshots` are those of the job (`storage_options` belong to them): by them it is found wherever it runs, and answered for, part by
    part, by what it saved last while it is down. `address` is the Flight address of a worker, instead or besides. There need not be a job
    yet. `patience`: seconds for one read in all. Port 0 is any free one; `advertise` is the name that others reach this machine by.

    With `http_port` it serves the same by HTTP besides (see `fs.http`), at `http_address`, to whom it lets in here, with the same `tls`.

    It keeps nothing of its own: start it again on the same port, or several beside each other. `access` says who is let in; without one it
    listens on loopback alone. Where the job has an access too, `token` is what the gateway shows its workers; it may read everything, and
    gives to each what is there for her. `tls` is the job's, or its like. Raises `InvalidFlow`, and `Unavailable` if the port is taken.
    """
    from flowstate_flight.gateway import Gateway

    arguments.name("host", host)
    arguments.whole("port", port, 0)
    if http_port is not None:
        arguments.whole("http_port", http_port, 0)
    with ExitStack() as stack:
        reader, sql = served_by(
            stack, address, job, snapshots, storage_options, patience=patience, token=token, tls=tls
        )
        served = Gateway(reader, host, port, sql=sql, access=access, tls=tls, advertise=advertise)
        stack.pop_all()
        stack.callback(served.close)  # which closes both
        if http_port is not None:
            options: dict[str, Any] = {"access": access, "host": host, "tls": tls, "advertise": advertise}
            served.beside = service_of(reader, sql, port=http_port, **options)
        stack.pop_all()
        return served
