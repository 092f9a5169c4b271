"""DuckDB's own syntax tree of a query, as JSON, and which of its nodes may be computed apart.

The tree is no stable contract. So what may be split is an allow-list of kinds of nodes, of their fields and of functions: whatever is not
on it, and so whatever a later DuckDB adds, is left to the query in full.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import duckdb

from flowstate_sql.lengths import short, too_long
from flowstate_sql.lockdown import REFUSED
from flowstate_sql.locked import LOCKED

#: The table of a partial query.
ROWS = "__rows"

Node = dict[str, Any]

_PLACES = ("query_location", "query_location_length")
_SELECT = {
    "type", "modifiers", "cte_map", "select_list", "from_table", "where_clause", "group_expressions", "group_sets", "aggregate_handling",
    "having", "sample", "qualify",
}  # fmt: skip
_FIELDS = {
    "COLUMN_REF": {"column_names"},
    "CONSTANT": {"literal"},
    "PARAMETER": {"identifier"},
    "COMPARISON": {"left", "right"},
    "CONJUNCTION": {"children"},
    "BETWEEN": {"input", "lower", "upper"},
    "CASE": {"case_checks", "else_expr"},
    "CAST": {"child", "try_cast", "type_expr"},
    "TYPE": {"catalog", "schema", "type_name", "children", "qualified_name"},
    "OPERATOR": {"children"},
    "FUNCTION": {
        "function_name", "schema", "catalog", "qualified_name", "filter", "order_bys", "distinct", "is_operator", "export_state",
        "arguments",
    },
}  # fmt: skip
_OPERATORS = {
    "COMPARE_IN",
    "COMPARE_NOT_IN",
    "OPERATOR_NOT",
    "OPERATOR_IS_NULL",
    "OPERATOR_IS_NOT_NULL",
    "OPERATOR_COALESCE",
}
#: Macros of DuckDB's own that are as good as functions.
_MACROS = {"nullif", "if", "fmod", "fdiv", "split_part"}
#: DuckDB says that they depend on their arguments alone, and they do not: on the time, or on the name of a column.
_UNSTEADY = {"current_localtime", "current_localtimestamp", "age", "alias"}


class NotSplit(Exception):
    """Why a query is not computed in parts."""


class Syntax:
    """Trees of one DuckDB, and the functions that it has. `cursor` is used by one thread at a time."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        self.scalars, self.aggregates = _functions()

    def tree(self, query: str) -> Node:
        """The one SELECT in `query`. Raises NotSplit."""
        found = json.loads(self._one("select json_serialize_sql($1)", query))
        if found.get("error") is not False or len(found["statements"]) != 1:
            raise NotSplit("it is no plain SELECT")
        node: Node = found["statements"][0]["node"]
        return node

    def text(self, node: Node) -> str:
        """The SQL of a SELECT."""
        whole = {"error": False, "statements": [{"node": node, "named_param_map": []}]}
        return self._one("select json_deserialize_sql($1::json)", json.dumps(whole))

    def expressions(self, texts: Sequence[str]) -> list[Node]:
        """The trees of some expressions."""
        found: list[Node] = self.tree(f"select {', '.join(texts)}")["select_list"]
        return found

    def _one(self, query: str, value: str) -> str:
        (row,) = self._cursor.execute(query, [value]).fetchall()
        return str(row[0])

    def check_select(self, node: Node) -> None:
        """Raises NotSplit unless `node` is one SELECT over one table, with WHERE, GROUP BY, HAVING, ORDER BY and LIMIT at most, of
        expressions that may be computed anywhere: they depend on nothing but the row."""
        if node["type"] != "SELECT_NODE" or set(node) != _SELECT:
            raise NotSplit("it is more than one SELECT")
        table = node["from_table"]
        if table["type"] != "BASE_TABLE":
            raise NotSplit("it does not read one view alone")
        if (
            table["sample"]
            or table["at_clause"]
            or table["column_name_alias"]
            or table["catalog_name"]
            or table["schema_name"]
        ):
            raise NotSplit("it does not read the view as it is")
        for field, name in (("sample", "USING SAMPLE"), ("qualify", "QUALIFY")):
            if node[field]:
                raise NotSplit(f"it has {name}")
        if node["cte_map"]["map"]:
            raise NotSplit("it has WITH")
        if len(node["group_sets"]) > 1 or node["aggregate_handling"] not in ("STANDARD_HANDLING", "FORCE_AGGREGATES"):
            raise NotSplit("it has grouping sets")
        for modifier in node["modifiers"]:
            ordered = modifier["type"] == "ORDER_MODIFIER"
            if not ordered and (modifier["type"] != "LIMIT_MODIFIER" or modifier["limit_type"] != "ROW_COUNT"):
                raise NotSplit(
                    "it has DISTINCT" if modifier["type"] == "DISTINCT_MODIFIER" else "it has a LIMIT in percent"
                )
        parts = [node[part] for part in ("select_list", "where_clause", "group_expressions", "having")]
        orders = [order for each in node["modifiers"] for order in each.get("orders", ()) if not is_order_by_all(order)]
        limits = [each for each in node["modifiers"] if each["type"] == "LIMIT_MODIFIER"]
        for each in nodes([*parts, orders, limits]):
            if "class" in each:
                self._check_expression(each)
            elif each.get("type") in ("SELECT_NODE", "BASE_TABLE"):
                raise NotSplit("it has a query within")
        if too_long([parts, orders, limits]):
            raise NotSplit("its texts may become long")

    def _check_expression(self, node: Node) -> None:
        kind = node["class"]
        if kind in ("SUBQUERY", "WINDOW", "STAR", "LAMBDA"):
            raise NotSplit(
                {"SUBQUERY": "it has a query within", "WINDOW": "it has a window function", "STAR": "it has *"}.get(
                    kind, f"it has {kind}"
                )
            )
        if kind not in _FIELDS or set(node) - {"class", "type", "alias", *_PLACES} != _FIELDS[kind]:
            raise NotSplit(f"it has {kind.lower()}")
        if kind == "OPERATOR" and node["type"] not in _OPERATORS:
            raise NotSplit(f"it has {node['type'].lower()}")
        if kind == "FUNCTION":
            self._check_function(node)

    def _check_function(self, node: Node) -> None:
        name = node["function_name"]
        if node["schema"] or node["catalog"] or any(each["name"] for each in node["arguments"]):
            raise NotSplit(f"{name} is called in another way")
        if name in self.aggregates:
            if node["distinct"]:
                raise NotSplit(f"{name} is over DISTINCT values")
            if node["order_bys"]["orders"]:
                raise NotSplit(f"{name} is over ordered values")
        elif name not in self.scalars or node["filter"] or node["distinct"] or node["order_bys"]["orders"]:
            raise NotSplit(f"{name} is not computed in parts")

    def check_grouped(self, node: Node) -> None:
        """Raises NotSplit if a SELECT gives one row for each that it reads."""
        handling = node["aggregate_handling"] == "STANDARD_HANDLING" and not node["group_expressions"]
        if handling and not any(
            map(self.is_aggregate, nodes([node["select_list"], node["having"], node["modifiers"]]))
        ):
            raise NotSplit("it has no aggregate")

    def is_aggregate(self, node: Node) -> bool:
        return node.get("class") == "FUNCTION" and node.get("function_name") in self.aggregates


