"""Types and columns that every driver reads: JDBC shows a dictionary's indices instead of its values, knows no views of strings, and takes
precision and scale of a decimal from the metadata of its field alone."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

_ABOUT = "ARROW:FLIGHT:SQL:"


_SIGNED = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
}


@dataclass(frozen=True)
class Reads:
    """What a driver reads: `naive` if no zones, `signed` if it takes whole numbers without a sign for such with one, as JDBC does."""

    naive: bool = False
    signed: bool = False


PLAIN = Reads()


def sent_schema(schema: pa.Schema, reads: Reads = PLAIN, table: tuple[str, str, str] | None = None) -> pa.Schema:
    """What is sent for rows of `schema`; `table` is the (catalog, schema, table) they lie in."""
    fields = []
    for each in schema:
        kind = sent_type(each.type, reads)
        fields.append(pa.field(each.name, kind, True, _about(kind, table)))
    return pa.schema(fields)


def sent_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch in the columns of `schema`, which `sent_schema` made. Raises pa.ArrowException."""
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema) if columns else batch


def sent_type(kind: pa.DataType, reads: Reads = PLAIN) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return sent_type(kind.storage_type, reads)
    if pa.types.is_dictionary(kind):
        return sent_type(kind.value_type, reads)
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    if reads.signed and kind in _SIGNED:
        return _SIGNED[kind]
    if pa.types.is_timestamp(kind) and reads.naive:
        return pa.timestamp(kind.unit)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(sent_type(kind.value_type, reads)))
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(sent_type(each.type, reads)) for each in kind])
    return kind


def parameter_schema(schema: pa.Schema) -> pa.Schema:
    """How parameters are asked for. JDBC binds to exactly these types: whole numbers and floats go into the widest of their kind,
    timestamps are milliseconds to it whatever the unit says, and what is of no type yet may be given as text."""
    return pa.schema([pa.field(each.name, _parameter(each.type)) for each in schema])


def _parameter(kind: pa.DataType) -> pa.DataType:
    kind = sent_type(kind)
    if pa.types.is_null(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("ms", kind.tz)
    return kind


def _about(kind: pa.DataType, table: tuple[str, str, str] | None) -> dict[str, str] | None:
    about = {}
    if table is not None:
        about = {
            f"{_ABOUT}{name}": value
            for name, value in zip(("CATALOG_NAME", "SCHEMA_NAME", "TABLE_NAME"), table, strict=True)
        }
    if pa.types.is_decimal(kind):
        about |= {f"{_ABOUT}PRECISION": str(kind.precision), f"{_ABOUT}SCALE": str(kind.scale)}
    return about or None
