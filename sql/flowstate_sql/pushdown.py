"""Which views a query names, read from DuckDB's own syntax tree.

Registering a view costs 0.3 ms, so only those that a query names are registered. The tree is no stable contract: where it
is not as expected, all views are registered, which is slower and never wrong. What is pushed down is DuckDB's own decision.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import duckdb


def named_tables(connection: duckdb.DuckDBPyConnection, query: str) -> set[str] | None:
    """The lower-case names of all tables in a query, without those that it defines itself (WITH); None if unknown, or if the
    query asks for the catalog itself."""
    rows = connection.execute("select json_serialize_sql($1)", [query]).fetchall()
    tree = json.loads(rows[0][0]) if rows and rows[0][0] else {}
    if tree.get("error") is not False or "statements" not in tree:
        return None
    tables: set[str] = set()
    defined: set[str] = set()
    for node in _nodes(tree["statements"]):
        kind = node.get("type")
        if kind == "BASE_TABLE":
            tables.add(str(node.get("table_name")).lower())
        elif kind in ("SHOW_REF", "TABLE_FUNCTION"):
            return None
        entries = node.get("cte_map")
        if isinstance(entries, dict):
            defined.update(str(each.get("key")).lower() for each in entries.get("map", []))
    return tables - defined if defined.isdisjoint(tables) else tables | defined


def unknown_table(named: Iterable[str] | None, views: Iterable[str], message: str) -> str | None:
    """The name in DuckDB's "Table with name x does not exist", if it is one the query gave."""
    known = {each.lower() for each in views}
    for name in sorted(named or ()):
        if name not in known and name in message.lower():
            return name
    start, _, rest = message.partition("Table with name ")
    return rest.partition(" does not exist")[0] if rest and start.startswith("Catalog Error") else None


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
