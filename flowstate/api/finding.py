"""Finding a job without Dask: by the Flight address of one of its workers, by its snapshots, or by both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flowstate.api import arguments
from flowstate.api.sink_status import stored
from flowstate.clock import SystemClock
from flowstate.errors import InvalidFlow

if TYPE_CHECKING:
    from flowstate.runtime.saved_states import SavedStates
    from flowstate.view.tls import Tls
    from flowstate_flight.client import FlightReader
    from flowstate_sql.served import ServedSql


def saved_states(url: str, storage_options: Mapping[str, Any], name: str | None = None, hint: str = "") -> SavedStates:
    """The saved side of the job whose snapshots are at `url`."""
    from flowstate.runtime.saved_states import SavedStates
    from flowstate.store import Store

    return SavedStates(Store.open(url, **storage_options), SystemClock(), name, hint)


def reader_of(
    address: str | None,
    job: str | None,
    snapshots: str | os.PathLike[str] | None,
    storage_options: Mapping[str, Any] | None,
    *,
    patience: float,
    early: bool = False,
    **options: Any,
) -> tuple[FlightReader, SavedStates | None]:
    """A reader of the job, and its saved side if there are `snapshots`, which the reader closes. `early`: there need not be a job yet.
    `options` are those of `FlightReader`. Nothing is connected yet. Raises InvalidFlow."""
    from flowstate_flight.client import FlightReader

    if address is None and snapshots is None:
        raise InvalidFlow("say where the job is: snapshots=, or the Flight address of one of its workers")
    source = [] if address is None else arguments.name("address", address)
    name = None if job is None else arguments.name("job", job)
    patience = arguments.seconds("patience", patience)
    storage_options = arguments.options("storage_options", storage_options)
    saved = None if snapshots is None else saved_states(arguments.place("snapshots", snapshots), storage_options, name)
    if saved is not None:
        saved.early = early
    return FlightReader(source, name, saved=saved, patience=patience, **options), saved


def served_by(
    stack: ExitStack,
    address: str | None,
    job: str | None,
    snapshots: str | os.PathLike[str] | None,
    storage_options: Mapping[str, Any] | None,
    *,
    patience: float,
    token: str | None,
    tls: Tls | None,
) -> tuple[FlightReader, ServedSql]:
    """What a service in front of a job reads it by, and runs SQL by; `stack` closes both. Raises InvalidFlow."""
    from flowstate_sql.served import ServedSql

    connecting = {} if tls is None else tls.connecting()
    reader, saved = reader_of(
        address, job, snapshots, storage_options, patience=patience, early=True, token=token, **connecting
    )
    stack.callback(reader.close)
    store, sinks = stored(reader, saved)
    sql = ServedSql(reader, store=store, status=sinks)
    stack.callback(sql.close)
    return reader, sql
