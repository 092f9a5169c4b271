"""A partition's state as objects: chunks that changed since the last save, as plain Arrow IPC streams.

A segment is several IPC streams one after another; a stream holds chunks of one table. The manifest says where each stream begins, so that
anyone can read one with a ranged read and plain Arrow. Segments are shared by the saves that follow: a chunk that has not changed is
referred to where it is. What is still wanted of a segment is written anew, into the next one, when it is less than half of its rows; and
when there are over `MANY` segments of about one size (up to `LARGE` rows), what is wanted of all of these. So segments are few, and a row
that does not change is written again once for each eightfold size, at most: saves write in proportion to what has changed.

Chunk ids mean something only within the life of a table, so a save refers only to segments of its own epoch. The first save of an
incarnation writes everything.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from flowstate.errors import CorruptData, InternalError, did_you_mean
from flowstate.snapshot.codec import checksum
from flowstate.snapshot.layout import save_of
from flowstate.snapshot.layout import segment as segment_name
from flowstate.snapshot.manifest import ChunkRef, SavedState
from flowstate.store import Store

STREAM_BYTES = 16 << 20
MANY = 8  # segments of about one size
LARGE = 1 << 20  # rows: segments that hold more are not written anew for being many
_READERS = 4


class ChunkLike(Protocol):
    """A chunk of a table's view: `version` changes whenever the content does. `state()` is safe to call from another thread."""

    @property
    def id(self) -> int: ...

    @property
    def version(self) -> int: ...

    @property
    def rows(self) -> int: ...

    def state(self) -> pa.RecordBatch: ...


@dataclass(frozen=True)
class _Written:
    """A chunk that goes into the new segment: in stream `stream`, as batch `index`."""

    chunk: ChunkLike
    stream: int
    index: int


def save_state(
    store: Store,
    prefix: str,
    epoch: int,
    number: int,
    tables: Mapping[str, Sequence[ChunkLike]],
    previous: SavedState | None,
    marks: Mapping[str, list[int]],
    extras: Mapping[str, Any],
    as_of: float,
) -> SavedState:
    """Write what `previous` (the last save of this incarnation, committed or not) does not hold; nothing when nothing changed.

    `number` grows with every save of an epoch. Nobody sees the state before a manifest names it.
    """
    kept = _kept(tables, previous, epoch)
    streams: list[memoryview] = []
    written: dict[str, list[_Written]] = {}
    for table, chunks in tables.items():
        changed = [chunk for chunk in chunks if (table, chunk.id) not in kept]
        written[table] = list(_write(changed, streams))
    path = _create(store, prefix, epoch, number, streams) if streams else ""
    starts = [0]
    for stream in streams:
        starts.append(starts[-1] + len(stream))
    sums = [checksum(stream) for stream in streams]
    rows_written = sum(each.chunk.rows for found in written.values() for each in found)
    refs: dict[str, tuple[ChunkRef, ...]] = {}
    for table, chunks in tables.items():
        new = {
            each.chunk.id: ChunkRef(
                each.chunk.id,
                each.chunk.version,
                path,
                starts[each.stream],
                len(streams[each.stream]),
                each.index,
                each.chunk.rows,
                sums[each.stream],
            )
            for each in written[table]
        }
        refs[table] = tuple(new[chunk.id] if chunk.id in new else kept[table, chunk.id] for chunk in chunks)
    used = {ref.segment for found in refs.values() for ref in found}
    total = {**(previous.segments if previous else {}), **({path: rows_written} if streams else {})}
    return SavedState(dict(marks), refs, dict(extras), as_of, {segment: total[segment] for segment in sorted(used)})


def _kept(
    tables: Mapping[str, Sequence[ChunkLike]], previous: SavedState | None, epoch: int
) -> dict[tuple[str, int], ChunkRef]:
    """What need not be written again: unchanged chunks in segments of this epoch that are still worth keeping."""
    for table, chunks in tables.items():
        if len({chunk.id for chunk in chunks}) != len(chunks):
            raise InternalError("two chunks of a table have one id", table=table)
    if previous is None:
        return {}
    known = {(table, ref.id): ref for table, found in previous.tables.items() for ref in found}
    same = {
        (table, chunk.id): known[table, chunk.id]
        for table, chunks in tables.items()
        for chunk in chunks
        if (table, chunk.id) in known and known[table, chunk.id].version == chunk.version
    }
    live: Counter[str] = Counter()
    for ref in same.values():
        live[ref.segment] += ref.rows
    good = {
        segment: rows
        for segment, rows in live.items()
        if (save_of(segment) or (0, 0))[0] == epoch and 2 * rows >= previous.segments.get(segment, 0)
    }
    sizes = Counter(_size(rows) for rows in good.values())
    return {
        key: ref
        for key, ref in same.items()
        if ref.segment in good and (good[ref.segment] > LARGE or sizes[_size(good[ref.segment])] <= MANY)
    }


