"""What the SQL of others may name: views, functions of values, and a few tables that tell of nothing else.

The settings of the session (`locked`) keep DuckDB away from files, extensions and the network. Here a query is read before DuckDB binds it,
from DuckDB's own syntax tree: tables and table functions are an allow-list, and a tree that cannot be read is refused. Of scalar functions
those are refused that show or change more than values, that take what DuckDB trusts to be its own, or that wait.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from flowstate.errors import InvalidFlow, did_you_mean

Node = dict[str, Any]

#: Bytes of a query, and brackets in brackets.
LONGEST_QUERY = 256 << 10
DEEPEST = 100
#: WITH in brackets in a WITH: the time that DuckDB needs to find a mistake in there grows fivefold with each.
DEEPEST_WITH = 4

TABLE_FUNCTIONS = frozenset(
    ["generate_series", "icu_calendar_names", "json_each", "json_tree", "pg_timezone_names", "range", "unnest"]
)
INFORMATION_SCHEMA = frozenset(
    [
        "character_sets",
        "columns",
        "constraint_column_usage",
        "key_column_usage",
        "referential_constraints",
        "schemata",
        "table_constraints",
        "tables",
    ]
)
_SHOWN = frozenset(['"tables"', "__show_tables_expanded"])
#: Where DuckDB keeps registered views: (catalog, schema).
_PLACES = frozenset([("", ""), ("", "main"), ("", "temp"), ("temp", ""), ("temp", "main")])

#: Settings, variables and sessions, of this database and of the machine.
_OUTSIDE = """
    current_connection_id current_query current_query_id current_setting current_transaction_id get_block_size getenv getvariable
    in_search_path inet_client_addr inet_client_port inet_server_addr inet_server_port parse_duckdb_log_message pg_conf_load_time
    pg_get_constraintdef pg_get_viewdef pg_postmaster_start_time setseed txid_current write_log
    currval nextval setval
"""
#: SQL in a value, which nobody has read.
_SQL = "json_deserialize_sql json_execute_serialized_sql json_serialize_plan json_serialize_sql query query_table"
#: They keep a thread.
_WAITING = "pg_sleep sleep sleep_ms"
#: What DuckDB makes for itself; made by somebody else it may not be what DuckDB takes it for.
_INTERNAL = """
    bitstring_byte_comparable combine combine_aggr constant_or_null create_sort_key finalize icu_sort_key index_key invoke
    is_histogram_other_bin json_copy_strftime_if_date json_copy_strftime_if_timestamp remap_struct replace_type st_asbinary st_asgeojson
    st_astext st_aswkb st_aswkt st_crs st_geomfromgeojson st_geomfromwkb st_intersects_extent st_setcrs stats timetz_byte_comparable
    to_aggregate_state variant_bytes_to_variant variant_comparator variant_to_parquet_variant vector_type vertex_extract
"""
#: As functions: DuckDB compares what it would never let an operator compare, and dies of it.
_COMPARISONS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=", "is distinct from", "is not distinct from")
REFUSED = frozenset([*f"{_OUTSIDE} {_SQL} {_WAITING} {_INTERNAL}".split(), *_COMPARISONS])

# Possessive: a comment that might end at each of many places would be tried in every way, with the GIL held.
_EXPLAIN = re.compile(
    r"(?:\s|--[^\n]*(?:\n|$)|(?>/\*.*?\*/))*+explain\b(?:\s+analyze\b)?(?:\s*\([^()]*\))?", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True)
class Named:
    """What a query names: `tables`, lower case, that must be views; `catalog` if it asks which views there are."""

    tables: frozenset[str]
    catalog: bool


def explained(query: str) -> tuple[str, str]:
    """A query in two parts: EXPLAIN with its options, if it begins with that, and the rest."""
    found = _EXPLAIN.match(query)
    return ("", query) if found is None else (query[: found.end()], query[found.end() :])


def check_nesting(query: str) -> None:
    """Before DuckDB's parser sees it, which takes for ever over some nestings. Raises InvalidFlow."""
    raw = query.encode()
    tokens = duckdb.tokenize(query)
    inside: list[bool] = [False]  # of the brackets that are open: whether there is a WITH in them
    words: list[str] = []
    ends = [*(start for start, _ in tokens[1:]), len(raw)]
    for (start, kind), end in zip(tokens, ends, strict=False):
        word = raw[start:end].decode(errors="replace").strip().lower()
        if kind in (duckdb.token_type.keyword, duckdb.token_type.identifier):
            if word == "time" and words[-1:] == ["with"]:
                inside[-1] = False  # a type, with a time zone
            inside[-1] = inside[-1] or word == "with"
            words = [word]
        elif kind == duckdb.token_type.operator:
            words = []
            for each in word:
                if each in "([{":
                    inside.append(False)
                elif each in ")]}" and len(inside) > 1:
                    inside.pop()
        if len(inside) > DEEPEST:
            raise InvalidFlow("the query is nested too deeply; divide it with WITH", limit=DEEPEST)
        if sum(inside) > DEEPEST_WITH:
            raise InvalidFlow("WITH is nested too deeply in the query; write one WITH with a list", limit=DEEPEST_WITH)


