"""``when(condition).then(value).otherwise(other)``: an expression whose branches are computed only for the rows that take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowstate.errors import InvalidFlow
from flowstate.plan import expr_functions as functions
from flowstate.plan.expr import Expr, Literal, Unfinished, Value, to_expr, unnamed
from flowstate.plan.schema import common_type


@dataclass(frozen=True, eq=False, repr=False)
class Choice(Expr):
    """``when(...).then(...)...otherwise(...)``: the first branch whose condition is true (null is not true)."""

    branches: tuple[tuple[Expr, Expr], ...]
    default: Expr

    def _value(self, batch: pa.RecordBatch) -> Value:
        rows, todo = np.arange(batch.num_rows, dtype=np.int64), batch
        taken: list[np.ndarray[Any, Any]] = []
        parts: list[Value] = []
        for condition, value in self.branches:
            holds = _among(rows, condition, todo)
            if not pa.types.is_boolean(holds.type):
                raise InvalidFlow(
                    "when needs a condition that is true or false", expression=str(condition), type=str(holds.type)
                )
            mask = np.asarray(pc.fill_null(holds, False).to_numpy(zero_copy_only=False), dtype=bool)
            parts.append(_branch(rows[mask], value, todo.filter(pa.array(mask))))
            taken.append(rows[mask])
            rows, todo = rows[~mask], todo.filter(pa.array(~mask))
        parts.append(_branch(rows, self.default, todo))
        taken.append(rows)
        return self._joined(parts, taken)

    def _joined(self, parts: list[Value], taken: list[np.ndarray[Any, Any]]) -> Value:
        values = [value for _, value in self.branches] + [self.default]
        known: pa.DataType | None = None
        for part in parts:
            if isinstance(part, pa.Array):
                known = part.type if known is None else common_type(known, part.type, str(self))
        for value, part in zip(values, parts, strict=True):
            if not isinstance(part, pa.Array):
                literal = unnamed(value)
                assert isinstance(literal, Literal)
                type_ = literal.beside(known).type
                known = type_ if known is None else common_type(known, type_, str(self))
        arrays = []
        for value, part, rows in zip(values, parts, taken, strict=True):
            literal = unnamed(value)
            whole = pa.repeat(literal.beside(known), rows.size) if isinstance(literal, Literal) else part
            arrays.append(functions.to_type(whole, known))
        order = np.argsort(np.concatenate(taken), kind="stable")
        return pa.concat_arrays(arrays).take(pa.array(order))

    def _root(self) -> str:
        return self.branches[0][1]._root()

    def __str__(self) -> str:
        return "".join(f"when({c}).then({v})." for c, v in self.branches).rstrip(".") + f".otherwise({self.default})"


def _among(places: np.ndarray[Any, Any], expr: Expr, rows: pa.RecordBatch) -> pa.Array:
    """`expr` over `rows`, which stood at `places`: that is where a failure is reported."""
    try:
        return expr.evaluate(rows)
    except functions.ValuesFailed as error:
        raise error.within(places) from None


def _branch(places: np.ndarray[Any, Any], value: Expr, rows: pa.RecordBatch) -> Value | None:
    return None if isinstance(unnamed(value), Literal) else _among(places, value, rows)


class When(Unfinished):
    """A condition that waits for its `then`."""

    def __init__(self, condition: Any, before: tuple[tuple[Expr, Expr], ...] = ()) -> None:
        self._condition, self._before = to_expr(condition), before

    def then(self, value: Any) -> Then:
        return Then((*self._before, (self._condition, to_expr(value))))


class Then(Unfinished):
    """Branches that wait for another `when`, or for `otherwise`."""

    def __init__(self, branches: tuple[tuple[Expr, Expr], ...]) -> None:
        self._branches = branches

    def when(self, condition: Any) -> When:
        return When(condition, self._branches)

    def otherwise(self, value: Any) -> Expr:
        return Choice(self._branches, to_expr(value))


def when(condition: Any) -> When:
    """``when(condition).then(value).otherwise(other)``, with further ``.when(...).then(...)`` between."""
    return When(condition)