def _size(rows: int) -> int:
    """Sizes that differ by less than about eight times are one."""
    return rows.bit_length() // 3


def _write(chunks: Sequence[ChunkLike], streams: list[memoryview]) -> Iterator[_Written]:
    """Append the IPC streams of `chunks`: a new one at another schema, or when one is long enough."""
    sink: Any = None
    writer: Any = None
    schema: Any = None
    index = 0
    for chunk in chunks:
        batch = chunk.state()
        if batch.num_rows != chunk.rows:
            raise InternalError(
                "a chunk has other rows than it says", chunk=chunk.id, rows=batch.num_rows, said=chunk.rows
            )
        if writer is not None and (sink.tell() >= STREAM_BYTES or not schema.equals(batch.schema, True)):
            writer.close()
            streams.append(memoryview(sink.getvalue()))
            writer = None
        if writer is None:
            sink, schema, index = pa.BufferOutputStream(), batch.schema, 0
            writer = pa.ipc.new_stream(sink, schema)
        writer.write_batch(batch)
        yield _Written(chunk, len(streams), index)
        index += 1
    if writer is not None:
        writer.close()
        streams.append(memoryview(sink.getvalue()))


def _create(store: Store, prefix: str, epoch: int, number: int, streams: Sequence[memoryview]) -> str:
    """A save that failed half-way and is made again under its number holds other bytes, so it takes another name."""
    for attempt in range(100):
        path = segment_name(prefix, epoch, number, attempt)
        if store.create(path, streams):
            return path
    raise InternalError("a save was repeated too often under one number", prefix=prefix, epoch=epoch, number=number)


def load_tables(store: Store, saved: SavedState, names: Iterable[str] | None = None) -> dict[str, list[pa.RecordBatch]]:
    """The physical batches of the tables `names` (default: all), in the order of their chunks; one ranged read per stream.

    CorruptData names the object and the table when something is missing or is not what was written.
    """
    wanted = list(saved.tables) if names is None else list(names)
    for name in wanted:
        if name not in saved.tables:
            raise CorruptData(f"the snapshot has no table {name!r}{did_you_mean(name, saved.tables)}", table=name)
    streams = {
        (ref.segment, ref.start, ref.length, ref.checksum): table for table in wanted for ref in saved.tables[table]
    }
    with ThreadPoolExecutor(_READERS) as pool:
        batches = dict(
            zip(streams, pool.map(lambda item: _read(store, item[0], item[1]), streams.items()), strict=True)
        )
    return {
        table: [
            _pick(batches[ref.segment, ref.start, ref.length, ref.checksum], ref, table) for ref in saved.tables[table]
        ]
        for table in wanted
    }


def stream_tables(store: Store, saved: SavedState) -> dict[str, Iterator[pa.RecordBatch]]:
    """The batches of every table, each once, in the order in which they lie: a few streams are read ahead, so that memory holds these and
    not everything. Damage is told, as `load_tables` does, when it is met: what was made of the batches before it is to be thrown away."""
    return {name: _stream(store, refs, name) for name, refs in saved.tables.items()}


def _stream(store: Store, refs: Iterable[ChunkRef], table: str) -> Iterator[pa.RecordBatch]:
    streams: dict[tuple[str, int, int, str], list[ChunkRef]] = {}
    for ref in refs:
        streams.setdefault((ref.segment, ref.start, ref.length, ref.checksum), []).append(ref)
    pool = ThreadPoolExecutor(_READERS)
    try:
        reading = deque[tuple[list[ChunkRef], Future[list[pa.RecordBatch]]]]()
        for stream, found in streams.items():
            reading.append((found, pool.submit(_read, store, stream, table)))
            if len(reading) > _READERS:
                yield from _picked(*reading.popleft(), table)
        while reading:
            yield from _picked(*reading.popleft(), table)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _picked(refs: Sequence[ChunkRef], read: Future[list[pa.RecordBatch]], table: str) -> Iterator[pa.RecordBatch]:
    batches = read.result()
    for ref in refs:
        yield _pick(batches, ref, table)


def _read(store: Store, stream: tuple[str, int, int, str], table: str) -> list[pa.RecordBatch]:
    segment, start, length, expected = stream
    try:
        data = store.read(segment, start, start + length)
    except FileNotFoundError as error:
        raise CorruptData("a segment is missing; restore it from a backup", object=segment, table=table) from error
    if len(data) != length or checksum(data) != expected:
        message = "a segment is not what was written; restore it from a backup"
        raise CorruptData(message, object=segment, table=table, start=start, length=length)
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return list(reader)


def _pick(batches: Sequence[pa.RecordBatch], ref: ChunkRef, table: str) -> pa.RecordBatch:
    if ref.index >= len(batches) or batches[ref.index].num_rows != ref.rows:
        raise CorruptData(
            "a segment does not hold a chunk that the manifest names", object=ref.segment, table=table, chunk=ref.id
        )
    return batches[ref.index]
