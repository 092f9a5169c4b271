"""The columns of a view that a reader asks for."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from flowstate.errors import InvalidFlow, did_you_mean


def chosen(view: str, schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """The part of `schema` with these columns, in their order. InvalidFlow if `view` has no such column."""
    for name in columns:
        if schema.get_field_index(name) < 0:
            raise InvalidFlow(f"view {view!r} has no column {name!r}{did_you_mean(name, schema.names)}")
    return pa.schema([schema.field(name) for name in columns])
