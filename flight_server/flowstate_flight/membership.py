"""The one place where Arrow's encoder changes what a filter means: membership of a null, of NaN and of the two zeros."""

from __future__ import annotations

import struct

from flowstate_flight.protobuf import every, fields, number, one, single
from flowstate_flight.substrait import FUNCTION, IF_THEN, IN_LIST, LITERAL_NULL, Filter, arguments, column


def says_is_in(filter: Filter) -> bool:
    """Whether membership means in Substrait what it means in Arrow, whose encoder does not mind the difference.

    Arrow's is_in is false for a null (and true if the set has one), Substrait's is null; Arrow's tells -0.0
    from 0.0. That makes no difference where the
    filter only gets less true by it, nor where the column was just found not to be null.
    """
    return _positive(filter, filter.root, True, frozenset())


def _positive(filter: Filter, expression: bytes, positive: bool, present: frozenset[int]) -> bool:
    kind, body = single(expression)
    inside = list(fields(body))
    if kind == IN_LIST:
        tested = column(one(inside, 1))
        if any(_otherwise(each) for each in every(inside, 2)):
            return False
        return positive or (tested is not None and tested in present)
    if kind == IF_THEN:
        for clause in every(inside, 1):
            branch = list(fields(clause))
            condition = one(branch, 1)
            known = _present(filter, condition)
            then = present if known is None else present | {known}
            if not (_positive(filter, condition, False, present) and _positive(filter, one(branch, 2), positive, then)):
                return False
        return _positive(filter, one(inside, 2), positive, present)
    if kind == FUNCTION:
        monotone = positive and filter.functions[number(inside, 1)] in ("and", "or")
        return all(_positive(filter, each, monotone, present) for each in arguments(inside))
    return True


def _present(filter: Filter, condition: bytes) -> int | None:
    """The column that a condition finds not to be null, if that is what it is."""
    kind, body = single(condition)
    inside = list(fields(body))
    if kind != FUNCTION or filter.functions[number(inside, 1)] != "is_not_null":
        return None
    tested = arguments(inside)[0]
    return column(tested)


def _otherwise(option: bytes) -> bool:
    """Whether is_in finds another set of values equal to a literal than ``==`` does: null, NaN, and the two zeros."""
    for at, value in fields(single(option)[1]):
        if at == LITERAL_NULL:
            return True
        if at in (10, 11) and isinstance(value, bytes):
            real = struct.unpack("<f" if at == 10 else "<d", value)[0]
            if real == 0 or real != real:
                return True
    return False
