"""Filters on the wire: as Substrait, with a base schema of just the columns that the filter names.

Substrait is the only form in which pyarrow lets an expression travel without pickle. The base schema tells the server which columns
to read, so a filter needs no column that it does not name, and a type that changed since is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.substrait

from flowstate.errors import InvalidFlow, did_you_mean
from flowstate_flight.membership import says_is_in
from flowstate_flight.protobuf import Unknown
from flowstate_flight.substrait import FUNCTIONS, Filter

# Buffers that came over the network or from a file lie where they lie. Acero copies the few that are misaligned; its default is to
# use them and to complain on stderr, once per kernel.
os.environ.setdefault("ACERO_ALIGNMENT_HANDLING", "reallocate")


class DecodedFilter:
    """A filter that came in a ticket as `encoded`: `expression` is bound to the columns `names`, in that order. Substrait knows no zone but
    UTC; what filters may say is the same in any, so columns in `zoned` (name -> type) are read as if they were in UTC."""

    def __init__(
        self, encoded: bytes, expression: pc.Expression, names: list[str], zoned: dict[str, pa.DataType]
    ) -> None:
        self.encoded = encoded
        self.expression = expression
        self.names = names
        self._zoned = zoned

    def apply(self, table: pa.Table) -> pa.Table:
        """The rows of `table` for which the filter is true; its columns must begin with `names`."""
        schema = table.schema
        try:
            for name, kind in self._zoned.items():
                table = table.set_column(self.names.index(name), name, table.column(name).cast(kind))
            found = table.filter(self.expression)
            return found.cast(schema) if self._zoned else found
        except (pa.ArrowException, NotImplementedError, ValueError, TypeError, KeyError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise InvalidFlow("the filter cannot be evaluated over this view", reason=reason) from None


def decode_filter(raw: bytes, schema: pa.Schema) -> DecodedFilter:
    """Read the filter of a ticket against the schema of its view. Raises InvalidFlow."""
    try:
        Filter(raw)
    except Unknown:
        message = "'filter' is not a Substrait extended expression of the allowed kind; filter what comes back instead"
        raise InvalidFlow(message, allowed=sorted(FUNCTIONS)) from None
    try:
        bound = pyarrow.substrait.deserialize_expressions(pa.py_buffer(raw))
        expressions = list(bound.expressions.values())
        base = bound.schema
    except (pa.ArrowException, NotImplementedError, ValueError, TypeError, KeyError, OSError, UnicodeError):
        raise InvalidFlow("'filter' is not a Substrait extended expression that Arrow can read") from None
    if len(expressions) != 1:
        raise InvalidFlow("'filter' holds one expression", expressions=len(expressions))
    zoned = {}
    for each in base:
        if schema.get_field_index(each.name) < 0:
            raise InvalidFlow(
                f"the filter names an unknown column {each.name!r}{did_you_mean(each.name, schema.names)}"
            )
        expected = schema.field(each.name).type
        zones = [getattr(kind, "tz", None) for kind in (each.type, expected)]
        if None not in zones and each.type == pa.timestamp(expected.unit, zones[0]):
            if zones[0] != zones[1]:
                zoned[each.name] = each.type
        elif each.type != expected:
            raise InvalidFlow("the filter takes a column for another type", column=each.name, it_is=str(expected))
    if len(set(base.names)) != len(base.names):
        raise InvalidFlow("the base schema of the filter names a column twice")
    return DecodedFilter(raw, expressions[0], list(base.names), zoned)


_NOT_ENCODED = (pa.ArrowException, NotImplementedError, ValueError, KeyError, TypeError)


def encode_filter(expression: pc.Expression, schema: pa.Schema) -> tuple[bytes | None, list[str]]:
    """The filter for a ticket, and the columns it reads; None for one that Substrait cannot say exactly, so that the asker
    applies it to what comes back (all columns are named if nobody knows better). Raises InvalidFlow if the filter does
    not fit the schema.

    An expression has no public tree, but it refuses to be encoded over a schema that lacks a column it reads.
    """
    try:
        expression.to_substrait(schema)
    except _NOT_ENCODED:
        try:
            schema.empty_table().filter(expression)
        except _NOT_ENCODED as error:
            reason = str(error).partition("\n")[0][:200]
            raise InvalidFlow(f"the filter does not fit the columns {', '.join(schema.names)}", reason=reason) from None
        return None, list(schema.names)
    names = [each.name for index, each in enumerate(schema) if not _encodes(expression, schema.remove(index))]
    base = pa.schema([pa.field(name, schema.field(name).type) for name in names])
    encoded = bytes(expression.to_substrait(base))
    try:
        exact = says_is_in(Filter(encoded))
    except Unknown:
        exact = False
    return (encoded if exact else None), names


def _encodes(expression: pc.Expression, schema: pa.Schema) -> bool:
    try:
        expression.to_substrait(schema)
    except _NOT_ENCODED:
        return False
    return True


def columns_to_read(columns: Sequence[str], condition: DecodedFilter | None) -> list[str]:
    """Those of the filter first, then the others that were asked for."""
    first = condition.names if condition else []
    return [*first, *(name for name in columns if name not in set(first))]
