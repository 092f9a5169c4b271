"""One Arrow IPC payload -> its rows. They share the offset of their record, so it is read as a whole or is a dead letter as a whole."""

from __future__ import annotations

import pyarrow as pa

from flowstate.source.values import Unreadable

#: A few bytes can say that there are any number of nulls.
MAX_ROWS = 1 << 20
#: By more than so many digits Arrow moves no decimal, and it does not check: it reads behind a table of powers of ten.
MAX_MOVED = 38


class ArrowRows:
    """Reads payloads that are an Arrow IPC stream (or file) of at least the columns of `schema`; a column that is missing is null."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema.remove_metadata()
        self._options = pa.ipc.IpcReadOptions(use_threads=False, ensure_alignment=pa.ipc.Alignment.At64Byte)

    def read(self, raw: pa.Buffer | bytes) -> pa.RecordBatch:
        """Rows of the schema. Raises `Unreadable`. They may refer to `raw`."""
        try:
            file = bytes(memoryview(raw)[:6]) == b"ARROW1"
            opened = (pa.ipc.open_file if file else pa.ipc.open_stream)(raw, options=self._options)
            table = opened.read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Unreadable(f"not an Arrow IPC stream: {error}") from None
        if table.num_rows > MAX_ROWS:
            raise Unreadable(f"the record holds {table.num_rows} rows; send at most {MAX_ROWS} in a record")
        columns = [self._column(table, each) for each in self._schema]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    @staticmethod
    def _column(table: pa.Table, field: pa.Field) -> pa.Array:
        found = table.schema.get_all_field_indices(field.name)
        if len(found) > 1:
            raise Unreadable(f"field {field.name!r} is given twice")
        if not found:
            return pa.nulls(table.num_rows, field.type)
        column = table.column(found[0])
        if pa.types.is_decimal(column.type) and abs(column.type.scale - getattr(field.type, "scale", 0)) > MAX_MOVED:
            raise Unreadable(f"field {field.name!r}: a {column.type} cannot be a {field.type}")
        try:
            column = column if column.type == field.type else column.cast(field.type)
        except (pa.ArrowException, ValueError) as error:
            raise Unreadable(f"field {field.name!r}: {error}") from None
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
