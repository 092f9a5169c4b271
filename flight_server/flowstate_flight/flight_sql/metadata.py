"""Catalogs, schemas, tables and keys, as drivers ask for them. All tables lie in one schema, by the names that SQL knows them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.view.directory import ViewInfo
from flowstate_flight.flight_sql import sql_info
from flowstate_flight.flight_sql.columns import Reads, sent_schema
from flowstate_flight.flight_sql.messages import Message

#: What DuckDB calls the place of its tables: a query may name a view with it.
CATALOG, SCHEMA = "temp", "main"
TABLE, SYSTEM = "TABLE", "SYSTEM TABLE"

_KINDS = {"text": pa.string(), "int32": pa.int32(), "uint8": pa.uint8(), "bool": pa.bool_(), "binary": pa.binary()}
_LIST = pa.list_(pa.field("item", pa.string(), False))


class Tables(Protocol):
    """What is there for whoever asks: views, and tables that tell of the job."""

    def views(self) -> list[str]: ...

    def info(self, view: str) -> ViewInfo: ...

    def system(self) -> list[str]: ...

    def columns(self, table: str) -> pa.Schema:
        """Of a system table."""


def _columns(**columns: str) -> pa.Schema:
    """Name to kind; an exclamation mark says that it is never null. Drivers compare all three."""
    return pa.schema(
        [pa.field(name, _KINDS.get(kind.rstrip("!"), _LIST), not kind.endswith("!")) for name, kind in columns.items()]
    )


_REFERENCES = _columns(
    pk_catalog_name="text", pk_db_schema_name="text", pk_table_name="text!", pk_column_name="text!", fk_catalog_name="text",
    fk_db_schema_name="text", fk_table_name="text!", fk_column_name="text!", key_sequence="int32!", fk_key_name="text",
    pk_key_name="text", update_rule="uint8!", delete_rule="uint8!",
)  # fmt: skip
_TABLES = _columns(catalog_name="text", db_schema_name="text", table_name="text!", table_type="text!")
_SCHEMAS = {
    "CommandGetCatalogs": _columns(catalog_name="text!"),
    "CommandGetDbSchemas": _columns(catalog_name="text", db_schema_name="text!"),
    "CommandGetTableTypes": _columns(table_type="text!"),
    "CommandGetTables": _TABLES,
    "CommandGetPrimaryKeys": _columns(
        catalog_name="text", db_schema_name="text", table_name="text!", column_name="text!", key_sequence="int32!", key_name="text"
    ),
    "CommandGetImportedKeys": _REFERENCES,
    "CommandGetExportedKeys": _REFERENCES,
    "CommandGetCrossReference": _REFERENCES,
    "CommandGetXdbcTypeInfo": _columns(
        type_name="text!", data_type="int32!", column_size="int32", literal_prefix="text", literal_suffix="text",
        create_params="list", nullable="int32!", case_sensitive="bool!", searchable="int32!", unsigned_attribute="bool",
        fixed_prec_scale="bool!", auto_increment="bool", local_type_name="text", minimum_scale="int32", maximum_scale="int32",
        sql_data_type="int32!", datetime_subcode="int32", num_prec_radix="int32", interval_precision="int32",
    ),
    "CommandGetSqlInfo": sql_info.SCHEMA,
}  # fmt: skip


def metadata_schema(name: str, asked: Message) -> pa.Schema:
    """The schema of the answer to a command. Raises InvalidFlow if it is not one of these."""
    if name not in _SCHEMAS:
        raise InvalidFlow("this command of Flight SQL is not known here", command=name[:100])
    schema = _SCHEMAS[name]
    if name == "CommandGetTables" and asked.flag(5):
        schema = schema.append(pa.field("table_schema", pa.binary(), False))
    return schema


def metadata(name: str, asked: Message, tables: Tables, version: str, reads: Reads) -> pa.Table:
    """The answer to a command. Raises InvalidFlow."""
    schema = metadata_schema(name, asked)
    if name == "CommandGetSqlInfo":
        return sql_info.sql_info(asked.numbers(1), version)
    rows: Sequence[Mapping[str, Any]] = []
    here = asked.text(1) in (None, CATALOG)
    if name == "CommandGetCatalogs":
        rows = [{"catalog_name": CATALOG}]
    elif name == "CommandGetTableTypes":
        rows = [{"table_type": SYSTEM}, {"table_type": TABLE}]
    elif name == "CommandGetDbSchemas" and here and _like(asked.text(2), SCHEMA):
        rows = [{"catalog_name": CATALOG, "db_schema_name": SCHEMA}]
    elif name == "CommandGetTables" and here and _like(asked.text(2), SCHEMA):
        kinds = asked.texts(4)
        found = []
        if not kinds or SYSTEM in kinds:
            found += [(SYSTEM, each) for each in sorted(tables.system())]
        if not kinds or TABLE in kinds or f"BASE {TABLE}" in kinds:  # Grafana says it in that way
            found += [(TABLE, each) for each in sorted(tables.views())]
        rows = [
            {"catalog_name": CATALOG, "db_schema_name": SCHEMA, "table_name": name, "table_type": kind}
            | ({"table_schema": _columns_of(tables, kind, name, reads)} if asked.flag(5) else {})
            for kind, name in found
            if _like(asked.text(3), name)
        ]
    elif name == "CommandGetPrimaryKeys" and here and asked.text(2) in (None, SCHEMA):
        table = asked.text(3)
        keys = tables.info(table).keys if table is not None and table in tables.views() else ()
        rows = [
            {
                "catalog_name": CATALOG,
                "db_schema_name": SCHEMA,
                "table_name": table,
                "column_name": key,
                "key_sequence": place,
            }
            for place, key in enumerate(keys, 1)
        ]
    return pa.Table.from_pylist([{each: row.get(each) for each in schema.names} for row in rows], schema)


def _columns_of(tables: Tables, kind: str, name: str, reads: Reads) -> bytes:
    schema = tables.columns(name) if kind == SYSTEM else tables.info(name).schema
    return bytes(sent_schema(schema, reads, (CATALOG, SCHEMA, name)).serialize().to_pybytes())


def _like(pattern: str | None, text: str) -> bool:
    """SQL's LIKE, with a backslash before what is meant literally; no pattern is like everything. It goes back to the last ``%`` only, so
    that no pattern takes long."""
    if pattern is None:
        return True
    parts = _parts(pattern)
    at = place = 0
    last: tuple[int, int] | None = None
    while place < len(text):
        if at < len(parts) and parts[at] == (True, "%"):
            last = (at, place)
            at += 1
        elif at < len(parts) and (parts[at] == (True, "_") or (parts[at][1] == text[place] and not parts[at][0])):
            at, place = at + 1, place + 1
        elif last is not None:
            last = (last[0], last[1] + 1)
            at, place = last[0] + 1, last[1]
        else:
            return False
    return all(each == (True, "%") for each in parts[at:])


def _parts(pattern: str) -> list[tuple[bool, str]]:
    """Characters, and whether each is a wildcard."""
    found, escaped = [], False
    for each in pattern:
        if each == "\\" and not escaped:
            escaped = True
            continue
        found.append((not escaped and each in "%_", each))
        escaped = False
    return found
