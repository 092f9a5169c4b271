"""Small JSON objects that know whether they are whole.

An object is ``{"checksum": ..., "writer": ..., "entry": {...}}``, readable by people; the checksum is over the canonical JSON of entry and
writer. `writer` is a token by which a writer recognises its own object when the answer to its write was lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from flowstate.errors import CorruptData


def checksum(data: bytes | memoryview) -> str:
    """Of bytes in a store."""
    return blake2b(data, digest_size=16).hexdigest()


def canonical(entry: Any) -> bytes:
    """One spelling of plain data."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def encode(entry: Mapping[str, Any], writer: str = "") -> bytes:
    """Plain JSON data -> the object's bytes."""
    body = {"entry": dict(entry), "writer": writer}
    whole = {"checksum": checksum(canonical(body)), **body}
    return json.dumps(whole, sort_keys=True, allow_nan=False).encode() + b"\n"


def decode(data: bytes, path: str) -> tuple[dict[str, Any], str]:
    """(entry, writer); CorruptData that names `path`, if the bytes are not what was written."""
    try:
        whole = json.loads(data)
        expected, entry, writer = whole["checksum"], whole["entry"], whole["writer"]
        intact = isinstance(entry, dict) and checksum(canonical({"entry": entry, "writer": writer})) == expected
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptData("an object is not what was written; restore it from a backup", object=path) from error
    if not intact:
        raise CorruptData("an object's checksum is wrong; restore it from a backup", object=path)
    return entry, writer
