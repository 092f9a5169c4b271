"""Names and bytes of what sinks stage in the snapshot store.

``<prefix>/stage/e000005-000012-<sink>-<index>.<suffix>``: epoch and number of the save, number of the sink, index within it. `prefix` is
``g<generation>/p<partition>``. What another side refused for good is kept beside it, in ``<prefix>/rejected``
(`flowstate.sink.rejected`).
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NamedTuple

import pyarrow as pa

from flowstate.errors import CorruptData, InternalError
from flowstate.plan.output import StagedOutput
from flowstate.sink.base import Stage
from flowstate.store import Store

_PATH = re.compile(r"g(\d+)/p(\d+)/stage/e(\d+)-(\d+)-(\d+)-(\d+)(?:-(\d+))?\.\w+$")


class StageOrder(NamedTuple):
    """Orders what a partition has staged: later manifests name greater ones."""

    generation: int
    epoch: int
    number: int
    part: int
    attempt: int


def stage_object(stage: Stage, sink: int, index: int, suffix: str, data: bytes) -> tuple[str, int]:
    """Create a staged object, under a name that nobody has used; its path, and how many names were taken by other bytes."""
    for attempt in range(100):
        again = f"-{attempt}" if attempt else ""
        path = f"{stage.prefix}/stage/e{stage.epoch:06d}-{stage.number:06d}-{sink}-{index}{again}.{suffix}"
        if stage.store.create(path, data) or stage.store.read(path) == data:
            return path, attempt
    message = "output was staged too often under one number"
    raise InternalError(message, prefix=stage.prefix, epoch=stage.epoch, number=stage.number)


def stage_rows(
    stage: Stage, sink: int, rows: pa.Table, *, most_rows: int, most_bytes: int, suffix: str = ""
) -> list[StagedOutput]:
    """Rows as objects of Arrow IPC, none of more rows, nor much larger, than said. `suffix` ends the names of their targets."""
    most = max(1, min(most_rows, rows.num_rows * most_bytes // max(1, rows.nbytes)))
    generation = stage.prefix.split("/")[0]
    staged = []
    for index, start in enumerate(range(0, rows.num_rows, most)):
        part = rows.slice(start, most)
        data = to_ipc(part)
        path, attempt = stage_object(stage, sink, index, "arrows", data)
        again = f"-{attempt}" if attempt else ""
        target = f"p{stage.partition:04d}-{generation}-e{stage.epoch:06d}-{stage.number:06d}-{index}{again}{suffix}"
        staged.append(StagedOutput(sink, path, target, part.num_rows, checksum(data), len(data), stage.now))
    return staged


def read_staged(store: Store, staged: StagedOutput) -> bytes:
    """The staged bytes. FileNotFoundError when they are gone, CorruptData when they are not what was written."""
    data = store.read(staged.path)
    if checksum(data) != staged.checksum:
        message = "staged output is not what was written; restore it from a backup"
        raise CorruptData(message, object=staged.path, target=staged.target)
    return data


def sequence_of(staged: StagedOutput) -> StageOrder:
    found = _PATH.match(staged.path)
    if found is None:
        raise InternalError("this is no name of staged output", object=staged.path)
    generation, _, epoch, number, _, index, attempt = (int(each or 0) for each in found.groups())
    return StageOrder(generation, epoch, number, index, attempt)


def partition_of(staged: StagedOutput) -> int:
    found = _PATH.match(staged.path)
    if found is None:
        raise InternalError("this is no name of staged output", object=staged.path)
    return int(found[2])


def to_ipc(rows: pa.Table) -> bytes:
    """Rows as a plain Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_all()


def checksum(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
