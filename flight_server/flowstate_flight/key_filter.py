"""Which keys a filter allows, so that only their owners are asked.

An expression has no public tree in pyarrow, but its Substrait bytes are one: a small reader of that format finds, per routing column,
a finite set of literals outside of which the filter cannot be true. It claims nothing about what it does not recognise, so the
worst that it can do is to ask everybody; the filter itself is always applied where the rows are.

For a filter e and a column c, the domain D(e, c) contains every value that c has in a row for which e is true; None is no bound:
D(a and b) is the smaller of D(a), D(b); D(a or b) their union; D(c = v) = {v}; D(c in L) = L; D(c is null) = {null};
D(if p then a else b) = D(p and a) with D(b); D(false) = D(null) = {}.
"""

from __future__ import annotations

from itertools import product

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.substrait
from pyarrow import acero

from flowstate.view.directory import ViewInfo
from flowstate_flight.protobuf import Fields, Unknown, every, fields, number, one, single, write
from flowstate_flight.substrait import (
    FUNCTION,
    IF_THEN,
    IN_LIST,
    LITERAL,
    LITERAL_BOOLEAN,
    LITERAL_NULL,
    REFERRED,
    Filter,
    arguments,
    column,
)

MAX_KEYS = 10_000
_NULL = b""  # stands for null among the encoded literals


def allowed_keys(encoded: bytes, names: list[str], info: ViewInfo) -> pa.RecordBatch | None:
    """A batch of routing keys (perhaps empty) outside of which the filter is never true; None if it does not bound them.
    `encoded` is what `encode_filter` gave, `names` the columns of its base schema."""
    if not info.routing_keys or not set(info.routing_keys) <= set(names):
        return None
    types = [info.schema.field(name).type for name in info.routing_keys]
    try:
        reader = _Reader(Filter(encoded))
        domains = [reader.domain(reader.root, names.index(name)) for name in info.routing_keys]
        known = [each for each in domains if each is not None]
        if len(known) < len(domains):
            return None
        rows = 1
        for each in known:
            rows *= len(each)
        if rows > MAX_KEYS:
            return None
        columns = [reader.values(sorted(each), kind) for each, kind in zip(known, types, strict=True)]
    except (Unknown, pa.ArrowException, NotImplementedError, ValueError, RecursionError):
        return None
    combined = list(product(*(range(len(each)) for each in columns)))
    taken = [each.take(pa.array([row[at] for row in combined], pa.int64())) for at, each in enumerate(columns)]
    return pa.RecordBatch.from_arrays(taken, names=list(info.routing_keys))


class _Reader:
    def __init__(self, filter: Filter) -> None:
        self._filter = filter
        self.root = filter.root

    def domain(self, expression: bytes, at: int) -> frozenset[bytes] | None:
        """D(e, c), as encoded literals."""
        kind, body = single(expression)
        inside = list(fields(body))
        if kind == LITERAL:
            false = inside == [(LITERAL_BOOLEAN, 0)]
            return frozenset() if false or _null(expression) else None
        if kind == IN_LIST:
            if column(one(inside, 1)) != at:
                return None
            return frozenset(each for each in every(inside, 2) if not _null(each))
        if kind == IF_THEN:
            found = self.domain(one(inside, 2), at)
            for clause in every(inside, 1):
                branch = list(fields(clause))
                found = _union(found, _smaller(self.domain(one(branch, 1), at), self.domain(one(branch, 2), at)))
            return found
        return self._function(inside, at) if kind == FUNCTION else None

    def _function(self, inside: Fields, at: int) -> frozenset[bytes] | None:
        name = self._filter.functions[number(inside, 1)]
        given = arguments(inside)
        if name in ("and", "or"):
            found = self.domain(given[0], at)
            for each in given[1:]:
                found = (_smaller if name == "and" else _union)(found, self.domain(each, at))
            return found
        if name == "equal":
            for left, right in (given, given[::-1]):
                if column(left) == at and single(right)[0] == LITERAL:
                    return frozenset() if _null(right) else frozenset([right])
        if name == "is_null" and column(given[0]) == at:
            return frozenset([_NULL])
        return None

    def values(self, literals: list[bytes], kind: pa.DataType) -> pa.Array:
        """Encoded literals as an array of `kind`. Arrow itself decodes them: they are put back as the expressions of the
        message, and evaluated. Raises if one does not fit the type exactly."""
        present = [each for each in literals if each != _NULL]
        arrays = [pa.nulls(len(literals) - len(present), kind)]
        if present:
            head = [(at, value) for at, value in self._filter.fields if at != REFERRED]
            names = [f"value{at}" for at in range(len(present))]
            referred: Fields = [
                (REFERRED, write([(1, each), (3, name.encode())])) for each, name in zip(present, names, strict=True)
            ]
            bound = pyarrow.substrait.deserialize_expressions(pa.py_buffer(write([*referred, *head])))
            row = pa.table({"row": pa.array([0])})
            plan = [
                acero.Declaration("table_source", acero.TableSourceNodeOptions(row)),
                acero.Declaration(
                    "project", acero.ProjectNodeOptions([bound.expressions[name] for name in names], names)
                ),
            ]
            table = acero.Declaration.from_sequence(plan).to_table(use_threads=False)
            arrays += [each.combine_chunks().cast(kind) for each in table.columns]
        return pc.unique(pa.concat_arrays(arrays))


def _smaller(one: frozenset[bytes] | None, other: frozenset[bytes] | None) -> frozenset[bytes] | None:
    if one is None or other is None:
        return other if one is None else one
    return one if len(one) <= len(other) else other


def _union(one: frozenset[bytes] | None, other: frozenset[bytes] | None) -> frozenset[bytes] | None:
    return None if one is None or other is None else one | other


def _null(expression: bytes) -> bool:
    """Whether an expression is the literal null."""
    kind, body = single(expression)
    return kind == LITERAL and any(at == LITERAL_NULL for at, _ in fields(body))
