"""``EXPLAIN select ...``: which tier answers, who is asked for what, and why it is not another. ``EXPLAIN ANALYZE`` runs it, too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import duckdb

from flowstate.errors import InvalidFlow
from flowstate.view.answer import Answer
from flowstate_sql.tiers import Pushed, SplitPlan, SplitReader

_PREFIX = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)

How = Literal["run", "explain", "analyze"]

TIERS = {
    1: "tier 1: the owners of the routing keys alone are asked",
    2: "tier 2: every partition that is asked computes its part of the aggregates, and only groups travel",
    3: "tier 3: the rows of every view travel, and the query is computed over them here",
}


def admitted(cursor: duckdb.DuckDBPyConnection, query: str) -> tuple[str, duckdb.Statement, How]:
    """The one SELECT of a query, as text and parsed, and what is to be done with it. Raises InvalidFlow, and DuckDB's errors."""
    statement = _only(cursor, query)
    if statement.type == duckdb.StatementType.SELECT:
        return query, statement, "run"
    prefix = _PREFIX.match(statement.query)
    if statement.type != duckdb.StatementType.EXPLAIN or prefix is None:
        raise InvalidFlow("views are read only; ask with a SELECT", statement=statement.type.name)
    inner = statement.query[prefix.end() :]
    try:
        select = _only(cursor, inner)
        if select.type != duckdb.StatementType.SELECT:
            raise InvalidFlow("views are read only; explain a SELECT")
    except duckdb.Error:
        raise InvalidFlow("EXPLAIN and EXPLAIN ANALYZE are followed by a SELECT, without options") from None
    return inner, select, "analyze" if prefix.group(1) else "explain"


def _only(cursor: duckdb.DuckDBPyConnection, query: str) -> duckdb.Statement:
    statements = cursor.extract_statements(query)
    if len(statements) != 1:
        raise InvalidFlow("one SELECT at a time", statements=len(statements))
    return statements[0]


def lines(
    reader: object, plan: SplitPlan | str, scans: Iterable[tuple[str, Pushed]], unread: Sequence[str]
) -> list[str]:
    """`scans` are those of the query by view, with what is pushed into them; `unread` the views that it names and may not need."""
    told, owners_alone = [], True
    for view, pushed in scans:
        text = f"view {view}: "
        if isinstance(reader, SplitReader):
            asked, partitions = reader.asked(view, pushed.filter), len(reader.asked(view))
            owners_alone = owners_alone and len(asked) < partitions
            text += f"asks {len(asked)} of {partitions} partitions" + (f" {asked}" if len(asked) < partitions else "")
        else:
            owners_alone = False
            text += "asks every partition"
        text += "; columns: " + ("all" if pushed.columns is None else ", ".join(pushed.columns) or "none")
        text += "; filter: " + ("none" if pushed.filter is None else str(pushed.filter))
        told.append(text)
    told += [f"view {view}: asked only if there is anything to join it to" for view in unread]
    if isinstance(plan, SplitPlan):
        return [TIERS[2], *told, f"each partition: {plan.partial}", f"merged here: {plan.merge}"]
    tier = 1 if told and owners_alone and not unread else 3
    return [TIERS[tier], *told, f"not computed in parts: {plan}"]


def ran(answers: Mapping[str, Answer], rows: int, seconds: float) -> list[str]:
    """What a run came to."""
    told = [f"ran: {rows} rows in {seconds * 1e3:.1f} ms"]
    for view, answer in answers.items():
        saved = [part.partition for part in answer.parts if part.origin == "saved"]
        text = f"view {view}: {len(answer.parts)} partitions answered"
        text += ", at one position" if answer.consistent else ""
        told.append(text + (f", {saved} from what they saved last" if saved else ""))
    return told
