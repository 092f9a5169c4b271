"""What a worker knows of its partitions beyond their reports (`runtime.status`): plain data, sent with Dask's heartbeats."""

from __future__ import annotations

import weakref
from typing import Any

from flowstate.plan.position import FOREVER, NEVER
from flowstate.plan.spec import DEAD_LETTERS
from flowstate.runtime.counted import CountedPartition
from flowstate.runtime.host import Host
from flowstate.runtime.partition import Partition
from flowstate.runtime.pump import Pump
from flowstate.state.append import AppendTable
from flowstate.state.watermark import TIMELESS

#: Seconds for which the size of a state is not counted again.
SIZE_FOR = 1.0
#: Splits of one partition whose ends are looked at; of more, the others have no lag.
MOST_SPLITS = 200


class Figures:
    """Of the worker process of `host`. Looked at by one thread at a time."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._sizes: weakref.WeakKeyDictionary[Pump, tuple[float, int]] = weakref.WeakKeyDictionary()

    def served(self) -> list[CountedPartition]:
        return list(self.host.served.values())

    def look(self) -> dict[str, Any]:
        """By job and partition: ``{"epoch", "bytes", "queries", "ends", "appended", "letters", "marks", "waits"}``, msgpack-able."""
        found: dict[str, Any] = {}
        for each in self.served():
            found.setdefault(each.job, {})[str(each.partition)] = {
                "epoch": each.pump.epoch,
                "bytes": self.size(each.pump),
                "queries": {kind: queries.total for kind, queries in each.queries.items()},
                "ends": self.ends(each.pump),
                "appended": self.appended(each.pump),
                "letters": self.letters(each.pump),
                "marks": self.marks(each.pump),
                "waits": self.waits(each.pump),
            }
        return found

    def size(self, pump: Pump) -> int | None:
        """Bytes of its tables; None while it loads. Asked beside the pump: what it changes meanwhile is counted the next time."""
        now = self.host.clock.monotonic()
        counted = self._sizes.get(pump)
        if counted is not None and now - counted[0] < SIZE_FOR:
            return counted[1]
        machine = _restored(pump)
        if machine is None:
            return None
        try:
            tables = list(machine.contents.tables.values())
            size = sum(sum(each.memory().values()) for each in tables)
        except RuntimeError:  # something grew while it was counted
            return None if counted is None else counted[1]
        self._sizes[pump] = now, size
        return size

    @staticmethod
    def ends(pump: Pump) -> dict[str, list[int]]:
        """Of the splits that it reads: where each ends now, as far as that can be told at a look, and how far of it is applied here."""
        machine = _restored(pump)
        if machine is None:
            return {}
        found: dict[str, list[int]] = {}
        for split, reading in list(machine.readings.items())[:MOST_SPLITS]:
            end = reading.end if reading.end is not None else pump.intake.known_end(reading.entry.source, split)
            applied = machine.contents.marks.position.get(split)
            if end is not None and applied is not None:
                found[split] = [end, applied.offset]
        return found

    @staticmethod
    def appended(pump: Pump) -> dict[str, int]:
        """Rows that its tables without a key (late rows, dead letters, streams on their way to a sink) were ever given."""
        machine = _restored(pump)
        if machine is None:
            return {}
        tables = machine.contents.tables.items()
        return {name: table.count for name, table in list(tables) if isinstance(table, AppendTable)}

    @staticmethod
    def letters(pump: Pump) -> dict[str, dict[str, int]]:
        """Of dead letters and of the late rows of each view: how many there ever were of each split that has some."""
        machine = _restored(pump)
        if machine is None:
            return {}
        found: dict[str, dict[str, int]] = {}
        for name, table in list(machine.contents.tables.items()):
            told = name == DEAD_LETTERS or (name.endswith("_late") and name[: -len("_late")] in pump.spec.plan.views)
            if isinstance(table, AppendTable) and told and table.count:
                counts = {split: count for split, count in list(table.extras()["counts"].items()) if count}
                found[name] = dict(sorted(counts.items(), key=lambda each: -each[1])[:MOST_SPLITS])
        return found

    @staticmethod
    def marks(pump: Pump) -> dict[str, list[int]]:
        """Of the splits that it reads and that have event times: the watermark of each, and whether it is that of a floor."""
        machine = _restored(pump)
        if machine is None:
            return {}
        found: dict[str, list[int]] = {}
        marks = machine.contents.marks
        for split in list(machine.readings)[:MOST_SPLITS]:
            if marks.lateness.get(split, TIMELESS) != TIMELESS and marks.newest[split] != FOREVER:
                watermark = marks.of_split(split)
                found[split] = [watermark, int(watermark == marks.floor[split] != NEVER)]
        return found

    @staticmethod
    def waits(pump: Pump) -> dict[str, list[int]]:
        """Of the splits that it reads: the other partitions that it waits for, since they have not taken what was sent to them."""
        machine = _restored(pump)
        if machine is None:
            return {}
        found: dict[str, list[int]] = {}
        for split, reading in list(machine.readings.items())[:MOST_SPLITS]:
            streams = list(reading.streams.items())
            full = [owner for owner, stream in streams if owner != pump.number and not stream.window.room]
            if full:
                found[split] = sorted(full)
        return found


def _restored(pump: Pump) -> Partition | None:
    """None as long as it loads."""
    return None if pump.state == "loading" else pump.machine
