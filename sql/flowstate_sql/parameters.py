"""Types of the parameters of a query, from what stands beside them: DuckDB does not tell them, and drivers bind to nothing else.

A parameter that is compared with a column, or calculated with one, has its type; one that is cast, the type of the cast; one of LIMIT or
OFFSET is an int64. Every other is text, which DuckDB casts by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

Node = dict[str, Any]

_ALIKE = {"any_value", "arbitrary", "arg_max", "arg_min", "first", "last", "max", "max_by", "min", "min_by", "coalesce"}
_COUNTS = {"count", "count_star", "count_if", "length", "len", "approx_count_distinct"}
_MEANS = {"avg", "mean", "stddev", "stddev_pop", "stddev_samp", "var_pop", "var_samp", "variance", "median"}
_CALCULATES = {"+", "-", "*", "/", "//", "%"}
_LITERALS = {"INTEGER": pa.int64(), "STRING": pa.string(), "DECIMAL": pa.float64(), "DOUBLE": pa.float64()}


def names(tree: Any) -> list[str]:
    """Of all parameters; those that are numbers in their order, then the others as they come."""
    found = list(dict.fromkeys(str(each["identifier"]) for each in _nodes(tree) if each.get("class") == "PARAMETER"))
    return sorted((each for each in found if each.isdigit()), key=int) + [each for each in found if not each.isdigit()]


def field_name(name: str) -> str:
    """``$1`` for a number, and a name as it is."""
    return f"${name}" if name.isdigit() else name


def types(
    tree: Any, columns: Mapping[str, pa.DataType], type_of: Callable[[str], pa.DataType | None]
) -> dict[str, pa.DataType]:
    """By name, where they are known. `columns` by lower-case name; `type_of` reads a type of SQL."""
    return _Inference(columns, type_of).types(tree)


class _Inference:
    def __init__(self, columns: Mapping[str, pa.DataType], type_of: Callable[[str], pa.DataType | None]) -> None:
        self._columns, self._type_of = columns, type_of

    def types(self, tree: Any) -> dict[str, pa.DataType]:
        found: dict[str, pa.DataType] = {}
        for node in _nodes(tree):
            beside = _children(node)
            asked = [str(each["identifier"]) for each in beside if each.get("class") == "PARAMETER"]
            if not asked:
                continue
            kind = self._given(node, beside)
            if kind is not None:
                for name in asked:
                    found.setdefault(name, kind)
        return found

    def _given(self, node: Node, beside: list[Node]) -> pa.DataType | None:
        """The type that `node` gives to parameters directly under it."""
        kind = node.get("class")
        if kind == "CAST":
            return self._cast(node)
        if node.get("type") == "LIMIT_MODIFIER":
            return pa.int64()
        if kind == "FUNCTION":
            function = str(node.get("function_name")).lower()
            found = self._first(beside)
            if function in _CALCULATES:
                return found if found is not None and _is_number(found) else None
            return found if function in _ALIKE or function.strip("!~*") == "" else None
        return self._first(beside) if kind in ("COMPARISON", "BETWEEN", "OPERATOR", "CASE") else None

    def _first(self, beside: list[Node]) -> pa.DataType | None:
        return next((kind for each in beside if (kind := self._of(each)) is not None), None)

    def _of(self, node: Node) -> pa.DataType | None:
        """The type of an expression, where it is plain."""
        kind = node.get("class")
        if kind == "COLUMN_REF":
            return self._columns.get(str(node["column_names"][-1]).lower())
        if kind == "CAST":
            return self._cast(node)
        if kind == "CONSTANT":
            return _LITERALS.get(str((node.get("literal") or {}).get("kind")))
        if kind == "FUNCTION":
            function = str(node.get("function_name")).lower()
            if function in _COUNTS:
                return pa.int64()
            if function in _MEANS:
                return pa.float64()
            inner = self._first(_children(node)[:1])
            if inner is not None and function == "sum" and pa.types.is_decimal(inner):
                return pa.decimal128(38, inner.scale)
            if (
                function in _ALIKE
                or function == "sum"
                or (function in _CALCULATES and inner is not None and _is_number(inner))
            ):
                return inner
        return None

    def _cast(self, node: Node) -> pa.DataType | None:
        told = node.get("type_expr") or {}
        inner = [str((each.get("literal") or {}).get("text", "")) for each in _children(told)]
        name = str(told.get("type_name", ""))
        if not name.replace(" ", "").replace("_", "").isalnum() or not all(each.isdigit() for each in inner):
            return None
        return self._type_of(name + (f"({', '.join(inner)})" if inner else ""))


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _children(node: Node) -> list[Node]:
    """Expressions directly under a node."""
    found: list[Node] = []
    for each in node.values():
        for child in each if isinstance(each, list) else [each]:
            if isinstance(child, dict):
                inner = child.get("expression", child)
                if isinstance(inner, dict) and "class" in inner:
                    found.append(inner)
                elif "when_expr" in child:
                    found += [each for each in (child["when_expr"], child.get("then_expr")) if isinstance(each, dict)]
    return found


def _nodes(tree: Any) -> Iterator[Node]:
    if isinstance(tree, dict):
        yield tree
        for each in tree.values():
            yield from _nodes(each)
    elif isinstance(tree, list):
        for each in tree:
            yield from _nodes(each)
