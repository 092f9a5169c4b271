"""A view as it was: ``select * from totals AT (SNAPSHOT => 3)`` reads a saved cut, beside live views in one query if need be.

DuckDB's grammar has ``AT (VERSION => 3)``, which means the same here, and no SNAPSHOT; its parser says where it stumbles over that word,
so it is replaced exactly where a version may stand. Then each such table becomes a table of its own, which is registered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from flowstate.errors import InvalidFlow

#: Views at snapshots that one query may name.
MOST = 16

_BEFORE = re.compile(rb"\bat\s*\(\s*$", re.IGNORECASE)
_WORD, _INSTEAD = b"snapshot", b"VERSION "
_HINT = "write AT (SNAPSHOT => 3) with the number of a saved snapshot; flowstate_snapshots lists them"


@dataclass(frozen=True)
class Past:
    """A view at a saved snapshot."""

    view: str
    snapshot: int

    @property
    def name(self) -> str:
        return f"{self.view} AT (SNAPSHOT => {self.snapshot})"


def parsed(cursor: duckdb.DuckDBPyConnection, query: str) -> tuple[str, Any]:
    """A query that DuckDB can read, SNAPSHOT being VERSION, and its tree. Raises InvalidFlow, in DuckDB's words."""
    raw = bytearray(query.encode())
    for _ in range(MOST + 1):
        text = raw.decode()
        ((answer,),) = cursor.sql("select json_serialize_sql($1)", params=[text]).fetchall()
        tree = json.loads(answer)
        if tree.get("error") is False:
            return text, tree["statements"]
        at = int(tree.get("position") or -1)
        if at < 0 or raw[at : at + len(_WORD)].lower() != _WORD or _BEFORE.search(raw[:at]) is None:
            message = str(tree.get("error_message"))
            if tree.get("error_type") == "not implemented":
                message = "views are read only; ask with a SELECT"
            raise InvalidFlow(" ".join(message.split())[:500], **({"position": at} if at >= 0 else {}))
        raw[at : at + len(_WORD)] = _INSTEAD
    raise InvalidFlow("a query reads not so many snapshots at once; divide it", limit=MOST)


def travels(tree: Any) -> bool:
    """Whether a query names a view at a snapshot."""
    return next(_at_clauses(tree), None) is not None


def spread(query: str, tree: Any, views: Mapping[str, str]) -> tuple[str, list[Past]]:
    """`query` with every view at a snapshot under a name of its own, and these. `views`: lower-case name to name. Raises InvalidFlow."""
    raw, past = query.encode(), dict[str, Past]()
    for node in sorted(_at_clauses(tree), key=lambda each: -int(each["query_location"])):
        given = str(node["table_name"])
        view = views.get(given.lower())
        if view is None:
            raise InvalidFlow(f"only a view has snapshots, not {given!r}; {_HINT}")
        each = Past(view, _number(node["at_clause"]))
        past[each.name] = each
        if node.get("sample"):
            raise InvalidFlow(
                "a sample of a snapshot is taken around it: from (from totals AT (SNAPSHOT => 3)) TABLESAMPLE 10%"
            )
        start, length = int(node["query_location"]), int(node["query_location_length"])
        columns = ", ".join(_quoted(name) for name in node.get("column_name_alias") or ())
        alias = _quoted(str(node.get("alias") or given)) + (f"({columns})" if columns else "")
        raw = raw[:start] + f" {_quoted(each.name)} AS {alias} ".encode() + raw[start + length :]
    return raw.decode(), list(past.values())


def _at_clauses(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if tree.get("type") == "BASE_TABLE" and tree.get("at_clause"):
            yield tree
        for each in tree.values():
            yield from _at_clauses(each)
    elif isinstance(tree, list):
        for each in tree:
            yield from _at_clauses(each)


def _number(clause: Mapping[str, Any]) -> int:
    expression = clause.get("expr") or {}
    text = str((expression.get("literal") or {}).get("text", ""))
    if str(clause.get("unit")).upper() != "VERSION" or not re.fullmatch(r"\d{1,18}", text):
        raise InvalidFlow(f"this is no snapshot; {_HINT}")
    return int(text)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
