"""flowstate: keyed totals that are live, exact, and queryable while events stream in.

The path of a row, and the rooms in its order:

1. `source`: a log (Kafka, files, Arrow) gives rows with their place in it, *(split, offset)*; what cannot be read is a dead letter.
2. `runtime.prepare`: the reader of the split notes the watermark before each row, evaluates the flow's expressions (`plan`), judges
   whether the row is late, and `exchange.route` tells the owner of its key.
3. `exchange`: rows travel to their owners over Arrow Flight, each message saying which stretch of the log it covers.
4. `state`: the owner folds them into keyed Arrow columns; position and state change together, so nothing is counted twice.
5. `view` and `flowstate_flight`: the state is served while it changes, per key and by SQL (`flowstate_sql`), each answer with its position.
6. `snapshot` and `sink`: state and position are saved together; rows of closed windows leave exactly once.

`plan` is the shared vocabulary and `pyarrow.RecordBatch` the shared currency; `source`, `exchange`, `state`, `snapshot` and `sink` do not
know each other, and `runtime` alone wires them. `api` is what a user holds: this module re-exports it. Each name is imported when it is
first used, so that a command that only says how it is called needs neither Arrow nor DuckDB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowstate.api.gateway import gateway
    from flowstate.api.http import http
    from flowstate.api.job import Job, Snapshot, attach, connect, open_snapshot
    from flowstate.api.start import start
    from flowstate.api.stream import dead_letters, from_arrow, scan_files, scan_kafka
    from flowstate.errors import CorruptData, Fenced, FlowstateError, InternalError, InvalidFlow, Moved, Unavailable
    from flowstate.plan.expr import col, len, lit
    from flowstate.plan.expr_choice import when
    from flowstate.plan.window import window
    from flowstate.view.access import Access
    from flowstate.view.tls import Tls

__version__ = "0.1.0"

__all__ = [
    "Access",
    "CorruptData",
    "Fenced",
    "FlowstateError",
    "InternalError",
    "InvalidFlow",
    "Job",
    "Moved",
    "Snapshot",
    "Tls",
    "Unavailable",
    "attach",
    "col",
    "connect",
    "dead_letters",
    "from_arrow",
    "gateway",
    "http",
    "len",
    "lit",
    "open_snapshot",
    "scan_files",
    "scan_kafka",
    "start",
    "when",
    "window",
]

_PLACES = {
    "flowstate.api.gateway": ("gateway",),
    "flowstate.api.http": ("http",),
    "flowstate.api.job": ("Job", "Snapshot", "attach", "connect", "open_snapshot"),
    "flowstate.api.start": ("start",),
    "flowstate.api.stream": ("dead_letters", "from_arrow", "scan_files", "scan_kafka"),
    "flowstate.errors": (
        "CorruptData",
        "Fenced",
        "FlowstateError",
        "InternalError",
        "InvalidFlow",
        "Moved",
        "Unavailable",
    ),
    "flowstate.plan.expr": ("col", "len", "lit"),
    "flowstate.plan.expr_choice": ("when",),
    "flowstate.plan.window": ("window",),
    "flowstate.view.access": ("Access",),
    "flowstate.view.tls": ("Tls",),
}
_WHERE = {name: module for module, names in _PLACES.items() for name in names}

if not TYPE_CHECKING:  # where it is seen, every name is taken for known

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_WHERE[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
