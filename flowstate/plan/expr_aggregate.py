"""Aggregates of expressions, as they are written in ``agg(...)``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.schema import aggregate_type, check_name

if TYPE_CHECKING:
    from flowstate.plan.expr import Expr


@dataclass(frozen=True)
class Aggregate:
    """One value for all rows of a key. Nothing can follow it: compute on its input, or in the query."""

    function: str
    input: Expr | None = None
    options: tuple[tuple[str, Any], ...] = ()
    alias_name: str | None = None

    def alias(self, name: str) -> Aggregate:
        return replace(self, alias_name=check_name(name, "column"))

    @property
    def name(self) -> str:
        return self.alias_name or ("len" if self.input is None else self.input.name)

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        return aggregate_type(self.function, None if self.input is None else self.input.type_in(schema), str(self))

    def __str__(self) -> str:
        inner = [] if self.input is None else [str(self.input)]
        return f"{self.function}({', '.join([*inner, *(f'{name}={value!r}' for name, value in self.options)])})"

    def refuse(self, *_: Any) -> NoReturn:
        raise InvalidFlow(
            "nothing can be computed from an aggregate inside agg(...): compute on its input, "
            "or name both parts and compute in the query",
            aggregate=str(self),
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self.refuse()

    __bool__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __neg__ = __invert__ = __and__ = __or__ = refuse
    __lt__ = __le__ = __gt__ = __ge__ = refuse