@cache
def _functions() -> tuple[frozenset[str], frozenset[str]]:
    """The functions of rows, which depend on nothing else, and the aggregates. The same in every locked DuckDB of a process."""
    with duckdb.connect(":memory:", config={**LOCKED}) as connection:
        query = "select function_name, function_type, stability, internal, return_type from duckdb_functions()"
        listed = connection.sql(query).fetchall()
    others = {name for name, kind, stability, _, _ in listed if (kind, stability) != ("scalar", "CONSISTENT")}
    plain = short((name, result) for name, _, _, own, result in listed if own and name not in others)
    return frozenset({name for name in plain - _UNSTEADY - REFUSED if not name.startswith("__")} | _MACROS), frozenset(
        name for name, kind, _, _, _ in listed if kind == "aggregate"
    )


def is_order_by_all(order: Node) -> bool:
    """Whether this is all of ``ORDER BY ALL``: by every column of the answer."""
    expression = order["expression"]
    rest = set(expression) - {"class", "type", "columns", *_PLACES}
    return (
        expression["class"] == "STAR"
        and expression.get("columns") is True
        and not any(expression[each] for each in rest)
    )


def nodes(tree: Any) -> Iterator[Node]:
    """Every object in a tree, the outer before the inner, in the order of the text."""
    if isinstance(tree, dict):
        yield tree
        for each in tree.values():
            yield from nodes(each)
    elif isinstance(tree, list):
        for each in tree:
            yield from nodes(each)


def bare(tree: Any) -> Any:
    """`tree` without places and aliases: equal for what means the same."""
    if isinstance(tree, dict):
        return {name: bare(each) for name, each in tree.items() if name not in (*_PLACES, "alias")}
    return [bare(each) for each in tree] if isinstance(tree, list) else tree


def replaced(tree: Any, change: Callable[[Node], Node | None]) -> Any:
    """`tree` with every object for which `change` gives another in place of it."""
    if isinstance(tree, dict):
        other = change(tree)
        return other if other is not None else {name: replaced(each, change) for name, each in tree.items()}
    return [replaced(each, change) for each in tree] if isinstance(tree, list) else tree


def parameters(tree: Any) -> set[str]:
    """The names of the parameters in a tree; those of ``?`` are numbers."""
    return {str(each["identifier"]) for each in nodes(tree) if each.get("class") == "PARAMETER"}


def column(name: str) -> Node:
    return {
        "class": "COLUMN_REF",
        "type": "COLUMN_REF",
        "alias": "",
        "query_location": 0,
        "query_location_length": 0,
        "column_names": [name],
    }


def named(node: Node, name: str) -> Node:
    return {**node, "alias": name}


def chosen_values(names: Collection[str], values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Those parameters that a part of a query has; DuckDB refuses more, and less."""
    return {name: values[name] for name in names} if names else None
