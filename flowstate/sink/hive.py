"""Folders named by values, ``month=2017-01-01/kind=a``, as every reader of Parquet data sets understands them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

NULL = "__HIVE_DEFAULT_PARTITION__"
_UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


def supports(kind: pa.DataType) -> bool:
    """Whether values of this type can name a folder and be read back as what they were."""
    types = pa.types
    return bool(
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_date(kind)
        or types.is_timestamp(kind)
        or types.is_decimal(kind)
    )


def split(rows: pa.Table, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """(folder, its rows without `columns`), sorted by folder; rows keep their order."""
    rest = rows.drop_columns(list(columns))
    if not columns:
        yield "", rest
        return
    named = [_folders(name, rows[name]) for name in columns]
    joined = named[0] if len(named) == 1 else pc.binary_join_element_wise(*named, "/")
    order = pc.sort_indices(joined)  # stable
    joined, rest = joined.take(order), rest.take(order)
    runs = pc.run_end_encode(joined.combine_chunks())
    chunks = runs.chunks if isinstance(runs, pa.ChunkedArray) else [runs]
    begin = 0
    for chunk in chunks:
        base = begin
        for folder, end in zip(chunk.values.to_pylist(), chunk.run_ends.to_pylist(), strict=True):
            yield folder, rest.slice(begin, base + end - begin)
            begin = base + end


def _folders(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """``name=value`` of every row."""
    chunks = []
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode(null_encoding="encode")
        texts = [f"{_quoted(name)}={text}" for text in _texts(encoded.dictionary)]
        chunks.append(pa.array(texts, pa.string()).take(encoded.indices))
    return pa.chunked_array(chunks, pa.string())


def _texts(values: pa.Array) -> list[str]:
    if not pa.types.is_timestamp(values.type):
        return [NULL if value is None else _quoted(_plain(value)) for value in values.to_pylist()]
    factor = _UNITS[values.type.unit]
    zone = None if values.type.tz is None else _zone(values.type.tz)
    return [
        NULL if value is None else _quoted(_moment(value * factor, zone))
        for value in values.cast(pa.int64()).to_pylist()
    ]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _moment(nanoseconds: int, zone: tzinfo | None) -> str:
    """A midnight as its date, anything else in full. A midnight that the clocks repeat is written in full, with its offset."""
    micros, rest = divmod(nanoseconds, 1000)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    local = moment.replace(tzinfo=None) if zone is None else moment.astimezone(zone)
    repeated = zone is not None and local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()
    if not rest and not repeated and local.time() == datetime.min.time():
        return local.date().isoformat()
    text = local.replace(tzinfo=None).isoformat()
    if rest:
        text = f"{local.replace(tzinfo=None).isoformat(timespec='microseconds')}{rest:03d}"
    if zone is None:
        return text
    offset = local.strftime("%z")
    return text + ("Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:]}")


def _zone(name: str) -> tzinfo:
    if name[:1] in "+-" and len(name) == 6:
        minutes = int(name[1:3]) * 60 + int(name[4:])
        return timezone(timedelta(minutes=-minutes if name[0] == "-" else minutes))
    return ZoneInfo(name)


def _quoted(text: str) -> str:
    """One part of a path. Empty text and a leading dot would not be one, or be hidden."""
    quoted = quote(text, safe=" +,@")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted
