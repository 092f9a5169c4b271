"""Who serves what: the routing table that readers of a job hold, and the contract of a partition that serves.

A directory is plain data, small, versioned and sent whole; the newest version wins. It names every view with its schema and keys, and
for every partition its epoch and the Flight address of the worker that hosts it. With it a client computes the owner of a key by
itself (`owner`), so that a lookup asks one partition and nobody else.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import pyarrow as pa

from flowstate.plan.position import Place
from flowstate.view.answer import Answer
from flowstate.view.changes import Condition, Subscription


@dataclass(frozen=True)
class ViewInfo:
    """A queryable table. `keys` are the columns of the key in order, windows last; `routing_keys` pick the owner (empty for an
    append table, where every partition is asked). `window` names the window's start column."""

    name: str
    schema: pa.Schema
    kind: Literal["keyed", "append"] = "keyed"
    keys: tuple[str, ...] = ()
    routing_keys: tuple[str, ...] = ()
    window: str | None = None

    @cached_property
    def key_schemas(self) -> tuple[pa.Schema, ...]:
        """That of the first n key columns at place n."""
        fields = [pa.field(name, self.schema.field(name).type) for name in self.keys]
        return tuple(pa.schema(fields[:count]) for count in range(len(fields) + 1))


@dataclass(frozen=True)
class PartitionInfo:
    """Where a partition lives. `location` is a Flight URI, or None while it is away."""

    partition: int
    epoch: int
    location: str | None


@dataclass(frozen=True)
class Directory:
    """A job as its readers see it."""

    job: str
    version: int
    seed: int
    key_groups: int
    views: Mapping[str, ViewInfo] = field(default_factory=dict)
    partitions: tuple[PartitionInfo, ...] = ()

    @cached_property
    def places(self) -> dict[int, PartitionInfo]:
        """The partitions by number."""
        return {each.partition: each for each in self.partitions}

    def to_json(self) -> str:
        return json.dumps(
            {
                "job": self.job,
                "version": self.version,
                "seed": self.seed,
                "key_groups": self.key_groups,
                "views": [
                    {
                        "name": view.name,
                        "schema": b64encode(view.schema.serialize().to_pybytes()).decode(),
                        "kind": view.kind,
                        "keys": view.keys,
                        "routing_keys": view.routing_keys,
                        "window": view.window,
                    }
                    for view in self.views.values()
                ],
                "partitions": [[each.partition, each.epoch, each.location] for each in self.partitions],
            }
        )

    @staticmethod
    def from_json(text: str | bytes) -> Directory:
        data = json.loads(text)
        views = {
            view["name"]: ViewInfo(
                view["name"],
                pa.ipc.read_schema(pa.py_buffer(b64decode(view["schema"]))),
                view["kind"],
                tuple(view["keys"]),
                tuple(view["routing_keys"]),
                view["window"],
            )
            for view in data["views"]
        }
        partitions = tuple(PartitionInfo(*each) for each in data["partitions"])
        return Directory(data["job"], data["version"], data["seed"], data["key_groups"], views, partitions)


class LivePartition(Protocol):
    """What a partition offers to the Flight server that hosts it. Called from Flight's threads; must be safe for that.

    Both raise `Unavailable` while the partition is loading, and `InvalidFlow` for an unknown view, column or cut.
    """

    job: str
    partition: int
    epoch: int

    def reached(self, at_least: Mapping[str, Place], wait: float) -> None:
        """Return when everything before `at_least` is applied, so that what is read next shows it; `Behind` if that does not come about
        within `wait` seconds. A state that no longer changes waits for nothing."""

    def scan(
        self, view: str, columns: list[str] | None = None, cut: int | None = None, once: bool = False
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch], Answer]:
        """All rows of `view` (its `columns`) as batches of at most about 4 MB, immutable and consistent at one position. With
        `cut`, the state that was kept for that cut, and with `once` this may be all that is read of it. The schema does not carry the
        answer yet."""

    def lookup(self, view: str, keys: pa.RecordBatch) -> tuple[pa.RecordBatch, Answer]:
        """The rows whose leading key columns equal a row of `keys` (all routing keys at least; further key columns, such as the
        window, optional), each row once. Keys that are not there give no row."""

    def changes(
        self,
        view: str,
        columns: list[str] | None = None,
        condition: Condition | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> Subscription:
        """All rows of `view` for which `condition` holds, and then whatever changes in them, in rounds (`view.changes`). `columns`
        have the key among them. `resume` is that of a position that was told before, here or by another incarnation; what means nothing
        here begins anew. Nothing is done for a subscriber between two rounds, and nothing held but some bytes per row. Raises Unavailable
        when there are too many."""
