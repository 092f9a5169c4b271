"""A job whose rows are applied by hand: the partitions are the real ones as readers see them, at real Flight services; what is left out is
the pump's thread, so that a test says when what is applied, and when a partition moves."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
from flight_tables import ordered

import flowstate as fs
from flowstate.clock import SystemClock
from flowstate.exchange.message import Batch
from flowstate.exchange.route import Router
from flowstate.plan.compile import compile as compile_plan
from flowstate.plan.position import NEVER, OFFSET, TIME, Place
from flowstate.plan.spec import DEAD_LETTER_SCHEMA, TableSpec
from flowstate.runtime.awaited import Awaited
from flowstate.runtime.contents import Contents
from flowstate.runtime.gate import Gate
from flowstate.runtime.job_spec import JobSpec
from flowstate.runtime.prepare import Preparer
from flowstate.runtime.serving import ServedPartition
from flowstate.runtime.stored import view_info
from flowstate.source.base import Rows
from flowstate.view.directory import Directory, PartitionInfo
from flowstate_flight.server import FlightService

SECOND = pa.timestamp("s", "UTC")
SCHEMA = pa.schema({"who": pa.string(), "at": SECOND, "amount": pa.decimal128(12, 2), "note": pa.string()})
SEED, GROUPS = 3, 128
#: (who, second, amount, note)
Event = tuple[str | None, int, int, str | None]

WHO = ["anna", "bert", "carla", "dora", None, "e" * 40]


def views() -> list[Any]:
    """`totals` for ever; `hours` whose windows go an hour after they closed, with its late rows."""
    events = fs.from_arrow(pa.table({each.name: pa.array([], each.type) for each in SCHEMA}), event_time="at")
    total = {"total": fs.col("amount").sum(), "longest": fs.col("note").max(), "newest": fs.col("note").last()}
    hour = fs.window("at", every="1h", grace="0s", keep="1h")
    return [
        events.group_by("who").agg(**total).view("totals"),
        events.group_by("who", hour=hour).agg(**total).view("hours"),
    ]


class HandPump:
    """What `ServedPartition` needs of a pump."""

    def __init__(self, spec: JobSpec, number: int, epoch: int) -> None:
        self.spec, self.number, self.epoch = spec, number, epoch
        self.gate, self.awaited = Gate(), Awaited()
        self.state, self._stopping = "live", False
        self.machine: Any = object()
        self._contents = Contents(spec.plan, SEED, epoch)

    def stop(self) -> None:
        self.state, self._stopping = "stopped", True
        self.awaited.end()


class HandJob:
    """`log` is what was applied, by split; each partition is at a service of its own."""

    def __init__(self, partitions: int = 2, *, outputs: Sequence[Any] = (), **options: Any) -> None:
        """`options` are those of the services."""
        plan = compile_plan([each.node for each in outputs or views()])
        self.spec = JobSpec("hand", plan, "", partitions=partitions, seed=SEED, key_groups=GROUPS)
        router = Router(partitions=partitions, groups=GROUPS, seed=SEED)
        self.preparer = Preparer(plan, router)
        self.log: dict[str, list[Event]] = {}
        self.version = 0
        self.services = [FlightService(**options) for _ in range(partitions)]
        self.pumps: dict[int, HandPump] = {}
        self.served: dict[int, ServedPartition] = {}
        for number in range(partitions):
            self._serve(number, 1)
        self.announce()

    def _serve(self, number: int, epoch: int) -> None:
        pump = HandPump(self.spec, number, epoch)
        served = ServedPartition(pump, SystemClock())  # type: ignore[arg-type]
        self.pumps[number], self.served[number] = pump, served
        for split in self.log:
            self._include(pump, split)

    def _include(self, pump: HandPump, split: str) -> None:
        with pump.gate:
            pump._contents.marks.include(split, lateness=0, place=Place(0, 0))

    def announce(self) -> None:
        """The directory, to every service."""
        self.version += 1
        places = tuple(
            PartitionInfo(number, each.epoch, self.services[number].location) for number, each in self.served.items()
        )
        infos = {name: view_info(name, spec, spec.schema) for name, spec in self.spec.plan.views.items()}
        self.directory = Directory("hand", self.version, SEED, GROUPS, infos, places)
        for number, each in self.served.items():
            self.services[number].register(each)
        for service in self.services:
            service.set_directory(self.directory)

    def append(self, split: str, events: Sequence[Event]) -> None:
        """Further rows of a split, applied by all partitions."""
        if split not in self.log:
            self.log[split] = []
            for pump in self.pumps.values():
                self._include(pump, split)
        self.log[split] += events
        for number in self.pumps:
            self.catch_up(number)

    def catch_up(self, number: int, upto: dict[str, int] | None = None) -> None:
        """Apply what a partition has not applied yet; of each split at most `upto`."""
        pump = self.pumps[number]
        contents = pump._contents
        for split, events in self.log.items():
            place, newest = contents.marks.position[split], contents.marks.newest[split]
            to = len(events) if upto is None else upto.get(split, 0)
            if to <= place.offset:
                continue
            found = self.preparer.prepare(0, rows_of(split, events, place.offset, to), newest, NEVER)
            with pump.gate:
                contents.apply(split, Batch(place, Place(to, 0), found.newest, NEVER, found.owners.get(number, {})))
        pump.awaited.tell()

    def move(self, number: int, upto: dict[str, int] | None = None) -> None:
        """Another incarnation takes the partition over, at another service, and has applied `upto` again."""
        before, service = self.pumps[number], self.services[number]
        before.stop()
        service.unregister("hand", number)
        self._serve(number, before.epoch + 1)
        self.catch_up(number, upto)
        self.services[number] = FlightService()
        self.announce()
        service.set_directory(self.directory)
        threading.Thread(target=service.close).start()

    def rows(self, view: str) -> list[dict[str, Any]]:
        """What all partitions hold now."""
        found: list[dict[str, Any]] = []
        for pump in self.pumps.values():
            with pump.gate:
                taken = pump._contents.tables[view].view()
            for batch in taken.batches():
                found += batch.to_pylist()
        return found

    def keys(self, view: str) -> list[str]:
        spec = self.spec.plan.tables[view]
        return list(spec.key_schema.names) if isinstance(spec, TableSpec) else []

    def close(self) -> None:
        for pump in self.pumps.values():
            pump.stop()
        for service in self.services:
            service.close()

    def __enter__(self) -> HandJob:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def rows_of(split: str, events: Sequence[Event], since: int, to: int) -> Rows:
    who, at, amount, note = (list(each) for each in zip(*events[since:to], strict=True))
    columns = [
        pa.array(who, pa.string()),
        pa.array(at, pa.int64()).cast(SECOND),
        pa.array([Decimal(each) for each in amount], pa.decimal128(12, 2)),
        pa.array(note, pa.string()),
        pa.array(range(since, to), pa.int64()),
        pa.array([each * 1_000_000 for each in at], pa.int64()),
    ]
    schema = pa.schema([*SCHEMA, pa.field(OFFSET, pa.int64()), pa.field(TIME, pa.int64())])
    dead = pa.RecordBatch.from_pylist([], schema=DEAD_LETTER_SCHEMA)
    return Rows(split, since, to, pa.RecordBatch.from_arrays(columns, schema=schema), dead)


class Told:
    """A subscriber's own table, built from what it is told; of a view without keys, its rows in a list."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.by_key: dict[int, dict[tuple[Any, ...], dict[str, Any]]] = {}
        self.listed: dict[int, list[dict[str, Any]]] = {}
        self.position: dict[tuple[int, str], int] = {}
        self.resets = self.rounds = self.missed = 0
        self.resume: Any = None

    def take(self, change: Any) -> None:
        rows = change.rows.to_pylist()
        table = self.by_key.setdefault(change.partition, {})
        self.missed += change.missed
        if change.kind == "reset":
            self.resets += 1
            if change.partition is None:
                self.by_key, self.listed = {}, {}
            else:
                self.by_key[change.partition], self.listed[change.partition] = {}, []
        elif change.kind == "removed":
            for row in rows:
                del table[tuple(row[each] for each in self.keys)]
        elif change.kind == "rows":
            self.listed.setdefault(change.partition, []).extend(rows)
            for row in rows:
                table[tuple(row[each] for each in self.keys)] = row
        else:
            self.rounds += 1
            self.resume = change.resume
            for part in change.answer.parts:
                for split, place in part.position.items():
                    self.position[part.partition, split] = place.offset

    def rows(self) -> list[dict[str, Any]]:
        if self.keys:
            return [row for table in self.by_key.values() for row in table.values()]
        return [row for rows in self.listed.values() for row in rows]


def events(chance: random.Random, count: int, since: int = 0, spread: int = 3 * 3600) -> list[Event]:
    return [
        (
            chance.choice(WHO),
            since + chance.randrange(spread),
            chance.randrange(-50, 50),
            chance.choice([None, "x", "yy" * 9]),
        )
        for _ in range(count)
    ]


def ordered_rows(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    return ordered(pa.Table.from_pylist(rows)) if rows else []
