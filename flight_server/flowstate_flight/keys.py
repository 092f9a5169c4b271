"""Keys as a person writes them, made into a batch of the view's key types; and who owns them."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate.plan.keys import key_groups, owner_of_groups, route_hashes
from flowstate.view.directory import Directory, ViewInfo

#: Keys in one lookup beyond which each is sent once, since a message holds no more than so many. For fewer that would take longer than to
#: look them up.
MANY = 100_000
#: What a single key is written as most often, and for which type.
_ONE = {str: pa.string(), int: pa.int64()}


def key_text(info: ViewInfo) -> str:
    """``(customer: string, month: timestamp[us, tz=UTC])``, for messages."""
    return "(" + ", ".join(f"{name}: {info.schema.field(name).type}" for name in info.keys) + ")"


def key_batch(info: ViewInfo, keys: Any) -> pa.RecordBatch:
    """Keys to look up, as a batch of the leading key columns. A key may be in it twice; its rows are found once.

    `keys` is a mapping of key column to value or list of values, a tuple (one key), a list of tuples or of values, a single
    value, or a RecordBatch or Table. Raises InvalidFlow if they do not fit the keys of the view.
    """
    if not info.routing_keys:
        raise InvalidFlow(f"view {info.name!r} has no key to look up; scan it, with a filter if need be")
    kind = info.key_schemas[1].types[0]
    if _ONE.get(type(keys)) == kind and len(info.routing_keys) == 1:  # the usual lookup
        with contextlib.suppress(ValueError, OverflowError, pa.ArrowException):
            return pa.RecordBatch.from_arrays([pa.array([keys], kind)], schema=info.key_schemas[1])
    if isinstance(keys, pa.RecordBatch | pa.Table):
        columns = {name: keys.column(name) for name in keys.schema.names}
    elif isinstance(keys, Mapping):
        columns = _columns_of_mapping(keys)
    else:
        columns = _columns_of_rows(info, keys if isinstance(keys, list) else [keys])
    for name in columns:
        if name not in info.keys:
            raise InvalidFlow(f"{_keyed(info)}, not by {name!r}{did_you_mean(name, info.keys)}")
    names = info.keys[: len(columns)]
    if not columns.keys() == set(names) >= set(info.routing_keys):
        missing = [name for name in info.keys if name not in columns and (name in info.routing_keys or name in names)]
        raise InvalidFlow(f"{_keyed(info)}; give its leading columns without a gap", missing=missing)
    schema = info.key_schemas[len(names)]
    arrays = [_typed(info, name, columns[name], kind) for name, kind in zip(names, schema.types, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    return batch if batch.num_rows <= MANY else _distinct(batch)


def owners(directory: Directory, info: ViewInfo, keys: pa.RecordBatch) -> dict[int, pa.RecordBatch]:
    """Keys by the partition that owns them."""
    count = len(directory.partitions)
    if count == 1:
        return {directory.partitions[0].partition: keys}
    hashes = route_hashes([keys.column(name) for name in info.routing_keys], directory.seed)
    owner = owner_of_groups(key_groups(hashes, directory.key_groups), directory.key_groups, count)
    if keys.num_rows == 1:
        return {int(owner[0]): keys}
    return {int(each): keys.take(pa.array(np.flatnonzero(owner == each))) for each in np.unique(owner)}


@functools.cache
def hash_probe() -> str:
    """A digest of how this process hashes keys. A reader that hashes in another way than the workers (another version) would ask
    the wrong partitions and find nothing, so both compare this before it asks."""
    texts = route_hashes([pa.array(["flowstate", "", None]), pa.array([1, None, -1], pa.int64())], 0)
    return "".join(f"{each:016x}" for each in key_groups(texts, 1 << 32).tolist() + texts.tolist())


def _keyed(info: ViewInfo) -> str:
    return f"view {info.name!r} is keyed by {key_text(info)}"


def _columns_of_mapping(keys: Mapping[str, Any]) -> dict[str, Any]:
    lists = {name: value for name, value in keys.items() if isinstance(value, list | pa.Array | pa.ChunkedArray)}
    rows = {len(value) for value in lists.values()}
    if len(rows) > 1:
        raise InvalidFlow("the lists of a key mapping are of unequal lengths", lengths=sorted(rows))
    count = rows.pop() if rows else 1
    return {name: lists[name] if name in lists else [value] * count for name, value in keys.items()}


def _columns_of_rows(info: ViewInfo, rows: Sequence[Any]) -> dict[str, Any]:
    widths = {len(row) if isinstance(row, tuple) else 1 for row in rows} or {len(info.routing_keys)}
    width = widths.pop()
    if widths or not len(info.routing_keys) <= width <= len(info.keys):
        raise InvalidFlow(f"{_keyed(info)}; give {_counts(info)} values for a key", given=sorted({width, *widths}))
    if width == 1:
        return {info.keys[0]: [row[0] if isinstance(row, tuple) else row for row in rows]}
    return {name: [row[index] for row in rows] for index, name in enumerate(info.keys[:width])}


def _counts(info: ViewInfo) -> str:
    least, most = len(info.routing_keys), len(info.keys)
    return str(least) if least == most else f"{least} to {most}"


def _typed(info: ViewInfo, name: str, values: Any, wanted: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    try:
        if isinstance(values, pa.Array):
            return values if values.type == wanted else values.cast(wanted)
        for kind in set(map(type, values)):
            _check(kind, values, wanted)
        if pa.types.is_timestamp(wanted) and wanted.unit in (
            "s",
            "ms",
        ):  # pa.array would cut off what is finer, in silence
            return pa.array(values, pa.timestamp("us", wanted.tz)).cast(wanted)
        return pa.array(values, wanted)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0][:150]
        raise InvalidFlow(f"{_keyed(info)}; a value for {name!r} does not fit", reason=reason) from None


def _check(kind: type, values: Sequence[Any], wanted: pa.DataType) -> None:
    """What pyarrow would convert in silence although it is probably a mistake, of those `values` that are of this kind."""
    if issubclass(kind, bool) and not pa.types.is_boolean(wanted):
        raise TypeError("a bool is not a number")
    if issubclass(kind, float) and pa.types.is_integer(wanted):
        raise TypeError("a float is not a whole number")
    if issubclass(kind, dt.datetime) and pa.types.is_timestamp(wanted):
        known = {each.tzinfo is not None for each in values if isinstance(each, kind)}
        if False in known and wanted.tz not in (None, "UTC"):
            raise TypeError("a datetime for a column with a time zone needs tzinfo")
        if True in known and wanted.tz is None:
            raise TypeError("the column has no time zone, but the datetime has")


def _distinct(batch: pa.RecordBatch) -> pa.RecordBatch:
    table = pa.Table.from_batches([batch]).group_by(batch.schema.names).aggregate([])
    return table.select(batch.schema.names).combine_chunks().to_batches()[0]
