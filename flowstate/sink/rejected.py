"""Rows that the other side refused for good, kept in the snapshot store until somebody deletes them.

``<prefix>/rejected/<name of the staged object>[~<again>].arrows``: Arrow IPC; the first column is the row's number in the staged object,
the second the reason, the others are the staged ones. An object is written once per staged one, before its publishing is done, so that it
also says that nothing of it is left to publish. Two publishers at once may have been told different things: both are kept, under two names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa

from flowstate.errors import CorruptData, InternalError
from flowstate.plan.output import StagedOutput
from flowstate.sink import json_text
from flowstate.sink.staging import from_ipc, to_ipc
from flowstate.store import Store

SCHEMA = pa.schema(
    [
        pa.field("sink", pa.int64(), nullable=False),
        pa.field("partition", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
    ]
)
_NAME = re.compile(r"e\d+-\d+-(\d+)-\d+(?:-\d+)?(?:~\d+)?\.arrows")


def reject(store: Store, staged: StagedOutput, rows: pa.Table, reasons: Mapping[int, str]) -> None:
    """Keep the `rows` of a staged object whose numbers `reasons` has. Durable when it returns; idempotent."""
    numbers = sorted(reasons)
    kept = rows.take(pa.array(numbers, pa.int64())).combine_chunks()
    columns = [pa.array(numbers, pa.int64()), pa.array([reasons[each] for each in numbers], pa.string())]
    names = ["_row", "_reason", *rows.schema.names]
    data = to_ipc(pa.table([*columns, *kept.columns], names=names))
    for attempt in range(100):
        path = _path(staged, attempt)
        if store.create(path, data) or store.read(path) == data:
            return
    raise InternalError("rows of one staged object were rejected too often", object=staged.path)


def rejected_of(store: Store, staged: StagedOutput) -> int | None:
    """How many rows of a staged object were rejected, if it was published and some were."""
    try:
        return int(_read(store, _path(staged, 0)).num_rows)
    except FileNotFoundError:
        return None


def rejected(store: Store) -> pa.Table:
    """All rejected rows of a job, in columns `SCHEMA`: the number of the sink, the partition, the reason, and the row as JSON."""
    batches = []
    for generation in store.list():
        if not re.fullmatch(r"g\d+", generation):
            continue
        for partition in store.list(generation):
            folder = f"{generation}/{partition}/rejected"
            batches += _of_partition(store, folder, int(partition[1:])) if re.fullmatch(r"p\d+", partition) else []
    return pa.Table.from_batches(batches, SCHEMA).sort_by([("sink", "ascending"), ("partition", "ascending")])


def _of_partition(store: Store, folder: str, partition: int) -> list[pa.RecordBatch]:
    seen: set[tuple[str, int]] = set()
    found = []
    for name in store.list(folder):
        named = _NAME.fullmatch(name)
        if named is None:
            continue
        try:
            rows = _read(store, f"{folder}/{name}")
        except FileNotFoundError:  # deleted just now
            continue
        staged = re.sub(r"~\d+\.arrows$|\.arrows$", "", name)
        numbers = rows.column(0).to_pylist()
        new = [index for index, number in enumerate(numbers) if (staged, number) not in seen]
        seen.update((staged, number) for number in numbers)
        rows = rows.take(pa.array(new, pa.int64()))
        texts = [each.decode() for each in json_text.rows(rows.select(range(2, rows.num_columns)))]
        count = len(texts)
        columns = [pa.array([int(named[1])] * count), pa.array([partition] * count), rows.column(1).combine_chunks()]
        found.append(pa.RecordBatch.from_arrays([*columns, pa.array(texts, pa.string())], schema=SCHEMA))
    return found


def _path(staged: StagedOutput, attempt: int) -> str:
    stem = staged.path.replace("/stage/", "/rejected/").rpartition(".")[0]
    return f"{stem}~{attempt}.arrows" if attempt else f"{stem}.arrows"


def _read(store: Store, path: str) -> pa.Table:
    try:
        return from_ipc(store.read(path))
    except (pa.ArrowException, OSError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CorruptData("rejected rows are damaged; restore them from a backup", object=path) from error
