"""A partition in plain data, as its worker reports it and `job.status()` shows it."""

from __future__ import annotations

from typing import Any

from flowstate.runtime.pump import Pump
from flowstate.state.table import KeyedTable


def describe(pump: Pump) -> dict[str, Any]:
    """Msgpack-able. Read without the gate: numbers may be of slightly different moments."""
    report: dict[str, Any] = {
        "job": pump.spec.name,
        "partition": pump.number,
        "epoch": pump.epoch,
        "state": pump.state,
        "reason": pump.reason,
        "problems": dict(pump.problems),
        "damaged": list(pump.damaged),
    }
    machine = pump.machine
    if machine is None or pump.state == "loading":
        return report
    marks = machine.contents.marks
    return report | {
        "table": machine.table.version,
        "position": {split: list(place) for split, place in list(marks.position.items())},
        "reached": marks.reached,
        "watermark": marks.watermark(),
        "ended": marks.ended,
        "rows": machine.contents.applied_rows,
        "keys": {name: table.rows for name, table in machine.contents.tables.items() if isinstance(table, KeyedTable)},
        "reads": sorted(machine.readings),
        "floors": {split: len(reading.floors) for split, reading in list(machine.readings.items())},
        "waiting": sum(machine.lag().values()),
        "filling": sorted(machine.goals),
        "refused": machine.refused,
        "snapshot": {"version": pump.manifest.version, "at": pump.saved_at, "seconds": pump.save_seconds},
        "unpublished": len(pump.manifest.staged),
        "cut": pump.cut,
        "cut_saved": pump.cut_saved,
    }
