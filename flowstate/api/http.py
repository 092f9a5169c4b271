"""A job over HTTP: JSON, Arrow and Server-Sent Events, for whoever has no Arrow Flight."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from flowstate.api import arguments
from flowstate.api.finding import served_by
from flowstate.errors import InvalidFlow

if TYPE_CHECKING:
    from flowstate.view.sql import RunSql
    from flowstate.view.tls import Tls
    from flowstate_flight.auth import Admits
    from flowstate_flight.client import FlightReader


class Http:
    """A job's HTTP service, and what it reads by. `address` is like ``http://127.0.0.1:8080``, or ``https://...``; `app` is the same as an
    ASGI application, to be mounted into one of your own (Starlette, FastAPI) beside pages and paths of yours."""

    def __init__(self, address: str, port: int, app: Any, owned: ExitStack) -> None:
        self.address, self.port, self.app, self._owned = address, port, app, owned

    def close(self) -> None:
        """Stop within about two seconds, with everything that is under way. Safe to repeat."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<http {self.address}>"


def http(
    address: str | None = None,
    job: str | None = None,
    *,
    snapshots: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    advertise: str | None = None,
    patience: float = 10.0,
    access: Admits = None,
    tls: Tls | None = None,
    token: str | None = None,
) -> Http:
    """Serve a job by HTTP from this process, until it is closed: ``fs.http(snapshots=url, port=8080).address``, then
    ``curl http://127.0.0.1:8080/views``. The paths are told in `flowstate_http.app`. Needs ``pip install flowstate[http]``.

    The job is found as by `gateway`, and everything else is as there: without an `access` it listens on loopback alone, and with `tls`,
    which is the job's or its like, it is reached by https. Raises `InvalidFlow`, and `Unavailable` if the port is taken.
    """

    arguments.name("host", host)
    arguments.whole("port", port, 0)
    with ExitStack() as stack:
        reader, sql = served_by(
            stack, address, job, snapshots, storage_options, patience=patience, token=token, tls=tls
        )
        service = service_of(reader, sql, access=access, host=host, port=port, tls=tls, advertise=advertise)
        stack.callback(service.close)
        return Http(service.address, service.port, service.app, stack.pop_all())


def service_of(reader: FlightReader, sql: RunSql | None, **options: Any) -> Any:
    """A `flowstate_http.HttpService`. Raises InvalidFlow where the extra is not installed."""
    try:
        from flowstate_http import HttpService
    except ImportError as error:
        raise InvalidFlow("HTTP needs an extra: pip install 'flowstate[http]'", missing=error.name) from None
    make: Callable[..., Any] = HttpService
    return make(reader, sql, **options)
