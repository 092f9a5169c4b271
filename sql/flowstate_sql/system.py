"""What a job is and how far it is, as tables of SQL: ``flowstate_views``, ``flowstate_partitions``, ``flowstate_positions``,
``flowstate_snapshots`` and ``flowstate_sinks``.

They are made when they are read, from what the reader knows, from an answer without rows of every partition, from the snapshot store and
from the status of the job, as far as these can be had; what is not known is null. Everything is as it may be seen: views that are not there
for a principal are not listed, and sinks are there for those alone who may control the job.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import FlowstateError, InvalidFlow
from flowstate.snapshot.cut import list_cuts
from flowstate.store import Store
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.directory import ViewInfo
from flowstate.view.freshness import LATEST, Freshness
from flowstate_flight.partial import Partial
from flowstate_sql.restricted import RestrictedSplitReader

#: Seconds for the answer of a partition; one that does not come is not known.
ANSWER = 2.0

_TIME = pa.timestamp("us", "UTC")
_PLACE = pa.struct([("split", pa.string()), ("offset", pa.int64()), ("floors", pa.int64())])
_COLUMN = pa.struct([("name", pa.string()), ("type", pa.string()), ("nullable", pa.bool_())])
SCHEMAS: Mapping[str, pa.Schema] = {
    "flowstate_views": pa.schema(
        [
            ("view", pa.string()),
            ("kind", pa.string()),
            ("keys", pa.list_(pa.string())),
            ("routing_keys", pa.list_(pa.string())),
            ("window", pa.string()),
            ("columns", pa.list_(_COLUMN)),
        ]
    ),
    "flowstate_partitions": pa.schema(
        [
            ("partition", pa.int32()),
            ("epoch", pa.int64()),
            ("location", pa.string()),
            ("state", pa.string()),
            ("origin", pa.string()),
            ("watermark", _TIME),
            ("as_of", _TIME),
            ("snapshot", pa.int64()),
        ]
    ),
    "flowstate_positions": pa.schema(
        [("partition", pa.int32()), ("split", pa.string()), ("offset", pa.int64()), ("floors", pa.int64())]
    ),
    "flowstate_snapshots": pa.schema(
        [
            ("snapshot", pa.int64()),
            ("at", _TIME),
            ("consistent", pa.bool_()),
            ("partitions", pa.int32()),
            ("position", pa.list_(_PLACE)),
        ]
    ),
    "flowstate_sinks": pa.schema(
        [
            ("sink", pa.int32()),
            ("partition", pa.int32()),
            ("kind", pa.string()),
            ("mode", pa.string()),
            ("view", pa.string()),
            ("url", pa.string()),
            ("waiting", pa.int64()),
            ("waiting_bytes", pa.int64()),
            ("waiting_seconds", pa.float64()),
            ("open", pa.int64()),
            ("rejected", pa.int64()),
            ("problem", pa.string()),
            ("origin", pa.string()),
            ("as_of", _TIME),
        ]
    ),
}


class Facts:
    """Where system tables come from, beside the reader: `store`, that of the job's snapshots, and `status`, which gives what
    ``job.status()`` gives; each None if it is not to be had. `pool` asks partitions."""

    def __init__(
        self, pool: Executor, store: Store | None = None, status: Callable[[], Mapping[str, Any]] | None = None
    ) -> None:
        self.pool, self.store, self.status = pool, store, status


class SystemReader:
    """A `tiers.SplitReader` that has the system tables beside the views of `reader`."""

    def __init__(self, reader: RestrictedSplitReader, facts: Facts) -> None:
        self._reader, self._facts = reader, facts

    def apart(self, view: str) -> str | None:
        """Why partitions compute nothing of a view; None if they may."""
        return "no partition has a system table" if view in self._tables() else None

    def views(self) -> list[str]:
        return [*self._reader.views(), *self._tables()]

    def info(self, view: str) -> ViewInfo:
        if view in self._tables():
            return ViewInfo(view, SCHEMAS[view], "append")
        return self._reader.info(view)

    def moment(self, fresh: Freshness) -> Freshness:
        return self._reader.moment(fresh)

    def scan_reader(
        self,
        view: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        if view not in self._tables():
            return self._reader.scan_reader(view, columns, filter, partitions, limit, fresh)
        if fresh.snapshot is not None:
            raise InvalidFlow(f"{view} tells of the present; read it in a query without a snapshot", view=view)
        table = pa.Table.from_pylist(list(self._rows(view)), SCHEMAS[view])
        if filter is not None:
            table = table.filter(filter)
        if columns is not None:
            table = table.select(list(columns))
        return (table if limit is None else table.slice(0, limit)).to_reader()

    def lookup(self, view: str, keys: Any, columns: Sequence[str] | None = None, fresh: Freshness = LATEST) -> pa.Table:
        return self._reader.lookup(view, keys, columns, fresh)

    def partial_reader(
        self,
        view: str,
        partial: Partial,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        fresh: Freshness = LATEST,
    ) -> pa.RecordBatchReader:
        if view in self._tables():
            raise InvalidFlow("no partition has a system table; ask for the rows", view=view)
        return self._reader.partial_reader(view, partial, columns, filter, fresh)

    def asked(self, view: str, filter: pc.Expression | None = None) -> list[int]:
        return [] if view in self._tables() else self._reader.asked(view, filter)

    def _tables(self) -> list[str]:
        """A view of the job by such a name hides the table."""
        known = {each.lower() for each in self._reader.views()}
        hidden = () if self._reader.who.may("control") else ("flowstate_sinks",)
        return [each for each in SCHEMAS if each not in known and each not in hidden]

    def _rows(self, table: str) -> Iterable[dict[str, Any]]:
        made: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "flowstate_views": self._views,
            "flowstate_partitions": self._partitions,
            "flowstate_positions": self._positions,
            "flowstate_snapshots": self._snapshots,
            "flowstate_sinks": self._sinks,
        }
        return made[table]()

    def _views(self) -> Iterable[dict[str, Any]]:
        for view in self._reader.views():
            info = self._reader.info(view)
            columns = [{"name": each.name, "type": str(each.type), "nullable": each.nullable} for each in info.schema]
            yield {
                "view": view,
                "kind": info.kind,
                "keys": list(info.keys),
                "routing_keys": list(info.routing_keys),
                "window": info.window,
                "columns": columns,
            }

    def _partitions(self) -> Iterable[dict[str, Any]]:
        parts = self._parts()
        for each in self._reader.directory().partitions:
            part = parts.get(each.partition)
            row: dict[str, Any] = {"partition": each.partition, "epoch": each.epoch, "location": each.location}
            if part is None:
                yield row | {"state": "away"}
                continue
            yield row | {
                "epoch": part.epoch,
                "state": part.origin,
                "origin": part.origin,
                "watermark": watermark_moment(part.watermark),
                "as_of": moment(part.as_of),
                "snapshot": part.snapshot,
            }

    def _positions(self) -> Iterable[dict[str, Any]]:
        for number, part in sorted(self._parts().items()):
            for split, place in sorted(part.position.items()):
                yield {"partition": number, "split": split, "offset": place.offset, "floors": place.floors}

    def _snapshots(self) -> Iterable[dict[str, Any]]:
        if self._facts.store is None:
            return
        for cut in list_cuts(self._facts.store, skip_damaged=True):
            position = [
                {"split": split, "offset": place.offset, "floors": place.floors}
                for split, place in sorted(cut.position.items())
            ]
            yield {
                "snapshot": cut.number,
                "at": moment(cut.as_of),
                "consistent": True,
                "partitions": len(cut.versions),
                "position": position,
            }

    def _sinks(self) -> Iterable[dict[str, Any]]:
        if self._facts.status is None:
            return
        for number, member in sorted(self._facts.status().get("partitions", {}).items(), key=lambda each: int(each[0])):
            for sink, told in enumerate((member.get("report") or {}).get("sinks", ())):
                yield {
                    "sink": sink,
                    "partition": int(number),
                    "kind": told.get("kind"),
                    "mode": told.get("mode"),
                    "view": told.get("table"),
                    "url": told.get("url"),
                    "waiting": told.get("waiting"),
                    "waiting_bytes": told.get("bytes"),
                    "waiting_seconds": told.get("oldest"),
                    "open": told.get("open"),
                    "rejected": told.get("rejected"),
                    "problem": told.get("problem"),
                    "origin": told.get("origin", "live"),
                    "as_of": None if told.get("as_of") is None else moment(told["as_of"]),
                }

    def _parts(self) -> dict[int, PartitionAnswer]:
        """What each partition says of itself; those that do not answer in time are left out."""
        views = self._reader.views()
        if not views:
            return {}
        numbers = [each.partition for each in self._reader.directory().partitions]
        calls = {self._facts.pool.submit(self._part, views, number): number for number in numbers}
        done, late = wait(calls, ANSWER)
        for each in late:
            each.cancel()
        return {calls[each]: part for each in done if (part := _result(each)) is not None}

    def _part(self, views: Sequence[str], number: int) -> PartitionAnswer | None:
        for view in views:
            column = self._reader.info(view).schema.names[:1]
            try:
                stream = self._reader.scan_reader(view, column, partitions=[number], limit=0)
            except InvalidFlow:  # of this view; another one may be read
                continue
            answer = Answer.of(stream.schema)
            stream.read_all()
            if answer is not None:
                return next((each for each in answer.parts if each.partition == number), None)
        return None


def _result(call: Future[PartitionAnswer | None]) -> PartitionAnswer | None:
    try:
        return call.result()
    except FlowstateError:
        return None


def watermark_moment(watermark: int) -> dt.datetime | None:
    """`watermark` in microseconds. Infinities, of splits that have not begun or have ended, are null."""
    return moment(watermark / 1e6) if abs(watermark) < 1 << 55 else None


def moment(seconds: float) -> dt.datetime | None:
    """Unix time in seconds; null beyond what there is a date for."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return None
