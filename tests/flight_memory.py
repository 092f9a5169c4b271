"""A LivePartition over tables in memory, and a worker process that serves some: the other side of the contract, for tests.

As a program it takes one JSON argument (see `Worker`), prints its address, and obeys lines on its standard input until that ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowstate.errors import InvalidFlow, Unavailable
from flowstate.plan.keys import key_groups, owner_of_groups, route_hashes
from flowstate.plan.position import Place
from flowstate.view.answer import Answer, PartitionAnswer
from flowstate.view.directory import Directory, PartitionInfo, ViewInfo
from flowstate.view.freshness import behind, missing
from flowstate_flight.server import FlightService

SEED, GROUPS = 7, 128


@dataclass
class MemoryPartition:
    """`tables` are this partition's rows by view; `cuts` those of kept cuts."""

    job: str
    partition: int
    epoch: int
    views: Mapping[str, ViewInfo]
    tables: dict[str, pa.Table]
    cuts: dict[int, dict[str, pa.Table]] = field(default_factory=dict)
    loading: bool = False
    rows_per_batch: int = 1000
    scanned: list[tuple[str, Any]] = field(default_factory=list)
    _index: dict[tuple[str, int], dict[tuple[Any, ...], list[int]]] = field(default_factory=dict)

    def _answer(self, view: str) -> Answer:
        position = {"events-0": Place(100 + self.partition, 1)}
        return Answer(self.job, view, (PartitionAnswer(self.partition, self.epoch, position, 5_000_000, 17.5, "live"),))

    def _table(self, view: str, cut: int | None) -> pa.Table:
        if self.loading:
            raise Unavailable("this partition is loading its snapshot", retry_after=0.1)
        if cut is not None and cut not in self.cuts:
            raise InvalidFlow("this cut is not kept", cut=cut)
        tables = self.tables if cut is None else self.cuts[cut]
        if view not in tables:
            raise InvalidFlow(f"no view {view!r}")
        return tables[view]

    def reached(self, at_least: Mapping[str, Place], wait: float) -> None:
        if lacking := missing(at_least, {"events-0": Place(100 + self.partition, 1)}):
            raise behind(self.partition, lacking, 0.0)

    def scan(
        self, view: str, columns: list[str] | None = None, cut: int | None = None, once: bool = False
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch], Answer]:
        table = self._table(view, cut)
        self.scanned.append((view, columns))
        table = table if columns is None else table.select(columns)
        return table.schema, iter(table.to_batches(self.rows_per_batch)), self._answer(view)

    def lookup(self, view: str, keys: pa.RecordBatch) -> tuple[pa.RecordBatch, Answer]:
        table = self._table(view, None)
        place = (view, keys.num_columns)
        if place not in self._index:
            columns = [table.column(name).to_pylist() for name in keys.schema.names]
            index: dict[tuple[Any, ...], list[int]] = {}
            for row, key in enumerate(zip(*columns, strict=True)):
                index.setdefault(key, []).append(row)
            self._index[place] = index
        index = self._index[place]
        wanted = zip(*[column.to_pylist() for column in keys.columns], strict=True)
        rows = [row for key in dict.fromkeys(wanted) for row in index.get(key, [])]
        if table.column(0).num_chunks != 1:
            table = self.tables[view] = table.combine_chunks()
        whole = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], table.schema)
        taken = whole.take(pa.array(rows, pa.int64())).columns
        return pa.RecordBatch.from_arrays(taken, schema=table.schema), self._answer(view)


def divide(info: ViewInfo, table: pa.Table, partitions: int) -> list[pa.Table]:
    """A table by owner; rows of an append table by turns."""
    if not info.routing_keys:
        return [table.take(pa.array(range(each, table.num_rows, partitions), pa.int64())) for each in range(partitions)]
    keys = [table.column(name).combine_chunks() for name in info.routing_keys]
    owner = owner_of_groups(key_groups(route_hashes(keys, SEED), GROUPS), GROUPS, partitions)
    return [table.filter(pa.array(owner == each)) for each in range(partitions)]


def partitions_of(
    job: str, views: Mapping[str, ViewInfo], tables: Mapping[str, pa.Table], count: int, epoch: int = 1
) -> list[MemoryPartition]:
    parts = {name: divide(views[name], table, count) for name, table in tables.items()}
    return [
        MemoryPartition(job, each, epoch, views, {name: parts[name][each] for name in tables}) for each in range(count)
    ]


def directory_of(
    job: str, views: Mapping[str, ViewInfo], locations: Sequence[str | None], version: int = 1, epoch: int = 1
) -> Directory:
    places = tuple(PartitionInfo(number, epoch, location) for number, location in enumerate(locations))
    return Directory(job, version, SEED, GROUPS, dict(views), places)


class Worker:
    """A worker process that serves some partitions of a job from a file."""

    def __init__(
        self,
        job: str,
        views: Mapping[str, ViewInfo],
        tables: Mapping[str, pa.Table],
        count: int,
        serves: Sequence[int],
        epoch: int = 1,
        port: int = 0,
        busy: bool = False,
    ) -> None:
        sink = {name: b64encode(_ipc(table)).decode() for name, table in tables.items()}
        shape = directory_of(job, views, [None] * count, version=0).to_json()
        order = {"directory": shape, "tables": sink, "serves": list(serves), "epoch": epoch, "port": port, "busy": busy}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.location = self._tell(order)

    def set_directory(self, directory: Directory) -> None:
        assert self._tell({"set": directory.to_json()}) == "done"

    def _tell(self, order: Mapping[str, Any]) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def main() -> None:
    sys.setswitchinterval(5e-4)
    order = json.loads(sys.stdin.readline())
    shape = Directory.from_json(order["directory"])
    tables = {name: pa.ipc.open_stream(b64decode(raw)).read_all() for name, raw in order["tables"].items()}
    service = FlightService(port=order["port"])
    for each in partitions_of(shape.job, shape.views, tables, len(shape.partitions), order["epoch"]):
        if each.partition in order["serves"]:
            service.register(each)
    if order["busy"]:  # an ingesting worker: numpy and Arrow work, with some Python between
        threading.Thread(target=_ingest, daemon=True).start()
    print(service.location, flush=True)
    for line in sys.stdin:
        service.set_directory(Directory.from_json(json.loads(line)["set"]))
        print("done", flush=True)
    service.close()


def _ingest() -> None:
    import numpy as np

    state = np.zeros(1_000_000)
    generator = np.random.default_rng(1)
    while True:
        rows = generator.integers(0, len(state), 20_000)
        np.add.at(state, rows, 1.0)
        batch = pa.record_batch({"key": rows, "value": state[rows]})
        batch.filter(pa.array(batch.column("key").to_numpy() % 2 == 0))


if __name__ == "__main__":
    main()
