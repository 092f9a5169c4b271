"""One JSON record -> one row: the complete slow reader that decides what a record means (see `values`).

A record is exactly one JSON object in UTF-8, nested at most `MAX_DEPTH` levels. ``NaN`` and ``Infinity`` are not JSON.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from flowstate.source.values import Number, Pairs, Unreadable, read_pairs, reading, shown

MAX_DEPTH = 64


def _no_constant(name: str) -> Any:
    raise Unreadable(f"not JSON: {name} is no number")


PARSER = json.JSONDecoder(object_pairs_hook=Pairs, parse_float=Number, parse_int=Number, parse_constant=_no_constant)


class JsonRows:
    """Reads records into rows of `schema`, as dicts that ``pa.array`` takes."""

    def __init__(self, schema: pa.Schema) -> None:
        self._readings = {each.name: reading(each.type) for each in schema}

    def read(self, raw: bytes) -> dict[str, Any]:
        """Raises `Unreadable`."""
        if not raw.strip(b" \t\r\n"):
            raise Unreadable("the record is empty")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8: {error.reason} at byte {error.start}") from None
        # Recursion in the parser is as deep as the record: look before it runs.
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH} levels")
        try:
            value = PARSER.decode(text)
        except json.JSONDecodeError as error:
            raise Unreadable(f"not JSON: {error.msg} at character {error.pos}") from None
        if not isinstance(value, Pairs):
            raise Unreadable(f"not a JSON object, but {shown(value)}")
        return read_pairs(value, self._readings)


def _depth(text: str) -> int:
    depth = deepest = 0
    quoted = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif quoted:
            if character == "\\":
                escaped = True
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
