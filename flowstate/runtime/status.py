"""A partition in plain data, as its worker reports it and `job.status()` shows it."""

from __future__ import annotations

from typing import Any

from flowstate.runtime.pump import Pump
from flowstate.state.table import KeyedTable


def sinks_of(pump: Pump) -> list[dict[str, Any]] | None:
    """How its sinks are doing (`Committing.describe`); None while it loads. From any thread."""
    commits = pump.commits
    return None if commits is None or pump.state == "loading" else commits.machine.describe(pump.clock.wall())


def describe(pump: Pump) -> dict[str, Any]:
    """Msgpack-able. Read without the gate: numbers may be of slightly different moments."""
    report: dict[str, Any] = {
        "job": pump.spec.name,
        "run": pump.spec.run,
        "partition": pump.number,
        "epoch": pump.epoch,
        "state": pump.state,
        "reason": pump.reason,
        "problems": dict(pump.problems),
        "damaged": list(pump.damaged),
    }
    machine, commits = pump.machine, pump.commits
    if machine is None or commits is None or pump.state == "loading":
        return report
    marks, committing = machine.contents.marks, commits.machine
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
        "snapshot": {"version": committing.manifest.version, "at": commits.saved_at, "seconds": commits.seconds},
        "spilled": committing.spilled,
        "unpublished": len(committing.unpublished),
        "open": sum(each.open for each in committing.manifest.staged),
        "rejected": committing.rejected.total(),
        "sinks": committing.describe(pump.clock.wall()),
        "cut": pump.cut,
        "cut_saved": commits.cut_saved,
    }
