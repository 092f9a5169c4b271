"""One Arrow IPC payload -> one row. A record has one offset, so it may hold one row; several rows are refused, not half counted."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from flowstate.source.values import Unreadable


class ArrowRows:
    """Reads payloads that are an Arrow IPC stream (or file) with one row of at least the columns of `schema`."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def read(self, raw: bytes) -> dict[str, Any]:
        """Raises `Unreadable`."""
        try:
            opened = pa.ipc.open_file(raw) if raw.startswith(b"ARROW1") else pa.ipc.open_stream(raw)
            table = opened.read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Unreadable(f"not an Arrow IPC stream: {error}") from None
        if table.num_rows != 1:
            raise Unreadable(
                f"the record holds {table.num_rows} rows; send one row per record, since a record has one offset"
            )
        row: dict[str, Any] = {}
        for each in self._schema:
            found = table.schema.get_all_field_indices(each.name)
            if len(found) > 1:
                raise Unreadable(f"field {each.name!r} is given twice")
            try:
                value = table.column(found[0]).cast(each.type)[0] if found else None
                row[each.name] = value if value is not None and value.is_valid else None
            except (pa.ArrowException, ValueError) as error:
                raise Unreadable(f"field {each.name!r}: {error}") from None
        return row
