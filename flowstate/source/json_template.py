"""What is the same in records of one kind: the bytes between their values.

A template is learned from a record that the complete reader accepts. What it says of that record (which name a value has, that no
known name comes twice, that all brackets close, how deep they nest) is then true of every record with the same bytes between values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

#: Longer records, or of more values, are not worth it.
MAX_BYTES = 1 << 16
MAX_VALUES = 512

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],]|[-0-9a-zA-Z][^\s,\]}]*', re.DOTALL)


class Template(NamedTuple):
    """``literals[i]`` are the bytes before value i, the last those behind all values. ``columns[i]`` is the column of value i, None
    for a value of no column: of an unknown name, or within one."""

    literals: tuple[bytes, ...]
    columns: tuple[int | None, ...]


def template_of(raw: bytes, columns: Mapping[str, int]) -> Template | None:
    """The template of a record that is known to be one JSON object; None if it is too large for one."""
    if len(raw) > MAX_BYTES:
        return None
    literals: list[bytes] = []
    found: list[int | None] = []
    open_objects: list[bool] = []
    at = 0
    named = False  # whether the value that comes next has got its name
    column: int | None = None
    for token in _TOKEN.finditer(raw):
        first = token.group()[:1]
        if first in b"{[":
            open_objects.append(first == b"{")
            named = False
        elif first in b"}]":
            open_objects.pop()
        elif first == b",":
            named = False
        elif open_objects[-1] and not named:
            named = True
            column = columns.get(json.loads(token.group())) if len(open_objects) == 1 else None
        else:
            literals.append(raw[at : token.start()])
            found.append(column if len(open_objects) == 1 else None)
            at = token.end()
            if len(found) > MAX_VALUES:
                return None
    literals.append(raw[at:])
    return Template(tuple(literals), tuple(found))
