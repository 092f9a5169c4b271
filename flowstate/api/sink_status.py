"""How the sinks of a job are doing, for whoever reads it without running it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from flowstate.clock import SystemClock
from flowstate.errors import FlowstateError

if TYPE_CHECKING:
    from flowstate.runtime.saved_states import SavedStates
    from flowstate.store import Store
    from flowstate_flight.client import FlightReader


def stored(reader: FlightReader, saved: SavedStates | None) -> tuple[Store | None, Callable[[], dict[str, Any]]]:
    """Where a job saves, if that is known, and what tells how its sinks are doing: what its system tables need beside `reader`."""
    store = None if saved is None else saved.store
    return store, partial(sink_status, reader, store)


def sink_status(reader: FlightReader, store: Store | None) -> dict[str, Any]:
    """``{"partitions": {number: {"report": {"sinks": [...]}}}}``, the part of `Job.status` that can be had: from the workers, which tell it
    to those who may control the job; for partitions of which nobody tells anything, from what they saved last (`snapshot.sinks`)."""
    from flowstate.snapshot.sinks import saved_sinks

    found: dict[int, list[dict[str, Any]]] = {}
    numbers: list[int] = []
    try:
        directory = reader.directory()
        numbers = [each.partition for each in directory.partitions]
        found = _live(reader, directory.job)
        # No other read may ever tell this reader that a partition has moved, or has come since it first looked.
        if set(numbers) - set(found) and (newer := reader.refresh()) is not directory:
            numbers = [each.partition for each in newer.partitions]
            found = _live(reader, newer.job)
    except FlowstateError:
        pass  # it is down, and nobody knows more than what it saved
    if store is not None and (not numbers or set(numbers) - set(found)):
        try:
            found = saved_sinks(store, SystemClock().wall()) | found
        except FlowstateError:
            pass
    return {"partitions": {str(number): {"report": {"sinks": sinks}} for number, sinks in found.items()}}


def _live(reader: FlightReader, job: str) -> dict[int, list[dict[str, Any]]]:
    """What the workers tell that the reader knows of, of the newest incarnation of each partition."""
    found: dict[int, list[dict[str, Any]]] = {}
    newest: dict[int, int] = {}
    for status in reader.statuses():
        told = status.get("jobs", {}).get(job, {})
        for number, sinks in told.get("sinks", {}).items():
            epoch = told["partitions"].get(number, -1)
            if epoch > newest.get(int(number), -1):
                newest[int(number)], found[int(number)] = epoch, sinks
    return found