def nodes(tree: Any) -> Iterator[Node]:
    """Every object in a tree. Raises InvalidFlow for one that is nested without end."""
    waiting: list[tuple[Any, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > 20 * DEEPEST:
            raise InvalidFlow("the query is nested too deeply; divide it with WITH", limit=DEEPEST)
        if isinstance(node, dict):
            yield node
            waiting += [(each, depth + 1) for each in node.values() if isinstance(each, dict | list)]
        elif isinstance(node, list):
            waiting += [(each, depth + 1) for each in node if isinstance(each, dict | list)]


def check(tree: Any, built_in: frozenset[str]) -> Named:
    """Raises InvalidFlow for what may not be named. `built_in`: names of tables that DuckDB has itself, lower case."""
    tables, defined, catalog = set[str](), set[str](), False
    for node in nodes(tree):
        kind = node.get("type")
        if kind == "BASE_TABLE":
            catalog |= _check_table(node, tables)
        elif kind == "SHOW_REF":
            catalog |= _check_show(node, tables)
        elif kind == "TABLE_FUNCTION":
            _check_table_function(node)
        elif node.get("class") == "FUNCTION" or "function_name" in node:
            _check_function(node)
        ctes = node.get("cte_map")
        if isinstance(ctes, dict):
            defined |= {str(each.get("key")).lower() for each in ctes.get("map", [])}
        if kind == "RECURSIVE_CTE_NODE" or "cte_name" in node or "ctename" in node:
            defined |= {str(node[each]).lower() for each in ("cte_name", "ctename") if each in node}
    if hiding := sorted(defined & built_in):
        raise InvalidFlow(f"DuckDB has a table {hiding[0]!r} of its own; use another name in WITH")
    return Named(frozenset(tables - defined), catalog)


def unknown_view(name: str, views: list[str]) -> InvalidFlow:
    """The same for a view that does not exist, and for one that is not there for whoever asks."""
    return InvalidFlow(f"there is no view {name!r}{did_you_mean(name, views)}")


def _check_table(node: Node, tables: set[str]) -> bool:
    place = (str(node.get("catalog_name")).lower(), str(node.get("schema_name")).lower())
    name = str(node.get("table_name")).lower()
    if place[1] == "information_schema" and place[0] in ("", "memory", "system", "temp"):
        if name not in INFORMATION_SCHEMA:
            raise unknown_view(f"information_schema.{name}", sorted(INFORMATION_SCHEMA))
        return True
    if place not in _PLACES:
        raise InvalidFlow(f"there is no table {'.'.join([*filter(None, place), name])!r}; name a view without a schema")
    tables.add(name)
    return False


def _check_show(node: Node, tables: set[str]) -> bool:
    kind, name = node.get("show_type"), str(node.get("table_name"))
    if kind == "SHOW_SPECIAL":
        if name not in _SHOWN:
            raise InvalidFlow("SHOW TABLES and DESCRIBE a view tell what is here; nothing else is shown", got=name)
        return True
    if node.get("query") is None:
        if node.get("schema_name") or node.get("catalog_name"):
            raise InvalidFlow("name a view without a schema", got=name)
        tables.add(name.strip('"').lower())
    return False


def _check_table_function(node: Node) -> None:
    function = node.get("function")
    name = str(function.get("function_name")).lower() if isinstance(function, dict) else ""
    if name not in TABLE_FUNCTIONS:
        raise InvalidFlow(f"there is no table function {name!r} for queries here; read a view", function=name)


def _check_function(node: Node) -> None:
    name = str(node.get("function_name")).lower()
    if name in REFUSED or name.startswith("__"):
        raise InvalidFlow(f"the function {name!r} is not for queries here; leave it out", function=name)
    if node.get("export_state"):
        raise InvalidFlow("EXPORT_STATE is not for queries here; leave it out", function=name)
