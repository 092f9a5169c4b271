"""A query of aggregates in two: what each partition computes of its rows, and how the parts become the answer.

Most functions add up by themselves (`_ADDED`, `_SAME`): exact, and the same in any version. For the others the partitions give DuckDB's own
states (EXPORT_STATE), which it combines; DuckDB wants to know over which types they were computed, and where it would convert an argument
it is converted by name. Not split: what needs all values (DISTINCT, ordered, median, list), or depends on the order of rows (first).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flowstate.view.directory import ViewInfo
from flowstate_sql.syntax import (
    ROWS,
    Node,
    NotSplit,
    Syntax,
    bare,
    column,
    is_order_by_all,
    named,
    nodes,
    parameters,
    replaced,
)  # fmt: skip

#: The table of the parts.
PARTS = "__parts"
#: The column of it that tells how many rows each of them is made of, where there are groups.
MADE_OF = "__n"

_COUNTS = {"count", "count_star"}
_ADDED = {"sum", "count_if", "countif", *_COUNTS}
_SAME = {"min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor"}
_OF_DOUBLES = {
    "var_samp", "var_pop", "variance", "stddev", "stddev_samp", "stddev_pop", "sem", "skewness", "kurtosis", "kurtosis_pop", "product",
    "fsum", "sumkahan", "kahan_sum", "favg",
}  # fmt: skip
_OF_TWO_DOUBLES = {
    "corr", "covar_samp", "covar_pop", "regr_slope", "regr_intercept", "regr_count", "regr_r2", "regr_avgx", "regr_avgy", "regr_sxx",
    "regr_syy", "regr_sxy",
}  # fmt: skip
_OF_ANYTHING = {"approx_count_distinct", "arg_min", "arg_max", "argmin", "argmax", "min_by", "max_by"}
_MEANS = {"avg", "mean"}
_ARGUMENTS = {**dict.fromkeys(_OF_TWO_DOUBLES | _OF_ANYTHING - {"approx_count_distinct"}, 2), "count_star": 0}

#: What DuckDB converts an argument of `avg` to.
_MEAN_OF = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "UTINYINT", "USMALLINT", "UINTEGER"), "BIGINT"),
    **dict.fromkeys(("INTEGER", "BIGINT", "DOUBLE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")),
    **dict.fromkeys(("TIMESTAMP_S", "TIMESTAMP_NS", "DATE"), "TIMESTAMP"),
    "UBIGINT": "HUGEINT",
    "FLOAT": "DOUBLE",
}
_SUMMED = {
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "FLOAT", "DOUBLE",
}  # fmt: skip

SPLIT = frozenset(_ADDED | _SAME | _OF_DOUBLES | _OF_TWO_DOUBLES | _OF_ANYTHING | _MEANS)


@dataclass(frozen=True)
class Split:
    """`partial` is a SELECT over the `columns` of `ROWS`, `merge` one over `PARTS`, which are what it gives; each with the names of its
    parameters."""

    partial: str
    merge: str
    partial_names: frozenset[str]
    merge_names: frozenset[str]
    columns: tuple[str, ...]


#: The types that a SELECT with parameters of some names gives, without running it.
Types = Callable[[str, frozenset[str]], Sequence[str]]


def split(syntax: Syntax, whole: Node, info: ViewInfo, names: Sequence[str], types: Types) -> Split:
    """Raises NotSplit, or a DuckDB error for a query that is wrong. `names` are the columns of the answer; `types` binds a SELECT over
    `ROWS`, which are those of the view."""
    return _Splitting(syntax, whole, info, names, types).split()


class _Splitting:
    def __init__(self, syntax: Syntax, whole: Node, info: ViewInfo, names: Sequence[str], types: Types) -> None:
        self._syntax, self._names, self._types, self._keys = syntax, names, types, set(info.keys)
        columns = info.schema.names
        self._casts: dict[str, Node] = {}
        self._columns = {name.lower(): name for name in columns}
        if len(self._columns) < len(columns):
            raise NotSplit("columns of the view differ in case alone")
        table = whole["from_table"]
        self._tables = {(table["alias"] or table["table_name"]).lower()}
        self._aliases = {each["alias"].lower() for each in whole["select_list"] if each["alias"]}
        self._whole = {**whole, "where_clause": self._settled(whole["where_clause"], set())}
        self._whole["select_list"] = self._settled(whole["select_list"], set())
        self._whole["having"] = self._settled(whole["having"], self._aliases)
        self._whole["modifiers"] = self._settled(whole["modifiers"], self._aliases)

    def _settled(self, tree: Any, aliases: set[str]) -> Any:
        """`tree` with every column by its name in the view, without that of the table."""

        def settle(node: Node) -> Node | None:
            if node.get("class") != "COLUMN_REF":
                return None
            names = node["column_names"]
            if len(names) > 1 and names[0].lower() in self._tables and names[0].lower() not in self._columns:
                if names[1].lower() in aliases:
                    raise NotSplit("an alias hides a column")
                names = names[1:]
            first = names[0].lower()
            if len(names) == 1 and first in aliases:
                return node
            if first not in self._columns:
                raise NotSplit(f"{names[0]} is no column of the view")
            return {**node, "column_names": [self._columns[first], *names[1:]]}

        return replaced(tree, settle)

    def _groups(self) -> list[Node]:
        select = self._whole["select_list"]
        if self._whole["aggregate_handling"] == "FORCE_AGGREGATES":
            found = [each for each in select if not self._aggregates(each)]
        else:
            found = [self._group(each) for each in self._whole["group_expressions"]]
        for each in found:
            if each["class"] in ("CONSTANT", "PARAMETER") or self._aggregates(each):
                raise NotSplit("it groups by a constant")
        return [named(each, "") for each in found]

    def _group(self, node: Node) -> Node:
        """What one expression of GROUP BY stands for: a place, a column, an alias, or itself."""
        select = self._whole["select_list"]
        if node["class"] == "CONSTANT":
            text = node["literal"]["text"]
            if node["literal"]["kind"] != "INTEGER" or not 1 <= int(text) <= len(select):
                raise NotSplit("it groups by a constant")
            found: Node = select[int(text) - 1]
            return found
        if node["class"] == "COLUMN_REF" and len(node["column_names"]) == 1:
            name = node["column_names"][0].lower()
            if name not in self._columns:
                for each in select:
                    if each["alias"].lower() == name:
                        return dict(each)
        settled: Node = self._settled(node, set())
        return settled

    def _aggregates(self, tree: Any) -> list[Node]:
        return [each for each in nodes(tree) if self._syntax.is_aggregate(each)]

    def split(self) -> Split:
        whole = self._whole
        groups = self._groups()
        if self._keys and self._keys <= {each["column_names"][0] for each in groups if each["class"] == "COLUMN_REF"}:
            raise NotSplit("each of its groups is a row of the view")
        if self._aggregates(whole["where_clause"]):
            raise NotSplit("it has an aggregate in WHERE")
        found: list[Node] = []
        for each in self._aggregates([whole["select_list"], whole["having"], whole["modifiers"]]):
            if self._aggregates([each["arguments"], each["filter"]]):
                raise NotSplit("it has an aggregate of an aggregate")
            if bare(each) not in map(bare, found):
                found.append(each)
        if not found and not groups:
            raise NotSplit("it has no aggregate")
        parts, merges = self._parts(groups, found)
        group_names = [f"__g{at}" for at in range(len(groups))]
        select = [named(each, name) for each, name in zip(groups, group_names, strict=True)]
        select += [named(each, f"__a{at}") for at, each in enumerate(parts)]
        if groups:
            select += [named(each, MADE_OF) for each in self._syntax.expressions(["count(*)"])]
        partial = self._select(select, groups, ROWS)
        known = [(bare(each), merge) for each, merge in zip(found, merges, strict=True)]
        known += [(bare(each), column(name)) for each, name in zip(groups, group_names, strict=True)]
        merge = self._merged(known, [column(name) for name in group_names])
        read = {each["column_names"][0] for each in nodes(partial) if each.get("class") == "COLUMN_REF"}
        return Split(
            self._syntax.text(partial),
            self._syntax.text(merge),
            frozenset(parameters(partial)),
            frozenset(parameters(merge)),
            tuple(each for each in self._columns.values() if each in read),
        )

    def _select(self, select: list[Node], groups: list[Node], table: str, **fields: Any) -> Node:
        """The query with another SELECT, GROUP BY and table."""
        source = self._whole["from_table"]
        return {
            **self._whole,
            "modifiers": [],
            "having": None,
            "aggregate_handling": "STANDARD_HANDLING",
            "select_list": select,
            "group_expressions": groups,
            "group_sets": [list(range(len(groups)))] if groups else [],
            "from_table": {**source, "alias": "", "table_name": table, "qualified_name": {"path": [table]}},
            **fields,
        }

    def _merged(self, known: list[tuple[Any, Node]], groups: list[Node]) -> Node:
        def merge(node: Node) -> Node | None:
            if "class" not in node:
                return None
            plain = bare(node)
            for each, other in known:
                if plain == each:
                    return named(other, node["alias"])
            return None

        def ordered(order: Node) -> Node:
            """An alias that is all of an expression of ORDER BY comes before a column."""
            expression = order["expression"]
            if is_order_by_all(order):  # the merged query has the same columns
                return order
            if expression["class"] == "COLUMN_REF" and expression["column_names"][0].lower() in self._aliases:
                return order
            merged = replaced(expression, merge)
            self._check_left(merged, self._aliases)
            return {**order, "expression": merged}

        select, having = replaced(self._whole["select_list"], merge), replaced(self._whole["having"], merge)
        self._check_left(select, set())
        select = [named(each, name) for each, name in zip(select, self._names, strict=True)]
        self._check_left(having, self._aliases)
        modifiers = [
            {**each, "orders": [ordered(order) for order in each["orders"]]}
            if each["type"] == "ORDER_MODIFIER"
            else each
            for each in self._whole["modifiers"]
        ]
        return self._select(select, groups, PARTS, where_clause=None, having=having, modifiers=modifiers)

    def _check_left(self, tree: Any, aliases: set[str]) -> None:
        """What is left beside the parts is an alias, and can be taken for nothing else."""
        for each in nodes(tree):
            if each.get("class") == "COLUMN_REF" and not each["column_names"][0].startswith(("__g", "__a")):
                name = each["column_names"][0].lower()
                if name in self._columns or name not in aliases:
                    raise NotSplit("it has a column that is not grouped by")

    def _parts(self, groups: list[Node], found: list[Node]) -> tuple[list[Node], list[Node]]:
        """The partial aggregates, and the expressions over their columns that give the whole ones."""
        if not found:
            return [], []
        arguments = [[each["expression"] for each in aggregate["arguments"]] for aggregate in found]
        for aggregate, given in zip(found, arguments, strict=True):
            name = aggregate["function_name"]
            if name not in SPLIT:
                raise NotSplit(f"{name} needs all values at once")
            if len(given) != _ARGUMENTS.get(name, 1):
                raise NotSplit(f"{name} is called in another way")
        results = self._bound(found)
        bound = iter(self._bound([each for given in arguments for each in given]))
        parts, merges = [], []
        for at, (aggregate, given, result) in enumerate(zip(found, arguments, results, strict=True)):
            part, merge = self._part(aggregate, [next(bound) for _ in given], result, f"__a{at}")
            parts.append(part)
            merges.append(merge)
        return parts, self._syntax.expressions(merges)

    def _bound(self, expressions: list[Node]) -> Sequence[str]:
        """Their types."""
        if not expressions:
            return []
        select = [named(each, f"x{at}") for at, each in enumerate(expressions)]
        whole = self._select(select, [], ROWS, where_clause=None)
        return self._types(self._syntax.text(whole), frozenset(parameters(whole)))

    def _part(self, aggregate: Node, types: list[str], result: str, name: str) -> tuple[Node, str]:
        function = aggregate["function_name"]
        if function in _ADDED | _SAME:
            if function == "sum" and types[0] not in _SUMMED and not types[0].startswith("DECIMAL"):
                raise NotSplit(f"sum of {types[0]} does not add up apart")
            merged = f"sum({name})" if function in _ADDED else f"{function}({name})"
            if function in _COUNTS:
                merged = f"coalesce({merged}, 0)"
            return aggregate, f"cast({merged} as {result})"
        wanted: list[str | None] = [None] * len(types)
        if function in _OF_DOUBLES | _OF_TWO_DOUBLES:
            wanted = ["DOUBLE"] * len(types)
        elif function in _MEANS and not types[0].startswith("DECIMAL"):
            if types[0] not in _MEAN_OF:
                raise NotSplit(f"{function} of {types[0]} does not add up apart")
            wanted = [_MEAN_OF[types[0]]]
        arguments = [
            each if kind is None else {**each, "expression": self._cast(each["expression"], kind)}
            for each, kind in zip(aggregate["arguments"], wanted, strict=True)
        ]
        kinds = ", ".join(f"'{want or kind}'" for want, kind in zip(wanted, types, strict=True))
        merged = f"finalize(combine_aggr(to_aggregate_state({name}, '{function}', [{kinds}])))"
        return {**aggregate, "arguments": arguments, "export_state": True}, merged

    def _cast(self, node: Node, kind: str) -> Node:
        if kind not in self._casts:
            (self._casts[kind],) = self._syntax.expressions([f"cast(x as {kind})"])
        return {**self._casts[kind], "child": node}
