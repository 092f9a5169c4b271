"""Tables as plain JSON data, so that a snapshot can be read where the flow's code is not."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from flowstate.plan.spec import AggregateSpec, AppendSpec, TableSpec
from flowstate.plan.window import Period, WindowSpec


def dump_tables(tables: Mapping[str, TableSpec | AppendSpec]) -> dict[str, Any]:
    """Name -> plain data."""
    return {name: _dump_table(spec) for name, spec in tables.items()}


def load_tables(data: Mapping[str, Any]) -> dict[str, TableSpec | AppendSpec]:
    """The inverse of `dump_tables`."""
    return {name: _load_table(name, each) for name, each in data.items()}


def _dump_table(spec: TableSpec | AppendSpec) -> dict[str, Any]:
    if isinstance(spec, AppendSpec):
        return {
            "kind": "append",
            "schema": _schema(spec.schema),
            "keep_rows": spec.keep_rows,
            "internal": spec.internal,
        }
    return {
        "kind": "keyed",
        "keys": _schema(pa.schema(spec.keys)),
        "window": None if spec.window is None else _dump_window(spec.window),
        "time_type": _type(spec.time_type),
        "aggregates": [
            {
                "name": each.name,
                "function": each.function,
                "input": each.input,
                "input_type": _type(each.input_type),
                "result_type": _type(each.result_type),
                "options": dict(each.options),
            }
            for each in spec.aggregates
        ],
    }


def _load_table(name: str, data: Mapping[str, Any]) -> TableSpec | AppendSpec:
    if data["kind"] == "append":
        return AppendSpec(name, _load_schema(data["schema"]), data["keep_rows"], data.get("internal", False))
    aggregates = tuple(
        AggregateSpec(
            each["name"],
            each["function"],
            each["input"],
            _load_type(each["input_type"]),
            _load_type(each["result_type"]),
            each["options"],
        )
        for each in data["aggregates"]
    )
    window = None if data["window"] is None else _load_window(data["window"])
    return TableSpec(name, tuple(_load_schema(data["keys"])), window, aggregates, _load_type(data["time_type"]))


def _dump_window(window: WindowSpec) -> dict[str, Any]:
    return {
        "name": window.name,
        "every": asdict(window.every),
        "time_type": _type(window.time_type),
        "offset": asdict(window.offset),
        "grace": window.grace,
        "keep": window.keep,
    }


def _load_window(data: Mapping[str, Any]) -> WindowSpec:
    every, offset = Period(**data["every"]), Period(**data["offset"])
    return WindowSpec(data["name"], every, _load_type(data["time_type"]), offset, data["grace"], data["keep"])


def _schema(schema: pa.Schema) -> str:
    return b64encode(schema.serialize().to_pybytes()).decode()


def _load_schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(b64decode(text)))


def _type(kind: pa.DataType | None) -> str | None:
    return None if kind is None else _schema(pa.schema([pa.field("", kind)]))


def _load_type(text: str | None) -> pa.DataType | None:
    return None if text is None else _load_schema(text).field(0).type
