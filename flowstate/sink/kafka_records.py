"""Rows as Kafka messages: key, value and headers of each.

* value: ``json`` is one object (`json_text`); ``arrow`` is an Arrow IPC stream with this one row. Both are what `scan_kafka` reads.
* key: of one column its plain text as JSON has it, without quotes; of several columns a compact JSON array. Where the plain text of one
  would begin with ``[``, or is null, it is an array of one, so that different keys never meet. Without key columns there is no key.
* headers: ``flowstate-epoch`` and ``flowstate-revision``, in decimal digits, for rows of `changes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from flowstate.plan.spec import EPOCH, REVISION
from flowstate.sink import json_text

FORMATS = ("json", "arrow")
Headers = list[tuple[str, str | bytes | None]]


def messages(rows: pa.Table, form: str, key: Sequence[str]) -> Iterator[tuple[bytes | None, bytes, Headers | None]]:
    values = json_text.rows(rows) if form == "json" else _arrow(rows)
    keys = keys_of(rows, key) if key else [None] * rows.num_rows
    return zip(keys, values, _headers(rows), strict=True)


def keys_of(rows: pa.Table, columns: Sequence[str]) -> list[bytes]:
    """The key of each row, as bytes; equal only for equal keys."""
    whole = json_text.arrays(rows.select(columns))
    return [_plain(each) for each in whole] if len(columns) == 1 else whole


def _plain(key: bytes) -> bytes:
    """``["anna"]`` -> ``anna``, ``[12]`` -> ``12``."""
    inner = key[1:-1]
    if inner.startswith(b'"'):
        inner = json.loads(inner).encode() if b"\\" in inner else inner[1:-1]
    elif inner == b"null":
        return key
    return key if inner.startswith(b"[") else inner


def _headers(rows: pa.Table) -> list[Headers | None]:
    if EPOCH not in rows.schema.names or REVISION not in rows.schema.names:
        return [None] * rows.num_rows
    pairs = zip(rows[EPOCH].to_pylist(), rows[REVISION].to_pylist(), strict=True)
    return [[("flowstate-epoch", str(epoch)), ("flowstate-revision", str(revision))] for epoch, revision in pairs]


def _arrow(rows: pa.Table) -> list[bytes]:
    schema = rows.schema
    found = []
    for batch in rows.to_batches():
        for row in range(batch.num_rows):
            target = pa.BufferOutputStream()
            with pa.ipc.new_stream(target, schema) as writer:
                writer.write_batch(batch.slice(row, 1))
            found.append(target.getvalue().to_pybytes())
    return found
